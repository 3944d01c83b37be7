"""A COCO table of annotations as other programs write it, judged before anything is converted: all that is wrong, at once.

Source: the format, https://cocodataset.org/#format-data; run lengths as text, maskApi.c of pycocotools.

`Problems` lists offenders by what is wrong. Ids may be numbers or text: 7, 7.0, "7" and "007" are one id. pycocotools
trusts what it decodes: run lengths that do not fill the picture leave memory unwritten, and coordinates far outside, or
no numbers, take all memory there is. So `mask_problem` measures first.
"""

import json
import os
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path

import numpy as np

from dias_lab.data import pictures
from dias_lab.data.convert.common import ConversionError, some

SIDES = 1  # a polygon may leave its picture by this share of its sides, as sloppy outlines do


class Problems(defaultdict):
    """By what is wrong the offenders, as text."""

    def __init__(self):
        super().__init__(list)

    def twice(self, what: str, values: Iterable[Hashable]) -> None:
        self[what] += [value for value, count in Counter(values).items() if count > 1]

    def lines(self, table: Path) -> list[str]:
        return [f"{table} {what}: {some(values)}" for what, values in self.items() if values]


def load(path: Path, kind: str, *lists: str) -> dict:
    """What the file holds. Raises: ConversionError unless these lists are in it, with an object in each of their places."""
    try:
        table = json.loads(path.read_bytes())
        if missing := [name for name in lists if not (isinstance(table, dict) and isinstance(table.get(name), list))]:
            raise ValueError(f"it has no list of {' or '.join(missing)}")
        if wrong := [f"{name}[{at}]" for name in lists for at, one in enumerate(table[name]) if not isinstance(one, dict)]:
            raise ValueError(f"{some(wrong)} are no objects")
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not {kind} annotations ({error}). Fetch it again") from error
    return table


def identity(value) -> int | str | None:
    """An id: a number, or a text that is no number; None for a value that cannot be one."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else value or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def order(value: int | str) -> tuple:
    """What ids are sorted by: numbers first."""
    return isinstance(value, str), value


def flag(value) -> bool | None:
    """What 0, 1, false or true say; None for all else."""
    return bool(value) if isinstance(value, (bool, int)) and value in (0, 1) else None


def complete(entries: list[dict], where: str, fields: dict[str, type | tuple], problems: Problems) -> list[dict]:
    """The entries that have these fields, of these types."""
    good = []
    for at, entry in enumerate(entries):
        lacking = [name for name, kind in fields.items() if not isinstance(entry.get(name), kind)]
        if lacking:
            named = f" (id {entry['id']})" if "id" in entry else ""
            problems[f"has {where} that lack a field or have it of another type"].append(
                f"{where}[{at}]{named} {' and '.join(lacking)}"
            )
        else:
            good.append(entry)
    return good


def images(entries: list[dict], problems: Problems) -> dict[int | str, tuple[str, tuple[int, int]]]:
    """By id the file's name, width and height."""
    found, names = {}, defaultdict(list)
    number = (int, float)
    fields = {"id": (int, float, str), "file_name": str, "width": number, "height": number}
    for image in complete(entries, "images", fields, problems):
        key, name, size = identity(image["id"]), image["file_name"], (image["width"], image["height"])
        if key is None:
            problems["has images whose ids are none"].append(f"{image['id']!r} ({name})")
            continue
        whole = all(0 < side == side // 1 for side in size)  # false for NaN and infinity
        if not whole or size[0] * size[1] > pictures.MAX_PIXELS:
            problems["states impossible sizes"].append(f"image {key} ({name}) {size[0]} x {size[1]}")
        names[key].append(name)
        found[key] = name, tuple(int(side) if side - side == 0 else 0 for side in size)
    problems["has image ids twice"] += [f"{key} ({', '.join(ones)})" for key, ones in names.items() if len(ones) > 1]
    return found


def categories(entries: list[dict], problems: Problems) -> dict[int, dict]:
    """The categories by id."""
    found = {}
    for category in complete(entries, "categories", {"id": (int, float, str), "name": str}, problems):
        key = identity(category["id"])
        if isinstance(key, int):
            problems["has category ids twice"] += [key] if key in found else []
            found[key] = category
        else:
            problems["has category ids that are no whole numbers"].append(f"{category['id']!r}")
    return found


# Files


def normal(name: str) -> str:
    """A file's name as tables of all systems have it: accents composed, folders parted by /."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


class Files:
    """The files in a folder and below it, by the names that a table may give them."""

    def __init__(self, folder: Path):
        self.folder, self.paths, self.folded = folder, {}, defaultdict(list)
        for parent, _, names in os.walk(folder):
            for path in (Path(parent, name) for name in names if not name.startswith(".")):
                name = normal(path.relative_to(folder).as_posix())
                self.paths[name] = path
                self.folded[name.casefold()].append(path)

    def find(self, name: str) -> Path | None:
        """Also where the name begins with the folder's own, or has other capitals; never a file outside the folder."""
        name = normal(name)
        for tried in (name, name.removeprefix(f"{self.folder.name}/")):
            if tried in self.paths:
                return self.paths[tried]
            if len(alike := self.folded.get(tried.casefold(), ())) == 1:
                return alike[0]
        inside = not name.startswith(("/", "..")) and (self.folder / name).is_file()  # through a link to a folder
        return self.folder / name if inside else None

    def pictures(self) -> list[Path]:
        return [path for path in self.paths.values() if path.suffix.lower() in pictures.SUFFIXES]


# Masks


def mask_problem(shape, height: int, width: int) -> str | None:
    """Why a `segmentation` is no mask of a picture of that size."""
    if isinstance(shape, list):
        if not shape:
            return "it has no polygon"
        return next((problem for one in shape if (problem := _polygon_problem(one, height, width))), None)
    if not isinstance(shape, dict) or "counts" not in shape or "size" not in shape:
        return "it is neither polygons nor run lengths with counts and size"
    if shape["size"] != [height, width]:
        return f"its size is {shape['size']}, the image's {[height, width]}"
    try:
        counts = _run_lengths(shape["counts"])
    except ValueError as error:
        return str(error)
    if (counts < 0).any():
        return f"it has a run of {counts.min()} pixels"
    if (total := sum(counts.tolist())) != height * width:
        return f"its runs are of {total} pixels in all, the image's {height} x {width} are {height * width}"
    return None


def _polygon_problem(polygon, height: int, width: int) -> str | None:
    try:
        numbers = np.array(polygon)
    except (ValueError, OverflowError):  # lists of several lengths
        numbers = np.array(None)
    if not isinstance(polygon, list) or numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iuf"):
        return f"a polygon is no list of numbers: {str(polygon)[:60]}"
    if numbers.size % 2 or numbers.size < 6:
        return f"a polygon has {numbers.size} coordinates; three points or more have 6, 8, 10, ..."
    points, size = numbers.astype(float).reshape(-1, 2), np.array([width, height])
    outside = ~((points >= -SIDES * size) & (points <= (1 + SIDES) * size))  # NaN is, too
    if outside.any():
        return f"a coordinate is {points[outside][0]:g}, far outside the image of {width} x {height} pixels (width x height)"
    length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
    if length > 4 * (width + 4) * (height + 4):
        return f"an outline is {length:.0f} pixels long, which no {width} x {height} pixels have"
    return None


def _run_lengths(counts) -> np.ndarray:
    """The runs of a list, or of COCO's text: five bits a letter, and from the fourth run on differences to the last but one."""
    if isinstance(counts, list):
        if not all(type(count) is int and abs(count) < 1 << 40 for count in counts):
            raise ValueError("its counts are no whole numbers")
        return np.array(counts, np.int64)
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("its counts are neither a list nor COCO's text")
    letters = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not letters.size or letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise ValueError("its counts are cut short, or not COCO's text")
    ends = np.flatnonzero(letters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(letters.size) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:
        raise ValueError("its counts have a number of more than 35 bits")
    runs = np.add.reduceat((letters & 31) << 5 * places, starts)
    runs -= np.where(letters[ends] & 16, 1 << 5 * (places[ends] + 1), 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs
