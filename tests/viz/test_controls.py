"""Figures that are drawn again when a control moves."""

import ipywidgets as widgets
from matplotlib.figure import Figure

from dias_lab.viz.controls import controlled


def test_a_moved_control_draws_again_and_an_impossible_value_says_why():
    def draw(height, kind):
        if kind == "bad":
            raise RuntimeError("not <b>that</b>")
        figure = Figure(figsize=(1, height))
        return figure, f"height < {height}"

    height, kind = widgets.IntSlider(1, 1, 3), widgets.Dropdown(options=["good", "bad"])
    box = controlled(draw, height=height, kind=kind)
    text, picture = box.children[-2:]
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG") and text.value == "height &lt; 1" and not height.continuous_update
    height.value = 2
    assert bytes(picture.value) != first and text.value == "height &lt; 2"
    kind.value = "bad"
    assert "RuntimeError" in text.value and "&lt;b&gt;" in text.value and bytes(picture.value) != first
