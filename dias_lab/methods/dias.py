"""DIAS: Slot Attention with re-Initialization and self-Distillation.

Sources: Zhao et al. 2025, arXiv:2507.23755; exact shapes and initial values from the release Genera1Z/DIAS, which leaves
re-initialization out (`form="released"`). What the paper leaves open is a Config field, U1 to U10.

Axes: T iterations, B images, N slots, L = h * w locations, C feature channels, D slot width, E channels of a code.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dias_lab import losses
from dias_lab.draws import Draws
from dias_lab.methods import Method
from dias_lab.modules.backbone import build_backbone
from dias_lab.modules.decoder import build_decoder
from dias_lab.modules.projector import start, zero_biases
from dias_lab.modules.quantizer import Quantised, build_quantizer
from dias_lab.modules.redundancy import cluster, merge_clusters, one_hot_members


class DIASOutput(NamedTuple):
    features: Float[Tensor, "B C h w"]  # the reconstruction's target
    slots: Float[Tensor, "B N D"]
    attention: Float[Tensor, "T B N h w"]
    keep: Bool[Tensor, "B N"]  # False where a slot was redundant
    reconstruction: Float[Tensor, "B C h w"]
    decoder_attention: Float[Tensor, "B N h w"] | None
    quantised: Quantised | None = None  # the target with target="quantised": the codes of VQDINO


class DIAS(Method):
    def __init__(self, config):
        backbone = build_backbone(config)
        super().__init__(config, backbone)
        self.add_slot_attention()
        quantised = config.target == "quantised"
        self.decoder = build_decoder(config, quantised and config.code_dim or backbone.feature_dim, backbone.grid)
        if quantised:
            self.quantizer = build_quantizer(config, backbone.feature_dim)
        start(self.project, self.aggregator, config)
        zero_biases(self.decoder)

    def forward(
        self,
        images: Float[Tensor, "B 3 R R"] | None,
        initial_slots: Float[Tensor, "B N D"] | None = None,
        decoder_attention: bool | None = None,
        keep: Bool[Tensor, "B N"] | None = None,
        draws: Draws | None = None,
        features: Float[Tensor, "B C h w"] | None = None,
    ) -> DIASOutput:
        """One pass over prepared images. `draws` fixes every random number; without it they come from torch's state.

        `initial_slots` replaces the initializer's sample, `keep` leaves slots out from the start (and merges no more),
        `decoder_attention` asks for the decoder's map in training, or declines it in evaluation. `features` that are
        known already (a cache) take the place of the images.
        """
        features = self.encode(images, features)  # [B C h w]
        tokens = features.flatten(2).transpose(1, 2)  # [B L C]
        draws = self.ready(draws, features)
        if initial_slots is None:
            initial_slots = self.initializer(features, len(features), noise=draws.slots)
        slots, attention, keep = self.aggregate(self.project(tokens), initial_slots, keep, draws)
        attention = attention.unflatten(3, features.shape[2:])
        target, quantised = self.target(features)
        reconstruction, decoded = self.reconstruct(target, slots, keep, draws, decoder_attention)
        return DIASOutput(target, slots, attention, keep, reconstruction, decoded, quantised)

    def target(self, features: Float[Tensor, "B C h w"]) -> tuple[Tensor, Quantised | None]:
        """What the slots reconstruct: the features, or their codes [B E h w]."""
        if self.config.target == "features":
            return features, None
        quantised = self.quantizer(features)
        return quantised.features, quantised

    def aggregate(self, tokens, slots, keep, draws):
        """Slots, every iteration's attention map [T B N L], and which slots were kept.

        Aggregate, find out which slots say the same thing, and aggregate again from the slots that are left.
        """
        config = self.config
        merging = config.merging if self.training or config.merge_in_evaluation else "none"
        if merging == "none" or keep is not None:
            slots, attention = self.aggregator(tokens, slots, keep)
            return slots, attention, torch.ones_like(slots[..., 0], dtype=torch.bool) if keep is None else keep
        before = config.num_iterations - config.reinitialized_iterations
        slots, attention = self.aggregator(tokens, slots, num_iterations=before)
        return self.merge_and_finish(tokens, slots, attention, draws)

    def merge_and_finish(self, tokens, slots, attention, draws):
        """The rest of `aggregate` after the iterations of `attention`: merge, and the last iterations."""
        config = self.config
        rest = config.num_iterations - len(attention)
        if config.merging != "reinitialize":
            slots, more = self.aggregator(tokens, slots, num_iterations=rest)
            attention = torch.cat([attention, more])
            if config.merging == "none":
                return slots, attention, torch.ones_like(slots[..., 0], dtype=torch.bool)
            merged, kept, leader = self.merge(slots, draws)
            members = one_hot_members(leader).to(attention.dtype)  # a cluster's map is the sum of its members' maps
            return merged, torch.cat([attention[:-1], (members @ attention[-1])[None]]), kept
        merged, kept, _ = self.merge(slots, draws)
        if config.reinitialize_from == "sample":
            merged = self.initializer(tokens, len(slots), noise=draws.restart)
        elif config.reinitialize_from == "survivor":
            merged = slots
        mask = kept if config.mask_reinitialized else None
        slots, reinitialized = self.aggregator(tokens, merged, mask, num_iterations=rest)
        return slots, torch.cat([attention, reinitialized]), kept if config.mask_reinitialized else torch.ones_like(kept)

    def merge(self, slots, draws):
        """Merged slots [B N D], keep mask [B N] and each slot's leader [B N]; untouched where the draw says so."""
        config = self.config
        how = (config.linkage, config.min_kept, config.merge_rule, config.guard)
        leader = cluster(slots, config.merge_threshold, *how)
        if self.training and config.merge_probability < 1:
            alone = torch.arange(slots.shape[1], device=slots.device)
            leader = torch.where(draws.merge[:, None], leader, alone)
        return *merge_clusters(slots, leader, config.merge_gradient), leader

    def losses(self, output: DIASOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses, and their weights at `progress` (0 to 1) through the training."""
        config = self.config
        terms = {"reconstruction": losses.reconstruction_loss(output.reconstruction, output.features)}
        weights = {"reconstruction": 1.0}
        if config.distillation != "none":
            reinitialized = config.merging == "reinitialize" and config.teacher == "before_merging"
            terms["distillation"] = losses.distillation_loss(
                output.attention.flatten(3),
                config.distillation,
                config.matching,
                teacher=-1 - config.reinitialized_iterations if reinitialized else -1,
            )
            share = losses.schedule(config.distillation_schedule, progress, config.distillation_start)
            weights["distillation"] = config.distillation_weight * share
        if output.quantised is not None:
            more, their_weights = output.quantised.losses()
            terms, weights = terms | more, weights | their_weights
        return terms, weights

