"""The runs of a grid, executed: one of them, or all that are missing in a pool of processes on this machine.

Each run is a notebook in a process of its own (`headless.execute`), with its share of the cores and, where there are
GPUs, one of them. Whatever is killed, what is left on the disk tells the truth, and the next call goes on from there.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from dias_lab import runs
from dias_lab.book import grid, headless, unit
from dias_lab.book.limits import size

QUIET = 60  # seconds between lines of progress where nobody watches a terminal


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


def default_workers() -> int:
    """One a GPU; without GPUs, one for every two cores, and not more than four."""
    return len(gpus()) or max(1, min(4, cores() // 2))


class Pool:
    """Runs of a grid, some at a time."""

    def __init__(self, of: grid.Grid, wanted: list[str], workers: int | None = None):
        self.grid, self.stopped, self.waiting = of, False, queue.SimpleQueue()
        self.workers = max(1, min(workers or default_workers(), len(wanted)))
        self.threads = max(1, cores() // self.workers)
        for run in (run for run in of.runs if run.id in wanted):
            run.prepare()
            self.waiting.put(run)
        devices = gpus()
        own = [{"CUDA_VISIBLE_DEVICES": devices[n % len(devices)]} if devices else {} for n in range(self.workers)]
        self.pool = [threading.Thread(target=self._work, args=(environment,)) for environment in own]
        self.said = time.monotonic()
        shared = f", {len(devices)} GPUs" + (" shared" if self.workers > len(devices) else "") if devices else ""
        print(f"runs: {len(wanted)}, {self.workers} at a time, OMP_NUM_THREADS={self.threads}{shared}", flush=True)

    def run(self) -> None:
        """Until all are through. Ctrl-C and SIGTERM end the running notebooks; they stay to be resumed."""
        outermost = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _interrupt) if outermost else None
        try:
            for thread in self.pool:
                thread.start()
            while alive := [thread for thread in self.pool if thread.is_alive()]:
                alive[0].join(0.5)
                self._say_progress()
        finally:
            self.stopped = True
            while any(thread.is_alive() for thread in self.pool):
                headless.stop()
                time.sleep(0.1)
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def _work(self, environment: dict) -> None:
        while not self.stopped:
            try:
                run = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._say(line(run_one(run.folder, self.threads, environment), run.folder))
            except runs.RunBusy:
                self._say(f"left out    {run.id}: another process executes it")
            except Exception as error:  # of one run: the others still count
                with contextlib.suppress(OSError):
                    runs.write_json(run.folder / "error.json", {"ename": type(error).__name__, "evalue": str(error)})
                self._say(f"failed      {run.id}: {type(error).__name__}: {error}")

    def _say(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, flush=True)

    def _say_progress(self) -> None:
        watched = sys.stdout.isatty()
        if time.monotonic() - self.said < (2 if watched else QUIET):
            return
        self.said = time.monotonic()
        text = progress(grid.status(self.grid), self.workers)
        if watched:
            print(f"\r\x1b[K{text[: os.get_terminal_size().columns - 1]}", end="", flush=True)
        else:
            print(text, flush=True)


def _interrupt(number, frame):
    raise KeyboardInterrupt


def line(row: dict, folder: Path) -> str:
    """One finished run."""
    if row["state"] != "done":
        return f"{row['state']:11s} {row['id']}" + (f": {row['problem']}" if row["problem"] else "")
    return f"done        {row['id']}   {row['seconds']:.1f} s, {size(runs.read_json(folder / 'outcome.json')['peak_memory'])}"


def progress(rows: list[dict], workers: int) -> str:
    """Counts, the running ones with step and loss, and the time left."""
    counts = {state: sum(row["state"] == state for row in rows) for state in grid.STATES}
    text = f"{counts['done']} of {len(rows)} done"
    text += "".join(f", {count} {state}" for state, count in counts.items() if count and state != "done")
    left = grid.time_left(rows, workers)
    if left and counts["done"] < len(rows):
        text += f", about {duration(left)} left"
    shown = [f"{row['setting']} seed {row['seed']}{step(row)}" for row in rows if row["state"] == "running"]
    return text + (": " + "; ".join(shown) if shown else "")


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
