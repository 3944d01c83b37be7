"""The table of a grid: mean and standard deviation over seeds, and what differs from the baseline.

A difference is paired: same seed, and, where the run directories hold the scores of each image (scores/*.images.csv),
same image. Its interval is a 95 % bootstrap over seeds (and images), widened for few seeds (`intervals.py`); one seed has
none. An interval that holds 0 is "within noise". Intervals are not corrected for the number of comparisons.

Axes: B images, S seeds.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dias_lab import grid, runs
from dias_lab.config import PRESETS, Config, nearest
from dias_lab.intervals import widened_interval
from dias_lab.parameters import Refused

TITLES = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO", "miou": "mIoU", "mbo_class": "mBO-class"}  # shown x100
NOISE = "≈"


class Table(NamedTuple):
    frame: pd.DataFrame  # a row a setting: setting, n, protocol, images, then five columns a metric
    metrics: list[str]
    baseline: str
    caption: str
    notes: list[str]  # of what is not in it


def table(of: grid.Grid, metrics: list[str] | None = None, baseline: str | None = None, old: bool = False) -> Table:
    """What the grid has found so far. Refused while nothing is done, or for an unknown metric or baseline.

    metrics: columns of runs.collect; by default of [table], else the decoder map's scores, else every number that the runs
    wrote. baseline: a setting; by default of [table], else the first. old: take stale results where there are no new ones.
    """
    chosen = of.tables.get("table", {})
    baseline = baseline or chosen.get("baseline") or of.settings[0]
    if baseline not in of.settings:
        raise Refused(
            f"there is no setting {baseline!r}{nearest(baseline, of.settings)}; there are: {'; '.join(of.settings)}"
        )
    status, folders = grid.status(of), {run.id: run.folder for run in of.runs}
    rows = [runs.row(folders[row["id"]]) | _place(row) for row in status if row["state"] == "done"]
    notes = [_note(row) for row in status if row["state"] != "done"]
    leftovers = grid.stale(of)
    if old:
        rows += (taken := _stale_rows(leftovers, {(row["setting"], row["seed"]) for row in rows}, status))
        notes += [f"{row['setting']}, seed {row['seed']}: stale result, {row['why']}" for row in taken]
    elif count := sum(runs.state(folder) == "done" for folder, _ in leftovers):
        notes.append(f"{count} finished runs are stale and left out; --stale takes those that have no new result")
    if not rows:
        raise Refused(f"no run of {runs.short(of.folder)} is done: {'; '.join(notes[:3])}")
    results = pd.DataFrame(rows)
    metrics = metrics or chosen.get("metrics") or _default_metrics(results, rows)
    for metric in metrics:
        if metric not in results or not pd.api.types.is_numeric_dtype(results[metric]):
            raise Refused(f"no run has a number {metric!r}{nearest(metric, results.columns)}")
    found = [_row(setting, baseline, results, metrics) for setting in of.settings]
    frame = pd.DataFrame([row for row in found if row is not None])
    return Table(frame, metrics, baseline, _caption(results, metrics, baseline), notes)


def _place(row: dict) -> dict:
    return {"setting": row["setting"], "seed": row["seed"]}


def _note(row: dict) -> str:
    seed = "" if row["seed"] is None else f", seed {row['seed']}"
    return f"{row['setting']}{seed}: {row['state']}" + (f": {row['problem']}" if row["problem"] else "")


def _stale_rows(leftovers, done: set, status: list[dict]) -> list[dict]:
    """Of the runs that are asked for and not done, the newest finished one of an older notebook or package."""
    wanted, newest = {(row["setting"], row["seed"]) for row in status} - done, {}
    for folder, why in leftovers:
        if runs.state(folder) == "done":
            made = runs.read_json(folder / "run.json")
            key, when = (made["variant"], made["seed"]), (folder / "metrics.json").stat().st_mtime_ns
            if key in wanted and "parameters changed" not in why and when > newest.get(key, (0,))[0]:
                newest[key] = (when, folder, why)
    return [
        runs.row(folder) | {"setting": key[0], "seed": key[1], "why": why} for key, (_, folder, why) in newest.items()
    ]


def _default_metrics(results: pd.DataFrame, rows: list[dict]) -> list[str]:
    reported = [name.removesuffix(".decoder.ari") for name in results if name.endswith(".decoder.ari")]
    stems = [stem for stem in reported if stem != "scores"] + ["scores"]  # a test split before the validation's
    for stem in stems:
        names = [f"{stem}.decoder.{metric}" for metric in TITLES]
        if found := [name for name in names if name in results and pd.api.types.is_numeric_dtype(results[name])]:
            return found
    written = {key for row in rows for key in runs.flat(runs.read_json(runs.resolve(row["run"]) / "metrics.json"))}
    numbers = [name for name in results if name in written and pd.api.types.is_numeric_dtype(results[name])]
    numbers = [name for name in numbers if name not in ("steps", "seconds") and not name.startswith("about.")]
    if not numbers:
        raise Refused("the runs wrote no number into their metrics.json; [table] metrics names the columns to take")
    return numbers


def _row(setting: str, baseline: str, results: pd.DataFrame, metrics: list[str]) -> dict | None:
    own = results[results["setting"] == setting]
    if own.empty:
        return None
    row = {"setting": setting, "n": len(own)}
    row |= {name: _distinct(own, metrics, name) for name in ("protocol", "images")}
    for metric in metrics:
        values = own[metric].dropna()
        row[f"{metric} n"] = len(values)
        row[f"{metric} mean"] = values.mean() if len(values) else np.nan
        row[f"{metric} std"] = values.std() if len(values) > 1 else np.nan
        differences = np.empty((0, 1)) if setting == baseline else _differences(own, results, baseline, metric)
        names = [f"{metric} {name}" for name in ("difference", "low", "high")]
        row |= dict(zip(names, widened_interval(differences)))
    return row


def _differences(own: pd.DataFrame, results: pd.DataFrame, baseline: str, metric: str) -> np.ndarray:
    """[S B]: this setting less the baseline, over the seeds that both have; B is 1 where images are not known."""
    other = results[results["setting"] == baseline]
    pairs = own.merge(other, on="seed", suffixes=("", " of baseline")) if len(own) and len(other) else pd.DataFrame()
    pairs = pairs.dropna(subset=[metric, f"{metric} of baseline"]) if len(pairs) else pairs
    if not len(pairs):
        return np.empty((0, 1))
    stem, _, column = metric.partition(".")
    by_image = []
    for run, reference in zip(pairs["run"], pairs["run of baseline"]):
        files = [runs.resolve(place) / "scores" / f"{stem}.images.csv" for place in (run, reference)]
        if not all(file.exists() for file in files):
            break
        mine, base = (pd.read_csv(file, index_col="item") for file in files)
        if column not in mine or column not in base or set(mine.index) != set(base.index):
            break
        by_image.append((mine[column] - base[column]).sort_index())
    if len(by_image) == len(pairs) and all(one.index.equals(by_image[0].index) for one in by_image):
        return np.stack(by_image)
    return (pairs[metric] - pairs[f"{metric} of baseline"]).to_numpy(float)[:, None]


def _distinct(results: pd.DataFrame, metrics: list[str], name: str) -> str:
    stem = metrics[0].partition(".")[0]
    column = f"{stem}.{name}"
    values = (
        [] if column not in results else sorted({str(value).removesuffix(".0") for value in results[column].dropna()})
    )
    return ", ".join(values)


def _caption(results: pd.DataFrame, metrics: list[str], baseline: str) -> str:
    protocol, images = (_distinct(results, metrics, name) for name in ("protocol", "images"))
    stem = metrics[0].partition(".")[0]
    store = _distinct(results, metrics, "store")
    head = f"Protocol {protocol}, {images} images" + (f" of {store}" if store else "") + ". " if protocol else ""
    if "," in protocol + images:
        head += "Attention: protocol or number of images differ between the runs. "
    head += _schedule(results)
    scaled = "Scores x100. " if any(_title(metric)[1] == 100 for metric in metrics) else ""
    kind = "seeds and images" if any(_has_images(results, stem)) else "seeds"
    return (
        f"{head}{scaled}Mean ± standard deviation over n seeds; in brackets the paired difference to “{baseline}” with its 95 % "
        f"interval (bootstrap over {kind}, widened for few seeds). {NOISE}: within noise, the interval holds 0."
    )


def _schedule(results: pd.DataFrame) -> str:
    """How long was trained, and where that is less than the preset's own schedule."""
    if "steps" not in results or results["steps"].isna().all():
        return ""
    steps = sorted({int(steps) for steps in results["steps"].dropna()})
    text = f"{steps[0]} steps" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"
    presets = set(results["preset"].dropna()) if "preset" in results else set()
    full = PRESETS[presets.pop()].get("steps", Config.steps) if len(presets) == 1 else 0
    return f"{text} (short schedule: the preset has {full:,}). " if steps[-1] < full else f"{text}. "


def _has_images(results: pd.DataFrame, stem: str) -> list[bool]:
    return [(runs.resolve(place) / "scores" / f"{stem}.images.csv").exists() for place in results["run"]]


def _title(metric: str) -> tuple[str, int]:
    """What a metric is called in a table, and by what it is multiplied."""
    place, _, last = metric.rpartition(".")
    found = place.rpartition(".")[2]  # which map
    name = f", {found} map" if found in ("first", "last") else ""
    return (TITLES[last] + name, 100) if last in TITLES else (metric, 1)


def shown(of: Table) -> pd.DataFrame:
    """The table as people read it: every cell is text."""
    titles = [_title(metric)[0] for metric in of.metrics]
    rows = []
    for _, row in of.frame.iterrows():
        cells = {"setting": row["setting"], "n": str(row["n"])}
        for metric, title in zip(of.metrics, titles):
            cells[title if titles.count(title) == 1 else metric] = _cell(row, metric)
        rows.append(cells)
    return pd.DataFrame(rows)


def _cell(row, metric: str) -> str:
    factor = _title(metric)[1]
    values = [factor * row[f"{metric} {name}"] for name in ("mean", "std", "difference", "low", "high")]
    mean, std, difference, low, high = (None if value != value else value for value in values)
    style, signed = (".1f", "+.1f") if factor == 100 else (".4g", "+.3g")
    if mean is None:
        return "n/a"
    text = f"{mean:{style}}" + ("" if std is None else f" ± {std:{style}}")
    if row[f"{metric} n"] != row["n"]:
        text += f" (n = {row[f'{metric} n']})"
    if difference is not None:
        text += (
            f" [{difference:{signed}}"
            + (", no interval" if low is None else f": {low:{signed}} to {high:{signed}}")
            + "]"
        )
        text += f" {NOISE}" if low is not None and low <= 0 <= high else ""
    return text


def markdown(of: Table) -> str:
    frame = shown(of)
    lines = [list(frame), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    text = f"{text}\n\n{of.caption}\n"
    if of.notes:
        text += "\nNot in the table, or not as asked for:\n\n" + "".join(
            f"- {' '.join(note.split())}\n" for note in of.notes
        )
    return text


def latex(of: Table) -> str:
    """For \\usepackage{booktabs}."""
    frame = shown(of)
    rule = ["\\toprule", "\\midrule", "\\bottomrule"]
    lines = [" & ".join(map(_tex, line)) + " \\\\" for line in [list(frame), *frame.to_numpy().tolist()]]
    body = [rule[0], lines[0], rule[1], *lines[1:], rule[2]]
    notes = "".join(f"% {' '.join(note.split())}\n" for note in of.notes)
    inner = "\n".join(["\\begin{tabular}{l" + "r" * (len(frame.columns) - 1) + "}", *body, "\\end{tabular}"])
    return f"{notes}\\begin{{table}}\n\\centering\n\\caption{{{_tex(of.caption)}}}\n{inner}\n\\end{{table}}\n"


def _tex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        NOISE: r"$\approx$",
        "“": "``",
        "”": "''",
        "~": r"\textasciitilde{}",
    }
    special |= {character: f"\\{character}" for character in "&%$#_{}"} | {"^": r"\textasciicircum{}"}
    return "".join(special.get(character, character) for character in text)


def write(of: Table, folder: Path) -> list[Path]:
    """table.md, table.csv (every digit) and table.tex in the grid's folder; gives their paths."""
    texts = {"table.md": markdown(of), "table.csv": of.frame.to_csv(index=False), "table.tex": latex(of)}
    for name, text in texts.items():
        runs.write_text(folder / name, text)
    return [folder / name for name in texts]
