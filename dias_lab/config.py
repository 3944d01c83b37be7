"""Config: one frozen dataclass of flat primitives. Presets, and what a method changes in them, are in presets.py.

A notebook's `parameters` cell, `config.json` in a run directory and the command line all hold the same flat fields.
U1 to U10 mark what the paper leaves open about re-initialization; each is a field, and its comment gives the reason for
the default.
"""

import dataclasses
import difflib
import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dias_lab.presets import FORMS, METHODS, PRESETS, SCENES


@dataclass(frozen=True)
class Config:
    """Everything that defines a run. Make one with `Config.preset(name, **fields)`; change one with `config.replace(...)`."""

    method: Literal["dias", "smoothsa", "spot", "dinosaur", "vqdino", "slate"] = "dias"
    seed: int = 42  # every random number of a run follows from it

    # data
    data: str = "data/coco"  # folder with train.lmdb, validation.lmdb, test.lmdb
    image_size: int = 256  # pixels, the side of the protocol's square
    crop_scale: float = 0.75  # smallest crop, as a share of the largest square's area; 1 switches cropping off

    cache_views: int = 0  # fixed crops an image, each with its flip, whose features are computed once; 0: new crops each time

    # backbone (frozen)
    backbone: str = "vit_small_patch14_reg4_dinov2.lvd142m"  # a timm model, or "fourier": built in, without weights
    backbone_weights: str = "pretrained"  # or "random", a local file, "checkpoint" (saved with the rest); fourier reads none
    backbone_arguments: str = "{}"  # JSON text for timm.create_model, for example {"pad_type": "same"}
    backbone_stage: int = -1  # which stage's feature map; -1 is the last
    backbone_norm: bool = False  # whether the features go through the backbone's final norm
    backbone_size: int = 224  # pixels; the square is resized to it, bicubic without antialias
    image_mean: str = ""  # three numbers, 0..1, or one for all channels; empty: the model's own in timm
    image_std: str = ""
    fourier_dim: int = 128  # channels; this and the next four: fourier only
    fourier_stride: int = 8  # pixels per location
    fourier_bandwidth: float = 1.0  # spread of the random frequencies
    fourier_texture: float = 1.0  # weight of the colours' deviation within a location beside their mean
    fourier_position: float = 0.2  # weight of the position beside colour and texture

    # slots and aggregation
    num_slots: int = 7
    slot_dim: int = 256
    slot_mlp_dim: int = 1024
    num_iterations: int = 3  # in all, those after re-initialization included
    initializer: Literal["shared", "separate"] = "shared"  # one Gaussian for all slots, or one each; not smoothsa, spot
    truncation: Literal["none", "bi_level"] = "bi_level"  # gradients through the last iteration only; dias, spot's stage 1: never
    project_dim: int = 0  # channels between features and aggregator; 0: as many as the features have
    project_hidden_dim: int = 0  # channels between the projector's two layers; 0: as many as come out of it
    aggregator_start: Literal["random", "k_means"] = "random"  # initial values; "k_means": aggregation starts as soft k-means
    sharpness: float = 6.0  # k_means only: a slot's first logits are sharpness * sqrt(slot_dim) * cosine

    # redundancy and re-initialization (dias only)
    merging: Literal["none", "merge", "reinitialize"] = "reinitialize"  # "merge" keeps the merged slots as they are
    reinitialized_iterations: int = 1  # U1: the last iterations, over the kept slots; the paper runs one
    linkage: Literal["complete", "average", "single"] = "complete"  # U2: the only one with evidence
    merge_threshold: float = 0.05  # U3: cosine distance, 0..2; unknown, tuned on the scenes
    merge_rule: Literal["threshold", "gap", "otsu"] = "threshold"  # U3: the others read each image's tree, and need no number
    merge_probability: float = 1.0  # U4: in training; 1 means always
    merge_draw: Literal["image", "batch"] = "image"  # U4: one draw an image (independent of the batch), or one a batch
    min_kept: int = 3  # U5: at least so many clusters are left; the early experiment's
    guard: Literal["cancel", "stop"] = "stop"  # U5: "cancel" merges nothing where fewer would be left, as the early experiment
    reinitialize_from: Literal["mean", "survivor", "sample"] = "mean"  # U6: the cluster's mean restarts the survivor
    mask_reinitialized: bool = True  # U7: redundant slots leave the competition
    merge_gradient: bool = True  # U8: gradients flow through the cluster's mean
    teacher: Literal["last", "before_merging"] = "last"  # U9: whose map teaches; last is that of the kept slots
    merge_in_evaluation: bool = True  # U10: the same path as in training

    # decoder
    decoder: Literal["random_order", "mlp", "raster"] = "random_order"  # spot, vqdino, slate have their own
    decoder_start: Literal["random", "lookup"] = "random"  # "lookup": begin with the slot most like each location; not mlp
    decoder_layers: int = 4
    decoder_heads: int = 4  # not mlp
    decoder_mlp_dim: int = 0  # 0: four times the features' channels (mlp decoder: 2048)
    visible_probability: float = 0.5  # how often the number of visible locations is drawn uniformly; random_order only
    visible_fraction: float = 0.1  # visible share of the locations otherwise; random_order only

    # losses (dias only)
    distillation: Literal["none", "release", "cross_entropy"] = "cross_entropy"  # release applies softmax twice
    matching: Literal["identity", "hungarian"] = "hungarian"  # between first and last map's slots
    distillation_weight: float = 1.0  # at the end of the schedule
    distillation_schedule: Literal["cosine", "constant", "square"] = "cosine"  # 0 to 1; always 1; 1 in the middle half
    distillation_start: float = 0.0  # share of the training before which the weight is 0

    # quantised target (vqdino; slate; dias where it asks for it)
    target: Literal["features", "quantised"] = "features"  # what the slots reconstruct; dias only
    codebook_size: int = 4096
    code_dim: int = 0  # channels of a code; 0: as many as the features have, whose codes are features (not slate)
    commitment_weight: float = 0.25  # of the loss that draws what is encoded to its code
    quantizer_rate: float = 10.0  # learning rate of the quantizer, as a share of learning_rate

    # smoothsa only
    preheat_weight: float = 100.0  # of the loss between predicted and final slots
    preheat_detached: float = 0.1  # share of the training in which this loss does not reach the projector
    preheat_heads: int = 4

    # spot only
    stage: Literal[1, 2] = 1  # 2 learns from a run of stage 1
    teacher_run: str = ""  # that run's directory; in the shell, --from
    teacher_weight: float = 0.005  # of the loss toward the teacher's segments
    student_start: Literal["scratch", "teacher"] = "scratch"  # the paper's; or the teacher's weights, but for the initializer
    fine_tuned_blocks: int = 4  # the last ones of the backbone, in stage 2; 0: all of it stays frozen
    evaluation_permutations: Literal["standard", "all"] = "standard"  # the raster order, or the mean over all nine
    spot_parts: Literal["unified", "original"] = "unified"  # layers as in DIAS, or as its authors' code has them

    # training
    steps: int = 100_000
    batch_size: int = 32  # of all devices together
    accumulate: int = 1  # parts in which each device takes its share of a batch, for memory; the gradients add up
    learning_rate: float = 2e-4
    aggregator_rate: float = 1.0  # learning rate of what comes before the decoder (not smoothsa's prediction), as a share
    final_learning_rate: float = 1e-3  # as a share of learning_rate
    warmup: float = 0.05  # share of the steps
    gradient_clip: float = 1.0  # norm over all parameters
    gradient_norm: Literal["l2", "largest"] = "l2"  # "largest": of the absolute values
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"  # bf16-mixed on a GPU that has it, else 32-true
    compile: bool = False  # torch.compile for the trained parts: minutes at the start, for speed on a GPU
    graphs: bool = False  # with compile, on one GPU and accumulate=1: these parts are captured as CUDA graphs
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1  # of each node; with several, also torchrun or srun may start the processes
    num_nodes: int = 1
    workers: int = 0  # processes that read and decode
    log_every: int = 50  # steps
    evaluate_every: int = 2500  # steps; also how often a checkpoint is written
    evaluate_images: int = 0  # of the validation split; 0: all
    protocol: Literal["dias", "dias-v1", "spot", "oclf", "videosaur"] = "dias"  # of the scores that choose the best checkpoint

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
        self._check_ranges()

    def _check_ranges(self):
        positive = ("image_size backbone_size num_slots slot_dim slot_mlp_dim num_iterations fourier_dim fourier_stride "
                    "decoder_layers decoder_heads preheat_heads steps batch_size accumulate devices num_nodes log_every "
                    "evaluate_every").split()  # fmt: skip
        not_negative = ("project_dim project_hidden_dim reinitialized_iterations min_kept cache_views decoder_mlp_dim "
                        "workers evaluate_images seed fourier_texture fourier_position distillation_weight "
                        "aggregator_rate preheat_weight teacher_weight fine_tuned_blocks code_dim commitment_weight "
                        "quantizer_rate").split()  # fmt: skip
        shares = ("visible_probability visible_fraction merge_probability crop_scale warmup final_learning_rate "
                  "distillation_start preheat_detached").split()  # fmt: skip
        for name in positive + ["learning_rate", "gradient_clip", "fourier_bandwidth", "sharpness"]:
            if not getattr(self, name) > 0:
                raise ValueError(f"Config.{name} must be above 0, got {getattr(self, name)!r}")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ValueError(f"Config.{name} must not be negative, got {getattr(self, name)!r}")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Config.{name} is a share from 0 to 1, got {getattr(self, name)!r}")
        if not 0 <= self.merge_threshold <= 2:
            raise ValueError(f"Config.merge_threshold is a cosine distance from 0 to 2, got {self.merge_threshold!r}")
        if self.method == "dias":
            self._check_iterations()
        if self.method == "dinosaur" and self.decoder == "random_order":
            raise ValueError('DINOSAUR\'s decoder is "mlp" or "raster"; Config.preset(name, method="dinosaur") takes "mlp"')
        if self.method == "dinosaur" and self.decoder == "mlp" and self.decoder_layers < 2:
            raise ValueError("with decoder_layers=1 every slot weighs all locations alike: an MLP decoder needs at least 2")
        if self.codebook_size < 2:
            raise ValueError(f"Config.codebook_size must be at least 2, for codes to differ; got {self.codebook_size}")
        if self.method != "dias" and self.target == "quantised":
            raise ValueError('target "quantised" belongs to DIAS; method="vqdino" has no other')
        if self.method == "slate" and not self.code_dim:
            raise ValueError("SLATE quantises pixels: code_dim must be above 0, there are no features to be codes")
        if self.method == "slate" and self.cache_views:
            raise ValueError("SLATE's tokens come from pixels, and a cache keeps features alone: take cache_views=0")
        if self.method != "spot" and (self.stage == 2 or self.teacher_run):
            raise ValueError(f"stage 2 and teacher_run belong to SPOT, and the method is {self.method!r}")
        if self.stage == 1 and self.teacher_run:
            raise ValueError("teacher_run is what stage 2 learns from: take stage=2 with it")
        try:
            arguments = json.loads(self.backbone_arguments)
        except json.JSONDecodeError as error:
            raise ValueError(f"Config.backbone_arguments is not JSON ({error}): {self.backbone_arguments!r}") from None
        if not isinstance(arguments, dict):
            raise ValueError(f"Config.backbone_arguments must be a JSON object, got {self.backbone_arguments!r}")

    def _check_iterations(self):
        """DIAS needs iterations to merge between, and two maps to distil between."""
        if self.merging == "reinitialize" and not 0 < self.reinitialized_iterations < self.num_iterations:
            raise ValueError(
                f"re-initialization needs at least one iteration before and one after: num_iterations is "
                f"{self.num_iterations}, reinitialized_iterations {self.reinitialized_iterations}"
            )
        if self.teacher == "before_merging" and self.merging != "reinitialize":
            raise ValueError('Config.teacher "before_merging" needs merging="reinitialize": otherwise there is one last map')
        iterations = self.num_iterations - self.reinitialized_iterations * (self.teacher == "before_merging")
        if self.distillation != "none" and iterations < 2:
            raise ValueError(
                f"self-distillation needs a last map that is not the first: with num_iterations {self.num_iterations} they "
                'are the same; take more iterations, or distillation="none"'
            )

    @classmethod
    def preset(cls, name: str, form: str = "complete", **fields) -> "Config":
        """The named preset (scenes, coco, voc, clevrtex) in the given form, with `fields` changed.

        The form "complete" is the paper's method, "released" that of the public release (no merging, identity
        matching, the release's double softmax). A method among the fields brings what METHODS says; a field given by
        hand wins over all.

        Raises ValueError for an unknown preset, form or field (naming the nearest one), and for ill-typed values.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}{nearest(form, FORMS)}")
        for field in fields:
            if field not in cls.field_names():
                raise ValueError(f"Config has no field {field!r}{nearest(field, cls.field_names())}")
        method = METHODS.get(fields.get("method"), {})
        scenes = SCENES.get(fields.get("method"), {}) if name == "scenes" else {}
        return cls(**{**PRESETS[name], **FORMS[form], **method, **scenes, **fields})

    @classmethod
    def from_parameters(cls, namespace: dict) -> "Config":
        """The Config that a notebook's parameters describe: pass `globals()`.

        Reads `preset` (default scenes), `form` (default complete) and every name that is a field of Config; a value of
        None means "as the preset has it". Other names are left alone.
        """
        fields = {name: namespace[name] for name in cls.field_names() if namespace.get(name) is not None}
        return cls.preset(namespace.get("preset") or "scenes", namespace.get("form") or "complete", **fields)

    @classmethod
    def field_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def load(cls, path) -> "Config":
        """The Config of a run directory, or of a `config.json`. Fields that this version does not know are refused."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError:
            raise ValueError(f"no config.json at {path.parent}: is it a run directory?") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        unknown = sorted(set(fields) - set(cls.field_names()))
        if unknown:
            raise ValueError(f"{path} has fields that this version of dias_lab does not know: {', '.join(unknown)}")
        return cls(**fields)

    def replace(self, **fields) -> "Config":
        """This config with other fields; another `method` brings what METHODS says."""
        for field in fields:
            if field not in self.field_names():
                raise ValueError(f"Config has no field {field!r}{nearest(field, self.field_names())}")
        method = METHODS.get(fields["method"], {}) if fields.get("method", self.method) != self.method else {}
        return dataclasses.replace(self, **{**method, **fields})

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def statistics(self, name: str) -> tuple[float, float, float] | None:
        """`image_mean` or `image_std` as three numbers; None where empty."""
        text = getattr(self, name)
        numbers = tuple(float(part) for part in text.split())
        return numbers * 3 if len(numbers) == 1 else numbers or None


def nearest(name: str, names) -> str:
    """The end of an error message: the name that was probably meant, or all of them."""
    names = sorted(map(str, names))
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"


def _checked(name: str, value, hint):
    """`value` as the field's type, or ValueError. An int may stand for a float; nothing else is converted."""
    if name in ("image_mean", "image_std"):
        return _three_numbers(name, value)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices or isinstance(value, bool):
            raise ValueError(f"Config.{name} cannot be {value!r}{nearest(value, choices)}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"Config.{name} must be {hint.__name__}, got {value!r} ({type(value).__name__})")
    if hint is float and value != value:
        raise ValueError(f"Config.{name} is NaN")
    return value


def _three_numbers(name: str, value) -> str:
    """One spelling for "0.5", 0.5, [0.5, 0.5, 0.5], "0.5,0.5,0.5": numbers separated by spaces."""
    if isinstance(value, str):
        parts = value.replace(",", " ").strip("[]() ").split()
    elif isinstance(value, (int, float)):
        parts = [value]
    else:
        parts = list(value)
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        raise ValueError(f"Config.{name} needs numbers, got {value!r}") from None
    finite = all(math.isfinite(number) and (number > 0 or name == "image_mean") for number in numbers)
    if len(numbers) not in (0, 1, 3) or not finite:
        raise ValueError(f"Config.{name} needs one or three numbers (std above 0), or nothing; got {value!r}")
    return " ".join(repr(number) for number in numbers)
