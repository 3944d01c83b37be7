"""Transitions, the predictor of the loop over frames: from the slots of past frames to those that the next one starts from.

All are called alike, transition(past, keep [B N], draws [B 3]) -> slots [B N D], and look back `window` frames. Draws are
training's random numbers; without them it is as in evaluation.

Sources: the encoder layer: SAVi, Kipf et al. 2022, arXiv:2111.12594, here with norms after and without biases, as in
Genera1Z/RandSF.Q; RSFQ, queries from random slots and features: that release, and Genera1Z/SmoothSA.

Axes: B clips, N slots, M what they look at, A heads, L = h * w locations, K channels of projected features, D slot width.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dias_lab.data.draws import Request, dropped


class Past(NamedTuple):
    """Oldest first: the slots of past frames, and the projected features of the same ones and of the present one."""

    slots: tuple[Float[Tensor, "B N D"], ...]
    projected: tuple[Float[Tensor, "B L K"], ...]


class Identity(nn.Module):
    """A frame starts from the slots of the one before."""

    window = 1

    def requests(self) -> list[Request]:
        return []

    def forward(self, past: Past, keep=None, draws=None) -> Float[Tensor, "B N D"]:
        return past.slots[-1]


class EncoderTransition(Identity):
    """The slots of the frame before look at each other."""

    def __init__(self, slot_dim: int, num_heads: int, mlp_dim: int, dropout: float = 0.0, memory: bool = False):
        super().__init__()
        self.layer = PostNormLayer(slot_dim, num_heads, mlp_dim, dropout, memory)

    def requests(self) -> list[Request]:
        return [Request("transition", numbers)]

    def forward(self, past: Past, keep: Bool[Tensor, "B N"] | None = None, draws: Int[Tensor, "B 3"] | None = None):
        return self.layer(past.slots[-1], None, keep, None if draws is None else draws[:, 2])


class RSFQ(EncoderTransition):
    """Slots look at each other, and at a frame's features; both are told how long ago they were, and get no gradient.

    In evaluation these are the slots of the frame before, and the present frame's features. In training they are, clip by
    clip, the slots of any frame in the window, and the features of any but the oldest.
    """

    def __init__(self, slot_dim, feature_dim: int, num_frames: int, num_heads: int, mlp_dim: int, dropout: float = 0.0):
        super().__init__(slot_dim, num_heads, mlp_dim, dropout, memory=True)
        self.window = num_frames - 1
        self.time = nn.Embedding(num_frames, slot_dim)
        self.project = nn.Linear(feature_dim, slot_dim)
        nn.init.zeros_(self.project.bias)

    def forward(self, past, keep=None, draws=None):
        slots, projected = past.slots[-self.window :], past.projected[-self.window - 1 :]
        i, clips = len(slots), torch.arange(len(slots[0]), device=slots[0].device)  # the present frame is the i-th, from 0
        source = torch.full_like(clips, i - 1).expand(2, -1) if draws is None else draws[:, :2].T % i  # [2 B], below i
        start = torch.stack(slots)[source[0], clips].detach() + self.time(i - source[0])[:, None]  # [B N D]
        seen = torch.stack(projected)[1 + source[1], clips].detach()  # [B L K]
        memory = self.project(seen) + self.time(i - 1 - source[1])[:, None]
        return self.layer(start, memory, keep, None if draws is None else draws[:, 2])


class PostNormLayer(nn.Module):
    """Slots look at each other, at a memory where there is one, and go through an MLP, each with a norm after it."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float, memory: bool = False):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"transition_heads = {num_heads} does not divide the slots' width {dim}")
        self.dropout = dropout
        for name in ("self", "cross")[: 1 + memory]:
            self.add_module(f"{name}_attention", nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True))
            self.add_module(f"norm_{name}", nn.LayerNorm(dim, bias=False))
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim, bias=False), nn.GELU(), nn.Linear(mlp_dim, dim, bias=False))
        self.norm_mlp = nn.LayerNorm(dim, bias=False)

    def forward(self, slots: Float[Tensor, "B N D"], memory: Float[Tensor, "B M D"] | None, keep=None, key=None):
        """Values are dropped as the `key` of each clip [B] says, if any. Slots outside `keep` are not seen by the others."""
        number = itertools.count()  # each dropout has a key of its own
        drop = lambda values: values if key is None else dropped(values, self.dropout, key + next(number))  # noqa: E731
        slots = self.norm_self(slots + drop(attend(self.self_attention, slots, slots, keep, drop)))
        if memory is not None:
            slots = self.norm_cross(slots + drop(attend(self.cross_attention, slots, memory, None, drop)))
        return self.norm_mlp(slots + drop(self.mlp[2](drop(self.mlp[:2](slots)))))


def attend(weights: nn.MultiheadAttention, slots, memory, keep, drop) -> Float[Tensor, "B N D"]:
    """What torch's own forward pass gives, with this dropout."""
    matrices = zip((slots, memory, memory), weights.in_proj_weight.chunk(3), strict=True)
    query, key, value = (F.linear(*pair).unflatten(2, (weights.num_heads, -1)).transpose(1, 2) for pair in matrices)
    logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5  # [B A N M]
    logits = logits if keep is None else logits.masked_fill(~keep[:, None, None], -torch.inf)
    return weights.out_proj((drop(logits.softmax(dim=-1)) @ value).transpose(1, 2).flatten(2))


def numbers(random: np.random.Generator) -> dict:
    """Which past frame's slots, which frame's features, and the dropout's key."""
    return {"transition": random.integers(2**62, size=3)}
