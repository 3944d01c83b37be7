"""How slots start, look at the features, and are decoded."""

from dataclasses import dataclass
from typing import Literal

from dias_lab.config.fields import NotNegative, NotNegativeFloat, Part, Positive, PositiveFloat, Share

OTHER_DECODERS = ("spot", "vqdino", "slate", "videosaur", "steve", "tfdt")  # methods that bring a decoder of their own


@dataclass(frozen=True)
class Slots(Part):
    """Slots, the vectors that stand for objects, and the aggregation that fills them: in each iteration the slots compete
    for the places of the image, and the attention map says which slot looks where. All methods read these.
    """

    num_slots: Positive = 7  # slots an image
    slot_dim: Positive = 256  # channels of a slot
    slot_mlp_dim: Positive = 1024  # hidden channels of the MLP that ends an iteration
    num_iterations: Positive = 3  # in all, those after re-initialization included
    evaluation_iterations: NotNegative = 0  # in evaluation, where more may do better; 0: as in training, and as published
    initializer: Literal["shared", "separate"] = "shared"  # one Gaussian for all slots, or one each; not smoothsa, spot
    truncation: Literal["none", "bi_level"] = "bi_level"  # gradients through the last iteration only; dias, spot's stage 1: never
    projector: Literal["mlp", "convolutional"] = "mlp"  # convolutional: features and place, rotated, and a small CNN
    projector_position: NotNegativeFloat = 0.6  # convolutional only: weight of the place beside the features
    projector_width: Positive = 32  # convolutional only: channels of the CNN
    project_dim: NotNegative = 0  # channels between features and aggregator; 0: as many as the features have
    project_hidden_dim: NotNegative = 0  # channels between the projector's two layers; 0: as many as come out of it
    aggregator_start: Literal["random", "k_means"] = "random"  # "k_means": aggregation starts as soft k-means
    sharpness: PositiveFloat = 6.0  # k_means only: a slot's first logits are sharpness * sqrt(slot_dim) * cosine


@dataclass(frozen=True)
class Decoder(Part):
    """The decoder, which reconstructs the features from the slots, so that the slots must hold what is in the image.

    A location is one place of the feature map. All methods read the sizes.
    """

    decoder: Literal["random_order", "mlp", "raster"] = "random_order"  # "mlp": all locations at once; not spot, vqdino, slate
    slot_frames: bool = False  # each slot paints in the frame of its own attention (Biza et al. 2023); not of DIAS; not raster
    evaluation_visible: Literal["all", "none"] = "all"  # what an evaluation shows the decoder; random_order only; release: all
    decoder_start: Literal["random", "lookup"] = "random"  # "lookup": begin with the slot most like a location (mlp: closest)
    decoder_locations: NotNegative = 0  # mlp only: a training step reconstructs so many random ones of an image; 0: all
    decoder_layers: Positive = 4  # layers of the decoder
    decoder_heads: Positive = 4  # attention heads of a layer; not mlp
    decoder_dim: NotNegative = 0  # channels of a decoder that goes in an order; 0: as many as the features have; spot, raster
    decoder_mlp_dim: NotNegative = 0  # hidden channels of a layer; 0: four times the features' channels (mlp decoder: 2048)
    visible_probability: Share = 0.5  # how often the number of visible locations is drawn uniformly; random_order only
    visible_fraction: Share = 0.1  # visible share of the locations otherwise; random_order only

    def check(self):
        if self.slot_frames and self.decoder == "raster":
            raise ValueError('slot_frames is an option of the decoders "mlp" and "random_order", and decoder is "raster"')
        if self.decoder == "mlp" and self.decoder_layers < 2 and not self.slot_frames:
            raise ValueError("with decoder_layers=1 every slot weighs all locations alike: an MLP decoder needs at least 2")
        if self.decoder_locations and (self.decoder != "mlp" or self.method.split("_")[0] in OTHER_DECODERS):
            kind = f"{self.method}'s own" if self.method.split("_")[0] in OTHER_DECODERS else f'"{self.decoder}"'
            raise ValueError(
                f"decoder_locations is {self.decoder_locations}, and the decoder is {kind}, in which locations depend "
                'on each other: take decoder="mlp" (dias, dinosaur, smoothsa), or decoder_locations=0'
            )
        if self.decoder_start == "lookup" and self.method.split("_")[0] not in OTHER_DECODERS:
            self.check_lookup()

    def check_lookup(self):
        """Whether the decoder can begin as a lookup: ValueError says why not, and what else to take."""
        if self.slot_frames:
            raise ValueError(
                'decoder_start="lookup" is not for slot frames, which know the distance from each slot: take '
                'decoder_start="random", or slot_frames=False'
            )
        as_they_are = self.projector == "mlp" and not self.project_dim and not self.project_hidden_dim
        if self.decoder == "mlp" and not (self.position_weight and as_they_are):
            raise ValueError(
                "an MLP decoder looks up the closest slot, and slots know their place from the features: "
                'decoder_start="lookup" needs position_weight above 0, projector="mlp", project_dim=0 and '
                'project_hidden_dim=0; or take decoder_start="random"'
            )
