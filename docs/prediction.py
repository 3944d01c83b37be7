"""Whose slots foresee best, and answer best: docs/prediction.csv, reasoning.csv, prediction-claims.csv, and docs/prediction.md.

    python -m dias_lab convert clips --train 600 --validation 30 --test 60 --out data/clips
    python -m dias_lab grid start notebooks/grids/video.toml --out runs/video
    for seed in 42 43 44; do
        python -m dias_lab train --preset scenes --seed $seed --run-dir runs/scenes-$seed
        python -m dias_lab train --preset clips --from runs/scenes-$seed --seed $seed --run-dir runs/clips-$seed; done
    python -m dias_lab convert physics --train 400 --validation 40 --test 100 --out data/physics
    python -m dias_lab convert physics --train 2000 --validation 100 --test 150 --frames 9 --questions-times 8 --out data/asked
    python docs/prediction.py train          # --list: only say what is missing
    python docs/prediction.py                # the tables and the page, of what is finished

Slot models are given as NAME=PATTERN, a run a seed (`--parents "temporal DIAS=runs/video/temporal-DIAS-seed-*"`; several
patterns with commas), or one run for all seeds. On each stands SlotFormer, on its slots and on those of its untrained twin;
then questions about other clips, of which hardly more is painted than is seen, are answered from these frames, of the twin too,
and from these and a rollout. Once a seed the same of true states, and of questions alone. A run that is finished is not
repeated, one that was stopped goes on; the first seed of everything comes first. Scores are of the test split, which chose
nothing; best checkpoint by validation.
"""

import argparse
import glob
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from methods import head, row  # docs/methods.py, which lies beside this file

from dias_lab import files, fit, runs
from dias_lab.analysis import intervals, verdicts
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.prediction import answers
from dias_lab.prediction.curves import METRICS, curves, longest
from dias_lab.prediction.predictor import load
from dias_lab.prediction.reasoning import sat

LONGER = "trained for longer"
PARENTS = {
    LONGER: "runs/clips-*",  # temporal DIAS from image models: beside the others, not one of them
    "temporal DIAS": "runs/video/temporal-DIAS-seed-*",
    "VideoSAUR": "runs/video/VideoSAUR-seed-*",
    "SlotContrast": "runs/video/SlotContrast-seed-*",
}
TRUE, ALONE, UNTRAINED = "true states", "questions alone", ", untrained"
OURS, RIVALS = "temporal DIAS", ("VideoSAUR", "SlotContrast")  # trained for as many steps
ENDS, LAST = ("", "_low", "_high"), {"fg_ari": 100, "slot_error": 1}
INTRODUCTION = """\
Written by `python docs/prediction.py`; [10 · Prediction](../notebooks/10_prediction.ipynb) says what is asked and how. Clips of
the built-in world with physics, a stand-in: no number here may stand beside one of a paper. {about}. SlotFormer sees 6 frames;
a reader is shown the first and the last of 8, and with a rollout four more of the 20 that follow, as foreseen. Means with 95 %
intervals over n seeds and clips, of one seed over clips alone. *{longer}* is temporal DIAS, as it comes with the package, from an
image model: no rival of the others, which had fewer steps; *true states* are the simulator's; an object's slot is found on the
frames that are seen, and objects without one do not count."""
BY_HAND = "<!-- what follows is kept by docs/prediction.py -->"
AHEAD = 20  # frames that are foreseen after the 8 that are seen


class Planned(NamedTuple):
    """A run to be trained: of whose slots, what it learns, and where."""

    of: str
    what: str  # "SlotFormer", "seen", "rolled out" or "blind"
    seed: int
    folder: Path
    config: Config

    @property
    def state(self) -> str:
        found = [(self.folder / name).exists() for name in ("metrics.json", "config.json")]
        return "finished" if found[0] else "begun" if found[1] else "missing"

    def differs(self) -> list[str]:
        """The fields that a run that is there has otherwise than it is planned; of numbers, what they are."""
        old, new = (one.to_dict() for one in (Config.load(self.folder), self.config))
        return [
            name if isinstance(old[name], str) else f"{name} {old[name]}"
            for name in new
            if new[name] != old[name] and name not in {"device"} | self.config.unread()
        ]

    def text(self) -> str:
        return f"{self.of}, {self.what}, seed {self.seed}: {runs.short(self.folder)}"


def parents_of(pattern: str, seeds: list[int]) -> dict[int, str]:
    """The finished run for each seed; one run is for all. ValueError where two have the same seed."""
    places = [Path(one) for part in pattern.split(",") for one in sorted(glob.glob(str(runs.resolve(part))))]
    folders = [folder for folder in places if (folder / "metrics.json").exists()]
    if len(folders) == 1 and "*" not in pattern:
        return dict.fromkeys(seeds, runs.short(folders[0]))
    found = {}
    for folder in folders:
        seed = Config.load(folder).seed
        if seed in found:
            raise ValueError(f"{found[seed]} and {runs.short(folder)} have the same seed {seed}: give a pattern of one of them")
        found[seed] = runs.short(folder)
    return {seed: found[seed] for seed in seeds if seed in found}


def plan(options) -> tuple[list[Planned], list[str]]:
    """The runs in their order, and what slot models are missing."""
    found = {name: parents_of(pattern, options.seeds) for name, pattern in options.parents.items()}
    notes = [f"{name}, seed {seed}: no finished run" for seed in options.seeds for name in found if seed not in found[name]]
    shared = dict(data=options.data, device=options.device)
    of_task = {"prediction": dict(shared, steps=options.steps)}
    of_task["reasoning"] = dict(shared, data=options.asked, steps=options.reasoning_steps)
    planned = []

    def add(of: str, what: str, seed: int, parent: str, **fields):
        folder = runs.resolve(options.out) / of.replace(", ", "-").replace(" ", "-") / f"{what.replace(' ', '-')}-{seed}"
        task = "prediction" if what == "SlotFormer" else "reasoning"
        config = Config.load(runs.resolve(parent)).for_task(task, parent, seed=seed, **of_task[task], **fields)
        if not options.only or (what if not of.endswith(UNTRAINED) else "untrained") in options.only:
            planned.append(Planned(of, what, seed, folder, config))
        return runs.short(folder)

    def whole(of: str, seed: int, parent: str, **fields):
        foreseen = add(of, "SlotFormer", seed, parent, **fields)
        add(of, "seen", seed, parent, **fields)
        add(of, "rolled out", seed, parent, predictor=foreseen, rollout=AHEAD, **fields)

    for seed in options.seeds:
        there = {name: parents[seed] for name, parents in found.items() if seed in parents}
        for name, parent in there.items():
            whole(name, seed, parent)
        for parent in list(there.values())[:1]:  # any: what they learn does not depend on it
            whole(TRUE, seed, parent, slots_of="oracle")
            add(ALONE, "blind", seed, parent, blind=True)
        for name, parent in there.items():
            add(name + UNTRAINED, "SlotFormer", seed, parent, slots_of="untrained")
            add(name + UNTRAINED, "seen", seed, parent, slots_of="untrained")
    return planned, notes


def train(planned: list[Planned], only_list: bool):
    """All that are not finished, one after the other; a failed one stops nothing, and is said again at the end."""
    wanted, failed = [one for one in planned if one.state != "finished"], []
    print(f"{len(planned) - len(wanted)} of {len(planned)} runs are finished", flush=True)
    for number, one in enumerate(wanted, start=1):
        print(f"{number} of {len(wanted)} ({one.state}) {one.text()}", flush=True)
        if only_list:
            continue
        try:
            result = fit(one.config, one.folder, progress=False)
            print(f"    {result['seconds']:.0f} s of steps, best step {result['best_step']} of {result['steps']}", flush=True)
        except (ValueError, OSError, RuntimeError) as error:
            failed.append(f"{one.text()}: {error}")
            print(f"    failed: {error}", flush=True)
    return failed


def curves_of(one: Planned, test, limit: int) -> pd.DataFrame:
    """The errors of a finished SlotFormer on the test split, kept beside its scores: decoding takes its time."""
    file = one.folder / "scores" / f"curves-{test.fingerprint()[:16]}-{limit}.csv"
    if not file.exists():
        model = load(one.folder)
        found = curves(model, test, limit, min(20, longest(model, test, limit)))
        file.parent.mkdir(exist_ok=True)
        with files.replacing(file) as opened:
            opened.write(found.to_csv(index=False).encode())
        print(f"{one.text()}: curves", flush=True)
    return pd.read_csv(file)


def interval(table: pd.DataFrame, metric: str) -> tuple[float, float, float]:
    """Mean and 95 % interval of rows [seed clip]: over seeds and clips, of one seed over clips alone."""
    grid = table.pivot(index="seed", columns="clip", values=metric).to_numpy(float)
    over_clips = len(grid) == 1 and np.isfinite(grid).any()
    return intervals.paired_interval(grid) if over_clips else intervals.widened_interval(grid)


def errors(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """docs/prediction.csv: a row for each slot model, method and step."""
    rows = []
    for of, table in tables.items():
        for (method, step), group in table.groupby(["method", "step"], sort=False):
            found = {metric: interval(group, metric) for metric in METRICS}
            known = {f"{metric}{end}": value for metric, three in found.items() for end, value in zip(ENDS, three)}
            rows.append({"of": of, "n": group["seed"].nunique(), "method": method, "step": step, **known})
    return pd.DataFrame(rows)


def growth(table: pd.DataFrame, metric: str, method: str) -> pd.DataFrame:
    """How fast an error grows: the slope of its least-squares line over the steps, a row a seed and a column a clip."""
    wide = table[table["method"] == method].pivot(index=["seed", "clip"], columns="step", values=metric)
    steps = wide.columns.to_numpy(float) - wide.columns.to_numpy(float).mean()
    centred = wide.sub(wide.mean(axis=1), axis=0)
    return (centred * steps).sum(axis=1, min_count=len(steps)).div((steps**2).sum()).unstack()


def gained(own: pd.DataFrame, other: pd.DataFrame) -> dict:
    """How much more the first has, on the same seeds and clips, with its interval."""
    seeds, clips = own.index.intersection(other.index), own.columns.intersection(other.columns)
    difference = (own.loc[seeds, clips] - other.loc[seeds, clips]).to_numpy(float)
    if not difference.size or not np.isfinite(difference).any():
        return {"n": 0, "gain": np.nan, "low": np.nan, "high": np.nan}
    return {"n": len(seeds), **dict(zip(("gain", "low", "high"), intervals.widened_interval(difference)))}


def claims(tables: dict[str, pd.DataFrame], shares: dict[tuple[str, str], dict[str, pd.DataFrame]]) -> pd.DataFrame:
    """A row a claim, measure and rival; a gain above 0 is for the claim. Intervals are over seeds and clips."""
    rows = []

    def add(claim, about, measure, against, own, other, scale=1.0):
        rows.append(dict(claim=claim, about=about, measure=measure, against=against, **gained(scale * own, scale * other)))

    for rival in (of for of in tables if of in RIVALS and OURS in tables):
        slower = "errors grow more slowly on DIAS's slots", f"SlotFormer on {OURS} beside the same on others, as many steps"
        own, other = (-growth(tables[of], "centroid_error", "SlotFormer") for of in (OURS, rival))
        add(*slower, "pixels of the centroid error saved a step", f"beside {rival}", own, other)
        lost = [growth(tables[of], "fg_ari", "SlotFormer") - growth(tables[of], "fg_ari", "seen") for of in (OURS, rival)]
        add(*slower, "FG-ARI x100 saved a step, beside the slots of the frames", f"beside {rival}", *lost, scale=100)
    better = "questions are answered better from DIAS's slots", "balanced accuracy x100 over all types, the same reader"
    helps = "slots tell more than the questions alone", "balanced accuracy x100, the same reader without slots"
    learned = "slots that have learned tell more", "balanced accuracy x100, the same reader on the slots of the untrained twin"
    foresee = "a rollout helps to answer", "balanced accuracy x100, two frames seen beside these and four foreseen"
    table = {key: pd.DataFrame({seed: one.mean(axis=1) for seed, one in by_seed.items()}).T for key, by_seed in shares.items()}
    for (of, what), own in table.items():
        if of in RIVALS and (OURS, what) in table:
            add(*better, what, f"beside {of}", table[OURS, what], own, scale=100)
        if (of + UNTRAINED, what) in table:
            add(*learned, what, of, own, table[of + UNTRAINED, what], scale=100)
        if what != "blind" and not of.endswith(UNTRAINED) and (ALONE, "blind") in table:
            add(*helps, what, of, own, table[ALONE, "blind"], scale=100)
        if what == "rolled out" and (of, "seen") in table:
            add(*foresee, "all types", of, own, table[of, "seen"], scale=100)
    return pd.DataFrame(rows, columns=["claim", "about", "measure", "against", "n", "gain", "low", "high"])


words = "{:.1f} [{:.1f}, {:.1f}]".format  # a mean and its interval


def answers_table(shares, simple: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """docs/reasoning.csv: a row a slot model and what its reader sees; cells are means with intervals, x100."""
    rows = []
    for (of, what), by_seed in [*shares.items(), *((("", name), {0: table}) for name, table in simple.items())]:
        kinds = list(next(iter(by_seed.values())))
        long = pd.concat([one.assign(all=one.mean(axis=1), seed=seed).reset_index() for seed, one in by_seed.items()])
        cells = {kind: words(*(100 * value for value in interval(long, kind))) for kind in ("all", *kinds)}
        rows.append({"of": of, "answers from": what, "n": len(by_seed) if of else "", **cells})
    return pd.DataFrame(rows)


def page(measured: pd.DataFrame, answered: pd.DataFrame, found: pd.DataFrame, notes: dict[str, list[str]], about: str) -> str:
    """docs/prediction.md."""
    steps = sorted({1, 5, 10, int(measured["step"].max())} & {*measured["step"]})
    told = textwrap.fill(INTRODUCTION.format(about=about, longer=LONGER), 118)
    lines = ["# Prediction and reasoning, measured", "", told, "", "**Centroid error in pixels**", ""]
    lines += head(["slots of", "n", "method", *(f"step {step}" for step in steps), "FG-ARI, last", "slot error, last"])
    for (of, method), group in measured.groupby(["of", "method"], sort=False):
        at = group.set_index("step")
        pixels = [words(*at.loc[step, [f"centroid_error{end}" for end in ENDS]]) for step in steps]
        last = [words(*(scale * at.loc[steps[-1], [f"{one}{end}" for end in ENDS]])) for one, scale in LAST.items()]
        lines.append(row([of, at["n"].iloc[0], method, *pixels, *last]).replace("nan [nan, nan]", ""))
    lines += ["", "**Answers**: balanced accuracy x100", "", *head(list(answered))]
    lines += [row(one) for one in answered.fillna("").itertuples(index=False)]
    lines += ["", "**What the paper claims, and what has to hold before**", ""]
    for claim, own in found.groupby("claim", sort=False):
        lines.append(f"* {claim} ({own['about'].iloc[0]})")
        for _, one in own.iterrows():
            change = one["gain"], one["low"], one["high"]
            said = f"{verdicts.claimed(*change[1:])} ({verdicts.points(*change)}, n = {one['n']})"
            lines.append(f"    * {one['against']}, {one['measure']}: {said if one['n'] else 'runs are missing'}")
    told = [f"{title}: {'; '.join(ones)}." for title, ones in notes.items() if ones]
    return "\n".join([*lines, *(line for text in told for line in ("", textwrap.fill(text, 118)))]) + "\n"


def measure(planned: list[Planned], notes: list[str], options) -> None:
    """The tables and the page, of what is finished."""
    missing = {}
    for one in (one for one in planned if one.state != "finished"):
        missing.setdefault(f"{one.of}, {one.what}", []).append(str(one.seed))
    notes = notes + [f"{name} ({', '.join(seeds)})" for name, seeds in missing.items()]
    test, asked = store.open(runs.resolve(options.data) / "test.lmdb"), None  # opened where there is a reader
    tables, shares, simple, otherwise = {}, {}, {}, {}
    for one in (one for one in planned if one.state == "finished"):
        if others := one.differs():
            otherwise.setdefault(", ".join(others), {})[f"{one.of}, {one.what}"] = True
        if one.what == "SlotFormer":
            own = curves_of(one, test, options.clips).assign(seed=one.seed)
            tables[one.of] = pd.concat([tables[one.of], own]) if one.of in tables else own
        else:
            asked = asked or store.open(runs.resolve(options.asked) / "test.lmdb")
            exam, said = sat(one.folder, asked)
            shares.setdefault((one.of, one.what), {})[one.seed] = answers.by_clip(exam.questions, said)
            given = {} if simple else answers.baselines(exam.questions, exam.vocabulary.common, asked)
            simple |= {name: answers.by_clip(exam.questions, those) for name, those in given.items()}
            print(f"{one.text()}: answers", flush=True)
    made = {"prediction": errors(tables), "reasoning": answers_table(shares, simple), "prediction-claims": claims(tables, shares)}
    for name, table in made.items():
        table.to_csv(runs.resolve(f"docs/{name}.csv"), index=False, float_format="%.6g")
    about = f"{options.steps} steps of SlotFormer, {options.clips or len(test.meta['clips'])} test clips to foresee"
    if shares:
        about += f"; {options.reasoning_steps} of each reader, questions about {len(asked.meta['clips'])} test clips"
    notes = {"Not there": notes, "Otherwise than asked": [f"{'; '.join(those)}: {what}" for what, those in otherwise.items()]}
    path = runs.resolve("docs/prediction.md")
    by_hand = path.read_text().partition(BY_HAND)[2] if path.exists() else "\n"
    runs.write_text(path, f"{page(*made.values(), notes, about)}\n{BY_HAND}{by_hand}")
    print("wrote docs/prediction.csv, docs/reasoning.csv, docs/prediction-claims.csv, docs/prediction.md")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", nargs="?", choices=["measure", "train"], default="measure")
    parser.add_argument("--parents", nargs="+", metavar="NAME=PATTERN", help="slot models; the four that are named here")
    parser.add_argument("--data", default="data/physics")
    parser.add_argument("--asked", default="data/asked", help="the clips that questions are about")
    parser.add_argument("--out", default="runs/prediction", help="the folder of all these runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=2000, help="of SlotFormer")
    parser.add_argument("--reasoning-steps", type=int, default=3000)
    parser.add_argument("--only", nargs="+", choices=["SlotFormer", "seen", "rolled out", "blind", "untrained"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--clips", type=int, default=0, help="how many of the test split are foreseen; 0: all")
    parser.add_argument("--list", action="store_true", help="with train: only say what is missing")
    return parser


if __name__ == "__main__":
    parser = arguments()
    options = parser.parse_args()
    options.parents = dict(one.split("=", 1) for one in options.parents) if options.parents else PARENTS
    try:
        planned, notes = plan(options)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    print(*(f"not there: {note}" for note in notes), sep="\n")
    if options.do == "measure":
        if not any(one.state == "finished" and one.what == "SlotFormer" for one in planned):
            parser.exit(1, f"no finished run of prediction in {options.out}: python docs/prediction.py train\n")
        measure(planned, notes, options)
    elif failed := train(planned, options.list):
        parser.exit(1, "\n".join(["failed:", *failed]) + "\n")
