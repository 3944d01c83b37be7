"""Figures that ask the kernel, in JupyterLab: drawn again when a control is moved, or with points that open their pictures.

A matplotlib figure travels as a PNG in an image widget, not in an Output widget: that one captures what a cell prints from
wherever it runs, and makes nbclient fail where widget states are not stored (as `headless` runs notebooks).
"""

import html
import io
import json
import threading

import ipywidgets as widgets
from plotly import graph_objects as go

from dias_lab.trace import AttentionTrace
from dias_lab.viz.explorer import explore


def controlled(draw, **controls) -> widgets.VBox:
    """Controls above the figure of `draw(**values)`, which returns a matplotlib Figure and a line of text about it.

    `controls`: ipywidgets by the names of draw's arguments. An error of `draw` is shown as the text, and the figure stays:
    whatever a callback raises would be lost. `draw` may be called from another thread, where torch has gradients switched
    on again: it must switch them off itself.
    """
    text, picture = widgets.HTML(), widgets.Image(format="png", layout={"max_width": "100%"})
    one_at_a_time = threading.Lock()  # newer kernels call from a thread for each widget

    def redraw(change=None):
        with one_at_a_time:
            try:
                figure, line = draw(**{name: control.value for name, control in controls.items()})
            except Exception as error:
                text.value = f"<i>{html.escape(f'{type(error).__name__}: {error}')}</i>"
                return
            data = io.BytesIO()
            figure.savefig(data, format="png", dpi=90)
            picture.value, text.value = data.getvalue(), html.escape(line)

    for name, control in controls.items():
        control.description = control.description or name
        control.style.description_width = "120px"
        if hasattr(control, "continuous_update"):
            control.continuous_update = False
        control.observe(redraw, names=["value"])
    redraw()
    return widgets.VBox([*controls.values(), text, picture])


class Clickable(widgets.VBox):
    """A figure whose points have images of the trace, by number, as their `customdata`: a click opens it in the explorer below.

    Without a kernel the figure is shown as it is. Raises ValueError where a point's image is not in the trace.
    """

    def __init__(self, figure: go.Figure, trace: AttentionTrace):
        self.trace, self.explorer, self.figure = trace, None, go.FigureWidget(figure)
        for points in self.figure.data:
            if points.customdata is not None:
                if (last := max(points.customdata, default=-1)) >= len(trace):
                    raise ValueError(f"a point has image {last}, counted from 0, and the trace only {len(trace)} images")
                points.on_click(self.show_image)
        super().__init__([self.figure, widgets.HTML("Click on a point: its picture opens here.")])

    def show_image(self, points, clicked, state=None) -> None:
        """Show the image of the point that was clicked; plotly's on_click calls it."""
        for place in clicked.point_inds[:1]:
            image = self.trace[[points.customdata[place]]]
            self.explorer = self.explorer or explore(image, live=True, stop="decoder")
            self.explorer.show(image)  # at the iteration where it stands
            self.explorer.title, self.children = image.names[0], [*self.children[:2], self.explorer]

    def _repr_mimebundle_(self, **options):
        return super()._repr_mimebundle_(**options) | {"application/vnd.plotly.v1+json": json.loads(self.figure.to_json())}
