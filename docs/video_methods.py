"""Temporal DIAS beside its neighbours on clips: the tables docs/video_methods.csv and docs/video-methods-*.csv, and their page.

    python -m dias_lab convert clips --train 600 --validation 30 --test 60 --out data/clips
    python -m dias_lab grid start notebooks/grids/video.toml --out runs/video
    python docs/video_methods.py            # and the section of docs/video.md between its two comments

It reads the finished runs, and says which are missing; what it cannot measure anew stays as the tables have it. `scores`:
of each run's own map and its last one, of its untrained twin (kept beside the run), and costs; `events`: what each loses
identity over; `claims`: what the papers say, each as two models that differ in one thing. All three unless some are named.
"""

import argparse
import tomllib

import pandas as pd
import torch
from methods import head, row  # docs/methods.py and docs/video.py, which lie beside this file
from video import METRICS, events, floors

from dias_lab import Config, load_model, runs
from dias_lab.analysis import compare, intervals, verdicts
from dias_lab.analysis.clips import KINDS
from dias_lab.analysis.evaluate import evaluate
from dias_lab.analysis.interventions import with_fields
from dias_lab.data import store
from dias_lab.training import cost

BASELINE, GRID = "temporal DIAS", "notebooks/grids/video.toml"
FILES = {"scores": "video_methods", "events": "video-methods-events", "claims": "video-methods-claims"}
MARKS = "<!-- from here to the next comment: python docs/video_methods.py -->\n", "<!-- video_methods.py ends -->\n"
TITLES = intervals.TITLES | {"switches": "switches a clip"}
LAST = ("video_ari", "video_fg_ari", "video_mbo")
COSTS = ("training, s", "ms a step", "million operations", "MB")
INTRODUCTION = """\
{steps:.0f} steps from random weights for each method (`notebooks/grids/video.toml`, `docs/video_methods.py`): same clips,
features, projector and place. The preset's numbers were found for DIAS. Temporal DIAS alone had trials (one seed each: a lower
rate, no self-distillation, an encoder layer): with its preset's transition, the last row, or an encoder layer it unlearns what
it knew, for gradients grow through the frames (norms of 20 to 100 beside 1); a transition that cuts them, RSFQ, mends it.
Protocol {protocol}, {images} test frames, x100 but for switches,
mean ± standard deviation over n seeds; in brackets the paired difference to
temporal DIAS with its 95 % interval over seeds and clips. A method is scored by the map that its source scores. *Image level*
is ARI / FG-ARI / mBO, *gap* what of FG-ARI is lost between the levels. In italics what learns nothing."""
ABOUT_COSTS = """\
What training added, what the last iteration's map says (video ARI / FG-ARI / mBO), and what it all costs. Training seconds
are as logged, whatever else the machine did; steps were timed with all methods taking turns in one process. Operations, and
memory that waits for the backward pass, are counted, a clip of a training."""
ABOUT_EVENTS = """\
**What each loses identity over**: switches in 100 chances (of so many), of all worlds and seeds, by the method's own map."""
# what a claim is measured by: the name of the gain, and how much the score counts; a switch less is a gain
MEASURES = {"video_fg_ari": ("video FG-ARI", 100), "switches": ("switches a clip saved", -1)}
# what is claimed, whose gain over which other setting it is (a setting of the grid, and fields that its weights are given),
# and how much of each measure may be lost: that one thing suffices is no gain
CLAIMS = (
    ("SmoothSA: on later frames one iteration suffices", "1 iteration beside 3, the same weights; at most 2 points and half a "
     "switch are lost", ("SmoothSA", {"next_iterations": 1}), ("SmoothSA", {"next_iterations": 3}), (2, 0.5)),
    ("SlotContrast: the contrast keeps identity", "trained with it beside trained without",
     ("SlotContrast", {}), ("SlotContrast, no contrast", {}), (0, 0)),
    ("RandSF.Q: slots of random frames and the features ahead make a better transition", "trained with it beside trained with an "
     "encoder layer", ("RandSF.Q", {}), ("RandSF.Q, plain transition", {}), (0, 0)),
    ("DIAS: re-initialization on the first frame helps", "as trained beside no merging, the same weights",
     (BASELINE, {}), (BASELINE, {"merging": "none"}), (0, 0)),
)  # fmt: skip


def file(part: str):
    return runs.resolve(f"docs/{FILES[part]}.csv")


def scores(found: pd.DataFrame, test, limit: int, repeats: int) -> pd.DataFrame:
    """A row a method with what a training step costs, all taking turns; then a row for each of what learns nothing."""
    first = found.drop_duplicates("setting").set_index("setting")
    configs = {name: Config.load(runs.resolve(run)) for name, run in first["run"].items()}
    costs = cost.step_costs(configs, store.open(runs.resolve(first["data"].iloc[0]) / "train.lmdb"), repeats)
    beside = floors(load_model(first["run"].iloc[0]), test, limit).groupby("setting", sort=False)[METRICS].mean()
    table = compare.summary(found, BASELINE).join(costs.add_prefix("step "), on="setting")
    return pd.concat([table, beside.add_prefix("own.").reset_index()], ignore_index=True)


def by_clip(found: pd.DataFrame, setting: str, fields: dict, test, limit: int) -> dict[str, pd.DataFrame]:
    """Of each measure what a setting's runs score with these fields, by their own map: seeds by clips."""
    tables = []
    for one in found[found["setting"] == setting].to_dict("records"):
        if fields:
            model = with_fields(load_model(one["run"]), **fields)
            table = evaluate(model, test, one[f"{one['stem']}.protocol"], limit=limit).images
        else:
            table = pd.read_csv(runs.resolve(one["run"]) / "scores" / f"{one['stem']}.images.csv")
        own = {metric: table[f"{one['own']}.{metric}"] for metric in MEASURES}
        tables.append(pd.DataFrame(own).assign(item=table["item"], seed=one["seed"]))
        print(setting, one["seed"], fields or "as trained", *(f"{value.mean():.3g}" for value in own.values()), flush=True)
    whole = pd.concat(tables) if tables else pd.DataFrame(columns=[*MEASURES, "item", "seed"])
    return {metric: whole.pivot(index="seed", columns="item", values=metric) for metric in MEASURES}


def claims(found: pd.DataFrame, test, limit: int) -> pd.DataFrame:
    """A row a claim and measure: n seeds, and the gain with its interval, FG-ARI in points; NaN where runs are missing."""
    rows = []
    for claim, about, of, to, lost in CLAIMS:
        own, other = (by_clip(found, *one, test, limit) for one in (of, to))
        for (metric, (name, scale)), margin in zip(MEASURES.items(), lost):
            gain = (scale * (own[metric] - other[metric])).dropna(how="all").dropna(axis=1, how="all")
            change = intervals.widened_interval(gain.to_numpy(float)) if gain.size else [float("nan")] * 3
            known = dict(zip(("gain", "low", "high"), change))
            rows.append({"claim": claim, "about": about, "measure": name, "n": len(gain), **known, "margin": margin})
    return pd.DataFrame(rows)


def shown(one, metric: str, kind: str = "own") -> str:
    """Mean ± deviation [difference: interval]."""
    scale, names = 0.01 if metric == "switches" else 1, ("", " std", *(f" difference{end}" for end in ("", " low", " high")))
    mean, std, *change = (scale * one.get(f"{kind}.{metric}{name}", float("nan")) for name in names)
    return intervals.mean_text(mean, std) + intervals.difference_text(*change)


def three(one, column: str) -> str:
    values = [one.get(column.format(metric), float("nan")) for metric in ("ari", "fg_ari", "mbo")]
    return "" if all(value != value for value in values) else " / ".join(f"{100 * value:.0f}" for value in values)


def verdict(one) -> str:
    if pd.isna(one["gain"]):
        return "runs are missing"
    word = verdicts.claimed(*one[["low", "high", "margin"]])
    return f"{word} ({one['measure']} {verdicts.points(*one[['gain', 'low', 'high']])}, n = {one['n']})"


def score_table(methods: pd.DataFrame, beside: pd.DataFrame) -> list[str]:
    lines = head(["method", "map", "n", *(TITLES[metric] for metric in LAST), "image level", "gap", TITLES["switches"]])
    for _, one in pd.concat([methods, beside]).iterrows():
        about = [one["setting"], one["own"], one["n"]] if one["n"] == one["n"] else [f"*{one['setting']}*", "", ""]
        more = [three(one, "own.image_{}"), shown(one, "gap").partition(" [")[0], shown(one, "switches")]
        lines.append(row([*about, *(shown(one, metric) for metric in LAST), *more]))
    return lines


def cost_table(methods: pd.DataFrame) -> list[str]:
    lines = head(["method", "untrained", "its switches", "video FG-ARI gained", "last map", "its switches", *COSTS])
    for _, one in methods.iterrows():
        gain = verdicts.points(*(100 * one.get(f"own.video_fg_ari gain{end}", float("nan")) for end in ("", " low", " high")))
        learned = [three(one, "own.video_{} untrained"), f"{one['own.switches untrained']:.1f}", gain]
        last = [three(one, "last.video_{}"), f"{one['last.switches']:.1f}"]
        costs = [f"{one['seconds_in_all']:.0f}", f"{1000 * one['step seconds']:.0f}", f"{one['step operations'] / 1e6:.0f}"]
        lines.append(row([one["setting"], *learned, *last, *costs, f"{one['step saved'] / 1e6:.1f}"]))
    return lines


def event_table(lost: pd.DataFrame) -> list[str]:
    counts = lost.groupby(["setting", "event"])[["pairs", "switches"]].sum()
    kinds = [kind for kind in KINDS if kind in set(lost["event"])]
    lines = head(["method", *("nothing" if kind == "none" else kind for kind in kinds)])
    for name in lost["setting"].unique():
        own = [counts.loc[(name, kind)] for kind in kinds]
        lines.append(row([name, *(f"{100 * one['switches'] / one['pairs']:.1f} ({one['pairs']:.0f})" for one in own)]))
    return lines


def page(table: pd.DataFrame, lost: pd.DataFrame, claimed: pd.DataFrame, notes: list[str]) -> str:
    beside = table[table["n"].isna()]
    methods = table[table["n"].notna()].astype({"n": int, "num_slots": int}).astype({"n": object, "num_slots": object})
    first, known = methods.iloc[0], beside.set_index("setting").rename(columns=lambda name: name.removeprefix("own."))
    known = known.rename(index={"k-means": f"k-means, {first['num_slots']}"})
    about = first[["steps", "protocol"]].to_dict() | {"images": str(first["images"]).removesuffix(".0")}
    lines = ["## Beside its neighbours", "", INTRODUCTION.format(**about), ""]
    lines += [*score_table(methods, beside), "", ABOUT_COSTS, "", *cost_table(methods), "", "**What the numbers say**", ""]
    lines += [*(compare.words(one, known, BASELINE) for _, one in methods.iterrows()), "", ABOUT_EVENTS, "", *event_table(lost)]
    lines += ["", "**What the papers claim, here**", ""]
    for claim, own in claimed.groupby("claim", sort=False):
        said = dict.fromkeys(verdict(one) for _, one in own.iterrows())
        lines.append(f"* {claim} ({own['about'].iloc[0]}): {'; '.join(said)}")
    lines += ["", f"Not there: {'; '.join(' '.join(note.split()) for note in notes)}."] if notes else []
    return "\n".join(lines) + "\n"


def main(options):
    found = compare.finished(options.folder, options.protocol)
    wanted = [variant["name"] for variant in tomllib.loads(runs.resolve(GRID).read_text())["variants"]]
    known = {*found.runs.get("setting", ()), *(note.partition(", seed ")[0] for note in found.notes)}
    notes = [*found.notes, *(f"{name}: no run" for name in wanted if name not in known)]
    print(*(f"not there: {note}" for note in notes), sep="\n")
    if found.runs.empty:
        return f"no finished run in {options.folder}\n"
    test = store.open(runs.resolve(found.runs["data"].iloc[0]) / "test.lmdb")
    limit = options.clips or int(found.runs[f"{found.runs['stem'].iloc[0]}.clips"].iloc[0])
    if "scores" in options.parts:
        compare.score_twins(found.runs, options.protocol)
        found = compare.finished(options.folder, options.protocol)
    place = [[*wanted, name].index(name) for name in found.runs["setting"]]
    table = found.runs.assign(place=place).sort_values(["place", "seed"])
    make = {"scores": lambda: scores(table, test, limit, options.repeats), "claims": lambda: claims(table, test, limit)}
    make["events"] = lambda: pd.concat([
        events([*map(load_model, own["run"])], options.event_clips).assign(setting=name)
        for name, own in table.groupby("setting", sort=False)
    ])  # fmt: skip
    for part in options.parts:
        with torch.set_grad_enabled(part == "scores"):
            make[part]().to_csv(file(part), index=False, float_format="%.6g")
        print(f"wrote {runs.short(file(part))}", flush=True)
    if missing := [part for part in FILES if not file(part).exists()]:
        return f"docs/video.md is as it was: nothing has measured its {' and '.join(missing)} yet\n"
    path = runs.resolve("docs/video.md")
    before, begin, rest = path.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        return f"{path} does not hold the comments {MARKS[0]!r} and {MARKS[1]!r}, between which the section goes\n"
    text = page(*(pd.read_csv(file(part)) for part in FILES), notes)
    runs.write_text(path, f"{before}{begin}\n{text}\n{end}{after}")
    print("wrote the section of docs/video.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(FILES)}; all, where none is named")
    parser.add_argument("--folder", default="runs/video")
    parser.add_argument("--protocol", default="dias")
    parser.add_argument("--clips", type=int, default=0, help="only the first ones, for the claims and what learns nothing")
    parser.add_argument("--event-clips", type=int, default=10, help="of each world")
    parser.add_argument("--repeats", type=int, default=9, help="steps of each method, to time them")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(FILES):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: there are {', '.join(FILES)}")
    given.parts = given.parts or [*FILES]
    if problem := main(given):
        parser.exit(1, problem)
