"""Slot frames: a slot paints in the frame of its own attention, so that what it paints does not depend on where it is.

Source: Invariant Slot Attention, Biza et al. 2023, arXiv:2302.04973. There slots look at the features in their frames, too;
here the decoder alone does. It is not part of DIAS, and an option of the MLP decoder and of random-order decoding.

Axes: B images, N slots, L = h * w locations, K sampled ones, C feature channels, D slot width, H hidden channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dias_lab.modules.conditioning import positions
from dias_lab.modules.decoder import RandomOrderDecoder, SampledDecoder

WAVES = 16  # of the code that tells a place


class FramedDecoder(SampledDecoder):
    """An MLP decoder: every slot paints hidden features on the whole map in its own frame; masks mix them by softmax.

    A location's place is told relative to the centre of the slot's attention, in units of its width, and the mask falls
    off with that distance. The last layer comes after the mixing, which makes it cheap.
    """

    framed = True  # wants the attention that the slots end with

    def __init__(self, feature_dim: int, slot_dim: int, grid: tuple[int, int], hidden_dim=64, num_sampled: int = 0):
        super().__init__(num_sampled)
        self.register_buffer("places", positions(grid).flatten(1).T.contiguous(), persistent=False)  # [L 2], y and x
        self.register_buffer("frequency", 1.2 * torch.randn(2, WAVES))
        self.register_buffer("phase", 2 * torch.pi * torch.rand(WAVES))
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.from_slot = nn.Linear(slot_dim, hidden_dim)
        self.from_place = nn.Linear(WAVES + 3, hidden_dim, bias=False)
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.to_mask = nn.Linear(hidden_dim, 1)
        self.to_extent = nn.Linear(slot_dim, 2)  # how fast the mask falls off, and its height
        self.to_features, self.paint = nn.Linear(hidden_dim, feature_dim), nn.Linear(slot_dim, feature_dim)

    def forward(
        self,
        features: Float[Tensor, "B L C"],
        slots: Float[Tensor, "B N D"],
        keep: Bool[Tensor, "B N"] | None = None,
        frames: Float[Tensor, "B N L"] | None = None,
        need_attention: bool | None = None,
        state: Float[Tensor, "B L H"] | None = None,
        sampled: Int[Tensor, "B K"] | None = None,
    ):
        """Reconstruction [B L C], and the masks [B N L] that mix the slots' paintings. `frames`: attention, or `frames_of` it.

        `state`: what each location adds to what the slots paint there (random order). `sampled`: only these locations,
        in their order: [B K C] and [B N K].
        """
        code, distance = self.relative(frames, keep, sampled)  # [B N L code], [B N L]
        message = self.norm_slots(slots)
        hidden = self.from_slot(message)[:, :, None] + self.from_place(code)  # [B N L H]
        hidden = hidden if state is None else hidden + state[:, None]
        hidden = F.relu(self.hidden(F.relu(hidden)))
        falloff, height = self.to_extent(message).split(1, dim=-1)  # [B N 1]
        logits = self.to_mask(hidden)[..., 0] - falloff * distance.clamp_max(16) + height
        if keep is not None:
            logits = logits.masked_fill(~keep[:, :, None], -torch.inf)
        attention = logits.softmax(dim=1)
        mixed = torch.einsum("bnl,bnlh->blh", attention, hidden)
        return self.to_features(mixed) + attention.transpose(1, 2) @ self.paint(message), attention

    def relative(self, frames: Float[Tensor, "B N L"], keep=None, sampled=None) -> tuple[Tensor, Tensor]:
        """Each location's place in every slot's frame, as a code, and its squared distance from the centre in widths."""
        if frames is None:
            raise ValueError("a decoder with slot frames needs the slots' attention map: give it as `frames`")
        centre, width = (frames if frames.shape[2] == 3 else self.frames_of(frames, keep)).split([2, 1], dim=2)
        places = self.places if sampled is None else self.places[sampled][:, None]  # [L 2], or [B 1 K 2]
        place = (places - centre[:, :, None]) / width[:, :, None]  # [B N L 2]
        distance = place.square().sum(dim=-1)
        waves = torch.cos(0.7 * place @ self.frequency + self.phase)
        return torch.cat([waves, place.clamp(-3, 3), distance[..., None].clamp_max(9) / 3], dim=-1), distance

    def frames_of(self, attention: Float[Tensor, "B N L"], keep=None) -> Float[Tensor, "B N 3"]:
        """The frames: y and x of the attention's centre, and its width. A slot that is left out has that of the whole map."""
        if attention.shape[2] != (L := len(self.places)):
            raise ValueError(f"a decoder for maps of {L} locations got one of {attention.shape[2]}: build it for that map")
        weight = attention + 1e-6 if keep is None else attention * keep[..., None] + 2e-6
        weight = weight / weight.sum(dim=2, keepdim=True)
        centre = weight @ self.places  # [B N 2]
        width = (weight @ self.places.square() - centre.square()).sum(dim=2, keepdim=True).clamp_min(0.02).sqrt()
        return torch.cat([centre, width], dim=2)


class FramedRandomOrderDecoder(FramedDecoder):
    """Random-order decoding whose slots paint in their own frames.

    Self-attention over a visible prefix of a random order makes a state of each location, which adds to what the slots
    paint there. With everything visible it copies, and its masks say nothing; with nothing visible it paints from the
    slots alone. What evaluation shows is `evaluation_visible`.
    """

    def __init__(
        self, feature_dim: int, slot_dim: int, grid: tuple[int, int], hidden_dim: int = 64, num_heads: int = 4,
        visible_probability: float = 0.5, visible_fraction: float = 0.1, evaluation_visible: str = "all",
    ):  # fmt: skip
        super().__init__(feature_dim, slot_dim, grid, hidden_dim)
        self.visible_probability, self.visible_fraction = visible_probability, visible_fraction
        self.evaluation_visible = evaluation_visible
        self.project_features = nn.Linear(feature_dim, hidden_dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, hidden_dim) * hidden_dim**-0.5)
        start = torch.cos(self.places @ torch.randn(2, hidden_dim) + 2 * torch.pi * torch.rand(hidden_dim))
        self.position = nn.Parameter(start[None])  # [1 L H]
        self.norm_input, self.norm_state = nn.LayerNorm(hidden_dim), nn.LayerNorm(hidden_dim)
        self.attend = nn.MultiheadAttention(hidden_dim, num_heads, bias=False, batch_first=True)
        self.to_state, self.direct = nn.Linear(hidden_dim, hidden_dim, bias=False), nn.Linear(hidden_dim, feature_dim)
        for parameter in (self.to_state.weight, self.direct.weight, self.direct.bias):
            nn.init.zeros_(parameter)

    requests, drawn = RandomOrderDecoder.requests, RandomOrderDecoder.drawn

    def forward(
        self, features: Float[Tensor, "B L C"], slots, keep=None, frames=None, need_attention=None,
        order: Int[Tensor, "B L"] | None = None, visible: Int[Tensor, "B"] | None = None,
    ):  # fmt: skip
        """The same; the first `visible` locations of `order` are seen. Evaluation shows what `evaluation_visible` says."""
        tokens = self.project_features(features)  # [B L H]
        if visible is not None:
            seen = order.argsort(dim=1) < visible[:, None]
            tokens = torch.where(seen[..., None], tokens, self.mask_token.to(tokens.dtype))
        elif not self.training and self.evaluation_visible == "none":
            tokens = self.mask_token.to(tokens.dtype).expand_as(tokens)
        tokens = self.norm_input(tokens + self.position)
        state = self.norm_state(tokens + self.attend(tokens, tokens, tokens, need_weights=False)[0])
        rebuilt, attention = super().forward(features, slots, keep, frames, state=self.to_state(state))
        return rebuilt + self.direct(state), attention
