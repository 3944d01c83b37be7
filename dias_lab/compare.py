"""Methods beside each other: what the finished runs of each scored, and what a training step of each costs.

There are two views: the same number of steps, and the same wall time. The runs of a view are a grid; SPOT's second stage,
whose teacher differs from seed to seed, lies in a folder beside it. docs/methods.py makes what follows the grid.

Axes: S seeds, B images.
"""

import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dias_lab import devices, load_model, runs
from dias_lab.baselines import baseline_table
from dias_lab.config import method_class
from dias_lab.data import store as stores
from dias_lab.data.dataset import Batches
from dias_lab.data.features import FeatureBatches, make
from dias_lab.evaluate import MAPS, METRICS
from dias_lab.intervals import widened_interval
from dias_lab.methods import build
from dias_lab.step import Learner

VIEWS = {"same steps": "", "same time": "-time"}  # and how the folder of its runs ends
STAGE_1, STAGE_2 = "SPOT, stage 1", "SPOT, both stages"
HALF = "SPOT, stage 1, half the time"  # the teacher where both stages together take the time of one run
KINDS = {"own": "the map that the method's source scores", "last": "the last iteration's map"}  # what methods are compared by
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
    are those of `runs.collect`, and view, setting, stem (of the scores' columns), own (the method's map), steps_in_all and
    seconds_in_all (a first stage's included), seconds_a_step (the median over the log).
    """
    rows, notes = {}, []
    for view, ending in VIEWS.items():
        for stage, place_ in ((1, f"{folder}{ending}"), (2, f"{folder}{ending}-stage2")):
            for row in runs.collect(place_).to_dict("records"):
                row |= {"view": view, "setting": STAGE_2 if stage == 2 else _text(row.get("variant")) or row.get("method")}
                row["own"] = method_class(row["method"]).evaluated_map if _text(row.get("method")) else "decoder"
                row["stem"] = next((stem for stem in _stems(row) if row.get(f"{stem}.protocol") == protocol), None)
                key, name = (view, row["setting"], row.get("seed")), f"{row['setting']}, seed {row.get('seed')}, {view}"
                problem = _problem(row, protocol, data)
                if problem is None and stage == 2 and not any(_is_teacher(other, row) for other in rows.values()):
                    problem = f"its teacher {row['teacher_run']} is not among the finished runs"
                if problem is None and key in rows and _made(rows[key]) > _made(row):
                    problem = "left out, there is a newer run of it"
                elif problem is None and key in rows:
                    notes.append(f"{name}: an older run of it is left out")
                if problem:
                    notes.append(f"{name}: {problem}")
                else:
                    rows[key] = row | _timing(row)

    def rank(row):
        known = ORDER.index(row["setting"]) if row["setting"] in ORDER else len(ORDER)
        return list(VIEWS).index(row["view"]), known, row["setting"], row["seed"]

    return Found(_in_all(pd.DataFrame(sorted(rows.values(), key=rank))), notes)


def _is_teacher(row, student) -> bool:
    """By the folder's name, which is unique in a grid; folders may have moved since."""
    return runs.resolve(student["teacher_run"]).name == runs.resolve(row["run"]).name


def _stems(row: dict) -> list[str]:
    stems = [key.removesuffix(".decoder.ari") for key in row if key.startswith("test-") and key.endswith(".decoder.ari")]
    return [stem for stem in stems if row[f"{stem}.decoder.ari"] == row[f"{stem}.decoder.ari"]]


def _text(value) -> str | None:
    return value if isinstance(value, str) else None


def _made(row: dict) -> int:
    return (runs.resolve(row["run"]) / "metrics.json").stat().st_mtime_ns


def _problem(row: dict, protocol: str, data) -> str | None:
    if row["state"] != "done":
        return row["state"] + (f": {row['problem']}" if _text(row.get("problem")) else "")
    if row["stem"] is None:
        return f"no scores of the test split under the protocol {protocol}"
    if data is not None and runs.resolve(row["data"]) != runs.resolve(data):
        return f"trained on other data, {row['data']}"
    return None


def _timing(row: dict) -> dict:
    rates = [line["images_per_second"] for line in _log(row) if line.get("images_per_second")]
    return {"seconds_a_step": row["batch_size"] / np.median(rates) if rates else np.nan}


def _log(row) -> list[dict]:
    path = runs.resolve(row["run"]) / "metrics.jsonl"
    return runs.read_lines(path) if path.exists() else []


def _in_all(table: pd.DataFrame) -> pd.DataFrame:
    """With what the whole training took: of a second stage, that of its teacher as well."""
    if table.empty:
        return table
    table = table.assign(steps_in_all=table["steps"], seconds_in_all=table["steps"] * table["seconds_a_step"])
    for index, row in table[table["setting"] == STAGE_2].iterrows():
        teacher = table[[_is_teacher(other, row) for _, other in table.iterrows()]].iloc[0]
        for name in ("steps_in_all", "seconds_in_all"):
            table.loc[index, name] += teacher[name]
    return table


def summary(table: pd.DataFrame, baseline: str = "DIAS") -> pd.DataFrame:
    """A row for each view and setting, in the order in which they stand there.

    Of every map and metric the mean and " std" over seeds. Of the two maps of KINDS, "own" and "last", besides: " low" and
    " high", the 95 % interval of the mean, and " difference", " difference low", " difference high", that of the paired
    difference to the baseline: bootstrap over seeds and images, widened for few seeds (intervals.py). One seed has neither.
    """
    rows = []
    if table.empty:
        return table
    for (view, setting), own in table.groupby(["view", "setting"], sort=False):
        other = table[(table["view"] == view) & (table["setting"] == baseline)]
        row = {"view": view, "setting": setting, "n": len(own), "seeds": " ".join(str(seed) for seed in sorted(own["seed"]))}
        row |= {name: own[name].mean() for name in ("steps", "steps_in_all", "seconds_in_all", "seconds_a_step")}
        row["peak_memory"] = own["peak_memory"].mean() if "peak_memory" in own else np.nan
        row |= {name: _distinct(own, name) for name in ("protocol", "images")}
        row |= {name: own[name].iloc[0] for name in ("own", "num_slots")}
        columns = {column: column for column in ("kept", *(f"{name}.{metric}" for name in MAPS for metric in METRICS))}
        columns |= {f"own.{metric}": f"{row['own']}.{metric}" for metric in METRICS}
        for name, column in columns.items():
            values = _values(own, column)
            row |= {name: values.mean(), f"{name} std": values.std(ddof=1) if len(values) > 1 else np.nan}
        for kind in KINDS:
            pair = [(part, part["own"].iloc[0] if kind == "own" else kind) for part in (own, other) if len(part)]
            for metric in METRICS:
                found = _intervals(*((part, f"{map_}.{metric}") for part, map_ in pair), is_baseline=setting == baseline)
                row |= {f"{kind}.{metric} {end}": value for end, value in found.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _values(own: pd.DataFrame, column: str) -> np.ndarray:
    return np.array([row[f"{row['stem']}.{column}"] for _, row in own.iterrows()], float)


def _distinct(own: pd.DataFrame, name: str) -> str:
    return ", ".join(sorted({str(row[f"{row['stem']}.{name}"]).removesuffix(".0") for _, row in own.iterrows()}))


def _intervals(own: tuple[pd.DataFrame, str], other: tuple[pd.DataFrame, str] | None = None, is_baseline: bool = False) -> dict:
    """Of a setting's runs and a column of their scores, and of the baseline's."""
    paired = [f"difference{end}" for end in ("", " low", " high")]
    mine = _by_image(*own)
    row = dict(zip(("low", "high"), widened_interval(mine.to_numpy())[1:]))
    if is_baseline or other is None:
        return row | dict.fromkeys(paired, np.nan)
    theirs = _by_image(*other)
    if set(mine.columns) != set(theirs.columns):  # not the same images: seeds alone are paired
        mine, theirs = _by_run(*own), _by_run(*other)
    seeds = mine.index.intersection(theirs.index)
    if seeds.empty:
        return row | dict.fromkeys(paired, np.nan)
    difference = mine.loc[seeds].to_numpy() - theirs.loc[seeds, mine.columns].to_numpy()
    return row | dict(zip(paired, widened_interval(difference)))


def _by_image(own: pd.DataFrame, column: str) -> pd.DataFrame:
    """[S B]: the scores of each image, where all runs have them for the same images; else those of the runs."""
    files = [runs.resolve(row["run"]) / "scores" / f"{row['stem']}.images.csv" for _, row in own.iterrows()]
    scores = [pd.read_csv(file, index_col="item")[column] for file in files if file.exists()]
    if files and len(scores) == len(files) and all(set(one.index) == set(scores[0].index) for one in scores):
        return pd.DataFrame([one.sort_index() for one in scores], index=own["seed"])
    return _by_run(own, column)


def _by_run(own: pd.DataFrame, column: str) -> pd.DataFrame:
    """[S 1]"""
    return pd.DataFrame({"mean": _values(own, column)}, index=own["seed"])


def baselines(table: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """`baseline_table` on the features of the runs and the test images that they were scored on."""
    first = table.iloc[0]
    test = stores.open(runs.resolve(first["data"]) / "test.lmdb")
    models = (load_model(run) for run in table.drop_duplicates("num_slots")["run"])
    return baseline_table(models, test, protocol, limit=int(first[f"{first['stem']}.images"]))


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """The validation scores in every run's log: view, setting, seed, step, seconds of training so far, and its own map's.

    A second stage goes on where its teacher ended.
    """
    rows = []
    for _, run in table.iterrows():
        step, seconds = 0, 0.0
        steps_before = run["steps_in_all"] - run["steps"]
        seconds_before = run["seconds_in_all"] - run["steps"] * run["seconds_a_step"]
        for line in _log(run):
            if line.get("images_per_second"):
                seconds += (line["step"] - step) * run["batch_size"] / line["images_per_second"]
                step = line["step"]
            if "validation" in line:
                row = {name: run[name] for name in ("view", "setting", "seed")}
                row |= {"step": steps_before + line["step"], "seconds": seconds_before + seconds}
                rows.append(row | {metric: line["validation"][run["own"]][metric] for metric in METRICS})
    return pd.DataFrame(rows)


class Stepper:
    """A method's training step, again and again, without log and checkpoints."""

    def __init__(self, config, store=None):
        self.config, self.source, self.number = config, None, 0
        self.learner = Learner(config, devices.launch(config))
        self.model = self.learner.model.train()
        if config.stage == 2:  # what a step costs does not depend on what the teacher knows
            self.model.learn_from(build(config.replace(stage=1, teacher_run="")))
        if store is not None and config.cache_views:
            self.source = FeatureBatches(store, config, make(store, config, self.model.backbone))
        elif store is not None:
            self.source = Batches(store, config, segments=False)

    def step(self) -> float:
        loss = self.learner.update(self.batch(), self.number)["loss"]
        self.number += 1
        return float(loss)  # waits for a GPU

    def batch(self) -> dict:
        if self.source is not None:
            return self.source[self.number]
        shape = (self.config.batch_size, 3, self.config.image_size, self.config.image_size)
        noise = torch.Generator().manual_seed(self.number)
        return {"image": torch.randint(256, shape, dtype=torch.uint8, generator=noise), "info": {"step": self.number}}

    def counted(self) -> dict:
        """One step, and what can be counted of it, an image: it is the same on every machine."""
        parameters = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        saved, seen, handles = {}, {"backbone": 0, "trained": 0}, []

        def keep(tensor):
            if tensor.untyped_storage().data_ptr() not in parameters:
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        def look(module, inputs, output):
            seen["backbone"] += len(inputs[0])
            seen["trained"] += len(inputs[0]) * module.trained

        models = [self.model, *getattr(self.model, "teacher", ())]
        backbones = {id(module): module for model in models for module in model.backbones().values()}
        backbones |= {} if self.learner.frozen is None else {0: self.learner.frozen}  # a GPU's own copy
        handles = [module.register_forward_hook(look) for module in backbones.values()]
        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            self.step()
        for handle in handles:
            handle.remove()
        B = self.config.batch_size
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {
            "operations": counter.get_total_flops() / B, "saved": sum(saved.values()) / B, "trained": trained,
            "passes": seen["backbone"] / B, "passes with gradients": seen["trained"] / B,
        }  # fmt: skip


def step_costs(configs: dict, store=None, repeats: int = 5) -> pd.DataFrame:
    """What a training step of each config costs; a row each.

    seconds (median) and images_a_second, the configs taking turns, so that what else the machine does meets all of them;
    with repeats = 0 nothing is timed. And, an image: operations (floating point, of matrix products and convolutions,
    forward and backward), saved (bytes that wait for the backward pass), passes of the backbone, passes with gradients.
    `trained` is the number of weights that learn. `store`: where batches come from, their reading included; without one,
    images are noise.
    """
    steppers = {name: Stepper(config, store) for name, config in configs.items()}
    rows = {name: stepper.counted() for name, stepper in steppers.items()}
    times = {name: [] for name in steppers}
    for _ in range(repeats):
        for name, stepper in steppers.items():
            start = time.perf_counter()
            stepper.step()
            times[name].append(time.perf_counter() - start)
    for name, row in rows.items():
        row["seconds"] = float(np.median(times[name])) if repeats else np.nan
        row["images_a_second"] = configs[name].batch_size / row["seconds"]
    return pd.DataFrame(rows).T
