"""Clips: what batches and methods read where the images are frames of videos."""

from dataclasses import dataclass
from typing import Literal

from dias_lab.config.fields import NotNegative, NotNegativeFloat, Part, Positive, Share


@dataclass(frozen=True)
class Clips(Part):
    """With clip_frames above 0 the method is its version for clips: slots go on from frame to frame. A transition predicts
    the slots that a later frame starts from, and Slot Attention corrects them. All methods for clips read these.
    """

    clip_frames: NotNegative = 0  # frames of a training clip; 0: images
    clip_stride: Positive = 1  # a training clip takes every so manieth frame of its video
    next_iterations: Positive = 1  # iterations on a later frame; num_iterations are those on the first
    transition: Literal["identity", "encoder", "rsfq"] = "encoder"  # nothing; a Transformer layer; one that sees past frames
    transition_heads: Positive = 4  # attention heads of it
    transition_dropout: Share = 0.0  # in training
    transition_frames: Positive = 6  # rsfq only: it sees so many frames, the present one included
    condition: Literal["none", "boxes"] = "none"  # boxes: slots start from the objects' boxes in the first frame
    refresh: NotNegative = 0  # dias only: redundant slots are looked for again every so many frames; 0: on the first alone
    contrast_weight: NotNegativeFloat = 0.0  # weight of the loss by which a slot is itself in the next frame, and no other

    def check(self):
        if not self.clip_frames:
            return
        first = min(self.num_iterations, self.evaluation_iterations or self.num_iterations)
        if self.next_iterations > first:
            raise ValueError(
                f"a later frame starts from slots that know the scene: next_iterations is {self.next_iterations}, and must not "
                f"exceed the {first} of the first frame"
            )
        if self.transition == "rsfq" and self.transition_frames < 2:
            raise ValueError('transition "rsfq" sees the frame before, too: transition_frames must be at least 2')
        if self.refresh and self.method == "dias" and (self.merging == "none" or self.reinitialize_from == "sample"):
            raise ValueError(
                'refresh looks for redundant slots among those of a scene: it needs merging, and reinitialize_from="mean" or '
                '"survivor", since a new sample would not know who was who'
            )
