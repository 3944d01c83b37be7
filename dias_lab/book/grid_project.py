"""How long a grid will take on this machine, measured on a short run of its first setting.

The short run goes through the same notebook in the same way, with STEPS steps and EVALUATIONS evaluations. Its log tells
what a step takes, its metrics.json what training and evaluations take together, and the rest is what every run has
besides: kernel, figures, scores.
"""

import math
import tempfile
from pathlib import Path

from dias_lab import runs
from dias_lab.book import grid, grid_run, headless, parameters
from dias_lab.book.parameters import Refused
from dias_lab.config import Config

STEPS, EVALUATIONS = 24, 2


def seconds(of: grid.Grid, chosen: set[str], workers: int | None = None) -> float:
    """Seconds until those of the chosen runs are done that are not yet.

    Refused for a notebook that trains no model, or where the short run fails.
    """
    left = chosen.intersection(grid_run.missing(grid.status(of)))
    waiting = [run for run in of.runs if run.id in left]
    workers = max(1, min(workers or grid_run.default_workers(), len(waiting)))
    if not waiting:
        return 0.0
    step, evaluation, rest = measure(of, threads=max(1, grid_run.cores() // workers))
    total, defaults = 0.0, {name: value for name, (_, value) in parameters.declared(of.notebook).items()}
    for run in waiting:
        config = Config.from_parameters(defaults | run.parameters)
        evaluations = math.ceil(config.steps / config.evaluate_every)
        total += rest + step * config.steps + evaluation * evaluations
    return total / workers


def measure(of: grid.Grid, threads: int) -> tuple[float, float, float]:
    """Seconds of a step, of an evaluation, and of all that a run has besides."""
    with tempfile.TemporaryDirectory(prefix="dias_lab-") as scratch:
        folder = Path(scratch) / "run"
        size = {"steps": STEPS, "evaluate_every": STEPS // EVALUATIONS, "log_every": STEPS // EVALUATIONS}
        given = of.runs[0].parameters | size | {"run_dir": str(folder)}
        outcome = headless.execute(of.notebook, folder, given, threads=threads)
        if outcome.error:
            raise Refused(f"the short run that measures the time failed: {outcome.error['message']}")
        try:
            result = runs.read_json(folder / "metrics.json")
            lines = [line for line in runs.read_lines(folder / "metrics.jsonl") if "images_per_second" in line]
            step = runs.read_json(folder / "config.json")["batch_size"] / lines[-1]["images_per_second"]
        except (FileNotFoundError, KeyError, IndexError):
            raise Refused(f"{of.notebook.name} leaves no training in run_dir: its time cannot be projected") from None
    evaluation = max(0.0, result["seconds"] - STEPS * step) / EVALUATIONS
    return step, evaluation, outcome.seconds - result["seconds"]


def sentence(of: grid.Grid, chosen: set[str], workers: int | None = None) -> str:
    """The projection, for people."""
    count = len(chosen.intersection(grid_run.missing(grid.status(of))))
    return f"projected   {grid_run.duration(seconds(of, chosen, workers))} for {count} runs on this machine"
