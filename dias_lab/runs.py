"""The run directory: identity, status, atomic results, and one table of many runs.

A run's state is never stored; it is read off its files (config.json, metrics.json, error.json, lock), so that a killed
process cannot leave a lie behind. Every write goes to a file beside the target, is synced, and then takes the target's
name: a reader sees the old content or the new one, nothing between.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

from dias_lab.claims import CLAIM_VARIABLE, RunBusy, claim, holder  # noqa: F401 - runs.claim is their name elsewhere

PACKAGE = Path(__file__).resolve().parent
VERSIONED = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "scipy", "lmdb", "papermill", "plotly")


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
    """The folder of a run or a grid: `path`, or, where nothing is there, what the newest `make run` left under that name.

    Raises FileNotFoundError that names the folder and the notebook `made_by` that makes it.
    """
    folder = resolve(path)
    marks = ("config.json", "run.json", "grid.toml")
    if any((folder / mark).exists() for mark in marks):
        return folder
    names = (folder.name, folder.name.removesuffix("s")) if folder.parent == root() / "runs" else ()
    found = [one.parent for name in names for mark in marks for one in root().glob(f"runs/book-*/{name}/{mark}")]
    if found:
        return max(found, key=lambda one: one.stat().st_mtime)
    raise FileNotFoundError(f"there is no run in {folder}, and no book's in runs/book-*: run {made_by} first, or `make run`")


def write_text(path, text: str) -> None:
    """Replace the file's content at once, and only when all of it is on the disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Atomic JSON. NaN and infinities become null; NumPy and PyTorch scalars become numbers, paths become text."""
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{path} is not JSON: {error}") from None


def append_line(path, record: dict) -> None:
    """One JSON line at the end of the file. A line that a killed process left unfinished is dropped first."""
    line = (json.dumps(_plain(record), allow_nan=False) + "\n").encode()
    with open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)


def write_lines(path, records) -> None:
    """A whole file of records, at once."""
    write_text(path, "".join(json.dumps(_plain(record)) + "\n" for record in records))


def read_lines(path) -> list[dict]:
    """The records of a .jsonl file. Only the last line may be torn (kill -9 in the middle of writing); it is left out."""
    lines, records = Path(path).read_bytes().split(b"\n"), []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):  # a complete line is followed by another part, empty at the file's end
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    return records


def _plain(value):
    """`value` as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None  # false for NaN as well
    if hasattr(value, "item"):
        return _plain(value.item())
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON; pass numbers, text, lists or dicts")


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

    def git(*words):
        result = subprocess.run(["git", "-C", PACKAGE, *words], check=False, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None

    try:  # a package installed inside somebody else's repository is not of that repository's commit
        if git("ls-files", "--error-unmatch", "__init__.py") is None or not (name := git("rev-parse", "HEAD")):
            return None
        return name + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:  # no git
        return None


@functools.cache
def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # from metadata: nothing is imported
        return importlib.metadata.version(name)


def code_hash() -> str:
    """12 hexadecimal digits that change with any .py or .js file of the package."""
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".js")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def state(run_dir) -> str:
    """ "done", "running", "failed" or "todo", derived from the files.

    done: metrics.json, with no error.json after it; where a grid made the directory (run.json), the executed notebook's
    outcome.json as well. running: the lock of a live process. failed: error.json, with no config.json after it. Else
    todo: never started, or killed and ready to be resumed.
    """
    files = [Path(run_dir, name) for name in ("config.json", "metrics.json", "error.json", "run.json", "outcome.json")]
    times = {path.name: path.stat().st_mtime_ns for path in files if path.exists()}
    error = times.get("error.json", -1)
    executed = "outcome.json" in times or "run.json" not in times
    if executed and times.get("metrics.json", -1) > error:
        return "done"
    if holder(Path(run_dir) / "lock"):
        return "running"
    return "failed" if error >= 0 and error >= times.get("config.json", -1) else "todo"


def collect(folder="runs"):
    """One row per run below `folder` (a directory with config.json or run.json), as a pandas DataFrame.

    Columns: run (path below the project), state, problem; variant, seed and the parameters of a grid's run; the fields of
    Config; those of metrics.json with dots ("scores.decoder.ari", "scores.protocol", "about.commit", "about.device",
    "about.versions.torch"; "metrics.steps" where a field has the name already); those of outcome.json: run_seconds (wall
    time of the whole notebook) and peak_memory (bytes); and of scores/*.json ("test-dias.decoder.ari"). A file that
    cannot be read makes its run "failed" with the reason in `problem`.
    """
    import pandas

    folder = resolve(folder)
    found = {path.parent for name in ("config.json", "run.json") for path in folder.rglob(name)}
    rows = [row(path) for path in sorted(found)]
    return pandas.DataFrame(rows, columns=None if rows else ["run", "state", "problem"])


def row(run_dir: Path) -> dict:
    """What `collect` says of one run."""
    row = {"run": short(run_dir), "state": state(run_dir), "problem": None}

    def read(path: Path) -> dict:
        try:
            return dict(read_json(path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            row.update(state="failed", problem=f"{path.name}: {error}")
            return {}

    if row["state"] == "failed" and (error := read(run_dir / "error.json")):
        row["problem"] = f"{error.get('ename')}: {error.get('evalue')}"
    made = read(run_dir / "run.json")
    row.update({name: made[name] for name in ("variant", "seed") if name in made} | made.get("parameters", {}))
    row.update(read(run_dir / "config.json"))
    for key, value in flat(read(run_dir / "metrics.json")).items():
        row[f"metrics.{key}" if key in row else key] = value
    for key, value in flat(read(run_dir / "outcome.json")).items():
        row.setdefault(key, value)
    for path in sorted((run_dir / "scores").glob("*.json")):
        row.update(flat(read(path), f"{path.stem}."))
    return row


def flat(value: dict, prefix: str = "") -> dict:
    """A dict of dicts as one dict, its keys joined by dots."""
    pairs = {}
    for key, item in value.items():
        pairs.update(flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return pairs
