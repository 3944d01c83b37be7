"""What temporal DIAS is worth beside the image model that it starts from: docs/video.csv, docs/video-events.csv, the tables.

    python -m dias_lab convert scenes --train 14000 --out data/scenes
    python -m dias_lab convert clips --train 600 --validation 30 --test 60 --out data/clips
    for seed in 42 43 44; do
        python -m dias_lab train --preset scenes --seed $seed --run-dir runs/scenes-$seed
        python -m dias_lab train --preset clips --seed $seed --from runs/scenes-$seed --run-dir runs/clips-$seed
    done
    python docs/video.py                # --runs PATTERN, with a star for the seed: runs/clips-* by default
    python docs/video.py --ship runs/clips-42     # dias_lab/shipped/clips: the first seed's, whichever scores highest

Beside them it scores other settings that are there: runs/clips-NAME-42 and so on, trained with --transition encoder, or
--contrast-weight 0.1.

All settings of a seed have the same weights but for the untrained twin; the run's own parent is the image model. Scores are
of the test split, which chose nothing; best checkpoint by validation.
"""

import argparse
import shutil

import numpy as np
import pandas as pd
import torch

from dias_lab import load_model, runs
from dias_lab.analysis import clips, intervals
from dias_lab.analysis.baselines import baseline_scores
from dias_lab.analysis.evaluate import evaluate
from dias_lab.analysis.interventions import with_fields
from dias_lab.data import moving, scenes, store
from dias_lab.methods import checkpoint

LEVELS = [f"{level}_{metric}" for level in ("video", "image") for metric in ("ari", "fg_ari", "mbo")]
METRICS = [*LEVELS, "gap", "switches", "switch_rate"]
CARRIED = "slots carried on"
SHOWN = ("video_ari", "video_fg_ari", "video_mbo", "image_ari", "image_fg_ari", "image_mbo", "switches")


def subjects(model) -> dict:
    """What is compared, by name: models of clips, and an image model that sees each frame alone."""
    image, config = load_model(model.config.parent), model.config
    found = {"image model, frame by frame": image}
    found[CARRIED] = with_fields(image, clip_frames=config.clip_frames, transition="identity", next_iterations=1)
    found["temporal DIAS"] = model
    found["temporal DIAS, untrained"] = model.untrained()
    for number in (1, 2, 4):
        if number != config.next_iterations:
            found[f"iterations on later frames: {number}"] = with_fields(model, next_iterations=number)
    for refresh in (8, 2):
        found[f"redundancy looked for every {refresh} frames"] = with_fields(model, refresh=refresh)
    found["no merging"] = with_fields(model, merging="none")
    return found


def others(pattern: str) -> dict[str, list]:
    """The trained models of other settings, by name: beside runs/clips-42 those of runs/clips-NAME-42."""
    found = {}
    for folder in sorted(runs.root().glob(pattern.replace("*", "*-*"))):
        if (folder / "metrics.json").exists():
            found.setdefault(folder.name.split("-")[1], []).append(load_model(folder))
    return found


def scores(models: list, beside: dict[str, list], test, limit: int) -> pd.DataFrame:
    """A row a setting, seed and clip."""
    tables = []
    for model in models:
        for name, one in subjects(model).items():
            table = evaluate(one, test, limit=limit).images
            tables.append(table.assign(setting=name, seed=model.config.seed))
            print(model.config.seed, name, round(100 * table["decoder.video_fg_ari"].mean(), 1), flush=True)
    for name, ours in beside.items():
        for one in ours:
            table = evaluate(one, test, limit=limit).images
            tables.append(table.assign(setting=f"trained with: {name}", seed=one.config.seed))
        print(name, len(ours), flush=True)
    beside = floors(models[0], test, limit)
    tables.append(beside.rename(columns={name: f"decoder.{name}" for name in METRICS}).assign(seed=models[0].config.seed))
    return pd.concat(tables, ignore_index=True)


def floors(model, test, limit: int) -> pd.DataFrame:
    """What learns nothing, on the model's features: a row a setting and clip."""
    found, tables = baseline_scores(model, test, limit=limit), []
    for name in dict.fromkeys(column.partition(".")[0] for column in found if "." in column):
        own = found.filter(regex=rf"^{name}\.").rename(columns=lambda column: column.partition(".")[2])
        tables.append(own.assign(setting=name, item=found["item"]))
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means and deviations over seeds, and the paired difference to slots that are carried on, a row a setting."""
    def grid(setting, column):  # [seeds clips]
        return table[table["setting"] == setting].pivot(index="seed", columns="item", values=column)

    rows = []
    for setting in table["setting"].unique():
        row = {"setting": setting, "n": table[table["setting"] == setting]["seed"].nunique()}
        for which in ("decoder", "last"):
            for metric in METRICS:
                column = f"{which}.{metric}"
                own, base = grid(setting, column), grid(CARRIED, column)
                if own.isna().all().all():
                    continue
                by_seed = own.mean(axis=1)
                row |= {f"{column} mean": by_seed.mean(), f"{column} std": by_seed.std()}
                if setting != CARRIED and own.shape == base.shape:
                    change = intervals.widened_interval((own - base).to_numpy())
                    row |= dict(zip((f"{column} difference{end}" for end in ("", " low", " high")), change))
        rows.append(row)
    return pd.DataFrame(rows)


def events(models: list, count: int) -> pd.DataFrame:
    """Switches by world and kind of event: pairs and switches, of all models together."""
    seeds = range(scenes.SPLITS["test"], scenes.SPLITS["test"] + count)
    found = [clips.switches_in(model, difficulty, seeds) for model in models for difficulty in moving.DIFFICULTIES]
    return pd.concat(found).groupby(["world", "event"])["switched"].agg(pairs="size", switches="sum").reset_index()


def printed(rows: pd.DataFrame) -> None:
    """The table as docs/video.md has it."""
    titles = [intervals.TITLES.get(metric, "switches a clip") for metric in SHOWN]
    print("| setting | n | " + " | ".join(titles) + " |", "|---" * (2 + len(titles)) + "|", sep="\n")
    for _, row in rows.iterrows():
        cells = []
        for metric in SHOWN:
            factor = 1 if metric == "switches" else 100
            text = intervals.mean_text(row[f"decoder.{metric} mean"], row[f"decoder.{metric} std"], factor)
            change = [row.get(f"decoder.{metric} difference{end}", np.nan) for end in ("", " low", " high")]
            beside = metric in ("video_fg_ari", "switches")
            cells.append(text + (intervals.difference_text(*change, factor=factor) if beside else ""))
        print(f"| {row['setting']} | {row['n']} | " + " | ".join(cells) + " |")


def ship(run_dir: str):
    """The folder of the shipped model: the run's config, its best weights, and the result of its training."""
    source, target = runs.resolve(run_dir), runs.PACKAGE / "shipped" / "clips"
    model = load_model(source)
    shutil.rmtree(target, ignore_errors=True)
    best = target / "checkpoints" / str(model.trained_steps)
    best.mkdir(parents=True)
    shutil.copy(source / "checkpoints" / best.name / checkpoint.WEIGHTS, best / checkpoint.WEIGHTS)
    runs.write_json(target / "config.json", model.config.replace(parent=runs.short(runs.PACKAGE / "shipped")).to_dict())
    commands = [line.strip() for line in __doc__.splitlines() if line.startswith("    ")]
    runs.write_json(target / "metrics.json", runs.read_json(source / "metrics.json") | {"commands": commands})
    return runs.short(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/clips-*")
    parser.add_argument("--data", default="data/clips")
    parser.add_argument("--clips", type=int, default=0, help="only the first ones of the test split")
    parser.add_argument("--event-clips", type=int, default=20, help="of each world, for the table of events")
    parser.add_argument("--ship", help="this run becomes the model of clips that comes with the package; nothing is scored")
    options = parser.parse_args()
    if options.ship:
        parser.exit(message=f"wrote {ship(options.ship)}\n")
    torch.set_grad_enabled(False)
    folders = [one for one in sorted(runs.root().glob(options.runs)) if one.name.count("-") == options.runs.count("-")]
    trained = [load_model(folder) for folder in folders if (folder / "metrics.json").exists()]
    if not trained:
        parser.exit(1, f"no finished run in {options.runs}\n")
    whole = summary(scores(trained, others(options.runs), store.open(runs.resolve(options.data) / "test.lmdb"), options.clips))
    whole.to_csv(runs.resolve("docs/video.csv"), index=False, float_format="%.6g")
    events(trained, options.event_clips).to_csv(runs.resolve("docs/video-events.csv"), index=False)
    printed(whole)
