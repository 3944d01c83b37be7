"""A grid: what its file asks for, what is refused, how its runs stand, what is stale."""

import io
import os
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from toy_grids import GRID, finish, make_grid, states_of, write_notebook

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.book import grid, grid_run, grid_table
from dias_lab.book.parameters import Refused
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.data.convert import scenes


@pytest.mark.parametrize("content", ["[]", "7", "null", "{", "", "[" * 100_000, '{"ename": 3}'])
def test_an_error_json_of_any_content_is_a_failed_run(content, root):
    unit = make_grid(root).runs[0]
    runs.write_text(unit.folder / "error.json", content)
    row = unit.look()
    assert row["state"] == "failed" and ("error.json" in row["problem"] or row["problem"] == "3: None")


def test_expansion_is_variants_times_axes_times_seeds(root):
    text = 'notebook = "unit.ipynb"\nseeds = [1, 2]\n[fixed]\nwidth = 3\nwait = 1\n[axes]\nkind = ["a", "b"]\n'
    text += '[[variants]]\nname = "plain"\n[[variants]]\nname = "wide one"\nwidth = 9\n'
    found = make_grid(root, text)
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


def base(root, seed, content="one"):
    """What tells one run's weights from another's."""
    folder = root / f"runs/base-{seed}"
    runs.write_json(folder / "config.json", Config().to_dict())
    runs.write_text(folder / "checkpoints/7/weights.safetensors", f"{content} {seed}")


FROM_BASES = """notebook = "unit.ipynb"
seeds = [1, 2]
[fixed]
parent = "runs/base-{seed}"
[axes]
merging = ["none", "merge"]
"""


def test_each_seed_may_start_from_its_own_base_whose_weights_count(root, capsys):
    write_notebook(root, "config = Config.from_parameters(globals())")
    base(root, 1)
    (root / "grid.toml").write_text(FROM_BASES)
    assert main(["grid", "start", "grid.toml", "--out", "runs/g", "--prepare-only"]) == 2
    assert "there is no run runs/base-2 to start from" in capsys.readouterr().err and not (root / "runs/g").exists()
    base(root, 2)
    found = make_grid(root, FROM_BASES)
    assert [run.parameters["parent"] for run in found.runs] == ["runs/base-1", "runs/base-2"] * 2
    assert found.settings == ["merging=none", "merging=merge"]
    for run in found.runs:
        finish(run)
    assert set(states_of("runs/g").values()) == {"done"}
    base(root, 2, "other")
    changed = grid.load("runs/g")
    assert [row["state"] for row in grid.status(changed)] == ["done", "todo"] * 2
    assert [why for _, why in grid.stale(changed)] == ["the parent changed"] * 2
    with pytest.raises(Refused, match="prepared for another version of the parent"):
        grid_run.run_one(found.runs[1].folder)
    base(root, 2)
    assert set(states_of("runs/g").values()) == {"done"}
    (root / "runs/g/grid.toml").write_text(FROM_BASES.replace('"none", ', ""))
    assert [why for _, why in grid.stale(grid.load("runs/g"))] == ["no longer in the grid file"] * 2
    (root / "runs/g/grid.toml").write_text(FROM_BASES)
    (root / "runs/base-1/config.json").unlink()
    assert [row["state"] for row in grid.status(grid.load("runs/g"))] == ["todo", "done"] * 2
    assert main(["grid", "resume", "runs/g"]) == 2 and "no run runs/base-1 to start from" in capsys.readouterr().err


def test_the_seed_may_stand_in_any_text(root):
    found = make_grid(root, 'notebook = "unit.ipynb"\n[fixed]\nkind = "of {seed}"\nmode = "{sead}"\n[axes]\nseed = [3, 4]\n')
    assert [run.parameters["kind"] for run in found.runs] == ["of 3", "of 4"] and found.runs[0].parameters["mode"] == "{sead}"
    found = make_grid(root, 'notebook = "unit.ipynb"\n[fixed]\nkind = "of {seed}"\n')
    assert found.runs[0].parameters["kind"] == "of {seed}"  # there is none


def test_a_notebook_must_take_its_run_directory(root):
    notebook = new_notebook(cells=[new_code_cell("seed: int = 1", metadata={"tags": ["parameters"]})])
    nbformat.write(notebook, root / "unit.ipynb")
    with pytest.raises(Refused, match="has no parameter run_dir"):
        make_grid(root)


def test_states_are_read_off_files(root, monkeypatch):
    found = make_grid(root)
    done, running, failed, interrupted, nothing, queued, *_ = found.runs
    finish(done)
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
    found = make_grid(root)
    for run in found.runs:
        finish(run)
    assert set(states_of("runs/g").values()) == {"done"}
    nb = nbformat.read(root / "unit.ipynb", as_version=4)
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(nb, root / "unit.ipynb")
    assert set(states_of("runs/g").values()) == {"done"}  # outputs change nothing
    write_notebook(root, "1 + 1")
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
    found = make_grid(root)
    for run in found.runs[:2]:
        finish(run)
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
    assert sorted(states_of("runs/moved").values()) == ["done"] * 2 + ["todo"] * 10
    (root / f"runs/moved/{found.runs[0].id}/run.json").write_text("{")  # not this run's, as far as anybody can tell
    assert sorted(states_of("runs/moved").values()) == ["done"] + ["todo"] * 11


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


ON_DATA = """notebook = "unit.ipynb"
seeds = [1, 2]
[fixed]
data = "data/mine"
"""


def same_number(data):
    """Another conversion, of as many scenes."""
    shutil.rmtree(data)
    scenes.convert(data, train=3, validation=2, test=1, difficulty="crowded")


def order_of(data):
    records = list(store.open(data / "train.lmdb"))
    store.write(data / "train.lmdb", records[::-1], store.open(data / "train.lmdb").meta)


def of_test(data):
    os.replace(data / "validation.lmdb", data / "test.lmdb")
    shutil.copy(data / "test.lmdb", data / "validation.lmdb")


def one_segment(data):
    records = list(store.open(data / "test.lmdb"))
    labels = np.array(Image.open(io.BytesIO(records[0].segments)))
    labels[np.nonzero(labels == 1)[0][0], np.nonzero(labels == 1)[1][0]] = 0
    store.write(data / "test.lmdb", [records[0]._replace(segments=labels), *records[1:]], store.open(data / "test.lmdb").meta)


@pytest.fixture
def on_data(root):
    """A finished grid of a notebook that builds its Config, with its data."""
    write_notebook(root, "config = Config.from_parameters(globals())")
    scenes.convert(root / "data/mine", train=3, validation=2, test=1, difficulty="shapes")
    found = make_grid(root, ON_DATA)
    for run in found.runs:
        finish(run)
    assert set(states_of("runs/g").values()) == {"done"}
    return found


@pytest.mark.parametrize("replace", [same_number, order_of, of_test, one_segment])
def test_runs_on_other_records_of_the_same_name_and_number_are_not_done(replace, on_data, root, capsys):
    shutil.copytree(root / "data/mine", root / "data/kept")
    replace(root / "data/mine")
    changed = grid.load("runs/g")
    assert {row["state"] for row in grid.status(changed)} == {"todo"} and not {run.id for run in on_data.runs} & {run.id for run in changed.runs}
    assert [why for _, why in grid.stale(changed)] == ["the data changed"] * 2
    with pytest.raises(Refused, match="prepared for another version of the data"):
        grid_run.run_one(on_data.runs[0].folder)
    assert main(["grid", "status", "runs/g"]) == 0 and f"stale       {on_data.runs[0].id}: the data changed" in capsys.readouterr().out
    shutil.rmtree(root / "data/mine")
    (root / "data/kept").rename(root / "data/mine")
    assert set(states_of("runs/g").values()) == {"done"}


def test_the_same_records_written_again_or_moved_are_the_same(on_data, root):
    before = store.open(root / "data/mine/train.lmdb").meta["conversion"]
    scenes.convert(root / "data/mine", train=3, validation=2, test=1, difficulty="shapes")
    assert store.open(root / "data/mine/train.lmdb").meta["conversion"] != before
    assert set(states_of("runs/g").values()) == {"done"}
    assert [run.id for run in grid.load("runs/g").runs] == [run.id for run in on_data.runs]


def test_without_their_data_results_are_stale_and_may_still_be_shown(on_data, root, capsys):
    shutil.rmtree(root / "data/mine")
    gone = grid.load("runs/g")
    assert [why for _, why in grid.stale(gone)] == ["the data changed"] * 2
    assert grid_table.table(gone, old=True).frame["n"].tolist() == [2]


def test_data_that_cannot_be_read_are_other_data(on_data, root):
    (root / "data/mine/train.lmdb").write_bytes(b"no store")
    assert {row["state"] for row in grid.status(grid.load("runs/g"))} == {"todo"}


def test_a_store_is_read_once_for_all_runs(on_data, root, monkeypatch):
    from dias_lab.data import lmdb_file

    assert states_of("runs/g")
    reads, read = [], lmdb_file.read
    monkeypatch.setattr(lmdb_file, "read", lambda path, *keys: reads.append(keys) or read(path, *keys))
    grid.load("runs/g")
    assert not [keys for keys in reads if keys != (b"meta",)]
