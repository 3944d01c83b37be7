"""The codebook: its formula, what each of its losses moves, and that its codes stay alive."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dias_lab.modules.quantizer import Quantizer, convolution, perplexity


def small_quantizer(num_codes=7, commitment=0.25):
    torch.manual_seed(0)
    return Quantizer(nn.Conv2d(5, 4, 1), nn.Conv2d(4, 5, 1), num_codes, 4, commitment)


@torch.no_grad()
def test_the_quantizer_is_the_plain_formula():
    quantizer, values = small_quantizer(), torch.randn(2, 5, 2, 3)
    found = quantizer(values)
    w, b = quantizer.to_code.weight.double().numpy(), quantizer.to_code.bias.double().numpy()
    codes = quantizer.fixed.double().numpy() @ w.T + b
    into, out = ((c.weight[:, :, 0, 0].double().numpy(), c.bias.double().numpy()) for c in (quantizer.encode, quantizer.decode))
    places = [values[image, :, y, x].double().numpy() for image in range(2) for y in range(2) for x in range(3)]
    encoded = [into[0] @ value + into[1] for value in places]
    nearest = [min(range(7), key=lambda k: ((codes[k] - e) ** 2).sum()) for e in encoded]
    assert found.index.flatten().tolist() == nearest
    expected = np.stack([codes[k] for k in nearest])
    np.testing.assert_allclose(found.features.movedim(1, -1).reshape(12, 4), expected, atol=1e-5)
    decoded = np.mean([(out[0] @ code + out[1] - value) ** 2 for code, value in zip(expected, places)])
    aligned = np.mean([(code - e) ** 2 for code, e in zip(expected, encoded)])
    alive = np.mean([min(((code - e) ** 2).mean() for e in encoded) for code in codes])
    np.testing.assert_allclose(found.loss, decoded + 1.25 * aligned + alive, rtol=1e-5)
    shares = [nearest.count(k) / 12 for k in set(nearest)]
    np.testing.assert_allclose(found.perplexity, math.exp(-sum(p * math.log(p) for p in shares)), rtol=1e-5)


def test_each_term_moves_what_it_should():
    quantizer, values = small_quantizer(commitment=3.0), torch.randn(2, 5, 2, 3)
    grads = torch.autograd.grad(quantizer(values).loss, list(quantizer.parameters()))
    found = {name: gradient for (name, _), gradient in zip(quantizer.named_parameters(), grads)}
    encoded, codes = quantizer.encode(values), quantizer.codes()
    distance = (encoded.movedim(1, -1).reshape(12, 1, 4) - codes).square().sum(dim=2)  # [12 K]
    chosen = codes[distance.argmin(dim=1)].view(2, 2, 3, 4).movedim(-1, 1)
    at_code = chosen.detach().requires_grad_()
    decoding = torch.autograd.grad(F.mse_loss(quantizer.decode(at_code), values), at_code)[0]
    for_encoder = (decoding * encoded).sum() + 3 * F.mse_loss(encoded, chosen.detach())  # straight through, and commitment
    for name in ("weight", "bias"):
        expected = torch.autograd.grad(for_encoder, getattr(quantizer.encode, name), retain_graph=True)[0]
        torch.testing.assert_close(found[f"encode.{name}"], expected)
    drawn = encoded.detach().movedim(1, -1).reshape(12, 4)[distance.argmin(dim=0)]
    for_codes = F.mse_loss(chosen, encoded.detach()) + F.mse_loss(codes, drawn)
    for name in ("weight", "bias"):
        expected = torch.autograd.grad(for_codes, getattr(quantizer.to_code, name), retain_graph=True)[0]
        torch.testing.assert_close(found[f"to_code.{name}"], expected)
    assert not quantizer(values).features.requires_grad and not quantizer(values).perplexity.requires_grad


def test_perplexity_counts_the_codes_in_use():
    assert perplexity(torch.tensor([[3, 3], [3, 3]]), 9) == 1
    torch.testing.assert_close(perplexity(torch.arange(9), 9), torch.tensor(9.0))
    constant = small_quantizer()(torch.ones(2, 5, 3, 3))
    assert constant.perplexity == 1 and torch.isfinite(constant.loss)


@pytest.mark.parametrize("far", [0.0, 2.0])
def test_codes_do_not_die(far):
    """Nearly all codes find values, and these are told apart."""
    torch.manual_seed(0)
    encode = nn.Sequential(*convolution(4, 8), nn.Conv2d(8, 4, 1)) if far else nn.Identity()
    quantizer = Quantizer(encode, nn.Conv2d(4, 4, 1) if far else nn.Identity(), 32, 4)
    values = far + torch.randn(4, 4, 8, 8)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.03)
    for _ in range(200):
        loss = quantizer(values).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = quantizer(values)
    print(far, found.index.unique().numel(), found.perplexity, loss)
    assert found.index.unique().numel() >= 24 and found.perplexity > 12


def test_the_fixed_vectors_are_always_the_same_and_no_part_of_a_checkpoint():
    first = small_quantizer()
    torch.manual_seed(9)
    second = Quantizer(nn.Identity(), nn.Identity(), 7, 4)
    assert torch.equal(first.fixed, second.fixed) and "fixed" not in first.state_dict()
