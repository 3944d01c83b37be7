"""SmoothSA: Slot Attention whose first slots are preheated, that is predicted from the features.

Source: the release Genera1Z/SmoothSA, by the authors of DIAS. A block predicts the slots that the aggregation ends with,
and learns from them alone; the aggregation starts around the prediction, and its gradients are truncated.

Axes: T iterations, B images, N slots, L = h * w locations, C feature channels, D slot width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dias_lab import losses
from dias_lab.data.draws import Request, normal
from dias_lab.methods.base import Given, Method, Output, locations
from dias_lab.methods.parts import build_decoder
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.conditioning import build_backbone
from dias_lab.modules.initializer import SharedGaussian
from dias_lab.modules.projector import build_projector, start

PREDICTION = ("initializer.project_features.", "initializer.block.")  # learns from a loss of its own, and from nothing else


@dataclass
class SmoothSAOutput(Output):
    preheated: Float[Tensor, "B N D"]  # the prediction of the slots


class PreheatedGaussian(SharedGaussian):
    """A sample of one shared Gaussian looks at the features before the first iteration does.

    A block predicts the slots that the aggregation will end with; the prediction, detached, starts the aggregation, in
    training with noise around it.
    """

    def __init__(self, num_slots: int, slot_dim: int, feature_dim: int, num_heads: int = 4, mlp_dim: int | None = None):
        nn.Module.__init__(self)
        self.num_slots = num_slots
        for name in ("mean", "log_std", "log_std_around"):
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 1, slot_dim)))
        self.project_features = nn.Linear(feature_dim, slot_dim)
        self.block = PreheatingBlock(slot_dim, num_heads, mlp_dim or 4 * slot_dim)

    def requests(self) -> list[Request]:
        """The noise of the sample, which there is in evaluation, too, and the noise around the prediction."""
        return [*super().requests(), normal("restart", self.num_slots, self.log_std.shape[-1])]

    def preheat(
        self, projected: Float[Tensor, "B L C"], sample: Float[Tensor, "B N D"], noise: Float[Tensor, "B N D"] | None = None,
        detach: bool = False, keep: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N D"]]:
        """The prediction, and the slots of the first iteration. `detach`: the projector gets no gradient from here.

        Slots outside `keep` are not seen by the others.
        """
        prediction = self.block(sample, self.project_features(projected.detach() if detach else projected), keep)
        slots = prediction.detach()
        if self.training:
            noise = torch.randn_like(sample) if noise is None else noise
            slots = slots + noise * self.log_std_around.exp()
        return prediction, slots


class PreheatingBlock(nn.Module):
    """A transformer layer in another order: slots look at the features (without a norm), at each other, then the MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"preheat_heads = {num_heads} does not divide the slots' width {dim}")
        self.cross_attention = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.norm_self = nn.LayerNorm(dim, bias=False)
        self.self_attention = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.norm_mlp = nn.LayerNorm(dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim, bias=False), nn.GELU(), nn.Linear(mlp_dim, dim, bias=False))

    def forward(self, slots: Float[Tensor, "B N D"], features: Float[Tensor, "B L D"], keep=None) -> Float[Tensor, "B N D"]:
        slots = slots + self.cross_attention(slots, features, features, need_weights=False)[0]
        query, unseen = self.norm_self(slots), None if keep is None else ~keep
        slots = slots + self.self_attention(query, query, query, key_padding_mask=unseen, need_weights=False)[0]
        return slots + self.mlp(self.norm_mlp(slots))


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
        projected = self.project(locations(features))  # [B L width]
        preheated, slots = self.preheat(projected, given)
        slots, attention, keep = self.attend(features, given._replace(slots=slots), projected=projected)
        reconstruction, decoded = self.reconstruct(features, slots, keep, given.draws, given.decoder_attention, attention[-1])
        sampled = self.sampled(given.draws)
        return SmoothSAOutput(features, slots, attention, keep, reconstruction, decoded, preheated, sampled=sampled)

    def preheat(self, projected: Float[Tensor, "B L C"], given: Given) -> tuple[Tensor, Tensor]:
        """The prediction, and the slots of the first iteration, both [B N D]. It starts from the slots that are given.

        Early in the training (`config.preheat_detached`) the projector learns nothing from the preheating.
        """
        noise = given.draws["restart"][:, : given.slots.shape[1]]
        detach = self.progress < self.config.preheat_detached
        return self.initializer.preheat(projected, given.slots, noise, detach, given.keep)

    def trained_with(self, name: str) -> str:
        return "decoder" if name.startswith(PREDICTION) else super().trained_with(name)

    def losses(self, output: SmoothSAOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses, and their weights. The prediction follows the slots, and not the other way round."""
        terms = {
            "reconstruction": losses.reconstruction_loss(output.reconstruction, output.features, output.sampled),
            "preheat": F.mse_loss(output.preheated, output.slots.detach()),
        }
        return terms, {"reconstruction": 1.0, "preheat": self.config.preheat_weight}
