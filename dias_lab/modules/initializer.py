"""Slots before the first iteration: initializer(batch_size, noise [B N D]) -> slots [B N D]. Without noise it is drawn.

Sources: shared Gaussian: Locatello et al. 2020, arXiv:2006.15055; one Gaussian a slot: Jia et al. 2023 (BO-QSA),
arXiv:2210.08990; slots from boxes: SAVi, Kipf et al. 2022, arXiv:2111.12594, and the release Genera1Z/RandSF.Q; initial
values as in Genera1Z/DIAS. Preheating stands with SmoothSA, learned slots with SPOT.

Axes: B images, N slots, S boxes, D slot width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dias_lab.data.draws import Request, normal


class SharedGaussian(nn.Module):
    """All slots are drawn from one learned Gaussian, in evaluation too: only noise tells them apart."""

    def __init__(self, num_slots: int, slot_dim: int):
        super().__init__()
        self.num_slots = num_slots
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, slot_dim)))
        self.log_std = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, slot_dim)))

    def requests(self) -> list[Request]:
        return [normal("slots", self.num_slots, self.log_std.shape[-1])]

    def forward(self, batch_size: int, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        if noise is None:
            noise = torch.randn(batch_size, self.num_slots, self.log_std.shape[-1], device=self.log_std.device)
        return self.mean + noise * self.log_std.exp()


class SeparateGaussian(SharedGaussian):
    """One learned Gaussian a slot; evaluation takes the means."""

    def __init__(self, num_slots: int, slot_dim: int):
        nn.Module.__init__(self)
        self.num_slots = num_slots
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_slots, slot_dim))[None].clone())
        self.log_std = nn.Parameter(torch.full((1, num_slots, slot_dim), -0.5 * math.log(slot_dim)))

    def forward(self, batch_size: int, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        return super().forward(batch_size, noise) if self.training else self.mean.expand(batch_size, -1, -1)


class BoxSlots(nn.Sequential):
    """Slots from objects' boxes: (left, top, right, bottom) as shares of the side [B S 4] -> [B S D]; `norm`: a norm ends it."""

    def __init__(self, slot_dim: int, norm: bool = False):
        last = [nn.LayerNorm(slot_dim)] if norm else []
        super().__init__(nn.Linear(4, slot_dim), nn.GELU(), nn.Linear(slot_dim, slot_dim), *last)
