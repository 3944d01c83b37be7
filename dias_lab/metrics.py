"""ARI, FG-ARI, mBO and mIoU of segments, all from one confusion matrix per image.

Sources: the adjusted Rand index is Hubert and Arabie 1985; FG-ARI drops the background's pixels (Greff et al. 2019,
arXiv:1903.00450); mBO, the mean best overlap, follows Seitzer et al. 2023 (DINOSAUR, arXiv:2209.14860). Published
numbers differ by conventions more than by methods: how void, overlap and background count. Those conventions are named
here after the releases that use them (Genera1Z/DIAS v4 and v1, gkakogeorgiou/spot,
amazon-science/object-centric-learning-framework, martius-lab/videosaur). The arithmetic is exact in all of them: the
releases of Genera1Z multiply pair counts in int64, which overflows at 256x256 pixels and lifts a collapsed model's ARI.

Axes: B images, H W pixels, N predicted segments, S true segments. A clip of F frames is one image of F*H rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dias_lab.config import nearest
from dias_lab.trace import BACKGROUND, OVERLAP, VOID

LABELS = 256
MAX_PREDICTED = 65535
CHUNK_CELLS = 2**24  # of the confusion matrices that are in memory at once: 128 MiB of int64
CHUNK_PIXELS = 2**18  # per pass: small temporaries stay in cache, and the allocator reuses them


@dataclass(frozen=True)
class Protocol:
    """How the pixels that are not plainly an object count."""

    crowds: bool  # crowd regions are objects, and overlap those beneath them; or they are left out (`data.store.thing_map`)
    void: Literal["ignore", "background"]  # no true label there, or it is background
    void_in_predicted_area: bool  # ignored void still enlarges the predicted segment in IoU
    overlap: Literal["void", "ignore"]  # treated as void is, or left out of everything
    background_in_iou: bool  # background is one of the true segments in mBO and mIoU
    empty_ari: float  # the ARI of no pixels: what FG-ARI is without foreground; NaN leaves the image out
    overlapped_ari: float  # the same where objects overlap so much that none has a pixel of its own


PROTOCOLS = {
    "dias": Protocol(True, "ignore", True, "void", True, empty_ari=np.nan, overlapped_ari=np.nan),  # Genera1Z/DIAS v3, v4
    "dias-v1": Protocol(True, "background", False, "void", True, empty_ari=np.nan, overlapped_ari=np.nan),  # v1 and v2
    "spot": Protocol(True, "background", False, "ignore", False, empty_ari=1.0, overlapped_ari=1.0),
    "oclf": Protocol(True, "ignore", False, "ignore", False, empty_ari=1.0, overlapped_ari=1.0),
    # as it scores COCO: an image is left out if it has no masks, which is asked before pixels are ignored
    "videosaur": Protocol(False, "background", False, "ignore", False, empty_ari=np.nan, overlapped_ari=1.0),
}


def named(protocol: "str | Protocol") -> Protocol:
    """The protocol of that name. Raises ValueError if there is none."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}{nearest(protocol, PROTOCOLS)}")
    return PROTOCOLS[protocol]


def segmentation_scores(
    predicted: Int[Tensor, "B H W"], true: Int[Tensor, "B H W"], protocol: str | Protocol = "dias",
    classes: Int[Tensor, "B H W"] | None = None,
) -> dict[str, Float[Tensor, "B"]]:  # fmt: skip
    """Scores of each image, as fractions; NaN where a score is undefined under the protocol.

    `predicted` has any labels from 0 to 65535, which need not be consecutive. `true` has 0 background, 1 to 253 objects,
    254 overlap, 255 void; `classes` is a map of semantic classes with the same special labels. Tensors on any device,
    or numpy arrays. `protocol` is a name in PROTOCOLS, or a Protocol.

    Returns float64 tensors [B] on the CPU: "ari", "fg_ari", "mbo", "miou", and with `classes` "mbo_class".

    Raises ValueError for an unknown protocol, maps that are not integer [B H W] of one shape, and labels out of range.
    """
    protocol = named(protocol)
    predicted = _label_map("predicted", predicted)
    num_predicted = _check_range("predicted", predicted, MAX_PREDICTED, "arg-max the maps first") + 1
    maps = {"true": true} if classes is None else {"true": true, "classes": classes}
    for name, labels in maps.items():
        labels = maps[name] = _label_map(name, labels)
        if labels.shape != predicted.shape:
            shapes = f"predicted is {list(predicted.shape)}, {name} is {list(labels.shape)}"
            raise ValueError(f"{shapes}: resize one to the other, labels by nearest neighbour")
        _check_range(name, labels, VOID, "0 is background, 1 to 253 are segments, 254 overlap, 255 void")

    step = max(1, min(CHUNK_CELLS // (num_predicted * LABELS), CHUNK_PIXELS // predicted[0].numel()))  # images at once
    parts = []
    for start in range(0, len(predicted), step):
        some = slice(start, start + step)
        counts = {name: confusion(predicted[some], labels[some], num_predicted) for name, labels in maps.items()}
        scores = _scores(counts["true"], protocol)
        if classes is not None:
            scores["mbo_class"] = _overlap_scores(*_counted(counts["classes"], protocol), protocol)[0]
        parts.append(scores)
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def _label_map(name: str, labels) -> Int[Tensor, "B H W"]:
    labels = torch.as_tensor(labels)
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise ValueError(f"{name} must be integer labels, got {labels.dtype}: arg-max it, or cast with .long()")
    if labels.ndim != 3 or 0 in labels.shape:
        raise ValueError(f"{name} must be [B H W] with at least one pixel, got shape {list(labels.shape)}")
    if labels.dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64):  # torch computes little with these
        labels = labels.long()
    return labels


def _check_range(name: str, labels: Int[Tensor, "B H W"], largest: int, hint: str) -> int:
    """The largest label, or ValueError if any is outside 0..largest."""
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high > largest:
        wrong = low if low < 0 else high
        image = int((labels == wrong).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"{name} has label {wrong} in image {image}, outside 0 to {largest}: {hint}")
    return high


def confusion(predicted: Int[Tensor, "B H W"], true: Int[Tensor, "B H W"], num_predicted: int) -> np.ndarray:
    """Pixels of each pair of labels: int64 [B N 256]. In int32, which is fastest: at most CHUNK_CELLS of them at once."""
    size = num_predicted * LABELS
    true = true.to(predicted.device)
    cell = torch.add(true.flatten(1).int(), predicted.flatten(1).int(), alpha=LABELS)  # [B H*W]
    cell += torch.arange(len(cell), dtype=torch.int32, device=cell.device)[:, None] * size
    count = torch.bincount(cell.flatten(), minlength=len(cell) * size)
    return count.view(len(cell), num_predicted, LABELS).cpu().numpy()


def _counted(count: np.ndarray, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """The protocol's pixels per pair, int64 [B N S], column 0 being background, and its predicted areas, int64 [B N]."""
    void = count[..., VOID]
    if protocol.overlap == "void":
        void = void + count[..., OVERLAP]
    pairs = count[..., :OVERLAP]
    present = pairs.any(axis=(0, 1))
    present[BACKGROUND] = True
    pairs = pairs[..., present]  # a copy
    if protocol.void == "background":
        pairs[..., BACKGROUND] += void
    area = pairs.sum(axis=2)
    if protocol.void == "ignore" and protocol.void_in_predicted_area:
        area = area + void
    return pairs, area


def _scores(count: np.ndarray, protocol: Protocol) -> dict[str, np.ndarray]:
    pairs, area = _counted(count, protocol)
    mbo, miou = _overlap_scores(pairs, area, protocol)
    empty = np.where(count[..., OVERLAP].any(axis=1), protocol.overlapped_ari, protocol.empty_ari)  # [B]
    ari, fg_ari = (_adjusted_rand(part, empty) for part in (pairs, pairs[..., 1:]))
    return {"ari": ari, "fg_ari": fg_ari, "mbo": mbo, "miou": miou}


def _adjusted_rand(pairs: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Adjusted Rand index [B] of int64 counts [B N S]; `empty` where there are none.

    Sums of pairs are exact in int64 up to 3e9 pixels. Their product is not, at 256x256 already; hence the division first.
    """

    def ordered_pairs(count):
        return count * (count - 1)

    total = pairs.sum(axis=(1, 2))
    together = ordered_pairs(pairs).sum(axis=(1, 2)).astype(float)
    by_prediction = ordered_pairs(pairs.sum(axis=2)).sum(axis=1).astype(float)
    by_truth = ordered_pairs(pairs.sum(axis=1)).sum(axis=1).astype(float)
    expected = by_prediction * (by_truth / np.maximum(ordered_pairs(total), 1))
    possible = (by_prediction + by_truth) / 2 - expected
    trivial = possible == 0  # both are one segment, or all single pixels: they agree
    score = np.where(trivial, 1.0, (together - expected) / np.where(trivial, 1.0, possible))
    return np.where(total == 0, empty, score)


def _overlap_scores(pairs: np.ndarray, area: np.ndarray, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """mBO and mIoU, both [B]: a mean over the true segments that have pixels; NaN where none has."""
    if not protocol.background_in_iou:
        pairs = pairs[..., 1:]
    true_area = pairs.sum(axis=1)  # [B S]
    union = area[:, :, None] + true_area[:, None, :] - pairs
    iou = pairs / np.maximum(union, 1)  # [B N S]; 0 where both are empty
    exists = true_area > 0
    mbo, miou = np.full(len(iou), np.nan), np.full(len(iou), np.nan)
    for image in np.flatnonzero(exists.any(axis=1)):
        table = iou[image][:, exists[image]]
        mbo[image] = table.max(axis=0).mean()
        miou[image] = table[linear_sum_assignment(table, maximize=True)].sum() / table.shape[1]
    return mbo, miou
