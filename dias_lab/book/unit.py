"""A unit of work: one notebook with one set of parameters, executed into a directory of its own.

A step of the book is one, and so is a run of a grid. What was asked for stands in the directory (`record`), how it stands is
read off the files there. It is done when the record asks for the same (notebook's code, package's code, parameters, what it
needs), the notebook ended well, and what it makes is there; else whatever lies there is not taken for its result.
"""

import contextlib
import dataclasses
import time
from pathlib import Path

from dias_lab import runs
from dias_lab.book import headless, parameters
from dias_lab.book.parameters import Refused
from dias_lab.config import Config
from dias_lab.data.store import Store
from dias_lab.files import checksum
from dias_lab.runs import identity


def code_of(notebook) -> dict[str, str]:
    """The hashes of a notebook's code and of the package's code behind it; Refused where there is no such notebook."""
    parameters.read(notebook)
    return {"notebook": identity.notebook_hash(notebook), "package": identity.code_hash(notebook)}


def origins_of(notebook, values: dict) -> dict[str, str]:
    """Hashes of the records, and of the parent's weights, that a training with these parameters reads; "gone" if not there."""
    if not parameters.takes_config(notebook):
        return {}
    config = Config.from_parameters(values)
    found = {"data": "gone"} | ({"parent": "gone"} if config.parent else {})
    with contextlib.suppress(ValueError):
        found |= {"parent": runs.weights_hash(config.parent)} if config.parent else {}
    with contextlib.suppress(OSError, ValueError):
        stores = [Store(path).fingerprint() for path in sorted(runs.resolve(config.data).glob("*.lmdb"))]
        found |= {"data": checksum(stores, 12)} if stores else {}
    return found


LIMITS = {"minutes": ("timeout", 60), "memory_gb": ("memory", 1e9), "disk_gb": ("disk", 1e9)}  # for headless.execute


@dataclasses.dataclass
class Unit:
    folder: Path
    notebook: Path
    parameters: dict
    code: dict[str, str]  # `code_of` the notebook, and its `origins_of`
    setting: str = ""  # what units of different seeds have in common
    seed: int | None = None
    limits: dict = dataclasses.field(default_factory=dict)  # minutes, memory_gb, disk_gb
    makes: list[Path] | None = None  # patterns; by default metrics.json in its folder, as runs do
    needs: list = dataclasses.field(default_factory=list)  # what must not change or be repeated: each with digest() and ended()
    record: str = "run.json"  # by that name runs.collect knows a run

    def __post_init__(self):
        self.id = self.folder.name
        self.makes = [self.folder / "metrics.json"] if self.makes is None else self.makes

    @property
    def asked(self) -> dict:
        """What the record holds."""
        same = self.code | ({"needs": checksum([need.digest() for need in self.needs], 12)} if self.needs else {})
        made = {"variant": self.setting, "seed": self.seed, "notebook": runs.short(self.notebook), "identity": same}
        return made | {"parameters": self.parameters, "limits": self.limits}

    def digest(self) -> str:
        """Changes with whatever its result depends on."""
        return checksum(_compared(self.asked), 16)

    def ended(self) -> int:
        """When its notebook was last executed to the end (ns); -1: never."""
        return _time(self.folder / "outcome.json")

    def same(self) -> bool:
        """Whether what lies in the folder was made for the same."""
        return _compared(_read(self.folder / self.record)) == _compared(self.asked)

    def prepare(self) -> None:
        """Write the record; a notebook that deletes its own directory loses nothing else."""
        if _read(self.folder / self.record) != self.asked:
            runs.write_json(self.folder / self.record, self.asked)

    def execute(self, threads: int | None = None, environment: dict | None = None) -> headless.Outcome:
        """Run the notebook, done or not. Raises runs.RunBusy where another process does."""
        how = {name: self.limits[key] * factor for key, (name, factor) in LIMITS.items() if key in self.limits}
        outcome = headless.execute(self.notebook, self.folder, self.parameters, threads=threads, environment=environment, **how)
        self.prepare()
        return outcome

    def look(self, job: str | None = None) -> dict:
        """How it stands: id, setting, seed, state, problem, step, steps, loss, seconds.

        A state "interrupted" means: started, and neither finished nor failed. job: of Slurm, that was to execute it.
        """
        state, problem = self._state()
        if job and state not in ("done", "running"):
            queued = (runs.slurm_states() or {}).get(job)
            if queued and (queued not in ("RUNNING", "COMPLETING") or state in ("todo", "interrupted")):
                state, problem = "queued", None
        row = {"id": self.id, "setting": self.setting, "seed": self.seed, "state": state, "problem": problem}
        row |= dict.fromkeys(("step", "steps", "loss", "seconds"))
        if state == "done":
            row["seconds"] = _read(self.folder / "outcome.json").get("run_seconds")
        return row | (_progress(self.folder) if state == "running" else {})

    def _state(self) -> tuple[str, str | None]:
        error, ended = _time(self.folder / "error.json"), self.ended() if self.same() else -1
        absent = [path for path in self.makes if max(map(_time, path.parent.glob(path.name)), default=-1) <= error]
        if ended >= 0 and not absent and all(need.ended() <= ended for need in self.needs):
            return "done", None
        if runs.holder(self.folder / "lock"):
            return "running", None
        if error >= 0:
            try:
                known = runs.read_object(self.folder / "error.json")
            except (OSError, ValueError) as broken:
                return "failed", str(broken)
            if known.get("ename") != "Interrupted":
                return "failed", known.get("message") or f"{known.get('ename')}: {known.get('evalue')}"
        elif ended >= 0 and absent:
            missing = ", no ".join(f"{path.name} into {runs.short(path.parent)}" for path in absent)
            return "failed", f"{runs.short(self.folder / 'run.ipynb')} wrote no {missing}"
        return ("interrupted" if (self.folder / "log.txt").exists() else "todo"), None


def load(folder) -> Unit:
    """The unit that a grid prepared in this directory; Refused where there is none, or its code changed since."""
    folder = runs.resolve(folder)
    try:
        made = runs.read_object(folder / "run.json")
        notebook = runs.resolve(made["notebook"])
        unit = Unit(folder, notebook, made["parameters"], {}, made["variant"], made["seed"], made["limits"])
    except FileNotFoundError:
        raise Refused(f"{folder} holds no run.json: python -m dias_lab grid start makes the directories of runs") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{folder}/run.json cannot be read: {error}") from None
    defaults = {name: default for name, (_, default) in parameters.declared(notebook).items()}
    unit.code = code_of(notebook) | origins_of(notebook, defaults | unit.parameters)
    if changed := changes(made, unit.code):
        name, told = runs.short(folder.parent), f"{runs.short(folder)} was prepared for another version of the "
        way_out = f"make the directories anew: python -m dias_lab grid start {name}/grid.toml --out {name}"
        raise Refused(f"{told}{' and the '.join(changed)}; {way_out}")
    return unit


def changes(made: dict, code: dict[str, str]) -> list[str]:
    """What changed since the record was made: notebook, package, data, parent. Older identities: the package."""
    known = made.get("identity")
    return [name for name in code if known.get(name) != code[name]] if isinstance(known, dict) else ["package"]


def _compared(made: dict) -> list:
    """Identity and parameters; not where the results go, so that a folder may be moved."""
    given = made.get("parameters")
    return [made.get("identity"), isinstance(given, dict) and {name: given[name] for name in given if name != "run_dir"}]


def _time(path: Path) -> int:
    """When the file was written (ns); -1 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _read(path: Path) -> dict:
    """A JSON file; empty where there is none, or what is there is broken or something else."""
    with contextlib.suppress(OSError, ValueError):
        return runs.read_object(path)
    return {}


def _progress(folder: Path) -> dict:
    """Step, steps, loss of a training that runs, as far as its files tell; seconds since the start."""
    found = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there yet, or a notebook that logs otherwise
        found["seconds"] = time.time() - (folder / "lock").stat().st_mtime
        found["steps"] = runs.read_object(folder / "config.json").get("steps")
        lines = [line for line in runs.read_lines(folder / "metrics.jsonl") if "step" in line and "loss" in line]
        found |= {name: lines[-1][name] for name in ("step", "loss") if lines}
    return found
