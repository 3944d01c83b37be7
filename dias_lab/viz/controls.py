"""A figure that is drawn again whenever a control is moved, in JupyterLab with a kernel.

The figure travels as a PNG in an image widget, not in an Output widget: that one captures what a cell prints from
wherever it runs, and makes nbclient fail where widget states are not stored (as `headless` runs notebooks).
"""

import html
import io
import threading

import ipywidgets as widgets


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
