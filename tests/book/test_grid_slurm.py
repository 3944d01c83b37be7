"""A grid on a real Slurm of one node: a job array, a time limit that requeues, a killed job."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.book import grid

SCRIPT = Path(__file__).parent / "slurm/one_node.sh"
PARAMETERS = 'run_dir: str = ""\nseed: int = 0\nkind: str = "a"\nseconds: int = 2'
UNIT = """import time
from dias_lab import runs

folder = runs.resolve(run_dir)
log = folder / "metrics.jsonl"
done = len(runs.read_lines(log)) if log.exists() else 0  # goes on where it was ended
print(f"from second {done}")
for second in range(done, seconds):
    time.sleep(1)
    runs.append_line(log, {"step": second, "loss": 1.0})
decoder = {"ari": (7 * seed + len(kind)) % 11 / 13}
runs.write_json(folder / "metrics.json", {"steps": seconds, "scores": {"protocol": "dias", "images": 20, "decoder": decoder}})"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    absent = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name, path="/usr/sbin:/usr/bin")]
    if absent or os.geteuid() != 0:
        pytest.skip(f"a Slurm of one node needs root, and slurm-wlm and munge installed; missing: {absent or 'root'}")
    folder = tmp_path_factory.mktemp("slurm")
    lock = open(Path(tempfile.gettempdir()) / "dias_lab-one-slurm.lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # its ports are fixed: one at a time, whichever worker of pytest asks
    try:
        started = subprocess.run([SCRIPT, "up", folder], stdin=subprocess.DEVNULL, timeout=120)
        if started.returncode:
            pytest.skip(f"no Slurm comes up on this machine; its logs are in {folder}/log")
        yield folder / "slurm.conf"
    finally:
        subprocess.run([SCRIPT, "down", folder])
        lock.close()


@pytest.fixture
def root(tmp_path, monkeypatch, slurm):
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(runs.PACKAGE.parent))
    monkeypatch.chdir(tmp_path)
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(UNIT)]
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "unit.ipynb")
    return tmp_path


def _states() -> list[str]:
    return [row["state"] for row in grid.status(grid.load("runs/g"))]


def _wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, (_states(), subprocess.run(["squeue"], capture_output=True, text=True).stdout)
        time.sleep(0.5)


def test_an_array_with_a_killed_job_gives_the_table_of_the_local_pool(root, capsys):
    (root / "grid.toml").write_text(
        'notebook = "unit.ipynb"\nseeds = [1, 2, 3]\n[fixed]\nseconds = 4\n[axes]\nkind = ["a", "bbb"]\n[slurm]\ntimeout_min = 5\ncpus_per_task = 1\n'
    )
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--slurm"]) == 0
    _wait_until(lambda: "running" in _states(), 60)
    found = grid.load("runs/g")
    victim = next(row["id"] for row in grid.status(found) if row["state"] == "running")
    subprocess.run(["scancel", "--signal=KILL", "--full", grid.job_of(found)[victim]], check=True)
    _wait_until(lambda: not {"running", "queued"} & set(_states()), 180)
    rows = {row["id"]: row["state"] for row in grid.status(found)}
    assert rows.pop(victim) in ("interrupted", "failed") and set(rows.values()) == {"done"}
    capsys.readouterr()
    assert main(["grid", "resume", "runs/g", "--slurm"]) == 0
    assert "submitted 1 jobs" in capsys.readouterr().out
    _wait_until(lambda: set(_states()) == {"done"}, 120)
    assert main(["grid", "start", "grid.toml", "--out", "runs/local", "--workers", "2"]) == 0
    assert main(["grid", "table", "runs/g"]) == main(["grid", "table", "runs/local"]) == 0
    assert (root / "runs/g/table.csv").read_bytes() == (root / "runs/local/table.csv").read_bytes()


def test_a_time_limit_requeues_and_the_run_goes_on(root):
    (root / "grid.toml").write_text(
        'notebook = "unit.ipynb"\nseeds = [1]\n[fixed]\nseconds = 30\n[slurm]\ntimeout_min = 1\nsignal_delay_s = 20\ncpus_per_task = 1\n'
    )
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--slurm"]) == 0
    (run,) = grid.load("runs/g").runs
    seen = set()
    _wait_until(lambda: seen.update(_states()) or "done" in seen, 400)
    assert seen <= {"queued", "running", "interrupted", "done"} and "running" in seen
    text = nbformat.read(run.folder / "run.ipynb", as_version=4).cells[-1].outputs[0].text
    assert 0 < int(text.split()[-1]) < 30  # the second start went on where the first was ended
    assert [line["step"] for line in runs.read_lines(run.folder / "metrics.jsonl")] == list(range(30))
    logs = "".join(path.read_text() for path in (root / "runs/g/slurm").glob("*_log.*"))
    assert "timed-out" in logs and json.dumps("done")[1:-1] in _states()


def test_wrong_slurm_parameters_are_refused(root, capsys):
    (root / "grid.toml").write_text('notebook = "unit.ipynb"\n[slurm]\npartitoin = "x"\n')
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--slurm"]) == 2
    assert "[slurm]" in capsys.readouterr().err and not (root / "runs").exists()
