"""What all methods share: what they take and give, preparing images, drawing random numbers, tracing attention.

A method is a `Method`: a backbone, a `decoder`, and what is trained besides; it writes `run` and `losses`.

Axes: T iterations, B images, N slots, L = h * w locations, K sampled ones, C feature channels, R pixels of the square.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from dias_lab.config import Config, method_class
from dias_lab.data.dataset import square
from dias_lab.data.draws import Request, draw
from dias_lab.methods.tracing import traced
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.backbone import Backbone
from dias_lab.modules.initializer import SeparateGaussian, SharedGaussian
from dias_lab.modules.projector import build_projector


@dataclass
class Output:
    """What a pass gives. A method that gives more extends it."""

    features: Float[Tensor, "B C h w"]  # the reconstruction's target
    slots: Float[Tensor, "B N D"]
    attention: Float[Tensor, "T B N h w"]
    keep: Bool[Tensor, "B N"]  # False where a slot is left out: redundant, or by the caller's mask
    reconstruction: Float[Tensor, "B C h w"]
    decoder_attention: Float[Tensor, "B N h w"] | None  # None in training unless asked for
    # the locations that a training pass with `decoder_locations` has reconstructed; at the others both maps are 0
    sampled: Int[Tensor, "B K"] | None = field(default=None, kw_only=True)
    # which slot each slot belongs to at each iteration, itself while it is alone; None where nothing was merged
    leader: Int[Tensor, "T B N"] | None = field(default=None, kw_only=True)


class Given(NamedTuple):
    """What a pass starts from, besides the features."""

    images: Float[Tensor, "B 3 R R"] | None  # None where the features come from a cache
    slots: Float[Tensor, "B N D"]  # the initial ones
    keep: Bool[Tensor, "B N"] | None  # the caller's mask: slots outside it stay out from the start
    draws: dict[str, Tensor]  # every random number of the pass
    decoder_attention: bool | None  # whether the decoder's map is wanted; None: in evaluation only


class Method(nn.Module):
    """What all methods share: preparing images, drawing random numbers, tracing attention."""

    teacher = ()  # models that a training pass asks besides: in a tuple, so that they are no part of this one
    fresh = ()  # how the names of weights begin that a parent may lack
    evaluated_map = "decoder"  # which map its source scores, and chooses checkpoints by: the decoder's, or the "last"

    def __init__(self, config: Config, backbone: nn.Module):
        super().__init__()
        self.config, self.backbone = config, backbone
        self.trained_steps = 0  # of the checkpoint that was loaded
        self.source = ""  # the published file that was loaded
        self.progress = 0.0  # through the training, 0 to 1: the loop sets it before each step
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def num_locations(self) -> int:
        return self.backbone.grid[0] * self.backbone.grid[1]

    def prepare(self, images: UInt8[Tensor, "B 3 H W"], segments: Int[Tensor, "B H W"] | None = None):
        """The protocol's centre square at `config.image_size` (R), normalised: float [B 3 R R] (and int [B R R]).

        Raises ValueError unless the images are uint8 [B 3 H W] and the segments have their size.
        """
        images, segments = square(images, segments, self.config.image_size)
        images = self.normalise(images)
        return images if segments is None else (images, segments.to(self.device))

    def normalise(self, images: UInt8[Tensor, "B 3 R R"]) -> Float[Tensor, "B 3 R R"]:
        return (images.to(self.device, non_blocking=True) - self.mean) / self.std

    def forward(
        self,
        images: Float[Tensor, "B 3 R R"] | None,
        initial_slots: Float[Tensor, "B N D"] | None = None,
        decoder_attention: bool | None = None,
        keep: Bool[Tensor, "B N"] | None = None,
        draws: dict[str, Tensor] | None = None,
        features: Float[Tensor, "B C h w"] | None = None,
    ) -> Output:
        """One pass over prepared images. `draws` fixes every random number; without it they come from torch's state.

        `initial_slots` replaces the initializer's sample, `keep` leaves slots out from the start (and merges no more),
        `decoder_attention` asks for the decoder's map in training, or declines it in evaluation. `features` that are
        known already (a cache) take the place of the images.
        """
        features = self.encode(images, features)  # [B C h w]
        B, _, h, w = features.shape
        draws = self.draw(range(B), num_locations=h * w) if draws is None else draws
        draws = to_device(draws, features.device)
        if initial_slots is None:
            initial_slots = self.initializer(B, noise=draws.get("slots"))
        return self.run(features, Given(images, initial_slots, keep, draws, decoder_attention))

    def run(self, features: Float[Tensor, "B C h w"], given: Given) -> Output:
        """The method itself: from features to slots, and from slots to a reconstruction."""
        raise NotImplementedError

    def losses(self, output: Output, progress: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Unweighted losses, and their weights at `progress` (0 to 1) through the training."""
        raise NotImplementedError

    def requests(self, num_locations: int | None = None) -> list[Request]:
        """Which random numbers a pass over maps of so many locations wants."""
        return [*self.initializer.requests(), *self.decoder.requests(num_locations or self.num_locations)]

    def draw(self, places, seed: int | None = None, step: int = 0, num_locations: int | None = None) -> dict[str, Tensor]:
        """The random numbers of the images at `places` of the global batch; without a seed, torch's state gives one."""
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        return draw(seed, step, places, self.requests(num_locations))

    def encode(self, images, features=None) -> Float[Tensor, "B C h w"]:
        """The backbone's features of prepared images, unless they are known already."""
        return self.backbone(images) if features is None else features

    def add_slot_attention(self):
        """`project`, `initializer` and `aggregator`, as the config has them."""
        config, dim = self.config, self.backbone.feature_dim
        self.project = build_projector(config, dim, grid=self.backbone.grid)
        initializer = SharedGaussian if config.initializer == "shared" else SeparateGaussian
        self.initializer = initializer(config.num_slots, config.slot_dim)
        sizes = config.slot_dim, config.slot_mlp_dim, config.num_iterations
        more = config.evaluation_iterations
        self.aggregator = SlotAttention(config.project_dim or dim, *sizes, evaluation_iterations=more)

    def attend(self, features: Float[Tensor, "B C h w"], given: Given, projected: Float[Tensor, "B L C"] | None = None):
        """Slot Attention with nothing added: slots, maps [T B N h w], and which slots count.

        Gradients go through the last iteration only, where `config.truncation` says so. `projected`: the projected
        features, where they are known already.
        """
        projected = self.project(locations(features)) if projected is None else projected
        truncate = self.config.truncation == "bi_level"
        slots, attention = self.aggregator(projected, given.slots, given.keep, truncate=truncate)
        keep = everyone(slots) if given.keep is None else given.keep
        return slots, attention.unflatten(3, features.shape[2:]), keep

    def reconstruct(
        self, features: Float[Tensor, "B C h w"], slots: Float[Tensor, "B N D"], keep: Bool[Tensor, "B N"], draws=None,
        decoder_attention: bool | None = None, attention: Float[Tensor, "B N h w"] | None = None,
    ):  # fmt: skip
        """The decoder's reconstruction [B C h w] and map [B N h w], or None where it was not asked for.

        `decoder_attention` None asks for it in evaluation only, where no draws are needed. `attention` [B N h w] is the
        map that the slots end with; a decoder with slot frames needs it. Both are 0 at locations that a training pass
        does not sample (`sampled`).
        """
        grid = features.shape[2:]
        hide = self.decoder.drawn(draws) if self.training else {}
        if self.decoder.framed:
            hide |= {"frames": None if attention is None else attention.flatten(2)}
        reconstruction, decoded = self.decoder(locations(features), slots, keep, need_attention=decoder_attention, **hide)
        wanted = not self.training if decoder_attention is None else decoder_attention
        decoded = on_map(decoded, grid, hide.get("sampled")) if wanted else None  # some decoders have a map at any time
        return on_map(reconstruction.transpose(1, 2), grid, hide.get("sampled")), decoded

    def sampled(self, draws: dict[str, Tensor]) -> Int[Tensor, "B K"] | None:
        """The locations that the decoder reconstructs in a training pass with these draws; None: all."""
        return self.decoder.drawn(draws).get("sampled") if self.training else None

    @classmethod
    def check(cls, config: Config):
        """Whether a training with this config can start: ValueError says why not."""

    def begin(self, untaught: bool = False) -> dict:
        """Once, before the first step of a training: what a method needs from elsewhere. Gives facts for the run's record.

        `untaught`: a teacher's initial weights will do, as where only the cost of a step is wanted.
        """
        return {}

    def trained_with(self, name: str) -> str:
        """At whose learning rate the parameter of this name trains: "decoder", "quantizer", or what comes "before" them."""
        part = name.partition(".")[0]
        return part if part in ("decoder", "quantizer") else "before"

    def parameter_groups(self) -> list[dict]:
        """What is trained, as an optimiser takes it, each group with its `share` of the learning rate."""
        shares = {"before": self.config.aggregator_rate, "decoder": 1.0, "quantizer": self.config.quantizer_rate}
        groups = {part: {"params": [], "share": share} for part, share in shares.items()}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[self.trained_with(name)]["params"].append(parameter)
        return [group for group in groups.values() if group["params"]]

    def compiled(self) -> list[nn.Module]:
        """The parts that torch.compile may take: their inputs always have the same shapes."""
        return [self.project, self.aggregator, self.decoder]

    def untrained(self) -> "Method":
        """The twin before any training, a parent's included: the initial weights of the same config, and this model's own
        backbone, whose conditioning is fitted. In evaluation mode, on the same device.

        Raises ValueError where the backbone was trained, too (SPOT's stage 2).
        """
        if self.backbone.trained:
            raise ValueError(f"{self.config.method} has trained its backbone, too: there is no frozen one to share")
        other = build(self.config)
        other.backbone = self.backbone
        return other.to(self.device).eval()

    def backbones(self) -> dict[str, Backbone]:
        return {name: module for name, module in self.named_modules() if isinstance(module, Backbone)}

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict, without what is frozen of a backbone unless its weights are the checkpoint's (`backbone_weights`)."""
        state = self.state_dict()
        if self.config.backbone_weights == "checkpoint":
            return state
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        elsewhere = tuple(f"{name}." for name in self.backbones())
        fitted = tuple(f"{name}.{part}" for name, one in self.backbones().items() for part in getattr(one, "fitted_parts", ()))
        return {name: value for name, value in state.items() if name in (*trained, *fitted) or not name.startswith(elsewhere)}

    def load_trained_state(self, state: dict[str, Tensor]):
        """Load what `trained_state` gave. Raises ValueError that lists missing, extra and misshapen names."""
        own = self.trained_state()
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unknown {name}" for name in state if name not in own]
        problems += [
            f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        if problems:
            raise ValueError(f"these weights are not of this {type(self).__name__}: " + "; ".join(problems[:10]))
        self.load_state_dict(state, strict=False)
        for backbone in self.backbones().values():
            backbone.waiting = False

    def trace(self, images: UInt8[Tensor, "B 3 H W"], segments=None, seed: int = 0, names=None, about=None):
        """The AttentionTrace of images in evaluation mode. Image i draws from (seed, i), whatever else is in the batch.

        It keeps the centre squares of the pictures, and of the segments, in their own size (at most 768 pixels a side).
        """
        return traced(self, images, segments, seed, names, about)


def segments_from(attention: Float[Tensor, "B N h w"], size: int) -> Int[Tensor, "B R R"]:
    """Arg-max segments at `size` pixels (R) of maps that are first upsampled bilinearly."""
    return F.interpolate(attention.float(), size=(size, size), mode="bilinear", align_corners=False).argmax(dim=1)


def locations(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B L C"]:
    """The map as a list of its locations."""
    return features.flatten(2).transpose(1, 2)


def on_map(values: Float[Tensor, "B C L"], grid, sampled: Int[Tensor, "B K"] | None = None) -> Float[Tensor, "B C h w"]:
    """The list of locations as a map; those that are `sampled` [B C K] at their places, among zeros."""
    if sampled is not None:
        empty = values.new_zeros(*values.shape[:2], grid[0] * grid[1])
        values = empty.scatter(2, sampled[:, None].expand_as(values), values)
    return values.unflatten(2, grid)


def everyone(slots: Float[Tensor, "B N D"]) -> Bool[Tensor, "B N"]:
    """The mask that keeps all slots."""
    return torch.ones_like(slots[..., 0], dtype=torch.bool)


def to_device(draws: dict[str, Tensor], device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in draws.items()}


def build(config: Config) -> Method:
    """The method that `config.method` names, with its initial weights drawn from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return method_class(config.method, bool(config.clip_frames))(config)
