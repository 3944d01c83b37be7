"""Each number must react to its own failure, and a perfect segmentation must have none."""

import numpy as np
import pytest
import torch

from dias_lab.analysis.causes import CAUSES, failure_scores, toy_parts
from dias_lab.data import scenes, store
from dias_lab.data.convert import scenes as convert


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


@pytest.fixture
def toys():
    """Segments and parts of six toy pictures."""
    items = [scenes.item(number) for number in range(6)]
    return (torch.from_numpy(np.stack([getattr(one, name) for one in items])).long() for name in ("segments", "parts"))


def part_of(predicted, true, parts) -> float:
    return failure_scores(predicted, true, parts=parts)["part"].mean()


def test_parts_taken_alone_are_told_from_cuts_anywhere(toys):
    true, parts = toys
    anywhere = true.clone()
    anywhere[:, ::2][true[:, ::2] > 0] += 100  # every second row of each toy
    alone, lost = true.clone(), true.clone()
    for one, bits, lone, gone in zip(true, parts, alone, lost):
        for label in one[one > 0].unique().tolist():
            second = int(bits[one == label].bincount().argsort()[-2])  # the toy's second largest part
            lone[(one == label) & (bits == second)] += 100
            gone[(one == label) & (bits == second)] = 0
    assert part_of(true, true, parts) == 0 and part_of(anywhere, true, parts) < 0.02
    assert failure_scores(anywhere, true, parts=parts)["split"].mean() > 0.4
    assert part_of(parts, true, parts) == pytest.approx(1)
    apart = part_of(alone, true, parts)
    assert 0.3 < apart < 1 and part_of(lost, true, parts) == pytest.approx(apart)
    assert list(failure_scores(true, true, parts=parts)) == ["split", "part", *CAUSES[1:]]


def test_part_is_undefined_where_nothing_has_two_parts(true):
    assert failure_scores(true, true, parts=true)["part"].isna().all()


def test_parts_of_a_store_of_toys(tmp_path, small_scenes):
    convert.convert(tmp_path, train=2, validation=2, test=3)
    with_toys = store.open(tmp_path / "test.lmdb")
    items = [scenes.item(scenes.SPLITS["test"] + number) for number in range(2)]
    images, parts = (torch.from_numpy(np.stack([getattr(one, name) for one in items])) for name in ("image", "parts"))
    images = images.permute(0, 3, 1, 2)
    assert toy_parts(with_toys, images).equal(parts)
    assert toy_parts(with_toys, images.flip(0)) is None and toy_parts(with_toys, images[..., :64, :64]) is None
    assert toy_parts(store.open(small_scenes / "test.lmdb"), images) is None  # shapes
