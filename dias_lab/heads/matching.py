"""The objects of a store, and which slot has found each of them.

Source: Genera1Z/RandSF.Q and SmoothSA match slots and true segments by IoU. There the values of a one-hot mask pass for numbers
of segments, so that only the first two objects of an image can be found, and a box ends at the index of its last pixel, so that
one of a single pixel has no area. Here all objects of an image or frame are matched, and right and bottom are outside.

Axes: B items (images or frames), M items of a store, N slots, S objects, R pixels of the square.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from dias_lab.data import store as stores
from dias_lab.data.clips import Clips
from dias_lab.data.dataset import squares
from dias_lab.metrics import confusion, named
from dias_lab.trace import OVERLAP

BOX = ["left", "top", "right", "bottom"]  # in shares of the square's side; right and bottom are outside


def objects(store, slots, config, class_ids, limit: int = 0) -> pd.DataFrame:
    """A row for each thing of the first `limit` images, or clips (0: all), that has pixels in the centre square.

    item; unit, the image or clip that it is of; segment; label, the place of its class in `class_ids`, -1 where it is not known;
    its box, `BOX`; slot, which has found it, -1 where none has; iou, that of their segments. Void and overlap belong to nobody;
    whether crowds are things, `config.protocol` says. ValueError where `slots` (analysis/slots.py) are not of so many items.
    """
    units = np.arange(len(store))
    if store.meta["kind"] == "video":
        units = np.repeat(np.arange(len(Clips(store))), [len(clip) for clip in Clips(store)])
    if len(slots.keep) != len(units):
        raise ValueError(f"{store.path} has {len(units)} items, and the slots are of {len(slots.keep)}: extract them anew")
    units = units[units < limit] if limit else units
    numbers, rows, R = {one: place for place, one in enumerate(class_ids)}, [], config.image_size
    for batch in squares(store, config, len(units), crowds=named(config.protocol).crowds):
        items, true = batch["info"]["item"].tolist(), batch["segments"].numpy()
        for item, own, ious, areas in zip(items, true, *overlaps(slots.segments[items], true, slots.keep.shape[1])):
            shown, boxes, classes = np.flatnonzero(areas), stores.boxes(own), store[item].info.get("classes") or {}
            iou = ious[:, shown]
            found = match(iou, slots.keep[item], config.match_iou).tolist()
            for column, (segment, slot) in enumerate(zip((shown + 1).tolist(), found)):
                about = item, units[item], segment, numbers.get(classes.get(segment), -1)
                rows.append((*about, *np.divide(boxes[segment], R), slot, iou[slot, column] if slot >= 0 else np.nan))
    kinds = {"item": int, "unit": int, "segment": int, "label": int, **dict.fromkeys(BOX, float), "slot": int, "iou": float}
    return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)


def overlaps(
    predicted: Int[np.ndarray, "B R R"], true: Int[np.ndarray, "B R R"], num_slots: int
) -> tuple[Float[np.ndarray, "B N 253"], Int[np.ndarray, "B 253"]]:
    """IoU of each slot with the true segments 1 to 253, and the pixels of these. Pixels of overlap and void count nowhere;
    those that no slot has (any number from N on) count for the true segments."""
    predicted = torch.from_numpy(np.minimum(predicted, num_slots))
    pairs = confusion(predicted, torch.from_numpy(true), num_slots + 1)[..., :OVERLAP]  # [B N+1 254]
    area = pairs.sum(axis=1)
    union = pairs.sum(axis=2, keepdims=True) + area[:, None] - pairs
    return (pairs / np.maximum(union, 1))[:, :num_slots, 1:], area[:, 1:]


def match(iou: Float[np.ndarray, "N S"], keep: Bool[np.ndarray, "N"], least: float) -> Int[np.ndarray, "S"]:
    """The slot of each object, -1 where it has none: kept ones, in pairs whose IoU is largest in all (Hungarian), each above
    `least`."""
    iou, slots = np.where(keep[:, None], iou, 0), np.full(iou.shape[1], -1)
    pairs = linear_sum_assignment(iou, maximize=True)
    taken = iou[pairs] > least
    slots[pairs[1][taken]] = pairs[0][taken]
    return slots


def targets(found: pd.DataFrame, keep: Bool[np.ndarray, "M N"], background: int | None = None) -> dict[str, np.ndarray]:
    """What each slot is to say: label int [M N], -1 where nothing is asked, and true_boxes float32 [M N 4] of the objects that
    slots have found. `background` is asked of kept slots that have found none."""
    label, boxes = np.where(keep & (background is not None), background or 0, -1), np.zeros((*keep.shape, 4), np.float32)
    found = found[found["slot"] >= 0]
    place = found["item"].to_numpy(), found["slot"].to_numpy()
    label[place], boxes[place] = found["label"], found[BOX]
    return {"label": label, "true_boxes": boxes}
