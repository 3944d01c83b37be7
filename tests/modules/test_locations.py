"""MLP decoders that learn from some locations: the same as of all, at those; and what it saves."""

import pytest
import torch

from dias_lab import losses
from dias_lab.config import Config
from dias_lab.data.draws import draw
from dias_lab.methods import build
from dias_lab.methods.parts import build_decoder
from dias_lab.training.cost import step_costs

B, N, C, D, GRID = 2, 4, 9, 6, (5, 7)
L, K = 35, 8


def made(framed, **fields):
    torch.manual_seed(0)
    options = dict(decoder="mlp", slot_frames=framed, slot_dim=D, decoder_mlp_dim=16, decoder_layers=3, decoder_locations=K)
    return build_decoder(Config(**options | fields), C, GRID)


@pytest.mark.parametrize("framed", [False, True])
def test_some_locations_are_those_of_all(framed):
    torch.manual_seed(1)
    features, slots, keep = torch.randn(B, L, C), torch.randn(B, N, D), torch.tensor([[True] * 4, [True, False, True, True]])
    decoder, options = made(framed), {"frames": torch.rand(B, N, L).softmax(1)} if framed else {}
    sampled = draw(0, 0, range(B), decoder.requests(L))["sampled"]
    rebuilt, attention = decoder(features, slots, keep, **options)
    some, their = decoder(features, slots, keep, sampled=sampled, **options)
    assert some.shape == (B, K, C) and their.shape == (B, N, K) and (their[1, 1] == 0).all()
    for b in range(B):
        torch.testing.assert_close(some[b], rebuilt[b, sampled[b]])
        torch.testing.assert_close(their[b], attention[b, :, sampled[b]])


def test_each_image_and_step_draws_other_locations_and_none_twice():
    decoder = made(False)
    one, other = (draw(3, step, range(50), decoder.requests(L))["sampled"] for step in (0, 1))
    assert one.shape == (50, K) and one.dtype == torch.int64 and not torch.equal(one, other) and not torch.equal(one[0], one[1])
    assert all(len(set(row)) == K for row in one.tolist()) and set(one.flatten().tolist()) == set(range(L))
    assert made(False, decoder_locations=0).requests(L) == []


@pytest.mark.parametrize("framed", [False, True])
def test_training_counts_the_sampled_locations_and_evaluation_has_all(framed, small_config):
    images = torch.randn(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    options = dict(method="dinosaur", initializer="shared", decoder="mlp", decoder_mlp_dim=16, slot_frames=framed)
    model = build(small_config.replace(**options, decoder_locations=K)).train()
    draws = model.draw(range(3), seed=0)
    output = model(images, draws=draws, decoder_attention=True)
    assert torch.equal(output.sampled, draws["sampled"])
    there = torch.zeros(3, 64, dtype=torch.bool).scatter(1, output.sampled, True)
    rebuilt, target = (values.flatten(2).transpose(1, 2) for values in (output.reconstruction, output.features))
    assert (rebuilt[~there] == 0).all() and (output.decoder_attention.flatten(2).sum(1) > 0.99).equal(there)
    loss = model.losses(output, 0.5)[0]["reconstruction"]
    torch.testing.assert_close(loss, (rebuilt - target)[there].square().mean())
    all_of_them = model.eval()(images, draws=draws)
    assert all_of_them.sampled is None and (all_of_them.reconstruction != 0).all()
    rebuilt_now = all_of_them.reconstruction.flatten(2).transpose(1, 2)
    torch.testing.assert_close(rebuilt_now[there], rebuilt[there])


def test_the_loss_of_all_locations_in_any_order_is_the_loss():
    torch.manual_seed(0)
    one, other, order = torch.randn(B, C, *GRID), torch.randn(B, C, *GRID), torch.stack([torch.randperm(L) for _ in range(B)])
    torch.testing.assert_close(losses.reconstruction_loss(one, other, order), losses.reconstruction_loss(one, other))


def test_it_saves_operations_and_memory(small_config):
    config = small_config.replace(method="dinosaur", decoder="mlp", decoder_mlp_dim=256)
    costs = step_costs({"all": config, "some": config.replace(decoder_locations=K)}, repeats=0)
    assert costs.operations["some"] < 0.3 * costs.operations["all"] and costs.saved["some"] < 0.4 * costs.saved["all"]


@pytest.mark.parametrize("fields", [{}, dict(decoder="raster"), dict(method="spot", decoder="mlp"), dict(method="vqdino", decoder="mlp")])
def test_a_decoder_that_needs_all_locations_is_refused(fields):
    with pytest.raises(ValueError, match='decoder_locations is 32, .* take decoder="mlp"'):
        Config(**dict(decoder_locations=32) | fields)


def test_more_locations_than_there_are_is_refused(small_config):
    with pytest.raises(ValueError, match="decoder_locations is 65, and the feature map has 64 locations"):
        build(small_config.replace(decoder="mlp", decoder_locations=65))
    build(small_config.replace(decoder="mlp", decoder_locations=64))
