"""Backbones, frozen but for the blocks that SPOT fine-tunes: image -> feature map.

Any timm model by name, its raw feature map without the final norm (as DIAS, Zhao et al. 2025, reconstructs it; others
reconstruct the normed one), or those of any of its modules, joined; or the built-in Fourier backbone, which needs no
weights: random Fourier features (Rahimi and Recht 2007) of local colour, texture and a little position.

Axes: B images, C feature channels, h w the map's locations.
"""

import contextlib
import difflib
import re
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dias_lab import runs


class Backbone(nn.Module):
    """Resizes the protocol's square to its own size and maps it to features. Always in eval mode.

    Frozen, without any gradient, unless `fine_tune` frees its last blocks.

    Attributes: `feature_dim` C, `grid` (h, w), `mean` and `std` of the normalisation, three numbers in 0..1 each;
    `waiting`: its weights are in a checkpoint that is not loaded yet, and it gives no features before.
    """

    waiting = False
    waits_for = 'backbone_weights="checkpoint": load one (load_model, reference.load), or take "pretrained", "random" or a file'
    trained = False  # whether `fine_tune` has freed some blocks
    dtype = None  # of the pass, where `lowered` has set one

    def __init__(self, size: int, mean, std):
        super().__init__()
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)

    def measure(self):
        """Find `feature_dim` and `grid` by one pass over an empty image. Raises ValueError if the image is too small."""
        self.eval()  # before any pass: batch statistics must not move
        try:
            features = self(torch.zeros(1, 3, self.size, self.size))
        except (RuntimeError, AssertionError, ZeroDivisionError) as error:
            raise ValueError(f"the backbone cannot take {self.size}x{self.size} pixels: {error}") from error
        if 0 in features.shape:
            raise ValueError(f"{self.size}x{self.size} pixels are less than one patch of the backbone")
        self.feature_dim, self.grid = features.shape[1], tuple(features.shape[2:])
        self.requires_grad_(False)
        return self

    def train(self, mode: bool = True):
        return super().train(False)

    def fine_tune(self, num_blocks: int):
        """Let the last blocks learn. Raises ValueError where there are not so many, or none at all."""
        blocks = getattr(getattr(self, "model", None), "blocks", None)
        if not isinstance(blocks, nn.Sequential) or not 0 < num_blocks <= len(blocks):
            there = f"{len(blocks)} blocks" if isinstance(blocks, nn.Sequential) else "no blocks: it is no vision transformer"
            raise ValueError(f"fine_tuned_blocks is {num_blocks}, and the backbone has {there}; 0 keeps all of it frozen")
        blocks[-num_blocks:].requires_grad_(True)
        self.trained = True

    def lowered(self, dtype: torch.dtype) -> "Backbone":
        """This backbone, changed to compute in `dtype` and with channels last, for speed on a GPU."""
        self.dtype = dtype
        return self.to(dtype=dtype, memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "B 3 R R"]) -> Float[Tensor, "B C h w"]:
        if self.waiting:
            raise RuntimeError(self.waits_for)
        if images.shape[-2:] != (self.size, self.size):  # without antialias, as the released models were trained
            images = F.interpolate(images, size=(self.size, self.size), mode="bicubic", align_corners=False)
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return self.features(images if self.dtype is None else images.to(self.dtype))


class TimmBackbone(Backbone):
    """A model of timm, up to a stage by number; or several modules by name, at the finest one's resolution, joined."""

    def __init__(self, name, weights, arguments: dict, stage: int | str, size: int, mean=None, std=None, norm=False):
        settings = timm_settings(name)
        super().__init__(size, mean or settings.mean, std or settings.std)
        if settings.fixed_input_size:  # vision transformers: the position table is resampled to this size
            arguments = {"img_size": size, **arguments}
        model = create(name, weights, arguments)
        patch = max(getattr(getattr(model, "patch_embed", None), "patch_size", None) or [1])
        if size % patch:  # it would see no more than whole patches, and its maps be laid over all pixels
            sizes = " or ".join(str(one) for one in (size // patch * patch, size // patch * patch + patch) if one)
            raise ValueError(f"patches of {patch} pixels, as {name} has, do not fill {size}x{size}: take backbone_size={sizes}")
        self.model, self.stage, self.norm = model, stage, norm
        self.check_names(stage.split() if isinstance(stage, str) else [])
        self.measure()
        self.waiting = weights == "checkpoint"

    def check_names(self, names: list[str]):
        """ValueError for a module that is not there, with the nearest names; and for `backbone_norm`, which is of stages."""
        there = [name for name, _ in self.model.named_modules() if name]
        for name in (one for one in names if one not in there):
            near = ", ".join(difflib.get_close_matches(name, there, n=3, cutoff=0))
            raise ValueError(f"backbone_stage: the backbone has no module {name!r}; near: {near}")
        if names and self.norm:
            raise ValueError("backbone_norm is for a stage by number; name the module that normalises as backbone_stage")

    def features(self, images):
        if isinstance(self.stage, str):
            return self.joined(images, self.stage.split())
        how = dict(norm=self.norm, output_fmt="NCHW", intermediates_only=True)
        return self.model.forward_intermediates(images, indices=[self.stage], **how)[0]

    def joined(self, images, names: list[str]) -> Float[Tensor, "B C h w"]:
        found = {}
        with contextlib.ExitStack() as hooks:
            for name in names:
                module = self.model.get_submodule(name)
                hooks.enter_context(module.register_forward_hook(lambda *told, name=name: found.update({name: told[2]})))
            self.model.forward_features(images)
        maps = [self.as_map(name, found.get(name), images) for name in names]
        finest = max((map_.shape[2:] for map_ in maps), key=lambda grid: grid[0] * grid[1])
        return torch.cat([F.interpolate(m, finest, mode="bilinear") if m.shape[2:] != finest else m for m in maps], dim=1)

    def as_map(self, name: str, output, images) -> Float[Tensor, "B C h w"]:
        """What a module gave, as a map of features. ValueError where it is none."""
        found = output if isinstance(output, Tensor) and len(output) == len(images) else torch.zeros(())
        extra, grid = getattr(self.model, "num_prefix_tokens", None), None
        if extra is not None:  # a vision transformer; its heads' [B heads tokens C] are no maps
            grid = self.model.patch_embed.dynamic_feat_size(images.shape[2:])
            if found.ndim == 3 and found.shape[1] == extra + grid[0] * grid[1]:
                found = found[:, extra:].transpose(1, 2).unflatten(2, grid)
        elif found.ndim == 4 and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            found = found.permute(0, 3, 1, 2)
        if found.ndim != 4 or found.shape[2:] == (1, 1) or grid not in (None, found.shape[2:]):
            gave = "nothing on the way to the features" if output is None else getattr(output, "shape", type(output).__name__)
            raise ValueError(f"backbone_stage: the module {name!r} gives no map of features; it gave {gave}")
        return found


def timm_settings(name: str):
    """What timm knows of a model. ValueError, with the nearest names, where it knows none."""
    known = timm.list_models(name.partition(".")[0] + ".*", pretrained=True)
    if timm.is_model(name) and ("." not in name or name in known):
        return timm.get_pretrained_cfg(name)
    words = [word for word in re.split(r"[\W_]", name) if len(word) > 3 or not name]
    alike = [model for model in timm.list_models() if any(word in model for word in words)]
    near = difflib.get_close_matches(name, known or alike or timm.list_models(), n=3, cutoff=0)
    raise ValueError(f"timm has no model {name!r}; near: {', '.join(near)}")


def create(name: str, weights: str, arguments: dict) -> nn.Module:
    """A timm model with "pretrained", "random" (always the same ones) or a local file's weights, loaded strictly; with
    "checkpoint" they are random until the method's checkpoint is loaded."""
    path = runs.resolve(Path(weights).expanduser())
    if weights in ("pretrained", "random", "checkpoint"):
        source = {"pretrained": weights == "pretrained"}
    elif path.is_file():
        source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    else:
        raise ValueError(f'backbone_weights is "pretrained", "random", "checkpoint" or a file; there is no file {path}')
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(name, **source, **arguments)
    except TypeError as error:
        raise ValueError(f"timm's {name} does not take backbone_arguments {arguments}: {error}") from error
    except Exception as error:  # hub client, safetensors, torch and timm raise their own kinds
        if weights == "pretrained":
            raise ValueError(
                f"the pretrained weights of {name} could not be loaded ({type(error).__name__}: {error}). Without a "
                'network, give a local file as backbone_weights, or use backbone="fourier", which needs none.'
            ) from error
        problem = "timm cannot build" if weights in ("random", "checkpoint") else f"{path} does not hold the weights of"
        raise ValueError(f"{problem} {name} {arguments or ''}: {error}") from error


class ColourBackbone(Backbone):
    """Mean colour and deviation of each square of `stride` pixels, six channels. Nothing in it is learned or random."""

    def __init__(self, size: int, stride: int = 8, texture: float = 0.5):
        super().__init__(size, mean=(0.5,) * 3, std=(0.25,) * 3)
        self.stride, self.texture = stride, texture
        self.register_buffer("place", torch.zeros(()), persistent=False)  # where it is: a backbone has a device
        self.measure()

    def lowered(self, dtype) -> Backbone:
        return self

    def features(self, images):
        return colours(images, self.stride, self.texture)


class FourierBackbone(Backbone):
    """cos(W f + b) of f = mean colour, deviation and position of each square of `stride` pixels; W, b random, fixed."""

    def __init__(
        self, size: int, dim: int = 128, stride: int = 8, bandwidth: float = 1.0, texture: float = 1.0, position: float = 0.2
    ):
        super().__init__(size, mean=(0.5,) * 3, std=(0.25,) * 3)
        self.stride, self.texture_weight, self.position_weight = stride, texture, position
        random = torch.Generator().manual_seed(0)
        self.register_buffer("frequency", bandwidth * torch.randn(dim, 8, generator=random), persistent=False)
        self.register_buffer("phase", 2 * torch.pi * torch.rand(dim, generator=random), persistent=False)
        self.measure()

    def lowered(self, dtype) -> Backbone:
        """Itself: the phases of its features need full precision."""
        return self

    def features(self, images):
        described = self.describe(images)  # [B 8 h w]
        return 2**0.5 * torch.cos(F.conv2d(described, self.frequency[:, :, None, None], self.phase))

    def describe(self, images: Float[Tensor, "B 3 R R"]) -> Float[Tensor, "B 8 h w"]:
        """Mean colour, its weighted deviation within the square, and weighted position in -1..1."""
        described = colours(images, self.stride, self.texture_weight)
        B, _, h, w = described.shape
        y = torch.linspace(-1, 1, h, device=images.device)[:, None].expand(h, w)
        x = torch.linspace(-1, 1, w, device=images.device)[None, :].expand(h, w)
        position = self.position_weight * torch.stack([y, x]).to(images.dtype).expand(B, 2, h, w)
        return torch.cat([described, position], dim=1)


def colours(images: Float[Tensor, "B 3 R R"], stride: int, texture: float) -> Float[Tensor, "B 6 h w"]:
    """Mean colour of each square of `stride` pixels, and its deviation within the square times `texture`."""
    mean = F.avg_pool2d(images, stride)
    deviation = (F.avg_pool2d(images.square(), stride) - mean.square()).clamp_min(1e-6).sqrt()
    return torch.cat([mean, texture * deviation], dim=1)
