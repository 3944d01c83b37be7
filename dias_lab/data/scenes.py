"""The built-in scenes: toys of several parts on a surface, with exact segments. Every scene is a pure function of its seed.

A toy is no region of one colour, so what groups pixels by colour cuts it into parts; a model must learn which parts come
together. In the difficulty "shapes" (shapes.py) an object is a region of one texture, and clustering suffices: the contrast.
In clips (moving.py) the same toys move.

Axes: F frames, H = W = 128 pixels, K objects.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dias_lab.config import nearest
from dias_lab.data import moving, painting, shapes, toys
from dias_lab.data.painting import BACKGROUNDS, SIZE, boxes_of

SPLITS = {"train": 0, "validation": 10_000_000, "test": 20_000_000}  # first seed of each split; the ranges are disjoint
COLOURS = ("kind", "drawn")


@dataclass(frozen=True)
class Difficulty:
    """What makes scenes harder. Raises ValueError for what cannot be drawn."""

    min_objects: int = 2
    max_objects: int = 4
    kinds: int = 12  # how many of toys.KINDS, from the first on
    colours: Literal[COLOURS] = "kind"  # each kind has its three, or every toy draws three
    background: Literal[BACKGROUNDS] = "surface"  # plain, textured: greyish; surface: any colour; regions: wall and floor
    radius: tuple[float, float] = (0.19, 0.26)  # of a toy, as a share of the picture's side
    occlusion: float = 0.25  # largest share of a toy that later ones may hide
    turn: float = 0.2  # largest angle, radians
    noise: float = 0.02  # deviation of each pixel's noise; a colour channel runs from 0 to 1

    def __post_init__(self):
        for name, choices in (("colours", COLOURS), ("background", BACKGROUNDS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}{nearest(getattr(self, name), choices)}")
        if not 1 <= self.min_objects <= self.max_objects:
            raise ValueError(f"1 <= min_objects <= max_objects, got {self.min_objects} and {self.max_objects}")
        if not 2 <= self.kinds <= len(toys.KINDS):
            raise ValueError(f"kinds is 2 to {len(toys.KINDS)}, got {self.kinds}")
        if not 0.1 <= self.radius[0] <= self.radius[1] <= 0.4:  # smaller toys have no 1 % of the picture, and are not drawn
            raise ValueError(f"radius is two shares from 0.1 to 0.4, the smaller first, got {self.radius}")
        if not 0 <= self.occlusion < 1 or not 0 <= self.turn <= np.pi or not 0 <= self.noise <= 0.3:
            raise ValueError(f"occlusion 0 to below 1, turn 0 to pi, noise 0 to 0.3; got {self}")
        room = self.max_objects * 2.2 * self.radius[0] ** 2 * (1 - self.occlusion)
        if room > 0.75:
            raise ValueError(
                f"{self.max_objects} toys of radius {self.radius[0]} and more do not fit with occlusion {self.occlusion}: "
                "take fewer, or smaller ones"
            )


DEFAULT = "scenes"
DIFFICULTIES = {
    "scenes": Difficulty(),
    "crowded": Difficulty(min_objects=4, max_objects=7, radius=(0.13, 0.2), occlusion=0.35),
    "regions": Difficulty(background="regions"),
    "recoloured": Difficulty(colours="drawn"),  # only shape binds
    "shapes": shapes.Difficulty(),
}


class Item(NamedTuple):
    image: np.ndarray  # uint8 [H W 3]
    segments: np.ndarray  # uint8 [H W]: 0 background, 1.. objects from back to front
    kinds: list[str]  # of each object
    boxes: np.ndarray  # int64 [K 4] left, top, right, bottom of what is visible; the last two are outside
    parts: np.ndarray  # uint8 [H W]: 0 background, 1.. the parts of all objects


def scene(seed: int, difficulty: str | Difficulty | shapes.Difficulty = DEFAULT) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [128 128 3] and segments uint8 [128 128] of one scene; `item` has the rest."""
    return item(seed, difficulty)[:2]


def item(seed: int, difficulty: str | Difficulty | shapes.Difficulty = DEFAULT) -> Item:
    """One scene with everything that an item of the store holds. A shape is of one part, and its kind is "shape".

    Raises ValueError for a seed below 0, an unknown difficulty, or one in which this scene's toys do not fit.
    """
    painting.check_seed(seed)
    difficulty = painting.named(difficulty, DIFFICULTIES)
    if isinstance(difficulty, shapes.Difficulty):
        image, segments = shapes.scene(seed, difficulty)
        return Item(image, segments, ["shape"] * int(segments.max()), boxes_of(segments), segments)
    random = np.random.Generator(np.random.Philox(key=seed))
    image = painting.background(random, difficulty.background)
    count = int(random.integers(difficulty.min_objects, difficulty.max_objects + 1))
    segments, parts, kinds = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8), []
    areas, visible = np.zeros(count + 1, int), np.zeros(count + 1, int)  # pixels of each toy: in all, and not hidden
    for attempt in range(60 * count):
        kind = int(random.integers(difficulty.kinds))
        drawn = _placed(random, kind, difficulty, shrink=max(0.985**attempt, 0.5))
        box, whole = painting.whole(drawn)
        area, hidden = np.count_nonzero(whole), np.bincount(segments[box][whole], minlength=count + 1)
        enough = (1 - difficulty.occlusion) * areas
        if area < 0.01 * SIZE**2 or ((visible - hidden)[1:] < enough[1:]).any():
            continue
        trio = toys.TRIOS[kind] if difficulty.colours == "kind" else random.permutation(len(toys.HUES))[:3]
        colours = toys.HUES[trio] + random.normal(0, 0.03, (3, 3)).astype(np.float32)
        painting.paint(image, drawn, colours)
        for number, part in enumerate(drawn, start=int(parts.max()) + 1):
            parts[part.rows, part.columns][part.cover > 0.5] = number
        kinds.append(list(toys.KINDS)[kind])
        segments[box][whole] = len(kinds)
        visible -= hidden
        visible[len(kinds)] = areas[len(kinds)] = area
        if len(kinds) == count:
            break
    else:
        raise ValueError(f"{count} toys do not fit into scene {seed} of {difficulty}")
    image *= painting.light(random)
    pixels = painting.finished(image, random, difficulty.noise)
    return Item(pixels, segments, kinds, boxes_of(segments), parts)


def clip(seed: int, frames: int = 24, difficulty: str | moving.Difficulty = moving.DEFAULT) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [F 128 128 3] and segments uint8 [F 128 128] of a clip: segment k is the same toy in all frames.

    The first frames of a longer clip are those of a shorter one; `clip_item` has the rest.
    """
    return clip_item(seed, frames, difficulty)[:2]


def clip_item(seed: int, frames: int = 24, difficulty: str | moving.Difficulty = moving.DEFAULT) -> moving.Item:
    """A clip with everything that the items of the store hold. Its seeds are those of SPLITS.

    Raises ValueError for a seed below 0, fewer than one frame, or an unknown difficulty: see moving.DIFFICULTIES.
    """
    if frames < 1:
        raise ValueError(f"a clip has at least one frame, got frames={frames}")
    world = moving.World(seed, difficulty)
    images, segments = map(np.stack, zip(*map(world.frame, range(frames))))
    boxes = np.stack([boxes_of(one, range(1, 1 + len(world.toys))) for one in segments])
    return moving.Item(images, segments, world.kinds, boxes, boxes.any(axis=2))


def _placed(random, kind: int, difficulty: Difficulty, shrink: float) -> list[toys.Drawn]:
    """A toy somewhere; smaller and smaller, so that every scene gets all its toys."""
    x, y = random.uniform(0.12, 0.88, 2) * SIZE
    radius = random.uniform(*difficulty.radius) * shrink * SIZE
    angle, mirrored = random.uniform(-difficulty.turn, difficulty.turn), bool(random.integers(2))
    return toys.draw(list(toys.KINDS)[kind], (x, y), radius, angle, mirrored, SIZE)
