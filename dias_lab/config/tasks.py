"""What is learnt on top of a model's slots: recognition, prediction, reasoning. Each looks through a frozen parent's slots.

`changes` are a task's own schedule, for two cores; everything else of such a run is as its parent has it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dias_lab.config.fields import NotNegativeFloat, Part, Positive, Share

SHORT = dict(
    batch_size=32, learning_rate=1e-3, final_learning_rate=1e-3, warmup=0.05, aggregator_rate=1.0, gradient_clip=1e9,
    accumulate=1, precision="32-true", compile=False, graphs=False, log_every=50, evaluate_every=500, evaluate_images=0,
    trace_images=0,
)  # fmt: skip


@dataclass(frozen=True)
class Heads(Part):
    """The slots that a task looks at, and recognition: each slot's class and box."""

    tasks: ClassVar = ("recognition", "prediction", "reasoning")
    changes: ClassVar = dict(SHORT, steps=2000)

    slots: str = ""  # folder of extracted slots; empty: made beside the data
    slots_of: Literal["model", "untrained", "true", "k_means", "tiles", "oracle"] = "model"  # oracle: true states, to predict
    head_dim: Positive = 512  # hidden width of the MLP that tells class and box
    head_dropout: Share = 0.1
    match_iou: Share = 0.1  # a slot is of an object that it overlaps more than this
    box_weight: NotNegativeFloat = 1.0  # of the boxes' loss
    background_class: bool = False  # slots without an object are a class; else nobody asks them

    def check(self):
        if self.task != "discovery" and not self.parent:
            raise ValueError(f"the task {self.task} looks at the slots of a trained model: name its run as parent (--from)")


@dataclass(frozen=True)
class Prediction(Part):
    """SlotFormer: the slots of the next frames from those of the last ones."""

    tasks: ClassVar = ("prediction",)
    changes: ClassVar = dict(
        SHORT, steps=2000, batch_size=16, learning_rate=2e-3, evaluate_images=20, prediction_dim=64, prediction_layers=2,
        prediction_heads=4, prediction_mlp_dim=256, prediction_residual=True, gradient_clip=1.0,
    )  # fmt: skip

    burn_in: Positive = 6  # frames that it sees
    rollout: Positive = 10  # frames that it must tell, in training
    prediction_dim: Positive = 128  # width of its tokens
    prediction_layers: Positive = 4
    prediction_heads: Positive = 8
    prediction_mlp_dim: Positive = 512
    prediction_dropout: Share = 0.1
    prediction_residual: bool = False  # what is told is added to the newest slots; SlotFormer tells the slots themselves
    feature_weight: NotNegativeFloat = 1.0  # of the features that the parent's decoder makes of predicted slots

    def check(self):
        _divides(self, "prediction")


@dataclass(frozen=True)
class Reasoning(Part):
    """Questions about a clip, from its slots and the question's words."""

    tasks: ClassVar = ("reasoning",)
    changes: ClassVar = dict(
        SHORT, steps=3000, batch_size=64, warmup=0.1, reasoning_dim=64, reasoning_layers=2, reasoning_heads=4,
        reasoning_mlp_dim=256, reasoning_frames=2, slot_courses=True,
    )  # fmt: skip

    observed: Positive = 8  # first frames of a clip that are seen
    predictor: str = ""  # a run of task prediction, which goes on from there; empty: only what was seen
    reader: Literal["aloe", "readout"] = "aloe"  # readout: Physion's, of yes and no, which reads no words
    refer: Literal["words", "boxes"] = "words"  # how a question names objects: by words, or by their boxes in the first frame
    blind: bool = False  # the slots are hidden: what the questions alone tell
    reasoning_frames: Positive = 8  # of these, those that a question looks at, spread evenly from the first to the last
    foreseen_frames: Positive = 4  # of the predictor's frames, those that it looks at besides, spread evenly to the last
    slot_courses: bool = False  # a slot's frames are one token, for models whose slots keep to their objects; else one each
    reasoning_dim: Positive = 128  # width of its tokens
    reasoning_layers: Positive = 4
    reasoning_heads: Positive = 8
    reasoning_mlp_dim: Positive = 512
    reasoning_dropout: Share = 0.1

    def check(self):
        _divides(self, "reasoning")


def _divides(config, name: str):
    dim, heads = getattr(config, f"{name}_dim"), getattr(config, f"{name}_heads")
    if dim % heads:
        raise ValueError(f"{name}_heads = {heads} does not divide {name}_dim = {dim}")
