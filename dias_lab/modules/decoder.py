"""Decoders: slots -> feature map, and the map of which slot explains which location. `build_decoder` makes any of them.

All are called alike, decoder(features [B L C], slots [B N D], keep [B N], need_attention=...), and `drawn` picks what a
training pass takes from the draws besides. Permuted decoding has a file of its own, permuted.py.

Sources: random-order decoding: DIAS, Zhao et al. 2025, arXiv:2507.23755, and its release Genera1Z/DIAS; MLP decoder:
DINOSAUR, Seitzer et al. 2023, arXiv:2209.14860.

Axes: B images, N slots, L = h * w locations, C feature channels, D slot width.
"""

import copy
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class TransformerDecoder(nn.Module):
    """What decoding in any order shares: layers over the locations that look at the slots.

    `position` is a table [1 L C], or None.
    """

    def add_layers(self, feature_dim, slot_dim, num_layers, num_heads, mlp_dim, bias=False, activation=nn.GELU):
        if feature_dim % num_heads:
            raise ValueError(f"decoder_heads = {num_heads} does not divide the {feature_dim} feature channels")
        self.project_features = projection(feature_dim, feature_dim)
        self.project_slots = projection(slot_dim, feature_dim)
        self.norm_input = nn.LayerNorm(feature_dim, bias=bias)  # the first layer's own norm, moved before the residual
        first = DecoderLayer(feature_dim, num_heads, mlp_dim or 4 * feature_dim, bias, activation)
        self.layers = nn.ModuleList(copy.deepcopy(first) for _ in range(num_layers))  # the release starts them equal
        self.layers[0].norm_self = nn.Identity()

    def transform(self, tokens, slots, keep=None, need_attention=False, causal=None):
        """Layers over tokens [B L C]: the last one's output, and its attention to the slots [B N L] where needed."""
        hidden, memory, attention = self.norm_input(tokens), self.project_slots(slots), None
        for number, layer in enumerate(self.layers, start=1):
            hidden, attention = layer(hidden, memory, keep, need_attention and number == len(self.layers), causal)
        return hidden, attention

    @torch.no_grad()
    def start_as_lookup(self):
        """Initial values with which a location begins by looking up the slot that is most like it.

        Query and key weights of the attention to slots are equal, and slots are projected as features are (where slots
        hold features: see `SlotAttention.start_as_k_means`). A decoder that goes in an order knows the location before,
        and looks that one up: its map begins a step late, which the mean over opposite orders undoes.
        """
        features, slots = self.project_features[0].weight, self.project_slots[0].weight
        shared = min(features.shape[1], slots.shape[1])
        nn.init.zeros_(slots)
        slots[:, :shared] = features[:, :shared]
        for layer in self.layers:
            query, key, _ = layer.cross_attention.in_proj_weight.chunk(3)
            key.copy_(query)
        if self.position is not None:
            self.position *= 0.2  # position speaks more softly


class RandomOrderDecoder(TransformerDecoder):
    """A transformer that reconstructs all locations from a visible prefix of a random order, and from the slots.

    In training each image sees a different number of locations of a different order; the others hold a mask token. In
    evaluation, nothing is hidden or permuted. The order is one of *visibility*: attention is not causal.
    """

    def __init__(
        self, feature_dim: int, slot_dim: int, num_locations: int, num_layers=4, num_heads=4, mlp_dim: int | None = None,
        visible_probability: float = 0.5, visible_fraction: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.visible_probability, self.visible_fraction = visible_probability, visible_fraction
        self.mask_token = nn.Parameter(torch.randn(1, 1, feature_dim) * feature_dim**-0.5)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_locations, feature_dim)))
        self.add_layers(feature_dim, slot_dim, num_layers, num_heads, mlp_dim)

    def drawn(self, draws) -> dict:
        return dict(order=draws.order, visible=draws.visible)

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
            order, visible = self.sample(B, L, features.device)
        tokens = self.project_features(features)
        position = resize_position(self.position, L).to(tokens.dtype)  # [1 L C]
        if visible is not None:  # no causal mask anywhere: hiding in place equals permuting, decoding and permuting back
            rank = order.argsort(dim=1)  # [B L]: when each location's turn comes
            tokens = torch.where((rank < visible[:, None])[..., None], tokens, self.mask_token.to(tokens.dtype))
        return self.transform(tokens + position, slots, keep, need_attention)

    def sample(self, B: int, L: int, device) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B"]]:
        """A random order, and how much of it is visible: uniform from 0 to L - 2, or a constant share, less one."""
        constant = max(int(self.visible_fraction * L) - 1, 0)
        uniform = torch.rand(B, device=device) < self.visible_probability
        visible = torch.where(uniform, torch.randint(max(L - 1, 1), (B,), device=device), constant)
        return torch.rand(B, L, device=device).argsort(dim=1), visible


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer: locations look at each other, then at the slots. `bias`: of norms and MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, bias: bool = False, activation=nn.GELU):
        super().__init__()
        self.norm_self = nn.LayerNorm(dim, bias=bias)
        self.self_attention = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.norm_cross = nn.LayerNorm(dim, bias=bias)
        self.cross_attention = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.norm_mlp = nn.LayerNorm(dim, bias=bias)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim, bias=bias), activation(), nn.Linear(mlp_dim, dim, bias=bias))

    def forward(self, hidden, slots, keep=None, need_attention=False, causal=None):
        """`causal` [L L], True where a location must not look: a triangle above the diagonal."""
        query = self.norm_self(hidden)
        options = dict(need_weights=False, attn_mask=causal, is_causal=causal is not None)
        hidden = hidden + self.self_attention(query, query, query, **options)[0]
        hidden_slots = None if keep is None else ~keep
        update, attention = self.cross_attention(
            self.norm_cross(hidden), slots, slots, key_padding_mask=hidden_slots, need_weights=need_attention
        )
        hidden = hidden + update
        hidden = hidden + self.mlp(self.norm_mlp(hidden))
        return hidden, attention.transpose(1, 2) if need_attention else None  # [B N L]


class MLPDecoder(nn.Module):
    """Every slot paints the whole map on its own, with a weight a location; the weights compete by softmax."""

    def __init__(self, feature_dim: int, slot_dim: int, num_locations: int, num_layers: int = 4, mlp_dim: int = 2048):
        super().__init__()
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_locations, slot_dim)))
        widths = [slot_dim] + [mlp_dim] * (num_layers - 1)
        layers = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.GELU())]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], feature_dim + 1))

    def drawn(self, draws) -> dict:
        return {}

    def forward(self, features, slots, keep=None, order=None, visible=None, need_attention=None):
        """Reconstruction [B L C] and the weights [B N L]. They make the reconstruction, so they are always there."""
        position = resize_position(self.position, features.shape[1])
        painted = self.mlp(slots[:, :, None] + position[:, None])  # [B N L C+1]
        values, logits = painted[..., :-1], painted[..., -1]
        if keep is not None:
            logits = logits.masked_fill(~keep[:, :, None], -torch.inf)
        attention = logits.softmax(dim=1)
        return torch.einsum("bnl,bnlc->blc", attention, values), attention


def build_decoder(config, feature_dim: int, grid: tuple[int, int]) -> nn.Module:
    """The decoder that `config.decoder` names, for maps of `grid` (h, w) locations; it starts as `config` says."""
    num_locations, size = grid[0] * grid[1], (config.decoder_layers, config.decoder_heads, config.decoder_mlp_dim)
    if config.decoder == "mlp":
        mlp_dim = config.decoder_mlp_dim or 2048
        return MLPDecoder(feature_dim, config.slot_dim, num_locations, config.decoder_layers, mlp_dim)
    if config.decoder == "raster":
        from dias_lab.modules.permuted import PermutedDecoder

        decoder = PermutedDecoder(feature_dim, config.slot_dim, grid, *size, num_permutations=1)
    else:
        visibility = config.visible_probability, config.visible_fraction
        decoder = RandomOrderDecoder(feature_dim, config.slot_dim, num_locations, *size, *visibility)
    if config.decoder_start == "lookup":
        decoder.start_as_lookup()
    return decoder


def projection(source: int, target: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(source, target, bias=False), nn.LayerNorm(target))


def resize_position(position: Float[Tensor, "1 M C"], num_locations: int) -> Float[Tensor, "1 L C"]:
    """The position table for another (square) map than the trained one, bilinear, with a warning that says so."""
    trained = position.shape[1]
    if trained == num_locations:
        return position
    old, new = round(trained**0.5), round(num_locations**0.5)
    if old * old != trained or new * new != num_locations:
        raise ValueError(f"a position table of {trained} locations cannot serve {num_locations}: both must be squares")
    warnings.warn(f"position table resized from {old}x{old} to {new}x{new} locations", stacklevel=3)
    table = position.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(new, new), mode="bilinear", align_corners=False)
    return table.flatten(2).transpose(1, 2)
