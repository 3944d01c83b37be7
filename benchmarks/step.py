"""The training step, from pixels and from cached features, beside the straightforward one.

    python -m benchmarks step

Workload: the preset coco (ViT-S/14 with random weights, 7 slots, complete form), batches of 8 photos of 640x480 that are
decoded beforehand, two threads. The comparator is `_straightforward.PlainTraining` from pixels, in float32, for all rows. In bf16
only where the CPU has it: emulated, it says nothing.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks._measure import cpu_has_bf16, row
from benchmarks._straightforward import PlainTraining
from benchmarks.cache import photo_stores
from dias_lab.config import Config
from dias_lab.methods import build
from dias_lab.training.cost import operations, take_turns
from dias_lab.training.loop import Training

BATCH, REPETITIONS = 8, 5


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = photo_stores(Path(folder), 2 * BATCH, batch_size=BATCH)
            found = measure(config, Path(folder), "32-true")
            if cpu_has_bf16():
                return found + measure(config, Path(folder), "bf16-mixed")
            print("the step in bf16: not measured, this CPU has no bf16 units")
            return found
    finally:
        torch.set_num_threads(threads)


def measure(config: Config, folder: Path, precision: str) -> list[dict]:
    training = Training(config.replace(precision=precision), folder / "run")
    training.model.train()
    batch = next(training.task.batches(training.learner.places, 0))
    with torch.no_grad():
        features = training.model.backbone(training.model.normalise(batch["image"])).half()
    cached = {"features": features, "info": batch["info"], "draws": batch["draws"]}
    plain = PlainTraining(build(config).train())
    seconds = take_turns(
        {
            "plain": lambda: plain.update(batch),
            "step": lambda: training.update(batch),
            "cached": lambda: training.update(cached),
        },
        REPETITIONS,
    )
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    weights = sum(tensor.nbytes for tensor in training.model.state_dict().values())
    facts = {"dtype": dtype, "bytes": weights, "batch": BATCH}
    return [
        row(name, seconds[key], seconds["plain"], flops=operations(lambda given=given: training.update(given)), **facts)
        for name, key, given in (("training step", "step", batch), ("cached step", "cached", cached))
    ]
