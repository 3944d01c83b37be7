"""What learning on toys takes besides: drawing a scene, and a training step that reconstructs some of the locations.

    python -m benchmarks toys

One thread. A scene of the default toys is a mean of 50 seeds; the comparator draws one of the difficulty "shapes", and the
bar is 2 ms. The step: DINOSAUR with an MLP decoder of three layers of 256 units on the scenes' colours, 16x16 locations,
7 slots, batches of 16; with 32 of the 256 locations, and the comparator with all. `saved_ratio` says how many times more
bytes wait for the backward pass there.
"""

import torch

from benchmarks._measure import row
from dias_lab.config import Config
from dias_lab.data import scenes
from dias_lab.training.cost import Stepper, take_turns

SCENES, REPETITIONS, BAR = 50, 7, 2
SIZES = dict(
    method="dinosaur", backbone="colour", backbone_size=128, colour_stride=8, image_size=128, num_slots=7, slot_dim=64,
    slot_mlp_dim=128, decoder_layers=3, decoder_mlp_dim=256, batch_size=16, precision="32-true", device="cpu",
)  # fmt: skip


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [scene(), step()]
    finally:
        torch.set_num_threads(threads)


def scene() -> dict:
    def draw(difficulty: str):
        for seed in range(SCENES):
            scenes.item(seed, difficulty)

    seconds = take_turns({name: lambda name=name: draw(name) for name in ("scenes", "shapes")}, REPETITIONS)
    toys, shapes = ([one / SCENES for one in seconds[name]] for name in ("scenes", "shapes"))
    print(f"toys, a scene: {1000 * min(toys):.2f} ms at best; the bar is {BAR}")
    return row("toys, a scene", toys, shapes, bytes=scenes.SIZE**2 * 5)


def step() -> dict:
    configs = {count: Config.preset("coco", **SIZES, decoder_locations=count) for count in (32, 0)}
    steppers = {count: Stepper(config) for count, config in configs.items()}
    counted = {count: stepper.counted() for count, stepper in steppers.items()}
    seconds = take_turns({count: stepper.step for count, stepper in steppers.items()}, REPETITIONS)
    facts = {"flops": int(SIZES["batch_size"] * counted[32]["operations"])}
    facts["saved_ratio"] = counted[0]["saved"] / counted[32]["saved"]
    print(f"step, 32 of 256 locations: {facts['saved_ratio']:.1f} times less memory waits for the backward pass")
    return row("step, 32 of 256 locations", seconds[32], seconds[0], **facts)
