"""Slots before the first iteration."""

import math

import pytest
import torch
from published import load_swollen, near

from dias_lab.data.draws import draw
from dias_lab.methods.smoothsa import PreheatedGaussian
from dias_lab.methods.spot import LearnedSlots
from dias_lab.modules.initializer import BoxSlots, SeparateGaussian, SharedGaussian

B, N, L, C, D = 2, 4, 9, 12, 8


def test_shared_gaussian_draws_in_evaluation_too_and_separate_does_not():
    shared, separate = SharedGaussian(N, D).eval(), SeparateGaussian(N, D).eval()
    assert shared.mean.abs().max() <= math.sqrt(6 / (D + D)) + 1e-6
    assert not torch.equal(shared(B), shared(B))
    assert torch.equal(separate(B), separate(B))
    assert not torch.equal(separate.train()(B), separate(B))
    noise = torch.zeros(B, N, D)
    assert torch.equal(shared(B, noise=noise), shared.mean.expand(B, N, D))


@pytest.mark.parametrize(
    "initializer, names",
    [
        (SharedGaussian(N, D), {"slots"}),
        (SeparateGaussian(N, D), {"slots"}),
        (LearnedSlots(N, D), set()),
        (PreheatedGaussian(N, D, C), {"slots", "restart"}),
    ],
)
def test_an_initializer_asks_for_the_noise_that_it_takes(initializer, names):
    draws = draw(0, 0, range(B), initializer.requests())
    assert draws.keys() == names and all(noise.shape == (B, N, D) for noise in draws.values())
    slots = initializer(B, noise=draws.get("slots"))
    assert slots.shape == (B, N, D) and torch.equal(slots, initializer(B, noise=draws.get("slots")))


def test_learned_slots_are_the_same_for_every_image_and_in_training_too():
    initializer = LearnedSlots(N, D).train()
    assert torch.equal(initializer(B), initializer.slots.expand(B, N, D))


def test_preheating_learns_from_its_prediction_and_may_leave_the_projector_alone():
    torch.manual_seed(0)
    initializer = PreheatedGaussian(N, D, C, num_heads=2, mlp_dim=10).train()
    projected, sample = torch.randn(B, L, C, requires_grad=True), initializer(B, noise=torch.randn(B, N, D))
    for detach in (True, False):
        prediction, slots = initializer.preheat(projected, sample, noise=torch.zeros(B, N, D), detach=detach)
        assert torch.equal(slots, prediction)
        gradient = torch.autograd.grad(prediction.sum(), projected, allow_unused=True)[0]
        assert (gradient is None) == detach
        weights = [initializer.project_features.weight, initializer.log_std_around]
        assert [g is None for g in torch.autograd.grad(slots.sum(), weights, allow_unused=True)] == [True, False]
    with pytest.raises(ValueError, match="preheat_heads = 3"):
        PreheatedGaussian(N, D, C, num_heads=3)


def test_measured_numbers_of_slots_from_boxes():
    boxes = [[[0.1, 0.2, 0.4, 0.6], [0.5, 0.1, 0.9, 0.3], [0, 0, 0, 0]], [[0.2, 0.2, 0.3, 0.9], [-1] * 4, [-1] * 4]]
    slots = load_swollen(BoxSlots(8), str)(torch.tensor(boxes, dtype=torch.float64))
    near(slots, -6.016583, 26.047203, "-0.538469 -0.360048 0.490502 -0.456104", "1.245635 0.127038 -1.350810 -0.441189")
