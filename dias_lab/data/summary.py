"""What stores hold: a table with a line a split, things that should not be, and a few pictures to look at.

All of it is read from the stores, so it says what was written, not what a converter meant to write. Needs no torch.
"""

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from dias_lab.data import pictures, store
from dias_lab.data.convert.common import SPLITS, in_order
from dias_lab.trace import BACKGROUND, LAST_SEGMENT, OVERLAP, VOID

STRIP = 8  # frames of a clip that a contact sheet shows
SPECKS = 10  # pixels: smaller segments are rarely objects


class Summary(NamedTuple):
    """One store's line. Shares are of the pixels of images with masks; NaN without any."""

    split: str
    images: int
    with_masks: int
    segments: int
    things: int
    mean: float  # segments an image with masks
    most: int
    background: float
    overlap: float
    void: float
    smallest: tuple[int, int]  # width and height in pixels, by area
    largest: tuple[int, int]
    bytes: int
    command: str | None
    sources: frozenset[str]  # as JSON
    marked: dict[str, int]  # how many images have overlap, and void
    specks: int  # segments of fewer than SPECKS pixels
    clips: int  # 0: no frames, but images


def stores_in(folder: Path) -> list[Path]:
    """The stores in a folder: train, validation, test, then all others by name."""
    stores = {path.stem: path for path in sorted(folder.glob("*.lmdb"))}
    return [stores[split] for split in dict.fromkeys([*SPLITS, *stores]) if split in stores]


def summarise(path: Path, progress: bool = False) -> Summary:
    """Read every label map of a store. Raises: FileNotFoundError, StoreError."""
    opened = store.Store(path)
    sizes, sources, things, pixels, marked, specks = Counter(), set(), [], np.zeros(256, np.int64), Counter(), 0
    items = in_order(lambda index: _item(opened[index]), range(len(opened)))
    for info, histogram in tqdm(items, f"summary {path.name}", len(opened), disable=not progress, mininterval=1):
        sizes[info["width"], info["height"]] += 1
        sources.add(json.dumps(info["source"], sort_keys=True))
        if histogram is not None:
            pixels += histogram
            marked.update(overlap=bool(histogram[OVERLAP]), void=bool(histogram[VOID]))
            areas = histogram[BACKGROUND + 1 : LAST_SEGMENT + 1]
            specks += np.count_nonzero((0 < areas) & (areas < SPECKS))
            things.append(list(store.segments_of(info).values()))
    segments, total = [len(of_image) for of_image in things], pixels.sum()
    shares = (pixels[[BACKGROUND, OVERLAP, VOID]] / total).tolist() if total else [np.nan] * 3
    mean = sum(segments) / len(things) if things else np.nan
    by_area = sorted(sizes, key=math.prod) or [(0, 0)]
    return Summary(
        path.stem, len(opened), len(things), sum(segments), sum(map(sum, things)), mean, max(segments, default=0),
        *shares, by_area[0], by_area[-1], path.stat().st_size, opened.meta["command"], frozenset(sources), marked, specks,
        len(opened.meta.get("clips", [])) if opened.meta["kind"] == "video" else 0,
    )  # fmt: skip


def _item(record: store.Record) -> tuple[dict, np.ndarray | None]:
    """What is known about an item, and how many pixels each label has."""
    labels = _labels(record)
    return record.info, None if labels is None else np.bincount(labels.ravel(), minlength=256)


def table(summaries: Iterable[Summary]) -> str:
    """The summaries as text, a line a split, and how many images have pixels that belong to no segment."""
    summaries = list(summaries)
    rows = [(*(name.replace("_", " ") for name in Summary._fields[:10]), "width x height", "MB")]
    for one in summaries:
        counts = map("{:,}".format, one[1:5])  # images, with_masks, segments, things
        shares = ("-" if share != share else f"{share:.1%}" for share in (one.background, one.overlap, one.void))
        sizes = " to ".join(dict.fromkeys(f"{width}x{height}" for width, height in (one.smallest, one.largest)))
        mean = "-" if one.mean != one.mean else f"{one.mean:.1f}"
        rows.append((one.split, *counts, mean, f"{one.most}", *shares, sizes, f"{one.bytes / 1e6:,.1f}"))
    if any(one.clips for one in summaries):
        clips, names = [f"{one.clips:,}" for one in summaries], rows[0][2:]
        rows = [("split", "clips", "frames", *names), *((row[0], one, *row[1:]) for one, row in zip(clips, rows[1:]))]
    first, *widths = (max(map(len, column)) for column in zip(*rows))
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows]
    note = "mean, most: segments an image with masks; background, overlap, void: shares of its pixels; sizes by area"
    for one in summaries:
        if found := [f"{count:,} have {label}" for label, count in one.marked.items() if count]:
            note += f"\n{one.split}: of {one.with_masks:,} images with masks {' and '.join(found)}"
    return "\n".join([*lines, note])


def doubts(summaries: list[Summary]) -> list[str]:
    """What should not be: a split without objects, or of specks; among splits the same image twice, several conversions."""
    found = []
    for one in summaries:
        if one.with_masks and not one.things:
            shares = f"background {one.background:.0%}, overlap {one.overlap:.0%}, void {one.void:.0%} of the pixels"
            found.append(f"{one.split} has no object in any of its {one.with_masks} images with masks ({shares})")
        elif 2 * one.specks > one.segments:
            specks = f"{one.specks:,} of the {one.segments:,} segments in {one.split} have fewer than {SPECKS} pixels"
            found.append(f"{specks}: were the masks resized with smoothing, or saved as JPEG once?")
    for one, other in itertools.combinations(summaries, 2):
        if both := one.sources & other.sources:
            found.append(f"{len(both)} images are in both {one.split} and {other.split}, for example {min(both)}")
    if len({one.command for one in summaries}) > 1:
        splits = ", ".join(one.split for one in summaries)
        found.append(f"{splits} come from different commands; convert again if one of the conversions was stopped")
    return found


class Sample(NamedTuple):
    image: UInt8[np.ndarray, "H W 3"]
    segments: UInt8[np.ndarray, "H W"] | None
    name: str
    labels: dict[int, str]  # by segment the name of its class, where it is known


def samples(path: Path, count: int) -> list[Sample] | list[list[Sample]]:
    """Up to `count` items, evenly spread over a store; of clips a strip of STRIP frames in place of every four items."""
    opened = store.Store(path)
    meta = opened.meta
    show, clips = functools.partial(_sample, opened, meta["classes"] or {}), meta.get("clips") or []
    if meta["kind"] != "video":
        return [show(item) for item in _spread(0, len(opened), count)]
    return [[show(item) for item in _spread(*clips[clip], STRIP)] for clip in _spread(0, len(clips), max(1, count // 4))]


def _spread(first: int, length: int, count: int) -> list[int]:
    return np.linspace(first, first + length - 1, min(count, length)).round().astype(int).tolist()


def _sample(opened: store.Store, names: dict, index: int) -> Sample:
    record = opened[index]
    info = record.info
    labels = {segment: names[kind] for segment, kind in (info.get("classes") or {}).items() if kind in names}
    name = f"{info['clip']}: {info['frame']}" if "clip" in info else store.source_name(info)
    return Sample(_decode(record.image, "RGB"), _labels(record), name, labels)


def _decode(blob: bytes, mode: str) -> np.ndarray:
    return np.asarray(pictures.opened(blob, "a stored picture").convert(mode))


def _labels(record: store.Record) -> np.ndarray | None:
    """The map [H W]; crowds over something else are overlap."""
    if record.segments is None:
        return None
    table = np.arange(256, dtype=np.uint8)
    table[list(record.info.get("beneath") or {})] = OVERLAP
    return table[_decode(record.segments, "L")]
