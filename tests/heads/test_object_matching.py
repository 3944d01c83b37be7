import itertools

import numpy as np
import pandas as pd
import pytest
from given import CONFIG, record, rows, slots, store

from dias_lab.heads.matching import BOX, match, objects, overlaps, targets

IDS = [3, 7, 90]


def best_total(iou):
    """By trying all assignments."""
    N, S = iou.shape
    if N < S:
        return best_total(iou.T)
    return max(sum(iou[slot, one] for one, slot in enumerate(chosen)) for chosen in itertools.permutations(range(N), S))


def test_the_iou_is_that_of_the_pixels_which_have_an_owner():
    random = np.random.default_rng(0)
    predicted = random.choice([0, 1, 2, 3, 255], (5, 9, 9)).astype(np.uint8)
    true = random.choice([0, 1, 2, 5, 253, 254, 255], (5, 9, 9)).astype(np.uint8)
    iou, area = overlaps(predicted, true, 4)
    assert iou.shape == (5, 4, 253) and area.shape == (5, 253)
    owned = true < 254
    for image, slot, segment in itertools.product(range(5), range(4), (1, 2, 3, 5, 253)):
        one, other = (predicted[image] == slot) & owned[image], true[image] == segment
        union = (one | other).sum()
        assert iou[image, slot, segment - 1] == pytest.approx((one & other).sum() / union if union else 0)
        assert area[image, segment - 1] == other.sum()


@pytest.mark.parametrize("N, S", [(1, 1), (2, 5), (4, 4), (6, 3), (3, 0)])
def test_the_match_is_the_best_of_all(N, S):
    random = np.random.default_rng(N * 10 + S)
    for _ in range(20):
        iou, keep = random.random((N, S)) ** 3, random.random(N) < 0.8
        found = match(iou, keep, 0.0)
        own = np.flatnonzero(found >= 0)
        assert len(set(found[own])) == len(own) and keep[found[own]].all()
        assert iou[found[own], own].sum() == pytest.approx(best_total(np.where(keep[:, None], iou, 0)) if S else 0)
        strict = match(iou, keep, 0.3)
        assert ((strict == found) | (strict == -1)).all()
        assert all((iou[found[one], one] > 0.3) == (strict[one] >= 0) for one in own)


def test_all_objects_of_a_picture_can_be_found(tmp_path):
    """Not only the first two."""
    true = rows(0, 5, 9, 1, 33, 253, 7, 2)
    found = objects(store(tmp_path, [record(true)]), slots([rows(0, 1, 2, 3, 4, 5, 6, 7)], 8), CONFIG, IDS)
    assert found["segment"].tolist() == [1, 2, 5, 7, 9, 33, 253]
    assert found["slot"].tolist() == [3, 7, 1, 6, 2, 4, 5] and (found["iou"] == 1).all()
    assert found.loc[0, BOX].tolist() == [0, 6 / 16, 1, 8 / 16]


def test_the_order_of_the_slots_changes_nothing(tmp_path):
    random = np.random.default_rng(1)
    blocks = random.integers(0, 5, (3, 4, 4)).repeat(4, 1).repeat(4, 2)
    true = random.integers(0, 6, (3, 4, 4)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    one, order = store(tmp_path, [record(two) for two in true]), random.permutation(5)
    straight, turned = (objects(one, slots(segments, 5), CONFIG, IDS) for segments in (blocks, order[blocks]))
    turned["slot"] = [-1 if slot < 0 else order.tolist().index(slot) for slot in turned["slot"]]
    pd.testing.assert_frame_equal(straight, turned)
    assert (straight["slot"] >= 0).any()


def test_pictures_without_objects_with_one_and_with_more_than_slots(tmp_path):
    pictures = [rows(0, 0), None, rows(255, 255), rows(0, 4), rows(1, 2, 3, 4)]
    found = objects(store(tmp_path, map(record, pictures)), slots([rows(0, 1)] * 5, 2), CONFIG, IDS)
    assert found["item"].tolist() == [3, 4, 4, 4, 4] and found["unit"].tolist() == found["item"].tolist()
    assert found["slot"].tolist()[0] == 1 and sorted(found["slot"][1:]) == [-1, -1, 0, 1]
    assert found["iou"].isna().tolist() == (found["slot"] < 0).tolist()
    none = objects(store(tmp_path, map(record, pictures[:3])), slots([rows(0, 1)] * 3, 2), CONFIG, IDS)
    assert len(none) == 0 and none["slot"].dtype == int


def test_an_object_of_one_pixel_has_an_area(tmp_path):
    true = np.zeros((16, 16), np.uint8)
    true[5, 3] = 1
    found = objects(store(tmp_path, [record(true)]), slots([true], 2), CONFIG, IDS)
    assert found[["slot", "iou", *BOX]].values.tolist() == [[1, 1, 3 / 16, 5 / 16, 4 / 16, 6 / 16]]


def test_pixels_of_overlap_and_void_are_nobodys(tmp_path):
    true = rows(1, 254, 255, 2)
    found = objects(store(tmp_path, [record(true)]), slots([rows(0, 0, 1, 1)], 2), CONFIG, IDS)
    assert found["segment"].tolist() == [1, 2] and (found["iou"] == 1).all()
    assert found[BOX].values.tolist() == [[0, 0, 1, 0.25], [0, 0.75, 1, 1]]


def test_slots_that_are_left_out_find_nothing(tmp_path):
    found = objects(store(tmp_path, [record(rows(1, 2))]), slots([rows(0, 1)], 2, [[True, False]]), CONFIG, IDS)
    assert found["slot"].tolist() == [0, -1]


def test_the_least_iou_is_the_configs(tmp_path):
    one = store(tmp_path, [record(rows(1, 0, 0, 0))])
    for least, slot in ((0.2, 0), (0.25, -1)):
        loose = type(CONFIG)(**{**vars(CONFIG), "match_iou": least})
        assert objects(one, slots([rows(0, 0, 0, 0)], 1), loose, IDS)["slot"].tolist() == [slot]


def test_boxes_are_shares_of_the_centre_square(tmp_path):
    true = np.zeros((32, 64), np.uint8)  # the square has columns 16 to 47
    true[8:16, 10:24], true[0:2, 0:8] = 1, 2
    found = objects(store(tmp_path, [record(true)]), slots([rows(0, 0)], 1), CONFIG, IDS)
    assert found["segment"].tolist() == [1] and found.loc[0, BOX].tolist() == [0, 0.25, 0.25, 0.5]


def test_an_object_of_unknown_class_is_found_and_has_no_label(tmp_path):
    one = store(tmp_path, [record(rows(1, 2, 3, 4), {1: 90, 2: 5, 3: 4, 4: 7}), record(rows(1, 2), {})])
    found = objects(one, slots([rows(0, 1, 2, 3), rows(0, 1)], 4), CONFIG, IDS)
    assert found["label"].tolist() == [2, -1, -1, 1, -1, -1] and found["slot"].tolist() == [0, 1, 2, 3, 0, 1]
    asked = targets(found, np.ones((2, 4), bool), background=3)
    assert asked["label"].tolist() == [[2, -1, -1, 1], [-1, -1, 3, 3]]


def test_frames_have_the_labels_of_their_own_clip(tmp_path):
    """Twelve clips of unequal length, each of one class; a batch mixes their frames."""
    lengths = [1, 3, 2, 5, 1, 4, 2, 2, 3, 1, 6, 2]
    clips = np.repeat(np.arange(12), lengths)
    frames = np.concatenate([np.arange(one) for one in lengths])
    kinds = [IDS[clip % 3] for clip in clips]
    given = [record(rows(0, 1), {1: kind}, f"clip {clip}", int(frame)) for clip, frame, kind in zip(clips, frames, kinds)]
    one = store(tmp_path, given, "video")
    found = objects(one, slots([rows(0, 1)] * len(clips), 2), CONFIG, IDS)
    assert found["unit"].tolist() == clips.tolist() and found["item"].tolist() == list(range(len(clips)))
    assert found["label"].tolist() == (clips % 3).tolist()
    label = targets(found, np.ones((len(clips), 2), bool))["label"][[20, 3, 31]]
    assert label.tolist() == [[-1, clips[item] % 3] for item in (20, 3, 31)]
    assert objects(one, slots([rows(0, 1)] * len(clips), 2), CONFIG, IDS, limit=3)["item"].tolist() == list(range(6))


def test_targets_are_the_classes_and_boxes_of_what_slots_have_found():
    found = pd.DataFrame([(0, 2, 1, 0.1, 0.2, 0.3, 0.4), (1, 0, 0, 0.5, 0.5, 1, 1), (1, -1, 1, 0, 0, 1, 1)])
    found.columns = ["item", "slot", "label", *BOX]
    keep = np.array([[True, True, True], [True, False, True]])
    asked = targets(found, keep)
    assert asked["label"].tolist() == [[-1, -1, 1], [0, -1, -1]]
    assert asked["true_boxes"][0, 2] == pytest.approx([0.1, 0.2, 0.3, 0.4]) and asked["true_boxes"][1, 0].tolist() == [0.5, 0.5, 1, 1]
    assert targets(found, keep, background=9)["label"].tolist() == [[9, 9, 1], [0, -1, 9]]


def test_slots_of_another_number_of_items_are_refused(tmp_path):
    with pytest.raises(ValueError, match="train.lmdb has 1 items, and the slots are of 2: extract them anew"):
        objects(store(tmp_path, [record(rows(0, 1))]), slots([rows(0, 1)] * 2, 2), CONFIG, IDS)
