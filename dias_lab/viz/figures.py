"""Figures of an AttentionTrace, and learning curves.

`learning_curves` is a plotly figure: it needs no kernel, and the page of its `write_html` no network. The others are
matplotlib figures, for paper. Maps are in viridis from 0 to 1, slots in the palette's colours, y points down.

Axes: B images, T iterations, N slots, h w locations, H W pixels. Text counts iterations from 1, slots from 0.
"""

import math
from collections.abc import Iterable

import numpy as np
from matplotlib import pyplot
from plotly import graph_objects as go

from dias_lab.trace import AttentionTrace, upsample
from dias_lab.viz import overlay, palette

TEMPLATE = go.layout.Template(palette.TEMPLATE)  # a dict would be mixed with plotly's own template


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
    bar = _name_slots(figure, axes, _slot_titles(trace, "\n"), trace.keep[0], shrink=0.6, aspect=25)
    bar.set_label("attention", fontsize=8)
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
    panels = [("image", trace.images)]
    if trace.segments is not None:
        panels.append(("true segments", overlay.colour_true_segments(trace.segments)))
    panels += [(stop_name(stop), segments_over(trace.images, trace.segments_of(stop))) for stop in which]

    columns = min(columns, len(trace))
    rows = math.ceil(len(trace) / columns)
    height, width = trace.images.shape[1:3]
    figure, axes = empty_panels(rows, columns * len(panels), size, height / width)
    for image, name in enumerate(trace.names):
        row, first = image // columns, image % columns * len(panels)
        for panel, (title, pictures) in zip(axes[row, first : first + len(panels)], panels, strict=True):
            panel.imshow(pictures[image])
            if row == 0:
                panel.set_title(title, fontsize=9)
        axes[row, first].set_ylabel(name if len(name) < 16 else f"…{name[-14:]}", fontsize=7)
    return figure


def film_strip(trace: AttentionTrace, which="decoder", columns: int = 7, size: float = 1.2):
    """A training as a film, as a matplotlib Figure: a row a picture, a column a training step, first and last among them.

    Left of it the picture, and the true segments if there are any; the maps in `which` (as in `gallery`) are drawn as
    arg-max segments, slot n in its colour. At most `columns` steps, evenly spaced. ValueError without training steps.
    """
    if trace.training_steps is None:
        raise ValueError("a film needs the maps of several training steps: a training.npz, which trace_images asks for")
    places = np.linspace(0, len(trace.training_steps) - 1, min(columns, len(trace.training_steps))).round().astype(int)
    panels = [("image", trace.images)]
    if trace.segments is not None:
        panels.append(("true segments", overlay.colour_true_segments(trace.segments)))
    for step in trace.training_steps[places].tolist():
        panels.append((f"step {step:,}", segments_over(trace.images, trace.at(step).segments_of(which))))
    figure, axes = empty_panels(len(trace), len(panels), size, trace.images.shape[1] / trace.images.shape[2])
    for column, (title, pictures) in enumerate(panels):
        axes[0, column].set_title(title, fontsize=9)
        for panel, picture in zip(axes[:, column], pictures, strict=True):
            panel.imshow(picture)
    return figure


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
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure, axes = empty_panels(2 * rows, columns, size, 0.8)
    for index, (image, labels) in enumerate(zip(images, segments, strict=True)):
        axes[index // columns * 2, index % columns].imshow(image)
        axes[index // columns * 2 + 1, index % columns].imshow(overlay.colour_true_segments(labels))
    return figure


def learning_curves(records, keys: str | Iterable[str] = "loss", title: str | None = None) -> go.Figure:
    """Curves of the values in `metrics.jsonl` over training steps, as a plotly Figure.

    `records` are one run's rows (dicts with "step" and values), or several runs as {name: rows}. A run has one colour,
    a key one dash. Rows without a key, or with None or NaN, are left out. Raises ValueError for a key in no row.
    """
    runs = records if isinstance(records, dict) else {"": records}
    runs = {name: list(rows) for name, rows in runs.items()}
    keys = [keys] if isinstance(keys, str) else list(keys)
    present = {key for rows in runs.values() for row in rows for key in row} - {"step"}
    for key in keys:
        if key not in present:
            raise ValueError(f"no record has {key!r}; they have {', '.join(sorted(present)) or 'nothing'}")
    dashes = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
    figure = go.Figure()
    for number, (name, rows) in enumerate(runs.items()):
        for order, key in enumerate(keys):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None and row[key] == row[key]]
            colour = number if len(runs) > 1 else order
            label = " ".join(part for part in (name, key if len(keys) > 1 or not name else "") if part)
            figure.add_trace(go.Scatter(
                x=np.array([step for step, _ in points]), y=np.array([value for _, value in points], np.float32),
                mode="lines+markers" if len(points) < 30 else "lines", name=label,
                line={"color": palette.ink(colour), "dash": dashes[order % len(dashes)] if len(runs) > 1 else "solid"},
            ))  # fmt: skip
    figure.update_layout(
        template=TEMPLATE, title=title or f"{', '.join(keys)} over training", xaxis_title="step",
        yaxis_title=", ".join(keys), showlegend=len(figure.data) > 1, height=360,
        margin={"l": 60, "r": 20, "t": 50, "b": 50}, hovermode="x unified",
    )  # fmt: skip
    return figure


def _title(trace: AttentionTrace, line_break: str) -> str:
    """What is seen, of a trace with one image."""
    merged = np.flatnonzero(~trace.keep[0])
    text = f"{trace.names[0]}: where {trace.num_slots} slots look, iteration by iteration"
    if len(merged):
        ways = [f"{slot}" if trace.leader is None else f"{slot} into {trace.leader[-1, 0, slot]}" for slot in merged]
        text += f"{line_break}merged away: slot{'s' * (len(merged) > 1)} {', '.join(ways)}"
    return text


def _slot_titles(trace: AttentionTrace, separator: str) -> list[str]:
    return [f"slot {slot}" + ("" if kept else separator + _fate(trace, slot)) for slot, kept in enumerate(trace.keep[0])]


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
    """Titles of the last columns, where the slots' maps are drawn, and the maps' colour bar, which it gives."""
    panels = axes[0, -len(titles) :]
    for slot, panel in enumerate(panels):
        panel.set_title(titles[slot], color=palette.ink(slot, keep[slot]), fontsize=9, fontweight="bold")
    drawn = next(panel.images[0] for panel in panels if panel.images)
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, ticks=[0, 0.5, 1], **bar_shape)
    bar.ax.tick_params(labelsize=8)
    return bar
