"""Matching: which slot of one map is which slot of another, one to one.

Axes: B images, N slots, L = h * w locations.
"""

import functools
import itertools

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MOST_ON_DEVICE = 14  # rows: 115 thousand sums an image


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
