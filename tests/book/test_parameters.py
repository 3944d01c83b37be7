"""What a notebook's parameters cell takes, and what is refused before anything starts."""

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dias_lab import runs
from dias_lab.book import headless, parameters

CONFIG = "from dias_lab.config import Config\nconfig = Config.from_parameters(globals())"
DECLARED = "x: int = 1\nrate: float = 0.1\nname: str | None = None\nsizes: list[int] = [1]\nnum_slots: int = None"


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
