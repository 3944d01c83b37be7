"""The shell's commands on grids, many runs of one notebook: grid start|status|resume|table|open|clean|run-one."""

import json
import os
import re
import shutil
import sys
import tomllib
import webbrowser
from pathlib import Path
from typing import Annotated

import tyro

from dias_lab import runs
from dias_lab.book import gallery, grid, grid_run, grid_slurm, parameters
from dias_lab.files import folder_size, size
from dias_lab.shell import Flag, Refused, refusing

Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="the grid's directory")]
ONLY = "settings (choices of parameters) whose names begin so, and the baseline; the others stay to be done"
Only = Annotated[tuple[str, ...], tyro.conf.arg(help=ONLY)]
WORKERS = "runs at a time on this machine; by default one a GPU, else one for two cores, at most four"
Workers = Annotated[int | None, tyro.conf.arg(help=WORKERS)]
Slurm = Annotated[Flag, tyro.conf.arg(help="put them into the queue of Slurm, which runs a cluster, as one job array")]
Json = Annotated[Flag, tyro.conf.arg(name="json", help="everything, every digit, as JSON")]


def start(
    file: tyro.conf.Positional[Path], out: Path, fixed: tuple[str, ...] = (), only: Only = (), workers: Workers = None,
    slurm: Slurm = False, projected: Flag = False, prepare_only: Flag = False,
):  # fmt: skip
    """Start the runs of a grid file; where the grid is there already, those that are missing.

    Args:
        file: the grid, a TOML file of a notebook, settings and seeds, such as docs/example_grid.toml
        out: the grid's directory, such as runs/NAME
        fixed: parameters of every run that go before the file's, such as steps=400
        projected: first measure a short run, and print how long the whole will take
        prepare_only: make the runs' directories and print their commands, for another scheduler
    """
    file, out = file.resolve(), out.resolve()  # paths as typed: from the working directory
    if out.exists() and any(out.iterdir()) and not (out / "grid.toml").exists():
        raise Refused(f"{out} is no grid, and it is not empty; choose another --out")
    given = dict(map(_assignment, fixed))
    found = grid.read(file, out, given)
    chosen = _selected(found, only, workers)
    if slurm:
        grid_slurm.executor(found)  # refuses before anything is written
    text = grid.changed(file.read_text(encoding="utf-8"), given)
    if projected:
        count, seconds = grid_run.projected(found, chosen, workers)
        print(f"projected   {grid_run.duration(seconds)} for {count} runs on this machine", flush=True)
    if given or file != out / "grid.toml":
        runs.write_text(out / "grid.toml", text)
    if not prepare_only:
        return _execute(found, chosen, workers, slurm)
    for run in found.prepared(chosen):
        print(f"python -m dias_lab grid run-one {runs.short(run.folder)}")


def resume(folder: Folder, only: Only = (), workers: Workers = None, slurm: Slurm = False, skip_failed: Flag = False):
    """Execute what is missing: what was never started, interrupted or has failed.

    Args:
        skip_failed: leave failed runs as they are
    """
    found = grid.load(folder.resolve())
    return _execute(found, _selected(found, only, workers), workers, slurm, skip_failed)


def _assignment(text: str) -> tuple[str, object]:
    """A parameter's name and value, as TOML has it, or text where that is no TOML."""
    name, sign, value = text.partition("=")
    if not (sign and name.isidentifier()):
        raise Refused(f"--fixed takes NAME=VALUE, such as steps=400, got {text!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _selected(found, only: tuple[str, ...], workers: int | None) -> set[str]:
    """The ids of the runs that `only` asks for, and of the baseline's."""
    if workers is not None and workers < 1:
        raise Refused(f"--workers must be at least 1, got {workers}")
    for text in only:
        if not any(setting.startswith(text) for setting in found.settings):
            raise Refused(f"--only {text}: no setting begins so; there are: {'; '.join(found.settings)}")
    baseline = found.tables.get("table", {}).get("baseline") or found.settings[0]
    chosen = {setting for setting in found.settings if not only or setting == baseline or setting.startswith(only)}
    chosen = [run for run in found.runs if run.setting in chosen]
    if gone := [run.parameters.get("parent") for run in chosen if run.code.get("parent") == "gone"]:
        raise Refused(f"there is no run {gone[0]} to start from, or it has no checkpoint yet: train it first")
    return {run.id for run in chosen}


def _execute(found, chosen: set[str], workers: int | None, slurm: bool, skip_failed: bool = False) -> int:
    _tell_stale(found)
    wanted = [name for name in grid_run.missing(grid.status(found), skip_failed) if name in chosen]
    if slurm and wanted:
        jobs = grid_slurm.submit(found, wanted)
        print(f"submitted {len(jobs)} jobs, {jobs[0]} to {jobs[-1]}", end="; ")
        print("python -m dias_lab grid status tells how they stand")
        return 0
    if wanted:
        grid_run.execute(found, wanted, workers)
    rows = grid.status(found)
    print(grid_run.progress(rows, workers or 1))
    return int(any(row["state"] != "done" for row in rows if row["id"] in chosen))


def _tell_stale(found):
    for path, why in grid.stale(found):
        print(f"stale       {path.name}: {why}")


def status(folder: Folder, as_json: Json = False):
    """How every run stands, read off its files; results of an older notebook or package are stale."""
    found = grid.load(folder.resolve())
    rows = grid.status(found)
    if as_json:
        old = [{"id": path.name, "why": why} for path, why in grid.stale(found)]
        print(json.dumps({"grid": runs.short(found.folder), "runs": rows, "stale": old}, indent=1))
        return
    for row in rows:
        seconds = "" if row["seconds"] is None else f", {row['seconds']:.0f} s"
        problem = f": {row['problem']}" if row["problem"] else ""
        print(f"{row['state']:11s} {row['id']}{grid_run.step(row)}{seconds}{problem}")
    _tell_stale(found)
    print(grid_run.progress(rows, sum(row["state"] == "running" for row in rows)).partition(": ")[0])


def table(
    folder: Folder, metrics: tuple[str, ...] = (), baseline: str | None = None, stale: Flag = False,
    as_json: Json = False,
):  # fmt: skip
    """Mean ± standard deviation, and paired differences to a baseline; as Markdown, CSV and LaTeX.

    Paired: between runs of the same seed and, where the scores of each image are known, on the same image.

    Args:
        metrics: what to show, such as test-dias.decoder.ari: store, protocol, whose segments, and score
        baseline: the setting that the others are compared with
        stale: take stale results, of an older notebook or package, where there are no new ones
    """
    found = grid.load(folder.resolve())
    from dias_lab.book import grid_table  # torch is behind it

    made = grid_table.table(found, list(metrics) or None, baseline, stale)
    if as_json:
        rows = made.frame.to_json(orient="records", double_precision=15)
        print(f'{{"caption": {json.dumps(made.caption)}, "notes": {json.dumps(made.notes)}, "rows": {rows}}}')
    else:
        print(grid_table.markdown(made))
    paths = ", ".join(map(runs.short, grid_table.write(made, found.folder)))
    print(f"wrote {paths}", file=sys.stderr if as_json else sys.stdout)


def open_(folder: Folder, run: str | None = None):
    """Write an executed notebook as a page, and open it in a browser: a failed one, at the cell where it failed.

    Args:
        run: the beginning of a run's id; by default the first that failed
    """
    found = grid.load(folder.resolve())
    rows = [row for row in grid.status(found) if row["id"].startswith(run or "") and (run or row["state"] == "failed")]
    if run and not rows:
        raise Refused(f"no run of {runs.short(found.folder)} is called {run}; status lists them")
    if not rows:
        print("no run has failed; --run ID opens another one")
        return
    row = rows[0]
    name, place = row["id"], found.folder / row["id"]
    if not (place / "run.ipynb").exists():
        raise Refused(f"{name} has no run.ipynb: it is {row['state']}. {row['problem'] or ''}")
    error = runs.read_object(place / "error.json") if (place / "error.json").exists() else None
    page, text = place / "run.html", gallery.page(parameters.read(place / "run.ipynb"), name, error)
    if "plotly.min.js" in text:
        gallery.write_plotly(found.folder)
    runs.write_text(page, re.sub(r'<nav class="back">.*?</nav>', "", text))
    print(f"wrote {runs.short(page)}" + (f": {error['message']}" if error and "message" in error else ""))
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(page.as_uri() + ("#error" if error else ""))


def clean(folder: Folder, yes: Flag = False):
    """Delete what failed or is stale (of an older notebook or package), with its checkpoints; without --yes it asks.

    Args:
        yes: do not ask
    """
    found = grid.load(folder.resolve())
    chosen = {found.folder / row["id"]: "failed" for row in grid.status(found) if row["state"] == "failed"}
    chosen |= {path: f"stale: {why}" for path, why in grid.stale(found) if runs.state(path) != "running"}
    for path, why in chosen.items():
        print(f"{size(folder_size(path)):>9s}  {path.name}  {why}")
    if not chosen:
        print("nothing is failed or stale")
        return
    if not yes and not sys.stdin.isatty():
        raise Refused("nobody is there to ask; --yes deletes these")
    if not yes and input(f"delete these {len(chosen)}? [y/N] ").strip().lower() not in ("y", "yes"):
        print("deleted nothing")
        return
    for path in chosen:
        with runs.claim(path):  # nobody starts it meanwhile
            shutil.rmtree(path)
    print(f"deleted {len(chosen)}")


def run_one(folder: tyro.conf.Positional[Path], threads: int | None = None) -> int:
    """Execute one run, unless it is done; what any scheduler can call.

    Args:
        folder: the run's directory, runs/NAME/ID
        threads: how many it computes with (OMP_NUM_THREADS)
    """
    with refusing(runs.RunBusy):
        row = grid_run.run_one(folder.resolve(), threads)
    print(grid_run.line(row, folder.resolve()))
    return int(row["state"] != "done")


FUNCTIONS = (start, status, resume, table, open_, clean, run_one)
NAMES = [function.__name__.strip("_").replace("_", "-") for function in FUNCTIONS]
COMMANDS = dict(zip(NAMES, map(refusing(parameters.Refused), FUNCTIONS)))
