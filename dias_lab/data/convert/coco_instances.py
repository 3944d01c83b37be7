"""COCO 2017 instances: masks of things that may overlap -> a label map.

Sources: the format, https://cocodataset.org/#format-data, decoded by pycocotools. As in SPOT and OCLF, pixels that two
or more masks cover count nowhere (254), crowd regions are masks like all others, and what no mask covers is the
background (0). Segments are numbered in the ascending order of their annotation ids.
"""

from collections import Counter, defaultdict

import numpy as np
from pycocotools import mask as masks

from dias_lab.data import store
from dias_lab.data.convert import common
from dias_lab.data.convert.coco import Part
from dias_lab.data.convert.common import ConversionError
from dias_lab.trace import OVERLAP


class Instances(Part):
    """instances_{train,val}2017.json. Images without annotations stay: they are all background."""

    KIND, LAYOUT = "instances", "instances_{train,val}2017.json"

    def read(self, table: dict) -> dict[str, list]:
        self.numbers = sorted(self.images)
        self.classes = {int(category["id"]): category["name"] for category in table["categories"]}
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
        return store.Record(self.photo(number), labels, self.info(number, segments, hidden=hidden))

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
                if isinstance(codes["counts"], str):
                    codes = {**codes, "counts": codes["counts"].encode()}
            return masks.decode(codes).astype(bool)
        except Exception as error:  # pycocotools raises bare Exception, too
            what = f"{self.table}: annotation {annotation['id']} of image {annotation['image_id']}"
            raise ConversionError(f"{what} has no mask that decodes ({error!r}). Fetch the table again") from error
