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
from interruptions import Killed, killed_twice, stopped
from safetensors.torch import load_file

from dias_lab import runs
from dias_lab.analysis.discovery import Discovery
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.methods import build, checkpoint
from dias_lab.trace import AttentionTrace
from dias_lab.training import devices, maps
from dias_lab.training.loop import NonFiniteError, Training, fit, learning_rate
from dias_lab.viz import Watch


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


@pytest.mark.parametrize("moment", [pytest.param(n, marks=[pytest.mark.slow] * (n % 2 == 0)) for n in range(1, 60, 3)])
def test_killed_at_any_write_the_run_ends_the_same(whole, small_scenes, tmp_path, monkeypatch, moment):
    places = [(os, "replace"), (os, "fsync"), (shutil, "rmtree")]
    places += [(runs, name) for name in ("append_line", "write_json", "write_lines")]
    killed_twice(lambda: fit(small(small_scenes), tmp_path, progress=False), moment, places, monkeypatch)
    fit(small(small_scenes), tmp_path, progress=False)
    assert same_weights(whole, tmp_path) and losses(whole) == losses(tmp_path)
    assert checkpoint.steps(tmp_path) == checkpoint.steps(whole)
    for name in ("metrics.json", "checkpoints/best.json"):
        ours, theirs = runs.read_json(tmp_path / name), runs.read_json(whole / name)
        assert ours["scores"] == theirs["scores"] and ours.get("best_step") == theirs.get("best_step")
        assert 0 < ours.get("seconds", 1) < 1000
    validation = [[line for line in runs.read_lines(run / "metrics.jsonl") if "validation" in line] for run in (whole, tmp_path)]
    assert validation[0] == validation[1]


@pytest.fixture(scope="module")
def traced(small_scenes, tmp_path_factory):
    """The same run, with maps, for which torch's random numbers are not asked."""

    class Watched(Discovery):
        def trace(self, images):
            before = torch.get_rng_state()
            trace = super().trace(images)
            assert torch.equal(torch.get_rng_state(), before) and self.model.training
            return trace

    run_dir = tmp_path_factory.mktemp("traced")
    fit(small(small_scenes, trace_images=3), run_dir, progress=False, task=Watched)
    return run_dir


def test_maps_are_kept_at_each_evaluation_and_change_nothing(whole, traced, small_scenes):
    trace = AttentionTrace.load(traced / "training.npz")
    assert trace.training_steps.tolist() == [0, 5, 10, 15, 20] and len(trace) == 3
    assert trace.names == ["scene 10000000", "scene 10000001", "scene 10000002"]
    assert same_weights(whole, traced) and losses(whole) == losses(traced)
    assert not (whole / "training.npz").exists()
    assert runs.read_json(whole / "metrics.json")["scores"] == runs.read_json(traced / "metrics.json")["scores"]
    for step, model in ((0, build(small(small_scenes))), (20, checkpoint.load_model(traced, "last"))):
        images = torch.from_numpy(trace.images).movedim(3, 1)
        again = model.trace(images, seed=model.config.seed)
        assert (again.attention == trace.at(step).attention).all() and (again.keep == trace.at(step).keep).all()


@pytest.mark.parametrize("moment", [pytest.param(n, marks=[pytest.mark.slow] * (n % 2 == 0)) for n in (1, 4, 8, 11, 14, 19, 24, 31)])
def test_killed_at_any_write_the_maps_end_the_same(traced, small_scenes, tmp_path, monkeypatch, moment):
    config, places = small(small_scenes, trace_images=3), [(os, "replace"), (os, "fsync")]
    killed_twice(lambda: fit(config, tmp_path, progress=False), moment, places, monkeypatch)
    fit(config, tmp_path, progress=False)
    assert (tmp_path / "training.npz").read_bytes() == (traced / "training.npz").read_bytes()
    assert not list(tmp_path.glob(".training*"))


def test_a_resumed_run_has_no_maps_of_what_it_forgot(traced, small_scenes, tmp_path, monkeypatch):
    """Killed between its maps and its checkpoint: the file holds a step that the run does not go back to."""
    save = Training.save

    def late(self):
        if self.step == 10:
            raise Killed
        save(self)

    monkeypatch.setattr(Training, "save", late)
    config = small(small_scenes, trace_images=3)
    with pytest.raises(Killed):
        fit(config, tmp_path, progress=False)
    monkeypatch.undo()
    assert AttentionTrace.load(tmp_path / "training.npz").training_steps.tolist() == [0, 5, 10]
    seen = []
    fit(config, tmp_path, progress=False, watch=lambda run: seen.append(maps.load(run).keys()))
    assert [list(steps) for steps in seen] == [[0, 5], [0, 5, 10], [0, 5, 10, 15], [0, 5, 10, 15, 20]]
    assert (tmp_path / "training.npz").read_bytes() == (traced / "training.npz").read_bytes()


@pytest.mark.parametrize("images, steps, names", [(2, [0, 5, 10], 2), (4, [10], 4), (0, [0, 5], 3), (9, [10], 4)])
def test_other_maps_may_be_asked_for_on_the_way(small_scenes, tmp_path, monkeypatch, images, steps, names):
    """Fewer pictures: the old maps are cut to them. More: those before are not known, and the file begins anew."""
    monkeypatch.setattr(Training, "finish", lambda self: {})
    config, update = small(small_scenes, trace_images=3, steps=10), Training.update

    def stop(self, batch):
        if self.step == 7:
            raise Killed
        return update(self, batch)

    monkeypatch.setattr(Training, "update", stop)
    with pytest.raises(Killed):
        fit(config, tmp_path, progress=False)
    monkeypatch.setattr(Training, "update", update)
    fit(config.replace(trace_images=images), tmp_path, progress=False)
    trace = AttentionTrace.load(tmp_path / "training.npz")
    assert trace.training_steps.tolist() == steps and len(trace) == names


def test_what_is_no_trace_of_a_training_is_named(traced, small_scenes, tmp_path):
    config = small(small_scenes, trace_images=3)
    for content in (b"no trace", None):
        if content is None:
            AttentionTrace.load(traced / "training.npz").at(5).save(tmp_path / "training.npz")
        else:
            (tmp_path / "training.npz").write_bytes(content)
        with pytest.raises(ValueError, match="training.npz holds no maps of a training.*Delete it"):
            fit(config, tmp_path, progress=False)


def test_another_store_under_the_same_name_is_refused(whole, small_scenes, tmp_path):
    from dias_lab.data.convert import scenes

    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    scenes.convert(tmp_path / "data", train=11, validation=2, test=1)
    with pytest.raises(ValueError, match="(records differ)"):
        fit(small(small_scenes, data=str(tmp_path / "data")), tmp_path / "run", progress=False)


def last_of(data):
    """The same number of scenes, the last one another."""
    for split in ("train", "validation"):
        *records, _ = store.open(data / f"{split}.lmdb")
        store.write(data / f"{split}.lmdb", [*records, store.open(data / "test.lmdb")[0]], {"dataset": "shapes", "split": split})


def order_of(data):
    records = list(store.open(data / "train.lmdb"))
    store.write(data / "train.lmdb", [records[1], records[0], *records[2:]], store.open(data / "train.lmdb").meta)


def validation_of(data):
    shutil.copy(data / "test.lmdb", data / "validation.lmdb")


@pytest.mark.parametrize("spoil, splits", [(last_of, "train.*validation"), (order_of, "train"), (validation_of, "validation")])
@pytest.mark.parametrize("finished", [True, False])
def test_other_records_of_the_same_name_and_number_are_refused(spoil, splits, finished, whole, small_scenes, tmp_path):
    data, run_dir = shutil.copytree(small_scenes, tmp_path / "data"), shutil.copytree(whole, tmp_path / "run")
    if not finished:
        (run_dir / "metrics.json").unlink()
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    fit(small(small_scenes, data=str(data)), shutil.copytree(run_dir, tmp_path / "same"), progress=False)  # a copy will do
    spoil(data)
    with pytest.raises(ValueError, match=r"was trained on .*\(records differ\).*the old data"):
        fit(small(small_scenes, data=str(data)), run_dir, progress=False)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def of_another_step(folder):
    shutil.copytree(folder / "20", folder / "30")


def without_training(folder):
    model = checkpoint.load_model(folder.parent, "last")
    checkpoint.save(folder.parent, 40, model, {}, {"reference": "published"})


def log_without_steps(folder):
    runs.append_line(folder.parent / "metrics.jsonl", {"loss": 1})


def log_of_lists(folder):
    runs.append_line(folder.parent / "metrics.jsonl", [])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (of_another_step, "checkpoints/30 says that it is of step 20"),
        (without_training, "could go on: its checkpoint 40 has no best, data, optimizer, random, seconds"),
        (log_without_steps, "metrics.jsonl, line"),
        (log_of_lists, "metrics.jsonl, line"),
    ],
)
def test_a_resume_that_cannot_tell_deletes_nothing(spoil, words, whole, small_scenes, tmp_path):
    run_dir = shutil.copytree(whole, tmp_path / "run")
    (run_dir / "metrics.json").unlink()
    shutil.copytree(run_dir / "checkpoints" / "20", run_dir / "checkpoints" / "10")  # would be pruned
    spoil(run_dir / "checkpoints")
    before = {path for path in run_dir.rglob("*")}
    with pytest.raises(ValueError, match=words):
        fit(small(small_scenes), run_dir, progress=False)
    assert before <= {path for path in run_dir.rglob("*")}


@pytest.mark.parametrize("known, here, workers, used, line", [
    (1, 2, 0, 1, ""),
    (2, 1, 0, 2, ""),
    (None, 2, 0, 2, ""),
    (10**6, 1, 0, 1, "it had 1000000 threads and 0 workers, and has 1 and 0"),
    (2, 1, 1, 2, "it had 2 threads and 0 workers, and has 2 and 1"),
])  # fmt: skip
def test_a_resumed_run_keeps_its_threads_or_says_so(known, here, workers, used, line, small_scenes, capsys):
    before = torch.get_num_threads()
    torch.set_num_threads(here)
    try:
        checkpointed = {} if known is None else {"threads": known, "workers": 0}
        with devices.threads(checkpointed, small(small_scenes, workers=workers)):
            assert torch.get_num_threads() == used
        assert torch.get_num_threads() == here and line in (out := capsys.readouterr().out) and bool(line) == bool(out)
    finally:
        torch.set_num_threads(before)


def test_a_run_writes_down_its_threads_and_a_resume_asks_for_them(small_scenes, tmp_path, monkeypatch):
    seen, number = [], torch.get_num_threads()
    stopped(small(small_scenes), tmp_path, 7, monkeypatch)
    assert checkpoint.last(tmp_path)["threads"] == number
    update = Training.update
    monkeypatch.setattr(Training, "update", lambda self, batch: seen.append(torch.get_num_threads()) or update(self, batch))
    torch.set_num_threads(number + 1)
    try:
        fit(small(small_scenes), tmp_path, progress=False)
    finally:
        torch.set_num_threads(number)
    assert set(seen) == {number}


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


def test_a_training_on_clips_counts_frames_and_is_watched(small_config, few_clips, tmp_path, capsys, monkeypatch):
    watch, seen, ticks, tick = Watch(images=4), [], [], Training.tick
    monkeypatch.setattr(Training, "tick", lambda self: ticks.append(tick(self)) or ticks[-1])

    def look(run_dir):
        watch(run_dir)
        seen.append(watch.text.value)

    short = dict(data=str(few_clips), clip_frames=3, batch_size=2, steps=2, log_every=1, evaluate_every=2, evaluate_images=1, trace_images=1)
    result = fit(small_config.replace(**short), tmp_path / "run", watch=look)
    assert result["images_per_second"] == pytest.approx(2 * 2 * 3 / result["seconds"])
    rates = [line["images_per_second"] for line in runs.read_lines(tmp_path / "run/metrics.jsonl") if "loss" in line]
    assert rates == pytest.approx([2 * 3 / seconds for seconds in ticks[:2]])
    assert "frames/s" in capsys.readouterr().err
    assert seen == ["step 0", "step 2"] and watch.curves.data and all(len(line.x) for line in watch.curves.data)
    assert watch.maps.data["clips"]["frames"] == 4 and watch.maps.data["runs"][0]["training"]["steps"] == [0, 2]
