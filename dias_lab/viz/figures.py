"""Figures of an AttentionTrace for paper, by matplotlib.

Maps are in viridis from 0 to 1, slots in the palette's colours, y points down.

Axes: B images, T iterations, N slots, h w locations, H W pixels. Text counts iterations from 1, slots from 0.
"""

import math

import numpy as np
from matplotlib import pyplot

from dias_lab.trace import AttentionTrace, upsample
from dias_lab.viz import overlay, palette


def iterations(trace: AttentionTrace, image: int = 0, size: float = 1.1):
    """One image's maps for a paper, as a matplotlib Figure: a row an iteration and one for the decoder.

    `iterations(trace).savefig("x.pdf")` writes it. Columns, each `size` inches wide: the image with the true segments
    below it, the arg-max segments laid over the image, and every slot's map, upsampled; once a slot is gone, where it went.
    """
    trace = trace[[image]]
    height, width = trace.images.shape[1:3]
    figure, axes = empty_panels(len(trace.stops), 2 + trace.num_slots, size, height / width, title=_title(trace, "\n"))
    axes[0, 0].imshow(trace.images[0])
    if trace.segments is not None and len(axes) > 1:
        axes[1, 0].imshow(overlay.colour_true_segments(trace.segments[0]))
        axes[1, 0].text(0.04, 0.04, "true segments", color="white", fontsize=7, transform=axes[1, 0].transAxes)
    for row, stop in zip(axes, trace.stops, strict=True):
        segments = trace.segments_of(stop)[0]
        row[0].set_ylabel(stop_name(stop), fontsize=9)
        row[1].imshow(segments_over(trace.images[0], segments))
        for slot, panel in enumerate(row[2:]):
            maps = trace.maps_of(stop)[0, slot]
            if maps.any() or trace.keep[0, slot]:
                panel.imshow(upsample(maps, height, width), cmap=palette.MAPS, vmin=0, vmax=1)
            else:
                panel.set(facecolor="#f2f2f2", box_aspect=height / width)
                panel.text(0.5, 0.5, _fate(trace, slot), fontsize=7, color=palette.MERGED, ha="center", transform=panel.transAxes)
    axes[0, 0].set_title("image", fontsize=9)
    axes[0, 1].set_title("segments", fontsize=9)
    titles = [f"slot {slot}" + ("" if kept else f"\n{_fate(trace, slot)}") for slot, kept in enumerate(trace.keep[0])]
    _name_slots(figure, axes, titles, trace.keep[0], shrink=0.6, aspect=25)
    return figure


def gallery(trace: AttentionTrace, which=None, columns: int = 1, size: float = 1.3):
    """All images of a trace side by side with their segments, as a matplotlib Figure.

    For each image: itself, its true segments if there are any, and the arg-max segments of the maps in `which`: an
    iteration's index, "decoder", or a list of them; None means the first iteration, the last one and the decoder.
    `columns` images stand in a row; a panel is `size` inches wide.
    """
    if which is None:
        which = list(dict.fromkeys([0, trace.num_iterations - 1, trace.stops[-1]]))
    elif isinstance(which, (str, int)):
        which = [which]
    panels = given_panels(trace) + [(stop_name(stop), segments_over(trace.images, trace.segments_of(stop))) for stop in which]
    pictures = [panel[image] for image in range(len(trace)) for _, panel in panels]
    figure = picture_rows(pictures, [title for title, _ in panels] * min(columns, len(trace)), size)
    for panel, name in zip(figure.axes[:: len(panels)], trace.names):
        panel.set_ylabel(name if len(name) < 16 else f"…{name[-14:]}", fontsize=7)
    return figure


def film_strip(trace: AttentionTrace, which="decoder", columns: int = 7, size: float = 1.2):
    """A training as a film, as a matplotlib Figure: a row a picture, a column a training step, first and last among them.

    Left of it the picture, and the true segments if there are any; the maps in `which` (as in `gallery`) are drawn as
    arg-max segments, slot n in its colour. At most `columns` steps, evenly spaced. ValueError without training steps.
    """
    if trace.training_steps is None:
        raise ValueError("a film needs the maps of several training steps: a training.npz, which trace_images asks for")
    places = np.linspace(0, len(trace.training_steps) - 1, min(columns, len(trace.training_steps))).round().astype(int)
    panels = given_panels(trace)
    for step in trace.training_steps[places].tolist():
        panels.append((f"step {step:,}", segments_over(trace.images, trace.at(step).segments_of(which))))
    pictures = [panel[image] for image in range(len(trace)) for _, panel in panels]
    return picture_rows(pictures, [title for title, _ in panels], size)


def map_rows(rows, titles=None, image=None, keep=None, size: float = 1.1):
    """Rows of one image's attention maps, each [N h w], as a matplotlib Figure: a column per slot, viridis from 0 to 1.

    With `image` uint8 [H W 3] the first column shows each row's arg-max segments over it. `keep` bool [N] greys the titles
    of slots that were merged away.
    """
    rows = [np.asarray(row, np.float32) for row in rows]
    if any(row.ndim != 3 for row in rows):
        raise ValueError(f"each row must be maps [N h w] of one image, got shapes {[row.shape for row in rows]}")
    first, slots = int(image is not None), max(len(row) for row in rows)
    figure, axes = empty_panels(len(rows), first + slots, size, rows[0].shape[1] / rows[0].shape[2])
    for number, (line, row) in enumerate(zip(axes, rows, strict=True)):
        line[0].set_ylabel(titles[number] if titles else "", fontsize=9)
        if image is not None:
            segments = upsample(row, *image.shape[:2]).argmax(axis=0).astype(np.uint8)
            line[0].imshow(segments_over(image, segments))
        for panel, map in zip(line[first:], row):
            panel.imshow(map, cmap=palette.MAPS, vmin=0, vmax=1)
    keep = [True] * slots if keep is None else keep
    _name_slots(figure, axes, [f"slot {slot}" for slot in range(slots)], keep, shrink=0.8, aspect=20)
    return figure


def contact_sheet(images, segments, columns: int = 6, size: float = 1.4):
    """Pictures uint8 [H W 3] of any sizes with their true segments [H W] below, as a matplotlib Figure."""
    columns, coloured, pictures = min(columns, len(images)), list(map(overlay.colour_true_segments, segments)), []
    for first in range(0, len(images), columns):
        for row in (images[first : first + columns], coloured[first : first + columns]):
            pictures += [*row, *[None] * (columns - len(row))]
    return picture_rows(pictures, [""] * columns, size, 0.8)


def picture_rows(pictures, titles: list[str], size: float, aspect: float | None = None):
    """Pictures uint8 [H W 3], or None, row after row below the columns' titles, as a matplotlib Figure; shaped as the first."""
    aspect = aspect or pictures[0].shape[0] / pictures[0].shape[1]
    figure, axes = empty_panels(math.ceil(len(pictures) / len(titles)), len(titles), size, aspect)
    for panel, picture in zip(axes.flat, pictures):
        if picture is not None:
            panel.imshow(picture)
    for panel, title in zip(axes[0], titles):
        panel.set_title(title, fontsize=9)
    return figure


def given_panels(trace: AttentionTrace) -> list[tuple[str, np.ndarray]]:
    """Titles and pictures uint8 [B H W 3]: what is there to see before any slot."""
    true = [] if trace.segments is None else [("true segments", overlay.colour_true_segments(trace.segments))]
    return [("image", trace.images), *true]


def _title(trace: AttentionTrace, line_break: str) -> str:
    """What is seen, of a trace with one image."""
    merged = np.flatnonzero(~trace.keep[0])
    text = f"{trace.names[0]}: where {trace.num_slots} slots look, iteration by iteration"
    if len(merged):
        ways = [f"{slot}" if trace.leader is None else f"{slot} into {trace.leader[-1, 0, slot]}" for slot in merged]
        text += f"{line_break}merged away: slot{'s' * (len(merged) > 1)} {', '.join(ways)}"
    return text


def _fate(trace: AttentionTrace, slot: int) -> str:
    """Where a slot of a trace with one image is in the end, which is not kept."""
    return "merged" if trace.leader is None else f"in slot {trace.leader[-1, 0, slot]}"


def stop_name(stop) -> str:
    return "decoder" if stop == "decoder" else f"iteration {stop + 1}"


def segments_over(image: np.ndarray, segments: np.ndarray) -> np.ndarray:
    grey = image.mean(axis=-1, keepdims=True)  # the image's own colours would change the slots'
    return overlay.draw_outlines(overlay.blend(grey, overlay.colour_segments(segments), 0.6), segments)


def empty_panels(rows: int, columns: int, size: float, aspect: float, title: str | None = None):
    """A matplotlib figure of empty panels [rows columns]; closed, so that a notebook shows it once."""
    shape = (columns * size * 1.06 + 0.7, rows * size * aspect * 1.06 + 0.5 + 0.4 * (title is not None))
    figure, axes = pyplot.subplots(rows, columns, figsize=shape, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10)
    pyplot.close(figure)
    return figure, axes


def _name_slots(figure, axes, titles: list[str], keep, **bar_shape):
    """Titles of the last columns, where the slots' maps are drawn, and the maps' colour bar."""
    panels = axes[0, -len(titles) :]
    for slot, panel in enumerate(panels):
        panel.set_title(titles[slot], color=palette.ink(slot, keep[slot]), fontsize=9, fontweight="bold")
    drawn = next(panel.images[0] for panel in panels if panel.images)
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, ticks=[0, 0.5, 1], **bar_shape)
    bar.set_label("attention", fontsize=8)
    bar.ax.tick_params(labelsize=8)
