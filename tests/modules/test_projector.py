"""The projector between features and aggregator, and how it starts."""

import pytest
import torch
from torch import nn

from dias_lab.config import Config
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.projector import build_projector, start, start_as_identity, zero_biases


@pytest.mark.parametrize("width, hidden, expected", [(0, 0, (12, 12)), (20, 0, (20, 20)), (0, 7, (7, 12)), (20, 7, (7, 20))])
def test_widths_are_those_of_the_features_unless_given(width, hidden, expected):
    project = build_projector(Config(project_dim=width, project_hidden_dim=hidden), 12, nn.ReLU)
    norm, first, activation, second = project
    assert (first.out_features, second.out_features) == expected and isinstance(activation, nn.ReLU)
    assert norm.normalized_shape == (12,) and project(torch.randn(2, 9, 12)).shape == (2, 9, expected[1])


@pytest.mark.parametrize("width, hidden", [(0, 0), (8, 0), (0, 20), (8, 10)])
def test_a_projection_that_starts_as_the_identity_hands_on_its_normalised_input(width, hidden):
    project = build_projector(Config(project_dim=width, project_hidden_dim=hidden), 12)
    start_as_identity(project)
    features = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    normalised = nn.functional.layer_norm(features, (12,))[..., : width or 12]
    found = project(features)
    torch.testing.assert_close(found, nn.functional.gelu(normalised + 4) - 4, atol=1e-5, rtol=1e-5)
    assert (found - normalised)[normalised > -1.5].abs().max() < 0.02  # GELU is a straight line there


def test_biases_of_linear_layers_and_of_the_gru_start_at_zero():
    parts = nn.ModuleList([nn.Linear(3, 4), nn.GRUCell(3, 4), nn.LayerNorm(4), nn.Conv2d(3, 4, 1)])
    for parameter in parts.parameters():
        nn.init.ones_(parameter)
    zero_biases(parts)
    zero = {name for name, parameter in parts.named_parameters() if (parameter == 0).all()}
    assert zero == {"0.bias", "1.bias_ih", "1.bias_hh"}
    assert all((parameter == 1).all() for name, parameter in parts.named_parameters() if name not in zero)


@pytest.mark.parametrize("kind", ["random", "k_means"])
def test_aggregation_starts_as_the_config_says(kind):
    torch.manual_seed(0)
    config = Config(aggregator_start=kind)
    project, aggregator = build_projector(config, 12), SlotAttention(12, 8, 10)
    start(project, aggregator, config)
    assert (project[1].bias == 0).all() == (kind == "random")
    assert torch.equal(project[1].weight, torch.eye(12)) == (kind == "k_means")


def test_a_convolutional_projector_starts_as_a_rotation_of_features_and_place():
    config = Config(projector="convolutional", project_dim=16, projector_width=8, projector_position=0.5)
    project = build_projector(config, 6, grid=(4, 4))
    features = torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(0))
    found = project(features)
    assert found.shape == (2, 16, 16)
    seen = torch.cat([features, project.place.expand(2, -1, -1)], dim=2)
    ratio = torch.cdist(found[0], found[0])[0, 1:] / torch.cdist(seen[0], seen[0])[0, 1:]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-4, rtol=1e-4)  # distances stay in proportion
    nn.init.normal_(project.surroundings[-1].weight)
    other = features.clone()
    other[:, 5] += 1
    moved = (project(other) - project(features)).abs().amax(dim=(0, 2)) > 1e-6
    assert set(moved.nonzero().flatten().tolist()) > {4, 5, 6, 1, 9}  # neighbours hear of it
    with pytest.raises(ValueError, match="needs at least 9 for 6 channels"):
        build_projector(Config(projector="convolutional", project_dim=8), 6, grid=(4, 4))
