"""STEVE: slots tell the codes of every frame, one after another, and go on to the next frame.

Source: Singh et al. 2022, arXiv:2205.14065, as re-implemented in Genera1Z/VQ-VFM-OCL: slots look at a frozen backbone's
features, an encoder layer predicts, one iteration corrects. The codes are SLATE's tokens of pixels, which learn beside the rest
(in the release before it); padding counts in their own loss alone.

Axes: B clips, F frames, K codes, E channels of a code, h w locations.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from dias_lab import losses
from dias_lab.methods.base import Given
from dias_lab.methods.clip_output import FRAME_AXIS, ClipOutput
from dias_lab.methods.plain_clips import PlainClips
from dias_lab.methods.slate import SLATE
from dias_lab.modules.quantizer import Quantised


@dataclass
class CodedOutput(ClipOutput):
    """`features` are each location's code, which is the target and not what the slots look at: [B F E h w]."""

    axes: ClassVar[dict] = FRAME_AXIS | {"logits": 1}
    logits: Float[Tensor, "B F K h w"] | None = field(default=None, kw_only=True)
    quantised: Quantised | None = field(default=None, kw_only=True)  # of all frames as images (of a long clip, the first ones)


class CodedClips(PlainClips):
    """What STEVE and TfdT share, over the image method that has the codes."""

    output = CodedOutput
    decoded = ("logits",)

    def target(self, features: Float[Tensor, "B*F C h w"], given: Given) -> tuple[Float[Tensor, "B*F E h w"], dict]:
        images = None if given.images is None else given.images.flatten(0, 1)
        quantised = self.quantise(images, features)
        return quantised.features, {"quantised": quantised}

    def losses(self, output: CodedOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses, and their weights: of the slots, and of the quantizer, which do not share a parameter."""
        terms, weights = super().losses(output, progress)
        counted = None if output.frames is None else output.frames.flatten()
        terms["reconstruction"] = losses.code_loss(output.logits.flatten(0, 1), output.quantised.index, counted)
        more, their_weights = output.quantised.losses()
        return terms | more, weights | their_weights


class STEVE(CodedClips, SLATE):
    pass
