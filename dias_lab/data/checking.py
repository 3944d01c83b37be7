"""What is checked of a store's items: of each alone, that its parts fit together; of frames, that they make up clips.

Axes: H W pixels of a picture.
"""

import math

import numpy as np
from PIL import Image

from dias_lab.data import pictures
from dias_lab.data.lmdb_file import StoreError
from dias_lab.trace import BACKGROUND, LAST_SEGMENT

BY_SEGMENT = {"things": bool, "classes": int, "crowds": bool}  # fields of info: a value for each segment
SEGMENTS = range(1, LAST_SEGMENT + 1)


class ClipIndex:
    """Which items make up each clip, from one frame's info after another. A store of images has none."""

    def __init__(self, kind: str):
        self.video, self.clips, self.names = kind == "video", [], set()
        self.last = None, 0, None  # clip, frame and size of the item before

    def add(self, info: dict):
        """Raises StoreError where a clip is interrupted by another, its numbers do not rise, or its frames differ in size."""
        if not self.video:
            return
        name, number, size = info.get("clip"), info.get("frame"), (info["width"], info["height"])
        if not isinstance(name, str) or type(number) is not int:
            raise StoreError(f"a frame needs info['clip'], a text, and info['frame'], a whole number; got {name!r}, {number!r}")
        (clip, frame, pixels), which = self.last, f"frame {number} of clip {name!r}"
        if name != clip:
            if name in self.names:
                raise StoreError(f"{which} comes after another clip; the frames of a clip must be together")
            self.clips.append([sum(self.clips[-1]) if self.clips else 0, 0])
            self.names.add(name)
        elif number <= frame:
            raise StoreError(f"{which} follows frame {frame}; the numbers must rise")
        elif size != pixels:
            wrong = f"{which} has {size} pixels (width, height), the one before {pixels}"
            raise StoreError(f"{wrong}. Resize the frames, or make two clips of them")
        self.clips[-1][1] += 1
        self.last = name, number, size

    def meta(self) -> dict:
        return {"clips": self.clips} if self.video else {}


def check(image: bytes, segments: bytes | np.ndarray | None, info: dict) -> tuple[int, int]:
    """Decode a record's parts and compare them; return width and height in pixels. Raises: StoreError."""
    size = _decoded("image", image).size
    stated = info.get("width", size[0]), info.get("height", size[1])
    if stated != size:
        raise StoreError(f"the image has {size} pixels (width, height), its info says {stated}")
    if "source" not in info:
        raise StoreError(f"its info has no `source`, which says where it comes from; it has {sorted(info)}")
    if segments is None:
        labels = np.zeros(size[::-1], np.uint8)
    elif isinstance(segments, np.ndarray):
        labels = segments
    else:
        labels = np.asarray(_decoded("segments", segments))
        if segments[24:26] != b"\x08\x00":  # PNG header: bit depth, colour type
            raise StoreError("the segments are not a PNG of 8 bits and one channel without palette")
    if labels.dtype != np.uint8 or labels.shape != size[::-1]:
        raise StoreError(f"the segments are {labels.dtype} {labels.shape}, the image needs uint8 {size[::-1]}")
    used = set(np.flatnonzero(np.bincount(labels.ravel())[1 : LAST_SEGMENT + 1]) + 1)
    for field, kind in BY_SEGMENT.items():
        values = info.get(field) or {}
        if set(values) != used and (values or field == "things"):
            raise StoreError(f"the map has the segments {sorted(map(int, used))}, info[{field!r}] has {sorted(values)}")
        if any(type(value) is not kind for value in values.values()):
            raise StoreError(f"info[{field!r}] is {values}; the values must be {kind.__name__}")
    beneath = info.get("beneath") or {}
    if not (set(beneath) <= used and set(beneath.values()) <= used | {BACKGROUND}):
        raise StoreError(f"the map has the segments {sorted(map(int, used))}, info['beneath'] is {beneath}")
    for segment, box in (info.get("boxes") or {}).items():
        if not (segment in SEGMENTS and _is_box(box)):
            wrong = f"info['boxes'] has {box!r} for segment {segment!r}"
            raise StoreError(f"{wrong}; it needs left, top, right, bottom with left < right and top < bottom")
    return size


def _is_box(box) -> bool:
    numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    return numbers and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]


def _decoded(name: str, blob: bytes) -> Image.Image:
    if not blob.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        start = f"it begins with {blob[:8]!r} and is neither JPEG nor PNG"
        raise StoreError(f"the {name} cannot be decoded: {start}")
    try:
        return pictures.decoded(blob, f"the {name}", pictures.STORED)
    except pictures.PictureError as error:
        raise StoreError(str(error)) from error
