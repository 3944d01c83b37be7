"""ARI, FG-ARI, mBO and mIoU of segments, of images and clips, from one confusion matrix per image; DAVIS's J and F.

Sources: the adjusted Rand index is Hubert and Arabie 1985; FG-ARI drops the background's pixels (Greff et al. 2019,
arXiv:1903.00450); mBO, the mean best overlap, follows Seitzer et al. 2023 (DINOSAUR, arXiv:2209.14860). Published
numbers differ by conventions more than by methods: how void, overlap and background count. Those conventions are named
here after the releases that use them (Genera1Z/DIAS v4 and v1, gkakogeorgiou/spot,
amazon-science/object-centric-learning-framework, martius-lab/videosaur). The arithmetic is exact in all of them: the
releases of Genera1Z multiply pair counts in int64, which overflows at 256x256 pixels and lifts a collapsed model's ARI.

Scores of clips have two levels. Video: the frames of a clip are one set of pixels, so a slot must stay with its object; a
clip of F frames is scored as one image of F*H rows would be. Image: each frame alone.

Axes: B images or clips, F frames, H W pixels, N predicted segments, S true segments.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dias_lab.config import nearest
from dias_lab.contours import region_and_contour_of
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
    maps = _checked({"predicted": predicted, "true": true, "classes": classes}, "B H W")
    parts = [_scores(counts, protocol) for counts in _confusions(maps)]
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def video_scores(
    predicted: Int[Tensor, "B F H W"], true: Int[Tensor, "B F H W"], protocol: str | Protocol = "dias",
    frames: Bool[Tensor, "B F"] | None = None, classes: Int[Tensor, "B F H W"] | None = None,
) -> dict[str, Float[Tensor, "B"]]:  # fmt: skip
    """Scores of each clip at both levels; labels, protocols and errors as in `segmentation_scores`.

    A label of `true`, and of `classes`, means the same throughout a clip. `frames` is False where a frame is padding. Nor
    does a frame count that is void throughout, as one without masks is, unless all of its clip are.

    Returns float64 [B]: "video_ari", "video_fg_ari", "video_mbo", "video_miou", with `classes` "video_mbo_class"; "image_ari"
    and so on, means over the frames where each is defined; "gap", image_fg_ari - video_fg_ari; "switches", how often the best
    slot of an object (`best_slots`) is another than when it was last visible; "switch_rate", their share of all such pairs of
    frames, NaN without any.
    """
    protocol = named(protocol)
    maps = _checked({"predicted": predicted, "true": true, "classes": classes}, "B F H W")
    rows = []
    for clip, used in enumerate(_scored_frames(maps["true"], frames)):
        parts = list(_confusions({name: labels[clip, used] for name, labels in maps.items()}))
        counts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}  # [F N 256]
        video = _scores({name: count.sum(axis=0, keepdims=True) for name, count in counts.items()}, protocol)
        row = {f"video_{name}": float(value[0]) for name, value in video.items()}
        row |= {f"image_{name}": _mean(values) for name, values in _scores(counts, protocol).items()}
        slots = best_slots(maps["predicted"][clip, used], maps["true"][clip, used], protocol)[1]
        seen = [own[own >= 0] for own in slots.T]
        switches, pairs = sum((own[1:] != own[:-1]).sum() for own in seen), sum(max(len(own) - 1, 0) for own in seen)
        row |= {"gap": row["image_fg_ari"] - row["video_fg_ari"], "switches": float(switches)}
        rows.append(row | {"switch_rate": switches / pairs if pairs else np.nan})
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def best_slots(
    predicted: Int[Tensor, "F H W"], true: Int[Tensor, "F H W"], protocol: str | Protocol = "dias"
) -> tuple[np.ndarray, np.ndarray]:
    """The objects of a clip, int [S], and which predicted segment has the largest IoU with each in each frame, int [F S].

    Of equal ones it is the one that the object had before. -1 where the object has no pixel. Errors as above.
    """
    count = np.concatenate([part["true"] for part in _confusions(_checked({"predicted": predicted, "true": true}, "F H W"))])
    iou, exists = (part[..., 1:] for part in _iou(*_counted(count, named(protocol))))  # [F N S] and [F S], no background
    slots, held, seen = np.full(exists.shape, -1), np.zeros(exists.shape[1], int), np.zeros(exists.shape[1], bool)
    for frame, (table, there) in enumerate(zip(iou, exists)):
        stays = seen & (np.take_along_axis(table, held[None], 0)[0] == table.max(axis=0))
        held = np.where(there & ~stays, table.argmax(axis=0), held)
        slots[frame, there], seen = held[there], seen | there
    return np.flatnonzero(count.any(axis=(0, 1))[BACKGROUND + 1 : OVERLAP]) + 1, slots


def region_and_contour(
    predicted: Int[Tensor, "B F H W"], true: Int[Tensor, "B F H W"], frames: Bool[Tensor, "B F"] | None = None,
    tolerance: float = 0.02,
) -> dict[str, Float[Tensor, "B"]]:  # fmt: skip
    """DAVIS's scores of each clip, float64 [B]: "j", the IoU of regions, "f", the F-measure of contours, "jf", their mean.

    Objects and predicted segments are paired so that J + F over the clip is largest. Means over frames, 1 where both are
    absent, then over objects; NaN without any. Contours agree within `tolerance` of the image's diagonal; DAVIS's own code
    takes 0.008. Void and overlap belong to no segment. `frames` and errors are those of `video_scores`.
    """
    maps = _checked({"predicted": predicted, "true": true}, "B F H W")
    radius = np.ceil(tolerance * np.hypot(*maps["true"].shape[2:]))
    rows = []
    for clip, used in enumerate(_scored_frames(maps["true"], frames)):
        segments, labels = (maps[name][clip, used].cpu().numpy().astype(int) for name in ("predicted", "true"))  # [F H W]
        slots, objects = np.unique(segments), np.setdiff1d(labels, [BACKGROUND, OVERLAP, VOID])
        slots = np.pad(slots, (0, max(len(objects) - len(slots), 0)), constant_values=-1)  # the last objects get nothing
        slots, objects = slots[:, None, None], objects[:, None, None]
        pairs = zip(np.where(labels < OVERLAP, segments, -2), labels)
        found = [region_and_contour_of(one == slots, own == objects, radius) for one, own in pairs]
        j, f = np.mean(found, axis=0)  # [N S]
        pairs = linear_sum_assignment(j + f, maximize=True)
        rows.append([_mean(table[pairs]) for table in (j, f, (j + f) / 2)])
    return dict(zip(("j", "f", "jf"), torch.tensor(rows, dtype=torch.float64).unbind(1)))


def _checked(maps: dict, axes: str) -> dict[str, Tensor]:
    """The maps that are given, as tensors. ValueError unless they are integers of one shape and in their ranges."""
    maps = {name: _label_map(name, labels, axes) for name, labels in maps.items() if labels is not None}
    for name, labels in maps.items():
        if labels.shape != maps["predicted"].shape:
            shapes = f"predicted is {list(maps['predicted'].shape)}, {name} is {list(labels.shape)}"
            raise ValueError(f"{shapes}: resize one to the other, labels by nearest neighbour")
        labelled = VOID, "0 is background, 1 to 253 are segments, 254 overlap, 255 void"
        _check_range(name, labels, *((MAX_PREDICTED, "arg-max the maps first") if name == "predicted" else labelled))
    return maps


def _confusions(maps: dict[str, Int[Tensor, "B H W"]]) -> Iterator[dict[str, np.ndarray]]:
    """Of a few images at a time, the pixels of each pair of predicted and other labels, int64 [B N 256]."""
    predicted = maps["predicted"]
    num_predicted = int(predicted.max()) + 1
    step = max(1, min(CHUNK_CELLS // (num_predicted * LABELS), CHUNK_PIXELS // predicted[0].numel()))  # images at once
    for start in range(0, len(predicted), step):
        some = slice(start, start + step)
        yield {name: confusion(predicted[some], maps[name][some], num_predicted) for name in maps if name != "predicted"}


def _scored_frames(true: Int[Tensor, "B F H W"], frames) -> Bool[Tensor, "B F"]:
    """Which frames count. ValueError for a mask of another shape, and where a clip has none."""
    known = (true != VOID).flatten(2).any(2).cpu()
    frames = torch.ones_like(known) if frames is None else torch.as_tensor(frames).cpu()
    if frames.dtype != torch.bool or frames.shape != known.shape or not frames.any(1).all():
        wanted = f"frames must be bool [B F] = {list(known.shape)} with at least one True a clip"
        raise ValueError(f"{wanted}, got {frames.dtype} {frames.tolist()}")
    known &= frames
    return torch.where(known.any(1, keepdim=True), known, frames)


def _mean(values: np.ndarray) -> float:
    """Over those that are defined; NaN without any."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def _label_map(name: str, labels, axes: str) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise ValueError(f"{name} must be integer labels, got {labels.dtype}: arg-max it, or cast with .long()")
    if labels.ndim != len(axes.split()) or 0 in labels.shape:
        raise ValueError(f"{name} must be [{axes}] with at least one pixel, got shape {list(labels.shape)}")
    if labels.dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64):  # torch computes little with these
        labels = labels.long()
    return labels


def _check_range(name: str, labels: Tensor, largest: int, hint: str):
    """ValueError if any label is outside 0..largest."""
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high > largest:
        wrong = low if low < 0 else high
        image = int((labels == wrong).flatten(1).any(dim=1).nonzero()[0])
        kind = "clip" if labels.ndim == 4 else "image"
        raise ValueError(f"{name} has label {wrong} in {kind} {image}, outside 0 to {largest}: {hint}")


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


def _scores(counts: dict[str, np.ndarray], protocol: Protocol) -> dict[str, np.ndarray]:
    """By name [B], from the int64 [B N 256] of the true segments and, where they are there, of classes."""
    count = counts["true"]
    pairs, area = _counted(count, protocol)
    mbo, miou = _overlap_scores(pairs, area, protocol)
    empty = np.where(count[..., OVERLAP].any(axis=1), protocol.overlapped_ari, protocol.empty_ari)  # [B]
    ari, fg_ari = (_adjusted_rand(part, empty) for part in (pairs, pairs[..., 1:]))
    scores = {"ari": ari, "fg_ari": fg_ari, "mbo": mbo, "miou": miou}
    if "classes" in counts:
        scores["mbo_class"] = _overlap_scores(*_counted(counts["classes"], protocol), protocol)[0]
    return scores


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
    iou, exists = _iou(pairs, area)
    mbo, miou = np.full(len(iou), np.nan), np.full(len(iou), np.nan)
    for image in np.flatnonzero(exists.any(axis=1)):
        table = iou[image][:, exists[image]]
        mbo[image] = table.max(axis=0).mean()
        miou[image] = table[linear_sum_assignment(table, maximize=True)].sum() / table.shape[1]
    return mbo, miou


def _iou(pairs: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU [B N S], 0 where both are empty, and which true segments there are, [B S]."""
    true_area = pairs.sum(axis=1)
    union = area[:, :, None] + true_area[:, None, :] - pairs
    return pairs / np.maximum(union, 1), true_area > 0
