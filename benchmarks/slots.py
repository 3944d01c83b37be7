"""Slots of a store on disk, beside an evaluation of the same model on the same images.

    python -m benchmarks slots

One thread. The shipped model on toys; each extraction begins in an empty folder, fp16. An evaluation also scores three maps,
so it may take longer; the bar is 5 % more than the comparator. `bytes` are those of the files. Before that, the time to open
them, which compares their checksums, is printed.
"""

import itertools
import tempfile
import time
from pathlib import Path

import torch

from benchmarks._measure import row
from dias_lab import shipped
from dias_lab.analysis.evaluate import evaluate
from dias_lab.analysis.slots import extract, open_slots
from dias_lab.data import store
from dias_lab.data.convert import scenes
from dias_lab.files import folder_size
from dias_lab.training.cost import take_turns

IMAGES, REPETITIONS, BAR = 1000, 3, 5


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            scenes.convert(Path(folder, "scenes"), train=1, validation=1, test=IMAGES)
            model, images, number = shipped(), store.open(Path(folder, "scenes/test.lmdb")), itertools.count()
            sides = {"slots": lambda: extract(model, images, Path(folder, str(next(number))))}
            sides |= {"scores": lambda: evaluate(model, images)}
            seconds = take_turns(sides, REPETITIONS)
            started = time.perf_counter()
            open_slots(Path(folder, "0"))
            opened, size = time.perf_counter() - started, folder_size(Path(folder, "0"))
        found = row("slots of images", seconds["slots"], seconds["scores"], images=IMAGES, bytes=size)
        rates, slower = [IMAGES / found[side] for side in ("seconds", "comparator_seconds")], 100 * (1 / found["ratio"] - 1)
        told = f"{rates[0]:.0f} images/s, evaluation {rates[1]:.0f}; {slower:+.0f} % time, the bar is {BAR} %"
        print(f"slots of images: {told}; opened and compared in {1000 * opened:.0f} ms, {size / 1e6:.1f} MB")
        return [found]
    finally:
        torch.set_num_threads(threads)
