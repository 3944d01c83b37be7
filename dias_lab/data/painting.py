"""What still scenes and moving ones are painted with: the surface, toys on it, light and noise.

A picture is [3 H W] while it is painted, which is faster, and [H W 3] in the end.

Axes: H = W = 128 pixels, K objects, h w of the box that a toy lies in; a surface may be larger than the picture.
"""

from collections.abc import Sequence

import numpy as np

from dias_lab.config import nearest
from dias_lab.data import store, toys

SIZE = 128
BACKGROUNDS = ("plain", "textured", "surface", "regions")


def grid(margin: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels' centres, [H W] each: 0..1 in the picture, and `margin` pixels more on every side."""
    rows, columns = np.mgrid[-margin : SIZE + margin, -margin : SIZE + margin].astype(np.float32)
    return (rows + 0.5) / SIZE, (columns + 0.5) / SIZE


GRID = grid()


def check_seed(seed: int):
    if int(seed) != seed or not 0 <= seed < 2**63:
        raise ValueError(f"a scene's seed is a whole number from 0, got {seed!r}")


def named(difficulty, table: dict):
    """A difficulty, or the one of this name. Raises ValueError where there is none."""
    if isinstance(difficulty, str) and difficulty not in table:
        raise ValueError(f"unknown difficulty {difficulty!r}{nearest(difficulty, table)}")
    return table[difficulty] if isinstance(difficulty, str) else difficulty


def background(random, kind: str, grid=GRID) -> np.ndarray:
    """What toys lie on, [3 H W]: a kind in BACKGROUNDS."""
    Y, X = grid
    if kind in ("plain", "textured"):
        grey = random.uniform(0.25, 0.75) + random.uniform(-0.07, 0.07, (3, 1, 1)).astype(np.float32)
        contrast = 0.0 if kind == "plain" else random.uniform(0.08, 0.2)
        return grey + contrast / 2 * _pattern(random, grid) * (1 + random.normal(0, 0.3, (3, 1, 1))).astype(np.float32)
    if kind == "surface":
        return _surface(random, grid)
    angle, height = random.uniform(-0.5, 0.5), random.uniform(0.3, 0.7)
    floor = (Y + (X - 0.5) * np.float32(np.tan(angle))) > height
    return np.where(floor, _surface(random, grid), _surface(random, grid))


def _surface(random, grid) -> np.ndarray:
    """A finely textured surface of any colour, less vivid than toys, [3 H W]."""
    colour = 0.25 + 0.5 * random.uniform(0, 1, (3, 1, 1)).astype(np.float32)
    direction = random.normal(0, 1, 3)
    direction *= random.uniform(0.1, 0.25) / np.linalg.norm(direction)
    return colour + _pattern(random, grid) * direction.astype(np.float32)[:, None, None]


def _pattern(random, grid) -> np.ndarray:
    """Fine stripes, checks or blobs, [H W] in -1..1."""
    (Y, X), angle, period = grid, random.uniform(0, np.pi), random.uniform(0.035, 0.075)
    phase = random.uniform(0, 2 * np.pi, 2)
    cos, sin = np.float32(2 * np.pi / period * np.cos(angle)), np.float32(2 * np.pi / period * np.sin(angle))
    across, along = np.sin(X * cos + Y * sin + np.float32(phase[0])), np.sin(Y * cos - X * sin + np.float32(phase[1]))
    kind = random.integers(3)
    return np.sign(across) if kind == 0 else np.sign(across * along) if kind == 1 else across * along


def light(random) -> np.ndarray:
    """Brightness [H W] that falls off across the picture."""
    (Y, X), angle, strength = GRID, random.uniform(0, 2 * np.pi), random.uniform(0, 0.25)
    return 1 + np.float32(strength) * ((X - 0.5) * np.float32(np.cos(angle)) + (Y - 0.5) * np.float32(np.sin(angle)))


def whole(drawn: list[toys.Drawn]) -> tuple[tuple[slice, slice], np.ndarray]:
    """The box of a toy, and where in it the toy is, bool [h w]."""
    (top, bottom), (left, right) = (
        (min(side.start for side in sides), max(side.stop for side in sides))
        for sides in ([part.rows for part in drawn], [part.columns for part in drawn])
    )
    found = np.zeros((bottom - top, right - left), bool)
    for rows, columns, cover, *_ in drawn:
        found[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] |= cover > 0.5
    return (slice(top, bottom), slice(left, right)), found


def paint(image: np.ndarray, drawn: list[toys.Drawn], colours: np.ndarray):
    for part in drawn:
        place = image[:, part.rows, part.columns]
        place += part.cover * (part.shade * colours[part.colour][:, None, None] - place)


def picture(surface, placed: Sequence[tuple], light, random, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H W 3] and segments uint8 [H W]: toys on a surface [3 H W], from back to front.

    `placed` has (segment, parts from toys.draw, colours [3 3]) of each toy.
    """
    image, segments = surface.copy(), np.zeros((SIZE, SIZE), np.uint8)
    for segment, drawn, colours in placed:
        if drawn:
            paint(image, drawn, colours)
            box, inside = whole(drawn)
            segments[box][inside] = segment
    image *= light
    return finished(image, random, noise), segments


def finished(image: np.ndarray, random, noise: float) -> np.ndarray:
    """uint8 [H W 3]: the picture with noise of this deviation in every pixel."""
    pixels = random.standard_normal((SIZE, SIZE, 3), dtype=np.float32)
    pixels *= noise
    pixels += image.transpose(1, 2, 0)
    return np.rint(np.clip(pixels, 0, 1, out=pixels) * np.float32(255)).astype(np.uint8)


def boxes_of(segments: np.ndarray, labels: Sequence[int] | None = None) -> np.ndarray:
    """int64 [K 4]: left, top, right, bottom of the pixels of K segments, by default from 1 to the highest; 0 without any."""
    labels, found = range(1, int(segments.max()) + 1) if labels is None else labels, store.boxes(segments)
    return np.array([found.get(label, [0] * 4) for label in labels], np.int64).reshape(-1, 4)
