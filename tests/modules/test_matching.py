"""One-to-one assignment, on the host and on the device, and segments that are matched by their overlap."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dias_lab.modules.matching import assign, assign_on_device, match_segments


@pytest.mark.parametrize("N", [1, 2, 5, 7, 11])
def test_assignment_on_the_device_is_as_good_as_scipys(N):
    score = torch.rand(9, N, N, generator=torch.Generator().manual_seed(N), dtype=torch.float64)
    score[3:6] = (score[3:6] * 3).floor() / 3  # many ties
    score[6] = 0
    columns = assign_on_device(score)
    assert torch.equal(columns.sort(dim=1).values, torch.arange(N).expand(9, N))
    found = score.gather(2, columns[..., None]).sum(dim=(1, 2))
    best = [matrix[linear_sum_assignment(matrix, maximize=True)].sum() for matrix in score.numpy()]
    np.testing.assert_allclose(found, best, rtol=1e-12)
    assert torch.equal(columns[:3], assign(score[:3]))  # without ties there is one answer


def test_segments_are_matched_by_their_overlap():
    student, order = torch.eye(4).repeat_interleave(3, dim=1)[None], torch.tensor([2, 0, 3, 1])
    assert match_segments(student, student[:, order]).tolist() == [order.argsort().tolist()]


@pytest.mark.parametrize("seed", range(4))
def test_the_overlap_of_matched_segments_is_the_largest_of_all_matchings(seed):
    student, teacher = torch.randn(2, 3, 4, 30, generator=torch.Generator().manual_seed(seed)).softmax(dim=2)
    for maps, others, matched in zip(student, teacher, match_segments(student, teacher)):
        ours, theirs = ([maps.argmax(dim=0) == slot for slot in range(4)] for maps in (maps, others))
        overlap = [[float((a & b).sum() / (a | b).sum().clamp_min(1)) for b in theirs] for a in ours]
        best = max(sum(overlap[slot][other] for slot, other in enumerate(order)) for order in itertools.permutations(range(4)))
        assert sorted(matched.tolist()) == [0, 1, 2, 3]
        assert sum(overlap[slot][other] for slot, other in enumerate(matched)) == pytest.approx(best)


def test_no_images_and_empty_segments_are_matched_too():
    assert assign(torch.zeros(0, 3, 3)).shape == (0, 3)
    one_for_all = torch.tensor([1.0, 0, 0]).view(1, 3, 1).expand(1, 3, 5)
    assert match_segments(one_for_all, one_for_all)[0, 0] == 0
    assert sorted(match_segments(one_for_all, one_for_all)[0].tolist()) == [0, 1, 2]
