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
from pycocotools import mask

from dias_lab import files
from dias_lab.trace import AttentionTrace
from dias_lab.viz import palette

NOTE = "label and category_id n + 1 are slot n; 0 is no slot and does not occur"


def stop_of(trace: AttentionTrace, name: str | None):
    """The map that a name stands for: an iteration counted from 1, "decoder", or None for the last of all.

    Gives an index from 0, or "decoder". Raises ValueError for what the trace does not have.
    """
    if name is None:
        return trace.stops[-1]
    stops = {"decoder" if stop == "decoder" else str(stop + 1): stop for stop in trace.stops}
    if name not in stops:
        raise ValueError(f"the trace has no map {name!r}; it has {', '.join(stops)}")
    return stops[name]


def coco(trace: AttentionTrace, which) -> dict:
    """COCO annotations of the segments of `trace.maps_of(which)`, as JSON can hold them.

    images       id, file_name (the name in the trace), label_file (the PNG), height, width
    annotations  one per image and slot that has a pixel: image_id, category_id, slot, segmentation (compressed RLE), area
                 (pixels), bbox [x y width height], iscrowd 0
    categories   one per slot
    """
    images, annotations = [], []
    for number, (name, labels) in enumerate(zip(trace.names, trace.segments_of(which), strict=True)):
        height, width = labels.shape
        safe_name = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80].strip("._")
        label_file = f"{number:05d}-{safe_name}.png"
        images.append({"id": number, "file_name": name, "label_file": label_file, "height": height, "width": width})
        for slot in np.unique(labels).tolist():
            code = mask.encode(np.asfortranarray(labels == slot, np.uint8))
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": slot + 1, "slot": slot, "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
                "area": int(mask.area(code)), "bbox": mask.toBbox(code).tolist(),
            })  # fmt: skip
    return {
        "info": {"description": NOTE, "map": which if which == "decoder" else f"iteration {which + 1}", "about": trace.about},
        "images": images, "annotations": annotations,
        "categories": [{"id": slot + 1, "name": f"slot {slot}"} for slot in range(trace.num_slots)],
    }  # fmt: skip


def export(trace: AttentionTrace, folder, which) -> Path:
    """Write the label PNGs and segments.json into `folder`; gives the path of the latter, which is written last.

    The PNGs are 8-bit palette images in the slots' colours, [H W] of the trace's images.
    """
    folder, described = Path(folder), coco(trace, which)
    colours = bytes(3) + palette.slot_colours(255).tobytes()
    for image, labels in zip(described["images"], trace.segments_of(which), strict=True):
        picture = Image.fromarray(labels + np.uint8(1))
        picture.putpalette(colours)  # turns it into a palette image of the same numbers
        with files.replacing(folder / image["label_file"]) as file:
            picture.save(file, "PNG")
    files.write_text(folder / "segments.json", json.dumps(described))
    return folder / "segments.json"
