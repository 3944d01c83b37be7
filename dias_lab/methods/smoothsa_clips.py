"""SmoothSA for clips: preheated slots and all iterations on the first frame, one iteration on the others.

Source: the release Genera1Z/SmoothSA. With `condition` "boxes" the sample that is preheated comes from the boxes, with noise
around them, and there are as many slots as rows of boxes, padding included: as published.

Axes: B clips, N slots, S boxes, L = h * w locations, D slot width, K channels of projected features.
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dias_lab.methods.base import Given, everyone
from dias_lab.methods.clip import ClipMethod, ClipOutput, Corrected
from dias_lab.methods.smoothsa import SmoothSA
from dias_lab.modules.initializer import BoxSlots


@dataclass
class ClipSmoothSAOutput(ClipOutput):
    preheated: Float[Tensor, "B N D"] | None = field(default=None, kw_only=True)  # the first frame's slots, as predicted


class ClipSmoothSA(ClipMethod, SmoothSA):
    output = ClipSmoothSAOutput

    def __init__(self, config):
        super().__init__(config)
        self.truncate = config.truncation == "bi_level"
        if config.condition == "boxes":
            self.initializer.mean = None  # each box has its own
            self.boxes = BoxSlots(config.slot_dim, norm=True)

    def sample(self, draws: dict, boxes: Float[Tensor, "B S 4"] | None = None) -> Float[Tensor, "B N D"]:
        if boxes is None:
            return super().sample(draws)
        S, N = boxes.shape[1], self.config.num_slots
        if S > N:
            raise ValueError(f"{S} rows of boxes for num_slots = {N}: there is noise for no more")
        return self.boxes(boxes) + draws["slots"][:, :S] * self.initializer.log_std.exp()

    def first(self, projected: Float[Tensor, "B L K"], given: Given) -> Corrected:
        preheated, slots = self.preheat(projected, given)
        slots, attention = self.aggregator(projected, slots, given.keep, truncate=self.truncate)
        keep = everyone(slots) if given.keep is None else given.keep
        return Corrected(slots, attention, keep, more={"preheated": preheated})

    def losses(self, output: ClipSmoothSAOutput, progress: float) -> tuple[dict, dict]:
        """The prediction follows the first frame's slots, and not the other way round."""
        terms, weights = super().losses(output, progress)
        terms["preheat"] = F.mse_loss(output.preheated, output.slots[:, 0].detach())
        return terms, weights | {"preheat": self.config.preheat_weight}
