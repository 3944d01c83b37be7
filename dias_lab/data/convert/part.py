"""A part of COCO, train2017 or val2017: one table of annotations and the photos that it lists."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dias_lab.data import pictures, store
from dias_lab.data.convert import common, tables
from dias_lab.data.convert.common import ConversionError
from dias_lab.data.convert.tables import Problems

LAYOUT = "train2017/ val2017/ annotations/"


class Part:
    """train2017 or val2017: a table of annotations, checked against the files that are there.

    Its kinds have a method `read(table)`, which sets `numbers` (the images' ids, ascending), and `record(number)`, the
    store's record of an image. What is wrong goes to `problems`.
    """

    KIND = LAYOUT = ""  # of the table
    LISTS = ("images", "annotations")

    def __init__(self, root: Path, name: str, *folders: Path, table: Path | None = None, photos: Path | None = None):
        self.root, self.name, self.table = root, name, table or root / "annotations" / f"{self.KIND}_{name}.json"
        for path in (root, photos or root / name, self.table, *folders):
            if not path.exists():
                raise ConversionError(f"{path} is missing. {common.found(root, path, LAYOUT + self.LAYOUT)}")
        self.problems, self.photos, self.turned = Problems(), {}, []
        self.files = tables.Files(photos or root / name)
        table = self.load()
        self.images = tables.images(table["images"], self.problems)
        names = [image["file_name"] for image in table["images"] if isinstance(image.get("file_name"), str)]
        files = (self.files.find(name) or self.files.folder / tables.normal(name) for name in names)
        self.problems.twice("lists files twice", (os.path.relpath(file, root) for file in files))
        self.categories = tables.categories(self.listed_categories(table), self.problems)
        self.classes = {number: category["name"] for number, category in self.categories.items()}
        self.read(table)
        listed = (self.images[number][0] for number in self.numbers)
        used = {self.files.find(name) for name in listed}
        self.photos_without_masks = sum(path not in used for path in self.files.pictures())

    def load(self) -> dict:
        return tables.load(self.table, self.KIND, *self.LISTS)

    def listed_categories(self, table: dict) -> list[dict]:
        return table["categories"]

    def check(self, numbers: Sequence) -> None:
        """Compare the images with their files' headers. Reads no pixels."""
        for number in numbers:
            name, size = self.images[number]
            self.photos[number] = path = self.files.find(name)
            if not (found := self.header(path, f"{self.name}/{name}")):
                continue
            if found.orientation > 1:
                self.turned.append(name)
            if size not in (found.size, found.file_size):
                true = " x ".join(map(str, found.file_size))
                stated = f"{self.name}/{name} {size[0]} x {size[1]}, its file has {true}"
                self.problems["states other sizes than the files have (width x height)"].append(stated)

    def header(self, path: Path | None, name: str, **options) -> pictures.Header | None:
        """Of a file that the table calls so; None if there is none, or it cannot be used."""
        try:
            if path:
                return pictures.header(path, **options)
            self.problems["misses files"].append(name)
        except pictures.PictureError as error:
            self.problems["lists pictures that cannot be used"].append(str(error))

    def check_segments(self, segments: Sequence[tuple[str, dict]]) -> None:
        """Of each segment, of which its name is given: its category and whether it is a crowd."""
        unknown = {tables.identity(segment.get("category_id")) for _, segment in segments} - set(self.categories)
        self.problems["uses unknown categories"] += sorted(unknown, key=str)
        unclear = [f"{name} {one['iscrowd']!r}" for name, one in segments if tables.flag(one.get("iscrowd", 0)) is None]
        self.problems["has values of iscrowd that are neither 0 nor 1"] += unclear

    def is_thing(self, category: int) -> bool:
        return True

    def stored(self, number, labels: np.ndarray, segments: dict[int, dict], **more) -> store.Record:
        """The record of an image. `segments`: for each segment in the store what the table says of it."""
        photo, path = pictures.photo(self.photos[number]), self.photos[number]
        if self.images[number][1] == photo.header.file_size:
            labels = pictures.turned(labels, photo.header.orientation)
        classes = {rank: tables.identity(segment["category_id"]) for rank, segment in segments.items()}
        info = {
            "source": {"id": number, "file": path.relative_to(self.root).as_posix()},
            "width": photo.header.size[0],
            "height": photo.header.size[1],
            "things": {rank: self.is_thing(category) for rank, category in classes.items()},
            "classes": classes,
            "crowds": {rank: bool(segment.get("iscrowd", 0)) for rank, segment in segments.items()},
            **more,
        }
        return store.Record(photo.blob, labels, info)
