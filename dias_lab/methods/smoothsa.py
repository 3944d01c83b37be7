"""SmoothSA: Slot Attention whose first slots are preheated, that is predicted from the features.

Source: the release Genera1Z/SmoothSA, by the authors of DIAS. A block predicts the slots that the aggregation ends with,
and learns from them alone; the aggregation starts around the prediction, and its gradients are truncated.

Axes: T iterations, B images, N slots, C feature channels, D slot width, h w locations.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dias_lab import losses
from dias_lab.draws import Draws
from dias_lab.methods import Method
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.backbone import build_backbone
from dias_lab.modules.decoder import build_decoder
from dias_lab.modules.initializer import PreheatedGaussian
from dias_lab.modules.projector import build_projector, start


class SmoothSAOutput(NamedTuple):
    features: Float[Tensor, "B C h w"]  # the reconstruction's target
    slots: Float[Tensor, "B N D"]
    attention: Float[Tensor, "T B N h w"]
    keep: Bool[Tensor, "B N"]
    reconstruction: Float[Tensor, "B C h w"]
    decoder_attention: Float[Tensor, "B N h w"] | None
    preheated: Float[Tensor, "B N D"]  # the prediction of the slots


class SmoothSA(Method):
    def __init__(self, config):
        backbone = build_backbone(config)
        super().__init__(config, backbone)
        width, slot_dim = config.project_dim or backbone.feature_dim, config.slot_dim
        self.project = build_projector(config, backbone.feature_dim)
        self.initializer = PreheatedGaussian(
            config.num_slots, slot_dim, width, config.preheat_heads, config.slot_mlp_dim
        )
        self.aggregator = SlotAttention(width, slot_dim, config.slot_mlp_dim, config.num_iterations)
        self.decoder = build_decoder(config, backbone.feature_dim, backbone.grid)
        start(self.project, self.aggregator, config)

    def forward(
        self,
        images: Float[Tensor, "B 3 R R"] | None,
        initial_slots: Float[Tensor, "B N D"] | None = None,
        decoder_attention: bool | None = None,
        keep: Bool[Tensor, "B N"] | None = None,
        draws: Draws | None = None,
        features: Float[Tensor, "B C h w"] | None = None,
    ) -> SmoothSAOutput:
        """One pass over prepared images; the arguments are those of DIAS.

        `initial_slots` replaces the random sample that the preheating starts from. Early in the training
        (`config.preheat_detached`) the projector learns nothing from the preheating.
        """
        features = self.encode(images, features)  # [B C h w]
        draws = self.ready(draws, features)
        projected = self.project(features.flatten(2).transpose(1, 2))  # [B L width]
        if initial_slots is None:
            initial_slots = self.initializer(projected, len(features), noise=draws.slots)
        detach = self.progress < self.config.preheat_detached
        preheated, slots = self.initializer.preheat(projected, initial_slots, draws.restart, detach)
        truncate = self.config.truncation == "bi_level"
        slots, attention = self.aggregator(projected, slots, keep, truncate=truncate)
        keep = torch.ones_like(slots[..., 0], dtype=torch.bool) if keep is None else keep
        reconstruction, decoded = self.reconstruct(features, slots, keep, draws, decoder_attention)
        attention = attention.unflatten(3, features.shape[2:])
        return SmoothSAOutput(features, slots, attention, keep, reconstruction, decoded, preheated)

    def losses(self, output: SmoothSAOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses, and their weights. The prediction follows the slots, and not the other way round."""
        terms = {
            "reconstruction": losses.reconstruction_loss(output.reconstruction, output.features),
            "preheat": F.mse_loss(output.preheated, output.slots.detach()),
        }
        return terms, {"reconstruction": 1.0, "preheat": self.config.preheat_weight}
