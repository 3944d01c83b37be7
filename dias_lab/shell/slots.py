"""The shell's command that writes slots to files. It imports torch last, so that a refusal is instant."""

import time
from pathlib import Path
from typing import Literal

from dias_lab.shell import Flag, Refused, refusing

Split = Literal["train", "validation", "test"]


def slots(
    data: Path, out: Path, run_dir: Path | None = None, shipped: Flag = False, split: tuple[Split, ...] = (),
    source: Literal["model", "untrained", "true", "k_means", "tiles"] = "model",
    dtype: Literal["float16", "float32"] = "float16",
):  # fmt: skip
    """Write the slots of a whole store to files, which recognition, prediction and reasoning read.

    A folder OUT/SPLIT gets slots, keep masks and segments as .npy files. The same command goes on where one was stopped.

    Args:
        data: a folder of stores, or one store (.lmdb)
        out: the folder that gets a folder for each split
        run_dir: the folder of a run, whose best model has these slots
        shipped: the small model that comes with the package has them
        split: only these stores of the folder: train, validation, test
        source: what the slots are: the model's, those of its twin before training, or mean features of the true segments, of
            k_means clusters, or of tiles
        dtype: of the slots: float16, or float32, which is exact and takes twice the room
    """
    if bool(run_dir) == shipped:
        raise Refused("say which model, and only one: --run-dir RUN, or --shipped")
    paths = [data] if data.suffix == ".lmdb" else [data / f"{one}.lmdb" for one in split or Split.__args__]
    paths = [path for path in paths if split or path.exists()] or [data]
    if missing := [str(path) for path in paths if path.suffix != ".lmdb" or not path.exists()]:
        raise Refused(f"there is no store {', '.join(missing)}; make it with python -m dias_lab convert")
    import dias_lab
    from dias_lab.analysis.slots import Extraction

    with refusing():
        model = dias_lab.shipped() if shipped else dias_lab.load_model(run_dir.resolve())
        stores = [dias_lab.data.store.open(path.resolve()) for path in paths]
        extractions = [Extraction(model, one, out.resolve() / one.path.stem, source, dtype) for one in stores]
    for store, extraction in zip(stores, extractions):
        started, left = time.perf_counter(), extraction.count - extraction.done
        found = extraction.run(progress=True).slots
        rate = f", {left / (time.perf_counter() - started):.0f} items/s" if left else ""
        did = "wrote" if left else "was there already:"
        print(f"{did} {out / store.path.stem}: {len(found)} items, slots {found.dtype} {list(found.shape)}{rate}")
