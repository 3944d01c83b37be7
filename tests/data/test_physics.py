"""The built-in world with physics: what is conserved, who hits whom, courses that are the same everywhere, and its pictures."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dias_lab.data.painting import SIZE
from dias_lab.data.physics import DIFFICULTIES, SUBSTEPS, Bodies, Difficulty, World
from dias_lab.data.scenes import SPLITS

FRAMES = 28
WORLDS = [(seed, name) for name in DIFFICULTIES for seed in (*range(6), SPLITS["test"])]


def course(bodies, frames=FRAMES):
    """States [F K 4]."""
    return np.stack([bodies.state(frame) for frame in range(frames)])


@pytest.mark.parametrize("seed, difficulty", WORLDS)
def test_bodies_stay_inside_and_never_overlap(seed, difficulty):
    world = World(seed, difficulty)
    states, radii = course(world, 60), world.radii
    assert (states[..., :2] >= radii[:, None]).all() and (states[..., :2] <= SIZE - radii[:, None]).all()
    for a in range(len(radii)):
        for b in range(a):
            distance = np.hypot(*(states[:, a, :2] - states[:, b, :2]).T)
            assert (distance > radii[a] + radii[b] - 0.05).all()
    assert len(set(world.kinds)) == len(world.kinds) == len(radii)
    assert DIFFICULTIES[difficulty].min_objects <= len(radii) <= DIFFICULTIES[difficulty].max_objects


@pytest.mark.parametrize("seed, difficulty", WORLDS)
def test_energy_is_conserved_and_momentum_between_walls(seed, difficulty):
    world = World(seed, difficulty)
    states, masses = course(world), world.radii**2
    energy = (masses[:, None] * states[..., 2:] ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(energy, energy[0], rtol=1e-12)
    momentum = (masses[:, None] * states[..., 2:]).sum(axis=1)  # [F 2]
    reach = world.radii[:, None] + 12.0  # nobody flies further in a frame
    free = ((states[..., :2] > reach) & (states[..., :2] < SIZE - reach)).all(axis=1)  # [F 2]
    kept = free[:-1] & free[1:]
    np.testing.assert_allclose(momentum[1:][kept], momentum[:-1][kept], rtol=0, atol=1e-9 * masses.sum())


def test_momentum_of_two_that_meet_far_from_walls():
    """A heavy one hits a light one off-centre: both numbers that a hit keeps, and the angle at which it parts them."""
    bodies = Bodies(np.array([[40, 60, 3, 0], [80, 66, 0, 0.0]]), np.array([18.0, 12]))
    (frame, a, b), masses = bodies.contacts(15)[0], np.array([18.0, 12]) ** 2
    before, after = bodies.state(frame - 1), bodies.state(frame)
    assert (a, b) == (1, 2) and len(bodies.contacts(15)) == 1 and after[1, 2] > 0 and after[1, 3] > 0 > after[0, 3]
    np.testing.assert_allclose(masses @ after[:, 2:], masses @ before[:, 2:], rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(masses @ after[:, 2:] ** 2 @ [1, 1], masses @ before[:, 2:] ** 2 @ [1, 1], rtol=1e-12)


def test_equal_bodies_exchange_their_speeds_and_a_wall_turns_back():
    bodies = Bodies(np.array([[30, 64, 4, 0], [80, 64, 0, 0.0]]), np.array([15.0, 15]))
    (hit,) = bodies.contacts(10)
    assert hit == (5, 1, 2) or hit == (6, 1, 2)  # 20 pixels apart at 4 a frame
    np.testing.assert_allclose(bodies.state(9)[:, 2:], [[0, 0], [4, 0]], atol=1e-12)
    np.testing.assert_allclose(bodies.state(20)[1, 2:], [-4, 0], atol=1e-12)
    assert bodies.contacts(5) == [] and bodies.contacts(0) == []


def test_who_meets_nobody_flies_straight():
    bodies = Bodies(np.array([[30, 30, 1.5, 2.25], [90, 30, 0, 0]]), np.array([16.0, 20]))
    expected = [[30 + 1.5 * frame, 30 + 2.25 * frame, 1.5, 2.25] for frame in range(FRAMES)]
    np.testing.assert_allclose(course(bodies)[:, 0], expected, atol=1e-9)
    assert bodies.contacts(FRAMES) == []


def test_a_course_is_the_same_everywhere():
    """Bit by bit: it takes no function whose last digit a machine may choose. A change here changes all data and questions."""
    states = np.concatenate([course(World(seed, difficulty)).ravel() for seed, difficulty in WORLDS])
    assert hashlib.sha256(states.astype("<f8").tobytes()).hexdigest()[:16] == "3910573c47b6f8ef"
    again = World(3)
    late = again.state(20)  # asked for first
    assert (late == course(World(3))[20]).all() and again.contacts(21) == World(3).contacts(21)


def test_who_asks_does_not_change_the_course():
    world, alone = World(5), World(5)
    with ThreadPoolExecutor(8) as pool:  # as a conversion paints frames
        states = list(pool.map(world.state, [*range(FRAMES)] * 4))
    assert all((state == alone.state(k % FRAMES)).all() for k, state in enumerate(states))
    assert world.contacts(FRAMES) == alone.contacts(FRAMES)
    world.state(3)[:] = 0  # what it returned is a copy
    assert (world.state(3) == alone.state(3)).all()


def test_without_a_body_the_others_start_the_same():
    for seed in range(4):
        world = World(seed)
        for gone in range(1, 1 + len(world.kinds)):
            other, rest = World(seed, without=gone), np.arange(len(world.kinds)) != gone - 1
            assert (other.state(0)[rest] == world.state(0)[rest]).all() and np.isnan(other.state(20)[gone - 1]).all()
            assert other.kinds == world.kinds and (other.radii == world.radii).all()
            assert all(gone not in contact[1:] for contact in other.contacts(FRAMES))
            touched = [frame for frame, *two in world.contacts(FRAMES) if gone in two]
            until = touched[0] if touched else FRAMES  # when it would have touched somebody
            assert (course(other, until)[:, rest] == course(world, until)[:, rest]).all()
            assert set(np.unique(other.frame(0)[1])) == {0, *range(1, 1 + len(world.kinds))} - {gone}


def test_contacts_rise_and_name_who_is_near():
    found = 0
    for seed in range(30):
        world = World(seed)
        contacts = world.contacts(24)
        assert [frame for frame, *_ in contacts] == sorted(frame for frame, *_ in contacts)
        assert all(1 <= frame < 24 and 1 <= a < b <= len(world.kinds) for frame, a, b in contacts)
        assert len(set(contacts)) == len(contacts)
        for frame, a, b in contacts:
            gap = np.hypot(*(world.state(frame)[a - 1] - world.state(frame)[b - 1])[:2]) - world.radii[[a - 1, b - 1]].sum()
            assert gap < 10
        found += len(contacts)
    assert 2 <= found / 30 <= 4


def test_many_large_ones_get_smaller_until_they_fit():
    radii = World(0, Difficulty(min_objects=6, max_objects=6, radius=(0.2, 0.2))).radii / SIZE
    assert (0.1 < radii).all() and (radii < 0.2).all()


def test_pictures_show_every_body_where_it_is():
    for seed, difficulty in ((0, "physics"), (1, "physics"), (0, "faster")):
        world = World(seed, difficulty)
        for frame in (0, 13):
            image, segments = world.frame(frame)
            assert image.shape == (SIZE, SIZE, 3) and image.dtype == segments.dtype == np.uint8
            for segment, (x, y, *_) in enumerate(world.state(frame), start=1):
                rows, columns = np.nonzero(segments == segment)
                radius = world.radii[segment - 1]
                distances = np.hypot(rows + 0.5 - y, columns + 0.5 - x) / radius
                assert np.quantile(distances, 0.85) < 1.1 and distances.max() < 1.45  # most of it is in the disc
                assert len(rows) > 0.4 * np.pi * radius**2
    again = World(0, "physics")
    assert (again.frame(13)[0] == World(0).frame(13)[0]).all() and not (again.frame(13)[0] == again.frame(12)[0]).all()


def test_bad_worlds_are_refused():
    with pytest.raises(ValueError, match="unknown difficulty 'fast'.*faster"):
        World(0, "fast")
    with pytest.raises(ValueError, match="seed"):
        World(-1)
    with pytest.raises(ValueError, match=r"there is no body 7; there are \[1, 2, 3"):
        World(0, without=7)
    wrong = [("min_objects", 0), ("max_objects", 7), ("radius", (0.05, 0.1)), ("speed", (0.1, 0.05)), ("speed", (0, 0.2)), ("noise", 2)]
    for name, value in wrong:
        with pytest.raises(ValueError, match=name):
            Difficulty(**{name: value})


def test_the_fastest_cannot_pass_through_each_other():
    step, smallest = 2 * DIFFICULTIES["faster"].speed[1] * SIZE / SUBSTEPS, 2 * DIFFICULTIES["faster"].radius[0] * SIZE
    assert step < 0.1 * smallest
    bodies = Bodies(np.array([[20, 64, 12.8, 0], [108, 64, -12.8, 0]]), np.array([13.0, 13]))
    assert bodies.contacts(5) and bodies.state(4)[0, 0] < bodies.state(4)[1, 0]
