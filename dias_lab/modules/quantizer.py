"""Quantizer: every location gets the nearest code of one codebook, which all images share.

Sources: VQ-VAE with its straight-through gradient: van den Oord et al. 2017, arXiv:1711.00937; codes as one learned
linear map of fixed random vectors, so that all move with those in use: SimVQ, Zhu et al. 2024, arXiv:2411.02038; both for
features: VQ-VFM-OCL, Zhao et al. 2025, arXiv:2502.20263, and its release Genera1Z/VQ-VFM-OCL. What is otherwise here is in
docs/quantised_targets.md: above all, the quantizer learns beside the method and not before it, decodes its input and not
the image (a cache of features has none), and codes without a location are drawn to one, in place of noise.

Axes: B images, C channels of the input, h w locations, K codes, E channels of a code.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Quantised(NamedTuple):
    features: Float[Tensor, "B E h w"]  # each location's code; no gradient goes through it
    index: Int[Tensor, "B h w"]  # the code's number
    loss: Float[Tensor, ""]
    perplexity: Float[Tensor, ""]  # how many codes this batch used, as exp(entropy): 1 to K

    def losses(self) -> tuple[dict, dict]:
        """What the training adds up, and its weights. The perplexity is only logged: near 1 the codebook has collapsed."""
        return {"quantization": self.loss, "perplexity": self.perplexity}, {"quantization": 1.0, "perplexity": 0.0}


class Quantizer(nn.Module):
    """Encode, take the nearest code, decode. It learns from its own loss alone, and nothing else learns from that."""

    def __init__(self, encode: nn.Module, decode: nn.Module, num_codes: int, code_dim: int, commitment: float = 0.25):
        super().__init__()
        self.encode, self.decode, self.commitment = encode, decode, commitment
        fixed = torch.randn(num_codes, 4 * code_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("fixed", fixed, persistent=False)
        self.to_code = nn.Linear(4 * code_dim, code_dim)

    def codes(self) -> Float[Tensor, "K E"]:
        return self.to_code(self.fixed)

    def forward(self, values: Float[Tensor, "B C h w"]) -> Quantised:
        """Every location's code, and the loss, a sum of mean squared errors.

        Of the decoded to the given values; of each location's code to its encoded value, and of each code to the nearest
        encoded value (both move the codes); and, times `commitment`, of encoded values to their codes (moves the encoder).
        """
        values, codes = values.detach(), self.codes()
        encoded = self.encode(values)  # [B E h w]
        places = encoded.detach().movedim(1, -1).flatten(0, 2)  # [B*h*w E]
        distance = torch.cdist(places, codes.detach())  # [B*h*w K]
        index = distance.argmin(dim=1).unflatten(0, encoded[:, 0].shape)  # [B h w]
        chosen = F.embedding(index, codes).movedim(-1, 1)  # [B E h w]
        straight = encoded + (chosen - encoded).detach()  # the code, with the gradient of the encoded value
        loss = F.mse_loss(self.decode(straight), values) + F.mse_loss(chosen, encoded.detach())
        loss = loss + F.mse_loss(codes, places[distance.argmin(dim=0)])  # keeps codes alive that nobody is nearest to
        loss = loss + self.commitment * F.mse_loss(encoded, chosen.detach())
        return Quantised(chosen.detach(), index, loss, perplexity(index, len(codes)))


def perplexity(index: Int[Tensor, "..."], num_codes: int) -> Float[Tensor, ""]:
    """exp(entropy) of how often each code is used: 1 where one code takes all, K where all are used alike."""
    flat = index.flatten()
    count = flat.new_zeros(num_codes).scatter_add_(0, flat, torch.ones_like(flat))  # bincount would wait for a GPU
    share = count / flat.numel()
    return torch.special.entr(share).sum().exp()


def build_quantizer(config, feature_dim: int) -> Quantizer:
    """The quantizer of a backbone's features. With `code_dim=0` the codes are features: nothing encodes or decodes."""
    if not config.code_dim:
        return Quantizer(nn.Identity(), nn.Identity(), config.codebook_size, feature_dim, config.commitment_weight)
    blocks = [part for _ in range(3) for part in convolution(feature_dim, feature_dim)]
    encode = nn.Sequential(*blocks, nn.Conv2d(feature_dim, config.code_dim, 1))
    decode = nn.Sequential(*convolution(config.code_dim, feature_dim), nn.Conv2d(feature_dim, feature_dim, 1))
    return Quantizer(encode, decode, config.codebook_size, config.code_dim, config.commitment_weight)


def convolution(source: int, target: int) -> list[nn.Module]:
    """Each location looks at its eight neighbours."""
    return [nn.Conv2d(source, target, 3, padding=1), nn.GroupNorm(1, target), nn.SiLU()]
