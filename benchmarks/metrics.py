"""How fast the four segmentation scores are, beside the usual way of computing them.

    python -m benchmarks metrics

Workload: 32 images of 256x256 pixels, 7 predicted and 20 true segments (background among them). The usual way turns
label maps into float64 one-hot maps and contracts them by einsum, again for every score, as the published evaluations
of slot models do: each score is a function of its own that starts from the label maps. `contracted_seconds` is what is left
of it where all scores share one-hot maps that were made beforehand.
"""

import os
import platform
import statistics

import numpy as np
import scipy
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import one_hot

from dias_lab.metrics import segmentation_scores
from dias_lab.training.cost import take_turns


def blobs(random: np.random.Generator, num_segments: int, background: float = 0.0, size: int = 256) -> np.ndarray:
    """Labels int [size size]: weighted Voronoi cells 0.., or, with a share of background as label 0, cells 1.. ."""
    rows, columns = random.uniform(0, size, num_segments), random.uniform(0, size, num_segments)
    scales = random.uniform(0.4, 1.6, num_segments)
    grid = np.arange(size)
    rows, columns, scales = rows[:, None, None], columns[:, None, None], scales[:, None, None]
    distance = np.hypot(grid[:, None] - rows, grid - columns) / scales  # [S H W]
    labels = distance.argmin(axis=0)
    if background:
        nearest = distance.min(axis=0)
        labels = np.where(nearest > np.quantile(nearest, 1 - background), 0, labels + 1)
    return labels


def scene(random, num_objects: int, background: float = 0.35, noise: float = 0.25, void: float = 0.0):
    """A pair of label maps, predicted (7 slots) and true, that agree in part; both int [256 256]."""
    true = blobs(random, num_objects, background)
    slots = random.integers(0, 7, num_objects + 1)
    other = blobs(random, 7)
    predicted = np.where(_blocks(random, 16, noise), other, slots[true])
    if void:
        true = np.where(_blocks(random, 32, void), 255, true)
    return predicted, true


def _blocks(random, count: int, probability: float) -> np.ndarray:
    return np.kron(random.random((count, count)) < probability, np.ones((256 // count, 256 // count), bool))


def usual_scores(predicted, true) -> dict[str, torch.Tensor]:
    """The four scores of label maps [B H W], each from its own one-hot maps."""
    return {
        name: one_hot_scores(*(one_hot(labels.flatten(1)).double() for labels in (predicted, true)), [name])[name]
        for name in ("ari", "fg_ari", "mbo", "miou")
    }


def one_hot_scores(predicted, true, wanted=("ari", "fg_ari", "mbo", "miou")) -> dict[str, torch.Tensor]:
    """The scores of float64 one-hot maps [B H*W N] and [B H*W S], with one einsum for every score."""
    scores = {
        "ari": lambda: _one_hot_rand(predicted, true),
        "fg_ari": lambda: _one_hot_rand(predicted, true[..., 1:]),
        "mbo": lambda: _one_hot_iou(predicted, true).amax(dim=1).mean(dim=1),
        "miou": lambda: torch.stack([
            table[linear_sum_assignment(table.numpy(), maximize=True)].sum() / table.shape[1]
            for table in _one_hot_iou(predicted, true)
        ]),
    }  # fmt: skip
    return {name: scores[name]() for name in wanted}


def _one_hot_rand(predicted, true):
    pairs = torch.einsum("bpn,bps->bns", predicted, true)
    together, by_prediction, by_truth, total = (
        (count * (count - 1)).flatten(1).sum(dim=1)
        for count in (pairs, pairs.sum(dim=2), pairs.sum(dim=1), pairs.sum(dim=(1, 2))[:, None])
    )
    expected = by_prediction * by_truth / total
    return (together - expected) / ((by_prediction + by_truth) / 2 - expected)


def _one_hot_iou(predicted, true):
    pairs = torch.einsum("bpn,bps->bns", predicted, true)
    return pairs / (predicted.sum(dim=1)[:, :, None] + true.sum(dim=1)[:, None, :] - pairs)


def _seconds(function, repetitions: int) -> float:
    return statistics.median(take_turns({"": function}, repetitions)[""])


def rows() -> list[dict]:
    """One row: {name, precision, device, seconds, comparator_seconds, ratio, flops, bytes, threads, versions}.

    `seconds` is the time of one batch, `ratio` how many times longer the one-hot way takes, `flops` the integer
    operations on pixels (multiply, add, count), `bytes` the size of both label maps.
    """
    random = np.random.default_rng(0)
    pairs = [scene(random, num_objects=19) for _ in range(32)]
    predicted, true = (torch.from_numpy(np.stack(maps)) for maps in zip(*pairs, strict=True))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = _seconds(lambda: segmentation_scores(predicted, true), repetitions=21)
        hot = [one_hot(labels.flatten(1)).double() for labels in (predicted, true)]
        contracted_seconds = _seconds(lambda: one_hot_scores(*hot), repetitions=3)
        comparator_seconds = _seconds(lambda: usual_scores(predicted, true.long()), repetitions=3)
    finally:
        torch.set_num_threads(threads)
    return [{
        "name": "metrics", "precision": "float64", "device": f"cpu ({platform.machine()}, {os.cpu_count()} cores)",
        "seconds": seconds, "comparator_seconds": comparator_seconds, "ratio": comparator_seconds / seconds,
        "contracted_seconds": contracted_seconds, "flops": 3 * true.numel(), "bytes": predicted.nbytes + true.nbytes,
        "threads": 1, "versions": {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__},
    }]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(row)
