"""Where things are: the project's folder, the runs in it, and the package's own commit and versions."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
VERSIONED = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "scipy", "lmdb", "papermill", "plotly")
IN_A_BOOK = {"ablations": "ablation"}  # the folder of `make ablations`, and the small one of the book


def root() -> Path:
    """The project's folder, which relative paths start from.

    The environment variable DIAS_LAB_ROOT; else the nearest folder, from the working directory upwards, with this
    project's pyproject.toml; else the same from the package upwards; else (installed, used elsewhere) the working directory.
    """
    if os.environ.get("DIAS_LAB_ROOT"):
        return Path(os.environ["DIAS_LAB_ROOT"]).expanduser().resolve()
    here = Path.cwd()
    return next(filter(_is_project, (here, *here.parents, *PACKAGE.parents)), here)


def _is_project(folder: Path) -> bool:
    try:
        return tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"] == "dias-lab"
    except (OSError, KeyError, ValueError):
        return False


def resolve(path) -> Path:
    """An absolute path; a relative one starts at `root()`."""
    return root() / Path(path).expanduser()


def short(path) -> str:
    """The path from `root()` if it is inside, for messages and tables."""
    return resolve(path).as_posix().removeprefix(f"{root().as_posix()}/")


def find(path, made_by: str) -> Path:
    """The folder of a run, or of a grid, that a notebook is to read.

    path: where it is; a folder that holds one is taken as it is. The notebooks' defaults are `runs/NAME`; in place of such a
    path, and of no other, where nothing is there, the newest runs/book-*/NAME is taken (what `make run` left), and a line
    says so. made_by: the notebook that makes it ("03_training"), or a command ("make ablations"). FileNotFoundError, with
    the folders that were looked in and what to run first.
    """
    wanted, name = resolve(path), Path(path).name
    if _is_run(wanted):
        return wanted
    looked, books = [short(wanted)], []
    if Path(path).parts[:-1] == ("runs",):
        name = IN_A_BOOK.get(name, name)
        looked.append(f"runs/book-*/{name}")
        books = sorted(filter(_is_run, resolve("runs").glob(f"book-*/{name}")), key=_is_run)
    if books:
        print(f"{short(wanted)} holds no run; taken instead: {short(books[-1])}")
        return books[-1]
    notebook = made_by if " " in made_by or made_by.endswith(".ipynb") else f"notebooks/{made_by}.ipynb"
    raise FileNotFoundError(f"no run in {' or '.join(looked)} (below {root()}). Run {notebook} first, or `make run`")


def _is_run(folder: Path) -> int:
    """When what makes the folder a run, or a grid, was written last (ns); 0 where it is none."""
    files = [folder / name for name in ("config.json", "run.json", "grid.toml", "metrics.json")]
    times = [path.stat().st_mtime_ns if path.exists() else 0 for path in files]
    return max(times) if any(times[:3]) else 0


def about() -> dict:
    """What a result must carry besides its numbers: commit, versions, time. The caller adds the device."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in VERSIONED if _version(name)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"package": _version("dias-lab"), "commit": commit(), "created": now, "versions": versions}


@functools.cache
def introduction(place=None) -> str:
    """A notebook's first line of output: interpreter, commit, torch's device, and where things are read or written."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    where = "" if place is None else f"\n{short(resolve(place))}"
    name, _, dirty = (commit() or "outside git").partition("-")
    name = f"{name[:12]} with changes" if dirty else name[:12]
    return f"{sys.executable}\ndias_lab {name}, torch {torch.__version__}, {device}{where}"


def commit() -> str | None:
    """The commit of the package's own files, with "-dirty" when tracked files differ from it; None outside git."""

    def git(*words) -> str:
        return subprocess.check_output(["git", "-C", PACKAGE, *words], text=True, stderr=subprocess.DEVNULL).strip()

    try:  # a package installed inside somebody else's repository is not of that repository's commit
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # from metadata: nothing is imported
        return importlib.metadata.version(name)
