"""What explorer.js gets: pictures, maps, and the colours in which two runs are compared.

Axes: B images, T iterations, N slots, h w locations of the feature map, H W pixels.
"""

import base64
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dias_lab.trace import AttentionTrace, upsample
from dias_lab.viz import overlay, palette

STYLE_SHEET = Path(__file__).parent / "explorer.css"
LARGEST_SIDE, SMALLEST_SIDE = 768, 256  # of a picture on the page, in pixels; readouts stay in the image's own
PICTURES_BYTES, PICTURE_BYTES = 1_300_000, 108_000  # of all pictures' addresses, and of each where there are more than twelve
QUALITY = 85  # of WebP
RASTER = 96  # pixels a side at which segments of two runs are compared
ALIKE = 0.1  # intersection over union below which two slots have nothing in common


def payload(traces: Sequence[AttentionTrace]) -> dict:
    """What explorer.js shows, as JSON can hold it: pictures as WebP, maps as base64 of float16 [T N h w].

    `leader` of a run is its trace's, [T B N]; `colours` are the numbers of its slots' colours [B N], or null: slot n has
    colour n.
    """
    first = traces[0]
    most = max(PICTURES_BYTES // len(first), PICTURE_BYTES)
    segments = next((trace.segments for trace in traces if trace.segments is not None), [None] * len(first))
    return {
        "style": STYLE_SHEET.read_text(encoding="utf-8"),
        "colours": list(palette.SLOT_COLOURS),
        "scale": _base64(overlay.heat_map(np.linspace(0, 1, 256))),
        "images": [_picture(*one, most) for one in zip(first.names, first.images, segments, strict=True)],
        "runs": [_run(trace, None if trace is first else _matched_colours(first, trace)) for trace in traces],
    }


def expected_bytes(traces: Sequence[AttentionTrace]) -> int:
    """About how large a page of these traces is, by their shapes alone: maps as base64, and what WebP makes of pictures."""
    height, width = traces[0].images.shape[1:3]
    share = min(1, LARGEST_SIDE / max(height, width))
    picture = min(0.4 * height * width * share**2, max(PICTURES_BYTES // len(traces[0]), PICTURE_BYTES))
    maps = 0
    for trace in traces:
        whole = trace.attention, trace.decoder_attention
        earlier = trace.training_attention, trace.training_decoder_attention
        maps += 2 * sum(one.size for one in whole if one is not None)  # float16
        maps += sum(one[:-1].size for one in earlier if one is not None)  # bytes
    return round(len(traces[0]) * picture + maps * 4 / 3)


def matches(first: np.ndarray, second: np.ndarray) -> dict[int, int]:
    """Which slot of the first maps [N h w] each of the second [M h w] is, where it is any: greedily by the overlap of segments.

    Segments are the arg-max; the pair with the largest intersection over union comes first, and each slot has one at most.
    """
    ours, theirs = (upsample(maps, RASTER, RASTER).argmax(axis=0).ravel() for maps in (first, second))
    together = np.bincount(ours * len(second) + theirs, minlength=len(first) * len(second)).reshape(len(first), -1)  # [N M]
    union = together.sum(axis=1, keepdims=True) + together.sum(axis=0) - together
    overlap = together / np.maximum(union, 1)
    found = {}
    while overlap.max() >= ALIKE:
        one, other = np.unravel_index(overlap.argmax(), overlap.shape)
        found[int(other)] = int(one)
        overlap[one], overlap[:, other] = -1, -1
    return found


def _matched_colours(first: AttentionTrace, second: AttentionTrace) -> list[list[int]]:
    """For each picture the numbers of the second run's colours: those of the slots that it shares with the first, or new ones."""
    colours = []
    for one, other in zip(first.maps_of(first.stops[-1]), second.maps_of(second.stops[-1]), strict=True):
        found, new = matches(one, other), iter(range(first.num_slots, first.num_slots + second.num_slots))
        colours.append([found[slot] if slot in found else next(new) for slot in range(second.num_slots)])
    return colours


def _picture(name: str, image: np.ndarray, segments: np.ndarray | None, most: int) -> dict:
    """One image uint8 [H W 3] and its true segments, as large as LARGEST_SIDE and so many bytes of its address allow."""
    height, width = image.shape[:2]
    longest, side = max(height, width), min(LARGEST_SIDE, max(height, width))
    while True:
        size = [max(1, round(width * side / longest)), max(1, round(height * side / longest))]
        address = overlay.data_address(overlay.resize(image, *size), "WEBP", quality=QUALITY)
        if len(address) <= most or side <= SMALLEST_SIDE:
            break
        side = max(SMALLEST_SIDE, int(0.95 * side * math.sqrt(most / len(address))))
    segments = None if segments is None else _labels(overlay.resize(segments, *size))
    return {"name": name, "width": width, "height": height, "shown": size, "picture": address, "segments": segments}


def _labels(labels: np.ndarray) -> dict:
    """A label map uint8 [H W], row after row, deflated."""
    deflated = base64.b64encode(zlib.compress(labels.tobytes(), 9)).decode()
    return {"width": labels.shape[1], "height": labels.shape[0], "deflated": deflated}


def _run(trace: AttentionTrace, colours: list | None) -> dict:
    decoder = trace.decoder_attention
    words = [str(trace.about[key]) for key in ("run", "method") if trace.about.get(key)]
    if trace.about.get("seed") is not None:
        words.append(f"seed {trace.about['seed']}")
    if trace.about.get("step") is not None:
        words.append(f"training step {trace.about['step']}")
    return {
        "name": " · ".join(words)[:160], "slots": trace.num_slots, "keep": trace.keep.tolist(),
        "leader": None if trace.leader is None else trace.leader.tolist(), "colours": colours,
        "attention": _maps(trace.attention), "decoder": None if decoder is None else _maps(decoder[None]),
        "training": None if trace.training_steps is None else _training(trace),
    }  # fmt: skip


def _training(trace: AttentionTrace) -> dict:
    """The training steps; and of all but the last one, whose maps the run has, maps in bytes (255 is 1) and kept slots."""
    coded = {"decoder": None}
    for name, maps in (("attention", trace.training_attention), ("decoder", trace.training_decoder_attention)):
        if maps is not None:
            earlier = maps[:-1].reshape(-1, len(trace), *maps.shape[-3:])  # [(K-1) T B N h w]
            coded[name] = _maps(np.round(255 * earlier.astype(np.float32)), np.uint8)
    return {"steps": trace.training_steps.tolist(), "keep": trace.training_keep[:-1].tolist(), **coded}


def _maps(maps: np.ndarray, kind="<f2") -> dict:
    """Maps [T B N h w]; each image's [T N h w] in one string."""
    images = [_base64(maps[:, image].astype(kind)) for image in range(maps.shape[1])]
    return {"stops": maps.shape[0], "height": maps.shape[3], "width": maps.shape[4], "images": images}


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
