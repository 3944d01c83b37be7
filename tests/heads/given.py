"""Stores of segments that a test draws itself, and slots that are what it says."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from dias_lab.data import store as stores

CLASSES = {3: "cat", 7: "dog", 90: "tree"}
SIZES = dict(image_size=16, batch_size=4, accumulate=1, devices=1, num_nodes=1, workers=0, device="cpu")
CONFIG = SimpleNamespace(protocol="dias", match_iou=0.1, **SIZES)


def record(segments, classes=None, clip=None, frame=0):
    """An item whose things are the segments of the map, [H W] or None."""
    H, W = (16, 16) if segments is None else segments.shape
    image = stores.png(Image.fromarray(np.zeros((H, W, 3), np.uint8)))
    things = {} if segments is None else {int(one): True for one in np.unique(segments) if 0 < one < 254}
    info = {"source": "drawn", "things": things}
    if classes != {}:  # which says that none is known
        info["classes"] = {one: 3 if classes is None else classes[one] for one in things}
    return stores.Record(image, segments, info if clip is None else info | {"clip": clip, "frame": frame})


def store(folder, records, kind="image", classes=CLASSES, split="train"):
    meta = {"dataset": "drawn", "split": split, "kind": kind, "classes": classes}
    return stores.open(stores.write(folder / f"{split}.lmdb", records, meta))


def slots(segments, num_slots, keep=None, vectors=None):
    """Slots with these segments [M R R]; 255: none has the pixel."""
    segments = np.asarray(segments, np.uint8)
    keep = np.ones((len(segments), num_slots), bool) if keep is None else np.asarray(keep)
    vectors = np.zeros((*keep.shape, 2), np.float16) if vectors is None else vectors
    return SimpleNamespace(slots=vectors, keep=keep, segments=segments)


def rows(*labels, size=16):
    """A map whose rows of pixels have these numbers, in equal stripes."""
    return np.repeat(np.array(labels, np.uint8), size // len(labels))[:, None].repeat(size, 1)
