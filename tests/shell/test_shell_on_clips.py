"""The commands on clips, one after the other: what each writes, the next one takes."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dias_lab import fit, runs
from dias_lab.__main__ import main
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.methods import build
from dias_lab.trace import CLIP_AXES, AttentionTrace

SHORT = "--preset clips --steps 3 --batch-size 2 --clip-frames 3 --evaluate-every 3 --evaluate-images 1 --log-every 1 --device cpu".split()


def run(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def folder_of_frames(place, folder, clip=0):
    """A clip of the test split as a folder of pictures."""
    place.mkdir()
    test = store.open(folder / "test.lmdb")
    first, frames = test.meta["clips"][clip]
    for item in range(first, first + frames):
        Image.open(io.BytesIO(test[item].image)).save(place / f"{item - first}.png")
    return place


def test_convert_train_evaluate_trace_explore_segments(tmp_path, capsys):
    data, run_dir, films = tmp_path / "clips", tmp_path / "run", tmp_path / "films"
    assert run("convert", "clips", "--out", data, "--train", 3, "--validation", 1, "--test", 2, "--frames", 4) == 0
    assert (data / "contact_sheet.png").exists() and run("verify", data) == 0
    assert run("train", *SHORT, "--from", runs.PACKAGE / "shipped", "--data", data, "--run-dir", run_dir) == 0
    printed = capsys.readouterr()
    assert "video FG-ARI" in printed.out and "frames/s" in printed.err and "images/s" not in printed.err
    fields = json.loads((run_dir / "config.json").read_text())
    assert fields["clip_frames"] == 3 and fields["parent"]
    assert run("evaluate", "--run-dir", run_dir, "--data", data) == 0
    assert "2 clips (8 frames) of test, protocol dias" in capsys.readouterr().out
    scores = runs.read_json(run_dir / "scores/test-dias.json")
    assert {"video_fg_ari", "image_fg_ari", "switches"} <= scores["decoder"].keys()

    films.mkdir()
    images = [folder_of_frames(films / name, data, clip) for clip, name in enumerate(("a", "b"))]
    for out, model in (("clip.npz", ["--run-dir", run_dir]), ("image.npz", ["--shipped", "--clips"])):
        assert run("trace", *model, "--images", *images, "--out", tmp_path / out) == 0
        assert f"wrote {tmp_path / out}: 8 images, 2 clips" in capsys.readouterr().out
        trace = AttentionTrace.load(tmp_path / out)
        assert len(trace) == 8 and trace.frames == 4 and trace.about["axes"] == CLIP_AXES
        assert trace.names == [f"{clip} {frame}" for clip in "ab" for frame in range(4)]
    assert run("explore", tmp_path / "image.npz", tmp_path / "clip.npz", "--out", tmp_path / "page.html") == 0
    assert "<html" in (tmp_path / "page.html").read_text()[:500].lower()
    assert run("segments", tmp_path / "clip.npz", "--out", tmp_path / "segments") == 0
    labels = sorted((tmp_path / "segments").glob("*.png"))
    assert len(labels) == 8 and np.asarray(Image.open(labels[0])).max() >= 1


@pytest.fixture
def with_boxes(few_clips, small_config, tmp_path):
    """A run of a model that starts from boxes."""
    short = dict(clip_frames=2, batch_size=2, steps=1, evaluate_images=1, num_slots=12)
    fit(small_config.replace(data=str(few_clips), condition="boxes", **short), tmp_path / "boxes", progress=False)
    return tmp_path / "boxes"


def test_a_model_that_starts_from_boxes(with_boxes, few_clips, tmp_path, capsys):
    """A store has boxes, pictures have none."""
    assert run("evaluate", "--run-dir", with_boxes, "--data", few_clips) == 0
    assert "2 clips (8 frames)" in capsys.readouterr().out
    film = folder_of_frames(tmp_path / "film", few_clips)
    for more in ([], ["--clips"]):
        assert run("trace", "--run-dir", with_boxes, "--images", film, "--out", tmp_path / "x.npz", *more) == 2
    told = capsys.readouterr().err
    assert "refused: this model starts from the boxes of a clip's first frame" in told and "model.trace(images, boxes=...)" in told
    assert not (tmp_path / "x.npz").exists()
    few = shutil.copytree(with_boxes, tmp_path / "few")  # the objects do not fit
    config = Config.load(few).replace(num_slots=2, min_kept=1)
    runs.write_json(few / "config.json", config.to_dict())
    assert run("evaluate", "--run-dir", few, "--data", few_clips) == 1
    assert "num_slots=2 has room for 1" in capsys.readouterr().err


def test_a_model_of_clips_takes_no_store_of_images(small_scenes, small_config, few_clips, tmp_path, capsys):
    assert run("train", *SHORT, "--data", small_scenes, "--run-dir", tmp_path / "run") == 2
    assert "holds images, not the frames of clips" in capsys.readouterr().err and not (tmp_path / "run").exists()
    model = build(small_config.replace(data=str(few_clips), clip_frames=2))
    with pytest.raises(ValueError, match=r"pictures: images\[:, None\]"):
        model.trace(np.zeros((1, 3, 64, 64), np.uint8))


@pytest.mark.parametrize(
    "words, message",
    [
        ("trace --shipped --images nowhere --out x.npz", "there is no file or folder nowhere"),
        ("trace --shipped --clips --frames 0 --images . --out x.npz", "--frames 0: a clip has at least one"),
        ("trace --shipped --clips --frames -3 --images . --out x.npz", "--frames -3: a clip has at least one"),
        ("trace --shipped --frames 2 --images . --out x.npz", "--frames is for clips"),
        ("evaluate --run-dir x --data y --limit -1", "--limit -1: the number of first images"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words.split()) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x.npz").exists()
