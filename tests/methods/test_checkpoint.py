"""Checkpoints: whole or not there at all, read without running anything, and found by name."""

import builtins
import errno
import io
import os
import shutil

import numpy as np
import pytest
import torch

from dias_lab import runs
from dias_lab.methods import build, checkpoint


@pytest.fixture
def saved(small_config, tmp_path):
    """A run directory with checkpoints of two steps, whose weights are those of seeds 3 and 7."""
    runs.write_json(tmp_path / "config.json", small_config.to_dict())
    for step in (3, 7):
        checkpoint.save(tmp_path, step, build(small_config.replace(seed=step)), {"random": torch.arange(step)}, {"seconds": step})
    return tmp_path


def same(model, other):
    ours, theirs = model.trained_state(), other.trained_state()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_saved_comes_back(saved, small_config):
    model = build(small_config)
    state, progress = checkpoint.load(saved, 3, model)
    assert torch.equal(state["random"], torch.arange(3)) and progress == {"step": 3, "seconds": 3}
    assert same(model, build(small_config.replace(seed=3)))
    assert {path.name for path in (saved / "checkpoints" / "3").iterdir()} == {"weights.safetensors", "state.pt", "progress.json"}
    assert {path.name for path in (saved / "checkpoints").iterdir()} == {"3", "7"}


def test_only_whole_checkpoints_count(saved, tmp_path):
    for name in (".partial-9", ".old-1", "best.json"):
        (saved / "checkpoints" / name).mkdir()
    assert checkpoint.steps(saved) == [3, 7] and checkpoint.steps(tmp_path / "nothing") == []


def test_a_save_that_is_cut_off_leaves_those_before_and_may_be_done_again(saved, small_config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            checkpoint.save(saved, 9, build(small_config), {}, {})
    assert checkpoint.steps(saved) == [3, 7]
    checkpoint.save(saved, 9, build(small_config), {}, {})
    assert checkpoint.steps(saved) == [3, 7, 9] and not list((saved / "checkpoints").glob(".*"))


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "progress.json"])
@pytest.mark.parametrize("bytes_left", [None, 0, 20])
def test_a_damaged_checkpoint_is_named_with_the_way_out(name, bytes_left, saved, small_config):
    path = saved / "checkpoints" / "7" / name
    content = path.read_bytes()
    path.unlink()
    if bytes_left is not None:
        path.write_bytes(content[:bytes_left])
    with pytest.raises(ValueError, match="checkpoints/7 cannot be read .*Delete that folder"):
        checkpoint.load(saved, 7, build(small_config))


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "progress.json"])
def test_any_bit_that_changed_is_noticed(name, saved, small_config):
    path, random, model = saved / "checkpoints" / "7" / name, np.random.default_rng(7), build(small_config)
    content = path.read_bytes()
    places = random.integers(len(content), size=20)
    for place in places[(places < content.rfind(b'"checksum"')) | (places > content.rfind(b'"checksum"') + 9)]:  # that name is no content
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << random.integers(7)  # not the highest, by which a letter would be no text
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match="checkpoints/7.*(cannot be read|says that it is of step)"):
            checkpoint.load(saved, 7, model)
    if name == "weights.safetensors":
        with pytest.raises(ValueError, match="weights.safetensors is not as it was written"):
            checkpoint.load_model(saved)
    path.write_bytes(content)
    checkpoint.load(saved, 7, model)


def test_a_checkpoint_of_an_older_version_has_no_checksums_and_loads(saved, small_config):
    folder, model = saved / "checkpoints" / "7", build(small_config)
    torch.save({"random": torch.arange(7)}, folder / "state.pt")
    runs.write_json(folder / "progress.json", {"step": 7, "seconds": 7})
    assert checkpoint.load(saved, 7, model)[1] == {"step": 7, "seconds": 7} and same(model, build(small_config.replace(seed=7)))
    (folder / "progress.json").unlink()  # only weights, as in the shipped model
    assert same(checkpoint.load_model(saved), model)


def copied(folder):
    shutil.copytree(folder / "3", folder / "9")


def renamed(folder):
    (folder / "3").rename(folder / "9")


def state_of_another(folder):
    """Of a version without checksums."""
    shutil.copytree(folder / "7", folder / "9")
    runs.write_json(folder / "9" / "progress.json", {"step": 9})


@pytest.mark.parametrize("spoil, said", [(copied, 3), (renamed, 3), (state_of_another, 7)])
def test_a_checkpoint_under_another_name_is_refused_and_nothing_is_deleted(spoil, said, saved, small_config):
    spoil(saved / "checkpoints")
    before = sorted(saved.rglob("*"))
    with pytest.raises(ValueError, match=f"checkpoints/9 says that it is of step {said}.*Nothing was deleted; rename the folder to {said}"):
        checkpoint.load(saved, 9, build(small_config))
    assert sorted(saved.rglob("*")) == before


@pytest.mark.parametrize("content", ["[]", "7", "null", "{}", '{"step": "3"}', '{"step": 4}', "{", "[" * 100_000])
def test_a_best_json_that_names_no_checkpoint_is_named(content, saved):
    (saved / "checkpoints" / "best.json").write_text(content)
    with pytest.raises(ValueError, match="best.json"):
        checkpoint.load_model(saved)
    assert checkpoint.load_model(saved, "last").trained_steps == 7


@pytest.mark.parametrize("full", ["weights.safetensors", "state.pt", "progress.json"])
def test_a_full_disk_is_told_and_leaves_the_checkpoints_before(full, saved, small_config, monkeypatch):
    real = open

    class Full(io.FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path, mode="r", *arguments, **options):
        return Full(path, "w") if full in str(path) and "w" in mode else real(path, mode, *arguments, **options)

    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(OSError, match="no space is left on the disk.*MB free.*checkpoints/9") as caught:
        checkpoint.save(saved, 9, build(small_config), {"random": torch.zeros(1000)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in (saved / "checkpoints").iterdir()} == {"3", "7"}


def test_a_state_that_would_run_code_is_refused(saved, small_config):
    class Dangerous:
        def __reduce__(self):
            return os.mkdir, (str(saved / "made"),)

    torch.save({"random": Dangerous()}, saved / "checkpoints" / "7" / "state.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(saved, 7, build(small_config))
    assert not (saved / "made").exists()


def test_pruning_keeps_what_it_is_told_and_tidies_up(saved):
    (saved / "checkpoints" / ".old-1").mkdir()
    checkpoint.prune(saved, keep={7, 8})
    assert [path.name for path in (saved / "checkpoints").iterdir()] == ["7"]


def test_a_model_is_the_best_the_last_or_that_of_a_step(saved, small_config):
    first, second = (build(small_config.replace(seed=step)) for step in (3, 7))
    assert same(checkpoint.load_model(saved), second)  # nothing is known to be best
    runs.write_json(saved / "checkpoints" / "best.json", {"step": 3})
    for which, step, expected in (("best", 3, first), ("last", 7, second), (3, 3, first), (7, 7, second)):
        model = checkpoint.load_model(saved, which)
        assert same(model, expected) and model.trained_steps == step and not model.training
    for which in (4, "first"):
        with pytest.raises(ValueError, match=f"no checkpoint {which!r}; it has 3, 7, best and last"):
            checkpoint.load_model(saved, which)


def test_a_run_without_a_checkpoint_says_what_to_do(small_config, tmp_path):
    runs.write_json(tmp_path / "config.json", small_config.to_dict())
    with pytest.raises(ValueError, match=f"no checkpoint yet: train it with --run-dir {tmp_path}"):
        checkpoint.load_model(tmp_path)


def test_the_shipped_model_is_ready_for_pictures():
    model = checkpoint.shipped()
    assert not model.training and model.config.method == "dias" and same(model, checkpoint.shipped())
    trace = model.trace(torch.randint(0, 255, (1, 3, 150, 140), dtype=torch.uint8))
    assert trace.attention.shape[:3] == (model.config.evaluation_iterations, 1, model.config.num_slots)
