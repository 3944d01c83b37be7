import numpy as np
import pytest
from traces import some_trace, some_training

from dias_lab.files import append_line
from dias_lab.viz import Watch, progress_figure

SCORES = {"first": {"fg_ari": 0.1, "mbo": 0.2}, "last": {"fg_ari": 0.3, "mbo": None}, "decoder": {"fg_ari": 0.5, "mbo": 0.6}}
LINES = [{"step": 10, "reconstruction": 0.5}, {"step": 20, "reconstruction": 0.4}, {"step": 20, "validation": SCORES}]


def test_losses_and_scores_stand_against_steps():
    figure = progress_figure([{"step": 0, "validation": SCORES}, *LINES], metrics=["fg_ari", "mbo"], title="seed 42")
    loss, first, second = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[10, 0.5], [20, 0.4]]
    assert first.lines[2].get_xydata().tolist() == [[0, 50], [20, 50]] and np.isnan(second.lines[1].get_ydata()).all()
    assert [axis.get_title() for axis in figure.axes] == ["reconstruction loss", "FG-ARI x100", "mBO x100"]
    assert not progress_figure(LINES, loss="none of these").axes[0].lines
    with pytest.raises(ValueError, match="none of 2 lines has scores"):
        progress_figure(LINES[:2])


def test_a_watch_follows_the_files(tmp_path):
    watch = Watch(images=2)
    watch(tmp_path)  # nothing is there yet
    assert watch.text.value == "step 0" and len(watch.children) == 2
    some_training((0,)).save(tmp_path / "training.npz")
    watch(tmp_path)
    assert watch.maps.step == 0 and len(watch.maps.data["images"]) == 2 and not watch.curves.value
    for line in LINES:
        append_line(tmp_path / "metrics.jsonl", line)
    some_training((0, 20)).save(tmp_path / "training.npz")
    explorer = watch.maps
    watch(tmp_path)
    assert watch.maps is explorer is watch.children[-1] and explorer.data["runs"][0]["training"]["steps"] == [0, 20]
    assert watch.text.value == "step 20" and bytes(watch.curves.value).startswith(b"\x89PNG")


def test_a_watch_takes_whole_clips(tmp_path):
    some_training((0,), images=6, about={"frames": 2}).save(tmp_path / "training.npz")
    for images, shown in ((5, 4), (1, 2), (8, 6)):
        watch = Watch(images)
        watch(tmp_path)
        assert len(watch.maps.data["images"]) == shown and watch.maps.data["clips"]["frames"] == 2


def test_what_cannot_be_drawn_stops_no_training(tmp_path):
    watch = Watch()
    (tmp_path / "training.npz").write_bytes(b"<no trace>")
    watch(tmp_path)
    assert "training.npz is not a trace" in watch.text.value and "<no" not in watch.text.value
    some_trace().save(tmp_path / "training.npz")
    watch(tmp_path)
    assert watch.text.value == "step 0" and watch.maps.step is None
