"""The built-in world with physics -> stores of clips, and beside each a file of questions about them."""

import functools
from pathlib import Path
from typing import Literal

from dias_lab.data import asked, physics, questions, store
from dias_lab.data.convert import scenes
from dias_lab.data.scenes import SPLITS


def convert(
    out: Path, train: int = 600, validation: int = 60, test: int = 120, frames: int = 28,
    difficulty: Literal[tuple(physics.DIFFICULTIES)] = physics.DEFAULT, questions_times: int = 1, progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Make the built-in clips with physics: toys that bounce off each other; and questions about them.

    Args:
        train: how many clips to train on
        validation: how many on which checkpoints are chosen
        test: how many that results are reported on
        frames: of a clip; 8 are seen by who answers, and answers are simulated: for questions alone 9 will do
        difficulty: physics: 3 or 4 toys; faster: 5, half as fast again
        questions_times: so many times as many questions about a clip of the training split, where there are so many

    Classes are the kinds of the toys; info["bodies"] has by segment x, y, vx, vy and radius in pixels and pixels a frame; the
    questions are in questions-<split>.json. Raises ValueError for a number out of range or an unknown difficulty; OSError if
    `out` cannot be written.
    """
    if questions_times < 1:
        raise ValueError(f"questions_times={questions_times}: 1 is as many as the other splits have, 2 twice as many")
    counts, least = {"train": train, "validation": validation, "test": test}, asked.OBSERVED + 1  # a frame is left to foresee
    own = {"questions_times": questions_times} if questions_times > 1 else {}
    paths = scenes.write_clips("physics", physics, out, counts, frames, difficulty, progress, least, _bodies, own)
    world = functools.partial(physics.World, difficulty=difficulty)
    for split, path in paths.items():  # a file that is not reached is about other records than the store's: it is refused
        seeds, opened = range(SPLITS[split], SPLITS[split] + counts[split]), store.open(path)
        times = questions_times if split == "train" else 1
        questions.write(questions.beside(opened), opened, *asked.ask(map(world, seeds), times))
    return paths


def _bodies(world: physics.World, frame: int) -> dict:
    state, radii = world.state(frame).tolist(), world.radii.tolist()
    return {"bodies": {segment: [*state[segment - 1], radii[segment - 1]] for segment in world.bodies.there}}
