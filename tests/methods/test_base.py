"""What `Method` itself does, whatever the method: preparing images, segments, loading weights."""

import pytest
import torch

from dias_lab.config import METHODS, Config
from dias_lab.methods import build, segments_from


def test_prepare_takes_the_centre_square_and_normalises(small_config):
    model = build(small_config)
    images = torch.zeros(2, 3, 100, 300, dtype=torch.uint8)
    images[..., 100:200] = 255
    segments = torch.zeros(2, 100, 300, dtype=torch.uint8)
    segments[..., 100:200] = 1
    prepared, cut = model.prepare(images, segments)
    assert prepared.shape == (2, 3, 128, 128) and cut.shape == (2, 128, 128)
    assert (cut == 1).all() and torch.allclose(prepared, torch.tensor(2.0))  # (1 - mean) / std
    assert model.prepare(images).shape == (2, 3, 128, 128)


@pytest.mark.parametrize("preset", ["scenes", "shapes"])
@pytest.mark.parametrize("method", [method for method, entry in METHODS.items() if entry.place])
def test_every_method_can_be_built_for_the_built_in_scenes(method, preset):
    assert build(Config.preset(preset, method=method)).backbone.feature_dim == {"scenes": 6, "shapes": 64}[preset]


@pytest.mark.parametrize(
    "images, segments, words",
    [
        (torch.full((1, 3, 8, 8), float("nan")), None, "uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), None, r"\[B 3 H W\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), None, r"\[B 3 H W\]"),
        (torch.zeros(1, 3, 0, 8, dtype=torch.uint8), None, "at least one pixel"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 9, 8), "segments"),
    ],
)
def test_wrong_images_are_refused(images, segments, words, small_config):
    with pytest.raises(ValueError, match=words):
        build(small_config).prepare(images, segments)


def test_segments_are_the_arg_max_of_the_upsampled_maps():
    maps = torch.tensor([[[[0.9, 0.1], [0.9, 0.1]], [[0.1, 0.9], [0.1, 0.9]]]])
    segments = segments_from(maps, 4)
    assert segments.tolist() == [[[0, 0, 1, 1]] * 4]


def test_weights_of_another_model_are_refused_by_name(small_config):
    model, other = build(small_config), build(small_config.replace(slot_dim=16))
    with pytest.raises(ValueError, match=r"initializer.mean is \(1, 1, 16\), not \(1, 1, 12\)"):
        model.load_trained_state(other.trained_state())
    state = model.trained_state()
    state["extra"] = state.pop("decoder.mask_token")
    with pytest.raises(ValueError, match="missing decoder.mask_token; unknown extra"):
        model.load_trained_state(state)
