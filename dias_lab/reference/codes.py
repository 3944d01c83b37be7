"""STEVE and VVO-TfdT as published (Genera1Z/VQ-VFM-OCL, conditional, MOVi-D): their second stage, whose codes are fixed.

Otherwise than in methods/: the codes were learned before (stages.py), with an encoder of their own, and stay; the decoder takes
codes and slots as they are; TfdT projects features by two linear layers with nothing between. The release draws codes in
training, and has dropout of 1 % in some places; neither is here. Position tables start at 0, since these models are for loading.

Axes: B frames of all clips, K codes, E channels of a code, C channels of what is encoded, R pixels of the square, h w locations.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dias_lab.methods.steve import STEVE
from dias_lab.methods.tfdt import TfdT
from dias_lab.modules.quantizer import Quantised, perplexity

WIDTH = 64  # channels of STEVE's encoder


class FixedCodes(nn.Module):
    """Encode, and take the nearest code. Nothing is learnt: the loss is 0."""

    def __init__(self, encode: nn.Module, num_codes: int, code_dim: int, drawn_dim: int = 0):
        """`drawn_dim`: the codes are a linear map of random vectors of so many channels; 0: they are the table itself."""
        super().__init__()
        self.encode = encode
        self.register_buffer("codebook", torch.randn(num_codes, drawn_dim or code_dim))
        self.to_code = nn.Linear(drawn_dim, code_dim) if drawn_dim else nn.Identity()
        self.requires_grad_(False)

    def codes(self) -> Float[Tensor, "K E"]:
        return self.to_code(self.codebook)

    @torch.no_grad()
    def forward(self, values: Float[Tensor, "B C h w"]) -> Quantised:
        encoded, codes = self.encode(values).movedim(1, -1), self.codes()  # [B h w E]
        index = torch.cdist(encoded.flatten(0, 2), codes).argmin(dim=1).view(encoded.shape[:3])
        return Quantised(codes[index].movedim(-1, 1), index, codes.new_zeros(()), perplexity(index, len(codes)))


class AsTheyAre:
    """The decoder's part of it."""

    def __init__(self, config):
        if config.code_dim != config.slot_dim:
            raise ValueError(f"slots are a decoder's memory as they are: slot_dim {config.slot_dim}, code_dim {config.code_dim}")
        super().__init__(config)
        self.decoder.project_features = self.decoder.project_slots = nn.Identity()


class PublishedSTEVE(AsTheyAre, STEVE):
    def build_quantizer(self) -> FixedCodes:
        return pixel_codes(self.config)

    def quantise(self, images: Float[Tensor, "B 3 R R"] | None, features) -> Quantised:
        if images is None:
            raise ValueError("STEVE's codes come from pixels: give the images, features alone will not do")
        return self.quantizer(halved(images))


class PublishedTfdT(AsTheyAre, TfdT):
    def __init__(self, config):
        super().__init__(config)
        dim, hidden = self.backbone.feature_dim, config.project_hidden_dim
        self.project = nn.Sequential(nn.Linear(dim, hidden), nn.Identity(), nn.Linear(hidden, config.project_dim))

    def build_quantizer(self) -> FixedCodes:
        return feature_codes(self.config, self.backbone.feature_dim)


def feature_codes(config, dim: int) -> FixedCodes:
    """Codes of features of so many channels."""
    layers = [part for _ in range(3) for part in (nn.Conv2d(dim, dim, 3, padding=1), nn.GroupNorm(1, dim), nn.SiLU())]
    encode = nn.Sequential(nn.Sequential(*layers[:-2]), nn.GroupNorm(1, dim), nn.Conv2d(dim, config.code_dim, 1))
    return FixedCodes(encode, config.codebook_size, config.code_dim, 4 * config.code_dim)


def pixel_codes(config) -> FixedCodes:
    """Codes of pictures: eight by eight pixels become one."""
    layers = [nn.Conv2d(3, WIDTH, 3, padding=1), Block()]
    for _ in range(3):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False), Block(), Block(), Block()]
    end = nn.GroupNorm(1, WIDTH), nn.Conv2d(WIDTH, config.code_dim, 1)
    return FixedCodes(nn.Sequential(nn.Identity(), nn.Sequential(*layers), *end), config.codebook_size, config.code_dim)


def halved(images: Float[Tensor, "B 3 R R"]) -> Float[Tensor, "B 3 R/2 R/2"]:
    """Normalised pictures as the encoder of pixels takes them."""
    return (F.interpolate(images, [side // 2 for side in images.shape[2:]], mode="bicubic") + 1) / 2


class Block(nn.Module):
    """Three convolutions beside a skip."""

    def __init__(self):
        super().__init__()
        parts = [part for _ in range(3) for part in (nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU())]
        self.conv = nn.Sequential(*parts[:-1])

    def forward(self, values):
        return F.relu(self.conv(values) + values)
