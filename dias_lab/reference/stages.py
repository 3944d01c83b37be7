"""First stages of STEVE and VVO-TfdT as published (Genera1Z/VQ-VFM-OCL): pictures to codes, and back.

    first = stages.load("vqvae-movi_d-c256/42-0030.pth")  # of STEVE or TfdT; SLATE's and VQDINO's are alike
    pictures = first.look(frames)  # what the codes keep of them
    reference.save(first.second_stage(), "runs/steve")  # then: train --from runs/steve

Their convolutions are TAESD's (madebyollin/taesd). TfdT's release adds noise to distances in training, which is not here, and
has trained this decoder on what was encoded, never on codes (its `alpha` is 1 throughout): look at both.

Axes: B frames of all clips, E channels of a code, R pixels of the square, h w locations.
"""

import torch
from jaxtyping import Float, UInt8
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from dias_lab import reference
from dias_lab.config import Config
from dias_lab.data.dataset import square
from dias_lab.methods import Method, build, checkpoint
from dias_lab.modules.conditioning import build_backbone
from dias_lab.modules.quantizer import Quantised
from dias_lab.reference.codes import WIDTH, Block, feature_codes, halved, pixel_codes
from dias_lab.reference.names import FIELDS, SIGNS


class FirstStage(nn.Module):
    def __init__(self, config: Config):
        """With random weights, of the config of its second stage."""
        super().__init__()
        self.config, self.source = config, ""
        of_pixels = config.method == "steve_published"
        self.backbone = None if of_pixels else build_backbone(config)
        self.quantizer = pixel_codes(config) if of_pixels else feature_codes(config, self.backbone.feature_dim)
        self.decode = pixels_of_codes(config.code_dim) if of_pixels else pixels_of_features(config.code_dim)
        for name, values in {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}.items():
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 R R"], codes: bool = True) -> tuple[Quantised, Float[Tensor, "B 3 R/2 R/2"]]:
        """Codes of normalised frames, and the pictures that they stand for, normalised alike. `codes` False: the pictures are
        of what was encoded, before the nearest codes take its place."""
        values = halved(images) if self.backbone is None else self.backbone(images)
        told = self.quantizer(values)
        return told, self.decode(told.features if codes else self.quantizer.encode(values)) * 2 - 1

    @torch.no_grad()
    def look(self, images: UInt8[Tensor, "B 3 H W"], codes: bool = True) -> UInt8[Tensor, "B 3 R/2 R/2"]:
        """What the codes (or what was encoded) keep of the centre squares."""
        normalised = (square(images.to(self.mean.device), None, self.config.image_size)[0] - self.mean) / self.std
        return (self(normalised, codes)[1] * self.std + self.mean).round().clamp(0, 255).byte()

    def second_stage(self, backbone_weights: str = "pretrained", **fields) -> Method:
        """A STEVE or TfdT with these codes and the first weights of `seed`, to be trained from: its backbone is that of
        `backbone_weights`, which was frozen in the first stage, too. ValueError for fields that do not fit."""
        if backbone_weights == "checkpoint":
            raise ValueError('a second stage is to be trained: backbone_weights is "pretrained", "random" or a file')
        if codes := [name for name in ("method", "code_dim", "codebook_size") if name in fields]:
            raise ValueError(f"{codes[0]} is that of the first stage: {getattr(self.config, codes[0])!r}")
        model = build(self.config.replace(backbone_weights=backbone_weights, **fields))
        model.quantizer.load_state_dict(self.quantizer.state_dict())
        model.source = self.source
        return checkpoint.place(model).eval()


def load(path_or_state_dict, preset: str = "movi_d", **fields) -> FirstStage:
    """A first stage, in evaluation mode: of STEVE (the codes are of pixels) or of TfdT, told by its names.

    `fields` are those of its second stage, `Config.preset(preset, form="released", **fields)`. Raises ValueError as
    `reference.load` has it, for a file that is no first stage, and for the fields method and backbone_weights.
    """
    if given := [name for name in ("method", "backbone_weights") if name in fields]:
        raise ValueError(f"{given[0]} follows from the file: leave it out")
    state, source = reference.state_of(path_or_state_dict)
    layout = reference.kind_of(state)
    if not str(layout).endswith("first stage"):
        raise ValueError(f"{source} holds no first stage of STEVE or TfdT" + (f": {SIGNS[layout][2]}" if layout else ""))
    method = layout.removesuffix(" first stage")
    own = {"method": method, "backbone_weights": "checkpoint"}
    first = FirstStage(Config.preset(preset, **{"form": "released", **FIELDS[f"{method} clips"], **own, **fields}))
    first.load_state_dict(reference.translate(state, first.state_dict(), layout, source))
    first.source = str(source)
    if first.backbone is not None:
        first.backbone.waiting = False
    return checkpoint.place(first).eval()


def pixels_of_codes(code_dim: int) -> nn.Sequential:
    """A code becomes eight by eight pixels."""
    return nn.Sequential(nn.Conv2d(code_dim, WIDTH, 1), nn.GroupNorm(1, WIDTH), nn.Sequential(*blocks(3), *larger(3)))


def pixels_of_features(code_dim: int) -> nn.Sequential:
    """The same; the first doubling takes the pixels from channels."""
    four = 4 * WIDTH
    first = [nn.Conv2d(four, four, 1), nn.GroupNorm(1, four), nn.SiLU()]
    doubled = [nn.Sequential(nn.Conv2d(four, four, 1), nn.PixelShuffle(2)), nn.GroupNorm(1, WIDTH), nn.SiLU()]
    doubled = nn.Sequential(*first, *doubled, nn.Conv2d(WIDTH, WIDTH, 1))
    last = nn.Sequential(*larger(3)[1:])
    return nn.Sequential(
        nn.Conv2d(code_dim, four, 1), doubled, nn.GroupNorm(1, WIDTH), nn.SiLU(), nn.Sequential(*blocks(3)), last
    )


def blocks(number: int) -> list[nn.Module]:
    return [Block() for _ in range(number)]


def larger(doublings: int) -> list[nn.Module]:
    """Each doubling, its blocks, and at the end three colours."""
    layers = []
    for left in reversed(range(doublings)):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), *blocks(3 if left else 1)]
    return [*layers, nn.Conv2d(WIDTH, 3, 3, padding=1)]
