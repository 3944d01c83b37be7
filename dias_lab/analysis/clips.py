"""What breaks identity: what happens to an object between one frame and the next that shows it, and whether its slot changes.

The first of these kinds that fits: "exit", it is away in between or small before or after, and touches the picture's border;
"occluded", the same where another object's box meets its own; "crossing", another's box meets its own; "camera", the camera
moves, as is known from elsewhere; "none". Small is less than a share of its largest area in the clip. Boxes are of what is
visible, and meet where they share pixels or sides; that of an object that is away is its last one.

Axes: F frames, H W pixels, S objects.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from scipy.ndimage import find_objects
from torch import Tensor

from dias_lab.analysis.evaluate import maps_of
from dias_lab.data.scenes import clip
from dias_lab.methods import Method
from dias_lab.metrics import VOID, best_slots
from dias_lab.trace import LAST_SEGMENT

KINDS = ("exit", "occluded", "crossing", "camera", "none")


def events(segments: Int[np.ndarray, "F H W"], camera: bool = False, small: float = 0.6) -> pd.DataFrame:
    """A row for each object and each two frames that show it, with none in between that does: object, before, frame, event.

    Frames that are void throughout are left out. `camera`: whether it moves in this clip.
    """
    frames = np.flatnonzero((segments != VOID).any(axis=(1, 2)))
    areas = [np.bincount(segments[one].ravel(), minlength=256)[1 : LAST_SEGMENT + 1] for one in frames]
    areas, boxes = np.reshape(areas, (-1, LAST_SEGMENT)), np.reshape([*map(_boxes, segments[frames])], (-1, LAST_SEGMENT, 4))
    border = ((boxes[..., :2] == 0) | (boxes[..., 2:] == segments.shape[1:])).any(axis=2)
    rows = []
    for one in range(LAST_SEGMENT):
        shown = np.flatnonzero(areas[:, one])
        for first, last in zip(shown, shown[1:]):
            during, ends = boxes[first : last + 1], [first, last]
            own, others = during[:, [one]], np.delete(during, one, axis=1)
            own = np.where(np.isnan(own), own[0], own)
            met = ((own[..., :2] <= others[..., 2:]) & (others[..., :2] <= own[..., 2:])).all(axis=2).any()
            hidden = last - first > 1 or areas[ends, one].min() < small * areas[:, one].max()
            fits = zip(KINDS, (hidden and border[ends, one].any(), hidden and met, met, camera, True))
            rows.append((one + 1, frames[first], frames[last], next(kind for kind, fit in fits if fit)))
    return pd.DataFrame(rows, columns=["object", "before", "frame", "event"]).astype({"object": int, "before": int, "frame": int})


def _boxes(segments: Int[np.ndarray, "H W"]) -> list[list[float]]:
    """By object, from 1 on: top, left, bottom, right, the last two outside, in pixels; NaN where there is none."""
    places = find_objects(segments.astype(int), LAST_SEGMENT)  # a pair of slices each, or None
    return [[getattr(one, end) for end in ("start", "stop") for one in place] if place else [np.nan] * 4 for place in places]


def switches_in(model: Method, difficulty: str, seeds: Iterable[int]) -> pd.DataFrame:
    """The `switches` of the method's `evaluated_map` in a world's built-in clips, of all seeds together; "world" names it."""
    predict, found = maps_of(model, model.config.seed), []
    for seed in seeds:
        pictures, segments = (torch.from_numpy(part) for part in clip(seed, difficulty=difficulty))
        batch = {"image": pictures.permute(0, 3, 1, 2)[None], "info": {"clip": torch.tensor([0])}}
        found.append(switches(predict(batch)[model.evaluated_map][0], segments, camera=difficulty == "camera"))
    return pd.concat(found).assign(world=difficulty)


def switches(predicted: Int[Tensor, "F H W"], true: Int[Tensor, "F H W"], camera: bool = False) -> pd.DataFrame:
    """The `events` of a clip, and of each whether the object's slot changed: "switched", 0.0 or 1.0."""
    found, (objects, slots) = events(true.numpy(), camera), best_slots(predicted, true)
    column = np.searchsorted(objects, found["object"])
    return found.assign(switched=(slots[found["before"], column] != slots[found["frame"], column]).astype(float))
