"""What the neighbours of DIAS read, each a part of its own; their papers are named in methods/."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dias_lab.config.fields import NotNegative, NotNegativeFloat, Part, Positive, Rule, Share


@dataclass(frozen=True)
class Codes(Part):
    """A codebook: a table of vectors, the codes, the nearest of which stands for a feature.

    VQDINO and SLATE read these, for videos TfdT and STEVE, and DIAS with `target` "quantised".
    """

    readers: ClassVar = ("dias", "vqdino", "slate", "tfdt", "steve", "tfdt_published", "steve_published")

    codebook_size: Annotated[int, Rule(lambda value: value > 1, "must be at least 2, for codes to differ")] = 4096
    code_dim: NotNegative = 0  # channels of a code; 0: as many as the features have, whose codes are features (not slate)
    commitment_weight: NotNegativeFloat = 0.25  # weight of the loss that draws what is encoded to its code
    quantizer_rate: NotNegativeFloat = 10.0  # learning rate of the quantizer, as a share of learning_rate

    def check(self):
        if self.method in ("slate", "steve", "steve_published") and not self.code_dim:
            raise ValueError(f"{self.method} quantises pixels: code_dim must be above 0, there are no features to be codes")
        if self.method in ("slate", "steve", "steve_published") and self.cache_views:
            raise ValueError(f"{self.method}'s tokens come from pixels, and a cache keeps features alone: take cache_views=0")


class VQDINO(Part):
    changes: ClassVar = dict(initializer="separate", code_dim=256)
    on_presets: ClassVar = {
        "scenes": dict(codebook_size=256, code_dim=64, decoder_layers=2, decoder_mlp_dim=256),
        "shapes": dict(codebook_size=256, code_dim=0, decoder_layers=2, decoder_mlp_dim=256),
        "photos": dict(codebook_size=256, code_dim=0, decoder_heads=2, decoder_locations=0),
    }


class SLATE(Part):
    changes: ClassVar = dict(initializer="separate", code_dim=256, cache_views=0)
    on_presets: ClassVar = {
        "scenes": dict(codebook_size=256, code_dim=64, decoder_layers=2, decoder_mlp_dim=256),
        "shapes": dict(codebook_size=256, code_dim=64, decoder_layers=2, decoder_mlp_dim=256, decoder_start="random"),
        "photos": dict(codebook_size=256, code_dim=64, decoder_locations=0, decoder_start="random"),
    }


class DINOSAUR(Part):
    changes: ClassVar = dict(initializer="separate", decoder="mlp")
    on_presets: ClassVar = {
        # its features have no position, from which an MLP decoder could paint
        "shapes": dict(decoder="raster", decoder_layers=2, decoder_mlp_dim=256),
        "photos": dict(initializer="shared"),
    }

    def check(self):
        if self.method == "dinosaur" and self.decoder == "random_order":
            raise ValueError('DINOSAUR\'s decoder is "mlp" or "raster"; Config.preset(name, method="dinosaur") takes "mlp"')


@dataclass(frozen=True)
class SmoothSA(Part):
    """Preheating: a small network predicts the slots from the features before the first iteration. Only SmoothSA reads these."""

    readers: ClassVar = ("smoothsa",)
    changes: ClassVar = dict(transition="rsfq", transition_dropout=0.5, contrast_weight=0.5)

    preheat_weight: NotNegativeFloat = 100.0  # weight of the loss between predicted and final slots
    preheat_detached: Share = 0.1  # share of the training in which this loss does not reach the projector
    preheat_heads: Positive = 4  # attention heads of the small network


@dataclass(frozen=True)
class SPOT(Part):
    """SPOT trains twice: a run of stage 2, the student, learns from the segments of a run of stage 1, its teacher, and
    decodes in nine orders. Only SPOT reads these.
    """

    readers: ClassVar = ("spot",)
    changes: ClassVar = dict(gradient_clip=0.3, gradient_norm="largest")
    # the built-in backbones have nothing to fine-tune; over all orders, as SPOT's authors score it, no order's own delay is
    # left in the map; and colour's six channels are too few for a transformer
    on_presets: ClassVar = {
        "scenes": dict(
            fine_tuned_blocks=0, evaluation_permutations="all", decoder_dim=64, decoder_layers=2, decoder_mlp_dim=256
        ),
        "shapes": dict(fine_tuned_blocks=0, evaluation_permutations="all"),
        "photos": dict(fine_tuned_blocks=0, evaluation_permutations="all", decoder_heads=2, decoder_locations=0),
    }

    stage: Literal[1, 2] = 1  # 2 learns from a run of stage 1
    teacher_run: str = ""  # the directory of the run of stage 1 that stage 2 learns from
    teacher_weight: NotNegativeFloat = 0.005  # weight of the loss toward the teacher's segments
    student_start: Literal["scratch", "teacher"] = "scratch"  # random weights, or the teacher's but for the initializer's
    fine_tuned_blocks: NotNegative = 4  # the last ones of the backbone, in stage 2; 0: all of it stays frozen
    evaluation_permutations: Literal["standard", "all"] = "standard"  # row by row, or the mean over all nine orders
    spot_parts: Literal["unified", "original"] = "unified"  # layers as in DIAS, or as SPOT's authors' code has them

    def check(self):
        if self.method != "spot" and (self.stage == 2 or self.teacher_run):
            raise ValueError(f"stage 2 and teacher_run belong to SPOT, and the method is {self.method!r}")
        if self.stage == 1 and self.teacher_run:
            raise ValueError("teacher_run is what stage 2 learns from: take stage=2 with it")
        if self.method == "spot" and self.student_start == "teacher" and self.parent:
            raise ValueError('weights are those of parent, or of the teacher: with parent, take student_start="scratch"')
