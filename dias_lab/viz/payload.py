"""What explorer.js gets: pictures, maps, and the colours in which two runs are compared.

Axes: B images, or frames of clips, F of each; T iterations, N slots, S true objects, h w locations of the feature map,
H W pixels.
"""

import base64
import io
import math
import re
import zlib
from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path

import numpy as np
from PIL import Image

from dias_lab.trace import BACKGROUND, OVERLAP, AttentionTrace, upsample
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
    colour n. Of clips, `clips` are their names and number of frames, and each run tells their `story`; else both are null.
    """
    first = traces[0]
    most = max(PICTURES_BYTES // len(first), 0 if first.frames else PICTURE_BYTES)
    segments = next((trace.segments for trace in traces if trace.segments is not None), [None] * len(first))
    return {
        "style": STYLE_SHEET.read_text(encoding="utf-8"),
        "colours": list(palette.SLOT_COLOURS),
        "scale": _base64(overlay.heat_map(np.linspace(0, 1, 256))),
        "images": [_picture(*one, most) for one in zip(first.names, first.images, segments, strict=True)],
        "clips": first.frames and {"frames": first.frames, "first": 0, "names": _clip_names(first)},
        "runs": [_run(trace, None if trace is first else _matched_colours(first, trace)) for trace in traces],
    }


def expected_bytes(traces: Sequence[AttentionTrace]) -> float:
    """About how large a page of these traces is, by their shapes: pictures as WebP has them, maps as base64."""
    pictures = len(traces[0]) * min(0.4 * math.prod(traces[0].images.shape[1:3]), 26_000 if traces[0].frames else PICTURE_BYTES)
    shares = {"attention": 1, "decoder_attention": 1, "training_attention": 0.5, "training_decoder_attention": 0.5}  # float16
    maps = (share * getattr(getattr(trace, name), "nbytes", 0) for trace in traces for name, share in shares.items())
    return pictures + sum(maps) * 4 / 3


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
    """For each picture the numbers of the second run's colours: those of the slots that it shares with the first, or new ones.

    Slots of clips are matched over all of its frames, and keep their colours.
    """
    colours, frames = [], first.frames or 1
    maps = [trace.maps_of(trace.stops[-1]).swapaxes(0, 1) for trace in (first, second)]  # [N B h w]
    for start in range(0, len(first), frames):
        found, new = matches(*(one[:, start : start + frames] for one in maps)), iter(range(first.num_slots, 999))
        colours += [[found[slot] if slot in found else next(new) for slot in range(second.num_slots)]] * frames
    return colours


def _clip_names(trace: AttentionTrace) -> list[str]:
    """What the names of a clip's frames have in common, without the beginning of a number; else the clip's own number."""
    clips = [trace.names[start : start + trace.frames] for start in range(0, len(trace), trace.frames)]
    number = r"[\s,/_.:·#-]*(frame)?[\s/_.:·#-]*\d*$"
    common = [names[0] if len({*names}) == 1 else re.sub(number, "", commonprefix(names)) for names in clips]
    return [name or f"clip {number + 1}" for number, name in enumerate(common)]


def story(trace: AttentionTrace) -> dict:
    """What happens to the slots of clips from frame to frame; frames are numbered as the trace's images are.

    shares     of each stop, frame and slot: the mean of its map [stops B N]
    switches   of each stop: [frame, object, slot before, slot now], where a true object has another best slot than in the
               frame before in which it is visible; the best has the largest intersection over union, and of equal ones it
               is the one before. Null: no true segments
    merged     [frame, slot, the slot that it goes into or null], where a slot is kept no longer; in a clip's first frame,
               where it took part and is not kept
    revived    [frame, slot], where it is kept again
    """
    kept = trace.keep.reshape(-1, trace.frames, trace.num_slots)  # [B/F F N]
    took_part = trace.attention[0].any(axis=(2, 3)).reshape(kept.shape)[:, :1]
    before = np.concatenate([took_part, kept[:, :-1]], axis=1)
    lost, found = (np.argwhere(change.reshape(trace.keep.shape)).tolist() for change in (before & ~kept, ~before & kept))
    into = None if trace.leader is None else trace.leader[-1].tolist()
    return {
        "shares": [trace.maps_of(stop).mean(axis=(2, 3), dtype=np.float32).round(4).tolist() for stop in trace.stops],
        "switches": None if trace.segments is None else [_switches(trace, stop) for stop in trace.stops],
        "merged": [[frame, slot, into and into[frame][slot]] for frame, slot in lost],
        "revived": [place for place in found if place[0] % trace.frames],
    }  # fmt: skip


def _switches(trace: AttentionTrace, stop) -> list[list[int]]:
    """The identity switches of one stop, as `story` has them. Pixels of overlap and void are part of slots' segments."""
    found, best = [], {}
    for frame, (slots, true) in enumerate(zip(trace.segments_of(stop), trace.segments, strict=True)):
        best = best if frame % trace.frames else {}  # object: its slot when last seen
        together = np.bincount(true.ravel() * np.int64(256) + slots.ravel(), minlength=65536).reshape(256, 256)  # [S N]
        union = together.sum(axis=1, keepdims=True) + together.sum(axis=0) - together
        for one in np.flatnonzero(together[BACKGROUND + 1 : OVERLAP].any(axis=1)).tolist():
            one += BACKGROUND + 1
            overlap = together[one] / np.maximum(union[one], 1)
            if one not in best or overlap[best[one]] < overlap.max():
                slot, before = int(overlap.argmax()), best.get(one)
                found += [] if before is None else [[frame, one, before, slot]]
                best[one] = slot
    return found


def _picture(name: str, image: np.ndarray, segments: np.ndarray | None, most: int) -> dict:
    """One image uint8 [H W 3] and its true segments, as large as LARGEST_SIDE and so many bytes of its address allow."""
    height, width = image.shape[:2]
    longest, side = max(height, width), min(LARGEST_SIDE, max(height, width))
    while True:
        size = [max(1, round(width * side / longest)), max(1, round(height * side / longest))]
        data = io.BytesIO()
        Image.fromarray(overlay.resize(image, *size)).save(data, "WEBP", quality=QUALITY)
        address = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
        if len(address) <= most or side <= SMALLEST_SIDE:
            break
        side = max(SMALLEST_SIDE, int(0.95 * side * math.sqrt(most / len(address))))
    if segments is not None:  # row after row, deflated
        deflated = base64.b64encode(zlib.compress(overlay.resize(segments, *size).tobytes(), 9)).decode()
        segments = {"width": size[0], "height": size[1], "deflated": deflated}
    return {"name": name, "width": width, "height": height, "shown": size, "picture": address, "segments": segments}


def _run(trace: AttentionTrace, colours: list | None) -> dict:
    decoder = trace.decoder_attention
    told = {"run": "{}", "method": "{}", "seed": "seed {}", "step": "training step {}"}
    words = [text.format(trace.about[key]) for key, text in told.items() if trace.about.get(key) not in (None, "")]
    return {
        "name": " · ".join(words)[:160], "slots": trace.num_slots, "keep": trace.keep.tolist(),
        "leader": None if trace.leader is None else trace.leader.tolist(), "colours": colours,
        "attention": _maps(trace.attention), "decoder": None if decoder is None else _maps(decoder[None]),
        "training": None if trace.training_steps is None else _training(trace),
        "story": story(trace) if trace.frames else None,
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
