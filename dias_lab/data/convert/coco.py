"""COCO 2017 panoptic, in its original layout -> stores.

Sources: Lin et al. 2014, arXiv:1405.0312; Kirillov et al. 2019, arXiv:1801.00868; the format,
https://cocodataset.org/#format-data. The numbering of the segments is that of Genera1Z/DIAS v4.

A mask PNG holds at each pixel a segment's id as R + 256 G + 65536 B, 0 where nothing is annotated. The store numbers
the segments from 1 in the ascending order of these ids, things, stuff and crowds alike, and calls the rest void.
"""

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dias_lab.data import store

LAYOUT = "train2017/ val2017/ annotations/panoptic_{train,val}2017.json annotations/panoptic_{train,val}2017/"
NUM_IDS = 1 << 24


class ConversionError(ValueError):
    """A data set is not what its converter needs."""


def convert(
    root: str | Path, out: str | Path, validation: float = 0.05, limit: int | None = None, progress: bool = False
) -> dict[str, Path]:
    """Write out/train.lmdb, out/validation.lmdb and out/test.lmdb; return their paths by split.

    `test` is val2017. `validation` is the share of train2017, 0 to 1, on which checkpoints may be chosen, so that they
    are not chosen on the reported images; an image's id alone decides. 0: no such split. `limit`: only the first images
    of each split, by id. Photos without masks are left out and counted in meta["photos_without_masks"].

    Raises: ConversionError if the files are not COCO's, incomplete or damaged; OSError if `out` cannot be written. A
    split is replaced when its new store is complete, and not before.
    """
    root, out = Path(root), Path(out)
    if not 0 <= validation < 1:
        raise ConversionError(f"validation={validation}; give a share of train2017 from 0 up to, but not, 1")
    if limit is not None and limit < 1:
        raise ConversionError(f"limit={limit}; give a number of images from 1, or None for all")
    train, test = _Part(root, "train2017"), _Part(root, "val2017")
    splits = {  # the smallest first: an error shows early
        "test": (test, test.annotations),
        "validation": (train, [a for a in train.annotations if _fraction(a["image_id"]) < validation]),
        "train": (train, [a for a in train.annotations if _fraction(a["image_id"]) >= validation]),
    }
    if validation == 0:
        del splits["validation"]
        if (out / "validation.lmdb").exists():  # its images would now be in train too
            raise ConversionError(
                f"validation=0, but {out / 'validation.lmdb'} is there. Remove it or choose another folder"
            )
    for split, (part, annotations) in splits.items():
        if not annotations:
            found = f"validation={validation} of {len(part.annotations)} images in {part.table} leaves {split} empty"
            raise ConversionError(f"{found}; choose another share (0: no validation split)")
    command = ["python", "-m", "dias_lab", "convert", "coco", "--root", str(root), "--out", str(out)]
    command += ["--validation", str(validation)] + (["--limit", str(limit)] if limit else [])
    out.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, (part, annotations) in splits.items():
        annotations = annotations[:limit]
        meta = {
            "dataset": "coco",
            "split": split,
            "classes": {category: name for category, (name, _) in part.categories.items()},
            "source": f"COCO 2017 panoptic, {part.name}, https://cocodataset.org",
            "command": shlex.join(command),
            "photos_without_masks": part.photos_without_masks,
        }
        records = map(part.record, tqdm(annotations, desc=f"coco {split}", disable=not progress, mininterval=1))
        try:
            paths[split] = store.write(out / f"{split}.lmdb", records, meta)
        except store.StoreError as error:
            raise ConversionError(f"{root}: {error}. Fetch the file again") from error
        if progress:
            skipped = f"{part.photos_without_masks} photos of {part.name} have no masks and were left out"
            print(f"{paths[split]}: {len(annotations)} images; {skipped}")
    return {split: paths[split] for split in ("train", "validation", "test") if split in paths}


def _fraction(image: int) -> float:
    """A number from 0 to 1 that looks random and that follows from the image's id alone."""
    return int.from_bytes(hashlib.sha256(b"coco %d" % image).digest()[:6]) / 2**48


class _Part:
    """train2017 or val2017: its tables, checked against the files that are there."""

    def __init__(self, root: Path, name: str):
        self.root, self.name, self.masks = root, name, root / "annotations" / f"panoptic_{name}"
        self.table = root / "annotations" / f"panoptic_{name}.json"
        for path in (root, root / name, self.table, self.masks):
            if not path.exists():
                raise ConversionError(f"{path} is missing. {_found(root, path)}")
        try:
            table = json.loads(self.table.read_bytes())
            self.images = {int(i["id"]): (i["file_name"], (i["width"], i["height"])) for i in table["images"]}
            self.annotations = sorted(table["annotations"], key=lambda annotation: int(annotation["image_id"]))
            self.categories = _categories(root, table)
            masks = [annotation["file_name"] for annotation in self.annotations]
            segments = [segment for annotation in self.annotations for segment in annotation["segments_info"]]
            unknown = {segment["category_id"] for segment in segments} - set(self.categories)
            strange = [segment["id"] for segment in segments if not 0 < segment["id"] < NUM_IDS]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConversionError(f"{self.table} is not a panoptic table ({error!r}). Fetch it again") from error
        numbers = [annotation["image_id"] for annotation in self.annotations]
        photos = [self.images[number][0] if number in self.images else f"? (image {number})" for number in numbers]
        there = {path.name for path in (root / name).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
        lost = [f"{name}/{photo}" for photo in photos if photo not in there]
        there_too = {path.name for path in self.masks.iterdir()}
        lost += [f"{self.masks.name}/{mask}" for mask in masks if mask not in there_too]
        for what, values in {
            f"needs {len(lost)} files that are missing": lost,
            "uses unknown categories": sorted(unknown),
            "has segment ids out of range": strange,
            "annotates images twice": [a for a, b in zip(numbers, numbers[1:]) if a == b],  # noqa: B905
        }.items():
            if values:
                raise ConversionError(f"{self.table} {what}: {values[:5]}. Fetch {name} and its annotations again")
        self.photos_without_masks = len(there) - len(set(photos))
        self._ranks = np.zeros(NUM_IDS, np.uint8)  # from a pixel's id to its segment in the store; 0: no such segment
        self._ranks[0] = store.VOID

    def record(self, annotation: dict) -> store.Record:
        """The store's record of one annotation."""
        mask, number = self.masks / annotation["file_name"], annotation["image_id"]
        photo, size = self.images[number]
        segments = sorted(annotation["segments_info"], key=lambda segment: segment["id"])
        ids = [segment["id"] for segment in segments]
        if len(ids) > store.LAST_SEGMENT:
            found = f"{self.table}: image {number} has {len(ids)} segments"
            raise ConversionError(f"{found}; a store holds at most {store.LAST_SEGMENT}. Take it out of the table")
        pixels = _ids(mask, size)
        self._ranks[ids] = range(1, len(ids) + 1)
        labels = self._ranks[pixels]
        self._ranks[ids] = 0
        counts = np.bincount(labels.ravel(), minlength=256)
        absent = [ids[rank - 1] for rank in range(1, len(ids) + 1) if not counts[rank]]
        if counts[0] or absent:
            surplus = np.unique(pixels[labels == 0]).tolist()
            found = f"{mask} lacks the segments {absent[:5]} and has {surplus[:5]}, which are not"
            raise ConversionError(f"{found} in {self.table}. Fetch the annotations again")
        ranked = list(enumerate(segments, start=1))
        info = {
            "source": {"id": number, "file": f"{self.name}/{photo}"},
            "width": size[0],
            "height": size[1],
            "things": {rank: self.categories[segment["category_id"]][1] for rank, segment in ranked},
            "classes": {rank: segment["category_id"] for rank, segment in ranked},
            "crowds": {rank: bool(segment.get("iscrowd", 0)) for rank, segment in ranked},
        }
        return store.Record((self.root / self.name / photo).read_bytes(), labels, info)


def _ids(mask: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask's ids, int32 [H W]."""
    try:
        with Image.open(mask, formats=["PNG"]) as png:
            form, colours = (png.mode, png.size), np.asarray(png, np.int32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConversionError(f"{mask} cannot be decoded ({error}). Fetch it again") from error
    if form != ("RGB", size):
        raise ConversionError(f"{mask} is {form}, its image {('RGB', size)} (width, height). Fetch it again")
    return colours @ np.array([1, 256, 65536], np.int32)


def _categories(root: Path, table: dict) -> dict[int, tuple[str, bool]]:
    """Name and thing flag by category id: of panoptic_coco_categories.json where there is one, else the table's own."""
    categories = table.get("categories")
    paths = [folder / "panoptic_coco_categories.json" for folder in (root, root / "annotations")]
    if path := next((path for path in paths if path.exists()), None):
        try:
            categories = json.loads(path.read_bytes())
        except ValueError as error:
            raise ConversionError(f"{path} is not JSON ({error}). Fetch it again") from error
    if not categories:
        raise ValueError("it has no categories, and there is no panoptic_coco_categories.json")
    return {category["id"]: (category["name"], bool(category["isthing"])) for category in categories}


def _found(root: Path, missing: Path) -> str:
    """What was expected and what is there, for an error."""
    folder = next((path for path in (missing.parent, root, *root.parents) if path.is_dir()), Path("/"))
    names = sorted(path.name for path in folder.iterdir())
    text = f"Expected in {root}: {LAYOUT}; found in {folder}: {', '.join(names[:12]) or 'nothing'}"
    text += ", ..." if len(names) > 12 else ""
    return text + (f". Unpack {missing.name}.zip there" if f"{missing.name}.zip" in names else "")
