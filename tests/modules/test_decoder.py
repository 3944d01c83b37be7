"""The decoders: random order, MLP, and permuted orders, with small unequal sizes; and the numbers of the reference's code."""

import math

import pytest
import torch
from published import ORDERS, close, load_measured, measured_slot_attention

from dias_lab.data.draws import draw
from dias_lab.modules.decoder import MLPDecoder, RandomOrderDecoder
from dias_lab.modules.permuted import PermutedDecoder, permutations
from dias_lab.modules.transformer import resize_position

B, N, L, C, D = 2, 4, 9, 12, 8


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return RandomOrderDecoder(C, D, L, 2, 2), torch.randn(B, L, C), torch.randn(B, N, D)


def test_masking_in_place_equals_permuting_and_permuting_back(decoder):
    model, features, slots = decoder
    order = torch.stack([torch.randperm(L) for _ in range(B)])
    visible = torch.tensor([2, 5])
    result, _ = model(features, slots, order=order, visible=visible)
    for b in range(B):  # as the release does it
        tokens = model.project_features(features[b : b + 1])[:, order[b]]
        tokens[:, visible[b] :] = model.mask_token
        hidden = model.norm_input(tokens + model.position[:, order[b]])
        for layer in model.layers:
            hidden, _ = layer(hidden, model.project_slots(slots[b : b + 1]))
        torch.testing.assert_close(result[b], hidden[0, order[b].argsort()])


def test_hidden_locations_do_not_leak(decoder):
    model, features, slots = decoder
    order, visible = torch.arange(L).expand(B, L), torch.tensor([3, 3])
    changed = features.clone()
    changed[:, 3:] += 1
    expected, _ = model(features, slots, order=order, visible=visible)
    torch.testing.assert_close(model(changed, slots, order=order, visible=visible)[0], expected)


def test_given_order_means_no_sampling(decoder):
    model, features, slots = decoder
    order = torch.arange(L).expand(B, L)
    everything = model(features, slots, order=order, visible=torch.tensor([L, L]))[0]
    assert torch.equal(model(features, slots, order=order)[0], everything)  # in training as well
    with pytest.raises(ValueError, match="give the order"):
        model(features, slots, visible=torch.tensor([1, 2]))


def test_the_decoders_own_draws_follow_the_release():
    drawn = draw(3, 0, range(300), RandomOrderDecoder(C, D, 256, 1).requests(256))
    order, visible = drawn["order"], drawn["visible"]
    assert torch.equal(order.sort(1).values, torch.arange(256).expand(300, 256))
    assert 0.35 < (visible == 24).float().mean() < 0.65 and 0 <= visible.min() and visible.max() <= 254


def test_evaluation_hides_nothing_and_is_deterministic(decoder):
    model, features, slots = decoder
    model.eval()
    assert torch.equal(model(features, slots)[0], model(features, slots)[0])
    model.train()
    assert not torch.equal(model(features, slots)[0], model(features, slots)[0])


def test_training_computes_no_attention_weights_unless_somebody_reads_them(decoder, monkeypatch):
    model, features, slots = decoder
    asked = []
    forward = torch.nn.MultiheadAttention.forward
    spy = lambda self, *a, need_weights=True, **k: asked.append(need_weights) or forward(self, *a, need_weights=need_weights, **k)  # noqa: E731, E501
    monkeypatch.setattr(torch.nn.MultiheadAttention, "forward", spy)
    assert model(features, slots)[1] is None and not any(asked)
    asked.clear()
    attention = model(features, slots, need_attention=True)[1]
    assert sum(asked) == 1  # the last layer's cross-attention
    torch.testing.assert_close(attention.sum(1), torch.ones(B, L))


@pytest.mark.parametrize("kind", [RandomOrderDecoder, MLPDecoder])
def test_decoder_gives_masked_slots_exactly_nothing(kind):
    torch.manual_seed(0)
    model = kind(C, D, L, 2).eval()
    keep = torch.tensor([[True, False, True, True], [False, True, False, True]])
    slots = torch.randn(B, N, D)
    reconstruction, attention = model(torch.randn(B, L, C).zero_(), slots, keep)
    assert (attention[~keep] == 0).all()
    torch.testing.assert_close(attention.sum(1), torch.ones(B, L))
    slots[~keep] += 1
    torch.testing.assert_close(model(torch.zeros(B, L, C), slots, keep)[0], reconstruction)


def test_position_table_resizes_and_says_so(decoder):
    model, _, slots = decoder
    with pytest.warns(UserWarning, match="3x3 to 4x4"):
        reconstruction, _ = model(torch.randn(B, 16, C), slots)
    assert reconstruction.shape == (B, 16, C)
    with pytest.raises(ValueError, match="12"):
        resize_position(model.position, 12)
    assert resize_position(model.position, L) is model.position


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="decoder_heads = 5"):
        RandomOrderDecoder(C, D, L, num_heads=5)


@torch.no_grad()
@pytest.mark.parametrize("slot_dim", [48, 64, 80])
def test_a_decoder_that_starts_as_a_lookup_finds_the_slot_that_holds_a_locations_feature(slot_dim):
    torch.manual_seed(0)
    features = torch.randn(B, N, 64)
    features[..., slot_dim:] = 0
    slots = torch.nn.functional.pad(features, (0, slot_dim - 64))  # slot n holds the feature of location n
    decoder = RandomOrderDecoder(64, slot_dim, N, num_layers=1, num_heads=2).eval()
    decoder.start_as_lookup()
    decoder.layers[0].self_attention.out_proj.weight.zero_()  # no look at the other locations
    _, attention = decoder(features, slots)
    assert torch.equal(attention.argmax(dim=1), torch.arange(N).expand(B, N))


DECODER_NAMES = {
    "position": "posit_embed._pe", "project_features": "project1", "project_slots": "project2", "norm_input": "norm0",
    "layers": "backbone.layers", "norm_self": "norm1", "norm_cross": "norm2", "norm_mlp": "norm3", "mlp.0": "linear1",
    "mlp.2": "linear2", "self_attention": "self_attn", "cross_attention": "multihead_attn",
}  # fmt: skip


def test_fixture_of_random_order_decoder():
    model, features, slots = measured_slot_attention()
    slots, _ = model(features, slots)
    decoder = load_measured(RandomOrderDecoder(12, 8, 16, 2, 2, 24), DECODER_NAMES)
    reconstruction, attention = decoder(features, slots)
    close(reconstruction.sum(), -6.301358)
    close(reconstruction.abs().sum(), 345.009396)
    close(reconstruction.flatten()[:4], -1.410266, 0.626065, 1.241295, -1.826186)
    close(attention.flatten()[:4], 0.287171, 0.362995, 0.376515, 0.285632)
    reconstruction, attention = decoder(features, slots, torch.tensor([[True, True, False], [True, True, True]]))
    close(reconstruction.sum(), -6.38128)
    close(attention.flatten()[:4], 0.404821, 0.566166, 0.602327, 0.400663)


# Permuted decoding


def test_the_nine_orders_are_those_of_spot():
    assert permutations(4, 4).tolist() == ORDERS
    spiral = permutations(14, 14)[8]
    assert spiral[:2].tolist() == [6 * 14 + 6, 7 * 14 + 6] and spiral[-1] == 13


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (3, 5), (15, 17)])
def test_every_order_visits_every_location_once(grid):
    orders, locations = permutations(*grid), math.prod(grid)
    assert orders.shape == (9, locations)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(locations).expand(9, -1))
    steps = orders[8].diff()  # a spiral goes to a neighbour each time
    assert set(steps.abs().tolist()) <= {1, grid[1]}


@torch.no_grad()
@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])
def test_a_location_depends_on_those_before_it_in_the_order_and_on_no_other(grid):
    torch.manual_seed(0)
    decoder = PermutedDecoder(12, 8, grid, num_layers=2, num_heads=2).eval()
    L = math.prod(grid)
    features, slots = torch.randn(1, L, 12), torch.randn(1, 3, 8)
    for number, order in enumerate(permutations(*grid)):
        before, maps = decoder(features, slots, permutation=torch.tensor([number]))
        for place, location in enumerate(order):
            changed = features.clone()
            changed[0, location] += 1
            after, other = decoder(changed, slots, permutation=torch.tensor([number]))
            moved = ((after - before).abs().amax(dim=2)[0] > 1e-6) | ((other - maps).abs().amax(dim=1)[0] > 1e-6)
            assert set(moved.nonzero().flatten().tolist()) == set(order[place + 1 :].tolist())


@torch.no_grad()
def test_each_image_may_have_its_own_order_and_evaluation_takes_raster_or_the_mean_of_all():
    torch.manual_seed(0)
    decoder = PermutedDecoder(12, 8, (2, 3), num_layers=1, num_heads=2)
    features, slots = torch.randn(2, 6, 12), torch.randn(2, 3, 8)
    each = [decoder(features, slots, permutation=torch.tensor([k, k]), need_attention=True) for k in range(9)]
    mixed = decoder(features, slots, permutation=torch.tensor([4, 8]))[0]
    torch.testing.assert_close(mixed, torch.stack([each[4][0][0], each[8][0][1]]))
    decoder.eval()
    torch.testing.assert_close(decoder(features, slots), each[0])
    decoder.evaluation = "all"
    expected = tuple(torch.stack(parts).mean(dim=0) for parts in zip(*each))
    torch.testing.assert_close(decoder(features, slots), expected)
    decoder.train()
    drawn = [decoder(features, slots)[0] for _ in range(80)]
    numbers = [[k for k in range(9) if torch.allclose(each[k][0], found, atol=1e-5)] for found in drawn]
    assert all(len(number) == 1 for number in numbers) and {number[0] for number in numbers} == set(range(9))


@torch.no_grad()
def test_decoding_tokens_sees_the_ones_before_and_knows_the_place():
    torch.manual_seed(0)
    decoder = PermutedDecoder(12, 8, (2, 3), num_layers=1, num_heads=2, num_permutations=1, positions=True, num_codes=5).eval()
    tokens, slots = torch.randn(1, 6, 12), torch.randn(1, 3, 8)
    before, attention = decoder(tokens, slots)
    assert before.shape == (1, 6, 5) and attention.shape == (1, 3, 6)
    for place in range(6):
        changed = tokens.clone()
        changed[0, place] += 1
        moved = (decoder(changed, slots)[0] - before).abs().amax(dim=2)[0] > 1e-6
        assert moved.nonzero().flatten().tolist() == list(range(place + 1, 6))
    decoder.position[0, 2] += torch.randn(12)  # the third is told to be elsewhere: those after it look at it
    moved = (decoder(tokens, slots)[0] - before).abs().amax(dim=2)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [2, 3, 4, 5]


def test_an_ordered_decoder_may_be_wider_than_the_features():
    decoder = PermutedDecoder(6, 8, (2, 3), num_layers=1, num_heads=4, dim=16).eval()
    features, slots = torch.randn(2, 6, 6), torch.randn(2, 3, 8)
    rebuilt, attention = decoder(features, slots, permutation=decoder.number(0, 2))
    assert rebuilt.shape == features.shape and attention.shape == (2, 3, 6) and decoder.layers[0].norm_mlp.weight.shape == (16,)
    later = features.clone()
    later[:, 3:] += 1  # no location sees those after it
    torch.testing.assert_close(decoder(later, slots, permutation=decoder.number(0, 2))[0][:, :4], rebuilt[:, :4])
    assert not isinstance(PermutedDecoder(6, 8, (2, 3), num_heads=2).readout, torch.nn.Linear)


@pytest.mark.parametrize("kind", ["permuted", "sampled"])
def test_gradients_of_the_table_of_positions_are_the_same_in_every_pass_with_two_threads(kind):
    """Many images add up at one place; else a resumed run would equal an unbroken one to rounding only."""
    torch.manual_seed(0)
    features, slots, threads = torch.randn(16, 144, 64), torch.randn(16, 5, 64), torch.get_num_threads()
    if kind == "permuted":
        decoder, more = PermutedDecoder(64, 64, (12, 12), 1, 2, 16, num_permutations=1, positions=True), {}
    else:
        decoder, more = MLPDecoder(64, 64, 144, 2, 16, 128), {"sampled": torch.stack([torch.randperm(144)[:128] for _ in range(16)])}
    found = []
    try:
        torch.set_num_threads(2)
        for _ in range(8):
            decoder.zero_grad()
            decoder(features, slots, **more)[0].square().sum().backward()
            found.append(decoder.position.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], one) for one in found)
