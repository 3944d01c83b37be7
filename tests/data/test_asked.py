"""Questions about the world with physics: answers of worlds made by hand, balance, what is dropped, and the noisy oracle."""

from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from dias_lab.data import asked, painting
from dias_lab.data.asked import ASKED, WORDS, answered, ask, check, noisy
from dias_lab.data.physics import Bodies, World
from dias_lab.data.questions import Question

KINDS = ["mushroom", "ice cream", "car"]
SEEDS = range(40)


def made(*start, kinds=KINDS):
    """A world of discs of 14 pixels: x, y, vx, vy each."""
    return SimpleNamespace(kinds=list(kinds[: len(start)]), bodies=Bodies(np.array(start, float), np.full(len(start), 14.0)))


def question(kind, *named):
    return Question(0, kind, ASKED[kind].format(*(WORDS[one] for one in named)).split(), [], "", {})


# the mushroom flies along the row, hits the ice cream in frame 9, which hits the car in frame 13
ROW = made((20, 64, 3, 0), (73, 64, 0, 0), (113, 64, 0, 0))
# the car hits the ice cream in frame 3, which hits the mushroom in frame 6
EARLY = made((20, 64, 0, 0), (60, 64, 0, 0), (97, 64, -4, 0))


@pytest.fixture(scope="module")
def worlds():
    return [World(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def all_questions(worlds):
    return ask(worlds)


def test_the_worlds_made_by_hand_are_as_they_say():
    assert ROW.bodies.contacts(24)[:2] == [(9, 1, 2), (13, 2, 3)] and EARLY.bodies.contacts(8) == [(3, 2, 3), (6, 1, 2)]


@pytest.mark.parametrize(
    "world, kind, named, answer",
    [
        (ROW, "touch-8", ("mushroom", "ice cream"), "yes"),
        (ROW, "touch-8", ("car", "mushroom"), "no"),
        (ROW, "touch-8", ("car", "ice cream"), "yes"),
        (made((20, 64, 2, 0), (85, 64, 0, 0)), "touch-8", ("ice cream", "mushroom"), "no"),  # in frame 19
        (made((20, 64, 2, 0), (85, 64, 0, 0)), "touch-16", ("ice cream", "mushroom"), "yes"),
        (made((20, 64, 2, 0), (49, 64, 0, 0)), "touch-16", ("ice cream", "mushroom"), "no"),  # what was seen is no answer
        (ROW, "first-hit", ("mushroom",), "ice-cream"),
        (ROW, "first-hit", ("car",), "ice-cream"),
        (made((20, 64, 3, 0), (90, 20, 0, 0)), "first-hit", ("mushroom",), "nothing"),
        (made((20, 64, 3, 0)), "half", ("mushroom",), "no"),
        (made((20, 64, 1, 0)), "half", ("mushroom",), "yes"),
        (made((90, 64, 3, 0)), "half", ("mushroom",), "no"),  # back from the wall, at 69
        (made((90, 64, 4.5, 0)), "half", ("mushroom",), "yes"),
        (EARLY, "order", ("car", "ice cream", "mushroom"), "yes"),
        (EARLY, "order", ("mushroom", "ice cream", "car"), "no"),
        (ROW, "order", ("mushroom", "ice cream", "car"), "no"),  # nobody did
        (ROW, "counterfactual", ("mushroom", "ice cream", "car"), "no"),
        (ROW, "counterfactual", ("ice cream", "mushroom", "car"), "yes"),
        (ROW, "counterfactual", ("car", "ice cream", "mushroom"), "yes"),
        (ROW, "count", (), "3"),
        (ROW, "presence", ("ice cream",), "yes"),
        (ROW, "presence", ("boat",), "no"),
    ],
)
def test_answers_of_worlds_made_by_hand(world, kind, named, answer):
    one = question(kind, *named)
    assert answered(one, world) == answer
    assert noisy(one, world, 0.0, np.random.default_rng(0)) == answer


def test_a_world_without_a_body_is_asked_about_the_others():
    world = World(0, without=1)
    assert answered(question("count"), world) == str(len(world.kinds) - 1)
    assert answered(question("presence", world.kinds[0]), world) == "no"
    with pytest.raises(ValueError, match="the clip shows no ladybird; it shows umbrella, fish, mushroom"):
        answered(question("half", "ladybird"), world)


def test_questions_that_have_no_answer():
    for kind in ("touch-8", "touch-16", "order", "counterfactual"):
        named = ["boat", "mushroom", "car"][: ASKED[kind].count("{}")]
        with pytest.raises(ValueError, match="the clip shows no boat; it shows mushroom, ice cream, car"):
            answered(question(kind, *named), ROW)
        with pytest.raises(ValueError, match="no boat"):
            noisy(question(kind, *named), ROW, 1.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no boat and no tree"):
        check(question("touch-8", "boat", "tree"), KINDS)
    with pytest.raises(ValueError, match="no answer to 'touch-9'.*touch-8"):
        check(question("touch-8", "car", "mushroom")._replace(kind="touch-9"), KINDS)
    for named in (("car", "car"), ("car",)):
        text = question("touch-8", "car", "mushroom")._replace(words=["will", *named, "touch"])
        with pytest.raises(ValueError, match="should read .*different toys"):
            check(text, KINDS)
    check(question("presence", "boat"), KINDS)


def test_every_answer_is_the_simulators(worlds, all_questions):
    for one in all_questions[0]:
        assert answered(one, worlds[one.clip]) == one.answer
        assert noisy(one, worlds[one.clip], 0.0, np.random.default_rng(0)) == one.answer


def bin_of(one, world):
    """The bins that the file's head tells, computed anew."""
    named = [world.kinds.index(asked.KINDS[word]) for word in one.words if asked.KINDS.get(word) in world.kinds]
    frame = 0 if one.kind == "counterfactual" else 7
    state = world.state(frame)

    def gap(a, b):
        return np.hypot(*(state[a] - state[b])[:2]) - world.radii[a] - world.radii[b]

    if one.kind in ("touch-8", "touch-16", "counterfactual"):
        a, b = named[-2:]
        later = state[:, :2] + 1e-6 * state[:, 2:]
        approach = (np.hypot(*(state[a] - state[b])[:2]) - np.hypot(*(later[a] - later[b]))) / 1e-6
        touch = [any({a + 1, b + 1} == set(hit[1:]) for hit in world.contacts(25))] if one.kind == "counterfactual" else []
        return (int(np.digitize(gap(a, b), (10, 20, 35))), int(np.digitize(approach, (-2, 0, 2))), *touch)
    if one.kind == "half":
        return int(state[named[0], 0] * 6 / 128), state[named[0], 2] < 0
    if one.kind == "first-hit":
        return int(np.digitize(min(gap(named[0], k) for k in range(len(world.kinds)) if k != named[0]), (10, 20, 35)))
    return ()


def test_answers_are_balanced_in_each_bin(worlds, all_questions):
    counts = defaultdict(Counter)
    for one in all_questions[0]:
        counts[one.kind, bin_of(one, worlds[one.clip])][one.answer] += 1
    assert {kind for kind, _ in counts} == set(ASKED)
    for (kind, _), answers in counts.items():
        if kind == "first-hit":
            assert answers["nothing"] * 4 == answers.total()
        elif kind == "count":
            assert set(answers) == {"3", "4"} and answers["3"] == answers["4"]
        else:
            assert set(answers) == {"yes", "no"} and answers["yes"] == answers["no"]
    assert len(counts) > 30 and all(count <= 4 for count in Counter((one.clip, one.kind) for one in all_questions[0]).values())


def test_half_of_what_would_happen_is_not_what_happens(worlds, all_questions):
    questions, about = all_questions
    flips = []
    for one in questions:
        if one.kind == "counterfactual":
            world, named = worlds[one.clip], [asked.KINDS[word] for word in one.words if word in asked.KINDS]
            pair = {1 + world.kinds.index(kind) for kind in named[1:]}
            happens = any(pair == set(hit[1:]) for hit in world.contacts(25))
            flips.append(happens != (one.answer == "yes"))
            assert any({1 + world.kinds.index(named[0])} & set(hit[1:]) for hit in world.contacts(25))  # it touched somebody
    assert np.mean(flips) == about["kinds"]["counterfactual"]["flips"] == 0.5
    assert 0.1 < about["kinds"]["counterfactual"]["flips of candidates"] < 0.5


def test_who_may_change_whether_two_touch():
    assert asked._changing(ROW.bodies, (2, 3)) == [1] and asked._changing(ROW.bodies, (1, 2)) == []  # those touched before
    assert asked._changing(ROW.bodies, (1, 3)) == [2]
    apart = made((20, 20, 1, 0), (100, 20, -1, 0), (60, 100, 0, 0))
    assert asked._changing(apart.bodies, (1, 2)) == []
    chain = made((16, 64, 4, 0), (50, 64, 0, 0), (83, 64, 0, 0), (113, 64, 0, 0), kinds=[*KINDS, "boat"])
    hits = [hit[1:] for hit in chain.bodies.contacts(25)]
    assert hits[:3] == [(1, 2), (2, 3), (3, 4)] and asked._changing(chain.bodies, (3, 4)) == [1, 2]  # the first by the second


def test_what_happens_near_an_end_is_not_asked():
    def doubtful(x, kind):
        """Of two that are x pixels apart and touch when 4 pixels a frame have brought them together."""
        world = made((20, 64, 2, 0), (20 + 28 + x, 64, -2, 0))
        world.seed = 0
        frame = world.bodies.contacts(40)[0][0]
        (one,) = [one for one in asked._candidates(world) if one.kind == kind and one.named[0] in ("mushroom", "ice cream")][:1]
        return frame, one.answer

    found = [doubtful(4 * frame - 2, kind) for kind in ("touch-8", "first-hit") for frame in (7, 8, 9, 13, 14, 15, 16, 17)]
    assert found[:8] == [(7, None), (8, None), (9, "yes"), (13, "yes"), (14, "yes"), (15, None), (16, None), (17, "no")]
    assert all(answer in ("mushroom", "ice-cream") for _, answer in found[10:]) and found[8][1] is found[9][1] is None


def test_mentions_are_boxes_of_the_first_frame(worlds, all_questions):
    for one in all_questions[0]:
        named = [place for place, word in enumerate(one.words) if word in asked.KINDS]
        assert sorted(one.mentions) == ([] if one.kind == "presence" else named)
        boxes = painting.boxes_of(worlds[one.clip].frame(0)[1]) / 128 if one.clip < 3 else None
        for place, box in one.mentions.items() if one.clip < 3 else ():
            assert box == boxes[worlds[one.clip].kinds.index(asked.KINDS[one.words[place]])].tolist()
    words = {word for one in all_questions[0] for word in [*one.words, one.answer]}
    assert "ice-cream" in words and not any(" " in word or word != word.lower() for word in words)


def test_what_is_told_about_them(worlds, all_questions):
    questions, about = all_questions
    assert about["observed"] == 8 and about["times"] == 1 and about["clips"] == len(SEEDS) and set(about["kinds"]) == set(ASKED)
    for kind, told in about["kinds"].items():
        mine = [one for one in questions if one.kind == kind]
        assert told["asked"] == len(mine) == sum(told["answers"].values()) <= told["candidates"]
        assert told["clips"] == len({one.clip for one in mine}) and told["answers"] == dict(Counter(one.answer for one in mine))
    assert about["kinds"]["touch-16"]["in doubt"] > 0
    assert ask(map(World, SEEDS)) == all_questions  # nothing else decides


def test_neither_distance_nor_approach_tells_the_answer(all_questions):
    """The best threshold over all of them is near chance."""
    worlds, rows = {}, []
    for one in all_questions[0]:
        if one.kind == "touch-16":
            world = worlds.setdefault(one.clip, World(one.clip))
            a, b = (world.state(7)[world.kinds.index(asked.KINDS[word])] for word in one.words if word in asked.KINDS)
            rows.append((np.hypot(*(a - b)[:2]), ((b - a)[:2] * (a - b)[2:]).sum() / np.hypot(*(a - b)[:2]), one.answer == "yes"))
    distance, approach, yes = np.array(rows).T
    for value in (distance, approach):
        right = [np.mean((value > bound) == yes) for bound in np.quantile(value, np.linspace(0.05, 0.95, 19))]
        assert 0.35 < min(right) and max(right) < 0.65


def test_noise_makes_answers_worse(worlds, all_questions):
    random = np.random.default_rng(0)
    asked_for = [one for one in all_questions[0] if one.kind in asked.HORIZONS][::2]
    right = [np.mean([noisy(one, worlds[one.clip], sigma, random) == one.answer for one in asked_for]) for sigma in (0.1, 2.0)]
    assert right[0] > 0.9 and right[0] - right[1] > 0.15
    seen = [one for one in all_questions[0] if one.kind in ("order", "count", "presence")]
    assert all(noisy(one, worlds[one.clip], 50.0, random) == one.answer for one in seen)
