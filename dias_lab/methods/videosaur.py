"""VideoSAUR: slots also say where each location goes, as the similarity of its features to those of the next frame.

Source: Zadaianchuk et al. 2023, arXiv:2306.04829, as re-implemented in Genera1Z/RandSF.Q. The authors' own code
(martius-lab/videosaur) takes the keys of the backbone's last block for the similarity, sharper targets (`similarity_temperature`
0.075 to 0.25, `similarity_threshold` 0), two iterations on later frames, and other layers: reference/originals.py has them.

An encoder layer predicts, Slot Attention corrects, and a mixer decodes: features, and for each location logits over all
locations of the next frame, which `losses.time_similarity_loss` compares.

Axes: B clips (in the decoder: frames of all clips), F frames, N slots, L = h * w locations, C feature channels, D slot width,
E channels that come out: C, or C + L.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dias_lab import losses
from dias_lab.methods.clip_output import FRAME_AXIS, ClipOutput
from dias_lab.methods.dinosaur import DINOSAUR
from dias_lab.methods.plain_clips import PlainClips
from dias_lab.modules.transformer import DecoderLayer, resize_position


@dataclass
class SimilarityOutput(ClipOutput):
    axes: ClassVar[dict] = FRAME_AXIS | {"similarity": 1}
    similarity: Float[Tensor, "B F L h w"] | None = field(default=None, kw_only=True)  # logits over the next frame's locations


class TimeSimilarity(PlainClips, DINOSAUR):
    """A method whose decoder, with `similarity_weight`, tells C + L channels: features, and logits; or, with
    `similarity_alone`, the logits alone: then nothing is reconstructed, and the reconstruction is 0."""

    output = SimilarityOutput
    decoded = ("similarity",)

    def __init__(self, config):
        super().__init__(config)
        self.readout = nn.Identity()  # what comes after the decoder

    def reconstruct(self, features: Float[Tensor, "B C h w"], *more, **options):
        """The reconstruction, the decoder's map, and the logits [B L h w], or None."""
        rebuilt, decoded = super().reconstruct(features, *more, **options)
        rebuilt = self.readout(rebuilt.movedim(1, -1)).movedim(-1, 1)  # [B E h w]
        C = 0 if self.config.similarity_alone else features.shape[1]
        similarity = rebuilt[:, C:] if self.config.similarity_weight else None
        return rebuilt[:, :C] if C else torch.zeros_like(features), decoded, similarity

    def losses(self, output: SimilarityOutput, progress: float) -> tuple[dict, dict]:
        terms, weights = super().losses(output, progress)
        if self.config.similarity_alone:
            del terms["reconstruction"], weights["reconstruction"]
        if self.config.similarity_weight and output.slots.shape[1] > 1:
            how = self.config.similarity_temperature, self.config.similarity_threshold
            terms["similarity"] = losses.time_similarity_loss(output.similarity, output.features, *how, output.frames)
            weights["similarity"] = self.config.similarity_weight
        return terms, weights


class VideoSAUR(TimeSimilarity):
    def build_decoder(self) -> nn.Module:
        config = self.config
        sizes = config.decoder_layers, config.decoder_heads, config.decoder_mlp_dim or 1024
        return SlotMixer(self.out_dim, config.slot_dim, self.num_locations, *sizes)

    @property
    def out_dim(self) -> int:
        """Channels that the decoder gives of each location."""
        features = 0 if self.config.similarity_alone else self.backbone.feature_dim
        return features + (self.num_locations if self.config.similarity_weight else 0)


class SlotMixer(nn.Module):
    """Each location gathers its own mixture of slots, and one MLP makes features of it.

    Locations, which know nothing but their place, ask the slots in `num_layers` layers whom they want; then they mix the slots
    as they are, each head its own channels. So one pass of the MLP, of as many hidden layers, is enough for all slots.
    """

    framed = False

    def __init__(self, out_dim: int, slot_dim: int, num_locations: int, num_layers: int, num_heads: int, mlp_dim: int):
        super().__init__()
        if slot_dim % num_heads:
            raise ValueError(f"decoder_heads = {num_heads} does not divide the slots' width {slot_dim}, which the heads share")
        self.num_heads = num_heads
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_locations, slot_dim)))
        self.norm_memory, self.norm_query, self.norm_key = (nn.LayerNorm(slot_dim) for _ in range(3))
        self.layers = nn.ModuleList(DecoderLayer(slot_dim, num_heads, 4 * slot_dim) for _ in range(num_layers))
        for layer in self.layers:
            layer.self_attention = Itself()
        self.to_query, self.to_key = (nn.Linear(slot_dim, slot_dim, bias=False) for _ in range(2))
        widths = [slot_dim] + [mlp_dim] * num_layers
        hidden = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.GELU())]
        self.render = nn.Sequential(nn.LayerNorm(slot_dim), *hidden, nn.Linear(mlp_dim, out_dim))

    def requests(self, num_locations: int) -> list:
        return []

    def drawn(self, draws: dict) -> dict:
        return {}

    def forward(
        self, features: Float[Tensor, "B L C"], slots: Float[Tensor, "B N D"], keep: Bool[Tensor, "B N"] | None = None,
        need_attention: bool | None = None,
    ) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B N L"]]:  # fmt: skip
        """What is rendered, and the last attention (mean over heads), which mixes the slots, asked for or not."""
        position = resize_position(self.position, features.shape[1])
        asking, memory = position.expand(len(slots), -1, -1), self.norm_memory(slots)
        for layer in self.layers:
            asking, _ = layer(asking, memory, keep)
        heads = self.to_query(self.norm_query(asking)), self.to_key(self.norm_key(slots)), slots
        query, key, value = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in heads)  # [B heads L or N D']
        logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5  # [B heads L N]
        logits = logits if keep is None else logits.masked_fill(~keep[:, None, None], -torch.inf)
        attention = logits.softmax(dim=-1)
        mixed = (attention @ value).transpose(1, 2).flatten(2)  # [B L D]
        return self.render(mixed + position), attention.mean(dim=1).transpose(1, 2)


class Itself(nn.Module):
    """In self-attention's place: each location sees itself alone."""

    def forward(self, query, key, value, **options):
        return (query,)
