"""A training as it goes: its curves, and the maps that it keeps, from the files of its run directory.

`fit(..., watch=Watch())` brings a displayed Watch up to date after each evaluation, while the cell still runs.
"""

import html
from pathlib import Path

import ipywidgets as widgets
from plotly import graph_objects as go

from dias_lab.files import read_lines
from dias_lab.trace import AttentionTrace
from dias_lab.viz.charts import progress_figure
from dias_lab.viz.explorer import explore


class Watch(widgets.VBox):
    """Curves, and below them the explorer of the first `images` pictures (of clips: whole ones) whose maps the training keeps.

    The explorer stays where it stands; at the last training step it goes on with the training. What cannot be drawn is
    said, and stops no training.
    """

    def __init__(self, images: int = 8):
        self.images, self.curves, self.maps, self.text = images, None, None, widgets.HTML("the training begins")
        super().__init__([self.text])

    def __call__(self, run_dir):
        """Read and draw what is in the run directory now."""
        try:
            self.text.value = self.draw(Path(run_dir))
        except Exception as error:
            self.text.value = f"<i>{html.escape(f'{type(error).__name__}: {error}')}</i>"
        self.children = [part for part in (self.text, self.curves, self.maps) if part is not None]

    def draw(self, run_dir: Path) -> str:
        log, maps = run_dir / "metrics.jsonl", run_dir / "training.npz"
        lines = read_lines(log) if log.exists() else []
        if any("validation" in line for line in lines):
            figure = progress_figure(lines)
            self.curves = self.curves or go.FigureWidget(figure)  # which keeps its zoom, and sends its script once
            with self.curves.batch_update():
                for line, new in zip(self.curves.data, figure.data, strict=True):
                    line.update(x=new.x, y=new.y, mode=new.mode)
        if maps.exists():
            trace = AttentionTrace.load(maps)
            frames = trace.frames or 1
            trace = trace[: max(1, self.images // frames) * frames]
            self.maps = self.maps or explore(trace, live=True, stop="decoder")
            self.maps.show(trace)
        return f"step {lines[-1]['step'] if lines else 0}"
