"""python -m dias_lab: exit status 0 done, 1 failed, 2 refused before anything started."""

import importlib
import json
import re
import subprocess
import sys
import typing

import numpy as np
import pytest
from PIL import Image

from dias_lab.__main__ import main
from dias_lab.config import Config
from dias_lab.shell import COMMANDS
from dias_lab.trace import AttentionTrace

SMALL = (
    "--preset shapes --fourier-dim 16 --fourier-stride 16 --slot-dim 12 --slot-mlp-dim 16 --decoder-layers 1 --decoder-heads 2 "
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
    Image.fromarray(np.zeros((340, 350, 3), np.uint8)).save(tmp_path / "photo.jpg")
    assert run("trace", "--run-dir", run_dir, "--images", tmp_path / "photo.jpg", "--out", out) == 0
    trace = AttentionTrace.load(out)
    assert trace.names == ["photo.jpg"] and trace.images.shape == (1, 340, 340, 3)  # larger than the model sees
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
        (["trace", "--shipped", "--images", "a.jpg", "--out", "x.npz"], 2, "a.jpg"),
    ],
)
def test_what_cannot_work_says_why(words, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    assert run(*words) == status
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert list(tmp_path.iterdir()) == []


def test_train_starts_from_a_run_with_its_fields(small_scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", *SMALL, "--data", small_scenes, "--run-dir", "base") == 0
    assert run("train", "--from", "base", "--run-dir", "child", "--merging", "none", "--steps", 2) == 0
    base, child = Config.load("base"), Config.load("child")
    assert child == base.replace(parent=str(tmp_path / "base"), merging="none", steps=2)
    assert run("train", "--from", "child", "--run-dir", "grandchild") == 0
    assert Config.load("grandchild") == child.replace(parent=str(tmp_path / "child"))
    assert run("train", *SMALL, "--data", small_scenes, "--from", "base", "--run-dir", "preset", "--steps", 1) == 0
    assert Config.load("preset") == base.replace(parent=str(tmp_path / "base"), steps=1)
    capsys.readouterr()
    for words, message in (
        (["--from", "nothing"], "no config.json at"), (["--from", "base", "--slot-dim", 16], "What differs: slot_dim is 12 there, 16 here"),
        (["--from", "base", "--method", "spot"], "its method is 'dias'"), (["--from", "base", "--num-slotz", 3], "--num-slots"),
    ):  # fmt: skip
        assert run("train", *words, "--run-dir", "new") == 2 and message in capsys.readouterr().err
    assert run("train", "--from", "base", "--run-dir", "base") == 2 and "its own parent" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert run("train", "--from", "--run-dir", "new") == 2 and "--from" in capsys.readouterr().err
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    (tmp_path / "child" / "metrics.json").unlink()
    (tmp_path / "base").rename(tmp_path / "away")
    assert run("train", "--from", "base", "--run-dir", "child", "--merging", "none", "--steps", 2) == 0


def test_paths_are_those_of_the_working_directory(small_scenes, tmp_path, monkeypatch):
    (tmp_path / "mine").symlink_to(small_scenes)
    monkeypatch.chdir(tmp_path)
    assert run("train", *SMALL, "--data", "mine", "--run-dir", "run") == 0
    assert run("evaluate", "--run-dir", "run", "--data", "mine") == 0
    assert (tmp_path / "run" / "scores" / "test-dias.json").exists()


@pytest.mark.parametrize("words", [["0.5", "0.4", "0.3"], ["0.5 0.4 0.3"], ["0.5,0.4,0.3"]])
def test_statistics_may_be_several_words(words, small_scenes, tmp_path):
    place = ["--data", small_scenes, "--run-dir", tmp_path / "run"]
    assert run("train", *SMALL, "--steps", 1, "--evaluate-every", 1, "--image-mean", *words, *place) == 0
    config = Config.load(tmp_path / "run")
    assert config.image_mean == "0.5 0.4 0.3" and config.image_std == "" and config.steps == 1


def subcommands(name):
    file, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(importlib.import_module(f"dias_lab.shell.{file}"), attribute)
    return {f"{name} {word}": command for word, command in found.items()} if isinstance(found, dict) else {name: found}


ALL = {words: command for name in COMMANDS for words, command in subcommands(name).items()}


@pytest.mark.parametrize("words", ALL)
def test_every_command_describes_itself_and_its_options(words, capsys):
    command, name = ALL[words], words.split()[0]
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), "--help"])
    assert stop.value.code == 0 and f"usage: python -m dias_lab {words} " in capsys.readouterr().out
    for option, kind in typing.get_type_hints(command, include_extras=True).items():
        marked = any(getattr(mark, "help", None) for mark in getattr(kind, "__metadata__", ()))
        described = marked or re.search(rf"^ +{option}: \w", command.__doc__, re.MULTILINE)
        assert described or option in ("fields", "return"), option  # fields: a dataclass, whose fields describe themselves
    if words == name:
        assert COMMANDS[name][1].removesuffix(".") in command.__doc__  # the line of `python -m dias_lab --help`


WITHOUT_TORCH = """import sys
from dias_lab.__main__ import main
for words in sys.argv[1:]:
    try:
        print(words, main(words.split()))
    except SystemExit as stop:
        print(words, stop.code)
    assert "torch" not in sys.modules, words
"""


def test_help_and_refusals_need_no_torch(tmp_path):
    helped = ["--help", *(f"{words} --help" for words in ALL), "convert --help", "grid --help"]
    refused = ["verify x", "train --preset x --run-dir y", "train --num-slots 0 --run-dir y", "train --num-slotz 1 --run-dir y"]
    refused += ["evaluate --data x", "trace --images x --out y", "explore x --out y", "grid status x", "grid table x"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *helped, *refused]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words, status in [(words, 0) for words in helped] + [(words, 2) for words in refused]:
        assert f"{words} {status}\n" in done.stdout
