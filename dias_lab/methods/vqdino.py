"""VQDINO: slots tell, location by location, which code of a shared codebook the backbone's features have.

Source: Zhao et al. 2025, arXiv:2502.20263, in its variant with a transformer decoder (VVO-Tfd in Genera1Z/VQ-VFM-OCL).
Slots look at the features themselves; their target are the features' codes, which say the same thing in the same way in
all images. What is otherwise than in the release is in docs/quantised_targets.md.

Axes: T iterations, B images, N slots, C feature channels, D slot width, K codes, E channels of a code, h w locations.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dias_lab import losses
from dias_lab.methods.base import Given, Method, Output
from dias_lab.modules.conditioning import build_backbone
from dias_lab.modules.permuted import PermutedDecoder
from dias_lab.modules.projector import start
from dias_lab.modules.quantizer import Quantised, build_quantizer


@dataclass
class VQDINOOutput(Output):
    """`features` are each location's code, which is the target and not what the slots look at; `reconstruction` the mean
    of the codes, as probable as the decoder finds them: [B E h w] both."""

    logits: Float[Tensor, "B K h w"]
    quantised: Quantised


class VQDINO(Method):
    evaluated_map = "last"  # as in its release, which scores this variant by the aggregator's map

    def __init__(self, config):
        backbone = build_backbone(config)
        super().__init__(config, backbone)
        self.add_slot_attention()
        self.quantizer = self.build_quantizer()
        self.decoder = PermutedDecoder(
            config.code_dim or backbone.feature_dim, config.slot_dim, backbone.grid, config.decoder_layers, config.decoder_heads,
            config.decoder_mlp_dim, num_permutations=1, positions=True, num_codes=config.codebook_size,
        )  # fmt: skip
        start(self.project, self.aggregator, config)
        if config.decoder_start == "lookup":
            self.decoder.start_as_lookup()

    def build_quantizer(self):
        return build_quantizer(self.config, self.backbone.feature_dim)

    def quantise(self, images, features: Float[Tensor, "B C h w"]) -> Quantised:
        """The target: codes of the features."""
        return self.quantizer(features)

    def run(self, features: Float[Tensor, "B C h w"], given: Given) -> VQDINOOutput:
        quantised = self.quantise(given.images, features)
        slots, attention, keep = self.attend(features, given)
        expected, decoded, logits = self.reconstruct(quantised.features, slots, keep, given.draws, given.decoder_attention)
        return VQDINOOutput(quantised.features, slots, attention, keep, expected, decoded, logits, quantised)

    def reconstruct(self, features: Float[Tensor, "B E h w"], slots, keep, draws=None, decoder_attention=None, attention=None):
        """The expected code [B E h w], the decoder's map, and the logits [B K h w] that both come with."""
        logits, decoded = super().reconstruct(features, slots, keep, draws, decoder_attention)
        with torch.no_grad():  # nothing learns from it
            expected = torch.einsum("bkhw,ke->behw", logits.softmax(dim=1), self.quantizer.codes())
        return expected, decoded, logits

    def losses(self, output: VQDINOOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses, and their weights: of the slots, and of the quantizer, which do not share a parameter."""
        terms, weights = output.quantised.losses()
        terms["reconstruction"] = losses.code_loss(output.logits, output.quantised.index)
        return terms, weights | {"reconstruction": 1.0}
