"""All that needs a GPU, by one command: rates of the training step, the best batch, memory, the projected training, a profile.

    python -m benchmarks gpu

Workload: the preset coco (ViT-S/14 with random weights, 7 slots, complete form) in bf16 where the GPU has it. The full step
begins with uint8 pixels on the device's doorstep (pinned memory), the cached one with features; at batch 32 both also compiled,
and captured as CUDA graphs. The comparator is
`_straightforward.PlainTraining` in float32 at batch 32. The paper trains 100,000 steps of batch 32. Without a GPU it says so and
measures nothing. The profile goes to runs/bench-profile.txt.
"""

import itertools
import tempfile
import time
from pathlib import Path

import torch

from benchmarks._measure import row
from benchmarks._straightforward import PlainTraining
from benchmarks.cache import photo_stores
from dias_lab import runs
from dias_lab.analysis.discovery import open_stores
from dias_lab.data.dataset import batches
from dias_lab.methods import build
from dias_lab.training.ahead import ahead
from dias_lab.training.cost import operations, take_turns
from dias_lab.training.loop import Training

BATCH, STEPS, PAPER_STEPS = 32, 50, 100_000
BATCHES = (32, 64, 128, 256, 512)
WORKERS = (1, 2, 4, 8, 16)
COMPILED = {"compiled": {"compile": True}, "graphs": {"compile": True, "graphs": True}}


def rows() -> list[dict]:
    if not torch.cuda.is_available():
        print("no GPU here: not measured")
        return []
    with tempfile.TemporaryDirectory() as folder:
        config = photo_stores(Path(folder), 2 * BATCH, batch_size=BATCH, device="cuda", precision="auto")
        return [*steps(config, Path(folder)), *data_path(config)]


def steps(config, folder: Path) -> list[dict]:
    found, plain = [], None
    for size in BATCHES:
        try:
            training = Training(config.replace(batch_size=size), folder / "run")
            training.model.train()
            given = both(training)
            if plain is None:
                plain = plain_seconds(config, given["training step"])
            for name, batch in given.items():
                found.append(measure(training, name, batch, plain, size))
            if size == BATCH:
                profile(training, given["training step"])
                training = None
                found += compiled(config, folder, given, plain)
            training = given = None
        except torch.cuda.OutOfMemoryError:
            print(f"batch {size}: out of memory")
            break
        torch.cuda.empty_cache()
    for name in ("training step", "cached step"):
        rates = {one["batch"]: one["images_per_second"] for one in found if one["name"] == name}
        best = max(rates, key=rates.get)
        minutes = PAPER_STEPS * BATCH / rates[BATCH] / 60
        print(
            f"{name}: {rates[BATCH]:.0f} images/s at batch {BATCH}, {rates[best]:.0f} at the best batch, {best}; "
            f"{PAPER_STEPS} steps of batch {BATCH} take {minutes:.1f} minutes"
        )
    return found


def plain_seconds(config, batch: dict) -> list[float]:
    loop = PlainTraining(build(config).train().cuda())
    return take_turns({"plain": lambda: loop.update(batch)}, repetitions=15)["plain"]


def compiled(config, folder: Path, given: dict, plain: list[float]) -> list[dict]:
    """The same steps compiled, and captured as CUDA graphs. What fails is said, and the rest goes on."""
    found = []
    for kind, fields in COMPILED.items():
        try:
            training = Training(config.replace(**fields), folder / kind)
            training.model.train()
            found += [measure(training, f"{name}, {kind}", batch, plain, BATCH) for name, batch in given.items()]
        except Exception as error:
            print(f"{kind}: not measured, {type(error).__name__}: {error}")
    return found


def both(training) -> dict[str, dict]:
    """A batch of pixels and one of cached features, in pinned memory."""
    size, side, model = training.config.batch_size, training.config.image_size, training.model
    draws = type(d := model.draw(range(size), 0))(*(part.pin_memory() for part in d))
    known = {"draws": draws, "info": {"step": 0}}
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8).pin_memory()
    features = torch.randn(size, model.backbone.feature_dim, *model.backbone.grid).half().pin_memory()
    return {"training step": {"image": images, **known}, "cached step": {"features": features, **known}}


def measure(training, name: str, batch: dict, plain: list[float], size: int) -> dict:
    """Seconds a step, from several series of steps that the host does not wait for."""
    series = []
    torch.cuda.reset_peak_memory_stats()
    for number in range(6):
        source = ahead(itertools.repeat(batch, STEPS), training.learner.prepare, training.fabric.device)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for given in source:
            training.update(given)
        torch.cuda.synchronize()
        if number:  # the first warms up
            series.append((time.perf_counter() - start) / STEPS)
    bf16 = training.fabric._precision.precision == "bf16-mixed"
    found = row(
        name, series, [second * size / BATCH for second in plain], on="cuda", batch=size,
        dtype=torch.bfloat16 if bf16 else torch.float32, flops=operations(lambda: training.learner.update(batch, 0)),
        peak_bytes=torch.cuda.max_memory_allocated(),
    )  # fmt: skip
    found["images_per_second"] = size / found["seconds"]
    print(
        f"{name}, batch {size}: {found['images_per_second']:.0f} images/s, {found['ratio']:.2f} times the plain step, "
        f"{100 * found['of_product']:.0f} % of a large matrix product, peak {found['peak_bytes'] / 1e9:.1f} GB"
    )
    return found


def profile(training, batch: dict):
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        for given in ahead(itertools.repeat(batch, 5), training.learner.prepare, training.fabric.device):
            training.learner.update(given, 0)
        torch.cuda.synchronize()
    path = runs.resolve("runs/bench-profile.txt")
    runs.write_text(path, found.key_averages().table(sort_by="self_device_time_total", row_limit=40))
    print(f"wrote {runs.short(path)}")


def data_path(config) -> list[dict]:
    """Photos of 640x480 read, decoded, cropped and pinned, by the number of workers."""
    store, found = open_stores(config)[0], []
    for workers in WORKERS:
        source = batches(store, config.replace(workers=workers, steps=20 + 20 * workers), segments=False)
        for _ in range(10 + 2 * workers):  # what the workers have ready from the start
            next(source)
        start = time.perf_counter()
        count = sum(1 for _ in source)
        found.append(row(f"data path, {workers} workers", [(time.perf_counter() - start) / count], on="cuda"))
        print(f"data path, {workers} workers: {BATCH / found[-1]['seconds']:.0f} images/s")
    return found
