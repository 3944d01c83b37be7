"""The MLP decoder's start as a lookup: the closest slot paints what it holds."""

import pytest
import torch

from dias_lab.config import Config
from dias_lab.data import scenes
from dias_lab.methods import build
from dias_lab.modules.conditioning import positions
from dias_lab.modules.decoder import MLPDecoder

GRID, C, D, N = (6, 9), 7, 10, 5


@torch.no_grad()
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_the_closest_slot_paints_what_it_holds(layers):
    torch.manual_seed(layers)
    place = positions(GRID).flatten(1).T  # [L 2]
    centres = place[torch.randperm(len(place))[:N]]
    slots = torch.zeros(1, N, D)
    slots[0, :, : C - 2], slots[0, :, C - 2 : C] = torch.rand(N, C - 2) - 0.5, centres.tanh()
    decoder = MLPDecoder(C, D, len(place), layers, 32)
    decoder.start_as_lookup(positions(GRID), weight=1.0, sharpness=100.0)
    rebuilt, attention = decoder(torch.zeros(1, len(place), C), slots)
    distance = (centres.tanh()[:, None] - place.tanh()).abs().sum(dim=2)  # [N L]
    nearest = distance.sort(dim=0)
    clear = nearest.values[1] - nearest.values[0] > 0.2
    assert clear.sum() > len(place) / 2
    assert torch.equal(attention[0].argmax(0)[clear], nearest.indices[0][clear])
    torch.testing.assert_close(rebuilt[0, :, C - 2 :], place)  # every location knows where it is
    torch.testing.assert_close(rebuilt[0, clear, : C - 2], slots[0, nearest.indices[0][clear], : C - 2], atol=0.02, rtol=0)


@torch.no_grad()
def test_an_untrained_decoder_reconstructs_from_slots_of_k_means():
    """On toys: half the error of the random start, whose reconstruction says nothing."""
    images, errors = torch.stack([torch.from_numpy(scenes.scene(seed)[0]).movedim(2, 0) for seed in range(12)]), {}
    fields = dict(
        backbone="colour", backbone_size=96, image_size=128, conditioning="whiten", position_weight=1.0, num_slots=7, slot_dim=16,
        slot_mlp_dim=16, num_iterations=5, aggregator_start="k_means", decoder_layers=3, decoder_mlp_dim=64, initializer="shared",
    )  # fmt: skip
    for start in ("random", "lookup"):
        model = build(Config.preset("coco", method="dinosaur", decoder_start=start, **fields)).eval()
        prepared = model.prepare(images)
        model.backbone.fit(model.backbone.backbone(prepared).movedim(1, -1).flatten(0, 2))
        output = model(prepared, draws=model.draw(range(len(images)), seed=0))
        errors[start] = (output.reconstruction - output.features).square().mean() / output.features.square().mean()
        alike = (output.attention[-1].argmax(1) == output.decoder_attention.argmax(1)).float().mean()
    assert errors["random"] > 0.95 and errors["lookup"] < 0.6
    assert alike > 0.5  # the slot that paints a location is the one that looks there


def test_the_start_is_the_same_whatever_the_method(small_config):
    fields = dict(decoder="mlp", decoder_start="lookup", position_weight=1.0, slot_dim=20, decoder_mlp_dim=64)
    states = [build(small_config.replace(**fields, method=method)).decoder for method in ("dias", "smoothsa", "dinosaur")]
    for decoder in states:
        assert (decoder.mlp[-1].weight[-1] < 0).sum() == 4 and (decoder.position != 0).any()


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(), "needs position_weight above 0"),
        (dict(position_weight=1.0, projector="convolutional"), 'projector="mlp"'),
        (dict(position_weight=1.0, project_dim=64), "project_dim=0"),
        (dict(position_weight=1.0, slot_frames=True), "not for slot frames"),
        (dict(slot_frames=True, decoder="random_order"), "not for slot frames"),
        (dict(position_weight=1.0, slot_dim=19), "slot_dim is 19; take at least 20"),
        (dict(position_weight=1.0, slot_dim=20, decoder_mlp_dim=39), "decoder_mlp_dim is 39; take at least 40"),
    ],
)
def test_where_it_cannot_begin_as_a_lookup_it_says_so(fields, words, small_config):
    with pytest.raises(ValueError, match=words):
        build(small_config.replace(**dict(decoder="mlp", decoder_start="lookup") | fields))
