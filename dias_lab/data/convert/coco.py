"""COCO 2017 in its original layout, or what other tools write in it -> stores: the panoptic masks, or the instances.

Sources: Lin et al. 2014, arXiv:1405.0312; Kirillov et al. 2019, arXiv:1801.00868; the format,
https://cocodataset.org/#format-data. The numbering of the segments is that of Genera1Z/DIAS v4.

Panoptic: a mask PNG holds at each pixel a segment's id as R + 256 G + 65536 B, 0 where nothing is annotated. The store
numbers the segments from 1 in the ascending order of these ids, things, stuff and crowds alike, and calls the rest void.

Instances: masks of things, decoded by pycocotools. What several masks cover is overlap, what none covers the background.
Segments are numbered in the ascending order of their annotation ids. SPOT and OCLF take crowd regions as masks like all
others, VideoSAUR leaves them out: the store keeps what is beneath them, for either.

Masks lie on the pixels of the photo's file, as pycocotools has it. A photo that EXIF turns is stored upright, and its
masks are turned with it; not so where the table states the size of the upright photo, on which they were drawn then.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pycocotools import mask as masks

from dias_lab.data import store
from dias_lab.data.convert import common, tables
from dias_lab.data.convert.common import ConversionError, Split
from dias_lab.data.convert.part import Part
from dias_lab.files import read_json
from dias_lab.trace import OVERLAP, VOID

NUM_IDS = 1 << 24


def convert(
    root: Path, out: Path, validation: float = 0.05, limit: int | None = None,
    annotations: Literal["panoptic", "instances"] = "panoptic", progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Convert COCO 2017. `test` is val2017; an image's id alone decides whether it is in `validation`.

    Args:
        root: the folder with train2017/, val2017/ and annotations/
        limit: only the first images of each split, by id
        annotations: panoptic: things (cats), stuff (sky), no overlaps; instances: things, as SPOT and OCLF use them

    Photos of which the tables know nothing are left out and counted in meta["photos_without_masks"].
    Raises: ConversionError if the files are not COCO's, incomplete or damaged; OSError if `out` cannot be written.
    """
    root, out = Path(root), Path(out)
    common.share("validation", validation, "train2017")
    if limit is not None and limit < 1:
        raise ConversionError(f"limit={limit}; give a number of images from 1, or None for all")
    common.choose("annotations", annotations, kinds := {"panoptic": Panoptic, "instances": Instances})
    train, test = (kinds[annotations](root, part) for part in ("train2017", "val2017"))
    training, held = common.divide("coco", train.numbers, validation)
    splits = {}  # the smallest first: an error shows early
    for split, part, numbers in (("test", test, test.numbers), ("validation", train, held), ("train", train, training)):
        part.check(numbers[:limit])
        meta = {
            "classes": part.classes,
            "source": f"COCO 2017 {annotations}, {part.name}, https://cocodataset.org",
            "annotations": annotations,
            "photos_without_masks": part.photos_without_masks,
        }
        splits[split] = Split(numbers[:limit], part.record, meta)
    problems = [line for part in (train, test) for line in part.problems.lines(part.table)]
    common.refuse(problems, f"Mend the tables, or fetch photos and annotations again into {root}")
    options = {"root": root, "out": out, "validation": validation, "limit": limit, "annotations": annotations}
    paths = common.write(out, "coco", splits, options, f"Fetch the file again into {root}", progress)
    for part in (train, test) if progress else ():
        print(f"{part.photos_without_masks} photos of {part.name} are not in {part.table.name} and were left out")
        if part.turned:
            print(f"{len(part.turned)} photos of {part.name} were turned, as EXIF says: {common.some(part.turned)}")
    return paths


class Panoptic(Part):
    """The panoptic masks: every pixel has one segment at most, things and stuff alike."""

    KIND, LAYOUT = "panoptic", "panoptic_{train,val}2017.json annotations/panoptic_{train,val}2017/"

    def __init__(self, root: Path, name: str):
        self.masks = root / "annotations" / f"panoptic_{name}"
        super().__init__(root, name, self.masks)

    def listed_categories(self, table: dict) -> list[dict]:
        """Those of panoptic_coco_categories.json where there is one, else the table's own."""
        entries, source = table.get("categories"), self.table
        paths = [folder / "panoptic_coco_categories.json" for folder in (self.root, self.root / "annotations")]
        if path := next((path for path in paths if path.exists()), None):
            try:
                entries, source = read_json(path), path
            except ValueError as error:
                raise ConversionError(f"{error}. Fetch it again") from error
        if not entries:
            wrong = f"{self.table} is not panoptic annotations (it has no categories"
            raise ConversionError(f"{wrong}, and there is no panoptic_coco_categories.json). Fetch it again")
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise ConversionError(f"{source}: the categories are no list of objects. Fetch it again")
        return entries

    def read(self, table: dict) -> None:
        unclear = [key for key, one in self.categories.items() if tables.flag(one.get("isthing")) is None]
        self.problems["has categories whose isthing is neither 0 nor 1"] += unclear
        fields = {"image_id": (int, float, str), "file_name": str, "segments_info": list}
        annotations = tables.complete(table["annotations"], "annotations", fields, self.problems)
        pairs = [(tables.identity(annotation["image_id"]), annotation) for annotation in annotations]
        self.problems.twice("annotates images twice", (number for number, _ in pairs))
        self.problems.twice("lists masks twice", (tables.normal(annotation["file_name"]) for _, annotation in pairs))
        strange = {number for number, _ in pairs} - set(self.images)
        self.problems["annotates images that it does not list"] += sorted(strange, key=str)
        segments, self.annotations = [], {}
        for number, annotation in pairs:
            entries = [one for one in annotation["segments_info"] if isinstance(one, dict)]
            named = [(f"{one.get('id')} of image {number}", one) for one in entries]
            if len(named) < len(annotation["segments_info"]):
                self.problems["has segments that are no objects"].append(f"image {number}")
            good = [one for _, one in named if type(one.get("id")) is int and 0 < one["id"] < NUM_IDS]
            self.problems["has segment ids out of range"] += [name for name, one in named if one not in good]
            self.problems.twice("has segments twice", (f"{one['id']} of image {number}" for one in good))
            segments += named
            if number in self.images:
                self.annotations[number] = annotation | {"segments_info": sorted(good, key=lambda one: one["id"])}
        self.check_segments(segments)
        self.numbers = sorted(self.annotations, key=tables.order)
        self.mask_files, self.mask_paths = tables.Files(self.masks), {}

    def check(self, numbers: Sequence) -> None:
        super().check(numbers)
        for number in numbers:
            name, size = self.annotations[number]["file_name"], self.images[number][1]
            self.mask_paths[number] = path = self.mask_files.find(name)
            found = self.header(path, f"{self.masks.name}/{name}", formats=("PNG",))
            if found and found.size != size:
                sizes = f"{path} {' x '.join(map(str, found.size))}, its image {' x '.join(map(str, size))}"
                self.problems["has masks of other sizes than their images (width x height)"].append(sizes)

    def is_thing(self, category: int) -> bool:
        return bool(self.categories[category]["isthing"])

    def record(self, number) -> store.Record:
        mask, segments = self.mask_paths[number], self.annotations[number]["segments_info"]
        common.refuse_too_many(len(segments), f"{self.table}: image {number}")
        there, places = common.ranked(common.colours(mask, ("RGB",)))
        listed, marked = {segment["id"] for segment in segments}, set(there) - {0}
        if listed != marked:
            wrong = f"{mask} lacks the segments {sorted(listed - marked)[:5]} and has {sorted(marked - listed)[:5]}"
            raise ConversionError(f"{wrong}, which are not in {self.table}. Fetch the annotations again")
        ranks = np.arange(len(there)) + (0 not in there)
        ranks[ranks == 0] = VOID
        return self.stored(number, ranks.astype(np.uint8)[places], dict(enumerate(segments, start=1)))


class Instances(Part):
    """instances_{train,val}2017.json. Images without annotations stay: they are all background."""

    KIND, LAYOUT = "instances", "instances_{train,val}2017.json"
    LISTS = ("images", "annotations", "categories")

    def read(self, table: dict) -> None:
        self.numbers = sorted(self.images, key=tables.order)
        fields = {"id": (int, float, str), "image_id": (int, float, str), "category_id": (int, float, str)}
        annotations = tables.complete(table["annotations"], "annotations", fields, self.problems)
        annotations = [one | {key: tables.identity(one[key]) for key in ("id", "image_id")} for one in annotations]
        self.problems.twice("has annotation ids twice", (one["id"] for one in annotations))
        strange = {one["image_id"] for one in annotations} - set(self.images)
        self.problems["annotates images that it does not list"] += sorted(strange, key=str)
        self.problems["has annotations whose ids are none"] += [
            f"one of image {one['image_id']}" for one in annotations if one["id"] is None
        ]
        self.check_segments([(f"annotation {one['id']}", one) for one in annotations])
        self.annotations = defaultdict(list)
        for annotation in annotations:
            self.annotations[annotation["image_id"]].append(annotation)

    def check(self, numbers: Sequence) -> None:
        super().check(numbers)
        for number in numbers:
            width, height = self.images[number][1]
            for annotation in self.annotations.get(number, []):
                if problem := tables.mask_problem(annotation.get("segmentation"), height, width):
                    what = f"annotation {annotation['id']} of image {number} has no mask that decodes ({problem})"
                    self.problems["has annotations that cannot be drawn"].append(what)

    def record(self, number) -> store.Record:
        """info["hidden"] lists the annotations without a pixel in the store."""
        width, height = self.images[number][1]
        annotations = sorted(self.annotations.get(number, []), key=lambda annotation: tables.order(annotation["id"]))
        # added to an object's place where crowds lie over it; the place of crowds that lie over each other alone
        under = len(annotations) + 1
        cover = np.zeros((2, height, width), np.int32)  # how many objects and how many crowds cover a pixel
        top = np.zeros((2, height, width), np.int32)  # the place of an object and of a crowd there
        for place, annotation in enumerate(annotations, start=1):
            covered, crowd = self._mask(annotation, height, width), int(annotation.get("iscrowd", 0))
            cover[crowd] += covered
            top[crowd][covered] = place
        with_crowds = np.select([cover[1] == 0, (cover[0] == 0) & (cover[1] == 1)], [top[0], top[1]], under + top[0])
        places = np.where(cover[0] > 1, 0, with_crowds)
        seen = [place for place in np.unique(places).tolist() if place]
        ranks = dict(zip(seen, self.ranks(seen)))
        common.refuse_too_many(max(ranks.values(), default=0), f"{self.table}: image {number}")
        numbers = np.zeros(2 * under, np.uint8)
        numbers[seen] = list(ranks.values())
        labels = np.where(cover[0] > 1, np.uint8(OVERLAP), numbers[places])
        owners = {place: place % under or int(top[1][places == place][0]) for place in seen}  # crowds that overlap: one
        segments = {rank: annotations[owners[place] - 1] for place, rank in ranks.items()}
        beneath = {ranks[place]: ranks.get(place - under, ranks[place]) for place in seen if place > under}
        beneath |= {ranks[under]: 0} if under in ranks else {}
        hidden = [a["id"] for place, a in enumerate(annotations, start=1) if place not in owners.values()]
        more = {"hidden": hidden} | ({"beneath": beneath} if beneath else {})
        return self.stored(number, labels, segments, **more)

    def ranks(self, seen: list[int]) -> Sequence[int]:
        """The segments of the places that are seen."""
        return range(1, len(seen) + 1)

    def _mask(self, annotation: dict, height: int, width: int) -> np.ndarray:
        """One annotation's pixels, bool [H W]: polygons, or run lengths as a list or as text."""
        shape = annotation["segmentation"]
        if isinstance(shape, list):
            codes = masks.merge(masks.frPyObjects(shape, height, width))
        else:
            codes = masks.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        return masks.decode(codes).astype(bool)
