"""What grouping by colour can do at its best: clusterings whose number or threshold is chosen on the test images themselves.

A model that learned what an object is must be above these, although they are given what it is not: the answer. k-means by
the best number of clusters; Ward's linkage (1963) of neighbouring locations by the best number, and by the best threshold.

Axes: B images, C channels, h w locations, L = h * w, R pixels.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from sklearn.cluster import KMeans, ward_tree
from sklearn.feature_extraction.image import grid_to_graph
from torch import Tensor

from dias_lab.analysis.evaluate import METRICS
from dias_lab.methods import segments_from
from dias_lab.metrics import segmentation_scores
from dias_lab.modules.backbone import colours

NUMBERS = range(2, 11)
THRESHOLDS = 12  # so many, from the pooled heights of all images


def patches(images: UInt8[Tensor, "B 3 R R"], side: int = 16) -> Float[Tensor, "B 6 side side"]:
    """Mean colour and deviation of side x side squares, in 0..1."""
    return colours(images.float() / 255, images.shape[-1] // side, texture=1.0)


def by_hindsight(
    features: Float[Tensor, "B C h w"], true: Int[Tensor, "B R R"], protocol: str = "dias", numbers=NUMBERS
) -> pd.DataFrame:
    """Mean scores 0..1 of every clustering tried: rows "k-means, 4", "Ward, 4", "Ward below 0.21"; columns as METRICS.

    The best row of each family, by the mean of ARI, FG-ARI and mBO, is marked in the column `best`.
    """
    B, _, h, w = features.shape
    points = features.flatten(2).transpose(1, 2).double().cpu().numpy()  # [B L C]
    graph = grid_to_graph(h, w)
    trees = [Tree(one, graph) for one in points]
    labels = {f"k-means, {k}": [KMeans(k, n_init=3, random_state=0).fit_predict(one) for one in points] for k in numbers}
    labels |= {f"Ward, {k}": [tree.cut(k) for tree in trees] for k in numbers}
    pooled = np.concatenate([tree.heights[-20:] for tree in trees])
    for threshold in np.quantile(pooled, np.linspace(0.3, 0.97, THRESHOLDS)):
        labels[f"Ward below {threshold:.3g}"] = [tree.cut(tree.above(threshold) + 1) for tree in trees]
    rows = {}
    for name, found in labels.items():
        maps = F.one_hot(torch.from_numpy(np.array(found)).view(B, h, w).long()).permute(0, 3, 1, 2)
        scores = segmentation_scores(segments_from(maps, true.shape[-1]), true, protocol)
        rows[name] = {metric: float(scores[metric].nanmean()) for metric in METRICS}
    table = pd.DataFrame(rows).T
    family = table.index.str.extract(r"^(k-means|Ward(?! below)|Ward below)", expand=False)
    mean = table[["ari", "fg_ari", "mbo"]].mean(axis=1)
    return table.assign(best=mean == mean.groupby(family).transform("max"))


class Tree:
    """Ward's linkage of one image's locations, where only neighbours merge."""

    def __init__(self, points: Float[np.ndarray, "L C"], graph):
        self.children, _, self.leaves, _, heights = ward_tree(points, connectivity=graph, return_distance=True)
        self.heights = np.maximum.accumulate(heights)  # with a graph a merge may lie below the one before

    def above(self, threshold: float) -> int:
        """How many merges lie at the threshold or above it."""
        return int((self.heights >= threshold).sum())

    def cut(self, number: int) -> Int[np.ndarray, "L"]:
        """Labels of so many clusters."""
        parent = np.arange(2 * self.leaves - 1)
        for merge, pair in enumerate(self.children[: self.leaves - number]):
            parent[pair] = self.leaves + merge
        root = np.arange(self.leaves)
        while (parent[root] != root).any():
            root = parent[root]
        return np.unique(root, return_inverse=True)[1]
