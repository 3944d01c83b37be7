"""What `make ablations` found, for docs/ablations.md and for 05, which shows it where a grid at hand lacks a factor.

    make ablations
    python docs/ablations.py [FOLDER]    # runs/ablations and runs/ablations-start; writes docs/ablations.json, prints the tables
"""

import sys

import pandas as pd
import torch

from dias_lab import load_model, runs
from dias_lab.analysis import intervals, verdicts
from dias_lab.analysis.evaluate import MAPS, evaluate
from dias_lab.book import grid, grid_table
from dias_lab.data import store

METRICS = ("ari", "fg_ari", "mbo")


def twins(found: grid.Grid, baseline: str, stem: str) -> list[dict]:
    """Rows of what the baseline's models were before their first step, and of the models that they started from."""
    folders = [run.folder for run in found.runs if run.setting == baseline and runs.state(run.folder) == "done"]
    models = [load_model(folder) for folder in folders]
    kinds = {"untrained": [model.untrained() for model in models]}
    if models[0].config.parent:
        kinds["the model that all start from"] = [load_model(model.config.parent) for model in models]
    test = store.open(runs.resolve(models[0].config.data) / "test.lmdb")
    rows = []
    for name, ours in kinds.items():
        scores = [evaluate(model, test, seed=model.config.seed).scores for model in ours]
        row = {"setting": name, "n": len(scores), "protocol": scores[0]["protocol"], "images": str(scores[0]["images"])}
        for which in MAPS:
            for metric in METRICS:
                values = pd.Series([one[which][metric] for one in scores])
                numbers = {"n": len(values), "mean": values.mean(), "std": values.std()}
                row |= {f"{stem}.{which}.{metric} {part}": number for part, number in numbers.items()}
        rows.append(row)
    return rows


def pairs(found: grid.Grid, stem: str) -> list[dict]:
    """The paired differences that the paper's claims are about; only those whose settings the grid has."""
    results = pd.DataFrame([runs.row(run.folder) | {"setting": run.setting, "seed": run.seed} for run in found.runs])
    rows = []
    for claim, of, to in verdicts.CLAIMS:
        for metric in METRICS:
            both = ((setting, f"{stem}.{which}.{metric}") for setting, which in (of, to))
            difference, low, high = intervals.between(results, *both)
            if difference == difference:
                rows.append({"claim": claim, "metric": metric, "difference": difference, "low": low, "high": high})
    return rows


def main(folder: str):
    whole = {}
    places = {"trained": folder, "start": f"{folder}-start"}
    for name, place in places.items():
        if not (runs.resolve(place) / "grid.toml").exists():
            print(f"not there: {place}")
            continue
        found = grid.load(place)
        table = grid_table.table(found)
        stem = table.metrics[0].partition(".")[0]
        rows = twins(found, table.baseline, stem) + table.frame.to_dict("records")
        whole[name] = {"caption": table.caption, "rows": rows, "pairs": pairs(found, stem)}
        seconds = sum(row["seconds"] or 0 for row in grid.status(found))
        print(f"## {place}: {len(found.runs)} runs, {seconds / 60:.0f} minutes of a process\n")
        print(grid_table.markdown(grid_table.Table(pd.DataFrame(rows)[table.frame.columns], *table[1:])))
    runs.write_json(runs.resolve("docs/ablations.json"), whole)
    print("wrote docs/ablations.json")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/ablations")
