"""Conditioning: features standardised, rotated to their principal components, or whitened; fitted once, then fixed.

What slots see and reconstruct are the features of a backbone, whose channels differ in scale by orders of magnitude; the
loss and the clustering hear the loud ones only. Source of whitening: Bell and Sejnowski 1997; the rest is common.

Axes: B images, C channels of the backbone, K conditioned channels, h w locations, M many locations.
"""

import json

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dias_lab.modules.backbone import Backbone, ColourBackbone, FourierBackbone, TimmBackbone

ROTATIONS = {"pca": 0.0, "whiten": 0.5, "half_whiten": 0.25}  # to which power of its variance a component is divided by it


class Conditioned(Backbone):
    """A frozen backbone whose features are conditioned. Until `fit` has been called, or weights were loaded, it gives none."""

    fitted_parts = ("centre", "matrix")  # saved with the run
    waits_for = "the conditioning of the features is not fitted: train the model, or load its weights"

    def __init__(self, backbone: Backbone, kind: str, num_components: int = 0, position: float = 0.0):
        """`kind`: "none", "scale" (mean removed, one scale for all channels), "standardise" (one each), "pca", "whiten";
        "half_whiten": standardised, then each component divided by the root of its deviation, half the way from pca to whiten.

        `num_components` of the last three, 0: all. `position`: weight of two channels that tell where a location is, each
        of deviation 1 before. Raises ValueError for more components than channels.
        """
        super().__init__(backbone.size, backbone.mean, backbone.std)
        C = backbone.feature_dim
        if num_components > C:
            raise ValueError(f"conditioning_dim is {num_components}, and the backbone has {C} channels")
        if num_components and kind not in ROTATIONS:
            raise ValueError(f"conditioning_dim is for {', '.join(ROTATIONS)}, and conditioning is {kind!r}")
        self.backbone, self.kind, self.position, self.grid = backbone, kind, position, backbone.grid
        K = num_components or C
        self.register_buffer("centre", torch.zeros(C))
        self.register_buffer("matrix", torch.eye(K, C))
        self.waiting = kind != "none" or backbone.waiting
        self.feature_dim = K + 2 * (position > 0)
        self.requires_grad_(False)
        self.register_load_state_dict_pre_hook(refuse_another_kind)

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "M C"]):
        """Statistics of many locations of the training split.

        Raises ValueError for a channel that never changes, and where whitening would keep a component that does not.
        """
        features = features.double()
        deviation = features.std(dim=0)
        dead = (deviation < 1e-9).nonzero().flatten().tolist()
        if len(dead) > (len(deviation) - 1 if self.kind == "scale" else 0):
            raise ValueError(
                f"the features' channels {dead[:10]} never change: conditioning {self.kind!r} cannot scale them; take another "
                'backbone or other images, or conditioning="none"'
            )
        self.centre.copy_(features.mean(dim=0))
        K, C = self.matrix.shape
        if self.kind == "scale":
            matrix = torch.eye(C, dtype=torch.float64) / deviation.square().mean().sqrt()
        elif self.kind == "standardise":
            matrix = torch.diag(1 / deviation)
        else:
            scale = deviation if self.kind == "half_whiten" else torch.ones_like(deviation)
            values, vectors = torch.linalg.eigh(torch.cov((features / scale).T))  # ascending
            values, vectors = values.flip(0)[:K], vectors.flip(1)[:, :K].T  # [K], [K C]
            alive = int((values > 1e-10 * values[0]).sum())
            if self.kind != "pca" and alive < K:
                raise ValueError(
                    f"only {alive} of the {K} components of the features change: conditioning {self.kind!r} cannot scale the "
                    f"others; take conditioning_dim={alive} or fewer, or more conditioning_images"
                )
            vectors = vectors * vectors.sum(dim=1, keepdim=True).sign()  # a sign that does not depend on the machine
            matrix = vectors * (values[:, None] ** -ROTATIONS[self.kind] if self.kind != "pca" else values[0].rsqrt()) / scale
        self.matrix.copy_(matrix)
        self.waiting = False

    def features(self, images: Float[Tensor, "B 3 R R"]) -> Float[Tensor, "B K h w"]:
        lowered = images if self.backbone.dtype is None else images.to(self.backbone.dtype)
        return self.condition(self.backbone.features(lowered).to(self.matrix.dtype))

    def condition(self, raw: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        """What becomes of the features of the backbone inside."""
        found = F.conv2d(raw - self.centre[:, None, None], self.matrix[:, :, None, None])
        if not self.position:
            return found
        place = self.position * positions(found.shape[2:], found.device, found.dtype)
        return torch.cat([found, place.expand(len(found), -1, -1, -1)], dim=1)

    def lowered(self, dtype) -> Backbone:
        """Only the backbone inside computes in `dtype`."""
        self.backbone.lowered(dtype)
        return self


def refuse_another_kind(backbone: Conditioned, state: dict, prefix: str, *_):
    """ValueError where a state has the conditioning of another kind: its matrix shows which it is."""
    matrix = state.get(f"{prefix}matrix")
    if matrix is not None and matrix.shape == backbone.matrix.shape and backbone.kind not in (kinds := kinds_of(matrix)):
        raise ValueError(
            f"the conditioning of these weights is {' or '.join(map(repr, kinds))}, and the config's {backbone.kind!r}: they "
            "would see features that they do not know. Take their conditioning, or train anew"
        )


def kinds_of(matrix: Float[Tensor, "K C"]) -> list[str]:
    """Which kinds of conditioning this can be the matrix of: often one, with a single component several."""
    K, C = matrix.shape
    norms = matrix.norm(dim=1)
    even = bool(norms.max() - norms.min() <= 1e-5 * norms.max())  # one scale for all
    if K == C and torch.equal(matrix, matrix.diag().diag()):
        diagonal = ["scale", "standardise"] if even else ["standardise"]
        return ["none"] if (matrix.diag() == 1).all() else diagonal + [*ROTATIONS] * (C == 1)
    gram = matrix @ matrix.T  # rows are orthogonal, unless channels were standardised before
    turned = bool((gram - gram.diag().diag()).abs().max() <= 1e-4 * gram.max())
    return [*ROTATIONS] if K == 1 else ["half_whiten"] if not turned else ["pca"] if even else ["whiten"]


def build_backbone(config) -> Backbone:
    """The backbone that the config names, its features conditioned where the config asks for it."""
    arguments, statistics = json.loads(config.backbone_arguments), map(config.statistics, ("image_mean", "image_std"))
    where = config.backbone_stage, config.backbone_size
    if config.backbone == "colour":
        backbone = ColourBackbone(config.backbone_size, config.colour_stride, config.colour_texture)
    elif config.backbone == "fourier":
        names = ("backbone_size", "fourier_dim", "fourier_stride", "fourier_bandwidth", "fourier_texture", "fourier_position")
        backbone = FourierBackbone(*(getattr(config, name) for name in names))
    else:
        weights = config.backbone_weights
        backbone = TimmBackbone(config.backbone, weights, arguments, *where, *statistics, config.backbone_norm)
    if config.conditioning == "none" and not config.position_weight:
        return backbone
    return Conditioned(backbone, config.conditioning, config.conditioning_dim, config.position_weight)


def positions(grid, device=None, dtype=None) -> Float[Tensor, "2 h w"]:
    """Where each location is, y and x, each from -1.7 to 1.7: of deviation 1."""
    sides = [torch.linspace(-(3**0.5), 3**0.5, side, device=device, dtype=dtype) for side in grid]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"))
