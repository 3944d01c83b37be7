"""Toys: several parts, colours that tell no kind, clean edges, and everything that an item holds."""

import hashlib
import itertools

import numpy as np
import pytest

from dias_lab.data import scenes, store, toys
from dias_lab.data.convert import scenes as converter
from dias_lab.data.scenes import DIFFICULTIES, SPLITS, Difficulty

DRAWN = [name for name in DIFFICULTIES if name != "shapes"]
PINNED = {
    "scenes": "b2fe3866fb455080",
    "crowded": "8093b80003e34485",
    "regions": "3ae63601f824fe01",
    "recoloured": "55b3ce11e7c3790c",
}


def digest(difficulty):
    """Of 20 scenes: what is where, and of which kind."""
    found = hashlib.sha256()
    for seed in [*range(10), *range(SPLITS["test"], SPLITS["test"] + 10)]:
        item = scenes.item(seed, difficulty)
        found.update(item.segments.tobytes() + item.parts.tobytes() + " ".join(item.kinds).encode() + item.boxes.tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("difficulty", DRAWN)
def test_a_difficulty_is_pinned(difficulty):
    assert digest(difficulty) == PINNED[difficulty]


def test_no_colour_tells_a_kind():
    assert len(toys.KINDS) >= 12
    for one, other in itertools.combinations(toys.TRIOS, 2):
        assert len(set(one) & set(other)) <= 1
    used = np.bincount(np.concatenate(toys.TRIOS), minlength=len(toys.HUES))
    assert (used >= 2).all()  # no hue belongs to one kind alone
    for parts in toys.KINDS.values():
        assert len(parts) >= 3 and {part.colour for part in parts} == {0, 1, 2}


@pytest.mark.parametrize("difficulty", DRAWN)
def test_an_item_agrees_with_itself(difficulty):
    wanted = DIFFICULTIES[difficulty]
    for seed in range(30):
        item = scenes.item(seed, difficulty)
        count = len(item.kinds)
        assert wanted.min_objects <= count <= wanted.max_objects and set(item.kinds) <= set(toys.KINDS)
        assert item.image.shape == (128, 128, 3) and item.image.dtype == item.segments.dtype == item.parts.dtype == np.uint8
        assert set(np.unique(item.segments)) == set(range(count + 1)) and item.boxes.shape == (count, 4)
        assert ((item.parts > 0) == (item.segments > 0)).all()
        for label, (left, top, right, bottom) in enumerate(item.boxes, start=1):
            inside = item.segments[top:bottom, left:right] == label
            assert inside.sum() == (item.segments == label).sum()
            assert inside.any(axis=0)[[0, -1]].all() and inside.any(axis=1)[[0, -1]].all()
        for part in np.unique(item.parts[item.parts > 0]):  # a part is of one toy
            assert len(np.unique(item.segments[item.parts == part])) == 1


def test_a_scene_is_a_function_of_its_seed_and_difficulty():
    first, again = scenes.item(7), scenes.item(7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first.image, scenes.item(8).image)
    assert not np.array_equal(first.image, scenes.item(7, "regions").image)
    image, segments = scenes.scene(7)  # the default is toys
    assert np.array_equal(image, scenes.scene(7, "scenes")[0]) and not np.array_equal(image, scenes.scene(7, "shapes")[0])
    assert np.array_equal(image, first.image) and np.array_equal(segments, first.segments)


def test_edges_are_clean():
    """Between two flat surfaces, pixels of an edge have colours between theirs, and there are few of them."""
    (part,) = toys.draw("rocket", (64, 64), 28, 0.0, False, 128)[1:2]  # an ellipse
    between = (part.cover > 0) & (part.cover < 1)
    assert 40 < between.sum() < 300 and part.cover.max() == 1 and abs(part.cover.sum() - np.pi * 0.42 * 0.95 * 28**2) < 25


def test_mirrored_and_turned_toys_have_the_same_area():
    areas = []
    for angle, mirrored in ((0.0, False), (0.0, True), (0.7, False), (-0.4, True)):
        drawn = toys.draw("ladybird", (64, 64), 28, angle, mirrored, 128)
        areas.append(sum(part.cover.sum() for part in drawn))
    assert np.ptp(areas) < 0.02 * areas[0]
    heads = [toys.draw("ladybird", (64, 64), 28, 0.0, mirrored, 128)[0] for mirrored in (False, True)]
    assert heads[0].columns.start > 64 > heads[1].columns.stop


def test_colours_drawn_anew_leave_the_shapes_as_they_are():
    kind, drawn = (scenes.item(3, Difficulty(colours=colours)) for colours in ("kind", "drawn"))
    assert kind.kinds[0] == drawn.kinds[0] and not np.array_equal(kind.image, drawn.image)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(min_objects=3, max_objects=2), "min_objects <= max_objects"),
        (dict(min_objects=0), "1 <= min_objects"),
        (dict(kinds=13), "kinds is 2 to 12"),
        (dict(kinds=1), "kinds is 2 to 12"),
        (dict(radius=(0.3, 0.2)), "the smaller first"),
        (dict(radius=(0.2, 0.9)), "0.1 to 0.4"),
        (dict(radius=(0.05, 0.2)), "0.1 to 0.4"),
        (dict(max_objects=30), "do not fit"),
        (dict(occlusion=1.0), "occlusion"),
        (dict(noise=-1.0), "noise"),
        (dict(turn=4.0), "turn 0 to pi"),
        (dict(background="plaid"), "background is 'plaid'; did you mean 'plain'"),
        (dict(colours="painted"), "colours is 'painted'; there are: drawn, kind"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Difficulty(**wrong)


@pytest.mark.parametrize("seed, difficulty, words", [(-1, "scenes", "-1"), (0.5, "scenes", "0.5"), (0, "scens", "did you mean 'scenes'")])
def test_no_such_scene(seed, difficulty, words):
    with pytest.raises(ValueError, match=words):
        scenes.item(seed, difficulty)


def test_toys_that_do_not_fit_into_a_scene_are_refused():
    full = Difficulty(min_objects=20, max_objects=20, radius=(0.1, 0.4), occlusion=0.0)
    with pytest.raises(ValueError, match="20 toys do not fit into scene 3 of Difficulty.*radius=.0.1, 0.4"):
        scenes.item(3, full)


def test_a_store_of_toys_knows_their_kinds(tmp_path):
    paths = converter.convert(tmp_path, train=3, validation=2, test=2)
    opened = store.open(paths["train"])
    assert opened.meta["difficulty"]["background"] == "surface" and "--difficulty" not in opened.meta["command"]
    names = {int(number): name for number, name in opened.meta["classes"].items()}
    for seed, record in enumerate(opened):
        assert [names[number] for number in record.info["classes"].values()] == scenes.item(seed).kinds
    with pytest.raises(ValueError, match="did you mean 'regions'"):
        converter.convert(tmp_path / "other", difficulty="region")
