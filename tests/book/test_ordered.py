"""The ordered notebooks: what each gets, what is reused, skipped and refused."""

import dataclasses
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dias_lab import runs
from dias_lab.book import grid, ordered
from dias_lab.book.unit import Unit
from dias_lab.data.convert import scenes

CONFIG = "from dias_lab import runs\nfrom dias_lab.config import Config\nconfig = Config.from_parameters(globals())"
CONVERT = "from dias_lab import runs\np = runs.resolve(data)\np.mkdir(parents=True, exist_ok=True)\n(p / 'train.lmdb').touch()"
TRAIN = """folder = runs.resolve(run_dir)
with runs.claim(folder):
    runs.write_json(folder / "config.json", config.to_dict())
    assert config.merging != "merge"
    runs.write_json(folder / "metrics.json", {"steps": config.steps})"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    monkeypatch.setattr(runs.identity, "code_hash", lambda notebook: "0")  # whoever edits the package meanwhile
    (tmp_path / "notebooks/grids").mkdir(parents=True)
    small = 'notebook = "notebooks/03_training.ipynb"\n[axes]\nmerging = ["none", "merge"]\n'  # the second one fails in TRAIN
    (tmp_path / ordered.ABLATION).write_text(small)
    return tmp_path


def _write(root, name, parameters, *cells, title="# Title\n\nA *question*? More."):
    first = [new_markdown_cell(title), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    notebook = new_notebook(cells=[*first, *(new_code_cell(cell) for cell in cells)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, root / f"notebooks/{name}.ipynb")


def _states(output: str) -> dict[str, str]:
    """Step name -> first word of its line ("" for executed steps)."""
    rows = re.findall(r"^(reused|skipped|failed|done|\s+[\d.]+ s)\s+([\w=-]+?)(?:-[0-9a-f]{10})?(?=[ :.])", output, re.MULTILINE)
    return {name: word if word.isalpha() else "ran" for word, name in rows}


def test_book_runs_reuses_and_reports(root, capsys):
    _write(root, "01_data", "data: str = ''", CONVERT)
    _write(root, "03_training", "preset: str = None\nsteps: int = None\nrun_dir: str = ''", CONFIG, TRAIN)
    _write(root, "05_ablations", "ablation_dir: str = ''", "from dias_lab import runs\nlen(runs.collect(ablation_dir))")
    options = ordered.Options(num_slots=5, only=["01", "05"])
    assert ordered.run(options) == 1  # one run of the ablation fails, the others and 05 do not
    out = capsys.readouterr().out
    assert _states(out) == {"01_data": "ran", "merging=none": "done", "merging=merge": "failed", "05_ablations": "ran"}
    assert "AssertionError" in out
    (folder,) = (root / "runs").glob("book-*")
    (run,) = folder.glob("ablation/merging=none-*")
    config = runs.read_json(run / "config.json")
    assert (config["num_slots"], config["merging"], config["steps"], config["data"]) == (5, "none", 80, "data/scenes")
    assert nbformat.read(folder / "05_ablations/run.ipynb", 4).cells[-1].outputs[0].data["text/plain"] == "2"

    (root / "data/scenes/train.lmdb").unlink()  # what a step made is gone: it is made again, and so is what follows
    _write(root, "05_ablations", "ablation_dir: str = ''", "1")
    assert ordered.run(ordered.Options(num_slots=5, only=["01"])) == 0
    assert _states(capsys.readouterr().out) == {"01_data": "ran"}
    assert ordered.run(ordered.Options(num_slots=5, only=["01"])) == 0
    assert _states(capsys.readouterr().out) == {"01_data": "reused"}


@pytest.mark.parametrize("old", ['{"identity": "0123456789abcdef", "done": true, "seconds": 1.0}', '{"identity": {"note', "[]"])
def test_a_step_of_an_older_version_is_repeated(root, capsys, old):
    """And so is one that does not leave what it is there for, after saying so: the rule of a grid's runs."""
    _write(root, "00_tour", "x: int = 1", "x")
    _write(root, "03_training", "run_dir: str = ''", "run_dir")
    folder, _ = ordered.plan(ordered.Options(ablation=False))
    runs.write_text(folder / "00_tour/step.json", old)
    runs.write_json(folder / "00_tour/outcome.json", {"run_seconds": 1.0})
    assert ordered.run(ordered.Options(ablation=False)) == 1
    out = capsys.readouterr().out
    assert _states(out)["00_tour"] == "ran" and re.search(r"failed .*03_training/run.ipynb wrote no metrics.json into \S+/training\n", out)
    runs.write_json(folder / "training/metrics.json", {"steps": 1})
    assert ordered.run(ordered.Options(ablation=False)) == 0
    assert _states(capsys.readouterr().out) == {"00_tour": "reused", "03_training": "reused"}


def test_dependents_of_a_failure_are_skipped(root, capsys):
    _write(root, "00_tour", "x: int = 1", "x")
    _write(root, "01_data", "x: int = 1", "1/0")
    _write(root, "03_training", "x: int = 1", "x")
    _write(root, "04_maps", "x: int = 1", "x")
    assert ordered.run(ordered.Options(ablation=False)) == 1
    captured = capsys.readouterr().out
    assert _states(captured) == {"00_tour": "ran", "01_data": "failed", "03_training": "skipped", "04_maps": "skipped"}
    assert "01_data.ipynb, cell 3 of 3, line 1 (1/0): ZeroDivisionError" in captured
    page = (root / "site/index.html").read_text()
    assert re.search(r'href="scenes-\w+/01_data.html#error"', page)
    (shown,) = (root / "site").glob("scenes-*/01_data.html")
    assert 'id="error"' in shown.read_text()


def test_each_notebook_gets_what_it_declares(root):
    _write(root, "01_data", "root: str | None = None\ndata: str = ''", "1")
    _write(root, "02_method", "x: int = 1", "1")
    _write(root, "03_training", "preset: str = 'scenes'\nrun_dir: str = ''", CONFIG)
    _write(root, "04_maps", "trace: str = ''\nbook: str = ''", "1")
    photos = root / "photos"
    photos.mkdir()
    options = ordered.Options(preset="voc", data=str(photos), steps=41, image_mean="0.5")
    folder, steps = ordered.plan(options)
    given = {step.id: step.parameters for step in steps}
    name, data = runs.short(folder), given["01_data"]["data"]
    assert re.fullmatch(r"data/voc-[0-9a-f]{8}", data)
    assert given["01_data"] == {"root": str(photos), "data": data}
    assert given["02_method"] == {}
    fields = {"preset": "voc", "steps": 41, "image_mean": "0.5", "data": data}
    assert given["03_training"] == fields | {"run_dir": f"{name}/training"}
    assert given["04_maps"] == {"trace": f"{name}/training/trace.npz", "book": name}

    (photos / "train.lmdb").touch()
    assert ordered.plan(options)[1][0].parameters == {"data": str(photos)}

    _write(root, "05_ablations", "ablation_dir: str = ''", "1")
    (ablation,) = [step for step in ordered.plan(options)[1] if isinstance(step, grid.Grid)]
    assert ablation.tables["changed"] == {"preset": "voc", "data": str(photos), "image_mean": "0.5", "steps": 11}
    assert runs.short(ablation.folder) == ordered.plan(options)[1][-1].parameters["ablation_dir"]
    assert [need.id for need in ordered.plan(options)[1][-1].needs] == ["ablation"]
    assert [need.id for need in ablation.needs] == ["01_data"]
    given = ordered.plan(dataclasses.replace(options, merging="none", ablation_dir="runs/mine"))[1]
    assert all(isinstance(step, Unit) for step in given)  # no small grid
    assert given[-1].parameters["ablation_dir"] == str(Path.cwd() / "runs/mine")


def test_the_ablation_starts_from_the_shipped_model(root):
    """On toys, with nothing changed that its weights depend on; all else is trained from the start."""
    _write(root, "01_data", "data: str = ''", "1")
    _write(root, "03_training", "preset: str = 'scenes'\nrun_dir: str = ''", CONFIG)
    _write(root, "05_ablations", "ablation_dir: str = ''", "1")
    (root / "mine").mkdir()
    (root / "mine/train.lmdb").touch()
    ways = ({}, dict(preset="shapes"), dict(data=str(root / "mine")), dict(num_slots=5))
    for options, data in zip(ways, ("data/scenes", "data/shapes", str(root / "mine"), "data/scenes")):
        _, _, ablation, _ = ordered.plan(ordered.Options(**options))[1]
        changed = ablation.tables["changed"]
        assert changed.get("parent") == (None if options else str(runs.PACKAGE / "shipped"))
        assert changed["data"] == data and (changed.get("num_slots") == 5) == ("num_slots" in options)


def test_identity_changes_with_what_matters(root, monkeypatch):
    _write(root, "01_data", "x: int = 1", "1")
    _write(root, "03_training", "x: int = 1", CONFIG)

    def identities(**options):
        folder, steps = ordered.plan(ordered.Options(ablation=False, **options))
        return folder, [step.digest() for step in steps]

    folder, before = identities()
    assert identities(jobs=1, only=["03"]) == (folder, before)
    other, after = identities(seed=7)
    assert other != folder
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
    _write(root, "01_data", "x: int = 1", "2")
    assert all(new != old for new, old in zip(identities()[1], before, strict=True))
    monkeypatch.setattr(runs.identity, "code_hash", lambda notebook: "1")
    assert identities()[1] != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "coco"}, "--data"),
        ({"preset": "cocoo"}, "did you mean 'coco'"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"merging": "nonne"}, "did you mean 'none'"),
        ({"data": "nowhere"}, "there is no"),
        ({"only": ["07"]}, "there is no such notebook"),
        ({"jobs": 0}, "at least 1"),
    ],
)
def test_refused_before_the_start(root, capsys, options, message):
    _write(root, "00_tour", "x: int = 1", "1")
    assert ordered.run(ordered.Options(**options)) == 2
    assert message in capsys.readouterr().err
    assert not (root / "runs").exists()


def test_options_have_every_field_of_config():
    from dias_lab.config import Config

    values = {name: getattr(ordered.Options(), name) for name in Config.field_names()}
    assert set(values.values()) == {None}


def test_a_training_that_other_code_made_is_set_aside_and_not_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    out, training = tmp_path / "runs/book/03", tmp_path / "runs/book/training"
    (training / "checkpoints/500").mkdir(parents=True)
    out.mkdir()
    ordered._set_aside(Unit(out, tmp_path / "03.ipynb", {}, {}, makes=[training / "metrics.json"]))
    assert not training.exists() and not out.exists()
    assert len(list(tmp_path.glob("runs/replaced/training-*/checkpoints/500"))) == 1


def test_other_records_in_the_users_own_stores_are_another_training(root, capsys):
    _write(root, "01_data", "data: str = ''", "data")
    _write(root, "03_training", "preset: str = None\nrun_dir: str = ''", CONFIG, TRAIN)
    scenes.convert(root / "mine", train=2, validation=1, test=1, difficulty="shapes")
    options = ordered.Options(data=str(root / "mine"), ablation=False)
    for expected in ("ran", "reused"):
        assert ordered.run(options) == 0
        assert _states(capsys.readouterr().out)["03_training"] == expected
    scenes.convert(root / "mine", train=2, validation=1, test=1, difficulty="crowded")
    assert ordered.run(options) == 0
    assert _states(capsys.readouterr().out) == {"01_data": "reused", "03_training": "ran"}
