"""Methods beside each other: what the finished runs of each scored, and their twins before any training.

The runs are a grid; those of a second stage, whose teacher differs from seed to seed, lie in a folder beside it.
docs/methods.py makes what follows the grid.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from dias_lab import runs
from dias_lab.analysis import intervals, verdicts
from dias_lab.analysis.baselines import baseline_table
from dias_lab.analysis.evaluate import CLIP_METRICS, MAPS, METRICS, evaluate
from dias_lab.config import method_class
from dias_lab.data import store as stores
from dias_lab.methods import checkpoint

LATER = "-stage2"  # how the folder ends of the runs that had a run of the grid as their teacher
TWIN = "untrained-"  # how the scores begin of a run's twin before any training
# what methods are compared by
KINDS = {"own": "the map that the method's source scores", "last": "the last iteration's map"}
STAGE_1, STAGE_2 = "SPOT, stage 1", "SPOT, both stages"
ORDER = ("DIAS", "Slot Attention", "SmoothSA", STAGE_1, STAGE_2, "DINOSAUR", "VQDINO", "SLATE")  # in tables


class Found(NamedTuple):
    runs: pd.DataFrame  # a row a finished run
    notes: list[str]  # of those that are not in it


def finished(folder, protocol: str = "dias", data=None) -> Found:
    """The finished runs that the test split was scored with under this protocol, the newest of equal ones.

    `data`: only runs on this folder of stores. A second stage is left out where its teacher is not among the runs. Columns
    are those of `runs.collect`, and setting, later (a second stage), stem (of the scores' columns), own (the method's map),
    steps_in_all and seconds_in_all (a first stage's included), seconds_a_step (the median over the log).
    """
    rows, notes = {}, []
    for beside in ("", LATER):
        for row in runs.collect(f"{folder}{beside}").to_dict("records"):
            row |= {"later": beside == LATER}
            row |= _described(row, protocol)
            key = row["setting"], row.get("seed")
            name, problem = f"{row['setting']}, seed {row.get('seed')}", _problem(row, rows.values(), protocol, data)
            if problem is None and key in rows:
                problem = "left out, there is a newer run of it" if _made(rows[key]) > _made(row) else None
                notes += [] if problem else [f"{name}: an older run of it is left out"]
            if problem:
                notes.append(f"{name}: {problem}")
            else:
                rows[key] = row | _in_all(row, _teacher(row, rows.values()))

    def rank(row):
        known = ORDER.index(row["setting"]) if row["setting"] in ORDER else len(ORDER)
        return known, row["setting"], row["seed"]

    return Found(pd.DataFrame(sorted(rows.values(), key=rank)), notes)


def score_twins(table: pd.DataFrame, protocol: str = "dias"):
    """Score each run's twin before any training on the images that the run was scored on: files beside the run's own
    scores, which `finished` finds. What is there already stays."""
    for _, row in table.iterrows():
        file = runs.resolve(row["run"]) / "scores" / f"{TWIN}{row['stem']}.json"
        if not file.exists() and not (model := checkpoint.load_model(row["run"])).backbone.trained:
            test = runs.resolve(row["data"]) / "test.lmdb"
            evaluate(model.untrained(), test, protocol, limit=_limit(row), out=file)


def _limit(row) -> int:
    """How many images, or clips, a run was scored on."""
    clips = row.get(f"{row['stem']}.clips", np.nan)
    return int(row[f"{row['stem']}.images"] if np.isnan(clips) else clips)


def _described(row: dict, protocol: str) -> dict:
    method = method_class(row["method"]) if isinstance(row.get("method"), str) else None  # else its config cannot be read
    variant = row["variant"] if isinstance(row.get("variant"), str) else row.get("method")
    if row["later"]:
        variant = f"{method.__name__}, both stages" if method else row["run"]
    stems = [key.removesuffix(".protocol") for key, value in row.items() if key.startswith("test-") and value == protocol]
    scores = {stem: [row.get(f"{stem}.decoder.{name}") for name in ("ari", "video_ari")] for stem in stems}
    stem = next((stem for stem, found in scores.items() if pd.notna(found).any()), None)
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


def _in_all(row: dict, teacher: dict | None) -> dict:
    """What the whole training took: of a second stage, what its teacher took as well."""
    path = runs.resolve(row["run"]) / "metrics.jsonl"
    lines = runs.read_lines(path) if path.exists() else []
    rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    pace = row["batch_size"] * max(1, row.get("clip_frames", 0)) / np.median(rates) if rates else np.nan
    whole = {"steps_in_all": row["steps"], "seconds_in_all": row["steps"] * pace}
    return {"seconds_a_step": pace} | {name: own + (teacher[name] if teacher else 0) for name, own in whole.items()}


def summary(table: pd.DataFrame, baseline: str = "DIAS") -> pd.DataFrame:
    """A row for each setting, in the order in which they stand there.

    Of every map and metric (of clips, at both levels) the mean and " std" over seeds. Of the two maps of KINDS, "own" and
    "last", besides: " low" and " high", the 95 % interval of the mean; " difference", " difference low", " difference high",
    that of the paired difference to the baseline; " untrained", the mean of the twins before training, and " gain",
    " gain low", " gain high", what training added to them. All by a bootstrap over seeds and images, widened for few seeds
    (intervals.py). One seed has no interval.
    """
    rows, known = [], {name.rpartition(".")[2] for name in table}
    metrics = [metric for metric in (*METRICS, *CLIP_METRICS, "gap", "switch_rate", "switches") if metric in known]
    for setting, own in table.groupby("setting", sort=False) if len(table) else ():
        other = table[(table["setting"] == baseline) & (setting != baseline)]
        row = {"setting": setting, "n": len(own), "seeds": " ".join(map(str, sorted(own["seed"])))}
        row |= {name: own[name].mean() for name in ("steps", "steps_in_all", "seconds_in_all", "seconds_a_step")}
        row["peak_memory"] = own["peak_memory"].mean() if "peak_memory" in own else np.nan
        for name in ("protocol", "images"):
            row[name] = intervals.distinct(one[f"{one['stem']}.{name}"] for _, one in own.iterrows())
        row |= {name: own[name].iloc[0] for name in ("own", "num_slots")}
        for name in ("kept", *(f"{map_}.{metric}" for map_ in (*MAPS, "own") for metric in metrics)):
            values = _scores(own, name)["value"]
            row |= {name: values.mean(), f"{name} std": values.std()}
        for name in (f"{kind}.{metric}" for kind in KINDS for metric in metrics):
            mine, twins = _scores(own, name), _scores(own, name, TWIN)
            _, row[f"{name} low"], row[f"{name} high"] = intervals.interval(mine)
            row[f"{name} untrained"] = twins["value"].mean()
            for word, theirs in (("difference", _scores(other, name)), ("gain", twins)):
                found = intervals.difference(mine, theirs)
                row |= {f"{name} {word}{end}": value for end, value in zip(("", " low", " high"), found)}
        rows.append(row)
    return pd.DataFrame(rows)


def _scores(rows: pd.DataFrame, column: str, twin: str = "") -> pd.DataFrame:
    """`intervals.scores` of each run's own file, or its twin's; "own.ari" is that of its method's map."""
    own = [column.replace("own.", f"{map_}.") for map_ in rows["own"]]
    names = [f"{twin}{stem}.{name}" for stem, name in zip(rows["stem"], own)]
    return intervals.scores(rows.reindex(columns=[*rows, *(name for name in set(names) if name not in rows)]), names)


def baselines(table: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """`baseline_table` on the features of the runs and the test images that they were scored on."""
    first = table.iloc[0]
    test = stores.open(runs.resolve(first["data"]) / "test.lmdb")
    models = (checkpoint.load_model(run) for run in table.drop_duplicates("num_slots")["run"])
    return baseline_table(models, test, protocol, limit=_limit(first))


def words(row, floors: pd.DataFrame, baseline: str = "DIAS") -> str:
    """A line of Markdown on one method, a row of `summary`: beside the baseline, its own twin, and k-means (`baselines`)."""
    level = "video_" if pd.isna(row.get("own.ari", np.nan)) else ""
    metrics = {metric: intervals.TITLES[metric] for metric in (f"{level}ari", f"{level}fg_ari", f"{level}mbo")}
    beside = [verdicts.beside(row, f"own.{metric}", title, baseline) for metric, title in metrics.items()]
    found = ["; ".join(beside)] if all(beside) else []
    changed = {}
    for metric, title in metrics.items():
        gain, *bounds = (row[f"own.{metric} gain{end}"] for end in ("", " low", " high"))
        word = verdicts.side(*bounds, "raises", "lowers", "does not clearly change")
        changed.setdefault(word, []).append(f"{title} ({100 * gain:+.1f})")
    found += [f"training {word} {', '.join(named)}" for word, named in changed.items() if word]
    if (name := f"k-means, {row['num_slots']}") in floors.index:
        above = [title for metric, title in metrics.items() if row[f"own.{metric}"] > floors.loc[name, metric]]
        found.append(f"above {name.replace(', ', ' of ')} clusters in {', '.join(above) or 'nothing'}")
    return f"* **{row['setting']}**: {'. '.join(part[:1].upper() + part[1:] for part in found)}"


def share(costs: pd.Series, second: str = STAGE_2, baseline: str = "DIAS") -> float:
    """What the baseline costs of SPOT's two stages together; NaN where one is missing."""
    there = {baseline, STAGE_1, second} <= set(costs.index)
    return float(costs[baseline] / (costs[STAGE_1] + costs[second])) if there else np.nan
