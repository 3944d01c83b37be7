"""Slots before the first iteration: initializer(batch_size, noise [B N D]) -> slots [B N D]. Without noise it is drawn.

Sources: shared Gaussian: Locatello et al. 2020, arXiv:2006.15055; one Gaussian a slot: Jia et al. 2023 (BO-QSA),
arXiv:2210.08990; learned slots: the code of SPOT, gkakogeorgiou/spot; preheated: the release Genera1Z/SmoothSA; initial
values as in Genera1Z/DIAS.

Axes: B images, N slots, L locations, C channels of the projected features, D slot width.
"""

import math

import torch
from jaxtyping import Bool, Float
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
        return [normal("slots", self.num_slots, self.mean.shape[-1])]

    def forward(self, batch_size: int, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        noise = _noise(self, batch_size) if noise is None else noise
        return self.mean + noise * self.log_std.exp()


class SeparateGaussian(nn.Module):
    """One learned Gaussian a slot; evaluation takes the means."""

    def __init__(self, num_slots: int, slot_dim: int):
        super().__init__()
        self.num_slots = num_slots
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_slots, slot_dim))[None].clone())
        self.log_std = nn.Parameter(torch.full((1, num_slots, slot_dim), -0.5 * math.log(slot_dim)))

    def requests(self) -> list[Request]:
        return [normal("slots", self.num_slots, self.mean.shape[-1])]

    def forward(self, batch_size: int, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        if not self.training:
            return self.mean.expand(batch_size, -1, -1)
        noise = _noise(self, batch_size) if noise is None else noise
        return self.mean + noise * self.log_std.exp()


class LearnedSlots(nn.Module):
    """The same learned slots for every image, in training, too: nothing is drawn."""

    def __init__(self, num_slots: int, slot_dim: int):
        super().__init__()
        self.slots = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_slots, slot_dim)))

    def requests(self) -> list[Request]:
        return []

    def forward(self, batch_size: int, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        return self.slots.expand(batch_size, -1, -1)


class PreheatedGaussian(nn.Module):
    """A sample of one shared Gaussian looks at the features before the first iteration does.

    A block predicts the slots that the aggregation will end with; the prediction, detached, starts the aggregation, in
    training with noise around it.
    """

    def __init__(self, num_slots: int, slot_dim: int, feature_dim: int, num_heads: int = 4, mlp_dim: int | None = None):
        super().__init__()
        self.num_slots = num_slots
        self.mean = nn.Parameter(torch.zeros(1, 1, slot_dim))
        self.log_std = nn.Parameter(torch.zeros(1, 1, slot_dim))
        self.log_std_around = nn.Parameter(torch.zeros(1, 1, slot_dim))
        self.project_features = nn.Linear(feature_dim, slot_dim)
        self.block = PreheatingBlock(slot_dim, num_heads, mlp_dim or 4 * slot_dim)

    def requests(self) -> list[Request]:
        return [normal(name, self.num_slots, self.mean.shape[-1]) for name in ("slots", "restart")]

    def forward(self, batch_size: int, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        """The sample, in evaluation, too: what `preheat` starts from."""
        noise = _noise(self, batch_size) if noise is None else noise
        return self.mean + noise * self.log_std.exp()

    def preheat(
        self, projected: Float[Tensor, "B L C"], sample: Float[Tensor, "B N D"], noise: Float[Tensor, "B N D"] | None = None,
        detach: bool = False, keep: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N D"]]:
        """The prediction, and the slots of the first iteration. `detach`: the projector gets no gradient from here.

        Slots outside `keep` are not seen by the others.
        """
        prediction = self.block(sample, self.project_features(projected.detach() if detach else projected), keep)
        slots = prediction.detach()
        if self.training:
            noise = _noise(self, len(sample)) if noise is None else noise
            slots = slots + noise * self.log_std_around.exp()
        return prediction, slots


class PreheatingBlock(nn.Module):
    """A transformer layer in another order: slots look at the features (without a norm), at each other, then the MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"preheat_heads = {num_heads} does not divide the slots' width {dim}")
        self.cross_attention = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.norm_self = nn.LayerNorm(dim, bias=False)
        self.self_attention = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.norm_mlp = nn.LayerNorm(dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim, bias=False), nn.GELU(), nn.Linear(mlp_dim, dim, bias=False))

    def forward(self, slots: Float[Tensor, "B N D"], features: Float[Tensor, "B L D"], keep=None) -> Float[Tensor, "B N D"]:
        slots = slots + self.cross_attention(slots, features, features, need_weights=False)[0]
        query, unseen = self.norm_self(slots), None if keep is None else ~keep
        slots = slots + self.self_attention(query, query, query, key_padding_mask=unseen, need_weights=False)[0]
        return slots + self.mlp(self.norm_mlp(slots))


def _noise(module, batch_size: int) -> Tensor:
    return torch.randn(batch_size, module.num_slots, module.mean.shape[-1], device=module.mean.device)
