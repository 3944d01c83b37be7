"""Assignment of slots to slots, on the device."""

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
