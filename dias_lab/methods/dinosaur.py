"""DINOSAUR: Slot Attention on frozen features, which the slots reconstruct.

Source: Seitzer et al. 2023, arXiv:2209.14860, with an MLP decoder or an autoregressive one in raster order
(`config.decoder`). One Gaussian a slot and truncated gradients are those of its re-implementation in
Genera1Z/VQ-VFM-OCL; that one's dropout of 1 % in the slots' MLP is left out.

Axes: T iterations, B images, N slots, C feature channels, D slot width, h w locations.
"""

from jaxtyping import Float
from torch import Tensor, nn

from dias_lab import losses
from dias_lab.methods.base import Given, Method, Output
from dias_lab.methods.parts import build_decoder
from dias_lab.modules.conditioning import build_backbone
from dias_lab.modules.projector import start


class DINOSAUR(Method):
    def __init__(self, config):
        backbone = build_backbone(config)
        super().__init__(config, backbone)
        self.add_slot_attention()
        self.decoder = self.build_decoder()
        start(self.project, self.aggregator, config)

    def build_decoder(self) -> nn.Module:
        return build_decoder(self.config, self.backbone.feature_dim, self.backbone.grid)

    def run(self, features: Float[Tensor, "B C h w"], given: Given) -> Output:
        slots, attention, keep = self.attend(features, given)
        reconstruction, decoded = self.reconstruct(features, slots, keep, given.draws, given.decoder_attention, attention[-1])
        sampled = self.sampled(given.draws)
        return Output(features, slots, attention, keep, reconstruction, decoded, sampled=sampled)

    def losses(self, output: Output, progress: float) -> tuple[dict, dict]:
        """The reconstruction loss, with weight 1."""
        loss = losses.reconstruction_loss(output.reconstruction, output.features, output.sampled)
        return {"reconstruction": loss}, {"reconstruction": 1.0}
