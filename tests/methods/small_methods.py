"""What the tests of methods share: losses and what they reach, and a training that is interrupted."""

import torch
from interruptions import stopped

from dias_lab.methods import checkpoint
from dias_lab.training.loop import fit

VIT = dict(
    backbone="vit_tiny_patch16_224", backbone_weights="random", backbone_arguments='{"depth": 3}', backbone_size=64
)


def total(model, output, progress=0.3):
    losses, weights = model.losses(output, progress)
    assert losses.keys() == weights.keys()
    return sum(weights[name] * losses[name] for name in losses)


def reached(model, loss):
    """The names of the parameters that a loss gives a gradient other than 0."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True, retain_graph=True)
    return {name for (name, _), gradient in zip(named, gradients) if gradient is not None and gradient.abs().max() > 0}


def interrupted(config, run_dir, at, monkeypatch, fit=fit):
    """What `fit` gives of a run that was interrupted before step `at`, and goes on."""
    stopped(config, run_dir, at, monkeypatch, fit)
    torch.randn(3)
    return fit(config, run_dir, progress=False)


def states(*run_dirs):
    """The trained states of the last checkpoints."""
    return [checkpoint.load_model(run_dir, "last").trained_state() for run_dir in run_dirs]
