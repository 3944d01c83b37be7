"""DINOSAUR: Slot Attention on frozen features, which the slots reconstruct.

Source: Seitzer et al. 2023, arXiv:2209.14860, with an MLP decoder or an autoregressive one in raster order
(`config.decoder`). One Gaussian a slot and truncated gradients are those of its re-implementation in
Genera1Z/VQ-VFM-OCL; that one's dropout of 1 % in the slots' MLP is left out.

Axes: T iterations, B images, N slots, C feature channels, D slot width, h w locations.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from dias_lab import losses
from dias_lab.draws import Draws
from dias_lab.methods import Method
from dias_lab.modules.backbone import build_backbone
from dias_lab.modules.decoder import build_decoder
from dias_lab.modules.projector import start


class DINOSAUROutput(NamedTuple):
    features: Float[Tensor, "B C h w"]  # the reconstruction's target
    slots: Float[Tensor, "B N D"]
    attention: Float[Tensor, "T B N h w"]
    keep: Bool[Tensor, "B N"]
    reconstruction: Float[Tensor, "B C h w"]
    decoder_attention: Float[Tensor, "B N h w"] | None  # of the MLP decoder: the weights that mix the slots' paintings


class DINOSAUR(Method):
    def __init__(self, config):
        backbone = build_backbone(config)
        super().__init__(config, backbone)
        self.add_slot_attention()
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
    ) -> DINOSAUROutput:
        """One pass over prepared images; the arguments are those of DIAS."""
        features = self.encode(images, features)  # [B C h w]
        draws = self.ready(draws, features)
        slots, attention, keep = self.attend(features, initial_slots, keep, draws)
        reconstruction, decoded = self.reconstruct(features, slots, keep, draws, decoder_attention)
        return DINOSAUROutput(features, slots, attention, keep, reconstruction, decoded)

    def losses(self, output: DINOSAUROutput, progress: float) -> tuple[dict, dict]:
        """The reconstruction loss, with weight 1."""
        loss = losses.reconstruction_loss(output.reconstruction, output.features)
        return {"reconstruction": loss}, {"reconstruction": 1.0}
