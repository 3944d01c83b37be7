import numpy as np
import pytest

from dias_lab.trace import AttentionTrace
from dias_lab.viz import contact_sheet, gallery, iterations, palette
from dias_lab.viz.figures import film_strip, map_rows

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


def test_merged_slots_are_marked(trace):
    titles = {panel.get_title(): panel.title.get_color() for panel in iterations(trace, 0).axes[2:6]}
    assert titles["slot 2\nmerged"] == palette.MERGED
    assert titles["slot 1"] == palette.ink(1)
    assert "merged away: slot 2" in iterations(trace, 0).get_suptitle()
    assert "merged" not in iterations(trace, 1).get_suptitle()


@pytest.mark.parametrize("merges, after", [({2: 0}, 1), ({0: 1, 3: 1}, 1), ({0: 2}, 0)])
def test_a_figure_for_a_paper_says_where_a_slot_went(trace, merges, after, tmp_path):
    maps = np.concatenate([trace.attention, trace.decoder_attention[None]]).astype(float)
    leader, keep = np.broadcast_to(np.arange(N), (T, B, N)).copy(), np.ones((B, N), bool)
    for slot, into in merges.items():
        maps[after:, 1, slot], leader[after:, 1, slot], keep[1, slot] = 0, into, False
    maps /= maps.sum(axis=2, keepdims=True)
    merged = AttentionTrace(trace.images, maps[:T], maps[T], keep, leader=leader)
    figure = iterations(merged, 1)
    panels = np.array(figure.axes[:-1]).reshape(T + 1, N + 2)
    for row in range(T + 1):
        for slot in range(N):
            panel = panels[row, 2 + slot]
            gone = row >= after and slot in merges
            assert len(panel.images) == (not gone)
            assert [text.get_text() for text in panel.texts] == ([f"in slot {merges[slot]}"] if gone else [])
    words = [f"{slot} into {into}" for slot, into in sorted(merges.items())]
    assert ", ".join(words) in figure.get_suptitle()
    assert "merged" not in iterations(merged, 0).get_suptitle()
    figure.savefig(tmp_path / "x.pdf")
    assert (tmp_path / "x.pdf").stat().st_size > 10_000


@pytest.mark.parametrize("change", [lambda trace: trace, bare])
def test_print_figures_draw(trace, change, tmp_path):
    trace = change(trace)
    figure = iterations(trace, 2)
    assert len(figure.axes) == len(trace.stops) * (N + 2) + 1  # and the colour bar
    assert all(drawn.get_clim() == (0, 1) for drawn in figure.axes[2].images)
    for kind in ("pdf", "svg", "png"):
        figure.savefig(tmp_path / f"iterations.{kind}")
    figure = gallery(trace, columns=2)
    per_image = 1 + (trace.segments is not None) + len(trace.stops)
    assert len(figure.axes) == 2 * 2 * per_image
    figure.savefig(tmp_path / "gallery.png")
    assert len(gallery(trace, which=0).axes) == 3 * (per_image - len(trace.stops) + 1)


def test_a_film_has_a_row_a_picture_and_a_column_a_step(trace):
    over = AttentionTrace.over_training({step: trace for step in range(0, 1100, 100)})
    figure = film_strip(over[:2], columns=4)
    panels = np.array(figure.axes).reshape(2, 2 + 4)
    assert [panel.get_title() for panel in panels[0]] == ["image", "true segments", "step 0", "step 300", "step 700", "step 1,000"]
    assert (panels[1, 0].images[0].get_array() == trace.images[1]).all()
    steps = {0: trace, 5: AttentionTrace(**{**vars(trace), "attention": trace.attention[::-1]})}
    first, last = (panel.images[0].get_array() for panel in film_strip(AttentionTrace.over_training(steps), 1).axes[2:4])
    swapped = film_strip(AttentionTrace.over_training(dict(zip((0, 5), (steps[5], steps[0])))), 1).axes
    assert (swapped[2].images[0].get_array() == last).all() and (swapped[3].images[0].get_array() == first).all()
    with pytest.raises(ValueError, match="the maps of several training steps"):
        film_strip(trace)


def test_map_rows(trace):
    rows = [trace.attention[0, 0], trace.attention[-1, 0][: N - 1]]  # the second with a slot less
    figure = map_rows(rows, ["first", "last"], trace.images[0], trace.keep[0].tolist())
    panels = np.array(figure.axes[:-1]).reshape(2, 1 + N)
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["first", "last"]
    assert [panel.get_title() for panel in panels[0]] == ["", *[f"slot {slot}" for slot in range(N)]]
    assert panels[0, 1 + 2].title.get_color() == palette.MERGED and panels[0, 1].title.get_color() == palette.ink(0)
    assert panels[0, 1].images[0].get_clim() == (0, 1) and not panels[1, N].images
    assert len(map_rows(rows).axes) == 2 * N + 1
    with pytest.raises(ValueError, match=r"maps \[N h w\] of one image"):
        map_rows([trace.attention[:, 0]])


def test_contact_sheets_take_pictures_of_any_size(trace):
    images, segments = [*trace.images, trace.images[0, :7]], [*trace.segments, trace.segments[0, :7]]
    assert [len(panel.images) for panel in contact_sheet(images, segments, columns=3).axes] == [1] * 6 + [1, 0, 0] * 2
