"""J and F of masks in one picture: how well regions agree, and how well contours do.

Source: Perazzi et al. 2016 (DAVIS, CVPR), the measures J and F. `metrics.region_and_contour` has them over a clip.

Axes: N predicted masks, S true ones, H W pixels.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt


def region_and_contour_of(
    predicted: Bool[np.ndarray, "N H W"], true: Bool[np.ndarray, "S H W"], radius: float
) -> tuple[Float[np.ndarray, "N S"], Float[np.ndarray, "N S"]]:
    """J, the IoU, and F, from the shares of each contour that lie within `radius` pixels of the other; 1 where both are empty."""
    areas = [masks.reshape(-1, masks.shape[1] * masks.shape[2]).astype(np.float32) for masks in (predicted, true)]
    shared = areas[0] @ areas[1].T
    union = areas[0].sum(1)[:, None] + areas[1].sum(1) - shared
    j = np.where(union > 0, shared / np.maximum(union, 1), 1.0)
    (lines, near), (true_lines, near_true) = (_contours(masks, radius) for masks in (predicted, true))
    length, true_length = lines.sum(1)[:, None], true_lines.sum(1)
    precision = lines @ near_true.T / np.maximum(length, 1)
    recall = near @ true_lines.T / np.maximum(true_length, 1)
    f = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return j, np.where(length + true_length > 0, f, 1.0)


def _contours(masks: Bool[np.ndarray, "N H W"], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N H*W]: pixels whose right, lower or diagonal neighbour is on the other side, and those near such a pixel."""
    wide = np.pad(masks, ((0, 0), (0, 1), (0, 1)), "edge")
    lines = (masks != wide[:, :-1, 1:]) | (masks != wide[:, 1:, :-1]) | (masks != wide[:, 1:, 1:])
    near = np.array([distance_transform_edt(~one) <= radius if one.any() else one for one in lines])
    return tuple(part.reshape(-1, masks.shape[1] * masks.shape[2]).astype(np.float32) for part in (lines, near))
