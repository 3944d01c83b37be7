"""Numbers as plotly figures: curves, and clouds of scores. Hovering names a line and its value, a run and its image.

They need no kernel, and the page of `write_html` no network. Names come from runs: what looks like markup in them is text.
"""

from collections.abc import Iterable
from html import escape

import numpy as np
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from dias_lab.viz import palette

TEMPLATE = go.layout.Template(palette.TEMPLATE)  # a dict would be mixed with plotly's own template
LOOKS = {"template": TEMPLATE, "margin": {"l": 60, "r": 20, "t": 50, "b": 50}}
MAPS = ("first", "last", "decoder")
TITLES = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO", "miou": "mIoU"}
TITLES |= {f"{level}_{metric}": f"{level} {title}" for level in ("video", "image") for metric, title in TITLES.items()}


def curve_panels(panels: dict[str, dict], x: str = "step", title: str = "", height: int = 340) -> go.Figure:
    """A panel for each {title of y: {name of a line: (x values, y values)}}; None and NaN are gaps.

    A name has one colour and one place in the legend, whatever panels it is in. x: the title of the axis that the panels
    share: zooming one zooms all. height: of a row of panels, in pixels.
    """
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = make_subplots(rows, columns, horizontal_spacing=0.24 / columns, vertical_spacing=0.28 / rows)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for number, (y, lines) in enumerate(panels.items()):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        for name, (at, values) in lines.items():
            figure.add_scatter(
                x=np.array(at), y=np.array(values, np.float32), name=escape(name), line_color=palette.ink(names.index(name)),
                mode="lines+markers" if len(at) < 30 else "lines", hovertemplate="%{fullData.name}: %{y:.4~g}<extra></extra>",
                legendgroup=escape(name), showlegend=all(line.name != escape(name) for line in figure.data), **place,
            )  # fmt: skip
        figure.update_yaxes(title=escape(y), **place)
    above = {"text": f"{x} %{{x:,.9~r}}"}
    figure.update_xaxes(title=x, matches="x", unifiedhovertitle=above, rangemode="tozero" if x == "step" else "normal")
    named = any(len(lines) > 1 for lines in panels.values())
    legend = {"orientation": "h", "x": 0, "y": -60 / (rows * height - 100), "yanchor": "top"}  # below the axes' titles
    size = {"width": 760 if columns > 1 else None, "height": rows * height + named * 30 * -(-len(names) // 4)}  # one: the page's
    return figure.update_layout(LOOKS, title=title, hovermode="x unified", legend=legend, showlegend=named, **size)


def learning_curves(records, keys: str | Iterable[str] = "loss", title: str | None = None) -> go.Figure:
    """Curves of the values in `metrics.jsonl` over training steps: a panel a key, a line a run.

    `records` are one run's rows (dicts with "step" and values), or several runs as {name: rows}. Rows without a key, or with
    None or NaN, are left out. Raises ValueError for a key in no row.
    """
    runs = records if isinstance(records, dict) else {"": records}
    runs, keys = {name: list(rows) for name, rows in runs.items()}, [keys] if isinstance(keys, str) else list(keys)
    present = {key for rows in runs.values() for row in rows for key in row} - {"step"}
    if missing := [key for key in keys if key not in present]:
        raise ValueError(f"no record has {missing[0]!r}; they have {', '.join(sorted(present)) or 'nothing'}")
    panels = {key: {name or key: _points(rows, key) for name, rows in runs.items()} for key in keys}
    return curve_panels(panels, title=escape(f"{', '.join(keys)} over training") if title is None else title)


def progress_figure(lines: list[dict], loss: str = "reconstruction", metrics=("fg_ari", "mbo"), title: str = "") -> go.Figure:
    """A loss, and the scores of the first, the last and the decoder's map, over training steps.

    lines: of `metrics.jsonl`; scores stand x100, of clips at the video level unless a metric names one ("image_fg_ari"). Raises
    ValueError where there is no line of scores.
    """
    scored = [line for line in lines if "validation" in line]
    if not scored:
        raise ValueError(f"none of {len(lines)} lines has scores of the validation split: the first evaluation is to come")
    panels, steps = {f"{loss} loss": {loss: _points(lines, loss)}}, [line["step"] for line in scored]
    for metric in metrics:
        metric = metric if metric in scored[0]["validation"][MAPS[0]] else f"video_{metric}"
        found = {name: np.array([line["validation"][name][metric] for line in scored], float) for name in MAPS}
        panels[f"{TITLES.get(metric, metric)} x100"] = {f"{name} map": (steps, 100 * values) for name, values in found.items()}
    return curve_panels(panels, title=title)


def _points(rows, key: str) -> tuple[list, list]:
    there = [row for row in rows if row.get(key) is not None and row[key] == row[key]]
    return [row["step"] for row in there], [row[key] for row in there]


def score_cloud(panels: dict[str, tuple[str, str]], scores, names, metric: str = "ari", run: str = "", size=230) -> go.Figure:
    """A panel for each title and pair (worse, better): the metric of `better` over that of `worse`, and the line of equality.

    scores: a DataFrame with the columns `<one>.<metric>`, a row an image, of the first of `names`; run: whose they are.
    Images without a score are left out. Zooming one panel zooms all. Raises ValueError where there are more rows than names.
    """
    if len(scores) > len(names):
        raise ValueError(f"{len(scores)} images have scores, and only {len(names)} a name")
    figure = make_subplots(1, len(panels), subplot_titles=list(panels), horizontal_spacing=0.08)
    for number, (worse, better) in enumerate(panels.values(), start=1):
        place, title = {"row": 1, "col": number}, TITLES.get(metric, metric)
        x, y = (scores[f"{one}.{metric}"].to_numpy(float) for one in (worse, better))
        there = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        ends = np.concatenate([x[there], y[there], [0, 1]])
        ends, thin = [ends.min(), ends.max()], {"color": palette.MERGED, "width": 1}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=thin, hoverinfo="skip", **place)
        figure.add_scatter(
            x=x[there], y=y[there], text=[escape(names[row]) for row in there], customdata=there, name=escape(run),
            mode="markers", marker={"color": palette.slot_colour(0), "size": 9, "opacity": 0.6}, **place,
            hovertemplate=f"%{{text}}<br>{worse} %{{x:.3f}}<br>{better} %{{y:.3f}}<extra>%{{fullData.name}}</extra>",
        )  # fmt: skip
        figure.update_xaxes(title=f"{title}: {worse}", matches="x", **place)
        figure.update_yaxes(title=f"{title}: {better}", matches="y", **place)
    figure.update_annotations(font_size=11)
    return figure.update_layout(LOOKS, showlegend=False, width=size * len(panels) + 80, height=size + 100)
