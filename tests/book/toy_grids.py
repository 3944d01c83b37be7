"""A notebook for grids of toy runs, what it leaves, and how to look at it."""

import contextlib
import os
import time

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_notebook

from dias_lab import runs
from dias_lab.book import grid
from dias_lab.book.unit import Unit

PARAMETERS = """run_dir: str = ""
seed: int = 0
width: int = 1
kind: str = "a"
mode: str = "good"
wait: float = 0.0"""
UNIT = """import shutil, time
from dias_lab import runs

folder = runs.resolve(run_dir)
runs.write_json(folder / "config.json", {"steps": 10})
with open("executed.txt", "a") as file:
    file.write(run_dir + "\\n")
for step in range(5):
    runs.append_line(folder / "metrics.jsonl", {"step": 2 * step, "loss": 1 / (1 + step)})
    time.sleep(wait / 5)
print(f"{kind}{width}{seed}")"""
END = """if mode == "raise":
    raise ValueError("on purpose")
if mode == "delete":
    shutil.rmtree(folder)
if mode != "nothing":
    runs.write_json(folder / "metrics.json", result(seed, width, kind))"""
RESULT = """def result(seed, width, kind):
    score = (7 * seed + 3 * width * width + len(kind) * seed % 5) % 11 / 13
    decoder = {"ari": score, "mbo": score / 3}
    return {"steps": 10, "scores": {"protocol": "dias", "images": 20, "store": "validation", "decoder": decoder}}"""
exec(RESULT)  # result(seed, width, kind)

GRID = """notebook = "unit.ipynb"
seeds = [1, 2, 3]
[axes]
width = [1, 2]
kind = ["a", "bbb"]
"""


def write_notebook(root, *extra):
    cells = [new_code_cell(source) for source in (UNIT, RESULT, END, *extra)]
    notebook = new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, root / "unit.ipynb")


def make_grid(root, text=GRID, folder="runs/g") -> grid.Grid:
    (root / "grid.toml").write_text(text)
    found = grid.read(root / "grid.toml", folder)
    runs.write_text(found.folder / "grid.toml", text)
    return found


def finish(run: Unit) -> None:
    """What the notebook leaves, without executing it."""
    run.prepare()
    values = {"width": 1, "kind": "a"} | run.parameters
    runs.write_json(run.folder / "metrics.json", result(values["seed"], values["width"], values["kind"]))  # noqa: F821
    runs.write_json(run.folder / "outcome.json", {"run_seconds": 2.0, "peak_memory": 1, "about": {"commit": "abc"}})


def processes(root) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("DIAS_LAB_ROOT") == str(root):
                found.append(process)
    return found


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def states_of(folder) -> dict[str, str]:
    return {row["id"]: row["state"] for row in grid.status(grid.load(folder))}
