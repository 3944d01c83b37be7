"""SmoothSA: slots that are preheated, and which loss teaches what."""

import pytest
import torch
from small_methods import reached

from dias_lab.config import Config
from dias_lab.methods import build
from dias_lab.training.loop import Training


@pytest.mark.parametrize("progress, reaches_projector", [(0.0, False), (0.0999, False), (0.1, True), (1.0, True)])
def test_which_parameters_the_losses_of_smoothsa_reach(progress, reaches_projector, small_config, images):
    model = build(small_config.replace(method="smoothsa")).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.progress = progress
    losses, weights = model.losses(model(images), progress)
    assert weights == {"reconstruction": 1.0, "preheat": 100.0}
    parts = lambda names: {name.split(".")[0] for name in names}  # noqa: E731
    predicting = {name for name, _ in model.initializer.named_parameters(prefix="initializer")} - {
        "initializer.log_std_around"
    }
    preheat, reconstruction = reached(model, losses["preheat"]), reached(model, losses["reconstruction"])
    assert {name for name in preheat if name.startswith("initializer")} == predicting
    assert parts(preheat) == {"initializer", "project"} if reaches_projector else parts(preheat) == {"initializer"}
    assert {name for name in reconstruction if name.startswith("initializer")} == {"initializer.log_std_around"}
    assert parts(reconstruction) == {"initializer", "project", "aggregator", "decoder"}


@torch.no_grad()
def test_preheating_predicts_in_both_modes_and_adds_noise_in_training_only(small_config, images):
    model = build(small_config.replace(method="smoothsa"))
    draws = model.draw(range(3), seed=0)
    training, evaluation = model.train()(images, draws=draws), model.eval()(images, draws=draws)
    assert torch.equal(training.preheated, evaluation.preheated)
    projected = model.project(evaluation.features.flatten(2).transpose(1, 2))
    started = evaluation.preheated, training.preheated + draws["restart"]
    for slots, output in zip(started, (evaluation, training)):
        torch.testing.assert_close(model.aggregator(projected, slots).slots, output.slots)
    other = model(images, draws=model.draw(range(3), seed=1)).preheated
    assert not torch.equal(other, evaluation.preheated)  # the sample is random in evaluation, too
    given = model(images, initial_slots=draws["slots"]).preheated  # mean 0, spread 1 at the start: the same sample
    torch.testing.assert_close(given, evaluation.preheated)


def test_the_loop_says_how_far_the_training_is(small_config, tmp_path):
    training, seen = Training(small_config.replace(method="smoothsa", steps=4), tmp_path), []
    training.model.register_forward_pre_hook(lambda module, inputs: seen.append(module.progress))
    for batch in training.task.batches(training.learner.places, training.step):
        training.update(batch)
        training.step += 1
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Config(preheat_detached=2), "preheat_detached is a share"),
        (lambda: build(Config.preset("shapes", method="smoothsa", slot_dim=10)), "preheat_heads = 4 does not divide"),
    ],
)
def test_wrong_settings_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
