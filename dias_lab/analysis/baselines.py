"""What a score must be compared with: k-means on the same features, position alone, and the map's own ceiling.

All three go the way of an attention map: one label a location, as a one-hot map, upsampled bilinearly, arg-max. Clips have
them frame by frame, k-means' clusters named as those of the frame before that they overlap; and two that hold still.

Axes: B images or clips, F frames, C channels, h w locations, R pixels, K clusters.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from dias_lab.analysis.evaluate import CLIP_METRICS, MAPS, METRICS, frame_by_frame, maps_of, score
from dias_lab.analysis.intervals import TITLES
from dias_lab.methods import segments_from
from dias_lab.metrics import OVERLAP, confusion

NAMES = ("k-means", "position", "ceiling")
HELD = ("held map", "held truth")  # of clips


def cluster_segments(features: Float[Tensor, "B C h w"], num_clusters: int, size: int) -> Int[Tensor, "B R R"]:
    """Segments by k-means (5 starts, seed 0) on the feature vectors of each image alone."""
    B, _, h, w = features.shape
    points = features.flatten(2).transpose(1, 2).double().cpu().numpy()  # [B L C]
    labels = [KMeans(num_clusters, n_init=5, random_state=0).fit_predict(image) for image in points]
    one_hot = F.one_hot(torch.from_numpy(np.array(labels)).view(B, h, w).long(), num_clusters)
    return segments_from(one_hot.permute(0, 3, 1, 2), size)


def position_segments(grid: tuple[int, int], num_clusters: int, size: int, count: int) -> Int[Tensor, "B R R"]:
    """The same tiles for every image: k-means on the locations' positions."""
    positions = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid), indexing="ij"))
    return cluster_segments(positions[None], num_clusters, size).expand(count, -1, -1)


def ceiling_segments(true: Int[Tensor, "B R R"], grid: tuple[int, int]) -> Int[Tensor, "B R R"]:
    """What a perfect map of `grid` locations says: the true segments, averaged over each location."""
    labels = true.long().masked_fill(true >= OVERLAP, -1) + 1  # overlap and void become 0
    one_hot = F.one_hot(labels)[..., 1:].permute(0, 3, 1, 2).float()  # and belong to no segment
    if not one_hot.shape[1]:
        return torch.zeros_like(labels)
    return segments_from(F.adaptive_avg_pool2d(one_hot, grid), true.shape[-1])


def followed(segments: Int[Tensor, "F R R"], num_clusters: int) -> Int[Tensor, "F R R"]:
    """The clusters of each frame renamed as those of the frame before that they overlap most, one to one."""
    segments = segments.clone()
    for before, after in zip(segments, segments[1:]):
        overlap = confusion(after[None], before[None], num_clusters)[0, :, :num_clusters]
        after.copy_(torch.from_numpy(linear_sum_assignment(overlap, maximize=True)[1])[after.long()])
    return segments


def baseline_scores(model, store, protocol: str = "dias", limit: int = 0) -> pd.DataFrame:
    """A row an image: item and "<baseline>.<metric>" for k-means, position and ceiling, with as many clusters as slots.

    A store of frames gives a row a clip, as `score` has it, and two more that hold still: "held map", the model's own last map
    of the first frame, and "held truth", that frame's true segments. The model must be in evaluation mode.
    """
    grid, k, maps = model.backbone.grid, model.config.num_slots, maps_of(model, model.config.seed)

    def predict(batch):
        count, size = len(batch["image"]), batch["image"].shape[-1]
        clusters = cluster_segments(model.backbone(model.normalise(batch["image"])), k, size)
        tiles, ceiling = position_segments(grid, k, size, count), ceiling_segments(batch["segments"], grid)
        return {"k-means": clusters, "position": tiles, "ceiling": ceiling}

    def predict_clips(batch):
        first = batch | {name: batch[name][:, :1] for name in ("image", "segments", "frames")}
        first["info"] = batch["info"] | {"item": batch["info"]["item"][:, :1]}
        found = frame_by_frame(predict, model.config.batch_size)(batch)
        found |= {"held map": maps(first)["last"], "held truth": first["segments"]}
        clusters = torch.stack([followed(clip, k) for clip in found["k-means"]])
        return {name: one.expand_as(batch["segments"]) for name, one in found.items()} | {"k-means": clusters}

    return score(predict_clips if store.meta["kind"] == "video" else predict, store, model.config, protocol, limit)


def baseline_table(models, store, protocol: str = "dias", limit: int = 0) -> pd.DataFrame:
    """Mean scores 0..1, a row for "k-means, K" and "position, K" of every number K of slots that the models have; "ceiling".

    Where several models have as many slots, the features of the first are taken.
    """
    rows = {}
    for model in models:
        names = {name: f"{name}, {model.config.num_slots}" if name != "ceiling" else name for name in NAMES}
        if not rows.keys() >= set(names.values()):
            means = baseline_scores(model, store, protocol, limit).mean(numeric_only=True)
            for name, row in names.items():
                metrics = CLIP_METRICS if "ceiling.gap" in means else METRICS
                rows.setdefault(row, {metric: means[f"{name}.{metric}"] for metric in metrics})
    return pd.DataFrame(rows).T.rename_axis("name")


def score_table(evaluated: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """Means x100 over the images (or clips): a row for each map and each baseline, a column for each score."""
    means = pd.concat([evaluated, baselines], axis=1).mean(numeric_only=True) * 100
    clips = "frames" in evaluated
    rows = {name: f"{name} map" for name in MAPS} | {name: name for name in (*NAMES, *(HELD if clips else ()))}
    metrics = (*CLIP_METRICS, "gap", "switch_rate") if clips else METRICS
    table = {row: {TITLES[metric]: means[f"{name}.{metric}"] for metric in metrics} for name, row in rows.items()}
    return pd.DataFrame(table).T
