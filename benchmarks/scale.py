"""How cost grows: with slots, locations, batch, resolution and images; the memory of a run in the size of COCO; large stores.

    python -m benchmarks scale

One quantity at a time takes four sizes, the others fixed; one thread. Slots, locations and batch: a training pass from cached
features (a narrow DIAS of random weights). Resolution: a training pass from pixels in the preset coco, ViT-S/14 included.
Images: scoring them. `exponent` is the slope of the fitted line of log seconds over log size: 1 is linear. The memory is that
of a process that takes one training step of the preset coco, from the system's own record; a line through three batch sizes
gives what an image adds. Stores of up to a million records of one tiny PNG are written, opened, shuffled and verified;
`peak_bytes` is what that adds to the process's memory, the pages of the file that the system keeps in it included.
"""

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks._measure import peak_memory, row
from benchmarks.cache import photo_stores
from dias_lab import runs
from dias_lab.analysis.discovery import open_stores
from dias_lab.analysis.evaluate import evaluate
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.data.dataset import permutation
from dias_lab.methods import build
from dias_lab.training.cost import Stepper, operations, take_turns, timed

BASE = {"num_slots": 8, "locations": 256, "batch_size": 8}
RECORDS = (1_000, 10_000, 100_000, 1_000_000)
MEMORY_BATCHES = (8, 16, 32)


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            grown = [
                exponent("num_slots", {size: cached_pass(num_slots=size) for size in (4, 8, 16, 32)}),
                exponent("locations", {size: cached_pass(locations=size) for size in (64, 144, 256, 576)}),
                exponent("batch_size", {size: cached_pass(batch_size=size) for size in (2, 4, 8, 16)}),
                exponent("resolution", {size: whole_pass(size) for size in (112, 168, 224, 280)}),
                exponent("images", scoring(Path(folder), (2, 4, 8, 16))),
            ]
        return [*grown, memory(), *large_stores(RECORDS)]
    finally:
        torch.set_num_threads(threads)


def exponent(quantity: str, functions: dict) -> dict:
    seconds = take_turns(functions, repetitions=5)
    medians = [float(np.median(seconds[size])) for size in functions]
    slope, _ = np.polyfit(np.log(list(functions)), np.log(medians), 1)
    known = [operations(one) for one in functions.values()]
    counted, _ = np.polyfit(np.log(list(functions)), np.log(known), 1)
    print(f"{quantity}: seconds grow with exponent {slope:.2f}, counted operations with {counted:.2f}")
    first, *_, largest = functions
    facts = {"exponent": slope, "exponent_of_operations": counted, "flops": known[-1]}
    return row(f"scale, {quantity} {largest}", seconds[largest], seconds[first], **facts)


def cached_pass(**sizes):
    """Forward and backward pass of a DIAS with 128 feature channels on features of so many locations."""
    sizes = BASE | sizes
    side, batch_size = round(sizes["locations"] ** 0.5), sizes["batch_size"]
    config = Config.preset(
        "shapes", num_slots=sizes["num_slots"], batch_size=batch_size, image_size=8 * side, backbone_size=8 * side,
        fourier_stride=8, fourier_dim=128, decoder_layers=2, device="cpu",
    )  # fmt: skip
    model = build(config).train()
    return training_pass(model, batch_size, features=torch.randn(batch_size, 128, side, side))


def whole_pass(pixels: int):
    """Forward and backward pass of the preset coco from pictures of so many pixels a side."""
    config = Config.preset("coco", backbone_weights="random", image_size=pixels, backbone_size=pixels, device="cpu")
    return training_pass(build(config).train(), 2, images=torch.randn(2, 3, pixels, pixels))


def training_pass(model, batch_size: int, images=None, features=None):
    draws = model.draw(range(batch_size), 0)

    def run():
        terms, weights = model.losses(model(images, features=features, draws=draws), 0.5)
        sum(weights[name] * terms[name] for name in terms).backward()

    return run


def scoring(folder: Path, sizes) -> dict:
    """The preset coco over so many photos: reading, the forward pass, every map's scores."""
    config = photo_stores(folder, max(sizes), batch_size=2)
    model, photos = build(config).eval(), open_stores(config)[1]
    return {size: lambda size=size: evaluate(model, photos, limit=size) for size in sizes}


def memory() -> dict:
    """Peak memory of a training step by batch size."""
    found = [alone("--step", size) for size in MEMORY_BATCHES]
    peaks = [one["peak_bytes"] for one in found]
    each, rest = np.polyfit(MEMORY_BATCHES, peaks, 1)
    gigabytes = ", ".join(f"{peak / 1e9:.2f} GB at batch {size}" for size, peak in zip(MEMORY_BATCHES, peaks))
    print(f"memory of a step in the size of COCO: {gigabytes}; {each / 1e6:.0f} MB an image and {rest / 1e9:.2f} GB besides")
    facts = {"peak_bytes": peaks[-1], "bytes_an_image": each, "bytes_besides": rest}
    return row(f"memory, preset coco, batch {MEMORY_BATCHES[-1]}", [found[-1]["seconds"]], **facts)


def large_stores(counts) -> list[dict]:
    """How writing, opening and verifying grow with the number of records."""
    found = {count: alone("--records", count) for count in counts}
    rows_, (smallest, *_, largest) = [], counts
    for name in ("write", "open, shuffle, read 32", "verify"):
        seconds = [found[count][name] for count in counts]
        slope, _ = np.polyfit(np.log(counts), np.log(seconds), 1)
        grown = found[largest]["peak_bytes"] / 1e6
        print(f"{largest} records, {name}: {seconds[-1]:.3g} s, exponent {slope:.2f}; memory grew by {grown:.0f} MB in all")
        facts = {"exponent": slope, "peak_bytes": found[largest]["peak_bytes"], "bytes": found[largest]["bytes"]}
        rows_.append(row(f"{largest} records: {name}", seconds[-1:], [found[smallest][name]], **facts))
    return rows_


def alone(option: str, number: int) -> dict:
    """What `main` measures, in a process of its own: its peak memory is nobody else's."""
    call = [sys.executable, "-m", "benchmarks.scale", option, str(number)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, cwd=runs.root(), env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", type=int, help="one training step of so many images of the preset coco")
    parser.add_argument("--records", type=int, help="a store of so many records")
    given = parser.parse_args()
    print(json.dumps(step(given.step) if given.step else records(given.records)))


def step(batch_size: int) -> dict:
    config = Config.preset("coco", backbone_weights="random", batch_size=batch_size, device="cpu")
    return {"seconds": timed(Stepper(config).step), "peak_bytes": peak_memory()}


def records(count: int) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    packed = store.pack(store.Record(buffer.getvalue(), None, {"source": "made"}))

    def shuffled():
        opened = store.open(path)
        for item in permutation(0, 0, len(opened))[:32]:
            opened[int(item)]

    with tempfile.TemporaryDirectory() as folder:
        path, before = Path(folder) / "train.lmdb", peak_memory()
        found = {
            "write": timed(lambda: store.write(path, itertools.repeat(packed, count), {"dataset": "made", "split": "train"})),
            "open, shuffle, read 32": timed(shuffled),
            "verify": timed(lambda: store.verify(path)),
        }
        return found | {"bytes": path.stat().st_size, "peak_bytes": peak_memory() - before}


if __name__ == "__main__":
    main()
