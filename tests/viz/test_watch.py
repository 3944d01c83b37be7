import numpy as np
from traces import some_trace, some_training

from dias_lab.files import append_line
from dias_lab.viz import Watch

SCORES = {"first": {"fg_ari": 0.1, "mbo": 0.2}, "last": {"fg_ari": 0.3, "mbo": None}, "decoder": {"fg_ari": 0.5, "mbo": 0.6}}
LINES = [{"step": 10, "reconstruction": 0.5}, {"step": 20, "reconstruction": 0.4}, {"step": 20, "validation": SCORES}]


def test_a_watch_follows_the_files(tmp_path):
    watch = Watch(images=2)
    watch(tmp_path)  # nothing is there yet
    assert watch.text.value == "step 0" and len(watch.children) == 1
    some_training((0,)).save(tmp_path / "training.npz")
    watch(tmp_path)
    assert watch.maps.step == 0 and len(watch.maps.data["images"]) == 2 and watch.curves is None
    for line in LINES:
        append_line(tmp_path / "metrics.jsonl", line)
    some_training((0, 20)).save(tmp_path / "training.npz")
    explorer = watch.maps
    watch(tmp_path)
    assert watch.maps is explorer is watch.children[-1] and explorer.data["runs"][0]["training"]["steps"] == [0, 20]
    assert watch.text.value == "step 20" and watch.children == (watch.text, watch.curves, watch.maps)
    curves = watch.curves
    assert list(curves.data[0].x) == [10, 20] and list(curves.data[3].x) == [20]
    append_line(tmp_path / "metrics.jsonl", {"step": 30, "reconstruction": 0.25})
    append_line(tmp_path / "metrics.jsonl", {"step": 30, "validation": SCORES})
    watch(tmp_path)
    assert watch.curves is curves and list(curves.data[0].y) == [0.5, np.float32(0.4), 0.25]  # in place: its zoom stays
    assert list(curves.data[3].x) == [20, 30] and watch.text.value == "step 30"


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
