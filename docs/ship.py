"""Puts a trained model into dias_lab/shipped/, with the test scores of several seeds, and what to compare them with.

    for seed in 42 43 44; do python -m dias_lab train --preset scenes --seed $seed --run-dir runs/scenes-$seed; done
    python docs/ship.py runs/scenes-42 runs/scenes-43 runs/scenes-44

The first run's best checkpoint is the one that is shipped, whichever scores highest.
"""

import shutil
import sys
import textwrap

import pandas as pd

from dias_lab import runs
from dias_lab.analysis.baselines import baseline_scores, score_table
from dias_lab.analysis.evaluate import evaluate
from dias_lab.config import Config
from dias_lab.data import store as stores
from dias_lab.methods import checkpoint

run_dirs = [runs.resolve(path) for path in sys.argv[1:]]
models = [checkpoint.load_model(run_dir) for run_dir in run_dirs]
first, config = models[0], Config.load(run_dirs[0])
test = stores.open(runs.resolve(config.data) / "test.lmdb")

baselines = baseline_scores(first, test)  # k-means with as many clusters as slots
trained = [evaluate(model, test, seed=model.config.seed) for model in models]
untrained = [evaluate(model.untrained(), test, seed=model.config.seed) for model in models]

fewer = {}  # k-means with fewer clusters
for count in (4, 5, 6, 7, 8):
    first.config = config.replace(num_slots=count)
    table = score_table(trained[0].images, baseline_scores(first, test))
    fewer[f"k-means, {count} clusters"] = table.loc["k-means"].round(2).to_dict()
first.config = config


def tables(evaluations) -> pd.DataFrame:
    """A row for each seed and map, and for each baseline; scores x100."""
    return pd.concat([score_table(evaluation.images, baselines) for evaluation in evaluations])


spread = tables(trained).groupby(level=0, sort=False).agg(["mean", "std"]).round(2)
start = tables(untrained).groupby(level=0, sort=False).mean().round(2)
print(spread, start, pd.DataFrame(fewer).T, sep="\n\n")

target = runs.PACKAGE / "shipped"
shutil.copy(run_dirs[0] / "checkpoints" / str(first.step) / checkpoint.WEIGHTS, target / checkpoint.WEIGHTS)
runs.write_json(target / "config.json", config.to_dict())
results = [runs.read_json(run_dir / "metrics.json") for run_dir in run_dirs]
runs.write_json(
    target / "metrics.json",
    {
        "command": textwrap.dedent(__doc__.split("\n\n")[1]),
        "protocol": "dias",
        "images": len(baselines),
        "seeds": [model.config.seed for model in models],
        "best_steps": [model.step for model in models],
        "seconds": [round(result["seconds"]) for result in results],
        "mean": {row: spread.xs("mean", axis=1, level=1).loc[row].to_dict() for row in spread.index},
        "std": {row: spread.xs("std", axis=1, level=1).loc[row].to_dict() for row in spread.index if row.endswith("map")},
        "untrained": {row: start.loc[row].to_dict() for row in start.index if row.endswith("map")},
        "fewer_clusters": fewer,
        "scores": trained[0].scores,
        "about": results[0]["about"],
    },
)
print(f"wrote {target}: seed {config.seed}, step {first.step}")
