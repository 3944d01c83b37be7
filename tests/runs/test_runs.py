"""The run directory: atomic files, status from files, claims, the table."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dias_lab import files, runs


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    return tmp_path


def test_root_is_found_upwards_and_from_the_package(tmp_path, monkeypatch):
    monkeypatch.delenv("DIAS_LAB_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert runs.root() == runs.PACKAGE.parent
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "dias-lab"\n')
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert runs.root() == tmp_path
    assert runs.resolve("data/x") == tmp_path / "data/x"
    assert runs.resolve("/elsewhere") == Path("/elsewhere")
    assert runs.short(tmp_path / "runs/x") == "runs/x"


def test_json_takes_scalars_and_turns_nan_into_null(tmp_path):
    import torch

    value = {"a": float("nan"), "b": np.float32(0.5), "c": torch.tensor(3), "d": (np.bool_(True), np.inf), "e": tmp_path}
    runs.write_json(tmp_path / "new/x.json", value)
    assert runs.read_json(tmp_path / "new/x.json") == {"a": None, "b": 0.5, "c": 3, "d": [True, None], "e": str(tmp_path)}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


def test_failed_write_leaves_the_old_content(tmp_path):
    runs.write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(TypeError, match="object"):
        runs.write_json(tmp_path / "x.json", {"new": object()})
    assert runs.read_json(tmp_path / "x.json") == {"old": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_told_with_the_file_and_changes_nothing(tmp_path, monkeypatch):
    runs.write_json(tmp_path / "x.json", {"old": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space is left on the disk.*x\.json") as caught:
        runs.write_json(tmp_path / "x.json", {"new": 1})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "x.json")
    assert runs.read_json(tmp_path / "x.json") == {"old": 1} and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(IsADirectoryError):  # all else stays as it is
        runs.append_line(tmp_path, {})


def test_sync_takes_files_and_folders(tmp_path):
    (tmp_path / "x").touch()
    files.sync(tmp_path / "x")
    files.sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.sync(tmp_path / "y")


def test_lines_survive_a_torn_end_and_only_that(tmp_path):
    path = tmp_path / "metrics.jsonl"
    runs.append_line(path, {"step": 1})
    runs.append_line(path, {"step": 2})
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')  # kill -9
    assert runs.read_lines(path) == [{"step": 1}, {"step": 2}]
    runs.append_line(path, {"step": 3})
    assert runs.read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        runs.read_lines(path)


def test_about_names_versions_and_no_machine():
    import platform

    about = runs.about()
    assert {"package", "commit", "created", "versions"} == set(about)
    assert {"python", "torch", "numpy", "timm"} <= set(about["versions"])
    assert platform.node() not in json.dumps(about)
    assert len(runs.code_hash()) == 12


def _touch(path: Path, seconds: float) -> None:
    path.write_text("{}")
    os.utime(path, (seconds, seconds))


def test_state_follows_the_files(tmp_path):
    assert runs.state(tmp_path) == "todo"
    _touch(tmp_path / "config.json", 100)
    assert runs.state(tmp_path) == "todo"
    _touch(tmp_path / "error.json", 110)
    assert runs.state(tmp_path) == "failed"
    with runs.claim(tmp_path):
        assert runs.state(tmp_path) == "running"
    _touch(tmp_path / "config.json", 120)  # started again, and killed
    assert runs.state(tmp_path) == "todo"
    _touch(tmp_path / "metrics.json", 130)
    assert runs.state(tmp_path) == "done"
    _touch(tmp_path / "error.json", 140)
    assert runs.state(tmp_path) == "failed"


HOLD = "import sys, time; from dias_lab import runs\nwith runs.claim(sys.argv[1]): print('held', flush=True); time.sleep(60)"


def test_claim_excludes_live_processes_and_forgets_dead_ones(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline().strip() == b"held"
        assert runs.state(tmp_path) == "running"
        with pytest.raises(runs.RunBusy, match=f"process {holder.pid} "), runs.claim(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / "lock").exists()
    assert runs.state(tmp_path) == "todo"
    with runs.claim(tmp_path):
        assert runs.read_json(tmp_path / "lock")["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_of_the_same_number_does_not_hold(tmp_path):
    with runs.claim(tmp_path):
        lock = runs.read_json(tmp_path / "lock")
    runs.write_json(tmp_path / "lock", lock | {"started": "1"})
    assert runs.state(tmp_path) == "todo"


def test_half_written_lock_holds_for_a_moment(tmp_path):
    (tmp_path / "lock").touch()
    assert runs.state(tmp_path) == "running"
    os.utime(tmp_path / "lock", (time.time() - 60,) * 2)
    with runs.claim(tmp_path):
        pass


def test_claim_is_shared_with_what_was_started_under_it(tmp_path, monkeypatch):
    with runs.claim(tmp_path) as token:
        with pytest.raises(runs.RunBusy), runs.claim(tmp_path):
            pass
        monkeypatch.setenv(runs.CLAIM_VARIABLE, token)
        with runs.claim(tmp_path) as inner:
            assert inner == token
        assert (tmp_path / "lock").exists()


def test_collect_flattens_and_hides_nothing(root):
    good, bad, failed = root / "runs/a", root / "runs/grid/b", root / "runs/c"
    scores = {"protocol": "dias", "decoder": {"ari": 0.5, "miou": float("nan")}}
    for folder in (good, bad, failed):
        runs.write_json(folder / "config.json", {"seed": 7, "steps": 40, "device": "auto"})
    metrics = {"steps": 20, "seconds": 1.5, "scores": scores, "about": {"commit": "abc", "device": "cpu"}}
    runs.write_json(good / "metrics.json", metrics)
    runs.write_json(good / "scores/test-dias.json", scores | {"about": {"commit": "abc"}})
    (bad / "metrics.json").write_text("{")
    runs.write_json(failed / "error.json", {"ename": "ValueError", "evalue": "no"})
    table = runs.collect().set_index("run")
    assert list(table.index) == ["runs/a", "runs/c", "runs/grid/b"]
    row = table.loc["runs/a"]
    assert (row["state"], row["seed"], row["steps"], row["metrics.steps"]) == ("done", 7, 40, 20)
    assert row["scores.decoder.ari"] == row["test-dias.decoder.ari"] == 0.5
    assert row["test-dias.protocol"] == "dias"
    assert row["about.device"] == "cpu"
    assert table.loc["runs/grid/b", "state"] == "failed"
    assert "metrics.json" in table.loc["runs/grid/b", "problem"]
    assert table.loc["runs/c", "problem"] == "ValueError: no"
    assert runs.collect("nowhere").empty


@pytest.mark.parametrize("made, wanted, name", [("config.json", "runs/training", "training"), ("grid.toml", "runs/ablations", "ablation")])
def test_a_notebook_finds_its_run_else_the_newest_of_the_book(root, capsys, made, wanted, name):
    with pytest.raises(FileNotFoundError, match=rf"{wanted} or runs/book-\*/{name} .*notebooks/03_training.ipynb first, or `make run`"):
        runs.find(wanted, made_by="03_training")
    for book, seconds in (("book-new", 200), ("book-old", 100), ("book-empty", 300)):
        folder = root / "runs" / book / name
        folder.mkdir(parents=True)
        if book != "book-empty":
            _touch(folder / made, seconds)
    (root / wanted).mkdir()
    assert runs.find(wanted, "03_training") == root / "runs/book-new" / name
    assert capsys.readouterr().out == f"{wanted} holds no run; taken instead: runs/book-new/{name}\n"
    for path in (root / wanted, f"./runs/book-empty/{name}", "runs/mine", "elsewhere/training"):  # somebody chose it
        with pytest.raises(FileNotFoundError, match="make ablations first"):
            runs.find(path, "make ablations")
    _touch(root / wanted / made, 50)
    assert runs.find(wanted, "03_training") == root / wanted and capsys.readouterr().out == ""


def test_the_notebooks_defaults_are_paths_that_find_replaces(root):
    """What 04, 05 and 06 look for is what the book writes."""
    from dias_lab.book import parameters

    for name, parameter, folder in (("04", "run_dir", "training"), ("05", "ablation_dir", "ablation"), ("06", "run_dir", "training")):
        (notebook,) = (Path(__file__).parents[2] / "notebooks").glob(f"{name}*.ipynb")
        default = parameters.declared(notebook)[parameter][1]
        (root / f"runs/book-1/{folder}").mkdir(parents=True, exist_ok=True)
        (root / f"runs/book-1/{folder}/config.json").touch()
        assert runs.find(default, "03_training") == root / f"runs/book-1/{folder}", name
