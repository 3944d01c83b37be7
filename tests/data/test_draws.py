"""Random numbers: which ones they are, and that no two purposes share them."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from dias_lab.data.draws import STREAMS, Request, chance, draw, generator, integer, normal

# seed 5, step 9, place 1: two integers below 2**32 of each stream, and one of frame 3. Every run's identity rests on them
PINNED = {
    "shuffle": ([2695672280, 3835650909], 1470422573),
    "view": ([185976423, 4140598931], 156001992),
    "slots": ([3397248241, 1987948091], 2873668459),
    "restart": ([4157051035, 3916983185], 3096024758),
    "decoding": ([3322728993, 915843892], 3222700968),
    "merging": ([4075464595, 381356076], 3045059119),
    "fixed view": ([240082216, 1198273866], 2482805306),
    "permutation": ([2554741891, 2084016278], 1075222771),
    "teaching": ([3849198143, 3317343143], 1443385075),
    "predictor": ([2669984116, 1790572725], None),  # a name that is in no table
}


def numbers(*where, count=2, **options):
    return generator(*where, **options).integers(2**32, size=count).tolist()


@pytest.mark.parametrize("stream", PINNED)
def test_old_numbers_stay(stream):
    first, of_frame_3 = PINNED[stream]
    assert numbers(5, 9, 1, stream) == first == numbers(5, 9, 1, stream, frame=0)
    assert of_frame_3 is None or numbers(5, 9, 1, stream, frame=3, count=1) == [of_frame_3]


def test_all_streams_are_pinned():
    assert set(STREAMS) <= PINNED.keys()
    assert STREAMS[:9] == ("shuffle", "view", "slots", "restart", "decoding", "merging", "fixed view", "permutation", "teaching")


def test_large_seeds_are_distinct():
    drawn = [generator(seed, 0, 0, "slots").integers(2**63) for seed in (2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1)]
    assert len(set(drawn)) == 4


def test_no_two_purposes_share_a_number():
    """Nor do seeds, steps, places and frames: however many numbers one of them takes, the next begins elsewhere."""
    streams = [*STREAMS, "predictor", "corrector", "Slots", ""]
    where = [(5, 9, 1, stream, 0) for stream in streams]
    where += [(5, 9, 1, "slots", 1), (5, 9, 2, "slots", 0), (5, 10, 1, "slots", 0), (6, 9, 1, "slots", 0)]
    where += [(5, 1, 9, "slots", 0), (5, 9, 0, "slots", 1), (5, 0, 1, "slots", 9)]  # nor when they change places
    drawn = [set(generator(*one).integers(2**63, size=2000).tolist()) for one in where]
    assert all(len(one) == 2000 for one in drawn)
    assert not [pair for pair in itertools.combinations(range(len(where)), 2) if drawn[pair[0]] & drawn[pair[1]]]


def test_a_stream_of_another_name_has_a_number_of_its_own():
    assert numbers(5, 9, 1, "predictor") == numbers(5, 9, 1, "predictor") != numbers(5, 9, 1, "predictor2")
    assert "predictor" not in STREAMS


# Requests

REQUESTS = [
    normal("slots", 4, 3), normal("start", 2, stream="restart"), integer("turn", below=9), chance("merge", "merging", 0.5, per="image"),
    chance("skip", "skipping", 0.5, per="batch"),
]  # fmt: skip


def test_every_image_has_its_own_numbers_whatever_else_is_in_the_batch():
    whole = draw(5, 9, range(50), REQUESTS)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in whole.items()} == {
        "slots": (torch.float32, (50, 4, 3)), "start": (torch.float32, (50, 2)), "turn": (torch.int64, (50,)),
        "merge": (torch.bool, (50,)), "skip": (torch.bool, (50,)),
    }  # fmt: skip
    part = draw(5, 9, [7, 30], REQUESTS)
    assert all(torch.equal(part[name], whole[name][[7, 30]]) for name in whole)
    assert len(whole["slots"].unique()) == 600 and len(whole["merge"].unique()) == 2
    for name in ("turn", "skip"):  # one draw for the whole batch
        assert len(whole[name].unique()) == 1


def test_the_numbers_of_a_request_are_those_of_its_stream():
    expected = generator(5, 9, 1, "slots").standard_normal((4, 3), dtype=np.float32)
    assert np.array_equal(draw(5, 9, [1], [normal("slots", 4, 3)])["slots"][0], expected)
    assert np.array_equal(draw(5, 9, [1], [normal("others", 4, 3, stream="slots")])["others"][0], expected)
    turn = int(generator(5, 9, 0, "turn").integers(9))
    assert draw(5, 9, [1, 2], [integer("turn", 9)])["turn"].tolist() == [turn, turn]


def test_a_request_does_not_change_the_numbers_of_another():
    together = draw(5, 9, range(3), REQUESTS)
    for request in REQUESTS:
        for name, values in draw(5, 9, range(3), [request]).items():
            assert torch.equal(values, together[name])


def test_integers_and_chances_are_as_likely_as_they_say():
    turns = torch.stack([draw(5, step, [0], [integer("turn", 3)])["turn"][0] for step in range(300)])
    assert turns.bincount().tolist() == pytest.approx([100] * 3, abs=30)
    for probability in (0.0, 0.3, 1.0):
        share = draw(5, 0, range(1000), [chance("merge", "merging", probability, per="image")])["merge"].float().mean()
        assert float(share) == pytest.approx(probability, abs=0.05 * (0 < probability < 1))


def test_one_request_may_give_several_numbers_and_travels_to_other_processes():
    requests = pickle.loads(pickle.dumps([*REQUESTS, Request("several", several)]))
    drawn, expected = draw(5, 9, [4], requests), draw(5, 9, [4], [*REQUESTS, Request("several", several)])
    assert drawn.keys() == expected.keys() >= {"first", "second"}
    assert all(torch.equal(drawn[name], expected[name]) for name in drawn)


def several(random):
    return {"first": random.integers(5, size=3), "second": random.random(2)}
