"""COCO 2017 in its original layout -> stores: the panoptic masks, or the instances.

Sources: Lin et al. 2014, arXiv:1405.0312; Kirillov et al. 2019, arXiv:1801.00868; the format,
https://cocodataset.org/#format-data. The numbering of the segments is that of Genera1Z/DIAS v4.

Panoptic: a mask PNG holds at each pixel a segment's id as R + 256 G + 65536 B, 0 where nothing is annotated. The store
numbers the segments from 1 in the ascending order of these ids, things, stuff and crowds alike, and calls the rest void.

Instances: masks of things that may overlap, decoded by pycocotools. As in SPOT and OCLF, pixels that two or more masks
cover are overlap, crowd regions are masks like all others, and what no mask covers is the background. Segments are
numbered in the ascending order of their annotation ids.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from pycocotools import mask as masks

from dias_lab.data import store
from dias_lab.data.convert import common
from dias_lab.data.convert.common import ConversionError, Split, some
from dias_lab.trace import OVERLAP, VOID

LAYOUT = "train2017/ val2017/ annotations/"
NUM_IDS = 1 << 24


def convert(
    root: str | Path, out: str | Path, validation: float = 0.05, limit: int | None = None, annotations: str = "panoptic",
    progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Write out/train.lmdb, out/validation.lmdb and out/test.lmdb; return their paths by split.

    `test` is val2017. `validation` is the share of train2017, 0 to 1, on which checkpoints may be chosen, so that they
    are not chosen on the reported images; an image's id alone decides. 0: no such split. `limit`: only the first images
    of each split, by id. `annotations`: "panoptic" or "instances". Photos of which the tables know nothing are left out
    and counted in meta["photos_without_masks"].

    Raises: ConversionError if the files are not COCO's, incomplete or damaged; OSError if `out` cannot be written. A
    split is replaced when its new store is complete, and not before.
    """
    root, out = Path(root), Path(out)
    common.share("validation", validation, "train2017")
    if limit is not None and limit < 1:
        raise ConversionError(f"limit={limit}; give a number of images from 1, or None for all")
    if annotations not in (kinds := {"panoptic": Panoptic, "instances": Instances}):
        raise ConversionError(f"annotations={annotations!r}; choose one of {', '.join(kinds)}")
    train, test = (kinds[annotations](root, part) for part in ("train2017", "val2017"))
    training, held = common.divide("coco", train.numbers, validation)
    splits = {}  # the smallest first: an error shows early
    for split, part, numbers in (("test", test, test.numbers), ("validation", train, held), ("train", train, training)):
        meta = {
            "classes": part.classes,
            "source": f"COCO 2017 {annotations}, {part.name}, https://cocodataset.org",
            "annotations": annotations,
            "photos_without_masks": part.photos_without_masks,
        }
        splits[split] = Split(numbers[:limit], part.record, meta)
    if not validation:
        del splits["validation"]
    options = {"root": root, "out": out, "validation": validation, "limit": limit, "annotations": annotations}
    paths = common.write(out, "coco", splits, options, f"Fetch the file again into {root}", progress)
    for part in (train, test) if progress else ():
        print(f"{part.photos_without_masks} photos of {part.name} are not in {part.table.name} and were left out")
    return paths


class Part:
    """train2017 or val2017: a table of annotations, checked against the files that are there.

    Its kinds have a method `read(table)`, which sets `numbers` (the images' ids, ascending), `classes` ({id: name}) and
    `things` ({id: bool}) and returns what is wrong, by its kind; and `record(number)`, the store's record of an image.
    """

    KIND = LAYOUT = ""  # of the table

    def __init__(self, root: Path, name: str, *folders: Path):
        self.root, self.name, self.table = root, name, root / "annotations" / f"{self.KIND}_{name}.json"
        for path in (root, root / name, self.table, *folders):
            if not path.exists():
                raise ConversionError(f"{path} is missing. {common.found(root, path, LAYOUT + self.LAYOUT)}")
        try:
            table = json.loads(self.table.read_bytes())
            self.images = {int(i["id"]): (i["file_name"], (i["width"], i["height"])) for i in table["images"]}
            problems = self.read(table)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConversionError(f"{self.table} is not {self.KIND} annotations ({error!r}). Fetch it again") from error
        photos = [self.images[number][0] if number in self.images else f"? (image {number})" for number in self.numbers]
        there = {path.name for path in (root / name).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
        problems["misses files"] += [f"{name}/{photo}" for photo in photos if photo not in there]
        for what, values in problems.items():
            if values:
                raise ConversionError(f"{self.table} {what}: {some(values)}. Fetch {name} and its annotations again")
        self.photos_without_masks = len(there) - len(set(photos))

    def stored(self, number: int, labels: np.ndarray, segments: dict[int, dict], **more) -> store.Record:
        """The record of an image. `segments`: for each segment in the store what the table says of it."""
        photo, (width, height) = self.images[number]
        info = {
            "source": {"id": number, "file": f"{self.name}/{photo}"},
            "width": width,
            "height": height,
            "things": {rank: self.things[segment["category_id"]] for rank, segment in segments.items()},
            "classes": {rank: segment["category_id"] for rank, segment in segments.items()},
            "crowds": {rank: bool(segment.get("iscrowd", 0)) for rank, segment in segments.items()},
            **more,
        }
        return store.Record((self.root / self.name / photo).read_bytes(), labels, info)


class Panoptic(Part):
    """The panoptic masks: every pixel has one segment at most, things and stuff alike."""

    KIND, LAYOUT = "panoptic", "panoptic_{train,val}2017.json annotations/panoptic_{train,val}2017/"

    def __init__(self, root: Path, name: str):
        self.masks = root / "annotations" / f"panoptic_{name}"
        super().__init__(root, name, self.masks)

    def read(self, table: dict) -> dict[str, list]:
        annotations = sorted(table["annotations"], key=lambda annotation: int(annotation["image_id"]))
        ids = Counter(annotation["image_id"] for annotation in annotations)
        self.annotations = {annotation["image_id"]: annotation for annotation in annotations}
        self.numbers = list(self.annotations)
        categories = _categories(self.root, table)
        self.classes = {category["id"]: category["name"] for category in categories}
        self.things = {category["id"]: bool(category["isthing"]) for category in categories}
        segments = [segment for annotation in annotations for segment in annotation["segments_info"]]
        there = {path.name for path in self.masks.iterdir()}
        masks = [annotation["file_name"] for annotation in annotations]
        return {
            "misses files": [f"{self.masks.name}/{mask}" for mask in masks if mask not in there],
            "uses unknown categories": sorted({segment["category_id"] for segment in segments} - set(self.classes)),
            "has segment ids out of range": [s["id"] for s in segments if not 0 < s["id"] < NUM_IDS],
            "annotates images twice": [number for number, count in ids.items() if count > 1],
        }

    def record(self, number: int) -> store.Record:
        annotation = self.annotations[number]
        mask, size = self.masks / annotation["file_name"], self.images[number][1]
        segments = sorted(annotation["segments_info"], key=lambda segment: segment["id"])
        common.refuse_too_many(len(segments), f"{self.table}: image {number}")
        picture = common.open_image(mask, ["PNG"], "Fetch it again")
        if (picture.mode, picture.size) != ("RGB", size):
            form = f"{mask} is {(picture.mode, picture.size)}, its image {('RGB', size)} (width, height)"
            raise ConversionError(f"{form}. Fetch it again")
        there, places = common.ranked(common.packed_colours(picture))
        listed, marked = {segment["id"] for segment in segments}, set(there) - {0}
        if listed != marked:
            wrong = f"{mask} lacks the segments {sorted(listed - marked)[:5]} and has {sorted(marked - listed)[:5]}"
            raise ConversionError(f"{wrong}, which are not in {self.table}. Fetch the annotations again")
        ranks = np.arange(len(there)) + (0 not in there)
        ranks[ranks == 0] = VOID
        return self.stored(number, ranks.astype(np.uint8)[places], dict(enumerate(segments, start=1)))


def _categories(root: Path, table: dict) -> list[dict]:
    """Those of panoptic_coco_categories.json where there is one, else the table's own."""
    categories = table.get("categories")
    paths = [folder / "panoptic_coco_categories.json" for folder in (root, root / "annotations")]
    if path := next((path for path in paths if path.exists()), None):
        try:
            categories = json.loads(path.read_bytes())
        except ValueError as error:
            raise ConversionError(f"{path} is not JSON ({error}). Fetch it again") from error
    if not categories:
        raise ValueError("it has no categories, and there is no panoptic_coco_categories.json")
    return categories


class Instances(Part):
    """instances_{train,val}2017.json. Images without annotations stay: they are all background."""

    KIND, LAYOUT = "instances", "instances_{train,val}2017.json"

    def read(self, table: dict) -> dict[str, list]:
        self.numbers = sorted(self.images)
        self.classes = {int(category["id"]): category["name"] for category in table["categories"]}
        self.things = dict.fromkeys(self.classes, True)
        self.annotations = defaultdict(list)
        for annotation in sorted(table["annotations"], key=lambda annotation: annotation["id"]):
            self.annotations[annotation["image_id"]].append(annotation)
        ids = Counter(annotation["id"] for annotation in table["annotations"])
        categories = {annotation["category_id"] for annotation in table["annotations"]}
        return {
            "misses files": [],
            "annotates images that it does not list": sorted(set(self.annotations) - set(self.images)),
            "uses unknown categories": sorted(categories - set(self.classes)),
            "has annotation ids twice": [number for number, count in ids.items() if count > 1],
        }

    def record(self, number: int) -> store.Record:
        """info["hidden"] lists the annotations without a pixel of their own: the store has no segment of them."""
        width, height = self.images[number][1]
        annotations = self.annotations.get(number, [])
        cover = np.zeros((height, width), np.int32)  # how many masks cover a pixel
        labels = np.zeros((height, width), np.int32)
        for place, annotation in enumerate(annotations, start=1):
            covered = self._mask(annotation, height, width)
            cover += covered
            labels[covered] = place
        labels[cover > 1] = 0
        seen = [place for place in np.unique(labels).tolist() if place]
        common.refuse_too_many(len(seen), f"{self.table}: image {number}")
        ranks = np.zeros(len(annotations) + 1, np.uint8)
        ranks[seen] = range(1, len(seen) + 1)
        labels = np.where(cover > 1, np.uint8(OVERLAP), ranks[labels])
        hidden = [a["id"] for place, a in enumerate(annotations, start=1) if place not in seen]
        segments = {rank: annotations[place - 1] for rank, place in enumerate(seen, start=1)}
        return self.stored(number, labels, segments, hidden=hidden)

    def _mask(self, annotation: dict, height: int, width: int) -> np.ndarray:
        """One annotation's pixels, bool [H W]: polygons, or run lengths as a list or as text."""
        shape = annotation.get("segmentation")
        try:
            if isinstance(shape, list):
                codes = masks.merge(masks.frPyObjects(shape, height, width))
            else:
                codes = masks.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
                if list(codes["size"]) != [height, width]:
                    raise ValueError(f"its size is {codes['size']}, the image's {[height, width]}")
            return masks.decode(codes).astype(bool)
        except Exception as error:  # pycocotools raises bare Exception, too
            what = f"{self.table}: annotation {annotation['id']} of image {annotation['image_id']}"
            raise ConversionError(f"{what} has no mask that decodes ({error!r}). Fetch the table again") from error
