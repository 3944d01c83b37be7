"""The projector between features and aggregator, and how the parts before the decoder start.

Sources: the release Genera1Z/DIAS; the start as soft k-means: docs/scenes_recipe.md.
"""

import torch
from torch import nn


def build_projector(config, dim: int, activation=nn.GELU) -> nn.Sequential:
    """LayerNorm and two linear layers, from `dim` feature channels to the aggregator's."""
    width = config.project_dim or dim
    hidden = config.project_hidden_dim or width
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), activation(), nn.Linear(hidden, width))


def start(project: nn.Sequential, aggregator: nn.Module, config):
    """Biases start at 0; with `aggregator_start="k_means"`, aggregation starts as soft k-means on the features."""
    for module in (project, aggregator):
        zero_biases(module)
    if config.aggregator_start == "k_means":
        start_as_identity(project)
        aggregator.start_as_k_means(config.sharpness)


def zero_biases(module: nn.Module):
    """The release starts the biases of linear layers and of the GRU at 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.GRUCell)):
            for name, parameter in part.named_parameters(recurse=False):
                if "bias" in name:
                    nn.init.zeros_(parameter)


@torch.no_grad()
def start_as_identity(project: nn.Sequential):
    """A projection that starts by handing on its normalised input: a large bias keeps it where GELU is a straight line."""
    _, first, _, second = project
    for linear, bias in ((first, 4), (second, -4)):
        nn.init.eye_(linear.weight)
        linear.bias.fill_(bias)
