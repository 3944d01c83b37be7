"""Grids: what is refused, and what survives kill -9."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.book import grid, grid_run, grid_slurm, grid_table
from dias_lab.book.parameters import Refused
from dias_lab.book.unit import Unit
from dias_lab.config import Config
from dias_lab.shell.grid import COMMANDS

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


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    _write_notebook(tmp_path)
    return tmp_path


def _write_notebook(root, *extra):
    cells = [new_code_cell(source) for source in (UNIT, RESULT, END, *extra)]
    notebook = new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, root / "unit.ipynb")


def _grid(root, text=GRID, folder="runs/g") -> grid.Grid:
    (root / "grid.toml").write_text(text)
    found = grid.read(root / "grid.toml", folder)
    runs.write_text(found.folder / "grid.toml", text)
    return found


def _finish(run: Unit) -> None:
    """What the notebook leaves, without executing it."""
    run.prepare()
    values = {"width": 1, "kind": "a"} | run.parameters
    runs.write_json(run.folder / "metrics.json", result(values["seed"], values["width"], values["kind"]))  # noqa: F821
    runs.write_json(run.folder / "outcome.json", {"run_seconds": 2.0, "peak_memory": 1, "about": {"commit": "abc"}})


def _processes(root) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("DIAS_LAB_ROOT") == str(root):
                found.append(process)
    return found


def _wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def _states(folder) -> dict[str, str]:
    return {row["id"]: row["state"] for row in grid.status(grid.load(folder))}


def test_expansion_is_variants_times_axes_times_seeds(root):
    text = 'notebook = "unit.ipynb"\nseeds = [1, 2]\n[fixed]\nwidth = 3\nwait = 1\n[axes]\nkind = ["a", "b"]\n'
    text += '[[variants]]\nname = "plain"\n[[variants]]\nname = "wide one"\nwidth = 9\n'
    found = _grid(root, text)
    assert found.settings == ["plain, kind=a", "plain, kind=b", "wide one, kind=a", "wide one, kind=b"]
    assert len({run.id for run in found.runs}) == 8
    run = found.runs[5]
    assert (run.setting, run.seed) == ("wide one, kind=a", 2) and run.id.startswith("wide-one-kind=a-seed-2-")
    assert run.parameters == {"width": 9, "wait": 1, "kind": "a", "seed": 2, "run_dir": f"runs/g/{run.id}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = [1\nx", "cannot be read as TOML.*line 2"),
        ('notebok = "x"', "did you mean 'notebook'"),
        ('notebook = "nowhere.ipynb"', "there is no notebook"),
        ("seeds = [1]", "does not say which notebook"),
        (GRID + "mode = []", r"\[axes\] mode: must be a list with at least one value"),
        (GRID + 'mode = "good"', r"\[axes\] mode: must be a list"),
        (GRID.replace("[1, 2, 3]", "[]"), "seeds: must be a list with at least one"),
        (GRID.replace("[1, 2, 3]", "[1, 1]"), "seeds: 1 is there twice"),
        (GRID.replace("[1, 2, 3]", '["a"]'), "seeds: must be whole numbers"),
        (GRID.replace("width", "widht"), r"\[axes\] widht: .*unit.ipynb has no parameter 'widht'.*did you mean 'width'"),
        (GRID.replace("[1, 2]", '[1, "2"]'), r"\[axes\] width: .*'width' must be int, got '2'"),
        (GRID + "[fixed]\nkind = 'a'", r"\[fixed\] kind: \[axes\] kind sets it as well"),
        (GRID + "[fixed]\nseed = 1", r"\[fixed\] seed: seeds sets it as well"),
        (GRID + "[fixed]\nrun_dir = 'x'", r"\[fixed\] run_dir: the grid sets it"),
        (GRID + "[fixed]\nwait = nan", r"\[fixed\] wait: .*JSON cannot hold"),
        (GRID + "[fixed]\nmode = 2026-01-01", r"\[fixed\] mode: .*datetime.date"),
        (GRID + "[[variants]]\nwidth = 3", r"\[\[variants\]\] number 1: needs a name"),
        (GRID + "[[variants]]\nname = 'x'\n[[variants]]\nname = 'y'\nwait = 0.0", "'y, width=1, kind=a, seed 1' is the same run as"),
        (GRID + "[limits]\nminute = 3", "did you mean 'minutes'"),
        (GRID + "[limits]\nmemory_gb = -3", "memory_gb: must be a number above 0, got -3"),
    ],
)
def test_refused_with_the_place_before_anything_starts(root, capsys, text, message):
    (root / "grid.toml").write_text(text)
    with pytest.raises(Refused, match=message):
        grid.read("grid.toml", "runs/g")
    assert main(["grid", "start", "grid.toml", "--out", "runs/g"]) == 2
    assert "refused" in capsys.readouterr().err and not (root / "runs").exists()


def test_a_notebook_must_take_its_run_directory(root):
    notebook = new_notebook(cells=[new_code_cell("seed: int = 1", metadata={"tags": ["parameters"]})])
    nbformat.write(notebook, root / "unit.ipynb")
    with pytest.raises(Refused, match="has no parameter run_dir"):
        _grid(root)


def test_states_are_read_off_files(root, monkeypatch):
    found = _grid(root)
    done, running, failed, interrupted, nothing, queued, *_ = found.runs
    _finish(done)
    for run in (running, failed, interrupted, nothing):
        run.prepare()
        (run.folder / "log.txt").touch()
    runs.write_json(failed.folder / "error.json", {"ename": "ValueError", "evalue": "no", "message": "cell 3: no"})
    runs.write_json(nothing.folder / "outcome.json", {"run_seconds": 1.0})
    runs.write_json(running.folder / "config.json", {"steps": 10})
    runs.append_line(running.folder / "metrics.jsonl", {"step": 4, "loss": 0.5})
    runs.append_line(running.folder / "metrics.jsonl", {"step": 5, "validation": {}})
    (root / "runs/g/slurm").mkdir()
    runs.append_line(root / "runs/g/slurm/jobs.jsonl", {"id": queued.id, "job": "7_0"})
    monkeypatch.setattr("dias_lab.runs.slurm_states", lambda: {"7_0": "PENDING"})
    with runs.claim(running.folder):
        rows = {row["id"]: row for row in grid.status(grid.load("runs/g"))}
    states = [rows[run.id]["state"] for run in (done, running, failed, interrupted, nothing, queued, found.runs[-1])]
    assert states == ["done", "running", "failed", "interrupted", "failed", "queued", "todo"]
    assert (rows[running.id]["step"], rows[running.id]["steps"], rows[running.id]["loss"]) == (4, 10, 0.5)
    assert rows[failed.id]["problem"] == "cell 3: no" and "no metrics.json" in rows[nothing.id]["problem"]
    text = grid_run.progress(list(rows.values()), 1)
    assert text.startswith("1 of 12 done, 1 running, 1 queued, 2 failed, 1 interrupted, 6 todo, about ")
    assert text.endswith("width=1, kind=a seed 2, step 4/10, loss 0.5")
    assert len(grid_run.missing(list(rows.values()))) == 9 and len(grid_run.missing(list(rows.values()), True)) == 7


def test_a_changed_notebook_or_package_makes_results_stale(root, monkeypatch):
    found = _grid(root)
    for run in found.runs:
        _finish(run)
    assert set(_states("runs/g").values()) == {"done"}
    nb = nbformat.read(root / "unit.ipynb", as_version=4)
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(nb, root / "unit.ipynb")
    assert set(_states("runs/g").values()) == {"done"}  # outputs change nothing
    _write_notebook(root, "1 + 1")
    monkeypatch.setattr(runs.identity, "code_hash", lambda notebook: "0")
    changed = grid.load("runs/g")
    assert {row["state"] for row in grid.status(changed)} == {"todo"}
    assert {why for _, why in grid.stale(changed)} == {"the notebook changed and the package changed"}
    with pytest.raises(Refused, match="prepared for another version of the notebook and the package"):
        grid_run.run_one(found.runs[0].folder)
    with pytest.raises(Refused, match="12 finished runs are stale|no run"):
        grid_table.table(changed)
    table = grid_table.table(changed, old=True)
    assert table.frame["n"].tolist() == [3] * 4 and "stale result, the notebook changed" in table.notes[-1]
    assert main(["grid", "clean", "runs/g"]) == 2  # nobody is there to ask
    assert main(["grid", "clean", "runs/g", "--yes"]) == 0
    assert sorted(path.name for path in (root / "runs/g").iterdir()) == ["grid.toml"]


def test_directories_of_older_versions_are_stale_and_moved_ones_are_not(root, capsys):
    found = _grid(root)
    for run in found.runs[:2]:
        _finish(run)
    made = {"variant": "width=1, kind=a", "seed": 1, "notebook": "unit.ipynb", "notebook_hash": "0", "code_hash": "0", "parameters": {}, "limits": {}}
    runs.write_json(root / "runs/g/old/run.json", made)
    runs.write_json(root / "runs/g/odd/run.json", [])
    assert {path.name: why for path, why in grid.stale(found)}["old"] == "the package changed"
    assert "odd" in {path.name for path, _ in grid.stale(found)}
    with pytest.raises(Refused, match="prepared for another version of the package; make the directories anew"):
        grid_run.run_one(root / "runs/g/old")
    with pytest.raises(Refused, match="run.json cannot be read"):
        grid_run.run_one(root / "runs/g/odd")
    runs.write_json(root / "runs/g/gone/run.json", made | {"notebook": "gone.ipynb"})
    with pytest.raises(Refused, match="there is no notebook .*gone.ipynb"):
        grid_run.run_one(root / "runs/g/gone")
    (root / "runs/g").rename(root / "runs/moved")
    assert sorted(_states("runs/moved").values()) == ["done"] * 2 + ["todo"] * 10
    (root / f"runs/moved/{found.runs[0].id}/run.json").write_text("{")  # not this run's, as far as anybody can tell
    assert sorted(_states("runs/moved").values()) == ["done"] + ["todo"] * 11


def test_killed_kernel_and_runner_change_nothing_in_the_table(root, capsys):
    _grid(root, GRID + "[fixed]\nwait = 0.5\n", "runs/undisturbed")
    for run in grid.load("runs/undisturbed").runs:
        _finish(run)
    (root / "grid.toml").write_text(GRID + "[fixed]\nwait = 0.5\n")
    command = [sys.executable, "-m", "dias_lab", "grid", "start", "grid.toml", "--out", "runs/g", "--workers", "3"]
    environment = os.environ | {"PYTHONPATH": str(runs.PACKAGE.parent)}
    with open(root / "runner.txt", "w") as log:
        runner = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kernels():
        return [p for p in _processes(root) if "ipykernel_launcher" in " ".join(p.cmdline())]

    _wait_for(lambda: list(root.glob("runs/g/*/outcome.json")))
    with contextlib.suppress(psutil.NoSuchProcess):
        _wait_for(kernels)[0].kill()
    _wait_for(lambda: list(root.glob("runs/g/*/error.json")) or len(list(root.glob("runs/g/*/outcome.json"))) > 3)
    _wait_for(lambda: "running" in _states("runs/g").values())
    runner.kill()
    runner.wait()
    _wait_for(lambda: not _processes(root), 20)
    states = _states("runs/g")
    assert "running" not in states.values() and "interrupted" in states.values() and "done" in states.values()
    before = {name for name, state in states.items() if state == "done"}
    executed = (root / "executed.txt").read_text().split()
    assert main(["grid", "status", "runs/g", "--json"]) == 0
    assert {row["id"]: row["state"] for row in json.loads(capsys.readouterr().out)["runs"]} == states

    assert main(["grid", "resume", "runs/g", "--workers", "3"]) == 0
    assert set(_states("runs/g").values()) == {"done"}
    again = (root / "executed.txt").read_text().split()[len(executed) :]
    assert sorted(again) == sorted(f"runs/g/{name}" for name in set(states) - before)  # only what was missing
    for run in grid.load("runs/g").runs:  # no output of one in another
        outputs = nbformat.read(run.folder / "run.ipynb", as_version=4).cells[2].outputs
        values = run.parameters
        assert outputs[0].text == f"{values['kind']}{values['width']}{values['seed']}\n"
    assert main(["grid", "table", "runs/g"]) == main(["grid", "table", "runs/undisturbed"]) == 0
    for name in ("table.csv", "table.md", "table.tex"):
        assert (root / "runs/g" / name).read_bytes() == (root / "runs/undisturbed" / name).read_bytes()
    assert _processes(root) == [] and list((root / "t").iterdir()) == []


def test_bad_runs_are_told_and_harm_no_other(root, capsys):
    text = 'notebook = "unit.ipynb"\n[fixed]\nseed = 1\n[axes]\nmode = ["good", "raise", "delete", "nothing"]\n'
    (root / "grid.toml").write_text(text)
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--workers", "2"]) == 1
    assert "1 of 4 done, 3 failed" in capsys.readouterr().out
    rows = {row["setting"]: row for row in grid.status(grid.load("runs/g"))}
    assert [rows[f"mode={mode}"]["state"] for mode in ("good", "raise", "delete", "nothing")] == ["done"] + ["failed"] * 3
    assert "ValueError: on purpose" in rows["mode=raise"]["problem"] and "cell 4 of 4, line 2" in rows["mode=raise"]["problem"]
    assert "was deleted while the notebook ran" in rows["mode=delete"]["problem"]
    assert "wrote no metrics.json" in rows["mode=nothing"]["problem"]

    assert main(["grid", "table", "runs/g"]) == 0
    out = capsys.readouterr().out
    assert "| mode=good | 1 |" in out and "- mode=raise: failed: unit.ipynb, cell 4" in out
    assert main(["grid", "open", "runs/g"]) == 0
    page = (root / "runs/g" / rows["mode=raise"]["id"] / "run.html").read_text()
    assert 'id="error"' in page and "on purpose" in page and "index.html" not in page
    table = runs.collect("runs/g").set_index("variant")
    good = table.loc["mode=good"]
    assert (good["state"], good["scores.protocol"], good["mode"]) == ("done", "dias", "good")
    assert good["run_seconds"] > 0 and good["peak_memory"] > 10_000_000 and good["about.versions.python"]
    assert table.loc["mode=nothing", "state"] != "done"

    one = f"runs/g/{rows['mode=raise']['id']}"
    assert main(["grid", "run-one", one]) == 1 and "on purpose" in capsys.readouterr().out
    assert main(["grid", "run-one", f"runs/g/{rows['mode=good']['id']}"]) == 0
    with runs.claim(root / one):
        assert main(["grid", "run-one", one]) == 2
    assert main(["grid", "clean", "runs/g", "--yes"]) == 0
    assert {row["state"] for row in grid.status(grid.load("runs/g"))} == {"done", "todo"}


def test_interrupted_runner_leaves_the_truth(root):
    (root / "grid.toml").write_text('notebook = "unit.ipynb"\nseeds = [1, 2, 3]\n[fixed]\nwait = 60\n')
    command = [sys.executable, "-m", "dias_lab", "grid", "start", "grid.toml", "--out", "runs/g", "--workers", "2"]
    runner = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(runs.PACKAGE.parent)}, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    _wait_for(lambda: (root / "executed.txt").exists())
    runner.send_signal(signal.SIGINT)
    assert b"interrupted" in runner.communicate(timeout=30)[1] and runner.returncode == 1
    assert sorted(_states("runs/g").values()) == ["interrupted", "interrupted", "todo"]
    assert _processes(root) == [] and list((root / "t").iterdir()) == []


def test_start_prepares_directories_for_other_schedulers(root, capsys, monkeypatch):
    (root / "grid.toml").write_text('notebook = "unit.ipynb"\nseeds = [1]\n')
    (root / "full").mkdir()
    (root / "full/file").touch()
    assert main(["grid", "start", "grid.toml", "--out", "full"]) == 2
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--workers", "0"]) == 2
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--prepare-only"]) == 0
    (run,) = grid.load("runs/g").runs
    assert f"python -m dias_lab grid run-one runs/g/{run.id}\n" in capsys.readouterr().out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    given = []
    monkeypatch.setattr(grid_run, "run_one", lambda folder, threads, environment: given.append((threads, environment)) or run.look())
    monkeypatch.setattr(grid_run, "cores", lambda: 8)
    grid_run.execute(grid.load("runs/g"), [run.id])
    assert given == [(8, {"CUDA_VISIBLE_DEVICES": "3"})] and grid_run.shares(9) == (2, 4)


def test_the_example_is_a_grid(monkeypatch):
    project = Path(__file__).parents[2]
    monkeypatch.setenv("DIAS_LAB_ROOT", str(project))
    found = grid.read("docs/example_grid.toml", "runs/example")
    assert len(found.runs) == 12 and found.tables["table"]["baseline"] in found.settings


def test_the_ready_grids_are_grids_of_configs_that_work(monkeypatch):
    project = Path(__file__).parents[2]
    monkeypatch.setenv("DIAS_LAB_ROOT", str(project))
    for file in sorted((project / "notebooks/grids").glob("*.toml")):
        found = grid.read(file, "runs/none")
        assert found.tables.get("table", {}).get("baseline", found.settings[0]) in found.settings, file
        for run in found.runs:
            Config.from_parameters(run.parameters)
    found = grid.read("notebooks/grids/ablations.toml", "runs/none")
    assert len(found.settings) <= 30 and len(found.runs) == 3 * len(found.settings)
    changed = grid.read("notebooks/grids/ablations.toml", "runs/none", {"steps": 9, "preset": "voc"})
    assert {(run.parameters["steps"], run.parameters["preset"]) for run in changed.runs} == {(9, "voc")}


def test_fixed_parameters_from_the_shell_go_before_the_file_s(root, capsys):
    (root / "grid.toml").write_text(GRID + "[fixed]\nwait = 1.0\n")
    start = ["grid", "start", "grid.toml", "--out", "runs/g", "--prepare-only"]
    assert main([*start, "--fixed", "wait=2.5", "mode=nothing"]) == 0
    found = grid.load("runs/g")
    assert all(run.parameters["wait"] == 2.5 and run.parameters["mode"] == "nothing" for run in found.runs)
    assert [run.id for run in found.runs] == [path.parent.name for path in sorted((root / "runs/g").glob("*/run.json"))]
    for words, message in [
        (["--fixed", "wait"], "takes NAME=VALUE"),
        (["--fixed", "wiat=1.0"], "did you mean 'wait'"),
        (["--fixed", "kind=x"], r"\[changed\] kind: \[axes\] kind sets it as well"),
        (["--only", "width=3"], "no setting begins so"),
    ]:
        assert main([*start, *words]) == 2
        assert re.search(message, capsys.readouterr().err), words
    again = ["grid", "start", "runs/g/grid.toml", "--out", "runs/g", "--prepare-only"]
    assert main(again) == 0 and main([*again, "--fixed", "wait=3.0"]) == 2
    assert "already" in capsys.readouterr().err and grid.load("runs/g").runs == found.runs


def test_only_some_settings_and_the_baseline(root, capsys):
    _grid(root, GRID.replace("[1, 2, 3]", "[1]") + '[table]\nbaseline = "width=2, kind=a"\n')
    assert main(["grid", "resume", "runs/g", "--only", "width=1, kind=b", "--workers", "2"]) == 0
    capsys.readouterr()
    assert main(["grid", "start", "runs/g/grid.toml", "--out", "runs/g", "--only", "width=1, kind=b", "--prepare-only"]) == 0
    assert capsys.readouterr().out.count("run-one") == 2
    states = {row["setting"]: row["state"] for row in grid.status(grid.load("runs/g"))}
    assert states == {"width=1, kind=a": "todo", "width=1, kind=bbb": "done", "width=2, kind=a": "done", "width=2, kind=bbb": "todo"}


TRAINED = """for step, rate in ((12, 20.0), (24, 40.0)):  # 0.1 s a step, in the end
    runs.append_line(folder / "metrics.jsonl", {"step": step, "images_per_second": rate})
config = Config.from_parameters(globals())
runs.write_json(folder / "config.json", config.to_dict())
runs.write_json(folder / "metrics.json", {"seconds": 2.4 + 2 * 0.5, "steps": steps})"""


def test_the_projected_time_follows_steps_and_evaluations(root, capsys, monkeypatch):
    cells = [
        new_code_cell('run_dir: str = ""\nsteps: int = 100\nbatch_size: int = 4', metadata={"tags": ["parameters"]}),
        new_code_cell("from dias_lab import runs\nfrom dias_lab.config import Config\nfolder = runs.resolve(run_dir)"),
        new_code_cell(TRAINED),
    ]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "x"}}), root / "train.ipynb")
    text = 'notebook = "train.ipynb"\n[fixed]\nevaluate_every = 10\n[axes]\nslot_dim = [8, 16]\n'
    (root / "grid.toml").write_text(text)
    found = grid.read("grid.toml", "runs/g")
    step, evaluation, rest = grid_run.measure(found, threads=1)
    assert (step, evaluation) == pytest.approx((0.1, 0.5)) and rest + 3.4 > 0
    monkeypatch.setattr(grid_run, "measure", lambda of, threads: (0.1, 0.5, 7.0))
    all_of_them = {run.id for run in found.runs}
    assert grid_run.projected(found, {found.runs[0].id}, workers=2) == (1, pytest.approx(0.1 * 100 + 0.5 * 10 + 7.0))
    assert grid_run.projected(found, all_of_them, workers=2) == (2, pytest.approx(0.1 * 100 + 0.5 * 10 + 7.0))  # two runs at a time
    assert grid_run.projected(found, all_of_them, workers=1) == (2, pytest.approx(2 * (0.1 * 100 + 0.5 * 10 + 7.0)))
    assert not (root / "runs").exists()
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--workers", "1", "--projected", "--prepare-only"]) == 0
    assert "projected   44 s for 2 runs on this machine\n" in capsys.readouterr().out


def test_a_notebook_that_trains_nothing_has_no_projected_time(root, capsys):
    (root / "grid.toml").write_text('notebook = "unit.ipynb"\nseeds = [1]\n')
    with pytest.raises(Refused, match="'steps'|cannot be projected"):
        found = grid.read("grid.toml", "runs/g")
        grid_run.projected(found, {run.id for run in found.runs})


def test_without_slurm_it_is_refused(root, capsys, monkeypatch):
    (root / "grid.toml").write_text('notebook = "unit.ipynb"\nseeds = [1]\n')
    monkeypatch.setenv("PATH", str(root))
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--slurm"]) == 2
    assert "without --slurm" in capsys.readouterr().err and not (root / "runs").exists()


def test_what_a_slurm_job_does_tells_how_it_ended(root):
    done, failing = _grid(root, 'notebook = "unit.ipynb"\n[axes]\nseed = [1, 2]\n').runs
    _finish(done)
    assert grid_slurm.Task()(str(done.folder)) == "done"
    with pytest.raises(Refused, match="holds no run.json"):
        grid_slurm.Task()(str(failing.folder))
    failing.prepare()
    with runs.claim(failing.folder), pytest.raises(runs.RunBusy):
        grid_slurm.Task()(str(failing.folder))


def test_every_command_has_help(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main(["grid", command, "--help"])
        assert stop.value.code == 0
