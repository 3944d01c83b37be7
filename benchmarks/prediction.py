"""A prediction step beside looking: the slots of the next frame of 8 clips, predicted, or found by the model of clips.

    python -m benchmarks prediction

One thread. SlotFormer as the paper has it for OBJ3D (4 layers of width 128, 6 frames of 7 slots seen) against one more frame of
the model of clips that comes with the package, its backbone and its decoder included.
"""

import torch

from benchmarks._measure import row
from dias_lab.methods.checkpoint import shipped
from dias_lab.prediction.slotformer import SlotFormer
from dias_lab.training.cost import operations, take_turns

CLIPS, REPETITIONS = 8, 9


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return [step()]
    finally:
        torch.set_num_threads(threads)


def step() -> dict:
    model = shipped("clips")
    former = SlotFormer(model.config.slot_dim).eval()
    slots = torch.randn(CLIPS, former.burn_in, model.config.num_slots, model.config.slot_dim)
    frame = torch.randn(CLIPS, 3, model.config.image_size, model.config.image_size)
    state = model.step(frame)[1]
    ways = {"predicted": lambda: former(slots, 1), "seen": lambda: model.step(frame, state)}
    seconds = take_turns(ways, REPETITIONS)
    found = row("prediction step", seconds["predicted"], seconds["seen"], clips=CLIPS, flops=operations(ways["predicted"]))
    print(f"prediction step: {1000 * found['seconds']:.1f} ms, a frame of the model {1000 * found['comparator_seconds']:.1f} ms")
    return found
