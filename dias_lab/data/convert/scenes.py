"""The built-in scenes and clips -> stores. The splits are disjoint ranges of seeds."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from PIL import Image

from dias_lab.data import moving, painting, scenes, shapes, store, toys
from dias_lab.data.convert import common
from dias_lab.data.convert.common import Split
from dias_lab.data.scenes import SPLITS

KINDS = dict(enumerate(toys.KINDS, start=1))
CLASSES = {kind: number for number, kind in KINDS.items()}


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
    out, counts = Path(out), _counts(train, validation, test)
    chosen = painting.named(difficulty, scenes.DIFFICULTIES)
    meta = {"source": "dias_lab.data.scenes", "difficulty": dataclasses.asdict(chosen)}
    meta |= {} if isinstance(chosen, shapes.Difficulty) else {"classes": KINDS}
    options = {"out": out, **counts} | ({} if difficulty == scenes.DEFAULT else {"difficulty": difficulty})

    def record(seed: int) -> store.Record:
        return _record(f"scene {seed}", *scenes.item(seed, chosen)[:3])

    splits = {name: Split(range(SPLITS[name], SPLITS[name] + count), record, meta) for name, count in counts.items()}
    return common.write(out, "scenes", splits, options, "This is a defect of dias_lab", progress)


def convert_clips(
    out: Path, train: int = 200, validation: int = 20, test: int = 40, frames: int = 24,
    difficulty: Literal[tuple(moving.DIFFICULTIES)] = moving.DEFAULT, progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Make the built-in clips: toys that move.

    Args:
        train: how many clips to train on
        validation: how many on which checkpoints are chosen
        test: how many that results are reported on
        frames: of a clip
        difficulty: clips; camera: moves, too; crossing: toys pass in front; exits: they leave and come back; still: none moves

    Classes are the kinds of the toys. Raises ValueError for a number out of range or an unknown difficulty; OSError if `out`
    cannot be written.
    """
    counts = {"train": train, "validation": validation, "test": test}
    return write_clips("clips", moving, out, counts, frames, difficulty, progress)


def write_clips(
    dataset: str, worlds, out: Path, counts: dict[str, int], frames: int, difficulty: str, progress: bool, least: int = 1,
    more: Callable = lambda world, frame: {}, asked_for: dict | None = None,
) -> dict[str, Path]:  # fmt: skip
    """Write the splits of clips of a module's worlds (its World, DIFFICULTIES, DEFAULT); `more(world, frame)` is what info has
    besides, `asked_for` what the command has. ValueError for numbers out of range, fewer than `least` frames among them."""
    counts = _counts(**counts)
    if not least <= frames <= 100_000:
        raise ValueError(f"frames={frames}: a clip has {least} to 100,000 frames")
    about = dataclasses.asdict(painting.named(difficulty, worlds.DIFFICULTIES))
    own = {} if difficulty == worlds.DEFAULT else {"difficulty": difficulty}
    options = {"out": Path(out), **counts, "frames": frames, **own, **(asked_for or {})}
    meta = {"kind": "video", "source": worlds.__name__, "difficulty": about, "classes": KINDS}
    world = functools.lru_cache(maxsize=4)(functools.partial(worlds.World, difficulty=difficulty))

    def record(place: tuple[int, int]) -> store.Record:
        seed, frame = place
        image, segments = world(seed).frame(frame)
        made = _record(f"clip {seed}, frame {frame}", image, segments, world(seed).kinds)
        own = {"clip": f"clip {seed}", "frame": frame, "boxes": store.boxes(segments)}
        return made._replace(info=made.info | own | more(world(seed), frame))

    seeds = {name: range(SPLITS[name], SPLITS[name] + count) for name, count in counts.items()}
    splits = {name: Split(list(itertools.product(ones, range(frames))), record, meta) for name, ones in seeds.items()}
    return common.write(Path(out), dataset, splits, options, "This is a defect of dias_lab", progress)


def _counts(train: int, validation: int, test: int) -> dict[str, int]:
    """How many of each split. ValueError: splits' seeds would overlap."""
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if not 1 <= count <= 10_000_000:
            raise ValueError(f"{split}={count}: a split has 1 to 10,000,000 scenes, so that splits' seeds stay apart")
    return counts


def _record(source: str, image, segments, kinds: list[str]) -> store.Record:
    blob = store.png(Image.fromarray(image), compress_level=1)  # noise hardly compresses; this is four times faster
    info = {"source": source, "things": common.all_things(segments)}
    if set(kinds) != {"shape"}:  # shapes are of no kind
        info["classes"] = {label: CLASSES[kinds[label - 1]] for label in info["things"]}
    return store.Record(blob, segments, info)
