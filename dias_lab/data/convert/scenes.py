"""The built-in scenes -> stores. The splits are disjoint ranges of seeds."""

import functools
from pathlib import Path

from PIL import Image

from dias_lab.data import store
from dias_lab.data.convert import common
from dias_lab.data.convert.common import Split
from dias_lab.data.scenes import SPLITS, Difficulty, scene


def convert(
    out: str | Path, train: int = 2000, validation: int = 200, test: int = 200, difficulty: Difficulty = Difficulty(),
    progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Write out/train.lmdb, out/validation.lmdb and out/test.lmdb with so many scenes each; return their paths.

    Raises ValueError for a negative number of scenes or an impossible difficulty; OSError if `out` cannot be written.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if not 1 <= count <= 10_000_000:
            raise ValueError(f"{split}={count}: a split has 1 to 10,000,000 scenes, so that splits' seeds stay apart")
    out = Path(out)
    meta = {"source": "dias_lab.data.scenes", "difficulty": difficulty._asdict()}
    record = functools.partial(_record, difficulty=difficulty)
    splits = {name: Split(range(SPLITS[name], SPLITS[name] + count), record, meta) for name, count in counts.items()}
    return common.write(out, "scenes", splits, {"out": out, **counts}, "This is a defect of dias_lab", progress)


def _record(seed: int, difficulty: Difficulty) -> store.Record:
    image, segments = scene(seed, difficulty)
    blob = store.png(Image.fromarray(image), compress_level=1)  # noise hardly compresses; this is four times faster
    return store.Record(blob, segments, {"source": f"scene {seed}", "things": common.all_things(segments)})
