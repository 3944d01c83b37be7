"""Which slots say the same thing: batched agglomerative clustering, merge, keep mask.

Source: DIAS, Zhao et al. 2025, arXiv:2507.23755, whose release leaves this part out. Slots whose cosine distance (0..2)
is small are merged bottom-up while the linkage stays below a threshold. Everything runs on the slots' device without
a host round trip: at most N - 1 merges, the same number for every image, those past the threshold without effect.

Axes: B images, N slots, D slot width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def merge_redundant(
    slots: Float[Tensor, "B N D"],
    threshold: float,
    linkage: str = "complete",
    min_kept: int = 3,
    gradient: bool = True,
) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
    """Slots where every cluster's first member holds the cluster's mean and the others 0; and the mask of the first.

    `threshold`: cosine distance in 0..2; clusters merge only while their linkage is below it. Where fewer than
    `min_kept` clusters would remain, that image's slots stay as they are. Without `gradient` the mean of merged slots
    is a constant. Raises ValueError for another linkage than complete, average or single.
    """
    return merge_clusters(slots, cluster(slots, threshold, linkage, min_kept), gradient)


def merge_clusters(
    slots: Float[Tensor, "B N D"], leader: Int[Tensor, "B N"], gradient: bool = True
) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
    """The same for clusters that are known: `leader` is what `cluster` gives."""
    membership = one_hot_members(leader).to(slots.dtype)
    mean = membership @ (slots if gradient else slots.detach()) / membership.sum(-1, keepdim=True).clamp_min(1)
    keep = is_leader(leader)
    alone = (membership.sum(-1) == 1)[..., None]
    return torch.where(alone, slots, mean) * keep[..., None], keep


@torch.no_grad()
def cluster(
    slots: Float[Tensor, "B N D"], threshold: float, linkage: str = "complete", min_kept: int = 3
) -> Int[Tensor, "B N"]:
    """For each slot the lowest index in its cluster (itself where it stays alone)."""
    if linkage not in ("complete", "average", "single"):
        raise ValueError(f"linkage is 'complete', 'average' or 'single', got {linkage!r}")
    B, N, _ = slots.shape
    index = torch.arange(N, device=slots.device)
    with torch.autocast(slots.device.type, enabled=False):  # in half precision close slots would fall together
        direction = F.normalize(slots.float(), dim=-1)
        distance = (1 - direction @ direction.transpose(1, 2)).clamp_min(0)  # [B N N]; rounding may fall below
    distance = distance.masked_fill(index[:, None] == index, torch.inf)
    leader = index.expand(B, N)
    size = torch.ones(B, N, device=slots.device)
    for _ in range(N - 1):
        closest, pair = distance.flatten(1).min(dim=1)
        merge = (closest < threshold)[:, None]  # [B 1]
        first = torch.minimum(pair // N, pair % N)[:, None]  # the lower index lives on
        second = torch.maximum(pair // N, pair % N)[:, None]
        leader = torch.where(merge & (leader == second), first, leader)
        distance, size = _join(distance, size, first, second, merge, linkage)
    too_few = is_leader(leader).sum(dim=1, keepdim=True) < min_kept
    return torch.where(too_few, index.expand(B, N), leader)


def _join(distance, size, first, second, merge, linkage):
    """Distances and sizes after cluster `second` [B 1] joined `first` [B 1], where `merge` [B 1]."""
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
    size = torch.where(merge & is_first, size_first + size_second, size)
    return torch.where(merge[..., None], updated, distance), size


def is_leader(leader: Int[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
    return leader == torch.arange(leader.shape[1], device=leader.device)


def one_hot_members(leader: Int[Tensor, "B N"]) -> Bool[Tensor, "B N N"]:
    """[b, i, j]: slot j belongs to the cluster that slot i leads."""
    return leader[:, None, :] == torch.arange(leader.shape[1], device=leader.device)[:, None]
