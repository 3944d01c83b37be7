"""The store: one LMDB file a split, with images, segments and what is known about them.

Records. `meta` is JSON: schema, kind, dataset, split, count, classes, source, command, ... Item 7 has
`00000007/image`, the original JPEG or PNG bytes; `00000007/segments`, a PNG label map of 8 bits and one channel (0
background or none, 1 to 253 segments, 254 overlap, 255 void), absent where there are no masks; and `00000007/info`,
JSON: source, width, height, the CRC-32 of both blobs, and by segment things, classes, crowds. JSON records end in their
own CRC-32. The splits of a conversion have one mark, meta's `conversion`.

Any protocol reads the same store. Stuff keeps its own segments: the reader merges it (`thing_map`). Some protocols leave
crowds out; so where crowds lie over something the map has a segment of its own, and info's `beneath` says by segment what
is there without them: another segment, itself (an object under crowds throughout) or 0. With them it is overlap.

Where meta's kind is "video", an item is a frame, and the frames of a clip follow one another. A segment is the same object
in all of them. Info then has `clip`, its name, and `frame`, its number in the source, and perhaps `boxes`: by segment left,
top, right and bottom in pixels, the last two outside, as annotated: they may go beyond the picture, and objects that the
map does not show may have one. Meta's `clips` has the first item and the number of frames of every clip.
"""

import bisect
import contextlib
import copy
import functools
import hashlib
import operator
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from dias_lab.data import checking, lmdb_file, pictures
from dias_lab.data.lmdb_file import StoreError
from dias_lab.data.pictures import png
from dias_lab.trace import LAST_SEGMENT, OVERLAP, VOID

SCHEMA = 2  # 1: without what lies beneath crowds
SPLITS = ("train", "validation", "test")
SEGMENT_KEYS = (*checking.BY_SEGMENT, "beneath", "boxes", "bodies")  # of info; their keys are segments, in JSON text
BATCH = 64  # items a transaction


class Record(NamedTuple):
    """One item. Its info needs `source` (any JSON) and, where there are segments, things."""

    image: bytes  # JPEG or PNG
    segments: bytes | np.ndarray | None  # PNG, or uint8 [H W] for `write`; None: no masks
    info: dict  # source; things, crowds {segment: bool}; classes {segment: int}; the store adds width and height


class Packed(Record):
    """A record as it is stored: checked, its segments as PNG, its info with size and checksums. `pack` makes it."""


def thing_map(info: dict, crowds: bool = True) -> np.ndarray:
    """Lookup table uint8 [256]: things keep their id, stuff becomes 0, overlap and void stay.

    Crowds are things; with `crowds=False` they are left out, and what is beneath them appears.
    """
    table, is_crowd = np.zeros(256, np.uint8), info.get("crowds") or {}
    things = (segment for segment, thing in (info.get("things") or {}).items() if thing)
    kept = [OVERLAP, VOID, *(segment for segment in things if crowds or not is_crowd.get(segment))]
    table[kept] = kept
    for segment, below in (info.get("beneath") or {}).items():
        table[segment] = OVERLAP if crowds else table[below]
    return table


def segments_of(info: dict) -> dict[int, bool]:
    """By segment whether it is a thing; pixels where crowds lie over something are none."""
    return {one: thing for one, thing in (info.get("things") or {}).items() if one not in (info.get("beneath") or {})}


def boxes(segments: np.ndarray) -> dict[int, list[int]]:
    """By segment of a map [H W] left, top, right and bottom of its pixels; right and bottom are outside."""
    found = enumerate(ndimage.find_objects(segments, LAST_SEGMENT), start=1)
    return {segment: [x.start, y.start, x.stop, y.stop] for segment, place in found if place for y, x in [place]}


def source_name(info: dict) -> str:
    """What to call an item in a figure: its file's name, or what its source says."""
    source = info["source"]
    return Path(source["file"]).name if isinstance(source, dict) and "file" in source else str(source)


def write(path: str | Path, records: Iterable[Record], meta: dict) -> Path:
    """Write a store, record after record, and return its absolute path.

    `meta` needs dataset and split, and may say kind ("image", "video"), classes {id: name}, source, command and any other
    JSON; schema, count and clips are filled in. Every record is decoded and checked, unless `pack` did it. The file is
    written beside its target, verified and then renamed: whatever happens before that, an older store stays as it was.

    Raises: StoreError if a record or the meta is not valid; OSError if the file cannot be written.
    """
    path = Path(path).resolve()
    for field in ("dataset", "split"):
        if not isinstance(meta.get(field), str):
            raise StoreError(f"meta[{field!r}] for {path} is {meta.get(field)!r}; give the {field}'s name")
    if meta.get("kind", "image") not in ("image", "video"):
        raise StoreError(f"meta['kind'] for {path} is {meta['kind']!r}; it is image or video")
    meta = {"kind": "image", "classes": None, "source": None, "command": None, **meta}
    lmdb_file.seal(meta)  # what is not JSON is refused now, not hours later
    lmdb_file.write(path, _batches(path, records, meta), functools.partial(verify, decode=False))
    return path


def _batches(path: Path, records: Iterable[Record], meta: dict) -> Iterator[list[tuple[bytes, bytes]]]:
    count, batch, clips = 0, [], checking.ClipIndex(meta["kind"])
    for count, record in enumerate(records, start=1):
        try:
            image, segments, info = record if isinstance(record, Packed) else pack(record)
            clips.add(info)
            values = image, lmdb_file.seal(info), segments
        except StoreError as error:
            raise StoreError(f"item {count - 1} for {path}, {error}") from error
        batch += [(key, value) for key, value in zip(_keys(count - 1), values) if value is not None]
        if count % BATCH == 0:
            yield batch
            batch = []
    yield [*batch, (b"meta", lmdb_file.seal({**meta, "schema": SCHEMA, "count": count, **clips.meta()}))]


def pack(record: Record) -> Packed:
    """The record as it is stored. Threads may do this, for decoding and encoding take most of a conversion's time.

    Raises: StoreError, naming the record's source, if its parts are not valid or do not fit together.
    """
    image, segments, info = record
    try:
        width, height = checking.check(image, segments, info)
        if not pictures.header(image, "the image").plain:
            wrong = "the image is turned by EXIF, transparent or of 16 bits, so readers differ"
            raise StoreError(f"{wrong}. Store what dias_lab.data.pictures.rgb makes of it")
    except StoreError as error:
        raise StoreError(f"source {info.get('source')}: {error}") from error
    if isinstance(segments, np.ndarray):
        segments = png(Image.fromarray(segments))
    info = {**info, "width": width, "height": height, "image_crc32": zlib.crc32(image)}
    if segments is not None:
        info["segments_crc32"] = zlib.crc32(segments)
    return Packed(image, segments, info)


def open(path: str | Path) -> "Store":
    """The store at the path. Raises: FileNotFoundError; StoreError if the file is damaged, foreign or newer, or one of the
    splits beside it is of another conversion."""
    opened = Store(path)
    refuse_a_mixture(opened.path)
    return opened


def refuse_a_mixture(path: Path, check_index: bool = False) -> None:
    """StoreError if a split beside this one has the mark of another conversion, as one that was stopped leaves it.

    The same image may be in both. `check_index`: open no damaged file.
    """
    marks = {}
    for split in SPLITS if path.stem in SPLITS else ():
        with contextlib.suppress(OSError, StoreError):  # what is missing or damaged says so when it is read itself
            beside = path.with_name(f"{split}.lmdb")
            if check_index:
                lmdb_file.check_index(beside)
            meta = Store(beside).meta
            marks[split] = meta.get("conversion") or ("of an older version" if meta["schema"] < 2 else None)
    marks = {split: mark for split, mark in marks.items() if mark}  # what no converter wrote has none
    if others := [split for split in marks if path.stem in marks and marks[split] != marks[path.stem]]:
        wrong = f"{path} and {' and '.join(others)} beside it come from different conversions (their marks: {marks})"
        raise StoreError(f"{wrong}: an image may be in both. Convert the data again, or keep them in folders of their own")


class Store(Sequence):
    """A sequence of `Record`s, their segments as PNG. It may be pickled, forked and shared by threads; it never writes.

    A file that is replaced is opened again at the next access. Damage to an item is noticed when that item is read;
    damage to the index, which LMDB trusts, by `verify` alone.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        len(self)  # fail here, not at the first item

    @property
    def meta(self) -> dict:
        """What `write` was given, schema and count."""
        return copy.deepcopy(_meta(self.path, *lmdb_file.read(self.path, b"meta")))

    def __len__(self) -> int:
        return _meta(self.path, *lmdb_file.read(self.path, b"meta"))["count"]

    def __getitem__(self, index: int) -> Record:
        """Item `index`, negative ones from the end. Raises: IndexError; StoreError if the item is damaged."""
        index, count = operator.index(index), len(self)
        if not -count <= index < count:
            raise IndexError(f"item {index} of {self.path}, which has {count}")
        index %= count
        image, info, segments = lmdb_file.read(self.path, *_keys(index))
        try:
            info = lmdb_file.unseal(info, SEGMENT_KEYS)
            for name, blob in (("image", image), ("segments", segments)):
                if info.pop(f"{name}_crc32", None) != (None if blob is None else zlib.crc32(blob)):
                    raise ValueError(f"{name}: wrong checksum")
        except ValueError as error:
            raise StoreError(f"{self.path}: item {index} is damaged ({error}). Convert the data again") from error
        return Record(image, segments, info)

    def clip_start(self, item: int) -> int:
        """The first item of the clip that a frame belongs to; an image is on its own."""
        meta = _meta(self.path, *lmdb_file.read(self.path, b"meta"))
        clips = meta["clips"] if meta["kind"] == "video" else [[item, 1]]
        return clips[bisect.bisect_right(clips, item, key=lambda clip: clip[0]) - 1][0]

    def fingerprint(self) -> str:
        """A hash of all items; their infos hold the checksums of image and segments. Computed once a process and file."""
        status = self.path.stat()
        return _fingerprint(self.path, status.st_ino, status.st_size, status.st_mtime_ns)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"


def verify(path: str | Path, progress: bool = False, decode: bool = True) -> dict[str, int]:
    """Read, decode (or not) and compare everything; return counts: items, with_segments, segments, things, bytes.

    Raises: FileNotFoundError; StoreError with up to ten problems and their items, or for a split of another conversion
    than those beside it.
    """
    path = Path(path).resolve()
    lmdb_file.check_index(path)  # first, for LMDB would follow any pointer
    refuse_a_mixture(path, check_index=True)
    store, problems = Store(path), []
    meta, clips = store.meta, checking.ClipIndex(store.meta["kind"])
    counts = Counter(items=0, with_segments=0, segments=0, things=0, bytes=path.stat().st_size)
    for index in tqdm(range(len(store)), desc=f"verify {path.name}", disable=not progress, mininterval=1):
        try:
            record = store[index]
            if decode:
                checking.check(*record)
            clips.add(record.info)
        except StoreError as error:
            problems.append(f"item {index}: {error}")
            if len(problems) == 10:
                break
            continue
        things = list(segments_of(record.info).values())
        counts.update(items=1, with_segments=record.segments is not None, segments=len(things), things=sum(things))
    if not problems and meta != meta | clips.meta():
        problems = ["its meta's clips are not those of its frames"]
    surplus = lmdb_file.count(path) - 1 - 2 * counts["items"] - counts["with_segments"]
    if surplus and not problems:
        problems = [f"it has {surplus} records that belong to no item"]
    if problems:
        raise StoreError("\n  ".join([f"{path} is not sound. Convert the data again:", *problems]))
    return dict(counts)


# One record


def _keys(index: int) -> list[bytes]:
    return [b"%08d/%s" % (index, part) for part in (b"image", b"info", b"segments")]


@functools.lru_cache(maxsize=64)
def _fingerprint(path: Path, *status: int) -> str:
    digest = hashlib.sha256()
    for index in range(len(Store(path))):
        digest.update(lmdb_file.read(path, _keys(index)[1])[0] or b"")
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _meta(path: Path, value: bytes | None) -> dict:
    try:
        meta = lmdb_file.unseal(value, SEGMENT_KEYS)
    except ValueError as error:
        raise StoreError(f"{path}: its record `meta` is damaged ({error}). Convert the data again") from error
    if meta["schema"] > SCHEMA:
        way_out = "Update dias_lab or convert the data again"
        raise StoreError(f"{path} has schema {meta['schema']}, this dias_lab reads up to {SCHEMA}. {way_out}")
    return meta
