"""The built-in world with physics: toys that are discs, which fly straight ahead and bounce off each other and the walls.

No forces, no friction, nothing is lost in a hit; masses are radii squared; 8 steps a frame (semi-implicit Euler), each with its
impulses in a fixed order. It takes +, -, *, / and square roots of 64 bits alone, so a seed has the same course everywhere.
It stands in for what dynamics over slots are tried on (OBJ3D, CLEVRER and Physion in Wu et al. 2023, arXiv:2210.05861).

Axes: H = W = 128 pixels, K bodies, whose segments are 1..K.
"""

import functools
import itertools
import math
import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from dias_lab.data import painting, toys
from dias_lab.data.painting import SIZE

SUBSTEPS = 8  # of a frame
PASSES = 8  # over all pairs of a substep at most, until none overlaps: a push may make another overlap
SLACK = 1e-9  # pixels of overlap that rounding leaves
GAP = 0.03  # between discs, and between discs and walls, in the first frame; a share of the side
COVERED = 0.9  # a disc's radius in radii of the toy that is drawn: it has most of the toy, and little beside it


@dataclass(frozen=True)
class Difficulty:
    """What makes a course harder to foresee. Lengths are shares of the side. Raises ValueError for what cannot be simulated."""

    min_objects: int = 3
    max_objects: int = 4
    radius: tuple[float, float] = (0.13, 0.17)  # of a disc
    speed: tuple[float, float] = (0.016, 0.032)  # a frame, in the first one; 0.016 is 2 pixels
    noise: float = 0.02  # deviation of each pixel's noise, fresh in each frame

    def __post_init__(self):
        if not 1 <= self.min_objects <= self.max_objects <= 6:
            raise ValueError(f"1 <= min_objects <= max_objects <= 6, got {self.min_objects} and {self.max_objects}")
        for name, low, high in (("radius", 0.1, 0.2), ("speed", 0.0, 0.1)):  # faster ones could pass through each other
            least, most = getattr(self, name)
            if not low <= least <= most <= high:
                raise ValueError(f"{name} is two shares from {low} to {high}, the smaller first, got {getattr(self, name)}")
        if not 0 <= self.noise <= 0.3:
            raise ValueError(f"noise is 0 to 0.3, got {self.noise}")


DEFAULT = "physics"
DIFFICULTIES = {
    "physics": Difficulty(),
    "faster": Difficulty(min_objects=5, max_objects=5, speed=(0.024, 0.048)),  # one toy more, half as fast again
}


class Bodies:
    """Discs in a square of SIZE pixels: `state(frame)` and `contacts(frames)`, simulated as far as anyone asks.

    start float64 [K 4]: x, y, vx, vy of each disc's centre in pixels and pixels a frame; a row of NaN is a body that is not
    there. radii [K] in pixels.
    """

    def __init__(self, start: Float64[np.ndarray, "K 4"], radii: Float64[np.ndarray, "K"]):
        self.radii = np.array(radii, np.float64)
        self._states, self._contacts, self._lock = [np.array(start, np.float64)], [], threading.Lock()
        there, masses = np.flatnonzero(~np.isnan(self._states[0][:, 0])).tolist(), (self.radii * self.radii).tolist()
        self.there, self._without = [k + 1 for k in there], {}  # segments
        self._walls = [(k, float(self.radii[k]), float(SIZE - self.radii[k])) for k in there]
        pairs = itertools.combinations(there, 2)
        self._pairs = [(a, b, float(self.radii[a] + self.radii[b]), masses[b] / (masses[a] + masses[b])) for a, b in pairs]

    def state(self, frame: int) -> Float64[np.ndarray, "K 4"]:
        """x, y, vx, vy of each body in a frame from 0."""
        self._simulate(frame)
        return self._states[frame].copy()

    def contacts(self, frames: int) -> list[tuple[int, int, int]]:
        """Who hit whom in a clip of so many frames: (frame, a, b), a < b, in their order.

        A hit between frames f - 1 and f has the frame f; a pair that hits twice between two frames is there once.
        """
        self._simulate(frames - 1)
        return [contact for contact in self._contacts if contact[0] < frames]

    def without(self, segment: int) -> "Bodies":
        """The same start without one body. ValueError: there is no such body."""
        if segment not in self.there:
            raise ValueError(f"there is no body {segment}; there are {self.there}")
        if segment not in self._without:
            start = self.state(0)
            start[segment - 1] = np.nan
            self._without[segment] = Bodies(start, self.radii)
        return self._without[segment]

    def _simulate(self, frame: int):
        with self._lock:  # several threads may paint frames of one world
            while len(self._states) <= frame:
                columns = self._states[-1].T.tolist()  # plain numbers: faster than arrays of four
                hits = dict.fromkeys(hit for _ in range(SUBSTEPS) for hit in self._substep(*columns))  # in their order, each once
                self._contacts += [(len(self._states), a + 1, b + 1) for a, b in hits]
                self._states.append(np.array(columns).T.copy())

    def _substep(self, x, y, vx, vy) -> list[tuple[int, int]]:
        """Move all bodies, lists [K], by a part of a frame, in place; return the pairs that hit."""
        hits = []
        for k, *_ in self._walls:
            x[k] += vx[k] / SUBSTEPS
            y[k] += vy[k] / SUBSTEPS
        for _ in range(PASSES):
            _turn_back(self._walls, x, vx)
            _turn_back(self._walls, y, vy)
            apart = True
            for a, b, reach, share in self._pairs:
                dx, dy = x[b] - x[a], y[b] - y[a]
                square = dx * dx + dy * dy
                if square >= reach * reach or (distance := math.sqrt(square)) >= reach - SLACK:
                    continue
                apart = False
                nx, ny = (dx / distance, dy / distance) if distance else (1.0, 0.0)
                push, closing = reach - distance, (vx[a] - vx[b]) * nx + (vy[a] - vy[b]) * ny
                if closing > 0:
                    hits.append((a, b))
                for k, part in ((a, -share), (b, 1 - share)):  # the lighter one gives way
                    x[k] += part * push * nx
                    y[k] += part * push * ny
                    if closing > 0:
                        vx[k] += 2 * part * closing * nx
                        vy[k] += 2 * part * closing * ny
            if apart:
                break
        return hits


def _turn_back(walls, places, speeds):
    """Of one axis: who is beyond a wall stands at it and flies inwards."""
    for k, low, high in walls:
        if places[k] < low:
            places[k], speeds[k] = low, abs(speeds[k])
        elif places[k] > high:
            places[k], speeds[k] = high, -abs(speeds[k])


class World:
    """All frames of a clip: `frame(number)` paints one.

    `without`: the segment of a body that is not there; the others start as they do with it, and keep their segments. Raises
    ValueError for a seed below 0, an unknown difficulty, and a body that there is not.
    """

    def __init__(self, seed: int, difficulty: str | Difficulty = DEFAULT, without: int | None = None):
        painting.check_seed(seed)
        self.seed, self.difficulty = seed, painting.named(difficulty, DIFFICULTIES)
        random, wanted = self._random(0), self.difficulty
        count = int(random.integers(wanted.min_objects, wanted.max_objects + 1))
        self.kinds = [list(toys.KINDS)[kind] for kind in random.permutation(len(toys.KINDS))[:count]]
        bodies = self._placed(random, count)
        self.bodies = bodies if without is None else bodies.without(without)
        self.radii = self.bodies.radii

    def state(self, frame: int) -> Float64[np.ndarray, "K 4"]:
        """x, y, vx, vy of each body, in pixels and pixels a frame; NaN for one that is not there."""
        return self.bodies.state(frame)

    def contacts(self, frames: int) -> list[tuple[int, int, int]]:
        """(frame, a, b) with segments a < b, of a clip of so many frames: see Bodies."""
        return self.bodies.contacts(frames)

    def frame(self, number: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """Image and segments of frame 0, 1, ...; higher segments lie above, where toys reach beyond their discs."""
        surface, light, looks = self._looks
        placed, state = [], self.state(number).tolist()
        for segment in self.bodies.there:
            (x, y, *_), radius = state[segment - 1], float(self.radii[segment - 1]) / COVERED
            colours, angle, mirrored = looks[segment - 1]
            placed.append((segment, toys.draw(self.kinds[segment - 1], (x, y), radius, angle, mirrored, SIZE), colours))
        return painting.picture(surface, placed, light, self._random(2 + number), self.difficulty.noise)

    @functools.cached_property
    def _looks(self) -> tuple:
        """The surface [3 H W], the light [H W], and of each toy its colours [3 3], its angle, and whether it is mirrored."""
        random, looks = self._random(1), []
        surface, light = painting.background(random, "surface"), painting.light(random)
        for kind in self.kinds:
            hues = toys.HUES[toys.TRIOS[list(toys.KINDS).index(kind)]]
            colours = hues + random.normal(0, 0.03, (3, 3)).astype(np.float32)
            looks.append((colours, random.uniform(-0.2, 0.2), bool(random.integers(2))))
        return surface, light, looks

    def _random(self, stream: int) -> np.random.Generator:
        """Stream 0 for the course, 1 for the looks, 2 + f for the noise of frame f; none is one of scenes or clips."""
        return np.random.Generator(np.random.Philox(key=np.array([self.seed, 2**62 + stream], np.uint64)))

    def _placed(self, random, count: int) -> Bodies:
        """Discs apart from each other; they get smaller until they fit."""
        (small, large), (slow, fast) = self.difficulty.radius, self.difficulty.speed
        radii, places = (small + (large - small) * random.random(count)) * SIZE, []  # `uniform` may round differently elsewhere
        while len(places) < count:
            room = radii[len(places)] + GAP * SIZE
            place = room + (SIZE - 2 * room) * random.random(2)
            if all(_length(place - other) >= room + radius for other, radius in zip(places, radii)):
                places.append(place)
            else:
                radii = radii * 0.999
                places = places if random.random() < 0.95 else []  # they may stand in the way, so begin again
        speeds = (slow + (fast - slow) * random.random((count, 1))) * SIZE
        return Bodies(np.concatenate([places, speeds * [_direction(random) for _ in places]], axis=1), radii)


def _direction(random) -> np.ndarray:
    """A unit vector [2] of any direction, without sines."""
    while not 0.1 < (length := _length(vector := 2 * random.random(2) - 1)) <= 1:
        pass
    return vector / length


def _length(vector: np.ndarray) -> float:
    return math.sqrt(vector[0] * vector[0] + vector[1] * vector[1])
