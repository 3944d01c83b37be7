"""DINOSAUR: what it draws, and what its decoder asks of the settings."""

import pytest
import torch

from dias_lab.config import Config
from dias_lab.methods import build


@torch.no_grad()
def test_dinosaurs_evaluation_is_the_same_whatever_is_drawn(small_config, images):
    model = build(small_config.replace(method="dinosaur", decoder_mlp_dim=16)).eval()
    assert torch.equal(model(images).slots, model(images).slots)
    model = build(small_config.replace(method="dinosaur", decoder_mlp_dim=16, initializer="shared")).eval()
    assert not torch.equal(model(images).slots, model(images).slots)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Config(method="dinosaur"), 'method="dinosaur"'),
        (lambda: Config.preset("coco", method="dinosaur", decoder_layers=1), "at least 2"),
    ],
)
def test_wrong_settings_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
