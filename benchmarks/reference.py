"""How long a published model looks at photos, and how much memory that takes, beside its frozen backbone alone.

    python -m benchmarks reference

Workload: the COCO model in its released form (DINOv2 ViT-S/14 with registers at 224 pixels, 7 slots, 3 iterations) on 8
images of 256x256 pixels, evaluation, float32, one thread, with random weights: nothing is downloaded. It runs in a process
of its own, so that the peak memory is its own, too.
"""

import multiprocessing
import os
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor

IMAGES = 8


def measure() -> dict:
    import timm
    import torch

    from benchmarks._measure import peak_memory
    from dias_lab import Config, build
    from dias_lab.training.cost import operations, take_turns

    torch.set_num_threads(1)
    libraries = peak_memory()
    model = build(Config.preset("coco", form="released", backbone_weights="random", device="cpu")).eval()
    images = model.prepare(torch.randint(256, (IMAGES, 3, 256, 256), dtype=torch.uint8))
    draws = model.draw(range(IMAGES), seed=0)
    functions = {"whole": lambda: model(images, draws=draws), "backbone": lambda: model.backbone(images)}
    with torch.no_grad():
        counted = operations(functions["whole"])
        seconds = take_turns(functions, repetitions=5, warm_up=False)
    whole, backbone = (statistics.median(seconds[name]) for name in functions)
    return {
        "seconds": whole, "comparator_seconds": backbone, "ratio": backbone / whole, "flops": counted,
        "bytes": peak_memory() - libraries, "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }  # fmt: skip


def rows() -> list[dict]:
    """One row: {name, precision, device, seconds, comparator_seconds, ratio, flops, bytes, threads, versions}.

    `seconds` is the time of one batch of 8, `ratio` the backbone's share of it, `bytes` the peak memory, weights
    included, above that of the imported libraries.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        row = pool.submit(measure).result()
    memory = f"{row['bytes'] / 1e6:.0f} MB above the imported libraries"
    print(f"reference forward: {IMAGES} images in {row['seconds']:.2f} s, peak memory {memory}")
    device = f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return [{"name": "reference forward", "precision": "float32", "device": device, "threads": 1, **row}]


if __name__ == "__main__":
    rows()
