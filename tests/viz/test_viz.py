import re
import subprocess
import sys

import numpy as np
import pytest
from plotly import graph_objects as go

from dias_lab.trace import AttentionTrace
from dias_lab.viz import figure_html, gallery, iterations_figure, learning_curves, overlay, palette, print_iterations

B, T, N, h, w, H, W = 3, 2, 4, 5, 6, 20, 24


@pytest.fixture
def trace():
    random = np.random.default_rng(0)
    maps = random.dirichlet(np.ones(N), (T + 1, B, h, w)).transpose(0, 1, 4, 2, 3)
    keep = np.ones((B, N), bool)
    keep[0, 2] = False
    return AttentionTrace(
        images=random.integers(0, 256, (B, H, W, 3), dtype=np.uint8),
        attention=maps[:T],
        decoder_attention=maps[T],
        keep=keep,
        segments=random.choice(np.array([0, 1, 2, 254, 255], np.uint8), (B, H, W)),
        names=["apple", "bowl", "cup"],
    )


def bare(trace):
    """The trace without what is optional."""
    return AttentionTrace(trace.images, trace.attention, None, trace.keep)


def test_colours_are_told_apart():
    colours = palette.slot_colours(24).astype(int)
    difference = np.abs(colours[:, None] - colours).sum(axis=-1) + 999 * np.eye(24, dtype=int)
    assert colours.shape == (24, 3) and difference.min() > 60
    assert palette.slot_colour(0) == palette.slot_colour(24) == "#0072b2"
    for slot in range(24):
        assert palette.contrast_with_white(palette.rgb(palette.ink(slot))) >= 4.5
    assert palette.contrast_with_white((0, 0, 0)) == pytest.approx(21)


def test_segments_have_their_slots_colours():
    segments = np.array([[0, 1], [23, 24]], np.uint8)
    colours = overlay.colour_segments(segments)
    assert colours.dtype == np.uint8
    assert colours[0, 1].tolist() == list(palette.rgb(palette.slot_colour(1)))
    assert (colours[1, 1] == colours[0, 0]).all()


def test_void_and_overlap_are_grey():
    colours = overlay.colour_true_segments(np.array([0, 1, 254, 255], np.uint8))
    assert colours[[0, 2, 3]].tolist() == [
        list(palette.rgb(name)) for name in (palette.BACKGROUND, *[palette.VOID] * 2)
    ]
    assert colours[1].tolist() == list(palette.rgb(palette.SLOT_COLOURS[-1]))


def test_blend_is_between():
    image, colours = np.full((2, 3, 3), 100, np.uint8), np.full((2, 3, 3), 200, np.uint8)
    assert (overlay.blend(image, colours, 0.25) == 125).all()
    assert (overlay.blend(image, colours, np.eye(2, 3))[0, 0] == 200).all()
    assert (overlay.blend(image, colours, np.eye(2, 3))[0, 1] == 100).all()


def test_outlines_lie_between_labels():
    segments = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    assert overlay.outlines(segments).astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]
    drawn = overlay.draw_outlines(np.zeros((3, 3, 3), np.uint8), segments)
    assert drawn.sum() == 4 * 3 * 255


def test_heat_maps_have_a_fixed_scale():
    maps = np.array([[0.0, 0.5], [1.0, 1.2]])
    colours = overlay.heat_map(maps)
    assert colours.shape == (2, 2, 3) and colours.dtype == np.uint8
    assert (colours[1, 0] == colours[1, 1]).all()
    assert (overlay.heat_map(maps[:1]) == colours[:1]).all()


@pytest.mark.parametrize("change", [lambda trace: trace, bare])
def test_iterations_figure_opens_on_the_first_of_its_stops(trace, change):
    trace = change(trace)
    figure = iterations_figure(trace, 1)
    (slider,) = figure.layout.sliders
    assert len(slider.steps) == len(trace.stops) and slider.active == 0
    assert not figure.frames and not figure.layout.updatemenus
    shown = [bool(part.visible is not False) for part in figure.data]
    assert shown == slider.steps[0].args[0]["visible"]
    for step in slider.steps:
        assert len(step.args[0]["visible"]) == len(figure.data)
        assert sum(step.args[0]["visible"]) == sum(shown) == N + 2 + (trace.segments is not None)


def test_iterations_figure_shows_the_maps(trace):
    figure = iterations_figure(trace, 1)
    maps = [part for part in figure.data if isinstance(part, go.Heatmap)]
    assert len(maps) == (T + 1) * N
    percent = np.asarray(maps[N + 2].z)  # iteration 2, slot 2
    assert percent.dtype == np.uint8 and percent.shape == (h, w)
    np.testing.assert_allclose(percent / 100, trace.attention[1, 1, 2].astype(float), atol=0.006)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 100)
    edges = maps[0].x0 - maps[0].dx / 2, maps[0].x0 + (w - 0.5) * maps[0].dx
    assert edges == tuple(figure.layout.xaxis.range) == (-0.5, W - 0.5)
    assert tuple(figure.layout.yaxis.range) == (H - 0.5, -0.5)  # y down


def test_merged_slots_are_marked(trace):
    titles = {title.text: title.font.color for title in iterations_figure(trace, 0).layout.annotations}
    assert titles["slot 2, merged"] == palette.MERGED
    assert titles["slot 1"] == palette.ink(1)
    assert "merged away: slot 2" in iterations_figure(trace, 0).layout.title.text
    assert "merged" not in str(iterations_figure(trace, 1).layout.title.text)
    assert [panel.get_title() for panel in print_iterations(trace, 0).axes[2:6]][2] == "slot 2\nmerged"


def test_the_page_needs_no_network(trace):
    page = figure_html(iterations_figure(trace))
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert "Plotly.newPlot" in page and "Plotly.animate(" not in page.rpartition("Plotly.newPlot")[2]
    assert len(iterations_figure(trace).to_json()) < 60_000


@pytest.mark.parametrize("change", [lambda trace: trace, bare])
def test_print_figures_draw(trace, change, tmp_path):
    trace = change(trace)
    figure = print_iterations(trace, 2)
    assert len(figure.axes) == len(trace.stops) * (N + 2) + 1  # and the colour bar
    assert all(drawn.get_clim() == (0, 1) for drawn in figure.axes[2].images)
    figure.savefig(tmp_path / "iterations.pdf")
    figure = gallery(trace, columns=2)
    per_image = 1 + (trace.segments is not None) + len(trace.stops)
    assert len(figure.axes) == 2 * 2 * per_image
    figure.savefig(tmp_path / "gallery.png")
    assert len(gallery(trace, which=0).axes) == 3 * (per_image - len(trace.stops) + 1)


def test_learning_curves():
    rows = [{"step": 0, "loss": 3.0}, {"step": 10, "loss": 2.0, "ari": 0.5}, {"step": 20, "loss": float("nan")}]
    figure = learning_curves(rows)
    assert figure.data[0].name == "loss" and list(figure.data[0].x) == [0, 10]
    figure = learning_curves({"seed 42": rows, "seed 43": rows[:1]}, ["loss", "ari"])
    assert [line.name for line in figure.data] == ["seed 42 loss", "seed 42 ari", "seed 43 loss", "seed 43 ari"]
    assert [line.line.color for line in figure.data] == [palette.ink(0)] * 2 + [palette.ink(1)] * 2
    assert [line.line.dash for line in figure.data] == ["solid", "dash"] * 2
    assert list(figure.data[1].x) == [10] and len(figure.data[3].x) == 0
    with pytest.raises(ValueError, match="no record has 'los'; they have ari, loss"):
        learning_curves(rows, "los")


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch must not be imported here")
sys.meta_path.insert(0, NoTorch())
from dias_lab.trace import AttentionTrace
from dias_lab.viz import figure_html, gallery, iterations_figure, print_iterations, use
use()
trace = AttentionTrace.load(sys.argv[1])
figure_html(iterations_figure(trace)), gallery(trace), print_iterations(trace)
"""


def test_figures_need_no_torch(trace, tmp_path):
    trace.save(tmp_path / "x.npz")
    command = [sys.executable, "-c", WITHOUT_TORCH, tmp_path / "x.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_viz_imports_no_plotting():
    code = (
        "import sys, dias_lab.viz; print([name for name in ('plotly', 'matplotlib', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_data_sheet():
    """Each picture has its panel, its name and the names of its larger segments; the background keeps its colours."""
    from dias_lab.viz import data_sheet
    from dias_lab.viz.sheet import laid_over

    image, segments = np.full((60, 80, 3), 90, np.uint8), np.zeros((60, 80), np.uint8)
    segments[10:40, 10:40], segments[50:, 60:], segments[0] = 3, 254, 255
    wide = np.zeros((10, 300, 3), np.uint8)
    pictures = [(image, segments, "a" * 90 + ".jpg", {3: "cat"}), (wide, None, "wide.jpg", {})] * 3
    figure = data_sheet({"train: 6": pictures, "test: none": []}, "toy")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(figure.axes) == 6 and texts.count("cat") == 3 and texts.count("wide.jpg · no masks") == 3
    assert sum(text.startswith("…") and text.endswith("a.jpg · 1 segment") for text in texts) == 3
    assert {"toy", "train: 6", "test: none"} == {text.get_text() for text in figure.texts}
    panel = laid_over(image, segments)
    assert (panel[45, 30] == 90).all() and (panel[20, 20] != 90).any() and (panel[9, 20] == 255).all()
    assert len(np.unique(panel[52:59, 62:79].reshape(-1, 3), axis=0)) == 2  # stripes
    assert (image == 90).all()
