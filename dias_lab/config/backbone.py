"""What turns an image into the features that slots look at."""

from dataclasses import dataclass
from typing import Literal

from dias_lab.config.fields import (
    Deviations,
    JsonObject,
    Means,
    NotNegative,
    NotNegativeFloat,
    Part,
    Positive,
    PositiveFloat,
    Stage,
)

KINDS = ("none", "scale", "standardise", "pca", "whiten", "half_whiten")


@dataclass(frozen=True)
class Backbone(Part):
    """The backbone, a network that turns an image into a map of features, and stays frozen: it is not trained.

    All methods read these.
    """

    backbone: str = "vit_small_patch14_reg4_dinov2.lvd142m"  # of the library timm, or "colour", "fourier": built in
    backbone_weights: str = "pretrained"  # "pretrained": timm downloads them; "random"; a file; "checkpoint": saved with the rest
    backbone_arguments: JsonObject = "{}"  # JSON text for timm.create_model, for example {"pad_type": "same"}
    backbone_stage: Stage = -1  # which stage's feature map, -1 is the last; or of modules by name, joined: "blocks.5 blocks.6"
    backbone_norm: bool = False  # whether the features go through the normalisation that ends the backbone
    backbone_size: Positive = 224  # pixels; the square is resized to it, bicubic without antialias
    image_mean: Means = ""  # three numbers, 0..1, or one for all channels; empty: the model's own in timm
    image_std: Deviations = ""  # the same for the deviation, above 0
    colour_stride: Positive = 8  # pixels per location; this and the next: "colour" only, mean and deviation of squares
    colour_texture: NotNegativeFloat = 0.5  # weight of the colours' deviation within a square beside their mean
    conditioning: Literal[KINDS] = "none"  # of features, fitted on the training split; half_whiten: between pca and whiten
    conditioning_dim: NotNegative = 0  # components that pca, whiten and half_whiten keep; 0: all
    conditioning_images: Positive = 256  # the first so many of the training split are what it is fitted on; or all
    position_weight: NotNegativeFloat = 0.0  # of two channels appended to the features, which tell a location's place; 0: none
    fourier_dim: Positive = 128  # channels; this and the next four: fourier only
    fourier_stride: Positive = 8  # pixels per location
    fourier_bandwidth: PositiveFloat = 1.0  # spread of the random frequencies
    fourier_texture: NotNegativeFloat = 1.0  # weight of the colours' deviation within a location beside their mean
    fourier_position: NotNegativeFloat = 0.2  # weight of the position beside colour and texture

    def statistics(self, name: str) -> tuple[float, float, float] | None:
        """`image_mean` or `image_std` as three numbers; None where empty."""
        numbers = tuple(float(part) for part in getattr(self, name).split())
        return numbers * 3 if len(numbers) == 1 else numbers or None
