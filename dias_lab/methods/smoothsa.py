"""SmoothSA: Slot Attention whose first slots are preheated, that is predicted from the features.

Source: the release Genera1Z/SmoothSA, by the authors of DIAS. A block predicts the slots that the aggregation ends with,
and learns from them alone; the aggregation starts around the prediction, and its gradients are truncated.

Axes: T iterations, B images, N slots, C feature channels, D slot width, h w locations.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dias_lab import losses
from dias_lab.methods.base import Given, Method, Output, locations
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.conditioning import build_backbone
from dias_lab.modules.frames import build_decoder
from dias_lab.modules.initializer import PreheatedGaussian
from dias_lab.modules.projector import build_projector, start

PREDICTION = ("initializer.project_features.", "initializer.block.")  # learns from a loss of its own, and from nothing else


@dataclass
class SmoothSAOutput(Output):
    preheated: Float[Tensor, "B N D"]  # the prediction of the slots


class SmoothSA(Method):
    def __init__(self, config):
        backbone = build_backbone(config)
        super().__init__(config, backbone)
        width, slot_dim = config.project_dim or backbone.feature_dim, config.slot_dim
        self.project = build_projector(config, backbone.feature_dim, grid=backbone.grid)
        self.initializer = PreheatedGaussian(
            config.num_slots, slot_dim, width, config.preheat_heads, config.slot_mlp_dim
        )
        sizes = width, slot_dim, config.slot_mlp_dim, config.num_iterations
        self.aggregator = SlotAttention(*sizes, evaluation_iterations=config.evaluation_iterations)
        self.decoder = build_decoder(config, backbone.feature_dim, backbone.grid)
        start(self.project, self.aggregator, config)

    def run(self, features: Float[Tensor, "B C h w"], given: Given) -> SmoothSAOutput:
        """Initial slots that the caller gives are what the preheating starts from.

        Early in the training (`config.preheat_detached`) the projector learns nothing from the preheating.
        """
        projected = self.project(locations(features))  # [B L width]
        detach = self.progress < self.config.preheat_detached
        preheated, slots = self.initializer.preheat(projected, given.slots, given.draws["restart"], detach, given.keep)
        slots, attention, keep = self.attend(features, given._replace(slots=slots), projected=projected)
        reconstruction, decoded = self.reconstruct(features, slots, keep, given.draws, given.decoder_attention, attention[-1])
        sampled = self.sampled(given.draws)
        return SmoothSAOutput(features, slots, attention, keep, reconstruction, decoded, preheated, sampled=sampled)

    def trained_with(self, name: str) -> str:
        return "decoder" if name.startswith(PREDICTION) else super().trained_with(name)

    def losses(self, output: SmoothSAOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses, and their weights. The prediction follows the slots, and not the other way round."""
        terms = {
            "reconstruction": losses.reconstruction_loss(output.reconstruction, output.features, output.sampled),
            "preheat": F.mse_loss(output.preheated, output.slots.detach()),
        }
        return terms, {"reconstruction": 1.0, "preheat": self.config.preheat_weight}
