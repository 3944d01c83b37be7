"""The built-in scenes -> stores. The splits are disjoint ranges of seeds."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from PIL import Image

from dias_lab.data import scenes, shapes, store, toys
from dias_lab.data.convert import common
from dias_lab.data.convert.common import Split
from dias_lab.data.scenes import SPLITS

CLASSES = {kind: number for number, kind in enumerate(toys.KINDS, start=1)}


def convert(
    out: Path, train: int = 2000, validation: int = 200, test: int = 200,
    difficulty: Literal[tuple(scenes.DIFFICULTIES)] = scenes.DEFAULT, progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Make the built-in scenes.

    Args:
        train: how many to train on
        validation: how many on which checkpoints are chosen
        test: how many that results are reported on
        difficulty: scenes: toys of several parts; crowded: more; regions: wall and floor; recoloured; shapes: of one texture

    Classes are the kinds of the toys. Raises: ValueError for a negative number of scenes or an unknown difficulty; OSError.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if not 1 <= count <= 10_000_000:
            raise ValueError(f"{split}={count}: a split has 1 to 10,000,000 scenes, so that splits' seeds stay apart")
    out = Path(out)
    chosen = scenes.named(difficulty)
    about = chosen._asdict() if isinstance(chosen, shapes.Difficulty) else dataclasses.asdict(chosen)
    meta = {"source": "dias_lab.data.scenes", "difficulty": about}
    if not isinstance(chosen, shapes.Difficulty):
        meta["classes"] = {number: kind for kind, number in CLASSES.items()}
    options = {"out": out, **counts} | ({} if difficulty == scenes.DEFAULT else {"difficulty": difficulty})
    record = functools.partial(_record, difficulty=difficulty)
    splits = {name: Split(range(SPLITS[name], SPLITS[name] + count), record, meta) for name, count in counts.items()}
    return common.write(out, "scenes", splits, options, "This is a defect of dias_lab", progress)


def _record(seed: int, difficulty: str) -> store.Record:
    image, segments, kinds, *_ = scenes.item(seed, difficulty)
    blob = store.png(Image.fromarray(image), compress_level=1)  # noise hardly compresses; this is four times faster
    info = {"source": f"scene {seed}", "things": common.all_things(segments)}
    if set(kinds) != {"shape"}:  # shapes are of no kind
        info["classes"] = {label: CLASSES[kind] for label, kind in enumerate(kinds, start=1)}
    return store.Record(blob, segments, info)
