"""Why a segmentation is wrong: a number for each way to fail, from 0 (not at all) to 1, one image at a time.

split       objects in several slots: the share of an object's pixels outside the slot that holds most of it
merge       several objects in one slot: in an object's main slot, the share of object pixels that are other objects'
leak        objects in the background's slots: the share of an object's pixels in slots that are mostly background
background  the background in several slots: its share outside the slot that holds most of it
position    the same tiles in every picture: the mean ARI of these segments with those of other pictures

The first three are means over the picture's objects. Void and overlap pixels count nowhere.

Axes: B images, H W pixels, N predicted segments, S true segments.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from dias_lab.metrics import OVERLAP, confusion, segmentation_scores

CAUSES = ("split", "merge", "leak", "background", "position")


def failure_scores(predicted: Int[Tensor, "B H W"], true: Int[Tensor, "B H W"], others: int = 8) -> pd.DataFrame:
    """A row an image, a column for each cause; NaN without objects, without background, without another picture.

    `others`: with how many other pictures each is compared for `position`. Segments are tensors or numpy arrays.
    """
    predicted, true = torch.as_tensor(predicted).cpu().long(), torch.as_tensor(true).cpu().long()
    if predicted.ndim != 3 or predicted.shape != true.shape:
        raise ValueError(f"both segments must be [B H W], got {list(predicted.shape)} and {list(true.shape)}")
    table = pd.DataFrame([_causes(*pair) for pair in zip(predicted, true)])
    table["position"] = _position(predicted, min(others, len(predicted) - 1))
    return table[list(CAUSES)]


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


def _position(predicted: Int[Tensor, "B H W"], others: int):
    """The mean ARI of each picture's segments with those of the next `others` pictures; below chance counts as 0."""
    if others < 1:
        return np.nan
    alike = [segmentation_scores(predicted, predicted.roll(-k, dims=0))["ari"] for k in range(1, others + 1)]
    return torch.stack(alike).mean(dim=0).clamp_min(0).numpy()
