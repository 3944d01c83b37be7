"""The built-in scenes of the difficulty "shapes": textured shapes that overlap on a textured background.

Every scene is a pure function of its seed and the difficulty, so a data set of scenes is a range of seeds. They are ours,
made to be learnable in minutes on two cores while k-means on colours fails: every surface mixes two colours in a
pattern about as wide as a feature location, and a light falls across the whole picture.

Axes: H = W = 128 pixels.
"""

from dataclasses import dataclass

import numpy as np

from dias_lab.data.painting import SIZE, check_seed

Y, X = np.mgrid[:SIZE, :SIZE] + 0.5  # centres of the pixels, [H W] each


@dataclass(frozen=True)
class Difficulty:
    """What makes scenes harder. The default is fixed: a test pins its pictures. Raises ValueError for what cannot be drawn."""

    min_objects: int = 2
    max_objects: int = 5
    contrast: float = 0.25  # distance between the two colours of one surface; a colour channel runs from 0 to 1
    occlusion: float = 0.4  # largest share of an object that the ones before it may hide
    separation: float = 0.2  # smallest colour distance between two surfaces of a scene

    def __post_init__(self):
        if not 1 <= self.min_objects <= self.max_objects <= 12:
            raise ValueError(f"1 <= min_objects <= max_objects <= 12, got {self}")
        if not (0 <= self.contrast <= 1 and 0 <= self.occlusion < 1 and 0 <= self.separation <= 0.6):
            raise ValueError(f"contrast 0 to 1, occlusion 0 to below 1, separation 0 to 0.6; got {self}")


def scene(seed: int, difficulty: Difficulty = Difficulty()) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image uint8 [128 128 3] and segments uint8 [128 128], 0 background, 1.. objects from back to front.

    Raises ValueError for a negative seed.
    """
    check_seed(seed)
    random = np.random.Generator(np.random.Philox(key=seed))
    count = int(random.integers(difficulty.min_objects, difficulty.max_objects + 1))
    segments = _place(random, count, difficulty)
    colours = _colours(random, count + 1, difficulty.separation)
    surfaces = np.stack([_surface(random, colour, difficulty.contrast) for colour in colours])  # [S H W 3]
    image = np.take_along_axis(surfaces, segments[None, :, :, None].astype(int), axis=0)[0]
    image = image * _light(random)[..., None] + random.normal(0, 0.01, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), segments


def _place(random, count, difficulty) -> np.ndarray:
    """Segments uint8 [H W]: shapes drawn back to front, redrawn while one would hide too much of another."""
    segments = np.zeros((SIZE, SIZE), np.uint8)
    areas = np.zeros(count + 1)
    placed = 0
    for attempt in range(60 * count):
        mask = _shape(random, shrink=0.985**attempt)  # smaller and smaller, so that every scene gets all its objects
        covered = segments.copy()
        covered[mask] = placed + 1
        visible = np.bincount(covered.ravel(), minlength=count + 1)
        if mask.sum() < 80 or (visible[1 : placed + 1] < (1 - difficulty.occlusion) * areas[1 : placed + 1]).any():
            continue
        segments, placed = covered, placed + 1
        areas[placed] = mask.sum()
        if placed == count:
            break
    return segments


def _shape(random, shrink: float) -> np.ndarray:
    """A random ellipse, rectangle, polygon or star as a mask [H W]."""
    centre_x, centre_y = random.uniform(0.1 * SIZE, 0.9 * SIZE, 2)
    radius = random.uniform(15, 31) * max(shrink, 0.3)
    stretch, angle = random.uniform(0.65, 1), random.uniform(0, 2 * np.pi)
    across = ((X - centre_x) * np.cos(angle) + (Y - centre_y) * np.sin(angle)) / radius
    along = ((Y - centre_y) * np.cos(angle) - (X - centre_x) * np.sin(angle)) / (radius * stretch)
    kind, corners = random.integers(4), int(random.integers(3, 7))
    if kind == 0:
        return across**2 + along**2 < 1
    if kind == 1:
        return np.maximum(abs(across), abs(along)) < 0.85
    distance, turn = np.hypot(across, along), np.arctan2(along, across)
    wedge = 2 * np.pi / corners
    if kind == 2:  # regular polygon
        return distance * np.cos((turn % wedge) - wedge / 2) < np.cos(wedge / 2) * 1.05
    return distance < 0.72 + 0.28 * np.cos(corners * turn)  # star with round tips


def _colours(random, count, separation) -> np.ndarray:
    """`count` colours [count 3] that keep their distance from each other (as far as a few draws allow)."""
    colours = [random.uniform(0.15, 0.85, 3)]
    while len(colours) < count:
        candidates = random.uniform(0.15, 0.85, (30, 3))
        distance = np.linalg.norm(candidates[:, None] - np.array(colours), axis=-1).min(axis=1)
        far = np.flatnonzero(distance >= separation)
        colours.append(candidates[far[0] if len(far) else distance.argmax()])
    return np.array(colours)


def _surface(random, colour, contrast) -> np.ndarray:
    """A texture [H W 3]: `colour`, moved back and forth by half the contrast along a random direction."""
    direction = random.normal(size=3)
    direction *= contrast / np.linalg.norm(direction)
    return colour + (_pattern(random) - 0.5)[..., None] * direction


def _pattern(random) -> np.ndarray:
    """Stripes, checks, blobs or a slow wave, [H W] in 0..1."""
    angle, period = random.uniform(0, np.pi), random.uniform(8, 24)
    phase = random.uniform(0, 2 * np.pi, 4)
    across = (X * np.cos(angle) + Y * np.sin(angle)) * (2 * np.pi / period)
    along = (Y * np.cos(angle) - X * np.sin(angle)) * (2 * np.pi / period)
    kind = random.integers(4)
    if kind == 0:
        wave = np.sign(np.sin(across + phase[0]))
    elif kind == 1:
        wave = np.sign(np.sin(across + phase[0]) * np.sin(along + phase[1]))
    elif kind == 2:
        wave = np.sin(across + phase[0] + 1.5 * np.sin(along * 0.7 + phase[1])) * np.sin(along + phase[2])
    else:
        wave = np.sin(across / 3 + phase[0])
    return 0.5 + 0.5 * wave


def _light(random) -> np.ndarray:
    """Brightness [H W] that falls off across the picture."""
    angle, strength = random.uniform(0, 2 * np.pi), random.uniform(0.1, 0.4)
    return 1 + strength * ((X / SIZE - 0.5) * np.cos(angle) + (Y / SIZE - 0.5) * np.sin(angle))
