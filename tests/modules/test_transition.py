"""Transitions: the numbers of the reference's code, what they see and learn from, and dropout that follows from a key."""

import pytest
import torch
from published import load_swollen, near, swell

from dias_lab.data.draws import draw, dropped
from dias_lab.modules.transition import RSFQ, EncoderTransition, Identity, Past
from dias_lab.reference import published_names
from dias_lab.reference.names import NAMES

B, N, D, L, K = 2, 3, 8, 16, 12


def theirs(name):
    """What the reference calls a part of a transition."""
    return published_names(f"transition.{name}", NAMES["smoothsa clips"])[0].removeprefix("transit.")


@pytest.fixture
def rsfq():
    return load_swollen(RSFQ(D, K, 3, 4, 32), theirs)


def past(i):
    """The slots of i frames, and the features of one more."""
    slots, projected = swell(2, 4, 3, 8, phase=1), swell(2, 5, 16, 12)
    return Past(slots[:, :i].unbind(1), projected[:, : i + 1].unbind(1))


RSFQ_NUMBERS = {
    1: (-0.831463, 37.830725, "-2.671725 0.067806 0.223291 -0.264859", "0.685082 0.133283 1.151567 -0.063444"),
    2: (1.103730, 40.955292, "-2.868453 0.179521 0.310088 -0.230667", "0.235644 -1.550930 1.556473 -1.679341"),
    4: (2.824424, 36.693919, "-2.639898 0.488732 0.315620 -0.295102", "0.336240 0.720844 1.082133 0.034464"),
}


@pytest.mark.parametrize("i", RSFQ_NUMBERS)
def test_measured_numbers_of_rsfq_in_evaluation(i, rsfq):
    near(rsfq(past(i)), *RSFQ_NUMBERS[i])
    window = Past(past(i).slots[-2:], past(i).projected[-3:])  # more than the window is not seen
    assert torch.equal(rsfq(window), rsfq(past(i)))


@pytest.mark.parametrize(
    "slots_of, features_of, numbers",
    [
        ([0, 1], [1, 2], (3.428760, 44.170682, "-0.820664 0.483734 -0.050643 0.137593", "0.235644 -1.550930 1.556473 -1.679341")),
        ([1, 0], [1, 1], (1.526538, 39.164362, "-2.853429 0.391622 0.381291 -0.260301", "0.686453 -0.035240 2.535344 0.453782")),
    ],
)
def test_measured_numbers_of_rsfq_in_training(slots_of, features_of, numbers, rsfq):
    draws = torch.stack([torch.tensor(slots_of), torch.tensor(features_of) - 1, torch.zeros(2, dtype=torch.int64)], dim=1)
    near(rsfq(past(2), draws=draws + torch.tensor([2 * 5, 2 * 7, 0])), *numbers)  # numbers count modulo the frames there are


def test_measured_numbers_of_the_encoder():
    encoder = load_swollen(EncoderTransition(D, 4, 32), lambda name: theirs(name).removeprefix("transit."))
    numbers = (-5.280370, 38.592833, "1.941491 0.352414 0.239182 0.019761", "-0.897244 0.457468 -2.654536 -0.509262")
    near(encoder(Past((swell(2, 3, 8, phase=1),), ())), *numbers)


def test_identity_hands_on_the_last_slots():
    assert Identity()(past(2)) is not None and torch.equal(Identity()(past(2)), past(2).slots[-1])
    assert Identity().requests() == []


@pytest.mark.parametrize("kind", ["encoder", "rsfq"])
def test_slots_that_are_left_out_are_not_seen_by_the_others(kind, rsfq):
    transition = rsfq if kind == "rsfq" else EncoderTransition(D, 4, 32).double()
    keep, seen = torch.tensor([[True, False, True]] * B), past(2)
    other = seen._replace(slots=(*seen.slots[:-1], seen.slots[-1] + 5 * ~keep[..., None]))
    a, b = transition(seen, keep), transition(other, keep)
    torch.testing.assert_close(a[keep], b[keep])
    assert not torch.allclose(transition(seen)[keep], transition(other)[keep])


def test_rsfq_learns_without_a_gradient_to_the_past(rsfq):
    seen = Past(*(tuple(one.clone().requires_grad_() for one in part) for part in past(2)))
    rsfq(seen).square().sum().backward()
    assert all(one.grad is None for part in seen for one in part)
    assert rsfq.project.weight.grad.abs().max() > 0 and rsfq.layer.cross_attention.in_proj_weight.grad.abs().max() > 0
    reached = rsfq.time.weight.grad.abs().amax(dim=1) > 0  # by the features of now, and the slots of the frame before
    assert reached.tolist() == [True, True, False]
    slots = past(1).slots[0].clone().requires_grad_()
    EncoderTransition(D, 4, 32).double()(Past((slots,), past(1).projected)).sum().backward()
    assert slots.grad is not None


def test_dropout_follows_from_each_clips_key_alone():
    values, key = torch.ones(3, 40, 50), torch.tensor([5, 2**61 + 1, 5])
    found = dropped(values, 0.3, key)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    assert torch.equal(dropped(values[1:2], 0.3, key[1:2])[0], found[1])
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    assert 0.27 < (found[0] == 0).float().mean() < 0.33 and 0.27 < (found[1] == 0).float().mean() < 0.33
    together = ((found[0] == 0) & (found[1] == 0)).float().mean()  # of two keys: independent
    assert 0.07 < together < 0.11
    assert (dropped(values, 1.0, key) == 0).all() and torch.equal(dropped(values, 0.0, key), values)


def test_dropout_happens_in_training_only_and_draws_are_per_clip(rsfq):
    transition = RSFQ(D, K, 3, 4, 32, dropout=0.5).double().eval()
    transition.load_state_dict(rsfq.state_dict())
    torch.testing.assert_close(transition(past(2)), rsfq(past(2)))
    draws = draw(3, 0, range(B), transition.requests())["transition"]
    assert draws.shape == (B, 3) and draws.dtype == torch.int64
    both, kept = transition(past(2), draws=draws), transition.layer.dropout
    assert not torch.allclose(both, rsfq(past(2), draws=draws)) and kept == 0.5
    alone = Past(*(tuple(one[1:] for one in part) for part in past(2)))
    torch.testing.assert_close(transition(alone, draws=draws[1:]), both[1:])


def test_heads_must_divide_the_slots():
    with pytest.raises(ValueError, match="transition_heads = 3 does not divide the slots' width 8"):
        RSFQ(D, K, 3, 3, 32)
