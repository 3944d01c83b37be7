"""The runs of a grid, executed: one, or all that are missing, some at a time on this machine; and how long that takes.

Each run is a notebook in a process of its own (`headless.execute`), with its share of the cores and, where there are
GPUs, one of them. Whatever is killed, what is left on the disk tells the truth, and the next call goes on from there.
"""

import contextlib
import math
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent import futures
from pathlib import Path

from dias_lab import runs
from dias_lab.book import grid, headless, parameters, unit
from dias_lab.book.parameters import Refused
from dias_lab.config import Config
from dias_lab.files import size

QUIET = 60  # seconds between lines of progress where nobody watches a terminal
STEPS, EVALUATIONS = 24, 2  # of the short run that measures the time


def run_one(folder, threads: int | None = None, environment: dict | None = None) -> dict:
    """Execute the run in this directory unless it is done; gives how it stands (Unit.look).

    Raises Refused where there is no run, or its notebook or the package changed since it was prepared; runs.RunBusy where
    another process executes it.
    """
    run = unit.load(folder)
    if run.look()["state"] != "done":
        run.execute(threads, environment)
    return run.look()


def missing(rows: list[dict], skip_failed: bool = False) -> list[str]:
    """The ids of the runs that `resume` executes: neither done, nor running, nor waiting in a queue."""
    left_out = {"done", "running", "queued"} | ({"failed"} if skip_failed else set())
    return [row["id"] for row in rows if row["state"] not in left_out]


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that may be used here."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name not in ("", "-1")]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, text=True).stdout
    except OSError:
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listing.splitlines()))]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares(count: int, workers: int | None = None) -> tuple[int, int]:
    """How many of so many runs go at a time, and the threads of each.

    By default one a GPU; without GPUs, one for every two cores, and not more than four.
    """
    workers = max(1, min(workers or len(gpus()) or min(4, cores() // 2), count))
    return workers, max(1, cores() // workers)


def execute(of: grid.Grid, wanted: list[str], workers: int | None = None) -> None:
    """Execute these runs. Ctrl-C and SIGTERM end the running notebooks; they stay to be resumed."""
    chosen = of.prepared(wanted)
    workers, threads = shares(len(chosen), workers)
    devices, free = gpus(), queue.SimpleQueue()
    for number in range(workers):
        free.put({"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {})
    shared = f", {len(devices)} GPUs" + (" shared" if workers > len(devices) else "") if devices else ""
    print(f"runs: {len(chosen)}, {workers} at a time, OMP_NUM_THREADS={threads}{shared}", flush=True)

    def work(run):
        environment = free.get()
        told = _executed(run, threads, environment)
        free.put(environment)
        _say(told)

    jobs, pool, said = [], futures.ThreadPoolExecutor(workers), time.monotonic()
    outermost = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if outermost else None
    try:
        for run in chosen:
            jobs.append(pool.submit(work, run))
        while futures.wait(jobs, 0.5).not_done:
            if time.monotonic() - said >= (2 if sys.stdout.isatty() else QUIET):
                said = time.monotonic()
                _say(progress(grid.status(of), workers), passing=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(job.done() for job in jobs):
            headless.stop()
            time.sleep(0.1)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _executed(run: unit.Unit, threads: int, environment: dict) -> str:
    """Execute one run of many; gives the line that tells its end."""
    try:
        return line(run_one(run.folder, threads, environment), run.folder)
    except runs.RunBusy:
        return f"left out    {run.id}: another process executes it"
    except Exception as error:  # of one run: the others still count
        with contextlib.suppress(OSError):
            runs.write_json(run.folder / "error.json", {"ename": type(error).__name__, "evalue": str(error)})
        return f"failed      {run.id}: {type(error).__name__}: {error}"


def _say(text: str, passing: bool = False) -> None:
    """A line; on a terminal, a passing one is written over by the next."""
    if not sys.stdout.isatty():
        print(text, flush=True)
    elif passing:
        print(f"\r\x1b[K{text[: os.get_terminal_size().columns - 1]}", end="", flush=True)
    else:
        print(f"\r\x1b[K{text}", flush=True)


def line(row: dict, folder: Path) -> str:
    """One finished run."""
    if row["state"] != "done":
        return f"{row['state']:11s} {row['id']}" + (f": {row['problem']}" if row["problem"] else "")
    return f"done        {row['id']}   {row['seconds']:.1f} s, {size(runs.read_json(folder / 'outcome.json')['peak_memory'])}"


def progress(rows: list[dict], workers: int) -> str:
    """Counts, the running ones with step and loss, and the time left."""
    counts = Counter(row["state"] for row in rows)
    text = f"{counts['done']} of {len(rows)} done"
    text += "".join(f", {counts[state]} {state}" for state in grid.STATES[1:] if counts[state])
    if counts["done"] < len(rows) and (left := _time_left(rows, workers)):
        text += f", about {duration(left)} left"
    shown = [f"{row['setting']} seed {row['seed']}{step(row)}" for row in rows if row["state"] == "running"]
    return text + (": " + "; ".join(shown) if shown else "")


def _time_left(rows: list[dict], workers: int) -> float:
    """Seconds until all is done, from those that are; 0 while none is."""
    mean = statistics.mean([row["seconds"] for row in rows if row["state"] == "done" and row["seconds"]] or [0])
    left = sum(max(0, mean - (row["seconds"] or 0)) for row in rows if row["state"] == "running")
    return (left + mean * sum(row["state"] in ("todo", "queued", "interrupted") for row in rows)) / max(workers, 1)


def step(row: dict) -> str:
    """How far a running training is."""
    if row["step"] is None:
        return ""
    total = f"/{row['steps']}" if row["steps"] else ""
    return f", step {row['step']}{total}, loss {row['loss']:.4g}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def projected(of: grid.Grid, chosen: set[str], workers: int | None = None) -> tuple[int, float]:
    """How many of the chosen runs are not done, and the seconds until they are, by a short run of the first setting.

    Refused for a notebook that trains no model, or where the short run fails.
    """
    left = chosen.intersection(missing(grid.status(of)))
    if not left:
        return 0, 0.0
    workers, threads = shares(len(left), workers)
    step, evaluation, rest = measure(of, threads)
    total, defaults = 0.0, {name: value for name, (_, value) in parameters.declared(of.notebook).items()}
    for run in (run for run in of.runs if run.id in left):
        config = Config.from_parameters(defaults | run.parameters)
        total += rest + step * config.steps + evaluation * math.ceil(config.steps / config.evaluate_every)
    return len(left), total / workers


def measure(of: grid.Grid, threads: int) -> tuple[float, float, float]:
    """Seconds of a step, of an evaluation, and of all that a run has besides: kernel, figures, scores.

    By a run of STEPS steps and EVALUATIONS evaluations. Its log tells what a step takes, its metrics.json what training
    and evaluations take together.
    """
    with tempfile.TemporaryDirectory(prefix="dias_lab-") as scratch:
        folder = Path(scratch) / "run"
        short = {"steps": STEPS, "evaluate_every": STEPS // EVALUATIONS, "log_every": STEPS // EVALUATIONS}
        given = of.runs[0].parameters | short | {"run_dir": str(folder)}
        outcome = headless.execute(of.notebook, folder, given, threads=threads)
        if outcome.error:
            raise Refused(f"the short run that measures the time failed: {outcome.error['message']}")
        try:
            training, config = runs.read_json(folder / "metrics.json")["seconds"], runs.read_json(folder / "config.json")
            lines = [line for line in runs.read_lines(folder / "metrics.jsonl") if "images_per_second" in line]
            step = config["batch_size"] * max(1, config.get("clip_frames", 0)) / lines[-1]["images_per_second"]
        except (FileNotFoundError, KeyError, IndexError):
            raise Refused(f"{of.notebook.name} leaves no training in run_dir: its time cannot be projected") from None
    return step, max(0.0, training - STEPS * step) / EVALUATIONS, outcome.seconds - training
