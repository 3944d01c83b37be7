"""Why a segmentation is wrong: a number for each way to fail, from 0 (not at all) to 1, one image at a time.

split       objects in several slots: the share of an object's pixels outside the slot that holds most of it
part        objects cut where their parts meet, a part taken alone or lost: on an object's pixels the ARI of slots and
            parts, 1 for exactly its parts, 0 for one slot and for cuts anywhere else; only where parts are known
merge       several objects in one slot: in an object's main slot, the share of object pixels that are other objects'
leak        objects in the background's slots: the share of an object's pixels in slots that are mostly background
background  the background in several slots: its share outside the slot that holds most of it
position    the same tiles in every picture: the mean ARI of these segments with those of other pictures

Split, part, merge and leak are means over the picture's objects. Void and overlap pixels count nowhere.

Axes: B images, H W pixels, N predicted segments, S true segments.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dias_lab.data import scenes
from dias_lab.metrics import OVERLAP, confusion, segmentation_scores

CAUSES = ("split", "merge", "leak", "background", "position")  # and "part" after "split", where parts are known


def failure_scores(
    predicted: Int[Tensor, "B H W"],
    true: Int[Tensor, "B H W"],
    others: int = 8,
    parts: Int[Tensor, "B H W"] | None = None,
) -> pd.DataFrame:
    """A row an image, a column for each cause; NaN without objects, without background, without another picture.

    `others`: with how many other pictures each is compared for `position`. `parts`: which part of an object each pixel
    belongs to (`toy_parts`); with it there is a column "part". Segments are tensors or numpy arrays.
    """
    predicted, true = torch.as_tensor(predicted).cpu().long(), torch.as_tensor(true).cpu().long()
    if predicted.ndim != 3 or predicted.shape != true.shape:
        raise ValueError(f"both segments must be [B H W], got {list(predicted.shape)} and {list(true.shape)}")
    table = pd.DataFrame([_causes(*pair) for pair in zip(predicted, true)])
    table["position"] = _position(predicted, min(others, len(predicted) - 1))
    if parts is None:
        return table[list(CAUSES)]
    table["part"] = [_part(*three) for three in zip(predicted, true, torch.as_tensor(parts).cpu().long(), strict=True)]
    return table[["split", "part", *CAUSES[1:]]]


def toy_parts(store, images: UInt8[Tensor, "B 3 H W"]) -> Int[Tensor, "B H W"] | None:
    """The parts of a store's first items, drawn anew, for no store holds them; None but for toys of that size."""
    meta = store.meta
    difficulty = meta.get("difficulty", {})
    drawn = meta.get("source") == "dias_lab.data.scenes" and "kinds" in difficulty  # shapes have no parts
    if not drawn or images.shape[-1] != scenes.SIZE:
        return None
    first, difficulty = scenes.SPLITS[meta["split"]], scenes.Difficulty(**difficulty)
    items = [scenes.item(first + number, difficulty) for number in range(len(images))]
    if not all((one.image == image).all() for one, image in zip(items, images.permute(0, 2, 3, 1).cpu().numpy())):
        return None
    return torch.from_numpy(np.stack([one.parts for one in items]))


def _causes(predicted: Int[Tensor, "H W"], true: Int[Tensor, "H W"]) -> dict[str, float]:
    count = confusion(predicted[None], true[None], int(predicted.max()) + 1)[0, :, :OVERLAP]  # [N S]
    background, objects = count[:, 0], count[:, 1:][:, count[:, 1:].any(axis=0)]
    row = dict.fromkeys(CAUSES, np.nan)
    if background.any():
        row["background"] = 1 - background.max() / background.sum()
    if objects.size:
        area, main = objects.sum(axis=0), objects.argmax(axis=0)
        held = objects[main, np.arange(len(main))]  # of each object, in its main slot
        mostly_background = background > objects.sum(axis=1)
        row["split"] = (1 - held / area).mean()
        row["merge"] = (1 - held / objects[main].sum(axis=1)).mean()
        row["leak"] = (objects[mostly_background].sum(axis=0) / area).mean()
    return row


def _part(predicted: Int[Tensor, "H W"], true: Int[Tensor, "H W"], parts: Int[Tensor, "H W"]) -> float:
    """Mean over the objects of several parts; an ARI below chance counts as 0."""
    objects = [parts * (true == label) for label in true.unique().tolist() if 0 < label < OVERLAP]
    objects = [one for one in objects if len(one.unique()) > 2]  # 0 is what is not the object
    if not objects:
        return np.nan
    agree = segmentation_scores(predicted.expand(len(objects), -1, -1), torch.stack(objects))["fg_ari"]
    return agree.clamp_min(0).mean().item()


def _position(predicted: Int[Tensor, "B H W"], others: int):
    """The mean ARI of each picture's segments with those of the next `others` pictures; below chance counts as 0."""
    if others < 1:
        return np.nan
    alike = [segmentation_scores(predicted, predicted.roll(-k, dims=0))["ari"] for k in range(1, others + 1)]
    return torch.stack(alike).mean(dim=0).clamp_min(0).numpy()
