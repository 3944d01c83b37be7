"""The study behind docs/reinitialization.md: merging rules on three difficulties, with three slot counts and seeds.

    python docs/reinitialization.py data     # the two harder data sets, and the commands that train on them
    python docs/reinitialization.py          # every setting scored; writes docs/reinitialization.csv, prints the tables

One model a seed and difficulty is trained with ten slots and the threshold .3; all else happens at evaluation. The best
fixed threshold is chosen by hindsight, for each difficulty and slot count on the test images themselves, by the mean of
ARI, FG-ARI and mBO. `calibrated` is Otsu's threshold of the pooled heights of 100 training images.
"""

import sys

import numpy as np
import pandas as pd
import torch

from dias_lab import runs
from dias_lab.analysis.intervals import paired_interval
from dias_lab.analysis.interventions import with_fields
from dias_lab.analysis.sweep import merge_sweep
from dias_lab.data import store as stores
from dias_lab.data.convert import scenes
from dias_lab.data.shapes import Difficulty
from dias_lab.methods import checkpoint
from dias_lab.modules.redundancy import otsu_threshold

HARDER = {
    "crowded": Difficulty(min_objects=5, max_objects=8),
    "alike": Difficulty(separation=0.1, contrast=0.35),
}
SEEDS, SLOTS, IMAGES = (42, 43, 44), (7, 10, 16), 200
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
FIXED = {f"{threshold:g}": {"merge_threshold": threshold} for threshold in THRESHOLDS}
RULES = {"gap": {"merge_rule": "gap"}, "otsu": {"merge_rule": "otsu"}}
OTHERS = {
    "none": {"merging": "none"},
    "merge only": {"merging": "merge"},
    "0.3, cancel": {"guard": "cancel"},
}
TABLE = runs.resolve("docs/reinitialization.csv")


def data():
    for name, difficulty in HARDER.items():
        scenes.convert(runs.resolve("data") / name, difficulty=difficulty, progress=True)
        for seed in SEEDS:
            train = f"python -m dias_lab train --preset shapes --data data/{name} --seed {seed} --run-dir runs/{name}-{seed}"
            print(f"{train} --steps 200 --evaluate-every 100 --evaluate-images 50")


def score() -> pd.DataFrame:
    tables = []
    for name in ("shapes", *HARDER):
        train, test = (stores.open(runs.resolve(f"data/{name}/{split}.lmdb")) for split in ("train", "test"))
        for seed in SEEDS:
            trained = checkpoint.load_model(f"runs/{name}-{seed}")
            for slots in SLOTS:
                model = with_fields(trained, num_slots=slots)
                _, heights = merge_sweep(model, train, {"none": OTHERS["none"]}, limit=100)
                calibrated = otsu_threshold(torch.from_numpy(heights))
                settings = {**FIXED, **RULES, **OTHERS, "calibrated": {"merge_threshold": calibrated}}
                table, _ = merge_sweep(model, test, settings, limit=IMAGES)
                tables.append(table.assign(data=name, seed=seed, slots=slots, calibrated=calibrated))
                print(name, seed, slots, f"calibrated {calibrated:.3f}", flush=True)
    return pd.concat(tables, ignore_index=True)


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each difficulty, slot count and rule: its difference to the best fixed threshold, and the interval."""
    rows = []
    for (name, slots), part in table.groupby(["data", "slots"], sort=False):
        means = part.groupby("setting")["score"].mean()
        best = means[list(FIXED)].idxmax()
        wide = part.pivot_table(index="seed", columns=["setting", "item"], values="score", dropna=False)
        for rule in ("gap", "otsu", "calibrated", "0.3", "0.3, cancel", "merge only", "none"):
            mean, low, high = paired_interval(wide[rule].to_numpy() - wide[best].to_numpy())
            within = low <= 0 <= high and low >= -0.02 and high <= 0.02
            kept = part.loc[part["setting"] == rule, "kept"].mean()
            rows.append([name, slots, best, means[best], rule, means[rule], mean, low, high, within, kept])
    columns = "data slots best_fixed best_score rule score difference low high within_noise kept".split()
    return pd.DataFrame(rows, columns=columns)


if __name__ == "__main__":
    if sys.argv[1:] == ["data"]:
        data()
    else:
        results = score()
        results["score"] = results[["ari", "fg_ari", "mbo"]].mean(axis=1, skipna=False)
        keys = ["data", "slots", "setting", "seed"]
        means = results.groupby(keys, sort=False)[["ari", "fg_ari", "mbo", "miou", "score", "kept", "objects"]].mean()
        means["correlation"] = results.groupby(keys, sort=False).apply(
            lambda part: np.corrcoef(part["kept"], part["objects"])[0, 1] if part["kept"].std() else np.nan
        )
        means.round(4).to_csv(TABLE)
        comparison = compare(results)
        comparison.round(4).to_csv(TABLE.with_name("reinitialization-rules.csv"), index=False)
        print(comparison.to_string(index=False, float_format="{:.3f}".format))
