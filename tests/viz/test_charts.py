"""Curves and clouds: their data are the runs' numbers, and hovering names runs, images and steps."""

import numpy as np
import pandas as pd
import pytest

from dias_lab.viz import curve_panels, learning_curves, palette, progress_figure
from dias_lab.viz.charts import score_cloud

MARKUP = '<a href="javascript:alert(1)">x</a>'
STEPS = {"last over first": ("last", "first"), "decoder over last": ("decoder", "last")}
PANELS = {title: (worse, better) for title, (better, worse) in STEPS.items()}
SCORES = {"first": {"fg_ari": 0.1, "mbo": 0.2}, "last": {"fg_ari": 0.3, "mbo": None}, "decoder": {"fg_ari": 0.5, "mbo": 0.6}}
LINES = [{"step": 10, "reconstruction": 0.5}, {"step": 20, "reconstruction": 0.4}, {"step": 20, "validation": SCORES}]


def points(line) -> list:
    return [[float(x), round(float(y), 5)] for x, y in zip(line.x, line.y, strict=True)]


def titles(figure) -> list[str]:
    return [axis.title.text for axis in figure.select_yaxes() if axis.title.text]


def test_a_panel_is_a_score_and_a_name_has_one_colour_and_one_place_in_the_legend():
    lines = {"ARI": {"a": ([1, 2], [3.0, None])}, "mBO": {"b": ([1], [4.0]), "a": ([1], [5.0])}, "kept": {"b": ([0.01, 3], [1, 2])}}
    figure = curve_panels(lines, "threshold", "a title")
    assert titles(figure) == ["ARI", "mBO", "kept"] and figure.layout.title.text == "a title"
    assert {axis.title.text for axis in figure.select_xaxes()} == {"threshold"} and figure.layout.xaxis2.matches == "x"
    assert [(line.name, line.showlegend) for line in figure.data] == [("a", True), ("b", True), ("a", False), ("b", False)]
    assert [line.line.color for line in figure.data] == [palette.ink(number) for number in (0, 1, 0, 1)]
    assert np.isnan(figure.data[0].y[1]) and points(figure.data[3]) == [[0.01, 1], [3, 2]]
    assert figure.layout.xaxis.rangemode == "normal" and figure.layout.hovermode == "x unified"
    assert not curve_panels({"loss": {"a": ([1], [2])}, "ari": {"b": ([1], [2])}}).layout.showlegend  # the axes name them


@pytest.mark.parametrize("count, columns", [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3)])
def test_panels_stand_in_rows(count, columns):
    figure = curve_panels({str(number): {"a": ([1], [2])} for number in range(count)})
    starts = {round(axis.domain[0], 3) for axis in figure.select_xaxes()}
    assert len(starts) == columns and (figure.layout.width is None) == (count == 1)
    assert figure.layout.height == 340 * -(-count // columns) and not figure.layout.showlegend


def test_names_from_runs_are_text():
    figure = curve_panels({MARKUP: {MARKUP: ([1], [2])}})
    cloud = score_cloud({"x": ("a", "b")}, pd.DataFrame({"a.ari": [0.1], "b.ari": [0.2]}), [MARKUP], run=MARKUP)
    learned = learning_curves({MARKUP: [{"step": 1, MARKUP: 1.0}]}, MARKUP)
    for one in (figure, cloud, learned):
        assert "<a" not in "".join(part for part in one.to_json().split('"') if "template" not in part).replace("\\u003ca", "<a")
    assert "%{fullData.name}" in figure.data[0].hovertemplate and "%{fullData.name}" in cloud.data[1].hovertemplate


def test_learning_curves_are_the_runs_lines():
    rows = [{"step": 0, "loss": 3.0}, {"step": 10, "loss": 2.0, "ari": 0.5}, {"step": 20, "loss": float("nan")}]
    figure = learning_curves(rows)
    assert figure.data[0].name == "loss" and points(figure.data[0]) == [[0, 3], [10, 2]]
    assert figure.layout.title.text == "loss over training" and figure.layout.xaxis.unifiedhovertitle.text == "step %{x:,.9~r}"
    figure = learning_curves({"seed 42": rows, "seed 43": rows[:1]}, ["loss", "ari"])
    assert titles(figure) == ["loss", "ari"]
    assert [line.name for line in figure.data] == ["seed 42", "seed 43"] * 2
    assert [line.line.color for line in figure.data] == [palette.ink(0), palette.ink(1)] * 2
    assert points(figure.data[2]) == [[10, 0.5]] and len(figure.data[3].x) == 0
    with pytest.raises(ValueError, match="no record has 'los'; they have ari, loss"):
        learning_curves(rows, "los")


def test_losses_and_scores_stand_against_steps():
    figure = progress_figure([{"step": 0, "validation": SCORES}, *LINES], metrics=["fg_ari", "mbo"], title="seed 42")
    loss, first, last, decoder, *second = figure.data
    assert points(loss) == [[10, 0.5], [20, 0.4]]
    assert points(decoder) == [[0, 50], [20, 50]] and points(first) == [[0, 10], [20, 10]] and np.isnan(second[1].y).all()
    assert [line.name for line in second] == ["first map", "last map", "decoder map"] == [line.name for line in (first, last, decoder)]
    assert titles(figure) == ["reconstruction loss", "FG-ARI x100", "mBO x100"] and figure.layout.title.text == "seed 42"
    assert len(progress_figure(LINES, loss="none of these").data[0].x) == 0
    with pytest.raises(ValueError, match="none of 2 lines has scores"):
        progress_figure(LINES[:2])


def test_scores_of_clips_are_those_of_the_video_level():
    known = {f"{level}_{metric}": value for level, value in (("video", 0.2), ("image", 0.4)) for metric in ("fg_ari", "mbo")}
    lines = [{"step": 20, "validation": {"clips": 2} | {name: known | {"switches": 3.0} for name in ("first", "last", "decoder")}}]
    figure = progress_figure(lines)
    assert titles(figure) == ["reconstruction loss", "video FG-ARI x100", "video mBO x100"] and points(figure.data[1]) == [[20, 20]]
    figure = progress_figure(lines, metrics=("image_mbo", "fg_ari"))
    assert titles(figure)[1:] == ["image mBO x100", "video FG-ARI x100"] and points(figure.data[3]) == [[20, 40]]


@pytest.fixture
def scores():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({f"{one}.{metric}": random.random(5) for one in ("first", "last", "decoder") for metric in ("ari", "fg_ari")})
    frame.loc[2, "first.ari"], frame.loc[3, "decoder.ari"] = np.nan, -0.2
    return frame


@pytest.mark.parametrize("metric, title", [("ari", "ARI"), ("fg_ari", "FG-ARI")])
def test_a_point_is_an_image_and_has_its_name(scores, metric, title):
    names = [f"image {number}" for number in range(7)]  # more than have scores
    figure = score_cloud(PANELS, scores, names, metric, run="runs/one")
    assert [one.text for one in figure.layout.annotations] == list(PANELS)
    assert titles(figure) == [f"{title}: {better}" for _, better in PANELS.values()]
    for (worse, better), line, dots in zip(PANELS.values(), figure.data[::2], figure.data[1::2], strict=True):
        wanted = scores[[f"{worse}.{metric}", f"{better}.{metric}"]].dropna()
        np.testing.assert_array_equal(np.stack([dots.x, dots.y], 1), wanted)
        assert list(dots.text) == [names[row] for row in wanted.index] and list(dots.customdata) == list(wanted.index)
        assert dots.hovertemplate.startswith("%{text}<br>") and line.hoverinfo == "skip"
        assert dots.name == "runs/one" and dots.hovertemplate.endswith("<extra>%{fullData.name}</extra>")
        assert list(line.x) == list(line.y) and line.x[0] <= wanted.to_numpy().min() and line.x[1] >= wanted.to_numpy().max()


def test_images_without_names_are_refused(scores):
    with pytest.raises(ValueError, match="5 images have scores, and only 3 a name"):
        score_cloud(PANELS, scores, ["a", "b", "c"])


def test_a_metric_that_no_image_has_is_an_empty_cloud(scores):
    scores["first.ari"] = np.nan
    assert len(score_cloud(PANELS, scores, list("abcde")).data[1].x) == 0
