import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from dias_lab import runs
from dias_lab.analysis.discovery import Discovery
from dias_lab.config import Config
from dias_lab.methods import build, checkpoint
from dias_lab.training.loop import NonFiniteError, Training, fit, learning_rate


def weights(run_dir, step):
    return load_file(run_dir / "checkpoints" / str(step) / "weights.safetensors")


def same_weights(a, b, step=20):
    a, b = weights(a, step), weights(b, step)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(run_dir):
    return [(line["step"], line["loss"]) for line in runs.read_lines(run_dir / "metrics.jsonl") if "loss" in line]


@pytest.fixture(scope="module")
def whole(small_scenes, tmp_path_factory):
    """A run of 20 steps that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("whole")
    fit(small(small_scenes), run_dir, progress=False)
    return run_dir


def small(small_scenes, **fields):
    sizes = dict(
        backbone_size=128, fourier_dim=16, fourier_stride=16, slot_dim=12, slot_mlp_dim=16, num_slots=5, decoder_layers=2, decoder_heads=2,
        steps=20, batch_size=4, log_every=3, evaluate_every=5, evaluate_images=3, device="cpu", data=str(small_scenes),
    )  # fmt: skip
    return Config.preset("shapes", **{**sizes, **fields})


def test_a_run_leaves_what_the_design_promises(whole, small_scenes):
    result = json.loads((whole / "metrics.json").read_text())
    assert runs.state(whole) == "done" and result["steps"] == 20
    assert result["scores"]["store"] == "validation" and result["scores"]["protocol"] == "dias"
    assert set(checkpoint.steps(whole)) == {result["best_step"], 20}
    assert Config.load(whole) == small(small_scenes)
    steps = [line["step"] for line in runs.read_lines(whole / "metrics.jsonl") if "validation" in line]
    assert steps == [5, 10, 15, 20]
    assert losses(whole)[-1][1] < losses(whole)[0][1]
    assert {"commit", "versions", "device", "seed"} <= result["about"].keys()


class Elsewhere(Discovery):
    """A task of somebody else: it measures something of its own, and takes the first checkpoint for the best."""

    def measured(self, output):
        return {"width": output.slots.new_tensor(output.slots.shape[-1])}

    def selection(self, scores):
        return 1.0


def test_any_task_is_trained(small_scenes, tmp_path):
    result = fit(small(small_scenes, steps=10), tmp_path, progress=False, task=Elsewhere)
    lines = [line for line in runs.read_lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert {line["width"] for line in lines} == {12} and "kept" not in lines[0]
    assert result["best_step"] == 5 and result["steps"] == 10


def test_what_comes_before_the_decoder_learns_at_its_own_rate(small_scenes, tmp_path):
    config = small(small_scenes, aggregator_rate=0.0, steps=5)
    fit(config, tmp_path, progress=False)
    before, after = build(config).trained_state(), checkpoint.load_model(tmp_path, "last").trained_state()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}


def test_a_finished_run_is_not_repeated(whole, small_scenes):
    before = (whole / "metrics.json").stat().st_mtime_ns
    fit(small(small_scenes), whole, progress=False)
    assert (whole / "metrics.json").stat().st_mtime_ns == before


def test_twenty_steps_equal_ten_and_ten(whole, small_scenes, tmp_path, monkeypatch):
    update = Training.update

    def stop(self, batch):
        if self.step == 13:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(Training, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(small(small_scenes), tmp_path, progress=False)
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path)[-1] == 10 and runs.state(tmp_path) == "todo"
    torch.randn(3)
    fit(small(small_scenes, workers=1), tmp_path, progress=False)
    assert same_weights(whole, tmp_path) and losses(whole) == losses(tmp_path)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
def test_a_killed_run_resumes_bit_for_bit(whole, small_scenes, tmp_path, delay):
    (tmp_path / "config.json").write_text(json.dumps(small(small_scenes).to_dict()))
    script = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[2])); from dias_lab.config import Config; "
        "from dias_lab.training.loop import fit; fit(Config.load(sys.argv[1]), sys.argv[1], progress=False)"
    )
    threads = str(torch.get_num_threads())
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), threads], cwd=os.getcwd())
    while not (tmp_path / "checkpoints" / "5").exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert runs.state(tmp_path) in ("todo", "done")
    fit(small(small_scenes), tmp_path, progress=False)
    assert same_weights(whole, tmp_path) and losses(whole) == losses(tmp_path)
    assert runs.read_json(tmp_path / "metrics.json")["scores"] == runs.read_json(whole / "metrics.json")["scores"]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is tidied up."""


@pytest.mark.parametrize("moment", [pytest.param(n, marks=[pytest.mark.slow] * (n % 2 == 0)) for n in range(1, 60, 3)])
def test_killed_at_any_write_the_run_ends_the_same(whole, small_scenes, tmp_path, monkeypatch, moment):
    calls = 0

    def deadly(function):
        def wrapped(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return function(*arguments, **options)

        return wrapped

    for module, name in (
        (os, "replace"), (os, "fsync"), (shutil, "rmtree"), (runs, "append_line"), (runs, "write_json"), (runs, "write_lines"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, deadly(getattr(module, name)))
    for _ in range(2):  # and once more, on the way back
        with contextlib.suppress(Killed):
            fit(small(small_scenes), tmp_path, progress=False)
        calls = 0
    monkeypatch.undo()
    fit(small(small_scenes), tmp_path, progress=False)
    assert same_weights(whole, tmp_path) and losses(whole) == losses(tmp_path)
    assert checkpoint.steps(tmp_path) == checkpoint.steps(whole)
    for name in ("metrics.json", "checkpoints/best.json"):
        ours, theirs = runs.read_json(tmp_path / name), runs.read_json(whole / name)
        assert ours["scores"] == theirs["scores"] and ours.get("best_step") == theirs.get("best_step")
        assert 0 < ours.get("seconds", 1) < 1000
    validation = [[line for line in runs.read_lines(run / "metrics.jsonl") if "validation" in line] for run in (whole, tmp_path)]
    assert validation[0] == validation[1]


def test_another_store_under_the_same_name_is_refused(whole, small_scenes, tmp_path):
    from dias_lab.data.convert import scenes

    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    scenes.convert(tmp_path / "data", train=11, validation=2, test=1)
    with pytest.raises(ValueError, match="'count': 10.*'count': 11"):
        fit(small(small_scenes, data=str(tmp_path / "data")), tmp_path / "run", progress=False)


def test_fp16_needs_a_gpu(small_scenes, tmp_path):
    with pytest.raises(ValueError, match="16-mixed"):
        fit(small(small_scenes, precision="16-mixed"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_belongs_to_one_config(whole, small_scenes):
    with pytest.raises(ValueError, match="num_slots was 5, is 6"):
        fit(small(small_scenes, num_slots=6), whole, progress=False)


def test_a_batch_of_one_trains(small_scenes, tmp_path):
    result = fit(small(small_scenes, batch_size=1, steps=3), tmp_path, progress=False)
    assert math.isfinite(result["loss"]["loss"])


def test_reduced_precision_trains(small_scenes, tmp_path):
    result = fit(small(small_scenes, precision="bf16-mixed", steps=3), tmp_path, progress=False)
    assert math.isfinite(result["loss"]["loss"])


def test_missing_store_is_named(small_scenes, tmp_path):
    with pytest.raises((ValueError, OSError), match="train.lmdb"):
        fit(small(small_scenes, data=str(tmp_path / "nothing")), tmp_path / "run", progress=False)


def test_corrupt_checkpoint_is_named_with_the_way_out(whole, small_scenes, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    path = tmp_path / "run" / "checkpoints" / "20" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="Delete that folder"):
        fit(small(small_scenes), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    "spoil, culprit",
    [
        (lambda model: model.aggregator.to_key.weight.data.fill_(float("nan")), "the parameter aggregator.to_key.weight"),
        (lambda model: model.project[1].weight.data.fill_(1e38), "the output of project"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_evidence(small_scenes, tmp_path, monkeypatch, spoil, culprit):
    update = Training.update

    def poison(self, batch):
        if self.step == 7:
            spoil(self.model)
        return update(self, batch)

    monkeypatch.setattr(Training, "update", poison)
    with pytest.raises(NonFiniteError, match=f"step 7.*{culprit}"):
        fit(small(small_scenes), tmp_path, progress=False)
    assert runs.state(tmp_path) == "failed" and "NonFinite" in (tmp_path / "error.json").read_text()
    evidence = load_file(tmp_path / "nonfinite" / "7" / "batch.safetensors")
    assert evidence["image"].shape == (4, 3, 128, 128)
    assert checkpoint.steps(tmp_path) == [5]
    monkeypatch.undo()
    fit(small(small_scenes), tmp_path, progress=False)  # goes on from step 5
    assert runs.state(tmp_path) == "done" and not (tmp_path / "error.json").exists()


def test_learning_rate_is_that_of_the_reference():
    config = Config.preset("coco")
    rates = [learning_rate(step, config) for step in (0, 1, 5000, 100_000)]
    assert rates == pytest.approx([0, 4e-8, 2e-4, 2e-7])


def test_models_load_by_name_and_missing_ones_are_refused(whole, tmp_path):
    model = checkpoint.load_model(whole, "last")
    state = weights(whole, 20)
    assert all(torch.equal(model.trained_state()[name], state[name]) for name in state)
    with pytest.raises(ValueError, match="it has .*20, best and last"):
        checkpoint.load_model(whole, 7)
    with pytest.raises(ValueError, match="is it a run directory"):
        checkpoint.load_model(tmp_path)
