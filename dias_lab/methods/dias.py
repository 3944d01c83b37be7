"""DIAS: Slot Attention with re-Initialization and self-Distillation.

Sources: Zhao et al. 2025, arXiv:2507.23755; exact shapes and initial values from the release Genera1Z/DIAS, which leaves
re-initialization out (`form="released"`). What the paper leaves open is a Config field, U1 to U10.

Axes: T iterations, B images, N slots, L = h * w locations, C feature channels, D slot width, E channels of a code.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dias_lab import losses
from dias_lab.data.draws import Request, chance, normal
from dias_lab.methods.base import Given, Method, Output, everyone, locations
from dias_lab.methods.parts import build_decoder
from dias_lab.modules.conditioning import build_backbone
from dias_lab.modules.projector import start, zero_biases
from dias_lab.modules.quantizer import Quantised, build_quantizer
from dias_lab.modules.redundancy import cluster, merge_clusters, one_hot_members, reinitialize


@dataclass
class DIASOutput(Output):
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

    def requests(self, num_locations: int | None = None) -> list[Request]:
        config = self.config
        own = [normal("restart", config.num_slots, config.slot_dim)] if config.reinitialize_from == "sample" else []
        if config.merge_probability < 1:
            own.append(chance("merge", "merging", config.merge_probability, per=config.merge_draw))
        return super().requests(num_locations) + own

    def run(self, features: Float[Tensor, "B C h w"], given: Given) -> DIASOutput:
        projected = self.project(locations(features))  # [B L width]
        slots, attention, keep, leader = self.aggregate(projected, given.slots, given.keep, given.draws)
        attention = attention.unflatten(3, features.shape[2:])
        target, quantised = self.target(features)
        reconstruction, decoded = self.reconstruct(target, slots, keep, given.draws, given.decoder_attention, attention[-1])
        sampled = self.sampled(given.draws)
        maps = attention, keep, reconstruction, decoded
        return DIASOutput(target, slots, *maps, quantised, sampled=sampled, leader=leader)

    def aggregate(self, projected: Float[Tensor, "B L C"], slots: Float[Tensor, "B N D"], keep=None, draws=None, rank=None):
        """Aggregate; find the slots that say the same thing; aggregate again from the slots that are left.

        Gives the slots, every iteration's attention map [T B N L], which slots are kept, and each one's leader in every
        iteration [T B N], or None in training and where none is left out by merging. `rank`: who leads a cluster where the
        slots have identities already, as in a clip's later frames (see `elect`).
        """
        config = self.config
        merging = config.merging if self.training or config.merge_in_evaluation else "none"
        if merging == "none" or keep is not None:
            slots, attention = self.aggregator(projected, slots, keep)
            return slots, attention, everyone(slots) if keep is None else keep, None
        left, iterations = config.reinitialized_iterations, self.aggregator.iterations
        first = iterations - left if left < iterations else iterations
        slots, attention = self.aggregator(projected, slots, num_iterations=first)
        return self.finish(projected, slots, attention, draws, rank)

    def finish(self, projected, slots, attention, draws=None, rank=None):
        """The rest of `aggregate`, after the iterations whose maps `attention` holds."""
        config, left = self.config, self.aggregator.iterations - len(attention)
        if config.merging != "reinitialize" and left:  # nothing is merged before the end
            slots, more = self.aggregator(projected, slots, num_iterations=left)
            attention = torch.cat([attention, more])
        if config.merging == "none":
            return slots, attention, everyone(slots), None

        leader = self.redundant(slots, draws)
        leader = leader if rank is None else elect(leader, attention[-1], rank)
        mean, keep = merge_clusters(slots, leader, config.merge_gradient)
        if config.merging == "merge":  # a cluster's map is the sum of its members' maps
            together = one_hot_members(leader).to(attention.dtype) @ attention[-1]
            merged = None if self.training else self.leaders(leader, len(attention) - 1, 1)
            return mean, torch.cat([attention[:-1], together[None]]), keep, merged

        restart = {"mean": mean, "survivor": slots}.get(config.reinitialize_from)
        if restart is None:
            restart = self.initializer(len(slots), noise=draws["restart"])
        slots, again, keep = reinitialize(projected, restart, keep, self.aggregator, left, config.mask_reinitialized)
        told = config.mask_reinitialized and not self.training  # pictures alone read it
        merged = self.leaders(leader, len(attention), len(again)) if told else None
        return slots, torch.cat([attention, again]), keep, merged

    def leaders(self, leader: Int[Tensor, "B N"], before: int, after: int) -> Int[Tensor, "T B N"]:
        """Each slot's leader in every iteration: itself in those `before` the merge, its cluster's in those `after`."""
        alone = torch.arange(leader.shape[1], device=leader.device).expand(before, *leader.shape)
        return torch.cat([alone, leader.expand(after, *leader.shape)])

    def redundant(self, slots: Float[Tensor, "B N D"], draws=None) -> Int[Tensor, "B N"]:
        """For each slot the one that leads its cluster; itself where it stays alone, or where the draw says so."""
        config = self.config
        how = (config.linkage, config.min_kept, config.merge_rule, config.guard)
        leader = cluster(slots, config.merge_threshold, *how)
        if self.training and config.merge_probability < 1:
            alone = torch.arange(slots.shape[1], device=slots.device)
            leader = torch.where(draws["merge"][:, None], leader, alone)
        return leader

    def target(self, features: Float[Tensor, "B C h w"]) -> tuple[Tensor, Quantised | None]:
        """What the slots reconstruct: the features, or their codes [B E h w]."""
        if self.config.target == "features":
            return features, None
        quantised = self.quantizer(features)
        return quantised.features, quantised

    def losses(self, output: DIASOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses, and their weights at `progress` (0 to 1) through the training."""
        config = self.config
        terms = {"reconstruction": losses.reconstruction_loss(output.reconstruction, output.features, output.sampled)}
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


def elect(leader: Int[Tensor, "B N"], attention: Float[Tensor, "B N L"], rank: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """Each cluster's leader is the member of the highest rank, a whole number; of those, the one that sees the most."""
    score = attention.float().mean(dim=2) + 2 * rank  # a mean is at most 1
    best = score[:, None].masked_fill(~one_hot_members(leader), -torch.inf).argmax(dim=2)  # [B N], of the cluster led by each
    return best.gather(1, leader)
