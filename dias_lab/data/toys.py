"""Toys: small things of several parts, drawn with clean edges. What binds the parts of a toy is that they come together.

No colour tells a kind: ten vivid hues are shared, each kind has three of them, and no two kinds share more than one.

Axes: H W pixels of a picture, h w of the box that a part lies in.
"""

from typing import NamedTuple

import numpy as np

ELLIPSE, RECTANGLE, TRIANGLE, DOME = range(4)  # a triangle's tip and a dome's top point up


class Part(NamedTuple):
    shape: int
    u: float  # centre, from -1 (left, top) to 1 in units of the toy's radius
    v: float
    width: float  # half of it
    height: float
    turn: float  # degrees, clockwise
    colour: int  # which of the toy's three


E, R, T, D = ELLIPSE, RECTANGLE, TRIANGLE, DOME
KINDS: dict[str, list[Part]] = {
    name: [Part(*part) for part in parts]
    for name, parts in {
        "mushroom": [(R, 0, 0.5, 0.28, 0.45, 0, 0), (D, 0, 0.1, 0.95, 0.85, 0, 1), (E, -0.38, -0.2, 0.2, 0.17, 0, 2),
                     (E, 0.35, -0.25, 0.2, 0.17, 0, 2)],
        "fish": [(T, -0.72, 0, 0.45, 0.35, 90, 1), (E, 0.15, 0, 0.8, 0.52, 0, 0), (R, 0.05, 0, 0.15, 0.48, 0, 2),
                 (E, 0.6, -0.12, 0.1, 0.1, 0, 2)],
        "car": [(R, 0, -0.28, 0.55, 0.35, 0, 1), (R, 0, 0.18, 1.0, 0.3, 0, 0), (E, -0.55, 0.5, 0.27, 0.27, 0, 2),
                (E, 0.55, 0.5, 0.27, 0.27, 0, 2)],
        "rocket": [(T, 0, 0.65, 0.72, 0.38, 0, 1), (E, 0, -0.05, 0.42, 0.95, 0, 0), (E, 0, -0.3, 0.23, 0.23, 0, 2)],
        "tree": [(R, 0, 0.6, 0.2, 0.4, 0, 0), (E, 0, -0.25, 0.75, 0.7, 0, 1), (E, -0.3, -0.35, 0.18, 0.18, 0, 2),
                 (E, 0.3, -0.05, 0.18, 0.18, 0, 2), (E, -0.12, 0.15, 0.16, 0.16, 0, 2)],
        "robot": [(R, 0, 0.38, 0.65, 0.55, 0, 0), (R, 0, -0.52, 0.48, 0.36, 0, 1), (R, 0, -0.52, 0.36, 0.13, 0, 2),
                  (R, 0, 0.4, 0.3, 0.12, 0, 2)],
        "ice cream": [(T, 0, 0.5, 0.5, 0.5, 180, 0), (E, 0, -0.2, 0.62, 0.5, 0, 1), (E, 0, -0.75, 0.24, 0.24, 0, 2)],
        "house": [(R, 0, 0.38, 0.7, 0.55, 0, 0), (T, 0, -0.52, 0.98, 0.42, 0, 1), (R, 0.05, 0.52, 0.22, 0.4, 0, 2)],
        "flower": [(R, 0, 0.6, 0.12, 0.42, 0, 0), (E, 0, -0.58, 0.3, 0.38, 0, 1), (E, -0.42, -0.22, 0.4, 0.3, 0, 1),
                   (E, 0.42, -0.22, 0.4, 0.3, 0, 1), (E, 0, 0.1, 0.3, 0.34, 0, 1), (E, 0, -0.22, 0.28, 0.28, 0, 2)],
        "umbrella": [(R, 0.05, 0.3, 0.07, 0.62, 0, 0), (D, 0.05, 0.05, 0.95, 0.85, 0, 1), (D, 0.05, 0.05, 0.4, 0.84, 0, 2),
                     (R, 0.22, 0.86, 0.2, 0.08, 0, 0)],
        "ladybird": [(E, 0.68, 0, 0.32, 0.34, 0, 1), (E, -0.12, 0, 0.72, 0.58, 0, 0), (E, -0.42, -0.2, 0.17, 0.17, 0, 2),
                     (E, 0.08, 0.22, 0.17, 0.17, 0, 2), (E, -0.35, 0.25, 0.13, 0.13, 0, 2)],
        "boat": [(R, 0.05, -0.2, 0.08, 0.62, 0, 2), (T, 0.42, -0.28, 0.38, 0.5, 0, 1), (T, -0.3, -0.18, 0.28, 0.4, 0, 1),
                 (D, 0, 0.35, 0.95, 0.5, 180, 0)],
    }.items()
}  # fmt: skip
HUES = np.array([
    [0.86, 0.13, 0.15], [0.96, 0.55, 0.08], [0.97, 0.88, 0.15], [0.20, 0.70, 0.20], [0.10, 0.72, 0.78], [0.13, 0.25, 0.85],
    [0.58, 0.16, 0.72], [0.96, 0.45, 0.68], [0.96, 0.96, 0.96], [0.08, 0.08, 0.10],
], np.float32)  # fmt: skip


def _trios() -> list[np.ndarray]:
    """Three hues a kind; no two kinds share more than one."""
    random, trios = np.random.Generator(np.random.Philox(key=7)), []
    while len(trios) < len(KINDS):
        trio = random.permutation(len(HUES))[:3]
        if all(len(set(trio) & set(other)) <= 1 for other in trios):
            trios.append(trio)
    return trios


TRIOS = _trios()


class Drawn(NamedTuple):
    """One part in its box of the picture."""

    rows: slice
    columns: slice
    cover: np.ndarray  # [h w] from 0 to 1: how much of each pixel it covers
    shade: np.ndarray  # [h 1] brightness of each row, about 1
    colour: int


def draw(kind: str, centre: tuple[float, float], radius: float, angle: float, mirrored: bool, size: int) -> list[Drawn]:
    """The parts of a toy from back to front. Centre (x, y) and radius in pixels, angle in radians."""
    cos, sin, flip, found = np.cos(angle), np.sin(angle), -1 if mirrored else 1, []
    for part in KINDS[kind]:
        u, v = radius * part.u * flip, radius * part.v
        x, y = centre[0] + u * cos - v * sin, centre[1] + u * sin + v * cos
        half_width, half_height = radius * part.width, radius * part.height
        reach = float(np.hypot(half_width, half_height)) + 1
        rows = slice(max(int(y - reach), 0), min(int(y + reach) + 2, size))
        columns = slice(max(int(x - reach), 0), min(int(x + reach) + 2, size))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        turn = angle + np.deg2rad(part.turn) * flip
        Y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - y)
        X = np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - x)
        along, across = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        p = (X * along + Y * across) * flip  # [h w], pixels from the part's centre
        q = Y * along - X * across
        outside = _distance(part.shape, p, q, np.float32(half_width), np.float32(half_height))
        shade = 1.06 - 0.1 * (Y + np.float32(y - centre[1] + radius)) / (2 * radius)  # light from above
        found.append(Drawn(rows, columns, (0.5 - outside).clip(0, 1), shade, part.colour))
    return found


def _distance(shape: int, p: np.ndarray, q: np.ndarray, a: np.float32, b: np.float32) -> np.ndarray:
    """Pixels from the shape's edge [h w], negative inside: near the edge, which is where it matters."""
    if shape == RECTANGLE:
        return np.maximum(abs(p) - a, abs(q) - b)
    if shape == TRIANGLE:
        slope = np.float32(np.hypot(2 * b, a))
        return np.maximum(q - b, (abs(p) * 2 * b - (q + b) * a) / slope)
    ellipse = (np.sqrt((p / a) ** 2 + (q / b) ** 2) - 1) * min(a, b)
    return ellipse if shape == ELLIPSE else np.maximum(ellipse, q - np.float32(0.1) * b)
