"""A training as it goes: its curves, and the maps that it keeps, from the files of its run directory.

`fit(..., watch=Watch())` brings a displayed Watch up to date after each evaluation, while the cell still runs.
"""

import html
import io
from pathlib import Path

import ipywidgets as widgets
from matplotlib import pyplot

from dias_lab.files import read_lines
from dias_lab.trace import AttentionTrace
from dias_lab.viz import palette
from dias_lab.viz.explorer import explore

MAPS = ("first", "last", "decoder")
TITLES = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO", "miou": "mIoU"}
TITLES |= {f"{level}_{metric}": f"{level} {title}" for level in ("video", "image") for metric, title in TITLES.items()}


class Watch(widgets.VBox):
    """Curves, and below them the explorer of the first `images` pictures (of clips: whole ones) whose maps the training keeps.

    The explorer stays where it stands; at the last training step it goes on with the training. What cannot be drawn is
    said, and stops no training.
    """

    def __init__(self, images: int = 8):
        self.images, self.maps = images, None
        self.text, self.curves = widgets.HTML("the training begins"), widgets.Image(format="png", layout={"max_width": "100%"})
        super().__init__([self.text, self.curves])

    def __call__(self, run_dir):
        """Read and draw what is in the run directory now."""
        try:
            self.text.value = self.draw(Path(run_dir))
        except Exception as error:
            self.text.value = f"<i>{html.escape(f'{type(error).__name__}: {error}')}</i>"

    def draw(self, run_dir: Path) -> str:
        log, maps = run_dir / "metrics.jsonl", run_dir / "training.npz"
        lines = read_lines(log) if log.exists() else []
        if any("validation" in line for line in lines):
            data = io.BytesIO()
            progress_figure(lines).savefig(data, format="png", dpi=90)
            self.curves.value = data.getvalue()
        if maps.exists():
            trace = AttentionTrace.load(maps)
            frames = trace.frames or 1
            trace = trace[: max(1, self.images // frames) * frames]
            if self.maps is None:
                self.maps = explore(trace, live=True, stop="decoder")
                self.children = [self.text, self.curves, self.maps]
            else:
                self.maps.show(trace)
        return f"step {lines[-1]['step'] if lines else 0}"


def progress_figure(lines: list[dict], loss: str = "reconstruction", metrics=("fg_ari", "mbo"), title: str = ""):
    """A loss, and the scores of the first, the last and the decoder's map, over training steps, as a matplotlib Figure.

    lines: of `metrics.jsonl`; scores stand x100, of clips at the video level unless a metric names one ("image_fg_ari"). Raises
    ValueError where there is no line of scores.
    """
    scored = [line for line in lines if "validation" in line]
    if not scored:
        raise ValueError(f"none of {len(lines)} lines has scores of the validation split: the first evaluation is to come")
    figure, axes = pyplot.subplots(1, 1 + len(metrics), figsize=(3.4 * (1 + len(metrics)), 2.7), layout="constrained")
    axes[0].plot(*zip(*((line["step"], line[loss]) for line in lines if loss in line)))
    axes[0].set(xlabel="step", title=f"{loss} loss")
    for axis, metric in zip(axes[1:], metrics):
        metric = metric if metric in scored[0]["validation"][MAPS[0]] else f"video_{metric}"
        for number, name in enumerate(MAPS):
            values = [float("nan") if (x := line["validation"][name][metric]) is None else 100 * x for line in scored]
            axis.plot([line["step"] for line in scored], values, "o-", ms=4, color=palette.ink(number), label=f"{name} map")
        axis.set(xlabel="step", title=f"{TITLES.get(metric, metric)} x100")
    for axis in axes:
        axis.set_xlim(0, None)
    axes[-1].legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    pyplot.close(figure)
    return figure
