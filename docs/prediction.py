"""Whose slots foresee best, and answer best: docs/prediction.csv, reasoning.csv, prediction-claims.csv, and docs/prediction.md.

    python -m dias_lab convert clips --train 600 --validation 30 --test 60 --out data/clips
    python -m dias_lab grid start notebooks/grids/video.toml --out runs/video
    python -m dias_lab convert physics --train 400 --validation 40 --test 100 --out data/physics
    python docs/prediction.py train          # --list: only say what is missing
    python docs/prediction.py                # the tables and the page, of what is finished

Slot models are given as NAME=PATTERN, a run a seed (`--parents "temporal DIAS=runs/video/temporal-DIAS-seed-*"`; several
patterns with commas), or one run for all seeds. On each stands SlotFormer, on its slots and on those of its untrained twin;
then questions are answered from the frames that are seen, and from these and a rollout. Once a seed the same of true states,
and of questions alone. A run that is finished is not repeated, one that was stopped goes on; the first seed of everything
comes first. Scores are of the test split, which chose nothing; best checkpoint by validation.
"""

import argparse
import glob
import time
from pathlib import Path
from typing import NamedTuple

from dias_lab import fit, runs
from dias_lab.config import Config

PARENTS = {
    "shipped": "dias_lab/shipped/clips",  # trained for longer, from an image model: beside the others, not one of them
    "temporal DIAS": "runs/video/temporal-DIAS-seed-*",
    "VideoSAUR": "runs/video/VideoSAUR-seed-*",
    "SlotContrast": "runs/video/SlotContrast-seed-*",
}
TRUE, ALONE, UNTRAINED = "true states", "questions alone", ", untrained"
AHEAD, LOOKED_AT = 20, 14  # frames that are foreseen after the 8 that are seen, and how many of these 28 answers look at


class Planned(NamedTuple):
    """A run to be trained: of whose slots, what it learns, and where."""

    of: str
    what: str  # "SlotFormer", "seen", "rolled out" or "blind"
    seed: int
    folder: Path
    config: Config

    @property
    def state(self) -> str:
        there = [name for name in ("metrics.json", "config.json") if (self.folder / name).exists()]
        return {"metrics.json": "finished", "config.json": "begun"}[there[0]] if there else "missing"

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
    weight = {} if options.feature_weight is None else {"feature_weight": options.feature_weight}
    of_task = {"prediction": dict(shared, steps=options.steps, **weight)}
    of_task["reasoning"] = dict(shared, steps=options.reasoning_steps)
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
        add(of, "rolled out", seed, parent, predictor=foreseen, rollout=AHEAD, reasoning_frames=LOOKED_AT, **fields)

    for seed in options.seeds:
        there = {name: parents[seed] for name, parents in found.items() if seed in parents}
        for name, parent in there.items():
            whole(name, seed, parent)
        for parent in list(there.values())[:1]:  # any: what they learn does not depend on it
            whole(TRUE, seed, parent, slots_of="oracle")
            add(ALONE, "blind", seed, parent, blind=True)
        for name, parent in there.items():
            add(name + UNTRAINED, "SlotFormer", seed, parent, slots_of="untrained")
    return planned, notes


def train(planned: list[Planned], only_list: bool):
    """All that are not finished, one after the other; a failed one stops nothing, and is said again at the end."""
    wanted, failed = [one for one in planned if one.state != "finished"], []
    print(f"{len(planned) - len(wanted)} of {len(planned)} runs are finished", flush=True)
    for number, one in enumerate(wanted, start=1):
        print(f"{number} of {len(wanted)} ({one.state}) {one.text()}", flush=True)
        if only_list:
            continue
        started = time.time()
        try:
            result = fit(one.config, one.folder, progress=False)
            print(f"    {time.time() - started:.0f} s, best step {result['best_step']} of {result['steps']}", flush=True)
        except (ValueError, OSError, RuntimeError) as error:
            failed.append(f"{one.text()}: {error}")
            print(f"    failed: {error}", flush=True)
    return failed


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", nargs="?", choices=["measure", "train"], default="measure")
    parser.add_argument("--parents", nargs="+", metavar="NAME=PATTERN", help="slot models; the four that are named here")
    parser.add_argument("--data", default="data/physics")
    parser.add_argument("--out", default="runs/prediction", help="the folder of all these runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=2000, help="of SlotFormer")
    parser.add_argument("--reasoning-steps", type=int, default=2000)
    parser.add_argument("--feature-weight", type=float, help="of SlotFormer; 0 for decoders that see the features")
    kinds = ["SlotFormer", "seen", "rolled out", "blind", "untrained"]
    parser.add_argument("--only", nargs="+", choices=kinds, help="of the runs; what is rolled out needs its SlotFormer first")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
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
    if failed := train(planned, options.list) if options.do == "train" else []:
        parser.exit(1, "\n".join(["failed:", *failed]) + "\n")
