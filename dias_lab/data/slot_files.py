"""The files of slots: a row for every item of a store, written batch after batch; whole, or refused by name.

A folder holds three plain .npy files, and `slots.json`, which comes last: what they are of, and the CRC-32 of each file,
whole, which is compared when they are opened. Until then `.progress.json` says how far they are.

Axes: M items, B of them at a time, N slots, D slot width, R pixels of the square.
"""

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from dias_lab.files import full_disk, read_object, sync, write_sealed

ARRAYS, ABOUT, PROGRESS = ("slots.npy", "keep.npy", "segments.npy"), "slots.json", ".progress.json"
SAVED = 256  # items after which an extraction that is killed goes on


class Slots(NamedTuple):
    """What a folder holds, as memory maps."""

    slots: np.ndarray  # float16 or float32 [M N D]
    keep: np.ndarray  # bool [M N]; False: redundant, or a segment that this item does not show
    segments: np.ndarray  # uint8 [M R R], the number of each pixel's slot in the centre square; 255: none
    about: dict  # identity, records, split, source, dtype, map, seed, shape [M N D], made (commit, versions, time)


class Writer:
    """Adds rows. `done` is how many an extraction that was killed has left of these: 0 unless a batch begins there."""

    def __init__(self, folder: Path, about: dict, count: int, starts):
        self.folder, self.about, self.count, self.done, self.sums = folder, about, count, 0, []
        self.paths = [folder / name for name in ARRAYS]
        if (folder / PROGRESS).exists() and (found := read(folder, PROGRESS, about))["done"] in (*starts, count):
            self.done, self.sums = found["done"], found["checksums"]
            for path, end in zip(self.paths, found["ends"]):
                os.truncate(path, end)

    def add(self, arrays: list[np.ndarray]):
        """Slots, keep and segments [B ...]. Every few items they are synced, and then it is written how far."""
        with full_disk(self.paths[0]):
            if not self.done:  # only headers: a file has its size when all rows are there
                for path, array in zip(self.paths, arrays):
                    os.truncate(path, open_memmap(path, "w+", array.dtype, (self.count, *array.shape[1:])).offset)
                self.sums = [zlib.crc32(path.read_bytes()) for path in self.paths]
            for path, array in zip(self.paths, arrays):
                with open(path, "ab") as file:
                    file.write(array.tobytes())
            self.sums = [zlib.crc32(array.tobytes(), crc) for array, crc in zip(arrays, self.sums)]
            before, self.done = self.done, self.done + len(arrays[0])
            if self.done // SAVED > before // SAVED or self.done == self.count:
                for path in self.paths:
                    sync(path)
                far = {"done": self.done, "ends": [path.stat().st_size for path in self.paths], "checksums": self.sums}
                write_sealed(self.folder / PROGRESS, {**self.about, **far})

    def finish(self, made: dict):
        about = {"shape": open_memmap(self.paths[0], "r").shape, "made": made, "checksums": self.sums}
        write_sealed(self.folder / ABOUT, {**self.about, **about})
        (self.folder / PROGRESS).unlink()


def read(folder: Path, name: str, expected: dict) -> dict:
    """What slots.json says, or how far they are. ValueError where it is damaged, or about anything but `expected`."""
    try:
        found = read_object(folder / name, {"checksums": list})
    except ValueError as error:
        raise ValueError(f"{error}. Delete {folder} to extract the slots again") from None
    differs = [f"{one} is {found.get(one)!r} there, not {value!r}" for one, value in expected.items() if found.get(one) != value]
    if differs:
        told = ", ".join(differs).replace("identity", "the model's identity").replace("records", "the store's records")
        raise ValueError(f"the slots in {folder} are of something else: {told}. Choose another folder, or delete it")
    return found


def opened(folder: Path, expected: dict) -> Slots:
    """ValueError where there are none, or not all, where they are damaged, or about anything but `expected`."""
    if not (folder / ABOUT).exists():
        state = "are unfinished" if (folder / PROGRESS).exists() else "are not there"
        raise ValueError(f"the slots in {folder} {state}: python -m dias_lab slots makes them, and goes on where it was stopped")
    about = read(folder, ABOUT, expected)
    for path, known in zip((folder / name for name in ARRAYS), about.pop("checksums")):
        if not path.exists() or not path.stat().st_size or zlib.crc32(np.memmap(path, np.uint8, "r")) != known:
            raise ValueError(f"{path} is not as it was written: its checksum differs. Delete {folder} to extract the slots again")
    return Slots(*(open_memmap(folder / name, "r") for name in ARRAYS), about)
