"""What follows the grid notebooks/grids/methods.toml: SPOT's second stage, the runs of equal wall time, and the tables.

    python -m dias_lab grid start notebooks/grids/methods.toml --out runs/methods
    python docs/methods.py stage2            # for each finished run of SPOT's stage 1, its second stage, as many steps
    python docs/methods.py time              # the same wall time for all: measures a step of each, starts the grid, and stage 2
    python docs/methods.py                   # docs/methods.csv, docs/methods-curves.csv, docs/methods.md
    python docs/methods.py photos            # docs/methods-photos.csv: what a step costs in the size of COCO; needs no run

Each takes --folder (runs/methods by default); stage2 and time take --print, which starts nothing. What is done is not
repeated, what was killed resumes. Everything lies beside the folder: runs/methods-stage2, runs/methods-time, and
runs/methods-time-stage2. The wall time is that of the slowest single stage in the first grid, by what a step costs when
all methods take turns in one process; the two stages of SPOT share it, half each. Every run chooses its checkpoint out of
as many as in the first grid.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tomllib

import pandas as pd

from dias_lab import Config, compare, runs
from dias_lab.data import store as stores

CALL = [sys.executable, "-m", "dias_lab"]
PHOTOS = {
    "DIAS": {},
    "SPOT, stage 1": {"method": "spot"},
    "SPOT, stage 2": {"method": "spot", "stage": 2},
}
PHOTOS |= {"SmoothSA": {"method": "smoothsa"}, "DINOSAUR": {"method": "dinosaur"}}
PHOTO_COSTS = runs.resolve("docs/methods-photos.csv")
SHOWN = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO", "miou": "mIoU"}


def call(words: list[str], only_print: bool):
    print(shlex.join(["python", *words[1:]]), flush=True)
    if not only_print:
        subprocess.run(words, check=True, cwd=runs.root())


def given(run, preset: str) -> dict:
    """The fields of a run that are not as the preset has them."""
    config, usual = (
        Config.load(runs.resolve(run)).to_dict(),
        Config.preset(preset, method="spot").to_dict(),
    )
    return {
        name: value for name, value in config.items() if value != usual[name] and name != "seed"
    }


def stage_2(folder: str, only_print: bool, protocol: str):
    """Train and score the second stage for every teacher in the folder that is done."""
    table = compare.finished(folder, protocol).runs
    if table.empty or compare.STAGE_1 not in set(table["setting"]):
        sys.exit(f"no finished run of {compare.STAGE_1} in {folder}")
    for ending in compare.VIEWS.values():
        name = compare.HALF if ending else compare.STAGE_1
        chosen = table[
            [
                row["setting"] == name and compare.VIEWS[row["view"]] == ending
                for _, row in table.iterrows()
            ]
        ]
        for _, teacher in chosen.iterrows():
            made = runs.read_json(runs.resolve(teacher["run"]) / "run.json")["parameters"]
            preset, out = (
                made.get("preset", "scenes"),
                f"{folder}{ending}-stage2/seed-{teacher['seed']}",
            )
            fields = given(teacher["run"], preset) | {
                "stage": 2,
                "seed": teacher["seed"],
                "teacher_run": teacher["run"],
            }
            if ending:
                fields |= plan(folder)["steps"][compare.STAGE_2]
            if runs.state(runs.resolve(out)) != "done":
                words = [f"--{key.replace('_', '-')}={value}" for key, value in fields.items()]
                call(
                    [
                        *CALL,
                        "train",
                        "--preset",
                        preset,
                        "--method",
                        "spot",
                        "--run-dir",
                        out,
                        *words,
                    ],
                    only_print,
                )
            test = runs.resolve(teacher["data"]) / "test.lmdb"
            limit = made.get("test_images") or 0
            part = f"-first{limit}" if 0 < limit < len(stores.open(test)) else ""
            if not (runs.resolve(out) / f"scores/test-{protocol}{part}.json").exists():
                words = ["--data", runs.short(test), "--limit", str(limit), "--protocol", protocol]
                call([*CALL, "evaluate", "--run-dir", out, *words], only_print)


def configs_of(folder: str, protocol: str) -> dict[str, Config]:
    """Of each setting in the first grid the config, and of SPOT's second stage the one that follows."""
    table = compare.finished(folder, protocol).runs
    if table.empty:
        sys.exit(
            f"no finished run in {folder}: python -m dias_lab grid start notebooks/grids/methods.toml --out {folder}"
        )
    rows = table[
        (table["view"] == "same steps") & (table["setting"] != compare.STAGE_2)
    ].drop_duplicates("setting")
    configs = {row["setting"]: Config.load(runs.resolve(row["run"])) for _, row in rows.iterrows()}
    if compare.STAGE_1 in configs:
        configs[compare.STAGE_2] = configs[compare.STAGE_1].replace(stage=2)
    return configs


def measured(configs: dict[str, Config]) -> pd.DataFrame:
    first = next(iter(configs.values()))
    return compare.step_costs(
        configs, stores.open(runs.resolve(first.data) / "train.lmdb"), repeats=15
    )


def plan(folder: str, protocol: str = "dias") -> dict:
    """What a step costs, the wall time, and the steps that each method has in it; measured once, then read."""
    path = runs.resolve(f"{folder}-time/plan.json")
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
    fixed = {
        key: value for key, value in grid["fixed"].items() if key not in ("steps", "evaluate_every")
    }
    variants = [one for one in grid["variants"] if one["name"] in found["steps"]]
    variants += [one | {"name": compare.HALF} for one in variants if one["name"] == compare.STAGE_1]
    lines = [
        "# The same wall time for every method; written by docs/methods.py from what a step costs.",
        "",
    ]
    lines += [f"{key} = {json.dumps(grid[key])}" for key in ("notebook", "seeds")]
    tables = [
        ("[fixed]", fixed),
        *(("[[variants]]", one | found["steps"][one["name"]]) for one in variants),
    ]
    tables += [("[table]", grid["table"])] if "table" in grid else []
    for head, values in tables:
        lines += ["", head, *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    file = runs.resolve(f"{folder}-time/methods-time.toml")
    runs.write_text(file, "\n".join(lines) + "\n")
    call(
        [*CALL, "grid", "start", str(file), "--out", f"{folder}-time", "--workers", str(workers)],
        only_print,
    )
    stage_2(folder, only_print, protocol)


def tables(folder: str, protocol: str):
    found = compare.finished(folder, protocol)
    costs = measured(configs_of(folder, protocol)).drop(columns="images_a_second")
    table = compare.summary(found.runs)
    table = table.join(costs.add_prefix("step "), on="setting")
    table.to_csv(runs.resolve("docs/methods.csv"), index=False, float_format="%.6g")
    compare.curves(found.runs).to_csv(
        runs.resolve("docs/methods-curves.csv"), index=False, float_format="%.5g"
    )
    photos = pd.read_csv(PHOTO_COSTS, index_col="method") if PHOTO_COSTS.exists() else photo_costs()
    runs.write_text(runs.resolve("docs/methods.md"), page(folder, table, photos, found.notes))
    print("wrote docs/methods.csv, docs/methods-curves.csv, docs/methods.md")


def photo_costs() -> pd.DataFrame:
    """Counts only: they are the same on every machine."""
    usual = {"backbone_weights": "random", "batch_size": 1, "device": "cpu"}
    photos = compare.step_costs(
        {name: Config.preset("coco", **usual, **own) for name, own in PHOTOS.items()}, repeats=0
    )
    photos = photos.drop(columns=["seconds", "images_a_second"]).astype(float)
    photos.to_csv(PHOTO_COSTS, index_label="method", float_format="%.6g")
    print("wrote docs/methods-photos.csv")
    return photos


def page(folder: str, table: pd.DataFrame, photos: pd.DataFrame, notes: list[str]) -> str:
    own = "" if folder == "runs/methods" else f" --folder {folder}"
    lines = ["# DIAS and its neighbours on the built-in scenes", ""]
    lines += [
        "Written by `python docs/methods.py`; [07 · Methods](../notebooks/07_methods.ipynb) judges the numbers. Made by",
        "",
        "```",
    ]
    lines += [f"python -m dias_lab grid start notebooks/grids/methods.toml --out {folder}"]
    lines += [
        " ".join(f"python docs/methods.py {word}{own}".split()) for word in ("stage2", "time", "")
    ] + ["```"]
    for view, part in table.groupby("view", sort=False):
        first = part.iloc[0]
        lines += ["", f"## The {view.replace('time', 'wall time')}", ""]
        lines += [
            f"Decoder map, x100, protocol {first['protocol']}, {first['images']} test images, mean ± standard deviation over "
            "n seeds; in brackets the paired difference to DIAS with its 95 % interval.",
            "",
        ]
        lines += [
            row(["method", "n", "steps", "training, s", *SHOWN.values()]),
            row(["---"] * (4 + len(SHOWN))),
        ]
        for _, one in part.iterrows():
            numbers = [
                one["setting"],
                one["n"],
                f"{one['steps_in_all']:.0f}",
                f"{one['seconds_in_all']:.0f}",
            ]
            lines += [row(numbers + [score(one, f"decoder.{metric}") for metric in SHOWN])]
    lines += [
        "",
        "## What a training step costs",
        "",
        "On the scenes; the methods took turns in one process. Operations, memory for the backward pass, and passes "
        "are counted, an image.",
        "",
    ]
    lines += [
        row(
            [
                "method",
                "ms a step",
                "million operations",
                "MB for the backward pass",
                "passes of the backbone",
            ]
        ),
        row(["---"] * 5),
    ]
    for _, one in table.drop_duplicates("setting").dropna(subset="step seconds").iterrows():
        counted = [
            f"{1000 * one['step seconds']:.0f}",
            f"{one['step operations'] / 1e6:.0f}",
            f"{one['step saved'] / 1e6:.1f}",
        ]
        lines += [
            row(
                [
                    one["setting"].replace(compare.STAGE_2, "SPOT, stage 2"),
                    *counted,
                    f"{one['step passes']:g}",
                ]
            )
        ]
    lines += [
        "",
        "The same in the size of COCO (preset coco, ViT-S/14, 7 slots), counted on noise and random weights:",
        "",
    ]
    lines += [
        row(
            [
                "method",
                "billion operations",
                "MB for the backward pass",
                "passes of the backbone",
                "of them with gradients",
            ]
        ),
        row(["---"] * 5),
    ]
    for name, one in photos.iterrows():
        lines += [
            row(
                [
                    name,
                    f"{one['operations'] / 1e9:.1f}",
                    f"{one['saved'] / 1e6:.0f}",
                    f"{one['passes']:g}",
                    f"{one['passes with gradients']:g}",
                ]
            )
        ]
    lines += (
        ["", "Not in the tables:", "", *(f"* {' '.join(note.split())}" for note in notes)]
        if notes
        else []
    )
    return "\n".join(lines) + "\n"


def row(cells: list) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def score(one, column: str) -> str:
    text = f"{100 * one[column]:.1f}" + (
        f" ± {100 * one[f'{column} std']:.1f}" if one["n"] > 1 else ""
    )
    difference, low, high = (
        100 * one[f"{column} difference{end}"] for end in ("", " low", " high")
    )
    if difference != difference:
        return text
    return (
        text
        + f" [{difference:+.1f}"
        + (f": {low:+.1f} to {high:+.1f}]" if low == low else ", no interval]")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=["stage2", "time", "tables", "photos"], default="tables"
    )
    parser.add_argument("--folder", default="runs/methods")
    parser.add_argument("--protocol", default="dias")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--print", action="store_true", dest="only_print")
    options = parser.parse_args()
    if options.what == "stage2":
        stage_2(options.folder, options.only_print, options.protocol)
    elif options.what == "time":
        same_time(options.folder, options.only_print, options.protocol, options.workers)
    elif options.what == "photos":
        photo_costs()
    else:
        tables(options.folder, options.protocol)
