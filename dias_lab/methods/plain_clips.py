"""What the released methods for clips share: Slot Attention as it is on every frame, and slots that all start from boxes.

With `condition` "boxes" there are as many slots as rows of boxes, without noise: rows of padding are boxes of size 0, and their
slots stay equal throughout the clip. So it is in the releases Genera1Z/RandSF.Q and Genera1Z/VQ-VFM-OCL.

Axes: B clips, N slots, S boxes, L = h * w locations, K channels of projected features, D slot width.
"""

from jaxtyping import Float
from torch import Tensor, nn

from dias_lab.methods.base import Given, everyone
from dias_lab.methods.clip import ClipMethod, Corrected
from dias_lab.modules.initializer import BoxSlots


class PlainClips(ClipMethod):
    def __init__(self, config):
        super().__init__(config)
        if config.condition == "boxes":
            self.initializer, self.boxes = NoInitializer(), BoxSlots(config.slot_dim)

    @property
    def truncate(self) -> bool:
        return self.config.truncation == "bi_level"

    def sample(self, draws: dict, boxes: Float[Tensor, "B S 4"] | None = None) -> Float[Tensor, "B N D"]:
        if boxes is None:
            return super().sample(draws)
        if boxes.shape[1] > self.config.num_slots:
            raise ValueError(f"{boxes.shape[1]} rows of boxes for num_slots = {self.config.num_slots}: each is a slot")
        return self.boxes(boxes.clamp_min(0))  # padding is -1 here, and 0 there

    def first(self, projected: Float[Tensor, "B L K"], given: Given) -> Corrected:
        slots, attention = self.aggregator(projected, given.slots, given.keep, truncate=self.truncate)
        return Corrected(slots, attention, everyone(slots) if given.keep is None else given.keep)


class NoInitializer(nn.Module):
    """Nothing is drawn where boxes are given."""

    def requests(self) -> list:
        return []
