import numpy as np
import pandas as pd
import pytest

from dias_lab.viz.clouds import score_cloud

STEPS = {"last over first": ("last", "first"), "decoder over last": ("decoder", "last")}
PANELS = {title: (worse, better) for title, (better, worse) in STEPS.items()}


@pytest.fixture
def scores():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({f"{one}.{metric}": random.random(5) for one in ("first", "last", "decoder") for metric in ("ari", "fg_ari")})
    frame.loc[2, "first.ari"], frame.loc[3, "decoder.ari"] = np.nan, -0.2
    return frame


@pytest.mark.parametrize("metric", ["ari", "fg_ari"])
def test_a_point_is_an_image_and_has_its_name(scores, metric):
    names = [f"image {number}" for number in range(7)]  # more than have scores
    figure = score_cloud(PANELS, scores, names, metric)
    assert [one.text for one in figure.layout.annotations] == list(PANELS)
    for (worse, better), line, points in zip(PANELS.values(), figure.data[::2], figure.data[1::2], strict=True):
        wanted = scores[[f"{worse}.{metric}", f"{better}.{metric}"]].dropna()
        np.testing.assert_array_equal(np.stack([points.x, points.y], 1), wanted)
        assert list(points.text) == [names[row] for row in wanted.index]
        assert points.hovertemplate.startswith("%{text}<br>") and line.hoverinfo == "skip"
        assert list(line.x) == list(line.y) and line.x[0] <= wanted.to_numpy().min() and line.x[1] >= wanted.to_numpy().max()


def test_images_without_names_are_refused(scores):
    with pytest.raises(ValueError, match="5 images have scores, and only 3 a name"):
        score_cloud(PANELS, scores, ["a", "b", "c"])


def test_a_metric_that_no_image_has_is_an_empty_cloud(scores):
    scores["first.ari"] = np.nan
    assert len(score_cloud(PANELS, scores, list("abcde")).data[1].x) == 0
