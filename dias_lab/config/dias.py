"""DIAS: re-initialization and self-distillation (Zhao et al. 2025, arXiv:2507.23755).

U1 to U10 mark what the paper leaves open about re-initialization; each is a field, and its comment gives the reason for
the default.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dias_lab.config.fields import CosineDistance, NotNegative, NotNegativeFloat, Part, Share


@dataclass(frozen=True)
class DIAS(Part):
    """Slots that share an object are redundant: they are merged, and aggregation starts again from those kept, which is
    re-initialization. Self-distillation: the last attention map, the teacher, trains the first. Only DIAS reads these; U1 to
    U10 mark what its paper leaves open.
    """

    readers: ClassVar = ("dias",)

    merging: Literal["none", "merge", "reinitialize"] = "reinitialize"  # "merge" keeps the merged slots as they are
    reinitialized_iterations: NotNegative = 1  # U1: the last iterations, over the kept slots; the paper runs one
    linkage: Literal["complete", "average", "single"] = "complete"  # U2: the only one with evidence
    merge_threshold: CosineDistance = 0.05  # U3: cosine distance, 0..2; unknown, tuned on shapes
    merge_rule: Literal["threshold", "gap", "otsu"] = "threshold"  # U3: the others read each image's tree, and need no number
    merge_probability: Share = 1.0  # U4: in training; 1 means always
    merge_draw: Literal["image", "batch"] = "image"  # U4: one draw an image (independent of the batch), or one a batch
    min_kept: NotNegative = 3  # U5: at least so many clusters are left; the early experiment's
    guard: Literal["cancel", "stop"] = "stop"  # U5: "cancel" merges nothing where fewer would be left, as the early experiment
    reinitialize_from: Literal["mean", "survivor", "sample"] = "mean"  # U6: the cluster's mean restarts the survivor
    mask_reinitialized: bool = True  # U7: redundant slots leave the competition
    merge_gradient: bool = True  # U8: gradients flow through the cluster's mean
    teacher: Literal["last", "before_merging"] = "last"  # U9: the map that teaches: the last of all, or the last before merging
    merge_in_evaluation: bool = True  # U10: the same path as in training
    distillation: Literal["none", "release", "cross_entropy"] = "cross_entropy"  # the loss; release applies softmax twice
    matching: Literal["identity", "hungarian"] = "hungarian"  # how the slots of first and last map are paired
    distillation_weight: NotNegativeFloat = 1.0  # weight of this loss at the end of its schedule
    distillation_schedule: Literal["cosine", "constant", "square"] = "cosine"  # 0 to 1; always 1; 1 in the middle half
    distillation_start: Share = 0.0  # share of the training before which the weight is 0
    target: Literal["features", "quantised"] = "features"  # what the slots reconstruct; quantised: codes, as VQDINO

    def check(self):
        """DIAS needs iterations to merge between, and two maps to distil between."""
        if self.method != "dias":
            if self.target == "quantised":
                raise ValueError('target "quantised" belongs to DIAS; method="vqdino" has no other')
            return
        fewest = min(self.num_iterations, self.evaluation_iterations or self.num_iterations)
        if self.merging == "reinitialize" and not 0 < self.reinitialized_iterations < fewest:
            raise ValueError(
                f"re-initialization needs at least one iteration before and one after: num_iterations is {self.num_iterations}, "
                f"evaluation_iterations {self.evaluation_iterations}, reinitialized_iterations {self.reinitialized_iterations}"
            )
        if self.teacher == "before_merging" and self.merging != "reinitialize":
            raise ValueError('Config.teacher "before_merging" needs merging="reinitialize": otherwise there is one last map')
        iterations = self.num_iterations - self.reinitialized_iterations * (self.teacher == "before_merging")
        if self.distillation != "none" and iterations < 2:
            raise ValueError(
                f"self-distillation needs a last map that is not the first: with num_iterations {self.num_iterations} they "
                'are the same; take more iterations, or distillation="none"'
            )
