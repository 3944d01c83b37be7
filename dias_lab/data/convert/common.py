"""What the converters share: dividing a data set, writing its splits, opening and numbering masks, and helpful errors.

A store that is there is replaced only by one that is complete, so a conversion that failed is simply started again. What
would mix two conversions in one folder is refused, and all splits of one have the same mark: see `store.refuse_a_mixture`.

Axes: H W pixels of a picture.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import re
import secrets
import shlex
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image
from tqdm import tqdm

from dias_lab.data import lmdb_file, pictures, store
from dias_lab.data.pictures import PictureError
from dias_lab.data.store import SPLITS
from dias_lab.trace import BACKGROUND, LAST_SEGMENT, VOID

THREADS = min(8, os.cpu_count() or 1)
LISTED = 10  # problems that an error shows; of the rest it says how many there are


class ConversionError(ValueError):
    """A data set is not what its converter needs."""


class Split(NamedTuple):
    """One split to be written. `record` makes the store's record of an item; several threads call it at once.

    With `frames` an item is a clip: one thread takes its frames from there, clip after clip, and `record` gets each frame.
    """

    items: Sequence
    record: Callable[[Any], store.Record]
    meta: dict  # source, classes, and what else should be known about the split
    frames: Callable[[Any], Iterable] | None = None


def write(
    out: Path, dataset: str, splits: dict[str, Split], options: dict, way_out: str, progress: bool = False
) -> dict[str, Path]:  # fmt: skip
    """Write out/<split>.lmdb for each split, in their order; return the paths, train first.

    `options` are the converter's, for meta's command. `way_out` ends the error about an item that cannot be stored.
    Raises: ConversionError for an empty split, for stores in `out` that would not fit the new ones, and for pictures
    that cannot be used, all of a split at once; OSError if `out` cannot be written.
    """
    # a share of 0 means that there is no such split
    splits = {split: part for split, part in splits.items() if part.items or options.get(split) != 0}
    if empty := [split for split, part in splits.items() if not part.items]:
        counts = ", ".join(f"{split} {len(part.items)}" for split, part in splits.items())
        wrong = f"{dataset} of {options['root']}: the split {empty[0]} would be empty (images: {counts})"
        raise ConversionError(f"{wrong}. Choose other shares (0: no such split) or other files")
    _refuse_other_stores(out, dataset, splits)
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lmdb_file.remove_stale(out / f"{split}.lmdb")
    paths, mark = {}, secrets.token_hex(8)
    for split, (items, record, meta, frames) in splits.items():
        what, kind = f"{dataset} {split}", "video" if frames else "image"
        typed = command(dataset.split("_")[0], **options)  # movi_c and movi_d are converted by movi
        own = {"dataset": dataset, "split": split, "kind": kind, "command": typed, "conversion": mark}
        every = itertools.chain.from_iterable(map(frames, items)) if frames else items
        packed = in_order(functools.partial(_packed, record=record, what=what, way_out=way_out), every)
        shown = tqdm(packed, what, None if frames else len(items), disable=not progress, mininterval=1)
        try:
            paths[split] = store.write(out / f"{split}.lmdb", _sound(shown), own | meta)
        except store.StoreError as error:
            raise ConversionError(f"{what}: {error}. {way_out}") from error
    return {split: paths[split] for split in SPLITS if split in paths}


def _packed(item, record: Callable, what: str, way_out: str) -> store.Packed | ConversionError:
    try:
        return store.pack(record(item))
    except ConversionError as error:
        return error
    except (store.StoreError, PictureError) as error:
        return ConversionError(f"{what}: {error}. {way_out}")


def _sound(packed: Iterable[store.Packed | ConversionError]) -> Iterator[store.Packed]:
    """The records, up to the first error; the rest is only searched for more errors. Raises: ConversionError with all."""
    problems = []
    for one in packed:
        if isinstance(one, ConversionError):
            problems.append(str(one))
        elif not problems:
            yield one
    refuse(problems)


def command(dataset: str, **options) -> str:
    """What to type in order to convert again. Options that are None or False are left out; True needs no value."""
    words = ["python", "-m", "dias_lab", "convert", dataset]
    for option, value in options.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, tuple) else [value]
            words += [f"--{option.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def _refuse_other_stores(out: Path, dataset: str, splits: dict[str, Split]) -> None:
    for split, path in ((split, out / f"{split}.lmdb") for split in SPLITS):
        if path.exists() and split not in splits:
            found = f"{path} is there, and this conversion makes no {split} split: its images may be in another one now"
            raise ConversionError(f"{found}. Remove it or choose another folder")
        there = dataset
        with contextlib.suppress(FileNotFoundError, store.StoreError):  # damaged, or no store: converting again is the cure
            there = store.Store(path).meta["dataset"]
        if there != dataset:
            raise ConversionError(f"{path} holds the data set {there}, not {dataset}. Choose another folder")


def in_order(function: Callable, items: Iterable, threads: int = THREADS) -> Iterator:
    """`map(function, items)` by several threads: results in order, no more than two a thread waiting to be taken."""
    with ThreadPoolExecutor(threads, "convert") as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# Splits


def choose(name: str, value: str, among: Iterable[str]) -> None:
    """Raises: ConversionError unless an option's value is one of these."""
    if value not in among:
        raise ConversionError(f"{name}={value!r}; choose one of {', '.join(among)}")


def share(name: str, value: float, of: str) -> float:
    """`value`, if it can be a share to hold out. Raises: ConversionError."""
    if not 0 <= value < 1:
        raise ConversionError(f"{name}={value}; give a share of {of} from 0 up to, but not, 1")
    return value


def divide(salt: str, names: Sequence, wanted: float, among: Collection | None = None) -> tuple[list, list]:
    """The names (or ids) to train on, and those to hold out: a share of about `wanted` of `among` (default: all names).

    The share is 0 to 1, and at least one name unless it is 0. A name alone decides, whatever other names there are, so
    that a data set may grow; only where no name falls into the share, the one that is nearest to it is taken.
    """
    candidates = [name for name in names if among is None or name in among]
    digests = [hashlib.sha256(f"{salt} {name}".encode()).digest() for name in candidates]
    fractions = {name: int.from_bytes(digest[:6]) / 2**48 for name, digest in zip(candidates, digests)}  # uniform
    held = {name for name, fraction in fractions.items() if fraction < wanted}
    if fractions and wanted and not held:
        held = {min(fractions, key=fractions.get)}
    return [name for name in names if name not in held], [name for name in names if name in held]


def parted(salt: str, names: Sequence[str], validation: float, test: float) -> dict[str, list[str]]:
    """The names of each split, by their hashes. Of three or more every wanted split has one; a single one is for train.

    The test share is drawn first, so that another validation share does not move it.
    """
    rest, splits = sorted(names, key=lambda name: hashlib.sha256(f"{salt} {name}".encode()).digest()), {}
    for split, wanted in (("test", test), ("validation", validation)):
        count = min(max(round(share(split, wanted, "the clips") * len(names)), 1), len(rest) - 1) if wanted else 0
        splits[split], rest = rest[:count], rest[count:]
    splits["train"] = rest
    return {split: [name for name in names if name in chosen] for split, chosen in splits.items() if chosen}


# Masks


def colours(path: Path, modes: tuple[str, ...] = ("P", "RGB", "RGBA")) -> Integer[np.ndarray, "H W"]:
    """A PNG's colours as `packed_colours`. Raises: PictureError if it does not open, or its mode is another."""
    picture = pictures.decoded(path, formats=("PNG",))
    if picture.mode not in modes:
        raise PictureError(f"{path} has the mode {picture.mode}; a mask of colours has one of {', '.join(modes)}")
    return packed_colours(picture)


def packed_colours(image: Image.Image) -> Integer[np.ndarray, "H W"]:
    """A picture's colours as R + 256 G + 65536 B, int32."""
    pixels = np.asarray(image.convert("RGBA")).view("<u4")[..., 0]  # the highest byte is alpha
    return (pixels & 0xFFFFFF).astype(np.int32)


def ranked(values: Integer[np.ndarray, "H W"]) -> tuple[list[int], Integer[np.ndarray, "H W"]]:
    """The distinct values, ascending, and every pixel's place among them. Fast where neighbours are mostly alike."""
    flat = values.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    distinct, places = np.unique(flat[starts], return_inverse=True)
    return distinct.tolist(), np.repeat(places, np.diff(starts, append=flat.size)).reshape(values.shape)


def numbered(values: Integer[np.ndarray, "H W"], where: Path, among: Iterable[int] = ()) -> UInt8[np.ndarray, "H W"]:
    """Segments 1, 2, ... in the ascending order of the values; 0 is the background.

    `among`: values of other masks, too, where one object has the same number in all of them.
    Raises: ConversionError if there are more segments than a store holds.
    """
    distinct, places = ranked(values)
    segments = sorted({*distinct, *among} - {0})
    refuse_too_many(len(segments), where)
    return np.array([segments.index(value) + 1 if value else 0 for value in distinct], np.uint8)[places]


def refuse_too_many(segments: int, where) -> None:
    if segments > LAST_SEGMENT:
        wrong = f"{where} has {segments} segments; a store holds at most {LAST_SEGMENT} an image"
        way_out = "Take this image out, or merge its smallest segments (smoothed edges make many)"
        raise ConversionError(f"{wrong}. {way_out}")


def all_things(labels: Integer[np.ndarray, "H W"]) -> dict[int, bool]:
    """info["things"] where every segment of the map is one."""
    return {segment: True for segment in ranked(labels)[0] if segment not in (BACKGROUND, VOID)}


# Frames


def natural(name) -> list:
    """What names are sorted by so that frame2 stands before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(name))]


def frame(image: bytes, labels: np.ndarray | None, clip: str, number: int, file: str, **more) -> store.Record:
    """The record of a clip's frame, all of whose segments are things."""
    info = {"source": {"id": f"{clip}/{number:05d}", "file": file}, "clip": clip, "frame": number}
    known = {} if labels is None else {"things": all_things(labels), "boxes": store.boxes(labels)}
    return store.Record(image, labels, info | known | more)


# Errors


def refuse(problems: Sequence[str], way_out: str = "") -> None:
    """Raises: ConversionError that lists the problems, if there are any."""
    if len(problems) == 1:
        raise ConversionError(". ".join(filter(None, [problems[0], way_out])))
    if problems:
        rest = len(problems) - LISTED
        more = [f"... and {rest} more"] if rest > 0 else []
        listed = "\n  ".join([f"{len(problems)} problems:", *problems[:LISTED], *more])
        raise ConversionError("\n".join(filter(None, [listed, way_out])))


def some(names: Iterable, limit: int = LISTED) -> str:
    """A few names and how many more there are, for an error."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def found(root: Path, missing: Path, layout: str) -> str:
    """What was expected and what is there, for an error."""
    folder = next((path for path in (missing.parent, root, *root.parents) if path.is_dir()), Path("/"))
    names = sorted(path.name for path in folder.iterdir())
    text = f"Expected in {root}: {layout}; found in {folder}: {some(names, 12) or 'nothing'}"
    archive = next((f"{missing.name}{end}" for end in (".zip", ".tar") if f"{missing.name}{end}" in names), None)
    return text + (f". Unpack {archive} there" if archive else "")
