"""The table of docs/learning.md: trained models on unseen toys, beside their twins and the best that clustering can do.

    python -m dias_lab convert scenes --train 14000 --out data/scenes
    for seed in 42 43 44: python -m dias_lab train --preset scenes --seed SEED --run-dir runs/scenes-SEED
    python docs/learning.py [RUN ...]    # by default runs/scenes-*; prints the tables, draws docs/learning.png of the first

The merge threshold is chosen on the validation split, by the mean of ARI, FG-ARI and mBO of the decoder's map.
"""

import io
import sys
import tempfile

import numpy as np
import pandas as pd
import torch
from PIL import Image

from dias_lab import load_model, runs
from dias_lab.analysis.evaluate import MAPS, evaluate
from dias_lab.analysis.hindsight import by_hindsight, patches
from dias_lab.analysis.intervals import paired_interval
from dias_lab.analysis.interventions import with_fields
from dias_lab.data import scenes, store
from dias_lab.data.convert import scenes as converter
from dias_lab.data.dataset import squares
from dias_lab.viz import gallery, use

THRESHOLDS, IMAGES = (0.02, 0.03, 0.05, 0.1, 0.15, 0.2), 150
OTHERS = ("recoloured", "crowded", "regions", "shapes")  # difficulties that the models have not learned from
SHOWN = ["ari", "fg_ari", "mbo"]
TWINS = {
    "trained": lambda model: model,
    "untrained": lambda model: model.untrained(),
    "merging only": lambda model: with_fields(model, merging="merge"),
    "no merging": lambda model: with_fields(model, merging="none"),
    "iterations as in training": lambda model: with_fields(model, evaluation_iterations=0),
    "read with everything visible": lambda model: with_fields(model, evaluation_visible="all"),
}


def split(model, name: str):
    return store.open(runs.resolve(model.config.data) / f"{name}.lmdb")


def with_threshold(model):
    """The model at the threshold that is best on 100 validation images."""
    candidates = [with_fields(model, merge_threshold=threshold) for threshold in THRESHOLDS]
    scores = [evaluate(one, split(model, "validation"), limit=100).scores["decoder"] for one in candidates]
    return max(zip(candidates, scores), key=lambda pair: sum(pair[1][metric] for metric in SHOWN))[0]


def clustering(model, limit: int = IMAGES, test=None, sides=(16, 32)) -> pd.DataFrame:
    """The best rows on squares of the picture and on the model's own features; of its test split unless another is given."""
    batches = list(squares(test or split(model, "test"), model.config, limit))
    images, true = (torch.cat([batch[name] for batch in batches]) for name in ("image", "segments"))
    tables = {f"{side}x{side} squares": patches(images, side) for side in sides}
    tables["the model's features"] = torch.cat([model.backbone(model.normalise(batch["image"])) for batch in batches])
    return pd.concat({name: table[table["best"]] for name, table in ((n, by_hindsight(f, true)) for n, f in tables.items())})


def elsewhere(models) -> pd.DataFrame:
    """The same weights on scenes of other difficulties: decoder's map, mean over the models; twin; the best of clustering."""
    rows = {}
    for difficulty in OTHERS:
        with tempfile.TemporaryDirectory() as folder:
            test = store.open(converter.convert(folder, 1, 1, 100, difficulty)["test"])
            for name, ours in (("decoder", models), ("untrained, last map", [model.untrained() for model in models])):
                which = "last" if "last" in name else "decoder"
                found = [evaluate(model, test).scores[which] for model in ours]
                rows[difficulty, name] = {metric: np.mean([one[metric] for one in found]) for metric in SHOWN}
            told = clustering(models[0], 100, test, sides=(16,)).loc["16x16 squares"]
            rows |= {(difficulty, f"{name} of 16x16 squares"): told.loc[name] for name in told.index}
    return pd.DataFrame(rows).T[SHOWN]


def picture(model, path):
    """Eight test scenes: image, true segments, first, last and decoder's map."""
    chosen = [scenes.scene(scenes.SPLITS["test"] + number) for number in range(8)]
    images, segments = (torch.from_numpy(np.stack(part)) for part in zip(*chosen))
    use()
    drawn = io.BytesIO()
    gallery(model.trace(images.permute(0, 3, 1, 2), segments)).savefig(drawn, dpi=60, bbox_inches="tight")
    Image.open(drawn).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)


def main(places):
    models = [with_threshold(load_model(place)) for place in places]
    picture(models[0], runs.resolve("docs/learning.png"))
    rows, images = {}, {}
    for kind, twin in TWINS.items():
        found = [evaluate(twin(model), split(model, "test"), limit=IMAGES) for model in models]
        images[kind] = [one.images["decoder.fg_ari"].to_numpy() for one in found]
        rows |= {(kind, name): [one.scores[name] for one in found] for name in MAPS}
    for model in models:
        print(f"seed {model.config.seed}: threshold {model.config.merge_threshold:g}")
    print(pd.DataFrame({row: [" / ".join(f"{100 * one[metric]:.1f}" for metric in SHOWN) for one in found]
                        for row, found in rows.items()}).T.to_string(), "\n")  # fmt: skip
    print(pd.DataFrame({row: {metric: "{:.1f} ± {:.1f}".format(*spread(found, metric)) for metric in SHOWN}
                        for row, found in rows.items()}).T.to_string(), "\n")  # fmt: skip
    print((100 * clustering(models[0])[SHOWN]).round(1).to_string(), "\n")
    gains = [trained - none for trained, none in zip(images["trained"], images["no merging"])]
    mean, low, high = (100 * value for value in paired_interval(gains))
    print(f"FG-ARI, re-initialized less none: {mean:.1f} [{low:.1f}, {high:.1f}], seeds and images\n")
    print((100 * elsewhere(models)).astype(float).round(1).to_string())


def spread(found: list[dict], metric: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds, x100."""
    values = [100 * one[metric] for one in found]
    return np.mean(values), np.std(values, ddof=1)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:] or sorted(runs.resolve("runs").glob("scenes-*")))
