"""The built-in clips: functions of their seeds, toys that keep their number, difficulties that do what they say."""

import numpy as np
import pytest

from dias_lab.data import moving, scenes
from dias_lab.data.convert import scenes as converter
from dias_lab.data.moving import DIFFICULTIES, Difficulty, World
from dias_lab.data.scenes import SPLITS, clip, clip_item

SEEDS = [*range(12), *range(SPLITS["test"], SPLITS["test"] + 12)]


def test_a_clip_is_a_function_of_its_seed():
    images, segments = clip(7, 3)
    again, _ = clip(7, 3)
    assert images.shape == (3, 128, 128, 3) and segments.shape == (3, 128, 128)
    assert images.dtype == segments.dtype == np.uint8 and (images == again).all()
    assert not (images == clip(8, 3)[0]).all() and not (images == clip(7, 3, "still")[0]).all()


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_longer_clip_begins_as_a_shorter_one(difficulty):
    short, long = clip_item(3, 4, difficulty), clip_item(3, 9, difficulty)
    for a, b in zip(short, long):
        assert a == b if isinstance(a, list) else (a == b[:4]).all()
    image, segments = World(3, difficulty).frame(8)  # any frame alone
    assert (image == long.images[8]).all() and (segments == long.segments[8]).all()


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_toy_shows_in_the_first_frame(difficulty):
    for seed in SEEDS:
        item = clip_item(seed, 1, difficulty)
        areas = np.bincount(item.segments[0].ravel())[1:]
        assert len(areas) == len(item.kinds) <= DIFFICULTIES[difficulty].max_objects
        assert (areas >= 0.01 * 128**2).all() and item.visible.all()


def test_boxes_are_those_of_what_is_visible():
    for item in (clip_item(seed, 16, "exits") for seed in range(4)):
        for frame, (segments, boxes, visible) in enumerate(zip(item.segments, item.boxes, item.visible)):
            for label, (left, top, right, bottom) in enumerate(boxes, start=1):
                inside = segments[top:bottom, left:right] == label
                assert inside.sum() == (segments == label).sum() and inside.any() == visible[label - 1]
                if visible[label - 1]:
                    assert inside.any(axis=0)[[0, -1]].all() and inside.any(axis=1)[[0, -1]].all(), frame


def test_a_toy_that_left_comes_back_as_itself():
    for seed in SEEDS:
        item = clip_item(seed, 24, "exits")
        left = [k for k in range(len(item.kinds)) if _gaps(item.visible[:, k])]
        assert 0 in left and item.visible[0].all()
        gone = np.flatnonzero(~item.visible[:, 0])
        before, after = (_colour(item, frame, 1) for frame in (0, _back(item, 0, gone)))
        assert abs(before - after).max() < 60, seed  # its colours, and no other toy's
        assert item.visible[:, 0].any() and len(gone) >= 3


def _gaps(visible) -> bool:
    gone = np.flatnonzero(~visible)
    return gone.size > 0 and visible[: gone[0]].any() and visible[gone[0] :].any()


def _back(item, toy, gone) -> int:
    """The frame after its first absence in which most of it shows."""
    areas = (item.segments == toy + 1).sum(axis=(1, 2))
    return int(gone[0] + areas[gone[0] :].argmax())


def _colour(item, frame, label):
    """Mean colour [3] of a toy's pixels."""
    return item.images[frame][item.segments[frame] == label].mean(axis=0)


def test_clips_move_smoothly_and_still_ones_not_at_all():
    for seed in SEEDS[:6]:
        for name, most in (("clips", 0.025 * 128), ("still", 0.0)):
            world = World(seed, name)
            paths = np.array([[toy.place(frame) for frame in range(40)] for toy in world.toys]) * 128
            assert np.linalg.norm(np.diff(paths, axis=1), axis=2).max() <= most + 1e-9
        images, segments = clip(seed, 5, "still")
        assert (segments == segments[0]).all()
        assert 0 < abs(images[0].astype(int) - images[4]).mean() < 10  # the noise is fresh
        assert (clip(seed, 24)[1] != clip(seed, 1)[1]).mean() > 0.03


def test_the_camera_moves_the_surface_with_the_toys():
    for seed in range(4):
        still = Difficulty(speed=0, turn=0, growth=0, noise=0, camera=0.15)
        world = World(seed, still)
        world.light = np.ones_like(world.light)
        shifts = np.rint(world.camera * np.sin(2 * np.pi * 9 / world.periods) * 128).astype(int)
        (first, segments), (later, moved) = world.frame(0), world.frame(9)
        x, y = shifts
        assert abs(shifts).max() > 3
        inner = slice(25, -25)
        seen = np.roll(first, (y, x), axis=(0, 1))[inner, inner], np.roll(segments, (y, x), axis=(0, 1))[inner, inner]
        assert (seen[0] == later[inner, inner]).all() and (seen[1] == moved[inner, inner]).all()
    assert not World(0).camera.any() and not World(0, "exits").camera.any()


def test_toys_cross_where_they_should_and_keep_apart_where_they_must_not():
    crossed = {"crossing": 0, "clips": 0}
    for seed in SEEDS:
        for name in crossed:
            world = World(seed, name)
            first, last = world.toys[0], world.toys[-1]
            crossed[name] += min(np.linalg.norm(first.place(f) - last.place(f)) for f in range(24)) < 0.1
    assert crossed["crossing"] == len(SEEDS) > crossed["clips"]
    apart = Difficulty(occlusion="none", min_objects=3)
    for seed in SEEDS[:8]:
        world = World(seed, apart)
        for frame in range(0, 60, 7):
            alone = [_alone(toy, frame) for toy in world.toys]
            assert sum(alone).max() == 1
            assert (world.frame(frame)[1] > 0).sum() == sum(one.sum() for one in alone)
        assert all(abs(toy.place(9) - toy.place(0)).max() > 0.01 for toy in world.toys)


def _alone(toy, frame):
    """Where a toy would be if it were alone, int [H W]."""
    box, whole = moving.painting.whole(toy.drawn(frame, 0))
    place = np.zeros((128, 128), int)
    place[box] = whole
    return place


def test_toys_that_do_not_leave_keep_their_centre_in_the_picture():
    for seed in SEEDS:
        for toy in World(seed).toys:
            places = np.array([toy.place(frame) for frame in range(500)])
            assert places.min() >= 0.15 - 1e-6 and places.max() <= 0.85 + 1e-6


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"occlusion": "some"}, "occlusion is 'some'"), ({"min_objects": 3, "max_objects": 2}, "got 3 and 2"), ({"radius": (0.3, 0.2)}, "radius"),
        ({"speed": -0.1}, "speed is 0 to 0.2, got -0.1"), ({"camera": 0.5}, "camera"), ({"occlusion": "none", "exits": True}, "keep apart"),
        ({"growth": float("nan")}, "growth"),
    ],
)  # fmt: skip
def test_impossible_difficulties_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Difficulty(**fields)


def test_impossible_clips_are_refused():
    for arguments, words in [((-1,), "-1"), ((0, 0), "frames=0"), ((0, 2, "crosing"), "crosing.*crossing"), ((0.5,), "0.5")]:
        with pytest.raises(ValueError, match=words):
            scenes.clip(*arguments)
    with pytest.raises(ValueError, match="8 toys do not fit into clip 0"):
        clip(0, 1, Difficulty(min_objects=8, max_objects=8, radius=(0.3, 0.3), hidden=0.0))


def test_converted_clips_are_the_clips(tmp_path):
    from dias_lab.data import store

    paths = converter.convert_clips(tmp_path, train=2, validation=1, test=1, frames=14, difficulty="exits")
    opened = store.open(paths["train"])
    assert opened.meta["kind"] == "video" and opened.meta["clips"] == [[0, 14], [14, 14]]
    assert "convert clips" in opened.meta["command"] and "--frames 14" in opened.meta["command"]
    item = clip_item(1, 14, "exits")
    for frame in range(14):
        info = opened[14 + frame].info
        assert (info["clip"], info["frame"]) == ("clip 1", frame)
        shown = np.flatnonzero(item.visible[frame]) + 1
        assert list(info["things"]) == list(info["boxes"]) == list(info["classes"]) == shown.tolist()
        assert [opened.meta["classes"][info["classes"][k]] for k in shown] == [item.kinds[k - 1] for k in shown]
        assert [info["boxes"][k] for k in shown] == item.boxes[frame, shown - 1].tolist()
    assert store.open(paths["test"])[0].info["source"] == "clip 20000000, frame 0"
    store.verify(paths["train"])
    for wrong in ({"frames": 0}, {"train": 0}, {"difficulty": "stil"}):
        with pytest.raises(ValueError):
            converter.convert_clips(tmp_path, **{"train": 1, "validation": 1, "test": 1, **wrong})
