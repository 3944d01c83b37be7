"""What a pass over clips gives, and what a stream remembers.

Axes: T iterations on the first frame, B clips, F frames, N slots, L = h * w locations, K sampled ones, C feature channels,
D slot width.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dias_lab.methods.base import Output
from dias_lab.modules.transition import Past

FRAME_AXIS = {  # of the fields of an output that have one
    "features": 1, "slots": 1, "attention": 2, "keep": 1, "reconstruction": 1, "decoder_attention": 1, "sampled": 1, "leader": 2,
}  # fmt: skip


@dataclass
class ClipOutput(Output):
    """What a pass over clips gives."""

    axes: ClassVar[dict] = FRAME_AXIS  # an output with more such fields adds theirs
    features: Float[Tensor, "B F C h w"]  # the reconstruction's target
    slots: Float[Tensor, "B F N D"]
    attention: Float[Tensor, "T B F N h w"]  # a frame with fewer iterations has its first map in front, again and again
    keep: Bool[Tensor, "B F N"]
    reconstruction: Float[Tensor, "B F C h w"]
    decoder_attention: Float[Tensor, "B F N h w"] | None
    sampled: Int[Tensor, "B F K"] | None = field(default=None, kw_only=True)
    leader: Int[Tensor, "T B F N"] | None = field(default=None, kw_only=True)
    frames: Bool[Tensor, "B F"] | None = field(default=None, kw_only=True)  # False: padding, which no loss counts
    iterations: tuple[int, ...] = field(default=(), kw_only=True)  # of each frame: so many of its maps, the last ones, differ

    def per_frame(self, change) -> dict:
        """`change(value, axis)` of every field that has a frame axis."""
        there = {name: getattr(self, name) for name in FRAME_AXIS}
        return {name: None if value is None else change(value, FRAME_AXIS[name]) for name, value in there.items()}

    def frame(self, number: int) -> Output:
        """The output of one frame, without its axis."""
        return Output(**self.per_frame(lambda value, axis: value.select(axis, number)))

    def as_images(self) -> Output:
        """All frames, clip after clip, as if they were images: B * F of them."""
        return Output(**self.per_frame(lambda value, axis: value.flatten(axis - 1, axis)))


class Corrected(NamedTuple):
    """What the corrector gives of one frame."""

    slots: Float[Tensor, "B N D"]
    attention: Float[Tensor, "T B N L"]  # the frame's own iterations
    keep: Bool[Tensor, "B N"]
    leader: Int[Tensor, "T B N"] | None = None
    more: dict = {}  # of the first frame: what the method's output has besides


@dataclass
class State:
    """All that a stream remembers: it does not grow with the frames that it has seen."""

    past: Past  # of the last frames, as many as the transition looks back
    keep: Bool[Tensor, "B N"]
    leader: Int[Tensor, "B N"] | None
    frame: int  # how many frames there have been
    initial: Float[Tensor, "B N D"]  # what the first frame's slots started from
    held: bool  # whether `keep` is the caller's, which holds

    @property
    def slots(self) -> Float[Tensor, "B N D"]:
        """Those that the last frame ended with."""
        return self.past.slots[-1]
