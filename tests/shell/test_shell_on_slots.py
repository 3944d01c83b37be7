"""The command `slots`: every split's slots in files, found again by the same command."""

import subprocess
import sys

import numpy as np
import pytest

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.analysis import slots
from dias_lab.data import store


def run(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def test_the_slots_of_all_splits_are_written_once(small_scenes, tmp_path, capsys):
    words = "slots", "--shipped", "--data", small_scenes, "--out", tmp_path
    assert run(*words) == 0
    printed = capsys.readouterr().out
    for split, count in (("train", 10), ("validation", 4), ("test", 3)):
        assert f"wrote {tmp_path / split}: {count} items, slots float16 [{count}, 7, 64], " in printed
        found = slots.open_slots(tmp_path / split, store=store.open(small_scenes / f"{split}.lmdb"), source="model")
        alone = np.load(tmp_path / split / "slots.npy", mmap_mode="r")  # as the page says
        assert np.array_equal(alone, found.slots) and alone.shape == (count, 7, 64)
    assert "items/s" in printed
    before = (tmp_path / "test/slots.npy").stat().st_mtime_ns
    assert run(*words) == 0 and f"was there already: {tmp_path / 'test'}: 3 items" in capsys.readouterr().out
    assert (tmp_path / "test/slots.npy").stat().st_mtime_ns == before


def test_one_split_one_store_and_other_sources(small_scenes, few_clips, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = "--out", "x", "--split", "test", "--source", "true", "--dtype", "float32"
    assert run("slots", "--run-dir", runs.PACKAGE / "shipped/clips", "--data", few_clips, *more) == 0
    assert "wrote x/test: 8 items, slots float32 [8, " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["test"]
    assert run("slots", "--shipped", "--data", small_scenes / "validation.lmdb", "--out", "y", "--source", "tiles") == 0
    assert [path.name for path in (tmp_path / "y").iterdir()] == ["validation"]


@pytest.mark.parametrize(
    "words, message",
    [
        ("--data DATA --out x", "say which model, and only one: --run-dir RUN, or --shipped"),
        ("--data DATA --out x --shipped --run-dir y", "say which model, and only one"),
        ("--data nowhere --out x --shipped", "there is no store nowhere"),
        ("--data nowhere.lmdb --out x --shipped", "there is no store nowhere.lmdb"),
        ("--data nowhere --split train --out x --shipped", "there is no store nowhere/train.lmdb; make it with"),
        ("--data DATA --out x --run-dir nowhere", "no config.json at"),
        ("--data DATA --out x --shipped --source truth", "truth"),
    ],
)
def test_what_cannot_begin_is_refused(words, message, small_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("slots", *words.replace("DATA", str(small_scenes)).split()) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err and list(tmp_path.iterdir()) == []


def test_slots_of_another_model_are_refused_before_any_split_begins(small_scenes, tmp_path, capsys):
    words = "slots", "--data", small_scenes, "--out", tmp_path
    assert run(*words, "--shipped", "--split", "test") == 0
    assert run(*words, "--shipped", "--source", "untrained") == 2
    assert "refused: the slots in" in capsys.readouterr().err and not (tmp_path / "train").exists()
    assert run(*words, "--run-dir", runs.PACKAGE / "shipped/clips", "--split", "train") == 2
    assert "holds images, not the frames of clips" in capsys.readouterr().err


def test_a_refusal_needs_no_torch(tmp_path):
    code = "import sys; from dias_lab.__main__ import main; print(main('slots --shipped --data x --out y'.split()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"
