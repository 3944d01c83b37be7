"""Each number must react to its own failure, and a perfect segmentation must have none."""

import numpy as np
import pytest
import torch

from dias_lab.analysis.causes import CAUSES, failure_scores


@pytest.fixture
def true():
    """Two pictures: two equal squares on a background, in different places."""
    true = torch.zeros(2, 12, 12, dtype=torch.long)
    true[0, 1:5, 1:5], true[0, 7:11, 7:11] = 1, 2
    true[1, 1:5, 7:11], true[1, 6:10, 2:6] = 1, 2
    return true


def test_perfect_segments_fail_in_nothing(true):
    renamed = torch.tensor([4, 0, 2])[true]  # which slot takes what does not matter
    table = failure_scores(renamed, true)
    assert list(table) == list(CAUSES)
    assert (table[["split", "merge", "leak", "background"]] == 0).all(axis=None)
    assert (table["position"] < 0.2).all()


def damaged(true, cause):
    predicted = true.clone()
    if cause == "split":
        predicted[:, ::2][true[:, ::2] == 1] = 5  # every second row of object 1: half of it
    elif cause == "merge":
        predicted[true == 2] = 1
    elif cause == "leak":
        predicted[true == 1] = 0
    elif cause == "background":
        predicted[:, :, 6:][true[:, :, 6:] == 0] = 5
    return predicted


@pytest.mark.parametrize("cause, value", [("split", 1 / 4), ("merge", 1 / 2), ("leak", 1 / 2)])
def test_each_failure_is_found_by_its_own_number(true, cause, value):
    row = failure_scores(damaged(true, cause), true).iloc[0]
    assert row[cause] == pytest.approx(value)
    assert row[[other for other in ("split", "merge", "leak", "background") if other != cause]].max() == 0


def test_a_divided_background_is_found(true):
    row = failure_scores(damaged(true, "background"), true).iloc[0]
    assert row["background"] == pytest.approx(0.5) and row[["split", "merge", "leak"]].max() == 0


def test_the_same_tiles_everywhere_are_position(true):
    tiles = (torch.arange(12)[:, None] // 6 * 2 + torch.arange(12) // 6).expand(2, 12, 12)
    assert (failure_scores(tiles, true)["position"] == 1).all()


def test_void_counts_nowhere_and_what_is_missing_is_nan(true):
    true[:, :, :3] = 255
    noise = true.clone()
    noise[:, :, :3] = torch.arange(12)[:, None]
    assert (failure_scores(noise, true)[["split", "merge", "leak", "background"]] == 0).all(axis=None)
    nothing = failure_scores(np.zeros((1, 4, 4), int), np.full((1, 4, 4), 255))
    assert nothing.isna().all(axis=None)


def test_segments_of_different_shapes_are_refused(true):
    with pytest.raises(ValueError, match="B H W"):
        failure_scores(true[:, :6], true)
