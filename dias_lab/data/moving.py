"""The built-in clips: the toys of the still scenes move, sway, grow, pass in front of each other, leave and come back.

Every frame is a pure function of the clip's seed and its own number, so any frame can be painted alone, and a clip can go
on for ever. Toys move straight ahead and turn round at the bounds of their range; a toy that a clip lists later is nearer,
throughout. The camera shifts the surface and all toys by the same whole pixels.

Axes: F frames, H = W = 128 pixels, K toys.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dias_lab.config import nearest
from dias_lab.data import painting, toys
from dias_lab.data.painting import SIZE

REACH = 1.2  # of a toy's farthest corner from its centre, in radii
OCCLUSIONS = ("none", "allowed", "sought")


@dataclass(frozen=True)
class Difficulty:
    """What makes clips harder. Lengths are shares of the picture's side. Raises ValueError for what cannot be drawn."""

    min_objects: int = 2
    max_objects: int = 4
    radius: tuple[float, float] = (0.18, 0.24)  # of a toy in the first frame
    speed: float = 0.025  # of the fastest toy, a frame; the slowest have a third of it
    turn: float = 0.4  # radians by which a toy sways at most
    growth: float = 0.15  # a toy grows and shrinks by up to this share of its radius
    camera: float = 0.0  # the picture wanders so far from where it began
    occlusion: Literal[OCCLUSIONS] = "allowed"  # none: toys keep apart; sought: the last toy passes in front of the first
    exits: bool = False  # toys may leave the picture; the first one does, within 12 frames, and comes back within 24
    hidden: float = 0.25  # largest share of a toy that others hide in the first frame
    noise: float = 0.02  # deviation of each pixel's noise, fresh in each frame

    def __post_init__(self):
        if self.occlusion not in OCCLUSIONS:
            raise ValueError(f"occlusion is {self.occlusion!r}{nearest(self.occlusion, OCCLUSIONS)}")
        if not 1 <= self.min_objects <= self.max_objects <= 8:
            raise ValueError(f"1 <= min_objects <= max_objects <= 8, got {self.min_objects} and {self.max_objects}")
        if not 0.1 <= self.radius[0] <= self.radius[1] <= 0.3:
            raise ValueError(f"radius is two shares from 0.1 to 0.3, the smaller first, got {self.radius}")
        for name, limit in dict(speed=0.2, turn=np.pi, growth=0.5, camera=0.3, hidden=0.75, noise=0.3).items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} is 0 to {limit:.3g}, got {getattr(self, name)}")
        if self.occlusion == "none" and (self.exits or self.max_objects > 4):
            raise ValueError("toys that keep apart have a quarter of the picture each: at most 4 objects, and no exits")


DEFAULT = "clips"
DIFFICULTIES = {
    "clips": Difficulty(),
    "camera": Difficulty(camera=0.15),
    "crossing": Difficulty(occlusion="sought", min_objects=3),
    "exits": Difficulty(exits=True),
    "still": Difficulty(speed=0.0, turn=0.0, growth=0.0),  # nothing moves: the control
}


class Item(NamedTuple):
    images: np.ndarray  # uint8 [F H W 3]
    segments: np.ndarray  # uint8 [F H W]: 0 background, 1..K toys from back to front
    kinds: list[str]  # of each toy
    boxes: np.ndarray  # int64 [F K 4] left, top, right, bottom of what is visible; the last two are outside; 0: nothing is
    visible: np.ndarray  # bool [F K]


@dataclass
class Toy:
    """A toy and its path. Lengths in sides of the picture, x before y, times in frames."""

    kind: str
    colours: np.ndarray  # [3 3]
    mirrored: bool
    radius: float
    angle: float
    start: np.ndarray  # [2]
    bounds: np.ndarray  # [2 2] lowest and highest x and y of its centre
    velocity: np.ndarray  # [2]
    growth: float
    turn: float
    periods: np.ndarray  # [2] of growing and of swaying

    def drawn(self, frame: int, shift) -> list[toys.Drawn]:
        growing, swaying = np.sin(2 * np.pi * frame / self.periods)
        x, y = (self.place(frame) + shift) * SIZE
        radius, angle = self.radius * (1 + self.growth * growing) * SIZE, self.angle + self.turn * swaying
        return toys.draw(self.kind, (x, y), radius, angle, self.mirrored, SIZE)

    def place(self, frame: int) -> np.ndarray:
        """Where its centre is [2]: straight ahead, and back at a bound, as a ball between two walls."""
        low, high = self.bounds
        width = np.maximum(high - low, 1e-9)
        return low + width - abs((self.start + frame * self.velocity - low) % (2 * width) - width)

    def send_out(self, random):
        """To the nearest side: it turns round, out of sight, in one of frames 6 to 12, and is back by twice as many."""
        distances = self.bounds - self.start  # [2 2]
        side, axis = np.unravel_index(abs(distances).argmin(), (2, 2))
        self.velocity *= 0.3
        self.velocity[axis] = distances[side, axis] / random.uniform(6, 12)


class World:
    """All frames of a clip: `frame(number)` paints one. Raises ValueError for a seed below 0 or an unknown difficulty."""

    def __init__(self, seed: int, difficulty: str | Difficulty = DEFAULT):
        painting.check_seed(seed)
        self.seed, self.difficulty = seed, painting.named(difficulty, DIFFICULTIES)
        random = self._random(0)
        self.camera = self.difficulty.camera * random.uniform(0.5, 1, 2) * random.choice([-1, 1], 2)
        self.periods = random.uniform(20, 40, 2)  # of the camera
        self.margin = int(np.ceil(self.difficulty.camera * SIZE))
        self.surface = painting.background(random, "surface", painting.grid(self.margin))  # [3 H+2m W+2m]
        self.light = painting.light(random)
        self.toys = self._toys(random)
        self.kinds = [toy.kind for toy in self.toys]

    def frame(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H W 3] and segments uint8 [H W] of frame 0, 1, ..."""
        shift = np.rint(self.camera * np.sin(2 * np.pi * number / self.periods) * SIZE).astype(int)  # of what is seen, x y
        left, top = self.margin - shift
        surface = self.surface[:, top : top + SIZE, left : left + SIZE]
        placed = [(label, toy.drawn(number, shift / SIZE), toy.colours) for label, toy in enumerate(self.toys, start=1)]
        return painting.picture(surface, placed, self.light, self._random(1 + number), self.difficulty.noise)

    def _random(self, stream: int) -> np.random.Generator:
        """Stream 0 for the world, 1 + f for the noise of frame f; still scenes have the key (seed, 0)."""
        return np.random.Generator(np.random.Philox(key=np.array([self.seed, 1 + stream], np.uint64)))

    def _toys(self, random) -> list[Toy]:
        """Toys of which each shows well in the first frame; they get smaller until they fit."""
        wanted = self.difficulty
        count = int(random.integers(wanted.min_objects, wanted.max_objects + 1))
        for attempt in range(400):
            cells = random.permutation(4)
            found = [self._toy(random, max(0.99**attempt, 0.6), cells[k % 4]) for k in range(count)]
            areas, segments = np.zeros(count, int), np.zeros((SIZE, SIZE), np.uint8)
            for k, toy in enumerate(found):
                box, whole = painting.whole(toy.drawn(0, 0))
                areas[k] = whole.sum()
                segments[box][whole] = k + 1
            visible = np.bincount(segments.ravel(), minlength=count + 1)[1:]
            if (visible >= np.maximum(0.01 * SIZE**2, (1 - wanted.hidden) * areas)).all():
                break
        else:
            raise ValueError(f"{count} toys do not fit into clip {self.seed} of {wanted}: take fewer, or smaller ones")
        if wanted.exits:
            found[0].send_out(random)
        if wanted.occlusion == "sought" and count > 1:  # they meet in one of frames 6 to 10
            meeting = random.uniform(6, 10)
            found[-1].velocity = (found[0].place(meeting) - found[-1].start) / meeting
        return found

    def _toy(self, random, shrink: float, cell: int) -> Toy:
        wanted, kind = self.difficulty, int(random.integers(len(toys.KINDS)))
        radius, growth = random.uniform(*wanted.radius) * shrink, random.uniform(0.3, 1) * wanted.growth
        bounds = np.array([[0.15, 0.15], [0.85, 0.85]])
        start = random.uniform(*bounds)
        if wanted.occlusion == "none":
            radius = min(radius, 0.19 / REACH / (1 + growth))  # which leaves room to move
            room, middle = 0.25 - REACH * radius * (1 + growth), np.array([cell % 2, cell // 2]) / 2 + 0.25
            bounds = middle + np.array([[-room], [room]])
            start = random.uniform(*bounds)
        elif wanted.exits:
            beyond = REACH * radius * (1 + growth) + 0.1  # out of sight for a few frames
            bounds = np.array([[-beyond] * 2, [1 + beyond] * 2])
        heading, speed = random.uniform(0, 2 * np.pi), random.uniform(1 / 3, 1) * wanted.speed
        return Toy(
            list(toys.KINDS)[kind], toys.HUES[toys.TRIOS[kind]] + random.normal(0, 0.03, (3, 3)).astype(np.float32),
            bool(random.integers(2)), radius, random.uniform(-0.2, 0.2), start, bounds,
            speed * np.array([np.cos(heading), np.sin(heading)]), random.choice([-1, 1]) * growth,
            random.uniform(-1, 1) * wanted.turn, random.uniform(16, 32, 2),
        )  # fmt: skip
