"""The projector between features and aggregator, and how the parts before the decoder start.

Sources: the release Genera1Z/DIAS; the start as soft k-means: docs/scenes_recipe.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dias_lab.modules.conditioning import positions


def build_projector(config, dim: int, activation=nn.GELU, grid: tuple[int, int] | None = None) -> nn.Module:
    """From `dim` feature channels to the aggregator's, [B L C] -> [B L width]; a convolutional one needs the map's grid."""
    width = config.project_dim or dim
    if config.projector == "convolutional":
        return ConvolutionalProjector(dim, width, grid, config.projector_position, config.projector_width)
    hidden = config.project_hidden_dim or width
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), activation(), nn.Linear(hidden, width))


class ConvolutionalProjector(nn.Module):
    """Features and place, rotated into `width` channels, and what a small CNN adds to them, which starts as nothing.

    So aggregation may start as soft k-means of the features themselves, and learn what surroundings mean.
    """

    def __init__(self, dim: int, width: int, grid: tuple[int, int], position: float, hidden: int, num_layers: int = 3):
        super().__init__()
        self.grid, total = grid, dim + 3
        if width < total:
            raise ValueError(f"project_dim is {width}; the convolutional projector needs at least {total} for {dim} channels")
        place = torch.cat([position * positions(grid), torch.ones(1, *grid)]) * (dim / 6) ** 0.5
        self.register_buffer("place", place.flatten(1).T.contiguous(), persistent=False)  # [L 3]
        self.rotate = nn.Linear(total, width, bias=False)
        nn.init.orthogonal_(self.rotate.weight, gain=(width / total) ** 0.5)
        widths = [total] + [hidden] * (num_layers - 1)
        layers = [part for a, b in zip(widths, widths[1:]) for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
        self.surroundings = nn.Sequential(*layers, nn.Conv2d(hidden, width, 1))
        nn.init.zeros_(self.surroundings[-1].weight)
        nn.init.zeros_(self.surroundings[-1].bias)

    def forward(self, features: Float[Tensor, "B L C"]) -> Float[Tensor, "B L width"]:
        seen = torch.cat([features, self.place.to(features.dtype).expand(len(features), -1, -1)], dim=2)  # [B L C+3]
        added = self.surroundings(seen.transpose(1, 2).unflatten(2, self.grid))
        return self.rotate(seen) + added.flatten(2).transpose(1, 2)


def start(project: nn.Module, aggregator: nn.Module, config):
    """Biases start at 0; with `aggregator_start="k_means"`, aggregation starts as soft k-means on the features."""
    for module in (project, aggregator):
        zero_biases(module)
    if config.aggregator_start == "k_means":
        if isinstance(project, nn.Sequential):
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
