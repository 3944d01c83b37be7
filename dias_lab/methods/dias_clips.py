"""DIAS for clips: redundant slots are left out on the first frame, and those that are kept go on, each at its number.

The paper (Zhao et al. 2025, arXiv:2507.23755) evaluates on videos, and neither it nor the release says how: this is an
extension of ours, and everything that is not as for images stands here.

* The first frame is an image: it is aggregated, its redundant slots are left out, and it is aggregated again. Which slots are
  kept holds for the clip: later frames predict and correct those alone. The others have attention exactly 0, the decoder
  does not see them, and no loss counts them.
* With `refresh` R, every R-th frame looks for redundant slots again, by the iterations of a first frame: slots that are on start
  from what is predicted, those that are off from what they started from on the first frame, and all compete. Of slots that
  say the same, one that is on stays, and the one that sees the most among them (with boxes, which come first, the first);
  so a slot that is off comes back only with something that no other says, at its own number. Nothing is ever permuted.
* Self-distillation is defined where a frame has at least two iterations of its own; its loss is the mean over these frames.

Axes: T iterations, B clips, F frames, N slots, L = h * w locations, K channels of projected features.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dias_lab import losses
from dias_lab.methods.base import Given
from dias_lab.methods.clip import ClipMethod, ClipOutput, Corrected, State
from dias_lab.methods.dias import DIAS


class ClipDIAS(ClipMethod, DIAS):
    def __init__(self, config):
        if config.target == "quantised":
            raise ValueError('target="quantised" is for images: a model for clips reconstructs features')
        super().__init__(config)

    def first(self, projected: Float[Tensor, "B L K"], given: Given) -> Corrected:
        return Corrected(*self.aggregate(projected, given.slots, given.keep, given.draws))

    def later(self, projected: Float[Tensor, "B L K"], state: State, given: Given, numbers=None) -> Corrected:
        if state.held or not self.restarts(state.frame):
            return super().later(projected, state, given, numbers)
        predicted = self.predict(projected, state, numbers)
        slots = torch.where(state.keep[..., None], predicted, state.initial)
        rank = state.keep.long()  # of those that are on, one stays
        if self.config.condition == "boxes":
            rank = rank * torch.arange(slots.shape[1], 0, -1, device=slots.device)
        return Corrected(*self.aggregate(projected, slots, None, given.draws, rank=rank))

    def restarts(self, frame: int) -> bool:
        """Whether redundant slots are looked for on the frame of this number."""
        refresh = self.config.refresh if self.training or self.config.merge_in_evaluation else 0
        return frame == 0 or bool(refresh) and frame % refresh == 0

    def losses(self, output: ClipOutput, progress: float) -> tuple[dict, dict]:
        config, (terms, weights) = self.config, super().losses(output, progress)
        if config.distillation == "none":
            return terms, weights
        chosen = [f for f, iterations in enumerate(output.iterations) if iterations > 1]
        before = config.merging == "reinitialize" and config.teacher == "before_merging"
        teachers = [-1 - config.reinitialized_iterations * (before and self.restarts(f)) for f in chosen]
        pairs = [torch.stack([output.attention[t, :, f] for t in (0, last)]) for f, last in zip(chosen, teachers)]  # [2 B N h w]
        counted = None if output.frames is None else torch.stack([output.frames[:, f] for f in chosen], dim=1).flatten()
        pairs = torch.stack(pairs, dim=2).flatten(1, 2).flatten(3)  # [2 B*F' N L]
        terms["distillation"] = losses.distillation_loss(pairs, config.distillation, config.matching, counted=counted)
        share = losses.schedule(config.distillation_schedule, progress, config.distillation_start)
        weights["distillation"] = config.distillation_weight * share
        return terms, weights
