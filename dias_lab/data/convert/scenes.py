"""The built-in scenes -> stores. The splits are disjoint ranges of seeds."""

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dias_lab.data import store
from dias_lab.data.scenes import SPLITS, Difficulty, scene


def convert(
    out: str | Path,
    train: int = 2000,
    validation: int = 200,
    test: int = 200,
    difficulty: Difficulty = Difficulty(),
    progress: bool = False,
) -> dict[str, Path]:
    """Write out/train.lmdb, out/validation.lmdb and out/test.lmdb with so many scenes each; return their paths.

    Raises ValueError for a negative number of scenes or an impossible difficulty; OSError if `out` cannot be written.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if not 1 <= count <= 10_000_000:
            raise ValueError(f"{split}={count}: a split has 1 to 10,000,000 scenes, so that the splits' seeds stay apart")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    sizes = " ".join(f"--{split} {count}" for split, count in counts.items())
    paths = {}
    for split, count in counts.items():
        seeds = range(SPLITS[split], SPLITS[split] + count)
        meta = {
            "dataset": "scenes",
            "split": split,
            "classes": None,
            "source": "dias_lab.data.scenes",
            "command": f"python -m dias_lab convert scenes --out {out} {sizes}",
            "difficulty": difficulty._asdict(),
        }
        bar = tqdm(seeds, desc=f"scenes {split}", disable=not progress, mininterval=1)
        paths[split] = store.write(out / f"{split}.lmdb", _records(bar, difficulty), meta)
    return paths


def _records(seeds, difficulty) -> Iterator[store.Record]:
    for seed in seeds:
        image, segments = scene(seed, difficulty)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)  # noise hardly compresses; this is four times faster
        things = {segment: True for segment in range(1, int(segments.max()) + 1)}
        yield store.Record(buffer.getvalue(), segments, {"source": f"scene {seed}", "things": things})
