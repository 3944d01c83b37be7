"""Slot Attention with small unequal sizes, and the numbers measured on the reference's code."""

import pytest
import torch
from published import close, measured_slot_attention

from dias_lab.modules.aggregator import SlotAttention

B, N, L, C, D = 2, 4, 9, 12, 8


@pytest.fixture
def aggregate():
    torch.manual_seed(0)
    return SlotAttention(C, D, 10, 3), torch.randn(B, L, C), torch.randn(B, N, D)


def test_permuting_slots_permutes_maps(aggregate):
    model, features, slots = aggregate
    order = torch.tensor([2, 0, 3, 1])
    expected = model(features, slots)
    permuted = model(features, slots[:, order])
    torch.testing.assert_close(permuted.attention, expected.attention[:, :, order])
    torch.testing.assert_close(permuted.slots, expected.slots[:, order])


def test_fewer_iterations_are_a_prefix(aggregate):
    model, features, slots = aggregate
    full = model(features, slots).attention
    assert full.shape == (3, B, N, L)
    torch.testing.assert_close(model(features, slots, num_iterations=2).attention, full[:2])


def test_evaluation_may_have_more_iterations(aggregate):
    model, features, slots = aggregate
    before = model(features, slots).attention
    model.evaluation_iterations = 5
    torch.testing.assert_close(model(features, slots).attention, before)  # in training nothing changes
    more = model.eval()(features, slots).attention
    assert len(more) == 5
    torch.testing.assert_close(more[:3], before)
    assert len(model(features, slots, num_iterations=2).attention) == 2


def test_slots_compete_for_each_location(aggregate):
    model, features, slots = aggregate
    torch.testing.assert_close(model(features, slots).attention.sum(dim=2), torch.ones(3, B, L))


@pytest.mark.parametrize("slot_dim", [D, C])
def test_the_start_as_k_means_is_an_iteration_of_soft_k_means(slot_dim):
    torch.manual_seed(0)
    model, features, slots = SlotAttention(C, slot_dim, 10), torch.randn(B, L, C), torch.randn(B, N, slot_dim)
    model.start_as_k_means(sharpness=2.0)
    points = torch.nn.functional.layer_norm(features, (C,))[..., :slot_dim]  # as many channels as fit into a slot
    centres = torch.nn.functional.layer_norm(slots, (slot_dim,))
    weights = (2 * centres @ points.transpose(1, 2) / slot_dim**0.5).softmax(dim=1)
    means = weights @ points / weights.sum(dim=2, keepdim=True)
    key, value = model.keys_and_values(features)
    updated, attention = model.step(slots, key, value)
    torch.testing.assert_close(attention, weights)
    old = torch.sigmoid(torch.tensor(-4.0))  # the share of the old slot that the GRU keeps
    torch.testing.assert_close(updated, (1 - old) * means.tanh() + old * slots, atol=1e-4, rtol=1e-4)


def test_masked_slots_get_exactly_nothing_and_change_nobody(aggregate):
    model, features, slots = aggregate
    keep = torch.tensor([[True, False, True, True], [True, True, False, False]])
    masked = model(features, slots, keep)
    assert (masked.attention.transpose(0, 2)[~keep.T] == 0).all()
    alone = model(features[1:], slots[1:, :2])
    torch.testing.assert_close(masked.slots[1:, :2], alone.slots)
    torch.testing.assert_close(masked.attention[:, 1:, :2], alone.attention)


def test_the_state_of_the_gru_is_the_slot_before_its_norm(aggregate):
    model, features, slots = aggregate
    key, value = model.keys_and_values(features)
    seen = []
    model.gru.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    model.step(slots, key, value)
    torch.testing.assert_close(seen[0], slots.flatten(0, 1))


def test_nothing_to_aggregate_is_refused(aggregate):
    model, features, slots = aggregate
    with pytest.raises(ValueError, match="at least 1"):
        model(features, slots, num_iterations=0)
    with pytest.raises(ValueError, match="every slot"):
        model(features, slots, torch.tensor([[True] * N, [False] * N]))


def test_truncated_gradients_are_those_of_the_last_iteration_alone():
    torch.manual_seed(0)
    aggregator, features = SlotAttention(12, 8, 10, 3), torch.randn(2, 9, 12)
    initial = torch.randn(2, 4, 8, requires_grad=True)
    truncated, whole = aggregator(features, initial, truncate=True), aggregator(features, initial)
    for a, b in zip(truncated, whole):
        assert torch.equal(a, b)
    weights = [*aggregator.parameters(), initial]
    found = torch.autograd.grad(truncated.slots.square().sum(), weights)
    start = aggregator(features, initial, num_iterations=2).slots.detach().requires_grad_()
    last = aggregator(features, start, num_iterations=1).slots.square().sum()
    for a, b in zip(found, torch.autograd.grad(last, [*aggregator.parameters(), start])):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(found[-1], torch.autograd.grad(whole.slots.square().sum(), initial)[0])
    single = torch.autograd.grad(aggregator(features, initial, num_iterations=1, truncate=True).slots.sum(), initial)[0]
    torch.testing.assert_close(
        single, torch.autograd.grad(aggregator(features, initial, num_iterations=1).slots.sum(), initial)[0]
    )


def test_logits_are_there_where_asked_and_give_the_last_map():
    torch.manual_seed(0)
    aggregator, features, slots = SlotAttention(12, 8, 10, 3), torch.randn(2, 9, 12), torch.randn(2, 4, 8)
    assert len(aggregator(features, slots)) == 2
    _, attention, logits = aggregator(features, slots, need_logits=True)
    torch.testing.assert_close(logits.softmax(dim=1), attention[-1])


# The reference's numbers


def test_fixture_of_slot_attention():
    model, features, slots = measured_slot_attention()
    result, attention = model(features, slots)
    close(result.sum(), 3.710116)
    close(result.abs().sum(), 31.29826)
    close(result.flatten()[:4], -0.421462, 1.109288, 1.406338, -0.30969)
    close(result.flatten()[-2:], 0.555998, -0.262425)
    close(attention[0].flatten()[:4], 0.352877, 0.321033, 0.319507, 0.352612)
    close(attention[1].flatten()[:4], 0.325634, 0.331936, 0.339265, 0.329457)
    close(attention[2].flatten()[:4], 0.343488, 0.330993, 0.327422, 0.340942)
    close(attention.sum(dim=(1, 2, 3)), 32.0, 32.0, 32.0)
    single, _ = model(features, slots, num_iterations=1)
    close(single.sum(), -0.847523)
    close(single.abs().sum(), 30.079795)


def test_fixture_of_masked_slot_attention():
    model, features, slots = measured_slot_attention()
    result, attention = model(features, slots, torch.tensor([[True, True, False], [True, True, True]]))
    close(result.sum(), 3.666926)
    close(result.abs().sum(), 31.205873)
    close(attention[-1].flatten()[:4], 0.527619, 0.494423, 0.484205, 0.520182)
