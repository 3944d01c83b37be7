"""A contact sheet of a data set: pictures with their segments laid over them, to look at before anything is trained.

Axes: H W pixels of a picture, which may have any size.
"""

from collections.abc import Iterable

import numpy as np
from matplotlib import patheffects, pyplot

from dias_lab.trace import BACKGROUND, OVERLAP, VOID
from dias_lab.viz import overlay

DPI = 100
WIDTH = 12.8  # inches of a row
TALLEST = 3.0  # inches of a picture
GAP, CAPTION, HEADING, TITLE = 0.1, 0.26, 0.36, 0.5  # inches
ALPHA = 0.45  # share of a segment's colour
LABELS = 8  # segments of a picture that are named: the largest
SMALLEST = 0.01  # of the picture: segments below are not named


def data_sheet(groups: dict[str, Iterable], title: str = "", columns: int = 4):
    """A matplotlib Figure: for each group a heading and its pictures, `columns` in a row and all of a row equally tall.

    Of a group of strips, which are lists of pictures (the frames of a clip), each is a row.

    A picture is (image uint8 [H W 3], segments uint8 [H W] or None, name, {segment: what to call it}). Segments have
    colours and white outlines, the background has none, and what counts nowhere (overlap, void) is striped in grey.
    """
    rows = []  # (heading or None, pictures, widths and height in inches)
    for heading, pictures in groups.items():
        pictures = list(pictures)
        if not pictures or not isinstance(pictures[0], list):
            pictures = [pictures[first : first + columns] for first in range(0, max(1, len(pictures)), columns)]
        for number, row in enumerate(pictures):
            aspects = [float(np.clip(picture[0].shape[1] / picture[0].shape[0], 0.4, 3)) for picture in row]
            height = min(TALLEST, (WIDTH - GAP * (len(row) - 1)) / max(sum(aspects), 1e-9)) if row else 0
            rows.append((None if number else heading, row, [height * aspect for aspect in aspects], height))
    sheet_width, title_height = WIDTH + 2 * GAP, TITLE * bool(title)
    sheet_height = GAP + title_height + sum(row[-1] + CAPTION + HEADING * (row[0] is not None) for row in rows)
    figure = pyplot.figure(figsize=(sheet_width, sheet_height), facecolor="white", dpi=DPI)
    pyplot.close(figure)  # a notebook shows it once
    figure.text(GAP / sheet_width, 1 - TITLE / 2 / sheet_height, title, fontsize=15, fontweight="bold", va="center")
    top = sheet_height - title_height
    for heading, row, widths, height in rows:
        if heading is not None:
            top -= HEADING
            figure.text(GAP / sheet_width, (top + 0.4 * HEADING) / sheet_height, heading, fontsize=11, va="center", color="#222")
        left = GAP
        for picture, width in zip(row, widths):
            place = left / sheet_width, (top - height) / sheet_height, width / sheet_width, height / sheet_height
            _draw(figure.add_axes(place), round(width * DPI), round(height * DPI), *picture)
            left += width + GAP
        top -= height + CAPTION
    return figure


def _draw(axes, width: int, height: int, image: np.ndarray, segments, name: str, labels: dict[int, str]) -> None:
    """One picture in a panel of so many pixels."""
    axes.set_axis_off()
    scale = min(width / image.shape[1], height / image.shape[0])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    panel, count = overlay.resize(image, *size), "no masks"
    if segments is not None:
        objects = len(np.setdiff1d(segments, (BACKGROUND, OVERLAP, VOID)))
        count = f"{objects} segment" + "s" * (objects != 1)
        segments = overlay.resize(segments, *size)
        panel = laid_over(panel, segments)
    axes.imshow(panel, interpolation="none")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    room = max(4, round(width / 5.6) - len(count) - 3)  # letters
    shown = name if len(name) <= room else f"…{name[-room + 1 :]}"
    axes.text(0, size[1] + 5, f"{shown} · {count}", fontsize=7.5, color="#444444", va="top", clip_on=False)
    written = []  # boxes of names: a smaller segment's name does not cover a larger one's
    for across, down, text in _places(segments, labels) if segments is not None else ():
        half = 2.9 * len(text) + 3  # about half of the text's width in pixels
        across = min(max(across, half), size[0] - half) if 2 * half < size[0] else size[0] / 2
        down = min(max(down, 8), size[1] - 8)
        if all(abs(across - x) > half + other or abs(down - y) > 11 for x, y, other in written):
            written.append((across, down, half))
            drawn = axes.text(across, down, text, fontsize=7.5, color="white", ha="center", va="center")
            drawn.set_path_effects([patheffects.withStroke(linewidth=2, foreground="#202020")])


def laid_over(image: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """`image` uint8 [H W 3] with its segments uint8 [H W] in colour, outlined; overlap and void as grey stripes."""
    down, across = np.indices(segments.shape)
    nowhere = segments >= OVERLAP
    striped = nowhere & ((down + across) % 6 < 3)
    alpha = np.where(nowhere, 0.35 + 0.5 * striped, np.where(segments > 0, ALPHA, 0))
    mixed = overlay.blend(image, overlay.colour_true_segments(segments), alpha)
    return overlay.draw_outlines(mixed, np.where(nowhere, 0, segments))


def _places(segments: np.ndarray, labels: dict[int, str]) -> list[tuple[int, int, str]]:
    """Where to write the names of the largest segments: at the pixel of a segment that is nearest to its middle."""
    areas = np.bincount(segments.ravel(), minlength=256)[:OVERLAP]
    areas[BACKGROUND] = 0
    found = []
    for segment in np.argsort(-areas, kind="stable")[:LABELS].tolist():
        if areas[segment] >= SMALLEST * segments.size and segment in labels:
            down, across = np.nonzero(segments == segment)
            middle = np.argmin((down - np.median(down)) ** 2 + (across - np.median(across)) ** 2)
            found.append((int(across[middle]), int(down[middle]), labels[segment]))
    return found
