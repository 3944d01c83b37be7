"""The step: parts of a batch, updates held back, precision, and no wait for a GPU."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dias_lab import runs
from dias_lab.analysis.discovery import Discovery
from dias_lab.config import Config
from dias_lab.data.dataset import batches
from dias_lab.methods import build, checkpoint
from dias_lab.training import devices, step
from dias_lab.training.ahead import ahead
from dias_lab.training.loop import NonFiniteError, Training, fit
from dias_lab.training.step import Learner

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
METHODS = {"dias": {}, "smoothsa": dict(method="smoothsa"), "spot": dict(method="spot"), "dinosaur": dict(method="dinosaur")}


# Parts of a batch


def trained(config, run_dir):
    fit(config, run_dir, progress=False)
    return load_file(run_dir / "checkpoints" / str(config.steps) / "weights.safetensors")


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_a_batch_add_up_to_the_whole(name, small_config, tmp_path):
    config = small_config.replace(**METHODS[name], steps=4, evaluate_every=4)
    whole, parts = (trained(config.replace(accumulate=n), tmp_path / str(n)) for n in (1, 4))
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_in_more_parts(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "prune", lambda *arguments, **options: None)
    config = small_config.replace(steps=4, evaluate_every=2)
    whole = trained(config, tmp_path)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "checkpoints" / "4").rename(tmp_path / "gone")
    parts = trained(config.replace(accumulate=2), tmp_path)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


# Not finite


def test_the_device_holds_updates_back_until_the_host_looks(small_config, tmp_path, monkeypatch):
    """Fused Adam, as on a GPU: the loss goes bad at step 4, and the host looks at step 6."""
    config = small_config.replace(steps=12, log_every=6, evaluate_every=12)
    monkeypatch.setattr(step, "Learner", lambda *options: Learner(*options, fused=True))
    monkeypatch.setattr("dias_lab.training.loop.Learner", step.Learner)
    update, weights = Training.update, {}

    def spoil(self, batch):
        if self.step == 4:
            self.model.project[1].weight.data.fill_(1e38)
            weights.update({name: value.clone() for name, value in self.model.trained_state().items()})
        return update(self, batch)

    monkeypatch.setattr(Training, "update", spoil)
    with pytest.raises(NonFiniteError, match="step 4: the loss is nan.*the output of project"):
        fit(config, tmp_path, progress=False)
    folder = tmp_path / "nonfinite" / "4"
    kept, batch = load_file(folder / "weights.safetensors"), load_file(folder / "batch.safetensors")
    assert all(torch.equal(kept[name], weights[name]) for name in kept)
    training = Training(config, tmp_path / "other")
    assert torch.equal(batch["image"], next(batches(training.task.train_store, config, step=4))["image"])


def test_fused_adam_takes_the_same_steps(small_config, tmp_path):
    one, other = (learner_of(small_config, tmp_path, fused=fused) for fused in (None, True))
    for training in (one, other):
        for number, batch in enumerate(itertools.islice(training.task.batches(training.learner.places, 0), 3)):
            training.learner.update(batch, number)
    assert one.learner.bad_step() is None is other.learner.bad_step()
    torch.testing.assert_close(one.model.trained_state(), other.model.trained_state(), rtol=1e-4, atol=1e-6)


def test_a_run_that_comes_from_a_cpu_is_fused_on_a_gpu(small_config, tmp_path):
    plain, fused = (learner_of(small_config, tmp_path, fused=fused).learner for fused in (None, True))
    for there, back in ((plain, fused), (fused, plain)):
        batch = next(learner_of(small_config, tmp_path).task.batches(there.places, 3))
        there.update(batch, 3)
        back.model.load_state_dict(there.model.state_dict())
        back.load_optimizer(copy.deepcopy(there.optimizer.state_dict()))
        assert [group["fused"] for group in back.adam.param_groups] == 2 * [back.fused or None]
        assert there.update(batch, 4)["loss"] == back.update(batch, 4)["loss"]
        torch.testing.assert_close(back.model.trained_state(), there.model.trained_state(), rtol=1e-4, atol=1e-6)


def learner_of(config, tmp_path, **options):
    training = Training(config, tmp_path)
    training.task = Discovery(config)
    training.learner = Learner(training.task, training.fabric, **options)
    training.model = training.learner.model.train()
    return training


# Precision, compilation


def test_reduced_precision_follows_the_full_one(small_config, tmp_path):
    """Losses of 20 steps in bf16 lie within 1 % of those in float32."""
    curves = []
    for precision in ("32-true", "bf16-mixed"):
        fit(small_config.replace(precision=precision, log_every=1), tmp_path / precision, progress=False)
        lines = runs.read_lines(tmp_path / precision / "metrics.jsonl")
        curves.append([line["reconstruction"] for line in lines if "loss" in line])
    assert curves[0] != curves[1]
    np.testing.assert_allclose(*curves, rtol=0.01)


def test_auto_precision_is_full_on_a_cpu_and_stays_what_it_was(small_config, tmp_path, monkeypatch):
    config = small_config.replace(precision="auto", steps=4, evaluate_every=2)
    assert Config().precision == "auto" and devices.precision(config) == "32-true"
    monkeypatch.setattr(devices, "precision", lambda config: "bf16-mixed" if config.precision == "auto" else config.precision)
    result = fit(config, tmp_path, progress=False)
    assert result["about"]["precision"] == "bf16-mixed" and Config.load(tmp_path).precision == "auto"
    monkeypatch.undo()
    assert Training(config, tmp_path).fabric._precision.precision == "bf16-mixed"  # as on the machine that began


def test_compiled_parts_are_compiled_once(small_config, tmp_path, monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setattr(step, "COMPILER", "eager")  # graphs as ever, but no machine code: that takes minutes
    config = small_config.replace(compile=True, steps=6, evaluate_every=3)
    training, graphs = Training(config, tmp_path), []
    training.model.train()
    for batch in training.task.batches(training.learner.places, 0):
        training.update(batch)
        training.step += 1
        graphs.append(counters["stats"]["unique_graphs"])
        if training.step % 3 == 0:
            training.evaluate_and_save()
    assert graphs[0] > 0 and len(set(graphs[1:])) == 1
    plain = trained(config.replace(compile=False), tmp_path / "plain")
    torch.testing.assert_close(training.model.trained_state(), plain, rtol=1e-4, atol=1e-5)


# Bad input


def test_a_gpu_that_is_too_small_is_told_what_would_fit(small_config, tmp_path, monkeypatch):
    def too_much(self, inputs, draws):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "gradients", too_much)
    monkeypatch.setattr(Training, "peak", lambda self, images: 10**9 + images * 2 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=6 * 10**9))
    config = small_config.replace(batch_size=8)
    with pytest.raises(MemoryError, match=r"batch_size 8, accumulate 1\) with num_slots 5.*2 would fit: accumulate=4"):
        fit(config, tmp_path, progress=False)
    assert runs.state(tmp_path) == "failed"
    assert "backbone_size" in devices.out_of_memory(config, lambda n: n * 10**10, 10**9)


def test_what_does_not_divide_the_batch_is_refused_before_anything_is_written(small_config, tmp_path):
    for fields in (dict(devices=3), dict(accumulate=3), dict(devices=2, accumulate=4)):
        with pytest.raises(ValueError, match=r"batch_size 4 .* do not divide it"):
            fit(small_config.replace(**fields), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="torchrun or srun"):
        fit(small_config.replace(num_nodes=2), tmp_path / "run", progress=False)
    for fields in (dict(graphs=True), dict(graphs=True, compile=True)):
        with pytest.raises(ValueError, match="graphs captures .* there is no GPU"):
            fit(small_config.replace(device="cpu", **fields), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_only_a_training_is_deterministic_and_several_devices_take_what_there_is():
    before = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    for world, mode in ((1, 2), (4, 1)):  # 2 raises, 1 warns
        with devices.deterministic(SimpleNamespace(device=torch.device("cuda"), world_size=world)):
            assert torch.get_deterministic_debug_mode() == mode
            assert not torch.utils.deterministic.fill_uninitialized_memory
        assert before == (torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory)


def test_what_has_no_deterministic_way_is_done_again_and_said(capsys):
    calls = []

    def step():
        calls.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if not calls[-1]:
            raise RuntimeError("op_cuda does not have a deterministic implementation\nmore")
        return 3

    torch.use_deterministic_algorithms(True)
    try:
        assert devices.deterministically(step) == 3 and calls == [False, True]
        assert "op_cuda does not have a deterministic implementation\n" in capsys.readouterr().out
        with pytest.raises(RuntimeError, match="other"):
            devices.deterministically(lambda: (_ for _ in ()).throw(RuntimeError("other")))
    finally:
        torch.use_deterministic_algorithms(False)


def test_smoothsas_prediction_learns_at_the_full_rate(small_config):
    model = build(small_config.replace(method="smoothsa", aggregator_rate=0.1))
    shares = {id(parameter): group["share"] for group in model.parameter_groups() for parameter in group["params"]}
    of = {name: shares[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert of["initializer.block.mlp.0.weight"] == of["initializer.project_features.weight"] == 1
    assert of["initializer.mean"] == of["project.1.weight"] == of["aggregator.to_key.weight"] == 0.1


def test_a_reader_that_dies_is_named_with_the_way_out(small_config, small_scenes, monkeypatch):
    import os
    import signal

    from dias_lab.data import dataset, store

    scenes = store.open(small_scenes / "train.lmdb")
    loader = dataset.loader

    def deadly(*arguments):
        made = iter(loader(*arguments))
        yield next(made)
        os.kill(made._workers[0].pid, signal.SIGKILL)
        yield from made

    monkeypatch.setattr(dataset, "loader", deadly)
    with pytest.raises(RuntimeError, match="one of 1 processes that read and decode has died.*workers=0"):
        list(batches(scenes, small_config.replace(workers=1, steps=500)))


def test_without_a_gpu_batches_pass_as_they_are():
    given = [{"image": 1}, {"image": 2}]
    assert list(ahead(given, None, torch.device("cpu"))) == given


# On a GPU


@needs_gpu
@pytest.mark.parametrize("method", ["dias", "smoothsa", "spot", "dinosaur", "vqdino", "slate"])
def test_no_step_waits_for_the_gpu(method, small_config, tmp_path):
    some = 7 if method == "dinosaur" else 0  # its MLP decoder learns from a few locations
    config = small_config.replace(method=method, device="cuda", precision="auto", steps=8, decoder_locations=some)
    training = Training(config, tmp_path)
    training.model.train()
    source = iter(ahead(training.task.batches(training.learner.places, 0), training.learner.prepare, training.fabric.device))
    training.update(next(source))  # warm up
    batch = next(source)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.update(batch)
        prepared = training.learner.prepare({name: value for name, value in batch.items() if name != "prepared"})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert training.learner.bad_step() is None and prepared[0]["features"].isfinite().all()


@needs_gpu
@pytest.mark.parametrize("precision", ["32-true", "auto"])
def test_the_same_steps_give_the_same_bits_on_a_gpu(precision, small_config, tmp_path):
    config = small_config.replace(device="cuda", precision=precision, steps=4, evaluate_every=4)
    one, other = (trained(config, tmp_path / name) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@needs_gpu
def test_graphs_take_the_same_steps(small_config, tmp_path):
    config = small_config.replace(device="cuda", precision="32-true", log_every=1, steps=12)
    curves = []
    for name, fields in (("plain", {}), ("graphs", dict(compile=True, graphs=True))):
        fit(config.replace(**fields), tmp_path / name, progress=False)
        curves.append([line["loss"] for line in runs.read_lines(tmp_path / name / "metrics.jsonl") if "loss" in line])
    np.testing.assert_allclose(*curves, rtol=1e-3)


@needs_gpu
def test_a_gpu_follows_the_cpu(small_config, tmp_path):
    curves = []
    for device, precision in (("cpu", "32-true"), ("cuda", "32-true"), ("cuda", "bf16-mixed")):
        run_dir = tmp_path / f"{device}-{precision}"
        fit(small_config.replace(device=device, precision=precision, log_every=1), run_dir, progress=False)
        curves.append([line["reconstruction"] for line in runs.read_lines(run_dir / "metrics.jsonl") if "loss" in line])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3)
    np.testing.assert_allclose(curves[2], curves[0], rtol=0.02)


def test_features_from_inference_mode_can_be_learnt_from(small_config, tmp_path):
    """As on a GPU: the frozen backbone's copy in half precision, and a backward pass through what reads its features."""
    training = Training(small_config, tmp_path)
    training.model.train()
    batch = next(training.task.batches(training.learner.places, 0))
    plain = training.learner.update(batch, 0)["loss"]
    training.task.frozen = build(small_config).backbone.lowered(torch.float32)
    ahead_of_time = training.learner.update(batch, 0)["loss"]  # the learning rate of step 0 is 0
    assert math.isclose(plain, ahead_of_time, rel_tol=1e-6)
