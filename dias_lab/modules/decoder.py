"""Decoders: slots -> feature map, and the map of which slot explains which location. frames.py makes any of them.

All are called alike, decoder(features [B L C], slots [B N D], keep [B N], need_attention=...); `requests` says which
random numbers a training pass wants, `drawn` picks them. Permuted decoding has a file of its own, permuted.py.

Sources: random-order decoding: DIAS, Zhao et al. 2025, arXiv:2507.23755, and its release Genera1Z/DIAS; MLP decoder:
DINOSAUR, Seitzer et al. 2023, arXiv:2209.14860.

Axes: B images, N slots, L = h * w locations, C feature channels, D slot width.
"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dias_lab.data.draws import Request, draw
from dias_lab.modules.transformer import TransformerDecoder, resize_position


class RandomOrderDecoder(TransformerDecoder):
    """A transformer that reconstructs all locations from a visible prefix of a random order, and from the slots.

    In training each image sees a different number of locations of a different order; the others hold a mask token. In
    evaluation nothing is permuted, and nothing hidden unless `evaluation_visible` is "none". The order is one of
    *visibility*: attention is not causal.
    """

    def __init__(
        self, feature_dim: int, slot_dim: int, num_locations: int, num_layers=4, num_heads=4, mlp_dim: int | None = None,
        visible_probability: float = 0.5, visible_fraction: float = 0.1, evaluation_visible: str = "all",
    ):  # fmt: skip
        super().__init__()
        self.visible_probability, self.visible_fraction = visible_probability, visible_fraction
        self.evaluation_visible = evaluation_visible
        self.mask_token = nn.Parameter(torch.randn(1, 1, feature_dim) * feature_dim**-0.5)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_locations, feature_dim)))
        self.add_layers(feature_dim, slot_dim, num_layers, num_heads, mlp_dim)

    def requests(self, num_locations: int) -> list[Request]:
        return [Request("decoding", partial(prefix, num_locations, self.visible_probability, self.visible_fraction))]

    def drawn(self, draws: dict) -> dict:
        """What a training pass takes from the draws."""
        return {name: draws[name] for name in ("order", "visible")}

    def forward(
        self,
        features: Float[Tensor, "B L C"],
        slots: Float[Tensor, "B N D"],
        keep: Bool[Tensor, "B N"] | None = None,
        order: Int[Tensor, "B L"] | None = None,
        visible: Int[Tensor, "B"] | None = None,
        need_attention: bool | None = None,
    ) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B N L"] | None]:
        """Reconstruction and, where needed, the attention map of the last layer (mean over heads, sums to 1 over N).

        `order` and `visible`: the first `visible` locations of `order` keep their features; an order alone hides
        nothing. In training the two are drawn where neither is given; in evaluation nothing is hidden. `need_attention`
        defaults to evaluation only: in training no weights are computed that nobody reads. Slots outside `keep` get
        exactly 0. Raises ValueError for `visible` without `order`.
        """
        B, L, C = features.shape
        need_attention = not self.training if need_attention is None else need_attention
        if visible is not None and order is None:
            raise ValueError("visible says how many locations of an order are seen: give the order, too")
        if order is None and self.training:
            drawn = draw(int(torch.randint(2**62, ())), 0, range(B), self.requests(L))
            order, visible = (drawn[name].to(features.device) for name in ("order", "visible"))
        elif order is None and self.evaluation_visible == "none":
            order, visible = torch.arange(L, device=features.device).expand(B, L), features.new_zeros(B)
        tokens = self.project_features(features)
        position = resize_position(self.position, L).to(tokens.dtype)  # [1 L C]
        if visible is not None:  # no causal mask anywhere: hiding in place equals permuting, decoding and permuting back
            rank = order.argsort(dim=1)  # [B L]: when each location's turn comes
            tokens = torch.where((rank < visible[:, None])[..., None], tokens, self.mask_token.to(tokens.dtype))
        return self.transform(tokens + position, slots, keep, need_attention)


def prefix(L: int, probability: float, fraction: float, random: np.random.Generator) -> dict:
    """A random order, and how much of it is visible: with `probability` uniform from 0 to L - 2, else a share, less one."""
    order = random.permutation(L)
    uniform = random.random() < probability
    visible = random.integers(max(L - 1, 1)) if uniform else max(int(fraction * L) - 1, 0)
    return {"order": order, "visible": np.asarray(visible)}


class MLPDecoder(nn.Module):
    """Every slot paints the whole map on its own, with a weight a location; the weights compete by softmax."""

    framed = False

    def __init__(self, feature_dim: int, slot_dim: int, num_locations: int, num_layers: int = 4, mlp_dim: int = 2048):
        super().__init__()
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_locations, slot_dim)))
        widths = [slot_dim] + [mlp_dim] * (num_layers - 1)
        layers = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.GELU())]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], feature_dim + 1))

    def requests(self, num_locations: int) -> list[Request]:
        return []

    def drawn(self, draws: dict) -> dict:
        return {}

    def forward(
        self, features: Float[Tensor, "B L C"], slots: Float[Tensor, "B N D"], keep: Bool[Tensor, "B N"] | None = None,
        need_attention: bool | None = None,
    ) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B N L"]]:  # fmt: skip
        """Reconstruction and the weights. They make the reconstruction, so they are always there, asked for or not."""
        position = resize_position(self.position, features.shape[1])
        painted = self.mlp(slots[:, :, None] + position[:, None])  # [B N L C+1]
        values, logits = painted[..., :-1], painted[..., -1]
        if keep is not None:
            logits = logits.masked_fill(~keep[:, :, None], -torch.inf)
        attention = logits.softmax(dim=1)
        return torch.einsum("bnl,bnlc->blc", attention, values), attention
