"""Differences between settings, with their intervals: what `grid_table.table` found, as a figure.

A filled dot is a difference whose 95 % interval leaves out 0, a hollow grey one is within noise or has no interval (one
seed). At the end of each line stands the score itself, mean ± standard deviation over seeds.
"""

import numpy as np
from matplotlib import pyplot

from dias_lab.viz.palette import slot_colour

NOISE = "#8a8f99"


def interval_plot(frame, metrics: dict[str, str], title: str = "", factor: float = 100.0):
    """One panel a metric, one line a setting; gives the matplotlib figure.

    frame: rows with `setting`, `n`, and of each metric its mean, std, difference, low and high (`grid_table.Table.frame`);
    metrics: column -> title; factor: what scores are multiplied by. Raises ValueError for an empty frame.
    """
    if not len(frame):
        raise ValueError("there is no setting to draw")
    names = [f"{row['setting']} (n = {row['n']})" for _, row in frame.iterrows()]
    places = np.arange(len(frame))[::-1]
    size = (2.2 + 2.5 * len(metrics), 0.9 + 0.34 * len(frame))
    figure, axes = pyplot.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (metric, name) in zip(axes[0], metrics.items()):
        columns = [f"{metric} {part}" for part in ("mean", "std", "difference", "low", "high")]
        axis.axvline(0, color=NOISE, linewidth=0.8, zorder=0)
        for place, values in zip(places, factor * frame[columns].to_numpy(float)):
            _line(axis, place, *values)
        axis.set(title=name, xlabel="difference to the baseline", xmargin=0.12)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(places, names)
    axes[0, 0].set_ylim(-0.6, len(frame) - 0.4)
    if title:
        figure.suptitle(title)
    return figure


def _line(axis, place: float, mean: float, std: float, difference: float, low: float, high: float) -> None:
    text = "n/a" if np.isnan(mean) else f"{mean:.1f}" + ("" if np.isnan(std) else f" ± {std:.1f}")
    axis.annotate(text, (1, place), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                  va="center", fontsize="x-small", color=NOISE)  # fmt: skip
    if np.isnan(difference):
        return
    clear = low > 0 or high < 0  # false for NaN
    colour = slot_colour(0) if clear else NOISE
    if not np.isnan(low):
        axis.plot([low, high], [place, place], color=colour, linewidth=1.6)
    axis.plot([difference], [place], "o", color=colour, markerfacecolor=colour if clear else "white")
