"""Slot Attention that keeps the attention map of every iteration.

Sources: Locatello et al. 2020, arXiv:2006.15055, Algorithm 1; keeping all maps follows DIAS, Zhao et al. 2025,
arXiv:2507.23755; truncation: Jia et al. 2023 (BO-QSA), arXiv:2210.08990.

Axes: B images, N slots, L = h * w locations, C feature channels, D slot width, T iterations.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Aggregation(NamedTuple):
    slots: Float[Tensor, "B N D"]
    attention: Float[Tensor, "T B N L"]  # sums to 1 over N: the slots compete for each location


class SlotAttention(nn.Module):
    """Iterated cross-attention from slots to features, normalised over slots."""

    def __init__(
        self, feature_dim: int, slot_dim: int, mlp_dim: int, num_iterations: int = 3, activation=nn.GELU, floor: float = 0.0,
        evaluation_iterations: int = 0,
    ):  # fmt: skip
        """`floor` is what every location gets before the mean over locations: 0, or 1e-8 as in the code of SPOT.

        `evaluation_iterations`: so many in evaluation; 0: as in training. Locatello et al. evaluate with more, too.
        """
        super().__init__()
        self.num_iterations, self.evaluation_iterations, self.floor = num_iterations, evaluation_iterations, floor
        self.norm_features = nn.LayerNorm(feature_dim)
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.to_query = nn.Linear(slot_dim, slot_dim, bias=False)
        self.to_key = nn.Linear(feature_dim, slot_dim, bias=False)
        self.to_value = nn.Linear(feature_dim, slot_dim, bias=False)
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.norm_mlp = nn.LayerNorm(slot_dim)
        self.mlp = nn.Sequential(nn.Linear(slot_dim, mlp_dim), activation(), nn.Linear(mlp_dim, slot_dim))

    @property
    def iterations(self) -> int:
        """How many a pass has, unless it is told."""
        return self.num_iterations if self.training else self.evaluation_iterations or self.num_iterations

    @torch.no_grad()
    def start_as_k_means(self, sharpness: float):
        """Initial values that make an iteration one of soft k-means on the normalised features, and no more than that.

        A slot's query is the slot itself, and its update, the mean of the features that it attends to, replaces it: the
        GRU forgets (but for tanh), the MLP adds nothing. `sharpness` is how decided the first maps are.
        """
        for linear in (self.to_query, self.to_key, self.to_value):
            nn.init.eye_(linear.weight)
        self.to_query.weight *= sharpness
        for parameter in (*self.gru.parameters(), *self.mlp[-1].parameters()):
            nn.init.zeros_(parameter)
        forget, new = self.gru.bias_ih.chunk(3)[1], self.gru.weight_ih.chunk(3)[2]  # the gates: reset, update, new
        forget.fill_(-4)  # the update gate's share of the old slot: 2 %
        nn.init.eye_(new)

    def forward(
        self,
        features: Float[Tensor, "B L C"],
        slots: Float[Tensor, "B N D"],
        keep: Bool[Tensor, "B N"] | None = None,
        num_iterations: int | None = None,
        truncate: bool = False,
        need_logits: bool = False,
    ) -> Aggregation:
        """Slots after the iterations, and every iteration's attention map.

        `truncate` (bi-level): gradients flow through the last iteration only, and from its start straight to the initial
        slots, as if the iterations before had been the identity; the values are the same. `need_logits`: a third result,
        the last iteration's logits [B N L], whose softmax over the slots is its map.

        Slots where `keep` is False stay out of the competition: their maps are exactly 0. Raises ValueError for fewer
        than one iteration, and for an image that keeps no slot (on a GPU that gives NaN: no look at the mask from here).
        """
        num_iterations = self.iterations if num_iterations is None else num_iterations
        if num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
        if keep is not None and keep.device.type == "cpu" and not keep.any(dim=1).all():
            raise ValueError("keep is False for every slot of an image: nothing is left to compete for its locations")
        key, value = self.keys_and_values(features)  # [B L D]
        initial, maps = slots, []
        for number in range(1, num_iterations + 1):
            if truncate and number == num_iterations:
                slots = straight_through(slots, initial)
            logits = self.logits(slots, key, keep)
            slots, attention = self.update(slots, logits, value)
            maps.append(attention)
        result = Aggregation(slots, torch.stack(maps))
        return (*result, logits) if need_logits else result

    def keys_and_values(self, features: Float[Tensor, "B L C"]) -> tuple[Tensor, Tensor]:
        """What the slots attend to, [B L D] each: the same in every iteration."""
        features = self.norm_features(features)
        return self.to_key(features), self.to_value(features)

    def step(self, slots, key, value, keep=None) -> tuple[Tensor, Tensor]:
        """One iteration: slots [B N D] and attention [B N L]."""
        return self.update(slots, self.logits(slots, key, keep), value)

    def logits(self, slots, key, keep=None) -> Float[Tensor, "B N L"]:
        """How well each slot fits each location; the attention map is their softmax over the slots."""
        query = self.to_query(self.norm_slots(slots)) * slots.shape[-1] ** -0.5
        logits = query @ key.transpose(1, 2)  # [B N L]
        return logits if keep is None else logits.masked_fill(~keep[:, :, None], -torch.inf)

    def update(self, slots, logits, value) -> tuple[Tensor, Tensor]:
        """The slots after an iteration, and its map. The GRU's state is the slot *before* its norm."""
        attention = logits.softmax(dim=1)  # over slots
        weights = attention + self.floor if self.floor else attention
        weights = weights / (weights.sum(dim=2, keepdim=True) + (0 if self.floor else 1e-5))  # mean over locations
        update = weights @ value
        slots = self.gru(update.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots + self.mlp(self.norm_mlp(slots)), attention


def straight_through(slots: Float[Tensor, "B N D"], initial: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """The values of `slots` with the gradient of `initial`."""
    return slots.detach() + (initial - initial.detach())  # exactly 0 is added
