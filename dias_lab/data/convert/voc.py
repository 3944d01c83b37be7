"""Pascal VOC 2007 and 2012 segmentation in their original layout -> stores.

Sources: Everingham et al. 2010, doi 10.1007/s11263-009-0275-4, and the development kits' documentation of the palette.
The splits "dias" are those of Genera1Z/DIAS v4, "lists" those of the benchmark; SPOT and OCLF train on the list trainaug.

A mask is a palette PNG: 0 background, 1, 2, ... the instances (or the 20 classes), 255 the border around them, which
belongs to nothing. The store keeps these numbers, so the border is void, and the background is 0 whether or not a crop
shows any of it.

Leakage: VOC 2012's trainval contains all segmentation images of VOC 2007, as 2007_<number>. With the splits "dias" the
test images are thus training images, though without labels. `drop_test_images` leaves them out; the validation split
has none of them in either case.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from dias_lab.data import pictures, store
from dias_lab.data.convert import common
from dias_lab.data.convert.common import ConversionError, Split, some
from dias_lab.trace import OVERLAP

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
YEARS = (2007, 2012)
LAYOUT = "VOCdevkit/VOC2007 and VOC2012, or one, with JPEGImages/ Segmentation{Object,Class}/ ImageSets/Segmentation/"
WAY_OUT = "Unpack the original archive again; masks that other tools saved have often lost their numbers"


def convert(
    root: Path, out: Path, validation: float = 0.05, splits: Literal["auto", "dias", "lists"] = "auto",
    year: Literal[2007, 2012] | None = None, trainaug: Path | None = None, drop_test_images: bool = False, progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Convert Pascal VOC 2007 and 2012.

    Args:
        root: VOCdevkit, the folder that holds it, or one year's
        splits: dias: train on 2012, test on 2007; lists: train.txt and val.txt of a year; auto: dias if both are there
        year: the year of the lists; None: 2012, or the one that is there
        trainaug: a text file with the names of the images to train on, instead of train.txt; those without an instance mask
            are stored without segments, since class masks cannot tell instances apart
        drop_test_images: leave the images of 2007, which are tested on, out of those of 2012

    Raises: ConversionError if the files are not VOC's, incomplete or damaged; OSError if `out` cannot be written.
    """
    root, out = Path(root), Path(out)
    common.share("validation", validation, "the training images")
    kit, there = _kit(root)
    train, test, protocol = _lists(root, kit, there, splits, year, trainaug)
    tested = set(test.names)
    leaked = {name for name in train.names if name.removeprefix("2007_") in tested}
    if train.year == test.year and leaked:
        both = some(sorted(leaked))
        raise ConversionError(f"{train.listed}: {both} are in {test.listed}, too. Train on other images")
    if drop_test_images:
        train.names = [name for name in train.names if name not in leaked]
    training, held = common.divide("voc", train.names, validation, among=train.masked - leaked)
    parts = {}
    for split, part, names in (("test", test, test.names), ("validation", train, held), ("train", train, training)):
        meta = {
            "classes": dict(enumerate(CLASSES, start=1)),
            "source": f"VOC {part.year}, {part.listed}, http://host.robots.ox.ac.uk/pascal/VOC",
            "splits": protocol,
            "test_images_in_it": sorted(leaked.intersection(names)) if split != "test" else [],
            "images_without_masks": sum(name not in part.masked for name in names),
        }
        parts[split] = Split(names, part.record, meta)
    options = {"root": root, "out": out, "validation": validation, "splits": splits, "year": year, "trainaug": trainaug}
    paths = common.write(out, "voc", parts, options | {"drop_test_images": drop_test_images}, WAY_OUT, progress)
    if progress and (leak := parts["train"].meta["test_images_in_it"]):
        note = f"note: {len(leak)} of the test images are in train, too, as in the reference"
        print(f"{note}; --drop-test-images leaves them out")
    return paths


def _kit(root: Path) -> tuple[Path, list[int]]:
    """The folder VOCdevkit and the years in it."""
    if root.name in {f"VOC{year}" for year in YEARS} and (root / "SegmentationObject").is_dir():
        return root.parent, [int(root.name.removeprefix("VOC"))]
    for kit in (root, root / "VOCdevkit"):
        if years := [year for year in YEARS if (kit / f"VOC{year}" / "SegmentationObject").is_dir()]:
            return kit, years
    raise ConversionError(f"{root} holds no VOC masks. {common.found(root, root / 'VOCdevkit' / 'VOC2012', LAYOUT)}")


def _lists(root: Path, kit: Path, there: list[int], splits: str, year: int | None, trainaug) -> tuple:
    """The training part, the test part, and what the splits are called."""
    common.choose("splits", splits, ("auto", "dias", "lists"))
    whole = there == list(YEARS) and year is None and trainaug is None
    if splits == "dias" and not whole:
        found = f"{kit} has {some(there)}, and year={year}, trainaug={trainaug}"
        way_out = "Choose the splits lists, or unpack the other year beside it"
        raise ConversionError(f"the splits dias take both years whole; {found}. {way_out}")
    if splits != "lists" and whole:
        return _Year(kit, 2012), _Year(kit, 2007), "dias"
    year = year or there[-1]
    if year not in there:
        found = common.found(root, kit / f"VOC{year}", LAYOUT)
        raise ConversionError(f"year={year}, but {kit} has {some(there)}. {found}")
    train, test = _Year(kit, year), _Year(kit, year)
    train.read_list(Path(trainaug) if trainaug else None, "train")
    test.read_list(None, "val")
    return train, test, "trainaug" if trainaug else "lists"


class _Year:
    """VOC2007 or VOC2012 and the names of the images to take from it: all with masks, or those of a list."""

    def __init__(self, kit: Path, year: int):
        self.year, self.folder, self.listed = year, kit / f"VOC{year}", "all of SegmentationObject"
        self.masked = {path.stem for path in (self.folder / "SegmentationObject").glob("[!.]*.png")}
        self.names = sorted(self.masked)
        self.has_classes = (self.folder / "SegmentationClass").is_dir()
        photos = self.folder / "JPEGImages"
        if not photos.is_dir():
            raise ConversionError(f"{photos} is missing. {common.found(self.folder, photos, LAYOUT)}")

    def read_list(self, path: Path | None, name: str) -> None:
        """Take the names in the list, a file of your own or ImageSets/Segmentation/<name>.txt."""
        own, path = path is not None, path or self.folder / "ImageSets" / "Segmentation" / f"{name}.txt"
        try:
            names = [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
        except FileNotFoundError as error:
            raise ConversionError(f"the list {path} is missing. {common.found(self.folder, path, LAYOUT)}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConversionError(f"the list {path} cannot be read ({error}). {WAY_OUT}") from error
        self.listed, self.names = path.name, sorted(set(names))
        if bare := [name for name in self.names if name not in self.masked and not own]:
            raise ConversionError(f"{path} lists {some(bare)}, which SegmentationObject lacks. {WAY_OUT}")

    def record(self, name: str) -> store.Record:
        photo = self.folder / "JPEGImages" / f"{name}.jpg"
        info = {"source": {"id": name, "file": f"VOC{self.year}/JPEGImages/{name}.jpg"}}
        try:
            blob, header = pictures.photo(photo)
        except pictures.PictureError as error:
            raise ConversionError(f"{photo}, which {self.listed} names, cannot be read ({error}). {WAY_OUT}") from error
        if name not in self.masked:
            return store.Record(blob, None, info)
        labels = indices(self.folder / "SegmentationObject" / f"{name}.png")
        info["things"] = common.all_things(labels)
        if OVERLAP in info["things"]:
            raise ConversionError(f"{photo.stem}: instance {OVERLAP} is more than a store holds. Take this image out")
        if self.has_classes:
            info["classes"] = self._classes(name, labels, list(info["things"]))
        return store.Record(blob, pictures.turned(labels, header.orientation), info)

    def _classes(self, name: str, labels: np.ndarray, segments: list[int]) -> dict[int, int]:
        """By segment the class that most of its pixels have."""
        path = self.folder / "SegmentationClass" / f"{name}.png"
        classes = indices(path)
        if classes.shape != labels.shape:
            raise ConversionError(f"{path} is {classes.shape} (height, width), its instances {labels.shape}. {WAY_OUT}")
        known = slice(1, len(CLASSES) + 1)
        counts = {number: np.bincount(classes[labels == number], minlength=256)[known] for number in segments}
        if bare := [number for number, count in counts.items() if not count.any()]:
            wrong = f"{path} gives the instances {some(bare)} no class from 1 to {len(CLASSES)}"
            raise ConversionError(f"{wrong}. {WAY_OUT}")
        return {number: int(count.argmax()) + 1 for number, count in counts.items()}


def palette() -> UInt8[np.ndarray, "256 3"]:
    """VOC's colours by number: bit 0 of the number is the highest bit of red, bit 1 of green, bit 2 of blue, ..."""
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((np.arange(256) >> bit & 1) << 7 - bit // 3).astype(np.uint8)
    return colours


_NUMBERS = {int(packed): number for number, packed in enumerate(palette().astype(int) @ (1, 256, 65536))}


def indices(path: Path) -> UInt8[np.ndarray, "H W"]:
    """A mask's numbers, by its colours: what a tool saved with another palette, or none, is mapped back or refused."""
    there, places = common.ranked(common.colours(path))
    if strange := [colour for colour in there if colour not in _NUMBERS]:
        shown = [(colour % 256, colour // 256 % 256, colour // 65536) for colour in strange]
        raise ConversionError(f"{path} has colours that VOC's palette lacks: {some(shown, 3)}. {WAY_OUT}")
    return np.array([_NUMBERS[colour] for colour in there], np.uint8)[places]
