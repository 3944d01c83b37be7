"""Slots before the first iteration.

Sources: shared Gaussian: Locatello et al. 2020, arXiv:2006.15055; one Gaussian a slot: Jia et al. 2023 (BO-QSA),
arXiv:2210.08990; initial values as in Genera1Z/DIAS.

Axes: B images, N slots, D slot width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SharedGaussian(nn.Module):
    """All slots are drawn from one learned Gaussian, in evaluation too: only noise tells them apart."""

    def __init__(self, num_slots: int, slot_dim: int):
        super().__init__()
        self.num_slots = num_slots
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, slot_dim)))
        self.log_std = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, slot_dim)))

    def forward(self, features, batch_size: int, condition=None, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        noise = _noise(self, batch_size) if noise is None else noise
        return self.mean + noise * self.log_std.exp()


class SeparateGaussian(nn.Module):
    """One learned Gaussian a slot; evaluation takes the means."""

    def __init__(self, num_slots: int, slot_dim: int):
        super().__init__()
        self.num_slots = num_slots
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_slots, slot_dim))[None].clone())
        self.log_std = nn.Parameter(torch.full((1, num_slots, slot_dim), -0.5 * math.log(slot_dim)))

    def forward(self, features, batch_size: int, condition=None, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        if not self.training:
            return self.mean.expand(batch_size, -1, -1)
        noise = _noise(self, batch_size) if noise is None else noise
        return self.mean + noise * self.log_std.exp()


def _noise(module, batch_size: int) -> Tensor:
    return torch.randn(batch_size, module.num_slots, module.mean.shape[-1], device=module.mean.device)
