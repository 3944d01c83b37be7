"""What follows the grids of methods: the trials' winners, SPOT's second stage, and the tables.

    python -m dias_lab grid start notebooks/grids/methods_trials.toml --out runs/methods-trials
    python docs/methods.py trials            # docs/methods-trials.csv: the best setting of each, which methods.toml has
    python -m dias_lab grid start notebooks/grids/methods.toml --out runs/methods
    python docs/methods.py stage2            # for each finished run of SPOT's stage 1, its second stage, as many steps
    papermill notebooks/07_methods.ipynb runs/07.ipynb -p keep True    # the figure, and what each gets wrong
    python docs/methods.py                   # the tables: docs/methods.md and docs/methods*.csv

    python docs/methods_claims.py            # SmoothSA's and SPOT's claims, for 07: docs/methods-iterations.csv and -orders.csv
    python docs/methods.py costs             # docs/methods-costs.csv: what a step costs in the size of COCO; needs no run

stage2 takes --folder (runs/methods by default) and --print, which starts nothing. What is done is not repeated, what was
killed resumes. Everything lies beside the folder: runs/methods-stage2.
"""

import argparse
import shlex
import subprocess
import sys

import pandas as pd

from dias_lab import Config, runs
from dias_lab.analysis import compare, intervals, verdicts
from dias_lab.analysis.evaluate import METRICS, scores_name
from dias_lab.config import method_class
from dias_lab.data import store as stores
from dias_lab.training import cost

CALL = [sys.executable, "-m", "dias_lab"]
SCENES, TRIALS = "runs/methods", "runs/methods-trials"
# what the page of before said, on the difficulty shapes with ten slots, 120 steps: by each method's own map
BEFORE = {
    "DIAS": (68.5, 76.1, 70.6), "Slot Attention": (26.9, 67.2, 60.2), "SmoothSA": (25.6, 67.8, 60.3),
    "SPOT, stage 1": (30.5, 69.3, 59.8), "SPOT, both stages": (29.6, 66.2, 58.3), "DINOSAUR": (24.4, 47.7, 47.0),
    "VQDINO": (20.9, 61.0, 54.3), "SLATE": (20.9, 60.4, 54.1),
}  # fmt: skip
COCO_SIZE = {
    "DIAS": {},
    "SPOT, stage 1": {"method": "spot"},
    "SPOT, stage 2": {"method": "spot", "stage": 2},
    "SmoothSA": {"method": "smoothsa"},
    "DINOSAUR": {"method": "dinosaur"},
}
LAST = ("ari", "fg_ari", "mbo")
COST = ["training, s", "ms a step", "million operations", "MB for the backward pass"]
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
    for _, teacher in table[table["setting"] == compare.STAGE_1].iterrows():
        made = runs.read_json(runs.resolve(teacher["run"]) / "run.json")["parameters"]
        preset, digest = made.get("preset", "scenes"), teacher["run"].rpartition("-")[2]
        out = f"{folder}{compare.LATER}/seed-{teacher['seed']}-{digest}"
        fields = given(teacher["run"], preset) | {"stage": 2, "seed": teacher["seed"], "teacher_run": teacher["run"]}
        if runs.state(runs.resolve(out)) != "done":
            words = [f"--{key.replace('_', '-')}={value}" for key, value in fields.items()]
            call([*CALL, "train", "--preset", preset, "--method", "spot", "--run-dir", out, *words], only_print)
        test = runs.resolve(teacher["data"]) / "test.lmdb"
        limit = made.get("test_images") or 0
        if not (runs.resolve(out) / "scores" / scores_name(stores.open(test), protocol, limit)).exists():
            words = ["--data", runs.short(test), "--limit", str(limit), "--protocol", protocol]
            call([*CALL, "evaluate", "--run-dir", out, *words], only_print)


def trials(folder: str):
    """The trials' scores on validation, and which setting of each method is the best."""
    rows = []
    for run in runs.collect(folder).to_dict("records"):
        if run["state"] != "done":
            print(f"not there: {run['run']}: {run['state']}")
            continue
        method, _, setting = run["variant"].partition(": ")
        own = method_class(run["method"]).evaluated_map
        scores = {metric: run[f"scores.{own}.{metric}"] for metric in LAST}
        rows.append({"method": method, "setting": setting or "its own", **scores, "score": sum(scores.values()) / len(LAST)})
        rows[-1] |= {"steps": run["steps"], "images": run["scores.images"], "seed": run["seed"]}
    if not rows:
        sys.exit(f"no finished trial in {folder}")
    table = pd.DataFrame(rows)
    table["best"] = table["score"] == table.groupby("method")["score"].transform("max")
    table["place"] = [compare.ORDER.index(method) for method in table["method"]]
    table["other"] = table["setting"] != "its own"
    table = table.sort_values(["place", "other", "setting"]).drop(columns=["place", "other"])
    table.to_csv(written("-trials.csv"), index=False, float_format="%.4f")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """What a training step of each setting costs, all taking turns; of SPOT's second stage its own steps."""
    first = table.drop_duplicates("setting")
    configs = {row["setting"]: Config.load(runs.resolve(row["run"])) for _, row in first.iterrows()}
    return cost.step_costs(configs, stores.open(runs.resolve(first["data"].iloc[0]) / "train.lmdb"), repeats=15)


def coco_size_costs():
    """Counts only: they are the same on every machine."""
    usual = {"backbone_weights": "random", "batch_size": 1, "device": "cpu"}
    costs = cost.step_costs({name: Config.preset("coco", **usual, **own) for name, own in COCO_SIZE.items()}, repeats=0)
    costs = costs.drop(columns=["seconds", "images_a_second"]).astype(float)
    costs.to_csv(written("-costs.csv"), index_label="method", float_format="%.6g")
    print("wrote docs/methods-costs.csv")


def tables(folder: str, protocol: str):
    """The summaries of the finished runs, as CSV, and the page about them. Where there are no runs, the CSV stays as it is."""
    found = compare.finished(folder, protocol)
    if len(found.runs):
        compare.score_twins(found.runs, protocol)
        found = compare.finished(folder, protocol)
        costs = measured(found.runs).drop(columns="images_a_second")
        table = compare.summary(found.runs).join(costs.add_prefix("step "), on="setting")
        table.to_csv(written(".csv"), index=False, float_format="%.6g")
        compare.baselines(found.runs, protocol).to_csv(written("-baselines.csv"), float_format="%.6g")
    if not written("-costs.csv").exists():
        coco_size_costs()
    names = (".csv", "-baselines.csv", "-trials.csv", "-photos.csv", "-photos-baselines.csv", "-costs.csv")
    if missing := [name for name in names if not written(name).exists()]:
        sys.exit(f"docs/methods.md is as it was: there is no docs/methods{missing[0]} yet, and no finished run that makes it")
    runs.write_text(written(".md"), page(*(pd.read_csv(written(name)) for name in names), found.notes))
    print("wrote docs/methods.md and the tables in docs/methods*.csv")


def page(scenes, floors, tried, photos, photo_floors, costs, notes: list[str]) -> str:
    commands = __doc__.partition("\n\n")[2].rpartition("\n\nstage2 takes")[0]
    lines = ["# DIAS and its neighbours", ""]
    lines += ["Written by `python docs/methods.py`; [07](../notebooks/07_methods.ipynb) judges the numbers. Made by", ""]
    lines += ["```", *(line.removeprefix("    ") for line in commands.splitlines()), "```", ""]
    lines += [
        "On toys, the default scenes: same data, features, projector, place, k-means start, rates and number of steps, each "
        "method in the better of two settings (the trials below). A method is scored by the map that its source scores: the "
        "decoder's, or the last iteration's; and all by the last iteration's. x100, mean ± standard deviation over n seeds; in "
        "brackets the paired difference to DIAS with its 95 % interval. *Untrained* is the same map of the same method before "
        "its first step. In italics what learns nothing: k-means with as many clusters as slots, position alone (as many "
        "tiles), and the maps' ceiling.",
        "",
        "What is not equal. The preset's settings were found for DIAS, and the steps are few beside the recipe's 17,000 "
        "([where training finds the objects](learning.md)): the order says who is ahead early. DIAS, Slot Attention, SmoothSA "
        "and DINOSAUR may paint with slot frames, which none of the papers has; SPOT, VQDINO and SLATE bring decoders that go "
        "in an order, here 64 channels wide. SlotDiffusion is left out: its decoder denoises in the space of a pretrained "
        "autoencoder, for which two CPU cores have neither the weights nor the time.",
        "",
    ]
    first = scenes.iloc[0]
    lines += [f"## Toys, {first['steps']:.0f} steps", "", f"Protocol {first['protocol']}, {first['images']} test images.", ""]
    twins = ["untrained", "last map", "last map, untrained"]
    lines += head(["method", "map", "n", "steps", *(SHOWN[m] for m in LAST), *twins, *COST])
    for _, one in scenes.iterrows():
        cells = [one["setting"], one["own"], one["n"], f"{one['steps_in_all']:.0f}", *(score(one, f"own.{m}") for m in LAST)]
        cells += [three(one, ending) for ending in ("own.{} untrained", "last.{}", "last.{} untrained")]
        cells += [f"{one['seconds_in_all']:.0f}", f"{1000 * one['step seconds']:.0f}"]
        lines.append(row([*cells, f"{one['step operations'] / 1e6:.0f}", f"{one['step saved'] / 1e6:.1f}"]))
    for _, one in floors.iterrows():
        lines.append(row([f"*{one['name']}*", "", "", "", *(f"{100 * one[m]:.1f}" for m in LAST), *[""] * (3 + len(COST))]))
    lines += ["", "Three numbers are ARI / FG-ARI / mBO. Training seconds are as logged, whatever else the machine did;"]
    lines += ["steps were timed with all methods taking turns in one process. Operations and memory are counted, an image."]
    picture = "![The same pictures by all methods; on the right the first two before any training](methods.png)"
    lines += ["", picture] if written(".png").exists() else []
    by_name = floors.set_index("name")
    lines += ["", "**What the numbers say**", "", *(compare.words(one, by_name) for _, one in scenes.iterrows())]
    lines += ["", "## What changed against the page of before", "", changed(scenes), "", "## The trials", ""]
    about = [intervals.distinct(tried[name]) for name in ("seed", "steps", "images")]
    text = "Seed {}, {} steps, {} validation images, by the method's own map; the best by the mean went on.".format(*about)
    lines += [text, ""]
    lines += head(["method", "setting", *(SHOWN[m] for m in LAST), "mean"])
    for _, one in tried.iterrows():
        mark = "**" if one["best"] else ""
        numbers = [f"{100 * one[m]:.1f}" for m in (*LAST, "score")]
        lines.append(row([one["method"], f"{mark}{one['setting']}{mark}", *numbers]))
    lines += ["", "## What a training step costs in the size of COCO", ""]
    lines += ["Preset coco, ViT-S/14, 7 slots; counted, on noise and random weights.", ""]
    passes = ["passes of the backbone", "of them with gradients"]
    lines += head(["method", "billion operations", "MB for the backward pass", *passes])
    for _, one in costs.iterrows():
        counted = [f"{one['operations'] / 1e9:.1f}", f"{one['saved'] / 1e6:.0f}"]
        lines += [row([one["method"], *counted, f"{one['passes']:g}", f"{one['passes with gradients']:g}"])]
    lines += ["", half(scenes, costs), "", "## Photos of COCO", "", "As measured for the page of before, and not again: 92"]
    lines += ["photos to learn from, 8 to choose checkpoints by, 100 to be scored on; an ImageNet MobileNetV2 on 14x14 maps,"]
    lines += ["300 steps (`notebooks/grids/methods_photos.toml`); the threshold was tuned on the 92, which helps DIAS alone."]
    lines += ["", "<details><summary>The table</summary>", ""]
    lines += head(["method", "map", "n", *(SHOWN[m] for m in LAST), "last map"])
    for _, one in photos.iterrows():
        numbers = [score(one, f"own.{m}") for m in LAST]
        lines += [row([one["setting"], one["own"], one["n"], *numbers, three(one, "last.{}")])]
    lines += [row([f"*{one['name']}*", "", "", *(f"{100 * one[m]:.1f}" for m in LAST), ""]) for _, one in photo_floors.iterrows()]
    lines += ["", "</details>"]
    lines += ["", "Not in the tables:", "", *(f"* {' '.join(note.split())}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def changed(scenes: pd.DataFrame) -> str:
    """The paragraph on the page of before, which stood on shapes: its words follow from both tables."""
    now = scenes.set_index("setting")
    names = [name for name in BEFORE if name in now.index]
    bounds = {name: [now.loc[name, f"own.fg_ari gain{end}"] for end in (" low", " high")] for name in names}
    gain = {name: verdicts.side(*bounds[name], "up", "down", "") for name in names}
    learned, lost = ([name for name in names if gain[name] == word] for word in ("up", "down"))
    order = {"before": sorted(names, key=lambda name: -sum(BEFORE[name]))}
    order["now"] = sorted(names, key=lambda name: -sum(now.loc[name, f"own.{metric}"] for metric in LAST))
    first = "still" if order["now"][0] == "DIAS" else "no longer"
    lead = "; ".join(f"{word}: {' > '.join(order[word])}" for word in order)
    beaten = [name for name in names if (now.loc[name, "own.fg_ari difference low"] > 0)]
    return (
        "The page of before compared on *shapes*, regions of one texture with ten slots, after 120 steps, once for the same "
        "number of steps and once for the same wall time; there training added next to nothing, and merging alone put DIAS "
        "ahead. Now an object has parts, every method has trials of its own and its untrained twin beside it, there is one "
        "table, and the variants (the released form, six slots, DIAS on VQDINO's target) are gone. On toys training clearly "
        f"raises FG-ARI of {'; '.join(learned) or 'no method'}"
        + (f", and lowers that of {'; '.join(lost)}" if lost else "")
        + f". By the mean of ARI, FG-ARI and mBO, DIAS is {first} first ({lead}). "
        + (f"Clearly above it in FG-ARI: {'; '.join(beaten)}." if beaten else "No method is clearly above it in FG-ARI.")
    )


def half(scenes: pd.DataFrame, costs: pd.DataFrame) -> str:
    """The paper's "DIAS costs half of SPOT", judged."""
    toys, coco = scenes.set_index("setting")["step operations"], costs.set_index("method")["operations"]
    shares = {"on toys": compare.share(toys), "in the size of COCO": compare.share(coco, "SPOT, stage 2")}

    def word(value):
        if value != value:
            return "not measured"
        return "it holds" if 0.4 <= value <= 0.6 else "more than half" if value > 0.6 else "less than half"

    said = "; ".join(f"{where}, {word(value)} ({value:.0%} of the operations of both stages)" for where, value in shares.items())
    return f'"DIAS costs half of SPOT": {said}.'


def three(one, ending: str) -> str:
    return " / ".join(f"{100 * one[ending.format(metric)]:.0f}" for metric in LAST)


def head(cells: list[str]) -> list[str]:
    return [row(cells), row(["---"] * len(cells))]


def row(cells: list) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def score(one, column: str) -> str:
    differences = (one[f"{column} difference{end}"] for end in ("", " low", " high"))
    return intervals.mean_text(one[column], one[f"{column} std"]) + intervals.difference_text(*differences)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["trials", "stage2", "tables", "costs"], default="tables")
    parser.add_argument("--folder", help=f"{SCENES}, or of trials {TRIALS}")
    parser.add_argument("--protocol", default="dias")
    parser.add_argument("--print", action="store_true", dest="only_print")
    options = parser.parse_args()
    if options.what == "stage2":
        stage_2(options.folder or SCENES, options.only_print, options.protocol)
    elif options.what == "trials":
        trials(options.folder or TRIALS)
    elif options.what == "costs":
        coco_size_costs()
    else:
        tables(options.folder or SCENES, options.protocol)
