"""Where things are: the project's folder, the runs in it, commit and versions."""

import json
from pathlib import Path

import pytest

from dias_lab import runs


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


def test_about_names_versions_and_no_machine():
    import platform

    about = runs.about()
    assert {"package", "commit", "created", "versions"} == set(about)
    assert {"python", "torch", "numpy", "timm"} <= set(about["versions"])
    assert platform.node() not in json.dumps(about)
    assert len(runs.code_hash()) == 12


@pytest.mark.parametrize("made, wanted, name", [("config.json", "runs/training", "training"), ("grid.toml", "runs/ablations", "ablation")])
def test_a_notebook_finds_its_run_else_the_newest_of_the_book(root, touch, capsys, made, wanted, name):
    with pytest.raises(FileNotFoundError, match=rf"{wanted} or runs/book-\*/{name} .*notebooks/03_training.ipynb first, or `make run`"):
        runs.find(wanted, made_by="03_training")
    for book, seconds in (("book-new", 200), ("book-old", 100), ("book-empty", 300)):
        folder = root / "runs" / book / name
        folder.mkdir(parents=True)
        if book != "book-empty":
            touch(folder / made, seconds)
    (root / wanted).mkdir()
    assert runs.find(wanted, "03_training") == root / "runs/book-new" / name
    assert capsys.readouterr().out == f"{wanted} holds no run; taken instead: runs/book-new/{name}\n"
    for path in (root / wanted, f"./runs/book-empty/{name}", "runs/mine", "elsewhere/training"):  # somebody chose it
        with pytest.raises(FileNotFoundError, match="make ablations first"):
            runs.find(path, "make ablations")
    touch(root / wanted / made, 50)
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
