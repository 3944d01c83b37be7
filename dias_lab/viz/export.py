"""A trace's segments for other tools: a label PNG per image, and COCO annotations with run-length encoded masks.

Label 0 means "no slot" and never occurs; label n + 1 is slot n, in the PNG as in `category_id`, so that a tool that
takes 0 for background keeps every slot. Which slot is the background is not known: slots have no names.

Axes: B images, H W pixels.
"""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from dias_lab.trace import AttentionTrace, replacing

NOTE = "label and category_id n + 1 are slot n; 0 is no slot and does not occur"


def stop_of(trace: AttentionTrace, name: str | None):
    """The map that a name stands for: an iteration counted from 1, "decoder", or None for the last of all.

    Gives an index from 0, or "decoder". Raises ValueError for what the trace does not have.
    """
    if name is None:
        return trace.stops[-1]
    which = int(name) - 1 if re.fullmatch(r"[0-9]{1,9}", name) else name
    if which not in trace.stops:
        names = ["decoder" if stop == "decoder" else str(stop + 1) for stop in trace.stops]
        raise ValueError(f"the trace has no map {name!r}; it has {', '.join(names)}")
    return which


def coco(trace: AttentionTrace, which) -> dict:
    """COCO annotations of the segments of `trace.maps_of(which)`, as JSON can hold them.

    images       id, file_name (the name in the trace), label_file (the PNG), height, width
    annotations  one per image and slot that has a pixel: image_id, category_id, slot, segmentation (compressed RLE), area
                 (pixels), bbox [x y width height], iscrowd 0
    categories   one per slot
    """
    from pycocotools import mask

    images, annotations = [], []
    for number, (name, labels) in enumerate(zip(trace.names, trace.segments_of(which), strict=True)):
        height, width = labels.shape
        images.append({
            "id": number, "file_name": name, "label_file": _file_name(number, name), "height": height, "width": width,
        })  # fmt: skip
        for slot in np.unique(labels).tolist():
            code = mask.encode(np.asfortranarray(labels == slot, np.uint8))
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": slot + 1, "slot": slot, "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
                "area": int(mask.area(code)), "bbox": mask.toBbox(code).tolist(),
            })  # fmt: skip
    return {
        "info": {"description": NOTE, "map": which if which == "decoder" else f"iteration {which + 1}", "about": trace.about},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": slot + 1, "name": f"slot {slot}"} for slot in range(trace.num_slots)],
    }


def export(trace: AttentionTrace, folder, which) -> Path:
    """Write the label PNGs and segments.json into `folder`; gives the path of the latter, which is written last.

    The PNGs are 8-bit palette images in the slots' colours, [H W] of the trace's images.
    """
    from dias_lab.viz import palette

    folder, described = Path(folder), coco(trace, which)
    colours = np.concatenate([np.zeros((1, 3), np.uint8), palette.slot_colours(255)])
    for image, labels in zip(described["images"], trace.segments_of(which), strict=True):
        picture = Image.fromarray(labels + np.uint8(1))
        picture.putpalette(colours.tobytes())  # turns it into a palette image of the same numbers
        with replacing(folder / image["label_file"]) as file:
            picture.save(file, "PNG")
    with replacing(folder / "segments.json") as file:
        file.write(json.dumps(described).encode())
    return folder / "segments.json"


def _file_name(number: int, name: str) -> str:
    """A file name that is safe and one image's own, whatever the image is called."""
    return f"{number:05d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80].strip('._')}.png"
