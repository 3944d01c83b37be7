"""SmoothSA in time: preheating from noise and from boxes, and which loss teaches what."""

import pytest
import torch
from published import load_swollen, near, swell
from small_methods import reached
from torch import nn

from dias_lab.methods import build
from dias_lab.methods.smoothsa import PreheatedGaussian
from dias_lab.modules.initializer import BoxSlots
from dias_lab.reference import published_names
from dias_lab.reference.names import NAMES

B, F, N = 2, 3, 5


@pytest.fixture
def config(small_config):
    return small_config.replace(clip_frames=F, method="smoothsa")


@pytest.fixture
def clips():
    return torch.rand(B, F, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


def measured(boxed):
    """Preheating in the state in which the reference's numbers were measured."""
    parts = nn.ModuleDict({"initializer": PreheatedGaussian(3, 8, 12, 4, 32)})
    if boxed:
        parts["boxes"], parts["initializer"].mean = BoxSlots(8, norm=True), None
    theirs = lambda name: published_names(name, NAMES["smoothsa clips"])[0].removeprefix("initializ.")  # noqa: E731
    return load_swollen(parts, theirs, more=["detach_flag"]), swell(2, 16, 12), swell(2, 3, 8, phase=5), swell(2, 3, 8, phase=6)


@torch.no_grad()
def test_measured_numbers_of_preheating():
    parts, features, sample, around = measured(boxed=False)
    initializer = parts["initializer"]
    for training, numbers in (
        (False, (61.047818, 196.165704, "3.358250 0.836030 3.997164 -0.419138", "0.627387 6.569100 -1.654832 2.453024")),
        (True, (67.797584, 200.539836, "2.779924 0.972206 4.373214 -0.023827", "0.443537 7.137103 -0.660346 1.307793")),
    ):
        near(initializer.train(training).preheat(features, initializer(2, noise=sample), around)[1], *numbers)


@torch.no_grad()
def test_measured_numbers_of_preheating_from_boxes():
    parts, features, sample, around = measured(boxed=True)
    initializer = parts["initializer"]
    boxes = [[[0.1, 0.2, 0.4, 0.6], [0.5, 0.1, 0.9, 0.3], [0, 0, 0, 0]], [[0.2, 0.2, 0.3, 0.9], [-1] * 4, [-1] * 4]]
    slots = parts["boxes"](torch.tensor(boxes, dtype=torch.float64))
    near(slots, -11.045776, 42.287890, "-2.225771 -1.269273 1.546388 0.588561", "-0.058039 -0.850140 0.192279 -1.967231")
    slots = slots + sample * initializer.log_std.exp()
    for training, numbers in (
        (False, (5.035527, 230.258362, "9.888246 4.861294 -5.548682 5.183746", "-7.744808 -5.587388 9.782594 -3.239843")),
        (True, (11.785292, 234.163035, "9.309920 4.997471 -5.172633 5.579057", "-7.928658 -5.019385 10.777081 -4.385074")),
    ):
        near(initializer.train(training).preheat(features, slots, around)[1], *numbers)


def test_its_own_settings(config, clips):
    assert (config.transition, config.transition_dropout, config.contrast_weight) == ("rsfq", 0.5, 0.5)
    model = build(config).train()
    output = model(clips, draws=model.draw(range(B), seed=1))
    assert output.iterations == (3, 1, 1) and output.preheated.shape == (B, N, 12)
    assert model.losses(output, 0.3)[1] == {"reconstruction": 1.0, "contrast": 0.5, "preheat": 100.0}
    again = model(clips, draws=model.draw(range(B), seed=1))
    assert torch.equal(again.slots, output.slots)  # dropout, too, follows from the draws
    alone = model(clips[1:], draws=model.draw([1], seed=1))
    torch.testing.assert_close(alone.slots[0], output.slots[1])


@pytest.mark.parametrize("condition", ["none", "boxes"])
def test_which_parameters_the_losses_reach(condition, config, clips):
    model = build(config.replace(condition=condition)).train()
    model.progress = 1.0
    boxes = torch.rand(B, 4, 4) if condition == "boxes" else None
    losses, _ = model.losses(model(clips, boxes=boxes, draws=model.draw(range(B), seed=1)), 1.0)
    start = {"initializer.mean"} if boxes is None else {f"boxes.{number}.{kind}" for number in (0, 2, 3) for kind in ("weight", "bias")}
    assert not hasattr(model, "boxes") or model.initializer.mean is None
    preheat, reconstruction, contrast = (reached(model, losses[name]) for name in ("preheat", "reconstruction", "contrast"))
    assert start | {"initializer.log_std"} <= preheat and not any(name.startswith(("transition", "aggregator")) for name in preheat)
    for found in (reconstruction, contrast):
        assert {name for name in found if name.startswith(("initializer", "boxes"))} == {"initializer.log_std_around"}
        assert {"transition.time.weight", "transition.project.weight", "aggregator.to_key.weight"} <= found


def test_slots_are_as_many_as_rows_of_boxes_and_noise_tells_padding_apart(config, clips):
    model = build(config.replace(condition="boxes")).eval()
    boxes = torch.full((B, 3, 4), -1.0)
    output = model(clips, boxes=boxes)
    assert output.slots.shape == (B, F, 3, 12) and output.keep.all()
    assert not torch.allclose(output.slots[:, 0, 0], output.slots[:, 0, 1])


@pytest.mark.parametrize("fields, truncated", [(dict(), True), (dict(truncation="none"), False), (dict(method="dias"), False)])
def test_gradients_go_through_a_frames_last_iteration_alone(fields, truncated, config, clips):
    model, seen = build(config.replace(next_iterations=2, **fields)).train(), []

    def look(module, inputs, more):
        seen.append(more.get("truncate", False))

    model.aggregator.register_forward_pre_hook(look, with_kwargs=True)
    model(clips)
    assert len(seen) >= F and set(seen) == {truncated}
