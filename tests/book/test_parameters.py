"""What a notebook's parameters cell takes, and what is refused before anything starts."""

import json

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dias_lab import runs
from dias_lab.book import headless, parameters

CONFIG = "from dias_lab.config import Config\nconfig = Config.from_parameters(globals())"
DECLARED = "x: int = 1\nrate: float = 0.1\nname: str | None = None\nsizes: list[int] = [1]\nnum_slots: int = None"


CELL = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "x: int = 1", "outputs": [], "execution_count": None}


@pytest.mark.parametrize(
    "cell",
    [0, None, [], {}, {"cell_type": "code", "metadata": {}}, CELL | {"source": [1]}, CELL | {"source": None}, CELL | {"metadata": []},
     CELL | {"metadata": {"tags": 3}}, CELL | {"outputs": 3}, CELL | {"outputs": [3]}],
)  # fmt: skip
def test_what_is_no_notebook_is_named(cell, tmp_path):
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [CELL, cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    with pytest.raises(parameters.Refused, match="n.ipynb cannot be read as a notebook"):
        parameters.check(path)


@pytest.mark.parametrize("text", ["null", "7", "[]", "{}", '{"cells": 3, "metadata": {}, "nbformat": 4}', '{"nbformat": 99}', "[" * 100_000, "", '"x"'])
def test_a_file_that_is_no_notebook_is_named(text, tmp_path):
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(parameters.Refused, match="n.ipynb cannot be read as a notebook"):
        parameters.check(tmp_path / "n.ipynb")


@pytest.mark.parametrize(
    "metadata, language",
    [
        ({"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}, "R"),
        ({"kernelspec": {"name": "ir"}}, "R"),
        ({"kernelspec": {"name": "julia-1.9", "language": "julia"}}, "julia"),
        ({"language_info": {"name": "bash"}}, "bash"),
        ({"kernelspec": {"name": "python3", "language": "python"}, "language_info": {"name": "python"}}, None),
        ({"kernelspec": {"name": "my-environment"}}, None),
        ({"language_info": {"name": "ipython"}}, None),
        ({}, None),
    ],
)
def test_a_notebook_in_another_language_is_refused(metadata, language, tmp_path):
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [CELL], "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}))
    if language is None:
        assert parameters.check(tmp_path / "n.ipynb", {"x": 2}) == {"x": 2}
        return
    with pytest.raises(parameters.Refused, match=f"n.ipynb is written in {language}, and only notebooks in Python"):
        parameters.check(tmp_path / "n.ipynb")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratte": 1.0}, "did you mean 'rate'"),
        ({"num_slotz": 4}, "did you mean 'num_slots'"),
        ({"x": 1.5}, "'x' must be int, got 1.5"),
        ({"x": True}, "must be int"),
        ({"name": 3}, "must be str | None"),
        ({"sizes": (1, 2)}, r"list\(...\)"),
        ({"x": np.int64(3)}, r"\.item\(\)"),
        ({"name": runs.PACKAGE}, r"str\(...\)"),
        ({"rate": float("nan")}, "JSON cannot hold"),
        ({"sizes": [1, {"a": np.float32(1)}]}, r"\[1\]\['a'\]"),
        ({"merging": "nonne"}, "did you mean 'none'"),
        ({"steps": "40"}, "Config.steps must be int"),
        ({"preset": "cocoo"}, "did you mean 'coco'"),
    ],
)
def test_refused_before_the_start(write, tmp_path, given, message):
    notebook = write(CONFIG, parameters=DECLARED + "\npreset: str = 'scenes'")
    with pytest.raises(parameters.Refused, match=message):
        headless.execute(notebook, "out", given)
    assert not (tmp_path / "out").exists()


def test_fields_of_config_count_only_where_config_is_built(write):
    assert parameters.check(write(CONFIG), {"merging": "none", "x": None}) == {"merging": "none", "x": None}
    with pytest.raises(parameters.Refused, match="no parameter 'merging'"):
        parameters.check(write("1"), {"merging": "none"})


def test_notebook_must_have_a_readable_parameters_cell(write, tmp_path):
    with pytest.raises(parameters.Refused, match="there is no notebook"):
        headless.execute("nowhere.ipynb", "out")
    with pytest.raises(parameters.Refused, match="literal"):
        headless.execute(write("1", parameters="x = dict(a=1)"), "out")
    with pytest.raises(parameters.Refused, match="cannot be read as a notebook"):
        (tmp_path / "torn.ipynb").write_text('{"cells": [')
        headless.execute("torn.ipynb", "out")
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "bare.ipynb")
    with pytest.raises(parameters.Refused, match="0 cells with the tag"):
        headless.execute("bare.ipynb", "out")
