"""Which slots say the same thing: batched agglomerative clustering, merge, keep mask; and to aggregate again.

Source: DIAS, Zhao et al. 2025, arXiv:2507.23755, whose release leaves this part out. Slots whose cosine distance (0..2)
is small are merged bottom-up while the linkage stays below a threshold. Everything runs on the slots' device without
a host round trip: all N - 1 merges of every image, then the cut that a rule chooses.

Axes: B images, N slots, D slot width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Dendrogram(NamedTuple):
    """What merges with what, from every slot alone to one cluster of all; heights ascend."""

    heights: Float[Tensor, "B N-1"]  # the linkage (cosine distance, 0..2) at which each merge happens
    leaders: Int[Tensor, "B N N"]  # after k merges (dim 1): for each slot the lowest index in its cluster


def merge_redundant(
    slots: Float[Tensor, "B N D"],
    threshold: float,
    linkage: str = "complete",
    min_kept: int = 3,
    gradient: bool = True,
    rule: str = "threshold",
    guard: str = "stop",
) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
    """Slots where every cluster's first member holds the cluster's mean and the others 0; and the mask of the first.

    `threshold`: cosine distance in 0..2; clusters merge only while their linkage is below it. Without `gradient` the mean
    of merged slots is a constant. `rule`, `guard` and `min_kept`: as in `cut`. Raises ValueError for an unknown linkage,
    rule or guard.
    """
    return merge_clusters(slots, cluster(slots, threshold, linkage, min_kept, rule, guard), gradient)


def merge_clusters(
    slots: Float[Tensor, "B N D"], leader: Int[Tensor, "B N"], gradient: bool = True
) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
    """The same for clusters that are known: `leader` is what `cluster` gives."""
    membership = one_hot_members(leader).to(slots.dtype)
    mean = membership @ (slots if gradient else slots.detach()) / membership.sum(-1, keepdim=True).clamp_min(1)
    keep = is_leader(leader)
    alone = (membership.sum(-1) == 1)[..., None]
    return torch.where(alone, slots, mean) * keep[..., None], keep


def cluster(
    slots: Float[Tensor, "B N D"],
    threshold: float,
    linkage: str = "complete",
    min_kept: int = 3,
    rule: str = "threshold",
    guard: str = "stop",
) -> Int[Tensor, "B N"]:
    """For each slot the lowest index in its cluster (itself where it stays alone)."""
    return cut(dendrogram(slots, linkage), threshold, min_kept, rule, guard)


def reinitialize(
    features: Float[Tensor, "B L C"],
    slots: Float[Tensor, "B N D"],
    keep: Bool[Tensor, "B N"],
    aggregator: nn.Module,
    num_iterations: int | None = None,
    mask: bool = True,
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "T B N L"], Bool[Tensor, "B N"]]:
    """The paper's second aggregation: from the slots that are left, without the redundant ones in the competition.

    `features` are what the aggregator takes, `slots` what the kept ones restart from (for example the clusters' means).
    Without `mask` the others compete again, from what `slots` has for them, and all are kept.
    """
    slots, attention = aggregator(features, slots, keep if mask else None, num_iterations)
    return slots, attention, keep if mask else torch.ones_like(keep)


@torch.no_grad()
def dendrogram(slots: Float[Tensor, "B N D"], linkage: str = "complete") -> Dendrogram:
    """Agglomerative clustering by cosine distance, all N - 1 merges of it."""
    if linkage not in ("complete", "average", "single"):
        raise ValueError(f"linkage is 'complete', 'average' or 'single', got {linkage!r}")
    B, N, _ = slots.shape
    index = torch.arange(N, device=slots.device)
    with torch.autocast(slots.device.type, enabled=False):  # in half precision close slots would fall together
        direction = F.normalize(slots.float(), dim=-1)
        distance = (1 - direction @ direction.transpose(1, 2)).clamp_min(0)  # [B N N]; rounding may fall below
    distance = distance.masked_fill(index[:, None] == index, torch.inf)
    size = torch.ones(B, N, device=slots.device)
    heights, leaders = [], [index.expand(B, N)]
    for _ in range(N - 1):
        closest, pair = distance.flatten(1).min(dim=1)
        first = torch.minimum(pair // N, pair % N)[:, None]  # [B 1]; the lower index lives on
        second = torch.maximum(pair // N, pair % N)[:, None]
        heights.append(closest)
        leaders.append(torch.where(leaders[-1] == second, first, leaders[-1]))
        distance, size = _join(distance, size, first, second, linkage)
    heights = torch.stack(heights, dim=1).cummax(dim=1).values if heights else distance.new_zeros(B, 0)
    return Dendrogram(heights, torch.stack(leaders, dim=1))


@torch.no_grad()
def cut(
    tree: Dendrogram, threshold: float, min_kept: int = 3, rule: str = "threshold", guard: str = "stop"
) -> Int[Tensor, "B N"]:
    """Each slot's leader [B N] where an image's tree is cut.

    The rule "threshold" carries out the merges below `threshold`. The others need none: "gap" cuts each image's tree
    where its heights (from 0) leap farthest, "otsu" where they fall into the two groups that lie farthest apart (Otsu
    1979). Where fewer than `min_kept` clusters would be left, the guard "cancel" leaves that image's slots as they are,
    and "stop" carries out the merges that leave so many; the rules without a threshold stop. Raises ValueError for an
    unknown rule or guard.
    """
    if rule not in ("threshold", "gap", "otsu") or guard not in ("cancel", "stop"):
        raise ValueError(f"rule is 'threshold', 'gap' or 'otsu' and guard 'cancel' or 'stop', got {rule!r}, {guard!r}")
    heights, N = tree.heights, tree.leaders.shape[1]
    most = max(N - max(min_kept, 1), 0)  # merges that the guard allows
    if rule == "threshold":
        merges = (heights < threshold).sum(dim=1)
        merges = merges.masked_fill(merges > most, 0) if guard == "cancel" else merges.clamp_max(most)
    else:
        from_zero = F.pad(heights, (1, 0))  # [B N]
        contrast = from_zero.diff(dim=1) if rule == "gap" else _between(from_zero)
        contrast = F.pad(contrast, (0, 1), value=-1)  # all in one cluster: where nothing else can be
        merges = contrast[:, : most + 1].argmax(dim=1)
    return tree.leaders.gather(1, merges[:, None, None].expand(-1, 1, N))[:, 0]


def otsu_threshold(heights: Float[Tensor, "..."]) -> float:
    """The cosine distance (0..2) between the two groups into which many heights fall, for example of some training images.

    Raises ValueError for fewer than two heights.
    """
    values = heights.flatten().sort().values
    if len(values) < 2:
        raise ValueError(f"two groups of heights need at least two heights, got {len(values)}")
    split = int(_between(values[None]).argmax())
    return float((values[split] + values[split + 1]) / 2)


def _between(values: Float[Tensor, "B M"]) -> Float[Tensor, "B M-1"]:
    """Otsu's criterion for ascending values: the variance between the first k + 1 of them and the rest, times M^2."""
    count = torch.arange(1, values.shape[1], device=values.device)
    below, rest = values.cumsum(dim=1)[:, :-1], values.shape[1] - count
    difference = below / count - (values.sum(dim=1, keepdim=True) - below) / rest
    return count * rest * difference.square()


def _join(distance, size, first, second, linkage):
    """Distances [B N N] and sizes [B N] after cluster `second` [B 1] joined `first` [B 1]."""
    N = size.shape[1]
    row_first = distance.gather(1, first[..., None].expand(-1, 1, N))[:, 0]  # [B N]
    row_second = distance.gather(1, second[..., None].expand(-1, 1, N))[:, 0]
    size_first, size_second = size.gather(1, first), size.gather(1, second)
    if linkage == "complete":
        joined = torch.maximum(row_first, row_second)
    elif linkage == "single":
        joined = torch.minimum(row_first, row_second)
    else:
        joined = (size_first * row_first + size_second * row_second) / (size_first + size_second)
    index = torch.arange(N, device=size.device)
    is_first, is_second = index == first, index == second  # [B N]
    joined = joined.masked_fill(is_first | is_second, torch.inf)
    updated = torch.where(is_first[:, :, None], joined[:, None, :], distance)
    updated = torch.where(is_first[:, None, :], joined[:, :, None], updated)
    updated = updated.masked_fill(is_second[:, :, None] | is_second[:, None, :], torch.inf)
    return updated, torch.where(is_first, size_first + size_second, size)


def is_leader(leader: Int[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
    return leader == torch.arange(leader.shape[1], device=leader.device)


def one_hot_members(leader: Int[Tensor, "B N"]) -> Bool[Tensor, "B N N"]:
    """[b, i, j]: slot j belongs to the cluster that slot i leads."""
    return leader[:, None, :] == torch.arange(leader.shape[1], device=leader.device)[:, None]
