"""Projects of one notebook each."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from toy_grids import write_notebook


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(*cells, parameters=source) makes a notebook; its execution goes to tmp_path / "out"."""
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))

    def write(*cells, parameters="x: int = 1", name="toy"):
        first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[first, *(new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells)])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")  # without metadata: which Python is not the notebook's to say
        return tmp_path / f"{name}.ipynb"

    return write


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A project's folder with the notebook of toy_grids, and a folder for scratch."""
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    write_notebook(tmp_path)
    return tmp_path
