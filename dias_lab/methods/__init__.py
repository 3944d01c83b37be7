"""Methods: one paper, one file. `build(config)` makes the one that `config.method` names.

Every method is a `Method`: a backbone, a `decoder`, and what is trained besides; `forward`, `losses`, and the shared
`prepare` and `trace`. Its output is a NamedTuple that begins with features, slots, attention, keep, reconstruction,
decoder_attention. docs/adding_a_method.md makes one.

Axes: T iterations, B images, N slots, C feature channels, h w locations, R pixels of the protocol's square.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dias_lab import draws
from dias_lab.config import Config
from dias_lab.data.dataset import square
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.backbone import Backbone
from dias_lab.modules.initializer import SeparateGaussian, SharedGaussian
from dias_lab.modules.projector import build_projector
from dias_lab.trace import AttentionTrace


class Method(nn.Module):
    """What all methods share: preparing images, drawing random numbers, tracing attention."""

    evaluated_map = "decoder"  # which map its source scores, and chooses checkpoints by: the decoder's, or the "last"

    def __init__(self, config: Config, backbone: nn.Module):
        super().__init__()
        self.config, self.backbone = config, backbone
        self.step = 0  # of the checkpoint that was loaded
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

    def draw(self, places, seed: int | None = None, step: int = 0, num_locations: int | None = None) -> draws.Draws:
        """The random numbers of the images at `places` of the global batch; without a seed, torch's state gives one."""
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        config = self.config
        num_locations = num_locations or self.num_locations
        return draws.draw(seed, step, places, config.num_slots, config.slot_dim, num_locations, config)

    def encode(self, images, features=None) -> Float[Tensor, "B C h w"]:
        """The backbone's features of prepared images, unless they are known already."""
        return self.backbone(images) if features is None else features

    def ready(self, draws: draws.Draws | None, features: Float[Tensor, "B C h w"]) -> draws.Draws:
        """The draws on the features' device; without any, they come from torch's state."""
        B, _, h, w = features.shape
        draws = self.draw(places=range(B), num_locations=h * w) if draws is None else draws
        return draws.to(features.device)

    def add_slot_attention(self):
        """`project`, `initializer` and `aggregator`, as the config has them."""
        config, dim = self.config, self.backbone.feature_dim
        self.project = build_projector(config, dim)
        initializer = SharedGaussian if config.initializer == "shared" else SeparateGaussian
        self.initializer = initializer(config.num_slots, config.slot_dim)
        sizes = config.slot_dim, config.slot_mlp_dim, config.num_iterations
        self.aggregator = SlotAttention(config.project_dim or dim, *sizes)

    def attend(self, features: Float[Tensor, "B C h w"], initial_slots, keep, draws):
        """Slot Attention with nothing added: slots, maps [T B N h w], and which slots count.

        Gradients go through the last iteration only, where `config.truncation` says so.
        """
        projected = self.project(features.flatten(2).transpose(1, 2))  # [B L width]
        if initial_slots is None:
            initial_slots = self.initializer(features, len(features), noise=draws.slots)
        truncate = self.config.truncation == "bi_level"
        slots, attention = self.aggregator(projected, initial_slots, keep, truncate=truncate)
        keep = torch.ones_like(slots[..., 0], dtype=torch.bool) if keep is None else keep
        return slots, attention.unflatten(3, features.shape[2:]), keep

    def reconstruct(self, features: Float[Tensor, "B C h w"], slots, keep, draws, decoder_attention: bool | None):
        """The decoder's reconstruction [B C h w] and map [B N h w], or None where it was not asked for.

        `decoder_attention` None asks for it in evaluation only.
        """
        grid, tokens = features.shape[2:], features.flatten(2).transpose(1, 2)  # [B L C]
        hide = self.decoder.drawn(draws) if self.training else {}
        reconstruction, decoded = self.decoder(tokens, slots, keep, need_attention=decoder_attention, **hide)
        wanted = not self.training if decoder_attention is None else decoder_attention
        decoded = decoded.unflatten(2, grid) if wanted else None  # some decoders have a map at any time
        return reconstruction.transpose(1, 2).unflatten(2, grid), decoded

    def learn_from(self, teacher: "Method"):
        """Take another trained model as the teacher. Raises ValueError where a method has none, or another one."""
        raise ValueError(f"{type(self).__name__} learns from no teacher")

    def backbones(self) -> dict[str, Backbone]:
        return {name: module for name, module in self.named_modules() if isinstance(module, Backbone)}

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict, without what is frozen of a backbone unless its weights are the checkpoint's (`backbone_weights`)."""
        state = self.state_dict()
        if self.config.backbone_weights == "checkpoint":
            return state
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        elsewhere = tuple(f"{name}." for name in self.backbones())
        return {name: value for name, value in state.items() if name in trained or not name.startswith(elsewhere)}

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

    @torch.no_grad()
    def trace(self, images: UInt8[Tensor, "B 3 H W"], segments=None, seed: int = 0, names=None, about=None):
        """The AttentionTrace of images in evaluation mode. Image i draws from (seed, i), whatever else is in the batch."""
        was_training = self.training
        self.eval()
        pictures, cut = square(images, segments, self.config.image_size)
        parts = []
        for places in torch.arange(len(pictures)).split(self.config.batch_size):
            output = self(self.normalise(pictures[places]), draws=self.draw(places.tolist(), seed))
            parts.append([part.cpu().numpy() for part in (output.attention, output.decoder_attention, output.keep)])
        self.train(was_training)
        attention, decoded, keep = zip(*parts, strict=True)
        return AttentionTrace(
            images=pictures.permute(0, 2, 3, 1).cpu().numpy(),
            attention=np.concatenate(attention, axis=1).astype(np.float16),
            decoder_attention=np.concatenate(decoded).astype(np.float16),
            keep=np.concatenate(keep),
            segments=None if cut is None else cut.cpu().numpy().astype(np.uint8),
            names=list(names) if names is not None else [f"image {i}" for i in range(len(pictures))],
            about={"method": self.config.method, "seed": seed, **(about or {})},
        )


def segments_from(attention: Float[Tensor, "B N h w"], size: int) -> Int[Tensor, "B R R"]:
    """Arg-max segments at `size` pixels (R) of maps that are first upsampled bilinearly."""
    return F.interpolate(attention.float(), size=(size, size), mode="bilinear", align_corners=False).argmax(dim=1)


def build(config: Config) -> Method:
    """The method that `config.method` names, with its initial weights drawn from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return class_of(config.method)(config)


def class_of(name: str) -> type[Method]:
    if name == "dias":
        from dias_lab.methods.dias import DIAS as method
    elif name == "smoothsa":
        from dias_lab.methods.smoothsa import SmoothSA as method
    elif name == "spot":
        from dias_lab.methods.spot import SPOT as method
    elif name == "dinosaur":
        from dias_lab.methods.dinosaur import DINOSAUR as method
    elif name == "vqdino":
        from dias_lab.methods.vqdino import VQDINO as method
    elif name == "slate":
        from dias_lab.methods.slate import SLATE as method
    else:
        raise ValueError(f"there is no method {name!r}")
    return method
