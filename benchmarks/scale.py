"""How cost grows: with slots, locations, resolution and batch; and a store of a million small records.

    python -m benchmarks scale

A training step from cached features (a narrow DIAS of random weights, one thread) is timed at four sizes of one quantity,
the others fixed. `exponent` is the slope of the fitted line of log seconds over log size: 1 is linear. The store: a million
records of one tiny PNG are written, opened, shuffled and verified; `peak_bytes` is what that adds to the process's memory,
the pages of the file that the system keeps in it included.
"""

import argparse
import io
import itertools
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks._measure import flops, row, take_turns
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.data.dataset import permutation
from dias_lab.methods import build

BASE = {"num_slots": 8, "locations": 256, "batch_size": 8}
SIZES = {
    "num_slots": (4, 8, 16, 32),
    "locations": (64, 144, 256, 576),
    "batch_size": (2, 4, 8, 16),
}
RECORDS = 1_000_000


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*map(exponent, SIZES), *records(RECORDS)]
    finally:
        torch.set_num_threads(threads)


def exponent(quantity: str) -> dict:
    functions = {size: training_pass(**{**BASE, quantity: size}) for size in SIZES[quantity]}
    seconds = take_turns(functions, repetitions=5)
    medians = [float(np.median(seconds[size])) for size in functions]
    slope, _ = np.polyfit(np.log(list(functions)), np.log(medians), 1)
    counted, _ = np.polyfit(np.log(list(functions)), np.log([flops(one) for one in functions.values()]), 1)
    print(f"{quantity}: seconds grow with exponent {slope:.2f}, counted operations with {counted:.2f}")
    largest = list(functions)[-1]
    facts = {"exponent": slope, "exponent_of_operations": counted, "flops": flops(functions[largest])}
    return row(f"scale, {quantity} {largest}", seconds[largest], seconds[list(functions)[0]], **facts)


def training_pass(num_slots: int, locations: int, batch_size: int):
    """Forward and backward pass of a DIAS with 128 feature channels on features of so many locations."""
    side = round(locations**0.5)
    config = Config.preset(
        "scenes", num_slots=num_slots, batch_size=batch_size, image_size=8 * side, backbone_size=8 * side, fourier_stride=8,
        fourier_dim=128, decoder_layers=2, device="cpu",
    )  # fmt: skip
    model = build(config).train()
    features = torch.randn(batch_size, 128, side, side)
    draws = model.draw(range(batch_size), 0)

    def run():
        terms, weights = model.losses(model(None, features=features, draws=draws), 0.5)
        sum(weights[name] * terms[name] for name in terms).backward()

    return run


def records(count: int) -> list[dict]:
    """Write, open, shuffle and verify a store of so many records."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.lmdb"
        before, start = peak(), time.perf_counter()
        packed = store.pack(store.Record(buffer.getvalue(), None, {"source": "made"}))
        store.write(path, itertools.repeat(packed, count), {"dataset": "made", "split": "train"})
        found.append(row("a million records: write", [time.perf_counter() - start], bytes=path.stat().st_size))
        start = time.perf_counter()
        opened = store.open(path)
        order = permutation(0, 0, len(opened))
        for item in order[:1000]:
            opened[int(item)]
        found.append(row("a million records: open, shuffle, read 1000", [time.perf_counter() - start]))
        start = time.perf_counter()
        store.verify(path, progress=False)
        found.append(row("a million records: verify", [time.perf_counter() - start], bytes=path.stat().st_size))
    for one in found:
        one.update(records=count, peak_bytes=peak() - before)
        print(f"{one['name']}: {one['seconds']:.1f} s; memory grew by {one['peak_bytes'] / 1e6:.0f} MB in all")
    return found


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=RECORDS)
    records(parser.parse_args().records)
