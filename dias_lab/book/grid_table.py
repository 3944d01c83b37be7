"""The table of a grid: mean and standard deviation over seeds, and what differs from the baseline (intervals.py).

An interval that holds 0 is "within noise".
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dias_lab import runs
from dias_lab.analysis import intervals
from dias_lab.analysis.intervals import TITLES
from dias_lab.book import grid
from dias_lab.book.parameters import Refused
from dias_lab.config import PRESETS, Config, nearest
from dias_lab.files import as_markdown

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
        known = "; ".join(of.settings)
        raise Refused(f"there is no setting {baseline!r}{nearest(baseline, of.settings)}; there are: {known}")
    leftovers, stands = grid.stale(of), list(zip(of.runs, grid.status(of)))
    done = [run for run, row in stands if row["state"] == "done"]
    rows = [runs.row(run.folder) | {"setting": run.setting, "seed": run.seed} for run in done]
    absent = [row for _, row in stands if row["state"] != "done"]
    notes = [_note(row) for row in absent]
    if old:
        rows += (taken := _stale_rows(leftovers, absent))
        notes += [f"{row['setting']}, seed {row['seed']}: stale result, {row['why']}" for row in taken]
    elif count := sum(runs.state(folder) == "done" for folder, _ in leftovers):
        notes.append(f"{count} finished runs are stale and left out; --stale takes those that have no new result")
    if not rows:
        raise Refused(f"no run of {runs.short(of.folder)} is done: {'; '.join(notes[:3])}")
    results = pd.DataFrame(rows)
    numbers = [name for name in results if pd.api.types.is_numeric_dtype(results[name])]
    metrics = metrics or chosen.get("metrics") or _default_metrics(results, numbers, rows)
    if unknown := [metric for metric in metrics if metric not in numbers]:
        raise Refused(f"no run has a number {unknown[0]!r}{nearest(unknown[0], results.columns)}")
    parts = {setting: results[results["setting"] == setting] for setting in of.settings}
    others = {name: parts[baseline] if name != baseline else results[:0] for name in parts}
    frame = pd.DataFrame([_row(own, others[name], metrics) for name, own in parts.items() if len(own)])
    return Table(frame, metrics, baseline, _caption(results, metrics, baseline), notes)


def _note(row: dict) -> str:
    seed = "" if row["seed"] is None else f", seed {row['seed']}"
    return f"{row['setting']}{seed}: {row['state']}" + (f": {row['problem']}" if row["problem"] else "")


def _stale_rows(leftovers, missing: list[dict]) -> list[dict]:
    """Of the runs that are not done, the newest finished one of an older notebook or package."""
    wanted, newest = {(row["setting"], row["seed"]) for row in missing}, {}
    for folder, why in leftovers:
        if runs.state(folder) == "done" and "parameters changed" not in why:
            made, when = runs.read_json(folder / "run.json"), (folder / "metrics.json").stat().st_mtime_ns
            key = made["variant"], made["seed"]
            if key in wanted and when > newest.get(key, (0,))[0]:
                newest[key] = when, runs.row(folder) | {"setting": key[0], "seed": key[1], "why": why}
    return [row for _, row in newest.values()]


def _default_metrics(results: pd.DataFrame, numbers: list[str], rows: list[dict]) -> list[str]:
    stems = [name.rpartition(".decoder.")[0] for name in results if name.endswith((".decoder.ari", ".decoder.video_ari"))]
    for stem in sorted([*stems, "scores"], key="scores".__eq__):  # a test split before the validation's
        if found := [name for metric in TITLES if (name := f"{stem}.decoder.{metric}") in numbers]:
            return found
    written = {key for row in rows for key in runs.flat(runs.read_json(runs.resolve(row["run"]) / "metrics.json"))}
    written -= {"steps", "seconds", *(name for name in written if name.startswith("about."))}
    if found := [name for name in numbers if name in written]:
        return found
    raise Refused("the runs wrote no number into their metrics.json; [table] metrics names the columns to take")


def _row(own: pd.DataFrame, base: pd.DataFrame, metrics: list[str]) -> dict:
    row = {"setting": own["setting"].iloc[0], "n": len(own)}
    row |= {name: _common(own, metrics, name) for name in ("protocol", "images")}
    for metric in metrics:
        found = intervals.scores(own, metric)
        row |= {f"{metric} n": len(found), f"{metric} mean": found["value"].mean(), f"{metric} std": found["value"].std()}
        names = [f"{metric} {name}" for name in ("difference", "low", "high")]
        row |= dict(zip(names, intervals.difference(found, intervals.scores(base, metric))))
    return row


def _common(results: pd.DataFrame, metrics: list[str], name: str) -> str:
    return intervals.distinct(results.get(f"{metrics[0].partition('.')[0]}.{name}", ()))


def _caption(results: pd.DataFrame, metrics: list[str], baseline: str) -> str:
    protocol, images, store, clips = (_common(results, metrics, name) for name in ("protocol", "images", "store", "clips"))
    counted = f"{clips} clips ({images} frames)" if clips else f"{images} images"
    head = f"Protocol {protocol}, {counted}" + (f" of {store}" if store else "") + ". " if protocol else ""
    head += "Attention: protocol or number of images differ between the runs. " if "," in protocol + images else ""
    head += _schedule(results)
    scaled = "Scores x100. " if any(_title(metric)[1] == 100 for metric in metrics) else ""
    by_image = any(file.exists() for file in intervals.scores(results, metrics[0])["file"])
    kind = f"seeds and {'clips' if clips else 'images'}" if by_image else "seeds"
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


def _title(metric: str) -> tuple[str, int]:
    """What a metric is called in a table, and by what it is multiplied."""
    place, _, last = metric.rpartition(".")
    found = place.rpartition(".")[2]  # which map
    name = f", {found} map" if found in ("first", "last") else ""
    return (TITLES[last] + name, 100) if last in TITLES else (metric, 1)


def shown(of: Table) -> pd.DataFrame:
    """The table as people read it: every cell is text."""
    titles = [_title(metric)[0] for metric in of.metrics]
    table = of.frame[["setting", "n"]].astype(str)
    for metric, title in zip(of.metrics, titles):
        table[title if titles.count(title) == 1 else metric] = [_cell(row, metric) for _, row in of.frame.iterrows()]
    return table


def _cell(row, metric: str) -> str:
    factor = _title(metric)[1]
    mean, std, difference, low, high = (row[f"{metric} {name}"] for name in ("mean", "std", "difference", "low", "high"))
    text = intervals.mean_text(mean, std, factor)
    if mean == mean and row[f"{metric} n"] != row["n"]:
        text += f" (n = {row[f'{metric} n']})"
    noise = f" {NOISE}" if low <= 0 <= high else ""
    return text + intervals.difference_text(difference, low, high, factor) + noise


def markdown(of: Table) -> str:
    frame = shown(of).map(as_markdown).rename(columns=as_markdown)
    lines = [list(frame), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"- {as_markdown(note)}\n" for note in of.notes)
    return f"{text}\n\n{as_markdown(of.caption)}\n" + (f"\nNot in the table, or not as asked for:\n\n{notes}" if notes else "")


def latex(of: Table) -> str:
    """For \\usepackage{booktabs}."""
    from nbconvert.filters import escape_latex

    table = shown(of).map(escape_latex).rename(columns=escape_latex).style.hide(axis="index")
    form = {"hrules": True, "position_float": "centering", "column_format": "l" + "r" * (len(table.columns) - 1)}
    text = table.to_latex(caption=escape_latex(of.caption), **form)
    for sign, code in {"±": r"$\pm$", NOISE: r"$\approx$", "“": "``", "”": "''"}.items():
        text = text.replace(sign, code)
    return "".join(f"% {' '.join(note.split())}\n" for note in of.notes) + text


def write(of: Table, folder: Path) -> list[Path]:
    """table.md, table.csv (every digit) and table.tex in the grid's folder; gives their paths."""
    texts = {"table.md": markdown(of), "table.csv": of.frame.to_csv(index=False), "table.tex": latex(of)}
    for name, text in texts.items():
        runs.write_text(folder / name, text)
    return [folder / name for name in texts]
