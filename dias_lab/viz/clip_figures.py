"""Clips for papers and READMEs: an animated picture, and a strip of frames.

Axes: F frames of a clip, H W pixels.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dias_lab import files
from dias_lab.trace import AttentionTrace, upsample
from dias_lab.viz import overlay
from dias_lab.viz.figures import given_panels, picture_rows, segments_over, stop_name

FORMS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}  # that PIL animates
GAP = 4  # pixels between two panels


@dataclass(frozen=True, eq=False)
class Film:
    """Pictures uint8 [F H W 3], shown `rate` a second: in a notebook, or in the file that `save` writes."""

    pictures: np.ndarray
    rate: float

    def encoded(self, form: str) -> bytes:
        data, (first, *others) = io.BytesIO(), map(Image.fromarray, self.pictures)
        first.save(data, form, save_all=True, append_images=others, duration=round(1000 / self.rate), loop=0)
        return data.getvalue()

    def save(self, path) -> Path:
        """Write it, whole or not at all, to a path that ends in .gif, .webp or .png (else ValueError); gives the path."""
        path = Path(path)
        if path.suffix.lower() not in FORMS:
            raise ValueError(f"a film is saved as {', '.join(FORMS)}, got {path.name!r}")
        with files.replacing(path) as file:
            file.write(self.encoded(FORMS[path.suffix.lower()]))
        return path

    def _repr_html_(self) -> str:
        return f'<img alt="a clip" src="data:image/gif;base64,{base64.b64encode(self.encoded("GIF")).decode()}">'


def film(trace: AttentionTrace, clip: int = 0, which="last", rate: float = 8.0, size: int = 192) -> Film:
    """A clip as a Film: its frames, the true segments if there are any, and the arg-max segments over the frames.

    `which` is an iteration's index, "last" or "decoder"; a panel's longer side has `size` pixels. ValueError for a clip or a
    map that the trace does not have, and for no positive rate or size.
    """
    if not rate > 0 or size < 1:
        raise ValueError(f"a film needs a rate above 0 and panels of at least 1 pixel, got rate = {rate}, size = {size}")
    trace = trace.clip(clip)
    height, width = (max(1, round(side * size / max(trace.images.shape[1:3]))) for side in trace.images.shape[1:3])
    pictures = []
    for frame, maps in enumerate(trace.maps_of(which)):
        panels = [overlay.resize(trace.images[frame], width, height)]
        panels.append(segments_over(panels[0], upsample(maps, height, width).argmax(axis=0).astype(np.uint8)))
        if trace.segments is not None:
            panels.insert(1, overlay.colour_true_segments(overlay.resize(trace.segments[frame], width, height)))
        gap = np.full((height, GAP, 3), 255, np.uint8)
        pictures.append(np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1))
    return Film(np.stack(pictures), rate)


def frames(trace: AttentionTrace, clip: int = 0, which="last", every: int = 4, size: float = 1.2):
    """A clip as a strip, a matplotlib Figure: a column for every `every`-th frame.

    Rows: the picture, the true segments if there are any, and the arg-max segments of a map, `which` as in `film`. Frames are
    counted from 1. ValueError for a clip or a map that the trace does not have, and for `every` below 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    trace = trace.clip(clip)
    places, which = range(0, len(trace), every), trace.num_iterations - 1 if which == "last" else which
    trace, labels = trace[places], trace[places].segments_of(which)
    rows = [*given_panels(trace), (stop_name(which), segments_over(trace.images, labels))]
    pictures = [picture for _, row in rows for picture in row]
    figure = picture_rows(pictures, [f"frame {place + 1}" for place in places], size)
    for panel, (name, _) in zip(figure.axes[:: len(places)], rows, strict=True):
        panel.set_ylabel(name, fontsize=9)
    return figure
