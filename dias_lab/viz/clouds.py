"""Clouds of scores, as plotly figures: a point is an image, one score against another, and hovering names the image."""

import numpy as np
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from dias_lab.viz import palette


def score_cloud(panels: dict[str, tuple[str, str]], scores, names, metric: str = "ari", size: int = 300) -> go.Figure:
    """A panel for each title and pair (worse, better): the metric of `better` over that of `worse`, and the line of equality.

    scores: a DataFrame with the columns `<one>.<metric>`, a row an image, of the first of `names`. Images without a score are
    left out. Zooming one panel zooms all. Raises ValueError where there are more rows than names.
    """
    if len(scores) > len(names):
        raise ValueError(f"{len(scores)} images have scores, and only {len(names)} a name")
    figure = make_subplots(1, len(panels), subplot_titles=list(panels), horizontal_spacing=0.08)
    for number, (worse, better) in enumerate(panels.values(), start=1):
        x, y = (scores[f"{one}.{metric}"].to_numpy(float) for one in (worse, better))
        there = np.isfinite(x) & np.isfinite(y)
        ends = np.concatenate([x[there], y[there], [0, 1]])
        ends, thin = [ends.min(), ends.max()], {"color": palette.MERGED, "width": 1}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=thin, hoverinfo="skip", row=1, col=number)
        figure.add_scatter(
            x=x[there], y=y[there], text=[name for name, one in zip(names, there) if one], mode="markers",
            marker={"color": palette.slot_colour(0), "size": 9, "opacity": 0.6}, row=1, col=number,
            hovertemplate=f"%{{text}}<br>{worse} %{{x:.3f}}<br>{better} %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        figure.update_xaxes(title=f"{metric.replace('_', '-').upper()}: {worse}", matches="x", row=1, col=number)
        figure.update_yaxes(title=f"{metric.replace('_', '-').upper()}: {better}", matches="y", row=1, col=number)
    figure.update_layout(
        template=go.layout.Template(palette.TEMPLATE), showlegend=False, margin={"l": 60, "r": 20, "t": 50, "b": 50},
        width=size * len(panels) + 80, height=size + 100,
    )  # fmt: skip
    figure.update_annotations(font_size=13)
    return figure
