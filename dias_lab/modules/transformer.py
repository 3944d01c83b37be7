"""What decoders by transformer share: layers over the locations, which look at each other and at the slots.

Sources: the release of DIAS (Genera1Z/DIAS), Zhao et al. 2025, arXiv:2507.23755.

Axes: B images, N slots, L = h * w locations, C feature channels, D slot width.
"""

import copy
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class TransformerDecoder(nn.Module):
    """What decoding in any order shares: layers over the locations that look at the slots.

    `position` is a table [1 L C], or None.
    """

    framed = False

    def add_layers(self, feature_dim, slot_dim, num_layers, num_heads, mlp_dim, bias=False, activation=nn.GELU, source_dim=0):
        """`feature_dim`: the layers' channels; `source_dim`: those of what they read, where they are others."""
        if feature_dim % num_heads:
            raise ValueError(f"decoder_heads = {num_heads} does not divide the {feature_dim} channels of the decoder")
        self.project_features = projection(source_dim or feature_dim, feature_dim)
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


def take(values: Float[Tensor, "B L C"], index: Int[Tensor, "B K"]) -> Float[Tensor, "B K C"]:
    """The rows of each image in the order of `index`. Of a table, expand it: its gradient is the same with any threads."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]
