"""Scores of clips: both levels, exact at 24 x 256 x 256, identity switches, DAVIS's J and F, and the hard cases."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from sklearn.metrics import adjusted_rand_score

from dias_lab.metrics import PROTOCOLS, best_slots, region_and_contour, segmentation_scores, video_scores

F, SIDE = 20, 256


def scored(predicted, true, protocol="dias", **arguments):
    """The scores of one clip [F H W]."""
    found = video_scores(np.asarray(predicted)[None], np.asarray(true)[None], protocol, **arguments)
    assert all(value.shape == (1,) and value.dtype == torch.float64 for value in found.values())
    return {name: value.item() for name, value in found.items()}


def squares(*places, frames=4, side=12):
    """True segments [F H W]: object k + 1 is a square of 3 x 3 pixels, whose corner in frame f is places[k](f); None: absent."""
    clip = np.zeros((frames, side, side), np.uint8)
    for frame in range(frames):
        for number, place in enumerate(places):
            if (corner := place(frame)) is not None:
                clip[frame, corner[0] : corner[0] + 3, corner[1] : corner[1] + 3] = number + 1
    return clip


TWO = squares(lambda frame: (1, frame), lambda frame: (7, 8 - frame))


def exact_ari(predicted, true) -> float:
    """By Python's integers and fractions: no number is ever rounded."""
    count = np.zeros((int(predicted.max()) + 1, int(true.max()) + 1), np.int64)
    np.add.at(count, (predicted.ravel().astype(int), true.ravel().astype(int)), 1)
    cells, rows, columns = (
        sum(int(n) * (int(n) - 1) for n in part.ravel()) for part in (count, count.sum(axis=1), count.sum(axis=0))
    )
    total = predicted.size
    expected = Fraction(rows * columns, total * (total - 1))
    return float((cells - expected) / (Fraction(rows + columns, 2) - expected))


@pytest.mark.parametrize(
    "case, ari, fg_ari",
    [("independent", 0.0, 0.0), ("one slot", 0.0, 0.0), ("background in two", 0.514, 1.0)],
)
def test_where_the_releases_overflow(case, ari, fg_ari):
    """Genera1Z's int64 products give 0.154, 0.674 and 0.682 for ARI here, and 0.127 for FG-ARI of what is independent."""
    random = np.random.default_rng(0)
    true = random.choice(6, (F, SIDE, SIDE), p=[0.7, *[0.06] * 5]).astype(np.uint8)
    if case == "independent":
        predicted = random.integers(0, 11, true.shape, dtype=np.uint8)
    elif case == "one slot":
        predicted = np.zeros_like(true)
    else:
        predicted = np.where(true == 0, 6 * random.integers(0, 2, true.shape), true).astype(np.uint8)
    found = scored(predicted, true)
    assert found["video_ari"] == pytest.approx(ari, abs=5e-4) and found["video_fg_ari"] == pytest.approx(fg_ari, abs=5e-4)
    assert found["video_ari"] == pytest.approx(exact_ari(predicted, true), abs=1e-12)
    things = true > 0
    assert found["video_fg_ari"] == pytest.approx(exact_ari(predicted[things], true[things]), abs=1e-12)


def test_one_large_image_of_one_slot():
    """0.80 with the overflow, already at 256 x 256."""
    true = (np.random.default_rng(0).random((1, SIDE, SIDE)) > 0.8).astype(np.uint8)
    assert scored(np.zeros_like(true), true)["video_ari"] == 0


def test_exact_with_all_labels_at_24_frames():
    random = np.random.default_rng(1)
    true = random.integers(0, 254, (24, SIDE, SIDE), dtype=np.uint8)
    predicted = np.where(random.random(true.shape) < 0.7, true, random.integers(0, 255, true.shape)).astype(np.uint8)
    found = scored(predicted, true)
    assert found["video_ari"] == pytest.approx(exact_ari(predicted, true), abs=1e-12)
    assert found["switches"] == found["switch_rate"] == 0 and found["gap"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_levels_are_one_tall_image_and_the_mean_over_frames(protocol):
    random = np.random.default_rng(2)
    predicted = random.integers(0, 4, (2, 5, 8, 9))
    true = random.choice([0, 1, 2, 3, 254, 255], predicted.shape)
    true[0, 1] = 0  # no foreground in one frame
    found = video_scores(predicted, true, protocol, classes=np.where(true == 3, 2, true))
    for clip in range(2):
        classes = np.where(true[clip] == 3, 2, true[clip])
        tall = segmentation_scores(*(one.reshape(1, 40, 9) for one in (predicted[clip], true[clip])), protocol, classes=classes.reshape(1, 40, 9))
        alone = segmentation_scores(predicted[clip], true[clip], protocol, classes=classes)
        for name in tall:
            assert found[f"video_{name}"][clip].item() == pytest.approx(tall[name].item(), nan_ok=True)
            assert found[f"image_{name}"][clip].item() == pytest.approx(alone[name].nanmean().item(), nan_ok=True)
    assert found["gap"].tolist() == (found["image_fg_ari"] - found["video_fg_ari"]).tolist()


def test_the_names_of_slots_mean_nothing_unless_they_change():
    same = scored(np.array([4, 2, 7])[TWO], TWO)
    assert all(same[f"{level}_{name}"] == 1 for level in ("video", "image") for name in ("ari", "fg_ari", "mbo", "miou"))
    assert same["gap"] == same["switches"] == same["switch_rate"] == 0
    predicted = TWO.copy()
    predicted[2] = np.array([0, 2, 1])[TWO[2]]  # both objects change their slot in frame 2, and back in frame 3
    found = scored(predicted, TWO)
    assert all(found[f"image_{name}"] == 1 for name in ("ari", "fg_ari", "mbo", "miou"))
    assert found["video_fg_ari"] < 0.5 and found["video_mbo"] < 0.9 and found["gap"] == 1 - found["video_fg_ari"]
    assert found["switches"] == 4 and found["switch_rate"] == 4 / 6
    things = TWO > 0
    assert found["video_fg_ari"] == pytest.approx(adjusted_rand_score(TWO[things], predicted[things]))


def test_an_object_that_is_away_for_a_while():
    true = squares(lambda frame: (1, 1), lambda frame: None if frame in (1, 2) else (7, 7))
    kept, other = true.copy(), true.copy()
    other[3][true[3] == 2] = 3
    assert scored(kept, true)["switches"] == 0 and scored(kept, true)["video_ari"] == 1
    assert scored(other, true)["switches"] == 1 and scored(other, true)["switch_rate"] == 1 / 4  # 3 pairs and 1
    objects, slots = best_slots(other, true)
    assert objects.tolist() == [1, 2] and slots.T.tolist() == [[1] * 4, [2, -1, -1, 3]]


def test_of_equally_good_slots_the_one_before_stays():
    true = np.ones((3, 2, 4), np.uint8)
    predicted = np.zeros_like(true)
    predicted[0] = 1
    predicted[1, :, :2] = 1  # a tie of slots 0 and 1
    assert best_slots(predicted, true)[1].T.tolist() == [[1, 1, 0]]
    assert scored(predicted, true)["switches"] == 1


def test_frames_that_do_not_count():
    predicted, true = np.concatenate([TWO, TWO[:2] * 0]), np.concatenate([TWO, TWO[:2]])
    padded = [True] * 4 + [False] * 2
    assert scored(predicted, true, frames=np.array([padded])) == scored(TWO, TWO)
    assert scored(predicted, true)["video_fg_ari"] < 1
    without_masks = true.copy()
    without_masks[4:] = 255
    for protocol in PROTOCOLS:  # also where void is background
        assert scored(predicted, without_masks, protocol) == scored(TWO, TWO, protocol)
    nothing = scored(TWO, np.full_like(TWO, 255), frames=np.array([[True] * 3 + [False]]))  # an empty clip
    assert np.isnan([nothing[name] for name in nothing if name != "switches"]).all() and nothing["switches"] == 0


def test_clips_without_background_without_objects_and_of_one_cluster():
    full = np.where(TWO == 0, 3, TWO)
    found = scored(TWO, full)
    assert found["video_ari"] == found["video_fg_ari"] == 1
    empty = scored(TWO, np.zeros_like(TWO))
    assert empty["video_ari"] == 0 and np.isnan(empty["video_fg_ari"]) and np.isnan(empty["switch_rate"])
    assert scored(TWO, np.zeros_like(TWO), "spot")["video_fg_ari"] == 1
    single = scored(np.zeros_like(TWO), TWO)
    assert single["video_ari"] == pytest.approx(0, abs=1e-12) and single["video_fg_ari"] == pytest.approx(0, abs=1e-12)
    assert single["switches"] == single["switch_rate"] == 0  # it is the same slot all the time
    one = scored(TWO[:1], TWO[:1])  # a clip of one frame
    assert one["video_fg_ari"] == one["image_fg_ari"] == 1 and np.isnan(one["switch_rate"])


def test_region_and_contour_of_a_shifted_square():
    true, predicted = np.zeros((2, 1, 40, 40), np.uint8)
    true[0, 5:25, 5:25], predicted[0, 5:25, 9:29] = 1, 3
    for tolerance, radius in ((0.02, 2), (0.08, 5)):
        found = {name: value.item() for name, value in region_and_contour(predicted[None], true[None], tolerance=tolerance).items()}
        assert found["j"] == pytest.approx(320 / 480)
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        lines = []
        for mask in (predicted[0] == 3, true[0] == 1):
            wide = np.pad(mask, ((0, 1), (0, 1)), "edge")
            lines.append((mask ^ wide[1:, :-1]) | (mask ^ wide[:-1, 1:]) | (mask ^ wide[1:, 1:]))
        near = [binary_dilation(line, y**2 + x**2 <= radius**2) for line in lines]
        precision, recall = ((lines[i] & near[1 - i]).sum() / lines[i].sum() for i in (0, 1))
        assert found["f"] == pytest.approx(2 * precision * recall / (precision + recall))
        assert found["jf"] == pytest.approx((found["j"] + found["f"]) / 2)
    assert found["f"] == 1  # all within five pixels


def test_region_and_contour_over_a_clip():
    slots = np.array([2, 0, 1])
    perfect = region_and_contour(slots[TWO][None], TWO[None])
    assert [value.item() for value in perfect.values()] == [1, 1, 1] and list(perfect) == ["j", "f", "jf"]
    away = squares(lambda frame: (1, 1), lambda frame: None if frame == 1 else (8, 8))
    assert region_and_contour(away[None], away[None])["jf"].item() == 1  # both absent in frame 1
    ghost = away.copy()
    ghost[1, 8:11, 8:11] = 2  # of the second object's four frames, one is wrong
    assert region_and_contour(ghost[None], away[None])["j"].item() == pytest.approx((1 + 3 / 4) / 2)
    single = region_and_contour(np.ones_like(away)[None], away[None])  # the second object gets nothing, which is right once
    assert single["j"].item() == pytest.approx((9 / 144 + 1 / 4) / 2)
    swapped = TWO.copy()
    swapped[2] = np.array([0, 2, 1])[TWO[2]]
    assert region_and_contour(swapped[None], TWO[None])["j"].item() == pytest.approx(3 / 4)  # identity counts
    assert np.isnan(region_and_contour(TWO[None], np.zeros_like(TWO)[None])["jf"].item())


def test_region_and_contour_leaves_void_and_padding_out():
    true, predicted = TWO.copy(), TWO.copy()
    true[:, 0], predicted[:, 0] = 255, 1
    assert region_and_contour(predicted[None], true[None])["j"].item() == 1
    predicted[3] = 0
    frames = np.array([[True, True, True, False]])
    assert region_and_contour(predicted[None], true[None], frames)["jf"].item() == 1
    assert region_and_contour(predicted[None], true[None])["jf"].item() < 1


@pytest.mark.parametrize("function", [video_scores, region_and_contour])
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(true=np.zeros((2, 3, 4), int)), r"true must be \[B F H W\].*\[2, 3, 4\]"),
        (dict(true=np.zeros((2, 3, 4, 6), int)), r"predicted is \[2, 3, 4, 5\], true is \[2, 3, 4, 6\]"),
        (dict(predicted=np.zeros((2, 3, 4, 5))), "predicted must be integer"),
        (dict(predicted=np.full((2, 3, 4, 5), -1)), "predicted has label -1 in clip 0"),
        (dict(true=np.array([0, 256])[:, None, None, None] + np.zeros((2, 3, 4, 5), int)), "true has label 256 in clip 1"),
        (dict(frames=np.ones((2, 4), bool)), r"frames must be bool \[B F\] = \[2, 3\]"),
        (dict(frames=np.ones((2, 3), int)), "frames must be bool.*int64"),
        (dict(frames=np.array([[True] * 3, [False] * 3])), "at least one True a clip"),
        (dict(true=np.zeros((2, 0, 4, 5), int), predicted=np.zeros((2, 0, 4, 5), int)), r"\[2, 0, 4, 5\]"),
    ],
)
def test_bad_input_is_named(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(**dict(predicted=np.zeros((2, 3, 4, 5), int), true=np.ones((2, 3, 4, 5), int)) | change)


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="did you mean 'dias'"):
        video_scores(TWO[None], TWO[None], "diass")
