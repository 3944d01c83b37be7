"""The house: one folder for each question, imports that run downwards, budgets of lines."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dias_lab"
FILES = sorted(PACKAGE.rglob("*.py"))
# lowest first: a room imports from those below it, and from itself
ROOMS = [
    ["files"], ["trace", "contours"], ["config"], ["metrics", "runs"], ["data"], ["modules"], ["losses"], ["methods"], ["analysis"],
    ["heads", "prediction"], ["training"], ["reference"], ["book"], ["shell"], ["__main__"],
]  # fmt: skip
VIZ_MAY_IMPORT = {"trace", "files", "viz"}
# lines of Python, for all that is planned; a file has at most 300
BUDGETS = {
    "config": 960, "runs": 500, "data": 6115, "modules": 1610, "methods": 2100, "analysis": 1470, "heads": 450, "prediction": 1365,
    "training": 980, "reference": 915, "book": 1900, "shell": 800, "viz": 1400,
}  # fmt: skip
# tables that name what is imported on first use: methods are of many files, and help must be instant
TABLES = {"dias_lab", "dias_lab.config", "dias_lab.shell"}


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, inside functions too, and those that its strings name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: write `from dias_lab...`"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and module(path) not in TABLES:
            names = re.findall(r"^dias_lab\.[a-z_.]+", node.value)  # importlib, or `python -m`
        else:
            continue
        for name in (name for name in names if name.split(".")[0] == "dias_lab"):
            while name not in MODULES:
                name = name.rpartition(".")[0]  # a class or function of it
            found.add(name)
    return found - {"dias_lab"}


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downwards(name):
    rooms = {room(other) for other in IMPORTS[name]}
    if room(name) == "viz":
        assert rooms <= VIZ_MAY_IMPORT
        return
    order = {one: number for number, level in enumerate(ROOMS) for one in level}
    if name == "dias_lab":
        return
    assert room(name) in order, f"{name} is in no room of DESIGN's"
    allowed = {one for one in order if order[one] < order[room(name)]} | {room(name), "viz"}
    assert rooms <= allowed, f"{name} imports from above: {rooms - allowed}"


def test_nothing_imports_in_a_circle():
    """Files are taken away while they import nothing that is left; a circle would stay."""
    left = {name: set(others) - {name} for name, others in IMPORTS.items() if name not in TABLES}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("folder", BUDGETS)
def test_a_folder_keeps_its_budget(folder):
    count = sum(lines(path) for path in (PACKAGE / folder).rglob("*.py"))
    assert count <= BUDGETS[folder], f"{folder} has {count} lines"


def test_files_stay_short():
    assert {module(path): lines(path) for path in FILES if lines(path) > 300} == {}


def test_tests_follow_the_folders():
    folders = {path.parent.name for path in (PACKAGE.parent / "tests").glob("*/test_*.py")}
    assert folders <= BUDGETS.keys() and folders >= {folder.name for folder in PACKAGE.iterdir() if folder.name in BUDGETS}


def test_importing_the_package_is_light():
    code = "import sys, dias_lab; print([name for name in ('torch', 'numpy', 'pandas', 'timm') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=PACKAGE.parent, text=True).strip() == "[]"


@pytest.mark.parametrize("machine", ["del os.register_at_fork", "sys.platform = 'win32'", "del os.register_at_fork, os.fork; os.name = 'nt'"])
@pytest.mark.parametrize("name", ["dias_lab", "dias_lab.trace", "dias_lab.data.store"])
def test_on_windows_the_import_says_in_one_sentence_what_to_do(machine, name):
    code = f"import os, sys\n{machine}\ntry: import {name}\nexcept ImportError as error: print(error)"
    told = subprocess.check_output([sys.executable, "-c", code], cwd=PACKAGE.parent, text=True).strip()
    assert told == "dias_lab does not run on Windows itself: install and start it in WSL, the Windows Subsystem for Linux"


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "config" or name == "dias_lab.trace"])
def test_config_and_trace_need_no_torch(name):
    code = f"import sys, {name}; print([name for name in ('torch', 'timm', 'pandas') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=PACKAGE.parent, text=True).strip() == "[]"


def test_every_name_of_the_package_resolves():
    """In a process that has imported nothing else."""
    code = "import dias_lab\nfor name in dir(dias_lab):\n    assert name == '__main__' or getattr(dias_lab, name) is not None"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)
