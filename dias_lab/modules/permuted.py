"""Permuted decoding: a causal transformer that reconstructs the locations one after another, in one of nine orders.

Sources: SPOT, Kakogeorgiou et al. 2024, arXiv:2312.00648, and its code gkakogeorgiou/spot; as re-implemented in
Genera1Z/SmoothSA with the layers of DIAS. With the raster order alone it is the autoregressive decoder of DINOSAUR,
Seitzer et al. 2023, arXiv:2209.14860.

Axes: B images, N slots, L = h * w locations, C feature channels, D slot width, P permutations, K codes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dias_lab.data.draws import Request, integer
from dias_lab.modules.transformer import TransformerDecoder, take


class PermutedDecoder(TransformerDecoder):
    """Each location is reconstructed from those before it in the order, and from the slots.

    Every order begins with a learned token of its own. Training takes one order a batch, evaluation the raster order
    ("standard") or the mean over all of them ("all"). `biases`, `activation` and `final_norm` are where SPOT's own code
    differs from the re-implementation. With `positions` a token knows which location it is for; with `num_codes` the
    results are logits over that many codes in place of features, as in SLATE, Singh et al. 2022, arXiv:2110.11405. `dim`:
    channels within, where the features have too few for a transformer; 0: as many as they have, and as published.
    """

    def __init__(
        self, feature_dim: int, slot_dim: int, grid: tuple[int, int], num_layers=4, num_heads=4, mlp_dim: int | None = None,
        num_permutations: int = 9, evaluation: str = "standard", biases: bool = False, activation=nn.GELU,
        final_norm: bool = False, positions: bool = False, num_codes: int = 0, dim: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.evaluation = evaluation
        orders = permutations(*grid)[:num_permutations]
        self.start = nn.Parameter(torch.randn(num_permutations, 1, 1, feature_dim) * feature_dim**-0.5)
        width = dim or feature_dim
        self.add_layers(width, slot_dim, num_layers, num_heads, mlp_dim, biases, activation, feature_dim)
        self.norm_output = nn.LayerNorm(width) if final_norm else nn.Identity()
        out = num_codes or dim and feature_dim
        self.readout = nn.Linear(width, out, bias=not num_codes) if out else nn.Identity()
        L = orders.shape[1]
        position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, L, width))) if positions else None
        self.register_parameter("position", position)
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("later", torch.ones(L, L, dtype=torch.bool).triu(1), persistent=False)  # causal mask

    def requests(self, num_locations: int) -> list[Request]:
        return [integer("permutation", below=9)]  # one order for the batch, of nine whether or not all are in use

    def drawn(self, draws: dict) -> dict:
        return dict(permutation=draws["permutation"] % len(self.start))

    def forward(
        self, features: Float[Tensor, "B L C"], slots: Float[Tensor, "B N D"], keep=None,
        permutation: Int[Tensor, "B"] | None = None, need_attention: bool | None = None,
    ):  # fmt: skip
        """Reconstruction [B L C], or logits [B L K], and where needed the last layer's attention [B N L] (mean over heads).

        All in raster order.

        `permutation` is the number of each image's order; without it one is drawn in training, and evaluation takes
        what `evaluation` says. `need_attention` defaults to evaluation only. Slots outside `keep` get exactly 0. Raises
        ValueError where the map has not as many locations as the orders.
        """
        B, L, _ = features.shape
        if L != self.orders.shape[1]:
            raise ValueError(
                f"a decoder for orders of {self.orders.shape[1]} locations got a map of {L}: build it for that map"
            )
        need_attention = not self.training if need_attention is None else need_attention
        if permutation is None and self.training:
            permutation = torch.randint(len(self.start), ()).to(features.device).expand(B)
        if permutation is not None:
            return self.decode(features, slots, keep, permutation, need_attention)
        numbers = range(len(self.start)) if self.evaluation == "all" else [0]
        parts = [self.decode(features, slots, keep, self.number(k, B), need_attention) for k in numbers]
        reconstruction, attention = zip(*parts, strict=True)
        mean = sum(reconstruction) / len(parts)
        return mean, sum(attention) / len(parts) if need_attention else None

    def number(self, permutation: int, B: int) -> Int[Tensor, "B"]:
        return torch.full((B,), permutation, device=self.orders.device)

    def decode(self, features, slots, keep, permutation, need_attention):
        """One pass, every image in its own order."""
        order = self.orders[permutation]  # [B L]: which location comes when
        back = order.argsort(dim=1)  # [B L]: when each location comes
        ordered = take(features, order)
        start = self.start[permutation][:, 0].to(ordered.dtype)  # [B 1 C]
        tokens = self.project_features(torch.cat([start, ordered[:, :-1]], dim=1))  # each sees the one before
        if self.position is not None:
            tokens = tokens + take(self.position.expand(len(order), -1, -1), order).to(tokens.dtype)
        hidden, attention = self.transform(tokens, slots, keep, need_attention, self.later)
        if attention is not None:
            attention = take(attention.transpose(1, 2), back).transpose(1, 2)
        return take(self.readout(self.norm_output(hidden)), back), attention


def permutations(h: int, w: int) -> Int[Tensor, "P L"]:
    """SPOT's nine orders of h x w locations: entry t is the raster index of the location decoded at step t.

    Which number an order has is part of a checkpoint, for each has a token of its own.
    """
    raster = torch.arange(h * w).view(h, w)
    left_right, top_bottom = raster.flip(1), raster.flip(0)  # mirrored
    turned = raster.flip(0, 1)
    orders = [raster, raster.T, left_right.T, left_right, turned.T, turned, top_bottom.T, top_bottom]
    return torch.stack([order.flatten() for order in orders] + [spiral(raster)])


def spiral(raster: Int[Tensor, "h w"]) -> Int[Tensor, "L"]:
    """From the centre outwards to the top right: a walk down the last column and on around the rim, backwards."""
    sides = []
    while raster.numel():
        sides.append(raster[:, -1])
        raster = raster[:, :-1].rot90()  # the next side becomes the last column
    return torch.cat(sides).flip(0)
