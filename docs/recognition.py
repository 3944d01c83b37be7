"""Which image model's slots tell best what a thing is, and where: docs/recognition.csv, and the tables of recognition.md.

    python -m dias_lab convert scenes --out data/toys        # 2,000 / 200 / 200, on which the heads learn and are judged
    python -m dias_lab grid start notebooks/grids/methods.toml --out runs/methods          # image models of 700 steps
    for seed in 42 43 44; do python -m dias_lab train --preset scenes --seed $seed --run-dir runs/scenes-$seed; done
    python docs/recognition.py                                                             # goes on where it was stopped
    python docs/recognition.py --data data/coco --photos runs/photos-42 runs/photos-43 runs/photos-44

Every head is the same: 1,000 steps of 32 images, the best of them by validation; scores are of the test split. A head has its
model's seed. What has no trained weights (true segments, k-means, tiles) has the features of the first 17,000-step model, and
three heads. Other merging is the same weights, set otherwise and nothing trained: a copy of the run with another config.json.
Tables and verdicts go into recognition.md, between its marks; with --done, of what is there.
"""

import argparse
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from dias_lab import runs
from dias_lab.analysis import verdicts
from dias_lab.analysis.intervals import mean_text, paired_interval, widened_interval
from dias_lab.analysis.slots import slots_for
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.heads import recognition, scores
from dias_lab.heads.matching import objects
from dias_lab.training.loop import fit

SEEDS = (42, 43, 44)
SCHEDULE = {"steps": 1000, "evaluate_every": 250, "log_every": 250}
METHODS = ("DIAS", "Slot Attention", "SPOT, stage 1", "SmoothSA", "DINOSAUR")  # of notebooks/grids/methods.toml
LONG, ALONE, MERGED = "DIAS, 17,000 steps", "the same weights, no merging", "the same weights, merging alone"
PLAIN = {"untrained": "its twin before training", "true": "true segments", "k_means": "k-means", "tiles": "position tiles"}
# of the claim "re-initialization lifts recognition": which should be above which
PAIRS = [("DIAS", "Slot Attention"), (LONG, ALONE), (LONG, MERGED), (MERGED, ALONE)]


def parents(grid: Path, long: str) -> list[tuple[str, Path, str, dict]]:
    """Rows in the order in which they are worth having: name, run, what the slots are of, and other fields of the run."""
    found = {name: [*grid.glob(f"{name.replace(', ', '-').replace(' ', '-')}-seed-*")] for name in METHODS}
    own = [runs.resolve(long.replace("*", str(seed))) for seed in SEEDS]
    rows = [(name, place, "model", {}) for name in METHODS[:2] for place in sorted(found[name])]
    rows += [(LONG, place, "model", {}) for place in own]
    rows += [(name, place, "model", {}) for name in METHODS[2:] for place in sorted(found[name])]
    rows += [(ALONE, place, "model", {"merging": "none"}) for place in own]
    return rows + baselines(own) + [(MERGED, place, "model", {"merging": "merge"}) for place in own]


def baselines(own: list[Path]) -> list[tuple[str, Path, str, dict]]:
    return [(PLAIN[source], place, source, {}) for source in PLAIN for place in (own if source == "untrained" else own[:1] * 3)]


def changed(run_dir: Path, fields: dict, out: Path) -> Path:
    """A copy of a run whose config has other fields."""
    copy = out / "parents" / "-".join([run_dir.name, *fields.values()])
    if not (copy / "config.json").exists():
        shutil.copytree(run_dir / "checkpoints", copy / "checkpoints", dirs_exist_ok=True)
        runs.write_json(copy / "config.json", Config.load(run_dir).replace(**fields).to_dict())
    return copy


def heads(rows: list, data: str, out: Path, train: bool = True) -> dict[str, list[Path]]:
    """Train what is not there yet; run directories by row, one a seed. Without `train`, those that are done."""
    made = {}
    for name, place, source, fields in rows:
        parent, own = changed(place, fields, out) if fields else place, made.setdefault(name, [])
        seed = SEEDS[len(own)] if source in ("true", "k_means", "tiles") else Config.load(parent).seed
        config = Config.load(parent).for_task("recognition", parent=str(parent), **SCHEDULE)
        own.append(out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}")
        if not train and not (own[-1] / "metrics.json").exists():
            own.pop()
            continue
        found = fit(config.replace(data=data, slots_of=source, seed=seed), own[-1], progress=False)
        print(name, seed, {one: round(found["scores"][one], 3) for one in ("top1", "box_iou", "recall")}, flush=True)
    return {name: own for name, own in made.items() if own}


def judged(run_dirs: list[Path], test) -> dict[str, list[pd.DataFrame]]:
    """All objects of the store, judged by each head, and by who has seen no slot (`recognition.prior`)."""
    tables = {"head": [], "prior": []}
    for run_dir in run_dirs:
        head, _ = recognition.load(run_dir)
        slots = slots_for(head.config, test)
        found = objects(test, slots, head.config, [*head.classes])
        tables["head"].append(recognition.answers(head, found, slots))
        tables["prior"].append(recognition.prior(head, found))
    return tables


def difference(one: list[pd.DataFrame], other: list[pd.DataFrame], score: str) -> list[float]:
    """x100, paired by image, and by seed where both have as many, with a 95 % interval."""
    values = [np.stack([scores.by_image(table)[score] for table in tables]) for tables in (one, other)]  # [S B]
    if len(values[0]) != len(values[1]):
        values = [value.mean(axis=0, keepdims=True) for value in values]
    apart = values[0] - values[1]
    interval = paired_interval if len(apart) == 1 else widened_interval
    return [100 * value for value in interval(apart)]


def shown(table: pd.DataFrame) -> str:
    """Markdown: mean ± std over seeds x100, and the difference to the first row with its interval."""
    titles = [title for title, *_ in scores.SCORES.values()]
    lines = ["| slots of | n | " + " | ".join([*titles, "matched / true"]) + " |", "|---" * (len(titles) + 3) + "|"]
    for name, row in table.iterrows():
        cells = [name, f"{row['n']:.0f}"]
        for score in scores.SCORES:
            change = [row[f"{score} difference{end}"] for end in ("", " low", " high")]
            text = mean_text(row[score], row[f"{score} std"])
            cells.append(text + (f" ({verdicts.points(*change)})" if change[0] == change[0] else ""))
        lines.append("| " + " | ".join([*cells, f"{row['matched']:.0f} / {row['true']:.0f}"]) + " |")
    return "\n".join(lines)


def compared(found: dict[str, list[pd.DataFrame]]) -> pd.DataFrame:
    """`scores.summary` of each row, and each score's difference to the first row's."""
    rows, (first, *_) = {}, found.values()
    for name, tables in found.items():
        rows[name] = scores.summary(tables)
        for score in scores.SCORES if tables is not first else ():
            ends = (f"{score} difference{end}" for end in ("", " low", " high"))
            rows[name] |= dict(zip(ends, difference(tables, first, score)))
    columns = [f"{score} difference{end}" for score in scores.SCORES for end in ("", " low", " high")]
    table = pd.DataFrame(rows).T.rename_axis("slots of")
    return table.reindex(columns=[*dict.fromkeys([*table.columns, *columns])])


def claims(found: dict[str, list[pd.DataFrame]]) -> list[str]:
    """The verdict on the paper's claim by its two scores, and by two that count what was not found."""
    lines = []
    for one, other in (pair for pair in PAIRS if found.keys() >= set(pair)):
        told = []
        for score in ("top1", "r2", "top1_all", "recall_50"):
            change = difference(found[one], found[other], score)
            told.append(f"{scores.SCORES[score][0]} {verdicts.points(*change)}, {verdicts.claimed(*change[1:])}")
        lines.append(textwrap.fill(f"* *{one}* over *{other}*: {'; '.join(told)}.", 118, subsequent_indent="  "))
    return lines


def fill(mark: str, text: str):
    """Put a text into recognition.md, between <!-- mark --> and <!-- end -->."""
    page = runs.resolve("docs/recognition.md")
    before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    page.write_text(f"{before}<!-- {mark} -->\n{text}\n{rest[rest.index('<!-- end -->') :]}", encoding="utf-8")


def main(options):
    out, table = runs.resolve(options.out), runs.resolve("docs/recognition.csv")
    if options.photos:
        own, table = [runs.resolve(place) for place in options.photos], table.with_name("recognition-photos.csv")
        rows = [("DIAS", place, "model", {}) for place in own] + baselines(own)
    else:
        rows = parents(runs.resolve(options.grid), options.long)
    test = store.open(runs.resolve(options.data) / "test.lmdb")
    found, made = {}, heads(rows, options.data, out, not options.done)
    for name, run_dirs in made.items():
        tables = judged(run_dirs, test)
        found[name] = tables["head"]
        if len(found) == 1:  # of the first row's found objects
            priors = tables["prior"]
    found[recognition.PRIOR] = priors
    rows_of = compared(found)
    rows_of.to_csv(table, float_format="%.6g")
    objects_of, images = next(iter(found.values()))[0], len(test)
    text = f"{images} test images, {len(objects_of)} objects of known class.\n\n{shown(rows_of)}"
    if told := claims(found):
        text += "\n\nThe verdicts on *re-initialization lifts recognition*, from these numbers:\n\n" + "\n".join(told)
    fill(table.stem, text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="data/toys")
    parser.add_argument("--out", default="runs/recognition", help="where the heads are put, and found again")
    parser.add_argument("--grid", default="runs/methods")
    parser.add_argument("--long", default="runs/scenes-*", help="the 17,000-step models, with a star for the seed")
    parser.add_argument("--photos", nargs="+", help="runs of photos, one a seed: their heads alone")
    parser.add_argument("--done", action="store_true", help="train nothing: a table of what is there")
    main(parser.parse_args())
