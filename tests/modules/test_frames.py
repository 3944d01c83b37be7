"""Slot frames: what a slot paints moves with its attention; random order hides; what evaluation shows is said."""

import pytest
import torch

from dias_lab.config import Config
from dias_lab.methods.parts import build_decoder
from dias_lab.modules.frames import FramedDecoder, FramedRandomOrderDecoder

B, N, C, D, SIDE = 2, 3, 5, 8, 12
L = SIDE * SIDE


def spots(*centres, radius=1.5):
    """Attention [1 N L] of slots that look at round spots (row, column)."""
    place = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), dim=-1).view(L, 2).float()
    return torch.stack([torch.exp(-(place - torch.tensor(c)).square().sum(1) / (2 * radius**2)) for c in centres])[None]


@pytest.fixture(params=[FramedDecoder, FramedRandomOrderDecoder])
def decoder(request):
    torch.manual_seed(0)
    return request.param(C, D, (SIDE, SIDE), 16)


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, L, C, generator=generator), torch.randn(B, N, D, generator=generator), torch.rand(B, N, L).softmax(1)


def test_masks_compete_and_shapes_are_those_of_every_decoder(decoder, given):
    features, slots, frames = given
    rebuilt, attention = decoder.eval()(features, slots, frames=frames)
    assert rebuilt.shape == (B, L, C) and attention.shape == (B, N, L)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(B, L))
    keep = torch.tensor([[True, False, True], [True, True, True]])
    _, attention = decoder(features, slots, keep, frames=frames)
    assert (attention[~keep] == 0).all()


def test_slots_may_change_places(decoder, given):
    features, slots, frames = given
    order = torch.tensor([2, 0, 1])
    one, other = decoder.eval()(features, slots, frames=frames), decoder(features, slots[:, order], frames=frames[:, order])
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one[1][:, order], other[1], atol=1e-5, rtol=1e-4)


def test_what_a_slot_paints_moves_with_its_attention():
    torch.manual_seed(0)
    decoder = FramedDecoder(C, D, (SIDE, SIDE), 16).eval()
    slots = torch.randn(1, 2, D)
    features = torch.zeros(1, L, C)
    here, there = (decoder(features, slots, frames=spots(*c))[0].view(SIDE, SIDE, C) for c in (((4, 4), (7, 4)), ((4, 6), (7, 6))))
    torch.testing.assert_close(here[2:10, 2:7], there[2:10, 4:9], atol=0.05, rtol=0.05)
    assert (here[2:10, 2:7] - there[2:10, 2:7]).abs().max() > 0.2  # and does not stay


def test_the_frame_gets_a_gradient(decoder, given):
    features, slots, frames = given
    frames = frames.clone().requires_grad_(True)
    decoder.eval()(features, slots, frames=frames)[0].square().mean().backward()
    assert frames.grad.abs().max() > 0


def test_without_frames_it_says_what_is_missing(decoder, given):
    with pytest.raises(ValueError, match="give it as `frames`"):
        decoder(*given[:2])


def test_random_order_hides_what_is_not_visible(given):
    torch.manual_seed(0)
    decoder = FramedRandomOrderDecoder(C, D, (SIDE, SIDE), 16).train()
    torch.nn.init.normal_(decoder.direct.weight)
    features, slots, frames = given
    order, visible = torch.arange(L).expand(B, L), torch.tensor([5, 0])
    changed = features.clone()
    changed[:, 5:] += 1
    one, other = (decoder(x, slots, frames=frames, order=order, visible=visible)[0] for x in (features, changed))
    assert torch.equal(one, other)
    changed[:, :5] += 1
    moved = (decoder(changed, slots, frames=frames, order=order, visible=visible)[0] - one).abs().amax(dim=(1, 2))
    assert moved[0] > 1e-4 and moved[1] == 0


@pytest.mark.parametrize("frames", [True, False])
def test_evaluation_shows_what_it_is_told_to(frames, given):
    """With nothing visible the reconstruction cannot depend on the features."""
    features, slots, attention = given
    for shown in ("all", "none"):
        torch.manual_seed(0)
        config = Config(slot_frames=frames, evaluation_visible=shown, slot_dim=D, decoder_layers=1, decoder_heads=1, decoder_mlp_dim=16)
        decoder = build_decoder(config, C, (SIDE, SIDE)).eval()
        if frames:
            torch.nn.init.normal_(decoder.direct.weight)
        options = {"frames": attention} if decoder.framed else {}
        one, other = (decoder(x, slots, **options)[0] for x in (features, features + torch.randn_like(features)))
        assert torch.equal(one, other) == (shown == "none")
