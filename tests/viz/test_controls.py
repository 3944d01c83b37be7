"""Figures that are drawn again when a control moves, and those whose points open pictures."""

import json
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from plotly import graph_objects as go
from traces import some_trace

from dias_lab.viz.charts import score_cloud
from dias_lab.viz.controls import Clickable, controlled
from dias_lab.viz.explorer import Explorer


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


def clicked(*numbers):
    return SimpleNamespace(point_inds=list(numbers))  # what plotly hands a handler, of that


def test_a_click_on_a_point_opens_its_picture():
    trace = some_trace(images=3)
    scores = pd.DataFrame({"first.ari": [0.1, np.nan, 0.3], "last.ari": [0.2, 0.3, 0.4]})
    cloud = score_cloud({"last over first": ("first", "last")}, scores, trace.names)
    box = Clickable(cloud, trace)
    line, points = box.figure.data
    assert len(box.children) == 2 and points.customdata.tolist() == [0, 2]
    (handler,) = points._click_callbacks  # what a click in the browser calls
    handler(points, clicked(1), None)
    explorer = box.children[-1]
    assert isinstance(explorer, Explorer) and explorer.title == trace.names[2]
    assert [one["name"] for one in explorer.data["images"]] == [trace.names[2]]
    explorer.stop = 0
    handler(points, clicked(0), None)
    assert box.children[-1] is explorer and explorer.stop == 0  # the next one, at the same iteration
    assert [one["name"] for one in explorer.data["images"]] == [trace.names[0]] and explorer.title == trace.names[0]
    handler(points, clicked(), None)  # a click on the line of equality
    assert explorer.title == trace.names[0] and not line._click_callbacks


def test_without_a_kernel_a_clickable_figure_is_the_figure():
    trace = some_trace(images=2)
    frame = pd.DataFrame({"first.ari": [0.1, 0.2], "last.ari": [0.2, 0.3]})
    cloud = score_cloud({"last over first": ("first", "last")}, frame, trace.names)
    bundle = Clickable(cloud, trace)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    shown = go.Figure(bundle["application/vnd.plotly.v1+json"])
    assert list(shown.data[1].text) == trace.names and shown.layout.width == cloud.layout.width
    json.dumps(bundle)


def test_a_point_without_a_picture_is_refused():
    with pytest.raises(ValueError, match="a point has image 2, counted from 0, and the trace only 2 images"):
        Clickable(go.Figure(go.Scatter(x=[1], y=[1], customdata=[2])), some_trace(images=2))
    assert len(Clickable(go.Figure(go.Scatter(x=[], y=[], customdata=[])), some_trace(images=2)).children) == 2
