"""What changes a run's identity, and what does not: in a small package of the same form, and in this one."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import dias_lab
from dias_lab import runs
from dias_lab.runs import identity

PACKAGE = {
    "__init__.py": '"""A package."""\nimport importlib\n__version__ = "1"\n_HOME = {"fit": "dias_lab.training.loop", "Lazy": "dias_lab.lazy"}\n'
    "def __getattr__(name):\n    return getattr(importlib.import_module(_HOME[name]), name)\n",
    "training/loop.py": '"""Trains."""\nfrom dias_lab import data\nfrom dias_lab.methods import build\n\n\ndef fit():\n    """Fits."""\n'
    "    from dias_lab.late import RATE  # inside\n\n    return build(), RATE, data.store.open\n",
    "late.py": "RATE = 0.1\n",
    "methods/__init__.py": '"""Methods."""\nTABLE = {"one": "dias_lab.methods.one:One"}\n\n\ndef build():\n    return TABLE\n',
    "methods/one.py": "from .. import losses\n\n\nclass One:\n    weight = 1\n    loss = losses.WEIGHT\n",
    "losses.py": "WEIGHT = 2\n",
    "data/__init__.py": "",
    "data/store.py": "open = 1\n",
    "data/unused.py": "x = 1\n",
    "lazy.py": "Lazy = 1\n",
    "book/gallery.py": "from dias_lab import scores\n",
    "scores.py": "x = 1\n",
    "viz/__init__.py": '_HOME = {"explore": "explorer"}\n',
    "viz/explorer.py": "x = 1\n",
    "viz/explorer.js": "x = 1",
    "shell/grid.py": "x = 1\n",
}
CELLS = ["seed: int = 1", "from dias_lab import fit\nfrom dias_lab.viz import explore\nfrom dias_lab.book import gallery", "fit()"]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write({name: text}) changes files of a package with one method from outside; gives both hashes of a notebook."""
    outside = tmp_path / "site/our_methods"
    for folder, files in ((tmp_path / "dias_lab", PACKAGE), (outside, {"__init__.py": "", "ours.py": "from our_methods.part import x\n"})):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    (outside / "part.py").write_text("x = 1\n")
    (outside / "other.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(outside.parent))
    entry = importlib.metadata.EntryPoint("ours", "our_methods.ours:Ours", "dias_lab.methods")
    monkeypatch.setattr(identity, "entry_points", lambda group: [entry] if group == "dias_lab.methods" else [])

    def write(files=None, cells=CELLS, text="# Title") -> tuple[str, str]:
        for name, content in (files or {}).items():
            (tmp_path / ("site" if name.startswith("our_") else "dias_lab") / name).write_text(content)
        tagged = [new_code_cell(cell, metadata={"tags": ["parameters"] * (cell == cells[0])}) for cell in cells]
        nbformat.write(new_notebook(cells=[new_markdown_cell(text), *tagged]), tmp_path / "unit.ipynb")
        notebook = tmp_path / "unit.ipynb"
        return identity.notebook_hash(notebook), identity.code_hash(notebook, tmp_path / "dias_lab")

    return write


def test_words_and_pictures_change_nothing(write):
    before = write()
    assert write(text="# Another title") == before
    assert write(cells=[CELLS[0] + "  # of all", *CELLS[1:]]) == before
    words = PACKAGE["training/loop.py"].replace('"""Trains."""', '"""Learns."""\n# how\n\n').replace("Fits", "Adapts")
    assert words != PACKAGE["training/loop.py"] and write({"training/loop.py": words}) == before
    assert write({"late.py": "RATE = (\n    0.1\n)\n"}) == before
    for name in ("book/gallery.py", "viz/explorer.py", "viz/explorer.js", "viz/new.py", "shell/grid.py"):  # what only shows
        assert write({name: PACKAGE.get(name, "") + "y = 2\n"}) == before, name
    for name in ("data/unused.py", "data/new.py", "lazy.py", "our_methods/other.py"):  # what nobody imports
        assert write({name: "x = 2\n"}) == before, name
    init = PACKAGE["__init__.py"].replace('"1"', '"2"').replace('"Lazy":', '"more": "dias_lab.more", "Lazy":')
    train = PACKAGE["training/loop.py"].replace('Fits."""', 'Fits."""\n    "dias_lab.lazy"')  # a string that stands alone
    assert train != PACKAGE["training/loop.py"] and write({"__init__.py": init, "training/loop.py": train}) == before


@pytest.mark.parametrize(
    "name, text",
    [
        ("training/loop.py", PACKAGE["training/loop.py"] + "x = 1\n"),
        ("late.py", "RATE = 0.2\n"),  # imported in a function
        ("methods/__init__.py", PACKAGE["methods/__init__.py"] + "x = 1\n"),
        ("methods/one.py", PACKAGE["methods/one.py"].replace("weight = 1", "weight = 2")),  # named in a table
        ("losses.py", "WEIGHT = 3\n"),  # a relative import
        ("data/store.py", "open = 2\n"),  # an attribute of a package
        ("scores.py", "x = 2\n"),  # behind what is left out
        ("our_methods/ours.py", "from our_methods.part import x\ny = 1\n"),
        ("our_methods/part.py", "x = 2\n"),
    ],
)
def test_what_the_notebook_reaches_changes_its_hash(write, name, text):
    before = write()
    after = write({name: text})
    assert after[0] == before[0] and after[1] != before[1]


def test_cells_change_the_notebook_s_hash(write):
    before = write()
    assert write(cells=[*CELLS[:2], "fit( )  # all"]) == before
    for cells in ([*CELLS[:2], "fit(2)"], CELLS[:2], ["x = 1", *CELLS]):
        after = write(cells=cells)
        assert after[0] != before[0] and after[1] == before[1]


@pytest.mark.parametrize(
    "cell",
    ["from dias_lab import Lazy", "import dias_lab\ndias_lab.Lazy", "import dias_lab as d\nd.lazy.Lazy", "%time x\n!ls\nfrom dias_lab import lazy",
     "x = importlib.import_module('dias_lab.lazy')", "what? not Python"],
)  # fmt: skip
def test_every_way_to_import_counts(write, cell):
    cells = [*CELLS, cell]
    before = write(cells=cells)
    assert write({"lazy.py": "Lazy = 2\n"}, cells)[1] != before[1]


def test_a_method_without_source_counts_by_its_version(write, monkeypatch):
    found = {}
    for version in ("1", "2"):
        dist = type("Distribution", (), {"version": version})
        entry = type("Entry", (), {"module": "math.compiled", "value": "math.compiled:X", "dist": dist})
        monkeypatch.setattr(identity, "entry_points", lambda group, entry=entry: [entry])
        found[version] = write()[1]
    assert found["1"] != found["2"] and len(found["1"]) == 12


def test_lazy_names_of_the_package_lead_where_they_live():
    for name in set(dir(dias_lab)) - {"__version__", *identity.LEFT_OUT}:
        value = getattr(dias_lab, name)
        home = getattr(value, "__module__", None) or value.__name__
        assert home in set(identity.reached([f"from dias_lab import {name}"])), name


def test_what_the_notebooks_really_import_is_reached():
    """The modules of the package that their imports and a model bring into a process."""
    cells = [source for path in Path(__file__).parents[2].glob("notebooks/0[3467]*.ipynb") for source, _ in identity._cells(path)]
    imports = "\n".join(line for cell in cells for line in cell.splitlines() if re.match(r"(from|import) \S.*[^(]$", line))
    code = f"{imports}\nimport json, sys\nfrom dias_lab import Config, build\n"
    code += "build(Config.preset('shapes', backbone_size=128, fourier_dim=16, fourier_stride=16))\n"
    code += "print(json.dumps([name for name in sys.modules if name.startswith('dias_lab.')]))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1])
    counted = {module for module in loaded if module.split(".")[1] not in identity.LEFT_OUT}
    assert len(counted) > 30 and counted <= set(identity.reached(cells))


def test_a_training_does_not_depend_on_what_only_shows_it():
    modules = identity.reached([identity.TRAINING]).keys()
    found = {module.removeprefix("dias_lab.").split(".")[0] for module in modules}
    assert {"config", "losses", "runs", "methods", "modules", "training"} <= found
    assert not found & {"book", "shell", "viz", "__main__"}
    assert not modules & {"dias_lab.analysis.compare", "dias_lab.analysis.sweep", "dias_lab.data.summary"}
    assert runs.code_hash() == identity.code_hash() and len(runs.code_hash()) == 12
