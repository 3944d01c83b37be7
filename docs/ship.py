"""Puts a trained model into dias_lab/shipped/, with the test scores of several seeds, and what to compare them with.

    python -m dias_lab convert scenes --train 14000 --out data/scenes
    for seed in 42 43 44; do python -m dias_lab train --preset scenes --seed $seed --run-dir runs/scenes-$seed; done
    python docs/ship.py runs/scenes-42 runs/scenes-43 runs/scenes-44

The first run's best checkpoint is the one that is shipped, whichever scores highest.
"""

import shutil
import sys
import textwrap

import pandas as pd
import torch
from learning import clustering

from dias_lab import runs
from dias_lab.analysis.baselines import baseline_scores, score_table
from dias_lab.analysis.evaluate import MAPS, METRICS, evaluate
from dias_lab.analysis.intervals import TITLES
from dias_lab.data import store as stores
from dias_lab.methods import checkpoint

torch.set_grad_enabled(False)
run_dirs = [runs.resolve(path) for path in sys.argv[1:]]
models = [checkpoint.load_model(run_dir) for run_dir in run_dirs]
first, config = models[0], models[0].config
test = stores.open(runs.resolve(config.data) / "test.lmdb")

baselines = baseline_scores(first, test)  # with as many clusters as slots
trained = [evaluate(model, test, seed=model.config.seed) for model in models]
untrained = [evaluate(model.untrained(), test, seed=model.config.seed) for model in models]
by_hindsight = (100 * clustering(first, limit=100, sides=(16,))[list(METRICS)]).rename(columns=TITLES).round(2)


def tables(evaluations) -> pd.DataFrame:
    """A row for each seed and map, and for each baseline; scores x100."""
    return pd.concat([score_table(evaluation.images, baselines) for evaluation in evaluations])


def curve(run_dir) -> list[dict]:
    """The validation scores of a run's maps by step, x100."""
    lines = [line for line in runs.read_lines(run_dir / "metrics.jsonl") if "validation" in line]
    scores = [{name: line["validation"][name] for name in MAPS} for line in lines]
    rounded = [{name: {metric: round(100 * one[name][metric], 1) for metric in METRICS} for name in MAPS} for one in scores]
    return [{"step": line["step"], **one} for line, one in zip(lines, rounded)]


spread = tables(trained).groupby(level=0, sort=False).agg(["mean", "std"]).round(2)
start = tables(untrained).groupby(level=0, sort=False).mean().round(2)
print(spread, start, by_hindsight, sep="\n\n")

target = runs.PACKAGE / "shipped"
shutil.rmtree(target / "checkpoints", ignore_errors=True)
best = target / "checkpoints" / str(first.trained_steps)
best.mkdir(parents=True)
shutil.copy(run_dirs[0] / "checkpoints" / best.name / checkpoint.WEIGHTS, best / checkpoint.WEIGHTS)
runs.write_json(target / "config.json", config.to_dict())
results = [runs.read_json(run_dir / "metrics.json") for run_dir in run_dirs]
runs.write_json(
    target / "metrics.json",
    {
        "command": textwrap.dedent(__doc__.split("\n\n")[1]),
        "protocol": "dias",
        "images": len(baselines),
        "seeds": [model.config.seed for model in models],
        "best_steps": [model.trained_steps for model in models],
        "seconds": [round(result["seconds"]) for result in results],
        "mean": {row: spread.xs("mean", axis=1, level=1).loc[row].to_dict() for row in spread.index},
        "std": {row: spread.xs("std", axis=1, level=1).loc[row].to_dict() for row in spread.index if row.endswith("map")},
        "untrained": {row: start.loc[row].to_dict() for row in start.index if row.endswith("map")},
        "clustering_by_hindsight": {" of ".join(row[::-1]): by_hindsight.loc[row].to_dict() for row in by_hindsight.index},
        "curves": {str(model.config.seed): curve(run_dir) for model, run_dir in zip(models, run_dirs)},
        "scores": trained[0].scores,
        "about": results[0]["about"],
    },
)
print(f"wrote {target}: seed {config.seed}, step {first.trained_steps}")
