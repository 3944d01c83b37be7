"""The losses: reconstruction of the feature map or its codes, self-distillation between maps, a teacher's segments.

Sources: DIAS, Zhao et al. 2025, arXiv:2507.23755, and its release (Genera1Z/DIAS); a teacher's segments: SPOT,
Kakogeorgiou et al. 2024, arXiv:2312.00648. The release hands attention maps,
which are already a softmax over slots, to a cross-entropy that takes the softmax again. Its value is squeezed: with n
slots it lies between ln((e + n - 1) / e) and ln n for perfect and uniform maps (1.165 and 1.946 at 7 slots). That is
form "release"; form "cross_entropy" takes the logarithm of the map itself.

Axes: T iterations, B images, N slots, L = h * w locations, C feature channels, K codes.
"""

import functools
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MOST_ON_DEVICE = 14  # rows: 115 thousand sums an image


def reconstruction_loss(reconstruction: Float[Tensor, "B C h w"], features: Float[Tensor, "B C h w"]) -> Tensor:
    """Mean squared error over all values; in squared units of the feature map. The target gets no gradient."""
    return F.mse_loss(reconstruction, features.detach())


def distillation_loss(
    attention: Float[Tensor, "T B N L"], form: str = "release", match: str = "identity", teacher: int = -1
) -> Float[Tensor, ""]:
    """Cross-entropy from the last map (teacher, detached) to the first (student); nats per location.

    `form`: "release" or "cross_entropy", see the file head. `match`: "identity", or "hungarian", which permutes the
    teacher's slots so that arg-max segments overlap best; needed where merging gave the slots new identities.
    `teacher`: index of the teaching iteration. Raises ValueError for another form or match.
    """
    student, target = attention[0], attention[teacher].detach()
    if match == "hungarian":
        target = target.gather(1, match_segments(student, target)[..., None].expand_as(target))
    elif match != "identity":
        raise ValueError(f"match is 'identity' or 'hungarian', got {match!r}")
    if form == "release":
        return -(target * student.log_softmax(dim=1)).sum(dim=1).mean()
    if form == "cross_entropy":
        return -(target * student.clamp_min(1e-8).log()).sum(dim=1).mean()
    raise ValueError(f"form is 'release' or 'cross_entropy', got {form!r}")


def matched_segments_loss(logits: Float[Tensor, "B N L"], teacher: Float[Tensor, "B N L"]) -> Float[Tensor, ""]:
    """Cross-entropy of the student's logits to the teacher's arg-max segments; nats per location.

    The teacher's slots are first matched to the student's, so that segments overlap best. The teacher gets no gradient.
    """
    teacher = teacher.detach()
    matched = teacher.gather(1, match_segments(logits, teacher)[..., None].expand_as(teacher))  # in the student's order
    return F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), matched.argmax(dim=1).flatten())


def code_loss(logits: Float[Tensor, "B K h w"], index: Int[Tensor, "B h w"]) -> Float[Tensor, ""]:
    """Cross-entropy of each location's logits to the number of its code; nats per location."""
    return F.cross_entropy(logits.movedim(1, -1).flatten(0, -2), index.flatten())


@torch.no_grad()
def match_segments(student: Float[Tensor, "B N L"], teacher: Float[Tensor, "B N L"]) -> Int[Tensor, "B N"]:
    """For each student slot the teacher slot whose arg-max segment overlaps it best (IoU, one to one)."""
    index = torch.arange(student.shape[1], device=student.device)[:, None]
    first, second = ((maps.argmax(dim=1, keepdim=True) == index).float() for maps in (student, teacher))  # [B N L]
    with torch.autocast(student.device.type, enabled=False):  # counts are exact in float32
        overlap = (first @ second.transpose(1, 2)).double()  # [B N N]
    union = overlap.sum(2, keepdim=True) + overlap.sum(1, keepdim=True) - overlap
    return assign(overlap / union.clamp_min(1))


def assign(score: Float[Tensor, "B N N"]) -> Int[Tensor, "B N"]:
    """For each row the column of the best assignment, one to one: the sum of its scores is the largest.

    On a GPU by `assign_on_device`, up to 14 rows; else by scipy. Of equally good assignments the two may take different ones.
    """
    if score.device.type != "cpu" and score.shape[1] <= MOST_ON_DEVICE:
        return assign_on_device(score)
    columns = [linear_sum_assignment(matrix, maximize=True)[1] for matrix in score.cpu().numpy()]
    return torch.from_numpy(np.array(columns)).to(score.device).view(score.shape[:2])


def assign_on_device(score: Float[Tensor, "B N N"]) -> Int[Tensor, "B N"]:
    """The same, exactly and without a host round trip: the best way to give the first k rows each set of k columns.

    A set's best way is found from those of the sets with one column less: N 2^(N-1) sums an image, in N passes.
    """
    tables = column_sets(score.shape[1], score.device)
    best, lasts = score.new_zeros(len(score), 1), []
    for row, (columns, before) in enumerate(tables):
        best, last = (best[:, before] + score[:, row][:, columns]).max(dim=2)  # [B sets]
        lasts.append(last)
    chosen, place = [], torch.zeros_like(lasts[-1])  # the set of all columns, and back from there
    for (columns, before), last in zip(reversed(tables), reversed(lasts)):
        which = last.gather(1, place)  # [B 1]
        chosen.append(columns[place, which])
        place = before[place, which]
    return torch.cat(chosen[::-1], dim=1)


@functools.lru_cache(maxsize=8)
def column_sets(N: int, device) -> list[tuple[Int[Tensor, "sets k"], Int[Tensor, "sets k"]]]:
    """For k = 1 to N: each set of k columns, and for each of its columns the number of the set without it."""
    tables, numbers = [], {(): 0}
    for k in range(1, N + 1):
        sets = list(itertools.combinations(range(N), k))
        before = [[numbers[columns[:i] + columns[i + 1 :]] for i in range(k)] for columns in sets]
        tables.append((torch.tensor(sets, device=device), torch.tensor(before, device=device)))
        numbers = {columns: number for number, columns in enumerate(sets)}
    return tables


def schedule(kind: str, progress: float, start: float = 0.0) -> float:
    """The weight of self-distillation, 0 to 1, at `progress` (0 to 1) through the training; 0 before `start`.

    "cosine" rises from 0 to 1, "constant" stays 1, "square" is 1 in the middle half of what follows `start`.
    """
    if progress < start:
        return 0.0
    position = (progress - start) / (1 - start) if start < 1 else 0.0
    if kind == "cosine":
        return 0.5 * (1 - math.cos(math.pi * min(position, 1.0)))
    if kind == "square":
        return float(0.25 <= position < 0.75)
    if kind == "constant":
        return 1.0
    raise ValueError(f"schedule is 'cosine', 'constant' or 'square', got {kind!r}")
