"""Decoders: slots -> feature map, and the map of which slot explains which location. methods/parts.py makes any of them.

All are called alike, decoder(features [B L C], slots [B N D], keep [B N], need_attention=...); `requests` says which
random numbers a training pass wants, `drawn` picks them. Permuted decoding has a file of its own, permuted.py.

An MLP decoder reconstructs each location by itself, so in training a random few of them are enough: `num_sampled`.

Sources: random-order decoding: DIAS, Zhao et al. 2025, arXiv:2507.23755, and its release Genera1Z/DIAS; MLP decoder:
DINOSAUR, Seitzer et al. 2023, arXiv:2209.14860.

Axes: B images, N slots, L = h * w locations, K sampled ones, C feature channels, D slot width.
"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dias_lab.data.draws import Request, draw
from dias_lab.modules.transformer import TransformerDecoder, resize_position, take


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


class SampledDecoder(nn.Module):
    """What MLP decoders share: with `num_sampled` above 0, a training pass draws so many locations of each image."""

    def __init__(self, num_sampled: int = 0):
        super().__init__()
        self.num_sampled = num_sampled

    def requests(self, num_locations: int) -> list[Request]:
        return [Request("locations", partial(sample, num_locations, self.num_sampled))] if self.num_sampled else []

    def drawn(self, draws: dict) -> dict:
        return {"sampled": draws["sampled"]} if self.num_sampled else {}


def sample(L: int, K: int, random: np.random.Generator) -> dict:
    """K of L locations, each at most once: int64 [K]."""
    return {"sampled": random.permutation(L)[:K]}


class MLPDecoder(SampledDecoder):
    """Every slot paints the whole map on its own, with a weight a location; the weights compete by softmax."""

    framed = False

    def __init__(
        self, feature_dim: int, slot_dim: int, num_locations: int, num_layers: int = 4, mlp_dim: int = 2048,
        num_sampled: int = 0,
    ):  # fmt: skip
        super().__init__(num_sampled)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_locations, slot_dim)))
        widths = [slot_dim] + [mlp_dim] * (num_layers - 1)
        layers = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.GELU())]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], feature_dim + 1))

    @torch.no_grad()
    def start_as_lookup(self, place: Float[Tensor, "2 h w"], weight: float, sharpness: float = 4.0):
        """Initial values with which each location is painted by the slot that is closest, with what that slot holds.

        For slots that hold features (`SlotAttention.start_as_k_means`) whose last two channels are `weight` times the
        place. There the table of positions takes the place away, so that the distance to the slot comes in, and in the two
        channels after them it adds it. The first units of each layer come in pairs: gelu(x) - gelu(-x) is x itself,
        which hands all channels through to the end, and gelu(x) + gelu(-x) is nearly |x|, which lowers a slot's weight:
        its logit is about -`sharpness` times that distance, in y and in x. The other units start at random, unheard.

        Raises ValueError for slots, or layers, that are too narrow.
        """
        first, *between, last = self.mlp[::2]
        C, D, units = last.out_features - 1, first.in_features, last.in_features
        K = C + 2  # channels that are handed through: distance in the last two features' place, then place itself
        if D < K:
            raise ValueError(f'decoder_start="lookup": slot_dim is {D}; take at least {K}, two above the channels')
        if units < 2 * K:
            raise ValueError(f'decoder_start="lookup": decoder_mlp_dim is {units}; take at least {2 * K}')
        place = weight * place.flatten(1).T  # [L 2]
        nn.init.zeros_(self.position)
        self.position[0, :, C - 2 : C], self.position[0, :, C:K] = -place.tanh(), place  # slots went through a tanh, too
        for linear in (first, *between):
            linear.weight[: 2 * K], linear.bias[: 2 * K] = 0, 0
        pairs = torch.cat([torch.eye(K), -torch.eye(K)])  # [2K K]
        first.weight[: 2 * K, :K] = pairs
        for linear in between:
            linear.weight[: 2 * K, : 2 * K] = pairs @ pairs.T
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        last.weight[: C - 2, : 2 * K], last.weight[C - 2 : C, : 2 * K] = pairs.T[: C - 2], pairs.T[C:]
        distances = [C - 2, C - 1, C - 2 + K, C - 1 + K]
        first.weight[distances] *= 4  # |x| begins a quarter from 0
        last.weight[-1, distances] = -sharpness / 4

    def forward(
        self, features: Float[Tensor, "B L C"], slots: Float[Tensor, "B N D"], keep: Bool[Tensor, "B N"] | None = None,
        need_attention: bool | None = None, sampled: Int[Tensor, "B K"] | None = None,
    ) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B N L"]]:  # fmt: skip
        """Reconstruction and the weights. They make the reconstruction, so they are always there, asked for or not.

        `sampled`: only these locations, in their order: [B K C] and [B N K].
        """
        position = resize_position(self.position, features.shape[1])
        position = position if sampled is None else take(position.expand(len(sampled), -1, -1), sampled)  # [B K D]
        painted = self.mlp(slots[:, :, None] + position[:, None])  # [B N L C+1]
        values, logits = painted[..., :-1], painted[..., -1]
        if keep is not None:
            logits = logits.masked_fill(~keep[:, :, None], -torch.inf)
        attention = logits.softmax(dim=1)
        return torch.einsum("bnl,bnlc->blc", attention, values), attention
