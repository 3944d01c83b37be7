"""What follows the grids of methods: SPOT's second stage, the runs of equal wall time, and the tables.

    python -m dias_lab grid start notebooks/grids/methods.toml --out runs/methods
    python docs/methods.py stage2            # for each finished run of SPOT's stage 1, its second stage, as many steps
    python docs/methods.py time              # the same wall time for all: measures a step of each, starts the grid, and stage 2

    python -m dias_lab grid start notebooks/grids/methods_photos.toml --out runs/methods-photos \\
        --fixed data=data/coco backbone_weights=FILE    # fewer methods, on COCO
    python docs/methods.py stage2 --folder runs/methods-photos

    python docs/methods.py costs             # docs/methods-costs.csv: what a step costs in the size of COCO; needs no run
    python docs/methods.py                   # the tables: docs/methods.md and docs/methods*.csv

stage2 and time take --folder (runs/methods by default) and --print, which starts nothing. What is done is not repeated, what
was killed resumes. Everything lies beside the folder: runs/methods-stage2, runs/methods-time (with .json and .toml), and
runs/methods-time-stage2. The wall time is that of the slowest single stage in the first grid, by what a step costs when all
methods take turns in one process; the two stages of SPOT share it, half each; the slowest method's runs are those of the
first grid, so it is not trained again. Every run chooses its checkpoint out of as many as in the first grid.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tomllib

import pandas as pd

from dias_lab import Config, runs
from dias_lab.analysis import compare, intervals
from dias_lab.analysis.evaluate import METRICS, scores_name
from dias_lab.data import store as stores
from dias_lab.training import cost

CALL = [sys.executable, "-m", "dias_lab"]
SCENES, PHOTOS = "runs/methods", "runs/methods-photos"
COCO_SIZE = {
    "DIAS": {},
    "SPOT, stage 1": {"method": "spot"},
    "SPOT, stage 2": {"method": "spot", "stage": 2},
    "SmoothSA": {"method": "smoothsa"},
    "DINOSAUR": {"method": "dinosaur"},
}
LAST = ("ari", "fg_ari", "mbo")
SHOWN = {metric: intervals.TITLES[metric] for metric in METRICS}


def written(name: str):
    return runs.resolve(f"docs/methods{name}")


def call(words: list[str], only_print: bool):
    print(shlex.join(["python", *words[1:]]), flush=True)
    if not only_print:
        subprocess.run(words, check=True, cwd=runs.root())


def given(run, preset: str) -> dict:
    """The fields of a run that are not as the preset has them."""
    config, usual = Config.load(runs.resolve(run)).to_dict(), Config.preset(preset, method="spot").to_dict()
    return {name: value for name, value in config.items() if value != usual[name] and name != "seed"}


def stage_2(folder: str, only_print: bool, protocol: str):
    """Train and score the second stage for every teacher in the folder that is done."""
    table = compare.finished(folder, protocol).runs
    if table.empty or compare.STAGE_1 not in set(table["setting"]):
        sys.exit(f"no finished run of {compare.STAGE_1} in {folder}")
    for view, ending in compare.VIEWS.items():
        name = compare.HALF if ending else compare.STAGE_1
        for _, teacher in table[(table["setting"] == name) & (table["view"] == view)].iterrows():
            made = runs.read_json(runs.resolve(teacher["run"]) / "run.json")["parameters"]
            preset, digest = made.get("preset", "shapes"), teacher["run"].rpartition("-")[2]
            out = f"{folder}{ending}-stage2/seed-{teacher['seed']}-{digest}"
            fields = given(teacher["run"], preset) | {"stage": 2, "seed": teacher["seed"], "teacher_run": teacher["run"]}
            if ending:
                fields |= plan(folder)["steps"][compare.STAGE_2]
            if runs.state(runs.resolve(out)) != "done":
                words = [f"--{key.replace('_', '-')}={value}" for key, value in fields.items()]
                call([*CALL, "train", "--preset", preset, "--method", "spot", "--run-dir", out, *words], only_print)
            test = runs.resolve(teacher["data"]) / "test.lmdb"
            limit = made.get("test_images") or 0
            if not (runs.resolve(out) / "scores" / scores_name(stores.open(test), protocol, limit)).exists():
                words = ["--data", runs.short(test), "--limit", str(limit), "--protocol", protocol]
                call([*CALL, "evaluate", "--run-dir", out, *words], only_print)


def configs_of(folder: str, protocol: str) -> dict[str, Config]:
    """Of each setting in the first grid the config, and of SPOT's second stage the one that follows."""
    table = compare.finished(folder, protocol).runs
    if table.empty:
        sys.exit(f"no finished run in {folder}: python -m dias_lab grid start notebooks/grids/methods.toml --out {folder}")
    rows = table[(table["view"] == "same steps") & (table["setting"] != compare.STAGE_2)].drop_duplicates("setting")
    configs = {row["setting"]: Config.load(runs.resolve(row["run"])) for _, row in rows.iterrows()}
    if compare.STAGE_1 in configs:
        configs[compare.STAGE_2] = configs[compare.STAGE_1].replace(stage=2)
    return configs


def measured(configs: dict[str, Config]) -> pd.DataFrame:
    first = next(iter(configs.values()))
    return cost.step_costs(configs, stores.open(runs.resolve(first.data) / "train.lmdb"), repeats=15)


def plan(folder: str, protocol: str = "dias") -> dict:
    """What a step costs, the wall time, and the steps that each method has in it; measured once, then read."""
    path = runs.resolve(f"{folder}-time.json")
    if path.exists():
        return runs.read_json(path)
    configs = configs_of(folder, protocol)
    seconds = measured(configs)["seconds"].to_dict()
    single = [name for name in configs if name != compare.STAGE_2]
    budget = max(configs[name].steps * seconds[name] for name in single)
    share = {name: 1.0 for name in single}
    if compare.STAGE_1 in configs:
        share |= {compare.HALF: 0.5, compare.STAGE_2: 0.5}
    steps = {}
    for name, part in share.items():
        known = compare.STAGE_1 if name == compare.HALF else name
        number = max(1, round(part * budget / seconds[known]))
        checkpoints = max(1, configs[known].steps // configs[known].evaluate_every)
        steps[name] = {"steps": number, "evaluate_every": -(-number // checkpoints)}
    found = {"seconds_a_step": seconds, "wall_time": budget, "steps": steps}
    runs.write_json(path, found)
    return found


def same_time(folder: str, only_print: bool, protocol: str, workers: int):
    """Write the grid of equal wall time, start it, then the second stage."""
    found = plan(folder, protocol)
    print(f"wall time {found['wall_time']:.0f} s of training")
    for name, own in found["steps"].items():
        print(f"  {own['steps']:6d} steps  {name}")
    grid = tomllib.loads((runs.resolve(folder) / "grid.toml").read_text())
    fixed = grid["fixed"] | grid.get("changed", {})
    before = {name: fixed.pop(name) for name in ("steps", "evaluate_every")}
    variants = [one for one in grid["variants"] if found["steps"].get(one["name"], before)["steps"] != before["steps"]]
    variants += [one | {"name": compare.HALF} for one in variants if one["name"] == compare.STAGE_1]
    lines = ["# The same wall time for every method; written by docs/methods.py from what a step costs.", ""]
    lines += [f"{key} = {json.dumps(grid[key])}" for key in ("notebook", "seeds")]
    tables = [("[fixed]", fixed), *(("[[variants]]", one | found["steps"][one["name"]]) for one in variants)]
    tables += [(f"[{name}]", grid[name]) for name in ("limits", "table") if name in grid]
    for head, values in tables:
        lines += ["", head, *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    file = runs.resolve(f"{folder}-time.toml")
    runs.write_text(file, "\n".join(lines) + "\n")
    call([*CALL, "grid", "start", str(file), "--out", f"{folder}-time", "--workers", str(workers)], only_print)
    stage_2(folder, only_print, protocol)


def coco_size_costs():
    """Counts only: they are the same on every machine."""
    usual = {"backbone_weights": "random", "batch_size": 1, "device": "cpu"}
    costs = cost.step_costs({name: Config.preset("coco", **usual, **own) for name, own in COCO_SIZE.items()}, repeats=0)
    costs = costs.drop(columns=["seconds", "images_a_second"]).astype(float)
    costs.to_csv(written("-costs.csv"), index_label="method", float_format="%.6g")
    print("wrote docs/methods-costs.csv")


def tables(protocol: str):
    """The summaries of the finished runs, as CSV, and the page about them. Where there are no runs, the CSV stays as it is."""
    notes = []
    for folder, name in ((SCENES, ""), (PHOTOS, "-photos")):
        found = compare.finished(folder, protocol)
        notes += found.notes
        if found.runs.empty:
            continue
        table = compare.summary(found.runs)
        if folder == SCENES:
            costs = measured(configs_of(SCENES, protocol)).drop(columns="images_a_second")
            table = table.join(costs.add_prefix("step "), on="setting")
            compare.curves(found.runs).to_csv(written("-curves.csv"), index=False, float_format="%.5g")
        table.to_csv(written(f"{name}.csv"), index=False, float_format="%.6g")
        compare.baselines(found.runs, protocol).to_csv(written(f"{name}-baselines.csv"), float_format="%.6g")
    if not written("-costs.csv").exists():
        coco_size_costs()
    names = (".csv", "-baselines.csv", "-photos.csv", "-photos-baselines.csv", "-costs.csv")
    if missing := [name for name in names if not written(name).exists()]:
        sys.exit(f"docs/methods.md is as it was: there is no docs/methods{missing[0]} yet, and no finished run that makes it")
    runs.write_text(written(".md"), page(*(pd.read_csv(written(name)) for name in names), notes))
    print("wrote docs/methods.md and the tables in docs/methods*.csv")


def page(scenes, scene_floors, photos, photo_floors, costs, notes: list[str]) -> str:
    commands = __doc__.partition("\n\n")[2].rpartition("\n\nstage2 and time")[0]
    lines = ["# DIAS and its neighbours", ""]
    lines += ["Written by `python docs/methods.py`; [07](../notebooks/07_methods.ipynb) judges the numbers. Made by", ""]
    lines += ["```", *(line.removeprefix("    ") for line in commands.splitlines()), "```", ""]
    lines += [
        "x100, mean ± standard deviation over n seeds; in brackets the paired difference to DIAS with its 95 % interval. Each "
        "method is scored by the map that its source scores: the decoder's, or the last iteration's; and all by the last "
        "iteration's. In italics what learns nothing: k-means with as many clusters as slots, position alone (as many tiles), "
        "and the maps' ceiling. Training seconds are as logged, whatever else the machine did meanwhile: what a method costs is "
        "in the table of steps.",
        "",
        "On shapes, slots, sizes, start, rates and threshold are the preset's, which were chosen for DIAS. Ten slots are "
        "more than a scene has things: who merges none must cut something, and ARI counts the background. *Six slots* shows "
        "what that costs; its k-means is the one of six. And training adds little to what this preset starts with ([the "
        "recipe](scenes_recipe.md)): the lead of DIAS is there before it, from merging. A decoder that goes in an order starts "
        "as a lookup one location late (DINOSAUR's map here); over all nine orders, as SPOT is scored, the delays cancel. "
        "Where a method is missing under the same wall time, it set that time: its runs are those above.",
    ]
    for view, part in scenes.groupby("view", sort=False):
        lines += score_table(part, scene_floors, f"Shapes, the {view.replace('time', 'wall time')}")
    lines += ["", "## What a training step costs", ""]
    lines += [
        "On shapes; the methods took turns in one process. Operations, memory for the backward pass, and passes are "
        "counted, an image.",
        "",
    ]
    lines += head(["method", "ms a step", "million operations", "MB for the backward pass", "passes of the backbone"])
    for _, one in scenes.drop_duplicates("setting").dropna(subset="step seconds").iterrows():
        counted = [f"{1000 * one['step seconds']:.0f}", f"{one['step operations'] / 1e6:.0f}", f"{one['step saved'] / 1e6:.1f}"]
        name = one["setting"].replace(compare.STAGE_2, "SPOT, stage 2")
        lines += [row([name, *counted, f"{one['step passes']:g}"])]
    lines += ["", "The same in the size of COCO (preset coco, ViT-S/14, 7 slots), counted on noise and random weights:", ""]
    passes = ["passes of the backbone", "of them with gradients"]
    lines += head(["method", "billion operations", "MB for the backward pass", *passes])
    for _, one in costs.iterrows():
        counted = [f"{one['operations'] / 1e9:.1f}", f"{one['saved'] / 1e6:.0f}"]
        lines += [row([one["method"], *counted, f"{one['passes']:g}", f"{one['passes with gradients']:g}"])]
    about = (
        "92 photos to learn from, 8 to choose checkpoints by; an ImageNet MobileNetV2 on 14x14 maps. Start, rates, batch and "
        "slot width are not the preset's but those of the grid's file, the same for all; the merge threshold was tuned on the "
        "92, which helps DIAS alone. DINOSAUR has its MLP decoder here, 256 wide and not 2048, which goes in no order."
    )
    lines += score_table(photos, photo_floors, "Photos of COCO, the same steps", about)
    lines += ["", "Not in the tables:", "", *(f"* {' '.join(note.split())}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def score_table(part: pd.DataFrame, floors: pd.DataFrame, title: str, about: str = "") -> list[str]:
    first = part.iloc[0]
    lines = ["", f"## {title}", "", f"Protocol {first['protocol']}, {first['images']} test images. {about}".rstrip(), ""]
    last = ", ".join(SHOWN[metric] for metric in LAST)
    lines += head(["method", "map", "n", "steps", "training, s", *SHOWN.values(), f"last map: {last}"])
    for _, one in part.iterrows():
        numbers = [one["setting"], one["own"], one["n"], f"{one['steps_in_all']:.0f}", f"{one['seconds_in_all']:.0f}"]
        last = ", ".join(f"{100 * one[f'last.{metric}']:.1f}" for metric in LAST)
        lines += [row([*numbers, *(score(one, f"own.{metric}") for metric in SHOWN), last])]
    for _, one in floors.iterrows():
        lines += [row([f"*{one['name']}*", "", "", "", "", *(f"{100 * one[metric]:.1f}" for metric in SHOWN), ""])]
    return lines


def head(cells: list[str]) -> list[str]:
    return [row(cells), row(["---"] * len(cells))]


def row(cells: list) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def score(one, column: str) -> str:
    differences = (one[f"{column} difference{end}"] for end in ("", " low", " high"))
    return intervals.mean_text(one[column], one[f"{column} std"]) + intervals.difference_text(*differences)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["stage2", "time", "tables", "costs"], default="tables")
    parser.add_argument("--folder", default=SCENES)
    parser.add_argument("--protocol", default="dias")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--print", action="store_true", dest="only_print")
    options = parser.parse_args()
    if options.what == "stage2":
        stage_2(options.folder, options.only_print, options.protocol)
    elif options.what == "time":
        same_time(options.folder, options.only_print, options.protocol, options.workers)
    elif options.what == "costs":
        coco_size_costs()
    else:
        tables(options.protocol)
