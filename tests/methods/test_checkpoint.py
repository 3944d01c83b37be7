"""Checkpoints: whole or not there at all, read without running anything, and found by name."""

import os

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
        assert same(model, expected) and model.step == step and not model.training
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
