"""The built-in scenes: toys of several parts on a surface, with exact segments. Every scene is a pure function of its seed.

A toy is no region of one colour, so what groups pixels by colour cuts it into parts; a model must learn which parts come
together. In the difficulty "shapes" (shapes.py) an object is a region of one texture, and clustering suffices: the contrast.

A picture is [3 H W] while it is painted, which is faster, and [H W 3] in the end.

Axes: H = W = 128 pixels, K objects, h w of the box that a toy lies in.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dias_lab.config import nearest
from dias_lab.data import shapes, toys

SIZE = 128
SPLITS = {"train": 0, "validation": 10_000_000, "test": 20_000_000}  # first seed of each split; the ranges are disjoint
COLOURS, BACKGROUNDS = ("kind", "drawn"), ("plain", "textured", "surface", "regions")
Y, X = (np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5) / SIZE  # centres of the pixels in 0..1, [H W] each


@dataclass(frozen=True)
class Difficulty:
    """What makes scenes harder. Raises ValueError for what cannot be drawn."""

    min_objects: int = 2
    max_objects: int = 4
    kinds: int = 12  # the first so many of toys.KINDS
    colours: Literal[COLOURS] = "kind"  # each kind has its three, or every toy draws three
    background: Literal[BACKGROUNDS] = "surface"  # greyish, twice; of any colour; wall and floor
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
    if int(seed) != seed or not 0 <= seed < 2**63:
        raise ValueError(f"a scene's seed is a whole number from 0, got {seed!r}")
    difficulty = named(difficulty)
    if isinstance(difficulty, shapes.Difficulty):
        image, segments = shapes.scene(seed, difficulty)
        return Item(image, segments, ["shape"] * int(segments.max()), boxes_of(segments), segments)
    random = np.random.Generator(np.random.Philox(key=seed))
    image = _background(random, difficulty.background)
    count = int(random.integers(difficulty.min_objects, difficulty.max_objects + 1))
    segments, parts, kinds = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8), []
    areas, visible = np.zeros(count + 1, int), np.zeros(count + 1, int)  # pixels of each toy: in all, and not hidden
    for attempt in range(60 * count):
        kind = int(random.integers(difficulty.kinds))
        drawn = _placed(random, kind, difficulty, shrink=max(0.985**attempt, 0.5))
        box, whole = _whole(drawn)
        area, hidden = np.count_nonzero(whole), np.bincount(segments[box][whole], minlength=count + 1)
        enough = (1 - difficulty.occlusion) * areas
        if area < 0.01 * SIZE**2 or ((visible - hidden)[1:] < enough[1:]).any():
            continue
        trio = toys.TRIOS[kind] if difficulty.colours == "kind" else random.permutation(len(toys.HUES))[:3]
        colours = toys.HUES[trio] + random.normal(0, 0.03, (3, 3)).astype(np.float32)
        _paint(image, parts, drawn, colours)
        kinds.append(list(toys.KINDS)[kind])
        segments[box][whole] = len(kinds)
        visible -= hidden
        visible[len(kinds)] = areas[len(kinds)] = area
        if len(kinds) == count:
            break
    else:
        raise ValueError(f"{count} toys do not fit into scene {seed} of {difficulty}")
    image *= _light(random)
    pixels = random.standard_normal((SIZE, SIZE, 3), dtype=np.float32)
    pixels *= difficulty.noise
    pixels += image.transpose(1, 2, 0)
    pixels = np.rint(np.clip(pixels, 0, 1, out=pixels) * np.float32(255)).astype(np.uint8)
    return Item(pixels, segments, kinds, boxes_of(segments), parts)


def named(difficulty: str | Difficulty | shapes.Difficulty) -> Difficulty | shapes.Difficulty:
    """The difficulty of this name. Raises ValueError where there is none."""
    if not isinstance(difficulty, str):
        return difficulty
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"unknown difficulty {difficulty!r}{nearest(difficulty, DIFFICULTIES)}")
    return DIFFICULTIES[difficulty]


def boxes_of(segments: np.ndarray) -> np.ndarray:
    """int64 [K 4]: left, top, right, bottom of the pixels of segments 1 to K."""
    found = []
    for label in range(1, int(segments.max()) + 1):
        rows, columns = np.flatnonzero((segments == label).any(axis=1)), np.flatnonzero((segments == label).any(axis=0))
        found.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return np.array(found, np.int64).reshape(-1, 4)


def _placed(random, kind: int, difficulty: Difficulty, shrink: float) -> list[toys.Drawn]:
    """A toy somewhere; smaller and smaller, so that every scene gets all its toys."""
    x, y = random.uniform(0.12, 0.88, 2) * SIZE
    radius = random.uniform(*difficulty.radius) * shrink * SIZE
    angle, mirrored = random.uniform(-difficulty.turn, difficulty.turn), bool(random.integers(2))
    return toys.draw(list(toys.KINDS)[kind], (x, y), radius, angle, mirrored, SIZE)


def _whole(drawn: list[toys.Drawn]) -> tuple[tuple[slice, slice], np.ndarray]:
    """The box of a toy, and where in it the toy is, bool [h w]."""
    (top, bottom), (left, right) = (
        (min(side.start for side in sides), max(side.stop for side in sides))
        for sides in ([part.rows for part in drawn], [part.columns for part in drawn])
    )
    whole = np.zeros((bottom - top, right - left), bool)
    for rows, columns, cover, *_ in drawn:
        whole[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] |= cover > 0.5
    return (slice(top, bottom), slice(left, right)), whole


def _paint(image: np.ndarray, parts: np.ndarray, drawn: list[toys.Drawn], colours: np.ndarray):
    number = int(parts.max())
    for part in drawn:
        number += 1
        place = image[:, part.rows, part.columns]
        place += part.cover * (part.shade * colours[part.colour][:, None, None] - place)
        parts[part.rows, part.columns][part.cover > 0.5] = number


def _background(random, kind: str) -> np.ndarray:
    """[3 H W]"""
    if kind in ("plain", "textured"):
        grey = random.uniform(0.25, 0.75) + random.uniform(-0.07, 0.07, (3, 1, 1)).astype(np.float32)
        contrast = 0.0 if kind == "plain" else random.uniform(0.08, 0.2)
        return grey + contrast / 2 * _pattern(random) * (1 + random.normal(0, 0.3, (3, 1, 1))).astype(np.float32)
    if kind == "surface":
        return _surface(random)
    angle, height = random.uniform(-0.5, 0.5), random.uniform(0.3, 0.7)
    floor = (Y + (X - 0.5) * np.float32(np.tan(angle))) > height
    return np.where(floor, _surface(random), _surface(random))


def _surface(random) -> np.ndarray:
    """A finely textured surface of any colour, less vivid than toys, [3 H W]."""
    colour = 0.25 + 0.5 * random.uniform(0, 1, (3, 1, 1)).astype(np.float32)
    direction = random.normal(0, 1, 3)
    direction *= random.uniform(0.1, 0.25) / np.linalg.norm(direction)
    return colour + _pattern(random) * direction.astype(np.float32)[:, None, None]


def _pattern(random) -> np.ndarray:
    """Fine stripes, checks or blobs, [H W] in -1..1."""
    angle, period = random.uniform(0, np.pi), random.uniform(0.035, 0.075)
    phase = random.uniform(0, 2 * np.pi, 2)
    cos, sin = np.float32(2 * np.pi / period * np.cos(angle)), np.float32(2 * np.pi / period * np.sin(angle))
    across, along = np.sin(X * cos + Y * sin + np.float32(phase[0])), np.sin(Y * cos - X * sin + np.float32(phase[1]))
    kind = random.integers(3)
    return np.sign(across) if kind == 0 else np.sign(across * along) if kind == 1 else across * along


def _light(random) -> np.ndarray:
    """Brightness [H W] that falls off across the picture."""
    angle, strength = random.uniform(0, 2 * np.pi), random.uniform(0, 0.25)
    return 1 + np.float32(strength) * ((X - 0.5) * np.float32(np.cos(angle)) + (Y - 0.5) * np.float32(np.sin(angle)))
