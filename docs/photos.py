"""The table of docs/photos.md: models trained on photos, beside their untrained twins and what clustering can do.

    python -m dias_lab convert folder --root images --masks masks --out data/photos
    for seed in 42 43 44: python -m dias_lab train --preset photos --seed SEED --run-dir runs/photos-SEED
    python docs/photos.py [RUN ...]    # by default runs/photos-*; prints the tables, draws runs/photos.png of the first

k-means has as many clusters as there are slots, and its clusters are merged as the slots are.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from dias_lab import load_model, runs
from dias_lab.analysis.baselines import ceiling_segments, cluster_segments, position_segments
from dias_lab.analysis.intervals import paired_interval
from dias_lab.analysis.interventions import with_fields
from dias_lab.data import store
from dias_lab.data.dataset import squares
from dias_lab.methods import segments_from
from dias_lab.metrics import segmentation_scores
from dias_lab.modules.redundancy import cluster, merge_clusters, one_hot_members
from dias_lab.viz import use
from dias_lab.viz.overlay import blend, colour_segments, colour_true_segments

SHOWN, LEFT, SHEET = ("ari", "fg_ari", "mbo"), 5, 16  # scores; segments after merging; photos on the contact sheet
LAST, PLAIN, FEW = "trained, last map", "trained, no merging, last map", f"trained, merged to {LEFT}, last map"
KINDS = ("the same features", "raw block 5")
PAIRS = [  # what is compared image by image, as far as it is there
    *[(LAST, other) for other in ("untrained, last map", "trained, first map", PLAIN, "k-means, as many as trained keeps")],
    *[(LAST, other) for other in (*(f"k-means on {kind}" for kind in KINDS), "position")],
    *[(PLAIN, other) for other in ("untrained, no merging, last map", *(f"k-means on {kind}" for kind in KINDS))],
    (FEW, f"untrained, merged to {LEFT}, last map"),
    *[(FEW, f"k-means on {kind}, merged to {LEFT}") for kind in KINDS],
]


def read(model):
    """Of the test split: images, true segments, and the features of the backbone, raw and conditioned."""
    test = store.open(runs.resolve(model.config.data) / "test.lmdb")
    found = {"image": [], "segments": [], "raw": []}
    for batch in squares(test, model.config):
        raw = model.backbone.backbone(model.normalise(batch["image"]))
        for name, value in (batch | {"raw": raw}).items():
            found.get(name, []).append(value)
    found = {name: torch.cat(values) for name, values in found.items()}
    return found | {"features": model.backbone.condition(found["raw"])}


def passes(model, features) -> dict:
    """Maps [B N h w] by name, the slots, and how many are kept."""
    found = {"first": [], "last": [], "decoder": [], "slots": [], "kept": []}
    for items in torch.arange(len(features)).split(32):
        out = model(None, features=features[items], draws=model.draw(items.tolist(), model.config.seed))
        values = out.attention[0], out.attention[-1], out.decoder_attention, out.slots, out.keep.sum(1)
        for name, value in zip(found, values):
            found[name].append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def merged(maps, vectors):
    """The maps after average linkage of what they stand for has left LEFT of them."""
    leader = cluster(vectors, 2.0, "average", LEFT)
    keep = merge_clusters(vectors, leader)[1]
    together = one_hot_members(leader).to(maps.dtype) @ maps.flatten(2)
    return together.masked_fill(~keep[:, :, None], -1).view_as(maps)


def k_means(features, number: int, size: int):
    """Segments by k-means, and after merging the clusters by their means."""
    labels = cluster_segments(features, number, features.shape[-1])
    maps = F.one_hot(labels, number).movedim(-1, 1).float()
    means = maps.flatten(2) @ features.flatten(2).transpose(1, 2) / maps.flatten(2).sum(2, keepdim=True).clamp_min(1)
    return segments_from(maps, size), segments_from(merged(maps, means), size)


def picture(data, columns: dict, path):
    """SHEET test photos, two in a row: photo, true segments, and the segments of each column."""
    use()
    names = ["photo", "true segments", *columns]
    figure, axes = plt.subplots(SHEET // 2, 2 * len(names), figsize=(2.2 * len(names), 1.15 * SHEET // 2))
    chosen = np.linspace(0, len(data["image"]) - 1, SHEET).astype(int)
    for place, item in enumerate(chosen):
        photo = data["image"][item].permute(1, 2, 0).numpy()
        panels = [photo, blend(photo, colour_true_segments(data["segments"][item].numpy().astype(np.uint8)))]
        panels += [blend(photo, colour_segments(found[item].numpy())) for found in columns.values()]
        row, first = place // 2, place % 2 * len(names)
        for axis, name, panel in zip(axes[row, first : first + len(names)], names, panels):
            axis.imshow(panel)
            axis.set(xticks=[], yticks=[], title=name if row == 0 else "")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100)


def segments_of(models, data) -> dict:
    """Segments [B R R] by row of the table, a list of them for the seeds; of what has no seed, one."""
    features, true = data["features"], data["segments"]
    number, size, grid = models[0].config.num_slots, true.shape[-1], features.shape[2:]
    rows = {}
    for kind, what in zip(KINDS, (features, data["raw"][:, :192])):  # the first of two modules
        rows[f"k-means on {kind}"], rows[f"k-means on {kind}, merged to {LEFT}"] = ([one] for one in k_means(what, number, size))
    rows["position"] = [position_segments(grid, number, size, len(true))]
    rows["ceiling"] = [ceiling_segments(true, grid)]
    for model in models:
        for kind, one in (("trained", model), ("untrained", model.untrained())):
            maps = passes(one, features)
            for name in ("first", "last", "decoder"):
                rows.setdefault(f"{kind}, {name} map", []).append(segments_from(maps[name], size))
            if model.config.method == "dias":  # the number of segments differs: both ways to make it alike
                print(f"seed {model.config.seed}, {kind}: {maps['kept'].float().mean():.2f} slots kept")
                alike = [cluster_segments(one[None], int(k), size) for one, k in zip(features, maps["kept"])]
                rows.setdefault(f"k-means, as many as {kind} keeps", []).append(torch.cat(alike))
                maps = passes(with_fields(one, merging="none"), features)
                rows.setdefault(f"{kind}, no merging, last map", []).append(segments_from(maps["last"], size))
            left = segments_from(merged(maps["last"], maps["slots"]), size)
            rows.setdefault(f"{kind}, merged to {LEFT}, last map", []).append(left)
    return rows


def main(places):
    models = [load_model(place) for place in places]
    data = read(models[0])
    segments = segments_of(models, data)
    scores = {row: [segmentation_scores(one, data["segments"]) for one in ones] for row, ones in segments.items()}
    by_image = {row: {metric: np.stack([one[metric] for one in ones]) for metric in SHOWN} for row, ones in scores.items()}
    print(f"{len(data['image'])} test photos, protocol dias, x100, seeds {[model.config.seed for model in models]}")
    print(pd.DataFrame({row: {metric: spread(by_image[row][metric]) for metric in SHOWN} for row in by_image}).T.to_string())
    for mine, theirs in (pair for pair in PAIRS if by_image.keys() >= set(pair)):
        text = "; ".join(difference(by_image[mine][metric], by_image[theirs][metric]) for metric in SHOWN)
        print(f"{mine}, less {theirs}: {text}")
    shown = {"k-means": "k-means on the same features"}
    shown |= {name: f"trained, {name} map" for name in ("first", "last", "decoder")}
    picture(data, {name: segments[row][0] for name, row in shown.items()}, runs.resolve("runs/photos.png"))


def spread(values) -> str:
    """Mean over images, mean ± standard deviation over seeds."""
    means = 100 * np.nanmean(values, axis=1)
    return f"{means.mean():.1f}" + (f" ± {means.std(ddof=1):.1f}" if len(means) > 1 else "")


def difference(mine, theirs) -> str:
    """The mean of what one is above the other, and the 95 % interval over seeds and images."""
    mean, low, high = (100 * value for value in paired_interval(mine - theirs))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:] or sorted(runs.resolve("runs").glob("photos-*")))
