"""Methods beside each other: what the finished runs of each scored.

There are two views: the same number of steps, and the same wall time. The runs of a view are a grid; those of a second
stage, whose teacher differs from seed to seed, lie in a folder beside it. docs/methods.py makes what follows the grid.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd

from dias_lab import runs
from dias_lab.analysis import intervals
from dias_lab.analysis.baselines import baseline_table
from dias_lab.analysis.evaluate import MAPS, METRICS
from dias_lab.config import method_class
from dias_lab.data import store as stores
from dias_lab.methods import checkpoint

VIEWS = {"same steps": "", "same time": "-time"}  # and how the folder of its runs ends
LATER = "-stage2"  # and after that, the folder of the runs that had a run of the view as their teacher
# what methods are compared by
KINDS = {"own": "the map that the method's source scores", "last": "the last iteration's map"}
STAGE_1, STAGE_2 = "SPOT, stage 1", "SPOT, both stages"
HALF = "SPOT, stage 1, half the time"  # the teacher where both stages together take the time of one run
ORDER = (  # in tables
    "DIAS", "DIAS, released form", "SmoothSA", "Slot Attention", "Slot Attention, six slots", STAGE_1, HALF, STAGE_2,
    "DINOSAUR", "VQDINO", "SLATE", "DIAS on VQDINO's target",
)  # fmt: skip


class Found(NamedTuple):
    runs: pd.DataFrame  # a row a finished run
    notes: list[str]  # of those that are not in it


def finished(folder, protocol: str = "dias", data=None) -> Found:
    """The finished runs of both views that the test split was scored with under this protocol, the newest of equal ones.

    `data`: only runs on this folder of stores. A second stage is left out where its teacher is not among the runs. Columns
    are those of `runs.collect`, and view, setting, later (a second stage), stem (of the scores' columns), own (the method's
    map), steps_in_all and seconds_in_all (a first stage's included), seconds_a_step (the median over the log).
    """
    rows, notes = {}, []
    for view, beside in itertools.product(VIEWS, ("", LATER)):
        for row in runs.collect(f"{folder}{VIEWS[view]}{beside}").to_dict("records"):
            row |= {"view": view, "later": beside == LATER}
            row |= _described(row, protocol)
            key = (view, row["setting"], row.get("seed"))
            name, problem = f"{row['setting']}, seed {row.get('seed')}, {view}", _problem(row, rows.values(), protocol, data)
            if problem is None and key in rows:
                problem = "left out, there is a newer run of it" if _made(rows[key]) > _made(row) else None
                notes += [] if problem else [f"{name}: an older run of it is left out"]
            if problem:
                notes.append(f"{name}: {problem}")
            else:
                rows[key] = row | _in_all(row, _teacher(row, rows.values()))

    def rank(row):
        known = ORDER.index(row["setting"]) if row["setting"] in ORDER else len(ORDER)
        return list(VIEWS).index(row["view"]), known, row["setting"], row["seed"]

    return Found(pd.DataFrame(sorted(rows.values(), key=rank)), notes)


def _described(row: dict, protocol: str) -> dict:
    method = method_class(row["method"]) if isinstance(row.get("method"), str) else None  # else its config cannot be read
    variant = row["variant"] if isinstance(row.get("variant"), str) else row.get("method")
    if row["later"]:
        variant = f"{method.__name__}, both stages" if method else row["run"]
    stems = [key.removesuffix(".protocol") for key, value in row.items() if key.startswith("test-") and value == protocol]
    stem = next((stem for stem in stems if pd.notna(row.get(f"{stem}.decoder.ari"))), None)
    return {"setting": variant, "own": method.evaluated_map if method else "decoder", "stem": stem}


def _problem(row: dict, others, protocol: str, data) -> str | None:
    if row["state"] != "done":
        return row["state"] + (f": {row['problem']}" if isinstance(row.get("problem"), str) else "")
    if row["stem"] is None:
        return f"no scores of the test split under the protocol {protocol}"
    if data is not None and runs.resolve(row["data"]) != runs.resolve(data):
        return f"trained on other data, {row['data']}"
    if row["later"] and not _teacher(row, others):
        return f"its teacher {row['teacher_run']} is not among the finished runs"
    return None


def _teacher(row: dict, others) -> dict | None:
    """Of a second stage, by the folder's name, which is unique in a grid; folders may have moved since."""
    name = runs.resolve(row["teacher_run"]).name if row["later"] else None
    return next((other for other in others if runs.resolve(other["run"]).name == name), None)


def _made(row: dict) -> int:
    return (runs.resolve(row["run"]) / "metrics.json").stat().st_mtime_ns


def _log(row) -> list[dict]:
    path = runs.resolve(row["run"]) / "metrics.jsonl"
    return runs.read_lines(path) if path.exists() else []


def _in_all(row: dict, teacher: dict | None) -> dict:
    """What the whole training took: of a second stage, what its teacher took as well."""
    rates = [line["images_per_second"] for line in _log(row) if line.get("images_per_second")]
    pace = row["batch_size"] / np.median(rates) if rates else np.nan
    whole = {"steps_in_all": row["steps"], "seconds_in_all": row["steps"] * pace}
    return {"seconds_a_step": pace} | {name: own + (teacher[name] if teacher else 0) for name, own in whole.items()}


def summary(table: pd.DataFrame, baseline: str = "DIAS") -> pd.DataFrame:
    """A row for each view and setting, in the order in which they stand there.

    Of every map and metric the mean and " std" over seeds. Of the two maps of KINDS, "own" and "last", besides: " low" and
    " high", the 95 % interval of the mean, and " difference", " difference low", " difference high", that of the paired
    difference to the baseline: bootstrap over seeds and images, widened for few seeds (intervals.py). One seed has neither.
    """
    rows = []
    for (view, setting), own in table.groupby(["view", "setting"], sort=False) if len(table) else ():
        other = table[(table["view"] == view) & (table["setting"] == baseline) & (setting != baseline)]
        row = {"view": view, "setting": setting, "n": len(own), "seeds": " ".join(map(str, sorted(own["seed"])))}
        row |= {name: own[name].mean() for name in ("steps", "steps_in_all", "seconds_in_all", "seconds_a_step")}
        row["peak_memory"] = own["peak_memory"].mean() if "peak_memory" in own else np.nan
        for name in ("protocol", "images"):
            row[name] = intervals.distinct(one[f"{one['stem']}.{name}"] for _, one in own.iterrows())
        row |= {name: own[name].iloc[0] for name in ("own", "num_slots")}
        for name in ("kept", *(f"{map_}.{metric}" for map_ in (*MAPS, "own") for metric in METRICS)):
            values = _scores(own, name)["value"]
            row |= {name: values.mean(), f"{name} std": values.std()}
        for name in (f"{kind}.{metric}" for kind in KINDS for metric in METRICS):
            mine = _scores(own, name)
            _, row[f"{name} low"], row[f"{name} high"] = intervals.interval(mine)
            found = intervals.difference(mine, _scores(other, name))
            row |= {f"{name} difference{end}": value for end, value in zip(("", " low", " high"), found)}
        rows.append(row)
    return pd.DataFrame(rows)


def _scores(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """`intervals.scores` of each run's own file; "own.ari" is that of its method's map."""
    own = [column.replace("own.", f"{map_}.") for map_ in rows["own"]]
    return intervals.scores(rows, [f"{stem}.{name}" for stem, name in zip(rows["stem"], own)])


def baselines(table: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """`baseline_table` on the features of the runs and the test images that they were scored on."""
    first = table.iloc[0]
    test = stores.open(runs.resolve(first["data"]) / "test.lmdb")
    models = (checkpoint.load_model(run) for run in table.drop_duplicates("num_slots")["run"])
    return baseline_table(models, test, protocol, limit=int(first[f"{first['stem']}.images"]))


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """The validation scores in every run's log: view, setting, seed, step, seconds of training so far, and its own map's.

    A second stage goes on where its teacher ended.
    """
    rows = []
    for _, run in table.iterrows():
        step, steps_before = 0, run["steps_in_all"] - run["steps"]
        seconds, seconds_before = 0.0, run["seconds_in_all"] - run["steps"] * run["seconds_a_step"]
        for line in _log(run):
            if line.get("images_per_second"):
                seconds += (line["step"] - step) * run["batch_size"] / line["images_per_second"]
                step = line["step"]
            if "validation" in line:
                row = {name: run[name] for name in ("view", "setting", "seed")}
                row |= {"step": steps_before + line["step"], "seconds": seconds_before + seconds}
                rows.append(row | {metric: line["validation"][run["own"]][metric] for metric in METRICS})
    return pd.DataFrame(rows)
