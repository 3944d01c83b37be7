"""A grid: many runs of one notebook. A TOML file says what they are; how they stand, and what is stale, their directories.

    notebook = "notebooks/03_training.ipynb"   # from the project's folder
    seeds = [42, 43, 44]                       # the parameter `seed`; may be left out
    [fixed]                                    # parameters of every run; in a text, here and below, {seed} is the run's seed
    steps = 300
    [axes]                                     # every combination of these
    merging = ["none", "reinitialize"]
    [[variants]]                               # and of these; what a variant sets goes before [fixed]
    name = "seven slots"
    num_slots = 7
    [limits]                                   # of one run: minutes, memory_gb, disk_gb
    minutes = 60
    [table]                                    # metrics (columns of runs.collect), baseline (a setting)
    [slurm]                                    # parameters of submitit: timeout_min, gpus_per_node, partition, ...
    [changed]                                  # what `start --fixed` was given: goes before [fixed]

A run is a `Unit`; the name of its directory carries a hash of its identity. So results of a changed notebook or package, or
of other data, are never taken for new ones: they stay, and are listed as stale.
"""

import dataclasses
import itertools
import json
import re
import tomllib
from pathlib import Path

from dias_lab import runs
from dias_lab.book import parameters
from dias_lab.book.parameters import Refused
from dias_lab.book.unit import LIMITS, Unit, changes, code_of, origins_of
from dias_lab.config import nearest
from dias_lab.files import checksum

TABLES = {"notebook": "text", "seeds": "a list", "variants": "a list"}
TABLES |= dict.fromkeys(("fixed", "axes", "limits", "table", "slurm", "changed"), "a table")
STATES = ("done", "running", "queued", "failed", "interrupted", "todo")


@dataclasses.dataclass
class Grid:
    folder: Path
    notebook: Path
    runs: list[Unit]
    tables: dict  # the TOML file's own
    needs: list[Unit] = dataclasses.field(default_factory=list)  # to be executed before; of no weight for what is done

    def __post_init__(self):
        self.id = self.folder.name

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(run.setting for run in self.runs))

    def prepared(self, wanted) -> list[Unit]:
        """The runs with these ids; their records are written."""
        chosen = [run for run in self.runs if run.id in wanted]
        for run in chosen:
            run.prepare()
        return chosen

    def digest(self) -> str:
        """Changes with whatever its runs or its table depend on."""
        return checksum([[run.digest() for run in self.runs], self.tables], 16)

    def ended(self) -> int:
        """When a run of it was last executed to the end (ns); -1: never."""
        return max(run.ended() for run in self.runs)


def load(folder) -> Grid:
    """The grid that `start` made in this directory; Refused if there is none, or its notebook no longer takes it."""
    folder = runs.resolve(folder)
    if not (folder / "grid.toml").exists():
        raise Refused(f"there is no grid in {folder}: python -m dias_lab grid start FILE --out {runs.short(folder)}")
    return read(folder / "grid.toml", folder)


def read(file, folder, given: dict | None = None) -> Grid:
    """The grid that a TOML file describes, with its runs in `folder`; Refused, with the place, for whatever is wrong.

    given: fixed parameters that go before those of the file.
    """
    file, folder = runs.resolve(file), runs.resolve(folder)
    tables = _tables(file)
    tables["changed"] = tables.get("changed", {}) | (given or {})
    notebook = runs.resolve(tables["notebook"])
    known = {name: default for name, (_, default) in parameters.declared(notebook).items()}
    if "run_dir" not in known:
        raise Refused(f"{notebook} has no parameter run_dir; by it, a grid tells each run where its results go")
    found, ids, own = [], {}, code_of(notebook)
    for setting, choice, places, seed in _combinations(file, tables):
        try:
            parameters.check(notebook, choice)
        except Refused as error:
            wrong = str(error).partition(";")[0]  # without the names that it might have been
            about = [place for name, place in places.items() if re.search(rf"\b{re.escape(name)}\b", wrong)]
            raise Refused(f"{file}, {', '.join(about) or setting}: {error}") from None
        effective = json.dumps(known | choice, sort_keys=True)
        label = setting if seed is None else f"{setting}, seed {seed}"
        if effective in ids:
            raise Refused(f"{file}: {label!r} is the same run as {ids[effective]!r}; leave one of them out")
        ids[effective] = label
        code = own | origins_of(notebook, known | choice)
        name = f"{re.sub(r'[^A-Za-z0-9.=]+', '-', label).strip('-')[:60]}-{checksum([code, choice], 10)}"
        values = choice | {"run_dir": runs.short(folder / name)}
        found.append(Unit(folder / name, notebook, values, code, setting, seed, tables["limits"]))
    return Grid(folder, notebook, found, tables)


def changed(text: str, values: dict) -> str:
    """A grid file's text with other fixed parameters (`read` has accepted them); Refused where it has some already."""
    if values and "changed" in tomllib.loads(text):
        raise Refused("this grid was started with --fixed already; give --fixed with the file that it was made from")
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
    return text if not values else f"{text.rstrip()}\n\n[changed]\n{''.join(lines)}"


def _tables(file: Path) -> dict:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"there is no grid file {file}") from None
    except (OSError, ValueError) as error:  # TOMLDecodeError tells line and column
        raise Refused(f"{file} cannot be read as TOML: {error}") from None
    for name, value in tables.items():
        if name not in TABLES:
            raise Refused(f"{file}: there is no {name!r} in a grid{nearest(name, TABLES)}; parameters go below [fixed]")
        if TABLES[name] != {str: "text", list: "a list", dict: "a table"}.get(type(value)):
            raise Refused(f"{file}: {name} must be {TABLES[name]}, got {value!r}")
    if "notebook" not in tables:
        raise Refused(f'{file} does not say which notebook: notebook = "notebooks/03_training.ipynb"')
    for name, value in tables.setdefault("limits", {}).items():
        if name not in LIMITS:
            raise Refused(f"{file}, [limits]: there is no limit {name!r}{nearest(name, LIMITS)}; there are {', '.join(LIMITS)}")
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise Refused(f"{file}, [limits] {name}: must be a number above 0, got {value!r}")
    return tables


def _combinations(file: Path, tables: dict):
    """Of each run: setting, parameters, where the file says each of them, and seed."""
    fixed, axes = tables.get("fixed", {}) | tables["changed"], tables.get("axes", {})
    seeds, variants = tables.get("seeds", [None]), tables.get("variants", [{}])
    for name, values in [("seeds", seeds), ("variants", variants), *((f"[axes] {axis}", axes[axis]) for axis in axes)]:
        if type(values) is not list or not values:
            raise Refused(f"{file}, {name}: must be a list with at least one value, got {values!r}")
        if twice := [value for number, value in enumerate(values) if value in values[:number]]:
            raise Refused(f"{file}, {name}: {twice[0]!r} is there twice")
    if wrong := [seed for seed in seeds if seed is not None and type(seed) is not int]:
        raise Refused(f"{file}, seeds: must be whole numbers, got {wrong[0]!r}")
    origins = {name: f"[{'changed' if name in tables['changed'] else 'fixed'}] {name}" for name in fixed}
    varied = {axis: f"[axes] {axis}" for axis in axes} | ({} if seeds == [None] else {"seed": "seeds"})
    names = []
    for number, variant in enumerate(variants, start=1):
        place = f"[[variants]] number {number}"
        if type(variant) is not dict or "variants" in tables and not (variant.get("name") and type(variant["name"]) is str):
            raise Refused(f'{file}, {place}: needs a name: name = "..."')
        names.append(variant.get("name"))
        if names.count(names[-1]) > 1:
            raise Refused(f"{file}, {place}: the name {names[-1]!r} is there twice")
        own = {name: value for name, value in variant.items() if name != "name"}
        places = origins | {name: f"{place} ({names[-1]}), {name}" for name in own}
        for name in places.keys() & {*varied, "run_dir"}:
            raise Refused(f"{file}, {places[name]}: {varied.get(name, 'the grid')} sets it as well")
        for *chosen, seed in itertools.product(*axes.values(), seeds):
            choice = dict(zip(axes, chosen))
            texts = (value if type(value) is str else json.dumps(value, default=str) for value in chosen)
            setting = ", ".join(filter(None, [names[-1], *map("{}={}".format, axes, texts)])) or "all"
            values = fixed | own | choice | ({} if seed is None else {"seed": seed})
            marked = [name for name, value in values.items() if type(value) is str and "seed" in values]
            values |= {name: values[name].replace("{seed}", str(values["seed"])) for name in marked}
            yield setting, values, places | varied, seed


def job_of(grid: Grid) -> dict[str, str]:
    """The last Slurm job of each run, by the run's id."""
    path = grid.folder / "slurm/jobs.jsonl"
    return {line["id"]: line["job"] for line in runs.read_lines(path)} if path.exists() else {}


def status(grid: Grid) -> list[dict]:
    """How every run of the grid stands (`Unit.look`), in the grid's order."""
    jobs = job_of(grid)
    return [run.look(jobs.get(run.id)) for run in grid.runs]


def stale(grid: Grid) -> list[tuple[Path, str]]:
    """Run directories that are there and that the grid no longer asks for, each with the reason."""
    wanted, found = {run.id for run in grid.runs}, []
    known = {(run.setting, run.seed): run.code for run in grid.runs}
    for path in sorted(path for path in grid.folder.glob("*/run.json") if path.parent.name not in wanted):
        try:
            made = dict(runs.read_json(path))
            same = known.get((made.get("variant"), made.get("seed")))
            reasons = [f"the {what} changed" for what in changes(made, same or code_of(grid.notebook))]
            why = " and ".join(reasons) or ("its parameters changed" if same else "no longer in the grid file")
        except (ValueError, TypeError) as error:
            why = str(error)
        found.append((path.parent, why))
    return found
