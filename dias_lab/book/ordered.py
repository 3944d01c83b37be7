"""The ordered notebooks, headless, with a small ablation before the fifth; then the HTML gallery.

A book is notebooks/[01]*.ipynb run with one set of options; its outputs are in runs/book-<hash of the options>/. A step whose
notebook, parameters, package code and needed steps are unchanged is not repeated; a training that was killed resumes.
"""

import dataclasses
import itertools
import shutil
import sys
import time
import tomllib
from pathlib import Path

from dias_lab import runs
from dias_lab.book import gallery, grid, grid_run, parameters
from dias_lab.book.unit import Unit, code_of, origins_of
from dias_lab.config import Config
from dias_lab.files import checksum

ABLATION = "notebooks/grids/small.toml"
PHOTOS = {"steps": 300, "batch_size": 8, "learning_rate": 1e-3}  # minutes on two cores; the full schedule takes a GPU
SHORT_ABLATION = {"steps": 80, "evaluate_every": 40}  # half a minute a run
BUILT_IN = ("scenes", "shapes")  # presets whose data 01 makes
TRAINING = "03"  # the notebook whose run_dir is a training
NEEDS = {"03": ["01"], "04": ["03"], "05": ["ablation"], **dict.fromkeys(("00", "01", "02", "08", "09", "10"), [])}  # else 03
NOT_HASHED = ("only", "jobs", "ablation")  # they change which steps run and how, not what a step gives

FIELDS = [(field.name, field.type | None, None) for field in dataclasses.fields(Config) if field.name != "data"]
Fields = dataclasses.make_dataclass("Fields", FIELDS, frozen=True, namespace={"__module__": __name__})
Fields.__doc__ = "Every field of Config; None means as the preset has it."


@dataclasses.dataclass(frozen=True)
class Options(Fields):
    """Options of the book. Whatever is not given is as the preset, or the notebook, has it."""

    preset: str | None = None  # scenes (default), shapes, photos, coco, voc or clevrtex
    form: str | None = None  # complete (default) or released
    data: str | None = None  # a folder of stores (train.lmdb, ...), or the data set in its original layout
    only: list[str] | None = None  # notebooks by name or prefix; what they need is run as well
    ablation: bool = True  # run the small ablation, and the notebook that reads it
    ablation_steps: int | None = None  # steps of each run; None: 80 on built-in data, else a quarter of steps
    ablation_dir: str | None = None  # a grid that is there: 05 reads it, and no small one is run
    jobs: int = 2  # runs of the ablation at a time, one thread each


def run(options: Options) -> int:
    """Execute the book and write its gallery. Exit status: 0 done, 1 something failed, 2 refused before the start."""
    try:
        book, steps = plan(options)
        wanted = _selected(steps, options.only)
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    try:
        with runs.claim(book):
            entries = {step.id: _entry(step) for step in steps if step.id not in wanted}
            entries = {name: entry for name, entry in entries.items() if entry.state == "done"}
            for step in (step for step in steps if step.id in wanted):
                entries[step.id] = _run(step, entries, options.jobs)
    except runs.RunBusy as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 1
    name = book.name.replace("book", options.preset or "scenes", 1)
    shown = [entries[step.id] for step in steps if step.id in entries and isinstance(step, Unit)]
    small = [_entry(run) for step in steps if isinstance(step, grid.Grid) for run in step.runs]
    shown += [dataclasses.replace(entry, part="ablation") for entry in small if entry.notebook.exists()]
    front = gallery.publish(runs.resolve("site"), name, _hashed(options), shown)
    print(f"gallery   {runs.short(front)}", flush=True)
    return 0 if all(entries[name].state == "done" for name in wanted) else 1


def plan(options: Options) -> tuple[Path, list[Unit | grid.Grid]]:
    """The book's directory and its steps in order; ValueError for whatever can be known to be wrong before the start."""
    preset, given = options.preset or "scenes", _given(options)
    fields = {name: value for name, value in given.items() if name in Config.field_names() and name != "data"}
    if preset not in BUILT_IN and "steps" not in fields:
        fields = PHOTOS | fields
        print(f"size      {', '.join(f'{name} {fields[name]}' for name in PHOTOS)}: small; --steps chooses another")
    weights = fields.get("backbone_weights", "pretrained")
    if weights not in ("pretrained", "random"):
        path = Path(weights).expanduser().resolve()  # as typed: from the working directory
        if not path.is_file():
            raise ValueError(f"--backbone-weights {weights}: there is no file {path}")
        fields["backbone_weights"] = str(path)
    config = Config.preset(preset, options.form or "complete", **fields)
    if config.parent:
        runs.weights_hash(config.parent)  # ValueError where there are none
    if options.jobs < 1 or (options.ablation_steps or 1) < 1:
        raise ValueError(f"jobs and ablation_steps must be at least 1, got {options.jobs} and {options.ablation_steps}")
    data, root = _data(options.data, preset, config.data)
    own_stores = root is None and (options.data is not None or preset not in BUILT_IN)
    book = f"runs/book-{checksum(_hashed(options) | {'data': [data, root]}, 8)}"
    ablation = Path(options.ablation_dir).expanduser().resolve().as_posix() if options.ablation_dir else f"{book}/ablation"
    pieces = {name: given[name] for name in ("preset", "form") if name in given} | fields
    pieces |= {"data": data} | ({"root": root} if root else {}) | {"live": False}  # nobody is there to move a control
    pieces |= {"book": book, "ablation_dir": ablation, "run_dir": f"{book}/training", "trace": f"{book}/training/trace.npz"}
    pieces["shipped_model"] = preset == "scenes" and options.data is None and not fields  # 03 is short by itself

    steps, folder = [], runs.resolve(book)
    for notebook in sorted(runs.resolve("notebooks").glob("[01]*.ipynb")):
        number = notebook.stem[:2]
        if number == "05" and not options.ablation:
            continue
        if number == "05" and not options.ablation_dir:
            small = _ablation(options, config, pieces, folder / "ablation")
            small.needs = [step for step in steps if step.id.startswith("01")]
            steps.append(small)
        values = _taken(notebook, pieces)
        makes = [runs.resolve(values["data"]) / "*.lmdb"] if number == "01" and "data" in values else []
        makes += [runs.resolve(values["run_dir"]) / "metrics.json"] if number == TRAINING and "run_dir" in values else []
        needs = [step for step in steps if step.id.startswith(tuple(NEEDS.get(number, [TRAINING])))]
        origins, place = origins_of(notebook, values), folder / notebook.stem
        code = code_of(notebook) | {name: origins[name] for name in origins if name != "data" or own_stores}  # else 01's
        steps.append(Unit(place, notebook, values, code, makes=makes, needs=needs, record="step.json"))
    if not steps:
        raise ValueError(f"there are no notebooks [01]*.ipynb in {runs.resolve('notebooks')}")
    return folder, steps


def _given(options: Options) -> dict:
    """The options that differ from their defaults."""
    return {name: value for name, value in vars(options).items() if value != getattr(Options, name)}


def _hashed(options: Options) -> dict:
    """Those of them that change what a step gives."""
    return {name: value for name, value in _given(options).items() if name not in NOT_HASHED}


def _data(data: str | None, preset: str, own: str) -> tuple[str, str | None]:
    """The folder of stores, and the folder to convert into it, if any."""
    if data is None:
        if preset not in BUILT_IN and not any(runs.resolve(own).glob("*.lmdb")):
            raise ValueError(
                f"the preset {preset} needs its data, and there are no stores in {runs.resolve(own)}. Give --data with "
                f"the data set's folder, or convert it: python -m dias_lab convert {preset} --root DIR --out {own}"
            )
        return own, None
    path = Path(data).expanduser().resolve()  # as typed: from the working directory
    if not path.exists():
        raise ValueError(f"--data {data}: there is no {path}")
    if any(path.glob("*.lmdb")):
        return str(path), None
    target = f"data/{preset}-{checksum(str(path), 8)}"
    print(f"data      {path} holds no stores (*.lmdb); notebook 01 converts it into {target}")
    return target, str(path)


def _taken(notebook: Path, pieces: dict) -> dict:
    """The pieces that the notebook takes, checked."""
    names = set(parameters.declared(notebook))
    if parameters.takes_config(notebook):
        names |= {"preset", "form", *Config.field_names()}
    return parameters.check(notebook, {name: value for name, value in pieces.items() if name in names})


def _ablation(options: Options, config: Config, pieces: dict, folder: Path) -> grid.Grid:
    """The small grid, which is one step; what it varies itself, the options do not."""
    file = runs.resolve(ABLATION)
    if not file.exists():
        raise ValueError(f"the ablation needs {file}; leave it out with --no-ablation")
    small, steps = {}, -(-config.steps // 4)
    if (options.preset or "scenes") in BUILT_IN:
        small, steps = SHORT_ABLATION, min(SHORT_ABLATION["steps"], config.steps)
    if pieces["shipped_model"]:
        small = small | {"parent": runs.short(runs.PACKAGE / "shipped"), "learning_rate": 5e-4}
    fields = {name: value for name, value in pieces.items() if name in {"preset", "form", *Config.field_names()}}
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    varied = {"seed", *tables.get("axes", {}), *itertools.chain(*tables.get("variants", []))}
    given = small | fields | {"steps": options.ablation_steps or steps}
    return grid.read(file, folder, {name: value for name, value in given.items() if name not in varied})


def _selected(steps: list[Unit | grid.Grid], only: list[str] | None) -> set[str]:
    """The names of the steps to run: those that `only` names, and what they need."""
    named, wanted = {step.id: step for step in steps}, []
    for prefix in [""] if only is None else only:
        found = [name for name in named if name.startswith(prefix)]
        if not found:
            raise ValueError(f"--only {prefix}: there is no such notebook; there are {', '.join(named)}")
        wanted += found
    for name in wanted:  # grows while it is read
        wanted += [need.id for need in named[name].needs]
    return set(wanted)


def _entry(step: Unit | grid.Grid) -> gallery.Entry:
    """How a step stands, done or to be executed; of a notebook, what the gallery shows."""
    if isinstance(step, grid.Grid):
        done = all(row["state"] == "done" for row in grid.status(step))
        return gallery.Entry(step.id, "done" if done else "failed", part="ablation")
    row, file = step.look(), step.folder / "error.json"
    state, error = "done" if row["state"] == "done" else "failed", runs.read_object(file) if file.exists() else None
    return gallery.Entry(step.id, state, row["seconds"] or 0.0, step.folder / "run.ipynb", error)


def _set_aside(unit: Unit) -> None:
    """Nothing of the old notebook, parameters or code may be taken for the new; but a training may have cost hours."""
    for made in (path.parent for path in unit.makes if (path.parent / "checkpoints").exists()):
        kept = runs.resolve("runs/replaced") / f"{made.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        made.rename(kept)
        print(f"set aside {runs.short(kept)}: trained by other code, parameters or data; delete it when you like", flush=True)
    shutil.rmtree(unit.folder, ignore_errors=True)


def _run(step: Unit | grid.Grid, entries: dict[str, gallery.Entry], jobs: int) -> gallery.Entry:
    """Execute one step, or find it done; prints its line. A failed ablation stops nothing: 05 shows what failed."""
    needed, part = [entries[need.id] for need in step.needs], "ablation" if isinstance(step, grid.Grid) else "notebook"
    failed = [entry.name for entry in needed if entry.state == "skipped" or (entry.state, entry.part) == ("failed", "notebook")]
    if failed:
        print(f"skipped   {step.id}: it needs {', '.join(failed)}", flush=True)
        return gallery.Entry(step.id, "skipped", part=part)
    place = runs.short(step.folder / ("run.ipynb" if part == "notebook" else ""))
    entry = _entry(step)
    if entry.state == "done":
        print(f"reused    {step.id}   {place}", flush=True)
        return entry
    if part == "ablation":
        return _run_ablation(step, jobs)
    if not step.same():
        _set_aside(step)
    step.prepare()
    outcome, row = step.execute(), step.look()
    if row["state"] == "done":
        print(f"{outcome.seconds:7.1f} s {step.id}   {place}", flush=True)
    else:
        print(f"failed    {outcome.error['message'] if outcome.error else row['problem']}", flush=True)
    return dataclasses.replace(_entry(step), seconds=outcome.seconds, error=outcome.error)


def _run_ablation(small: grid.Grid, jobs: int) -> gallery.Entry:
    """Execute what is missing of the small grid. What old code or an old notebook made stays there, as stale runs."""
    file, given = runs.resolve(ABLATION), small.tables["changed"]
    small.runs = grid.read(file, small.folder, given).runs  # again: the code may have changed since the book began
    if wanted := grid_run.missing(grid.status(small)):
        runs.write_text(small.folder / "grid.toml", grid.changed(file.read_text(encoding="utf-8"), given))
        grid_run.execute(small, wanted, jobs)
    return _entry(small)
