"""python -m dias_lab: exit status 0 done, 1 failed, 2 refused before anything started."""

import json

import numpy as np
import pytest
from PIL import Image

from dias_lab.__main__ import main, one_word
from dias_lab.trace import AttentionTrace

SMALL = (
    "--preset scenes --fourier-dim 16 --fourier-stride 16 --slot-dim 12 --slot-mlp-dim 16 --decoder-layers 1 --decoder-heads 2 "
    "--steps 4 --batch-size 2 --evaluate-every 4 --evaluate-images 2 --device cpu"
).split()


def run(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:  # tyro's own refusals
        return stop.code


def test_convert_verify_train_evaluate_trace(tmp_path, capsys):
    data, run_dir, out = tmp_path / "scenes", tmp_path / "run", tmp_path / "maps.npz"
    assert run("convert", "scenes", "--out", data, "--train", 4, "--validation", 2, "--test", 2) == 0
    assert run("verify", data) == 0 and "every record is sound" in capsys.readouterr().out
    assert run("train", *SMALL, "--data", data, "--run-dir", run_dir) == 0
    assert json.loads((run_dir / "config.json").read_text())["slot_dim"] == 12
    assert run("evaluate", "--run-dir", run_dir, "--data", data) == 0
    assert (run_dir / "scores" / "test-dias.json").exists()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "photo.jpg")
    assert run("trace", "--run-dir", run_dir, "--images", tmp_path / "photo.jpg", "--out", out) == 0
    assert AttentionTrace.load(out).names == ["photo.jpg"]
    printed = capsys.readouterr().out
    assert f"wrote {out}" in printed and "protocol dias" in printed and "FG-ARI" in printed


@pytest.mark.parametrize(
    "words, status, message",
    [
        ([], 2, ""),
        (["--help"], 0, ""),
        (["trian"], 2, "did you mean 'train'"),
        (["train", "--preset", "scnes", "--run-dir", "x"], 2, "did you mean 'scenes'"),
        (["train", "--num-slotz", "4", "--run-dir", "x"], 2, "--num-slots"),
        (["train", "--num-slots", "0", "--run-dir", "x"], 2, "num_slots must be above 0"),
        (["train", "--data", "nowhere", "--run-dir", "x"], 2, "nowhere"),
        (["verify", "nowhere"], 2, "nowhere"),
        (["convert", "coco", "--root", "nowhere", "--out", "x"], 2, "nowhere"),
        (["convert", "voc", "--root", ".", "--out", "x", "--year", "2011"], 2, "2007"),
        (["convert", "voc", "--root", ".", "--out", "x"], 1, "holds no VOC masks"),
        (["convert", "folder", "--root", ".", "--masks", "nowhere", "--out", "x"], 2, "nowhere"),
        (["convert", "folder", "--root", ".", "--out", "x"], 1, "holds no images"),
        (["evaluate", "--run-dir", "x", "--data", "nowhere"], 2, "nowhere"),
        (["trace", "--images", "a.jpg", "--out", "x.npz"], 2, "--shipped"),
        (["trace", "--shipped", "--images", "a.jpg", "--out", "x.npz"], 1, "a.jpg"),
    ],
)
def test_what_cannot_work_says_why(words, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    assert run(*words) == status
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert list(tmp_path.iterdir()) == []


def test_paths_are_those_of_the_working_directory(small_scenes, tmp_path, monkeypatch):
    (tmp_path / "mine").symlink_to(small_scenes)
    monkeypatch.chdir(tmp_path)
    assert run("train", *SMALL, "--data", "mine", "--run-dir", "run") == 0
    assert run("evaluate", "--run-dir", "run", "--data", "mine") == 0
    assert (tmp_path / "run" / "scores" / "test-dias.json").exists()


def test_statistics_may_be_several_words():
    assert one_word("--a 1 --image-mean 0.5 0.5 0.5 --b c d".split()) == ["--a", "1", "--image-mean", "0.5 0.5 0.5", "--b", "c", "d"]
