"""The runs of a grid: what survives kill -9, who gets which share, how long it will take."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from toy_grids import GRID, finish, make_grid, processes, states_of, wait_for

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.book import grid, grid_run, grid_slurm
from dias_lab.book.parameters import Refused
from dias_lab.shell.grid import COMMANDS


@pytest.mark.slow
def test_killed_kernel_and_runner_change_nothing_in_the_table(root, capsys):
    make_grid(root, GRID + "[fixed]\nwait = 0.5\n", "runs/undisturbed")
    for run in grid.load("runs/undisturbed").runs:
        finish(run)
    (root / "grid.toml").write_text(GRID + "[fixed]\nwait = 0.5\n")
    command = [sys.executable, "-m", "dias_lab", "grid", "start", "grid.toml", "--out", "runs/g", "--workers", "3"]
    environment = os.environ | {"PYTHONPATH": str(runs.PACKAGE.parent)}
    with open(root / "runner.txt", "w") as log:
        runner = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kernels():
        return [p for p in processes(root) if "ipykernel_launcher" in " ".join(p.cmdline())]

    wait_for(lambda: list(root.glob("runs/g/*/outcome.json")))
    with contextlib.suppress(psutil.NoSuchProcess):
        wait_for(kernels)[0].kill()
    wait_for(lambda: list(root.glob("runs/g/*/error.json")) or len(list(root.glob("runs/g/*/outcome.json"))) > 3)
    wait_for(lambda: "running" in states_of("runs/g").values())
    runner.kill()
    runner.wait()
    wait_for(lambda: not processes(root), 20)
    states = states_of("runs/g")
    assert "running" not in states.values() and "interrupted" in states.values() and "done" in states.values()
    before = {name for name, state in states.items() if state == "done"}
    executed = (root / "executed.txt").read_text().split()
    assert main(["grid", "status", "runs/g", "--json"]) == 0
    assert {row["id"]: row["state"] for row in json.loads(capsys.readouterr().out)["runs"]} == states

    assert main(["grid", "resume", "runs/g", "--workers", "3"]) == 0
    assert set(states_of("runs/g").values()) == {"done"}
    again = (root / "executed.txt").read_text().split()[len(executed) :]
    assert sorted(again) == sorted(f"runs/g/{name}" for name in set(states) - before)  # only what was missing
    for run in grid.load("runs/g").runs:  # no output of one in another
        outputs = nbformat.read(run.folder / "run.ipynb", as_version=4).cells[2].outputs
        values = run.parameters
        assert outputs[0].text == f"{values['kind']}{values['width']}{values['seed']}\n"
    assert main(["grid", "table", "runs/g"]) == main(["grid", "table", "runs/undisturbed"]) == 0
    for name in ("table.csv", "table.md", "table.tex"):
        assert (root / "runs/g" / name).read_bytes() == (root / "runs/undisturbed" / name).read_bytes()
    assert processes(root) == [] and list((root / "t").iterdir()) == []


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
    wait_for(lambda: (root / "executed.txt").exists())
    runner.send_signal(signal.SIGINT)
    assert b"interrupted" in runner.communicate(timeout=30)[1] and runner.returncode == 1
    assert sorted(states_of("runs/g").values()) == ["interrupted", "interrupted", "todo"]
    assert processes(root) == [] and list((root / "t").iterdir()) == []


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
    make_grid(root, GRID.replace("[1, 2, 3]", "[1]") + '[table]\nbaseline = "width=2, kind=a"\n')
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
        new_code_cell('run_dir: str = ""\nsteps: int = 100\nbatch_size: int = 4\nclip_frames: int = 0', metadata={"tags": ["parameters"]}),
        new_code_cell("from dias_lab import runs\nfrom dias_lab.config import Config\nfolder = runs.resolve(run_dir)"),
        new_code_cell(TRAINED),
    ]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "x"}}), root / "train.ipynb")
    text = 'notebook = "train.ipynb"\n[fixed]\nevaluate_every = 10\n[axes]\nslot_dim = [8, 16]\n'
    (root / "grid.toml").write_text(text)
    found = grid.read("grid.toml", "runs/g")
    step, evaluation, rest = grid_run.measure(found, threads=1)
    assert (step, evaluation) == pytest.approx((0.1, 0.5)) and rest + 3.4 > 0
    found.runs[0].parameters["clip_frames"] = 3  # then the log counts frames
    assert grid_run.measure(found, threads=1)[0] == pytest.approx(0.3)
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
    done, failing = make_grid(root, 'notebook = "unit.ipynb"\n[axes]\nseed = [1, 2]\n').runs
    finish(done)
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
