"""A Task that is no method: a linear regression with its own batches and random numbers trains like everything else."""

import functools
import inspect

import pytest
import torch
from safetensors.torch import load_file
from small_methods import interrupted
from torch import nn

from dias_lab import runs
from dias_lab.analysis.discovery import Discovery
from dias_lab.config import Config
from dias_lab.data.draws import draw, generator, normal
from dias_lab.methods.task import Task
from dias_lab.training import loop
from dias_lab.training.loop import NonFiniteError, Training

TRUE = torch.tensor([1.0, -2.0, 0.5])


class Line(nn.Module):
    progress = 0.0

    def __init__(self):
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.randn(3)), nn.Parameter(torch.zeros(()))

    def forward(self, points, values, draws):
        return (points + 0.01 * draws["jitter"]) @ self.slope + self.offset, values

    def trained_state(self):
        return self.state_dict()

    def load_trained_state(self, state):
        self.load_state_dict(state)


class Regression:
    facts = {"dataset": "a line"}

    def __init__(self, config):
        torch.manual_seed(config.seed)
        self.config, self.model = config, Line()

    @staticmethod
    def check(config):
        if config.num_slots != 3:
            raise ValueError("a line has 3 dimensions")

    def begin(self, fabric):
        return self.facts

    def batches(self, places, step, progress=False):
        for number in range(step, self.config.steps):
            random = [generator(self.config.seed, number, place, "points") for place in places]
            points = torch.stack([torch.from_numpy(one.standard_normal(3, dtype="float32")) for one in random])
            yield {"points": points, "info": {"step": number}}

    def prepare(self, batch, places):
        draws = draw(self.config.seed, batch["info"]["step"], places, [normal("jitter", 3)])
        return {"points": batch["points"], "values": batch["points"] @ TRUE + 4}, draws

    def losses(self, output, progress):
        found, values = output
        return {"error": (found - values).square().mean(), "size": found.abs().mean()}, {"error": 1.0, "size": 0.01 * progress}

    def measured(self, output):
        return {"largest": output[0].max()}

    def parameter_groups(self):
        return [{"params": [self.model.slope], "share": 1.0}, {"params": [self.model.offset], "share": 0.5}]

    def compiled(self):
        return []

    def evaluate(self, fabric):
        return {"distance": float((self.model.slope.detach() - TRUE).norm())}

    def selection(self, scores):
        return -scores["distance"]


fit = functools.partial(loop.fit, task=Regression)


@pytest.fixture
def config():
    return Config.preset(
        "shapes", num_slots=3, steps=40, batch_size=8, learning_rate=0.3, gradient_clip=100.0, aggregator_rate=0.3, evaluate_every=10,
        log_every=4, device="cpu",
    )  # fmt: skip


def weights(run_dir, step=40):
    return load_file(run_dir / "checkpoints" / str(step) / "weights.safetensors")


def log(run_dir):
    own = ("step", "loss", "error", "size", "largest", "validation", "weight_size", "learning_rate")
    return [{name: line[name] for name in own if name in line} for line in runs.read_lines(run_dir / "metrics.jsonl")]


@pytest.mark.parametrize("task", [Discovery, Regression])
def test_a_task_has_what_the_loop_calls(task):
    for name, function in inspect.getmembers(Task, inspect.isfunction):
        if name not in ("__init__", "__subclasshook__"):
            assert list(inspect.signature(getattr(task, name)).parameters) == list(inspect.signature(function).parameters), name


def test_a_task_without_maps_keeps_none(config, tmp_path):
    with pytest.raises(ValueError, match="Regression keeps no maps of pictures: trace_images must be 0, got 2"):
        fit(config.replace(trace_images=2), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_it_learns_and_leaves_what_every_run_leaves(config, tmp_path):
    result = fit(config, tmp_path, progress=False)
    lines = [line for line in log(tmp_path) if "loss" in line]
    assert lines[-1]["error"] < 0.5 * lines[0]["error"] and {"error", "size", "largest"} <= lines[0].keys()
    assert lines[-1]["weight_size"] == pytest.approx(0.01 * 39 / 40)
    assert result["loss"].keys() == {"loss", "error", "size"} and runs.state(tmp_path) == "done"
    validations = {line["step"]: line["validation"]["distance"] for line in log(tmp_path) if "validation" in line}
    assert sorted(validations) == [10, 20, 30, 40]
    assert result["best_step"] == min(validations, key=validations.get)
    assert result["scores"]["distance"] == min(validations.values())


@pytest.mark.parametrize("at", [3, 20, 37])
def test_it_resumes_bit_for_bit(at, config, tmp_path, monkeypatch):
    fit(config, tmp_path / "whole", progress=False)
    interrupted(config, tmp_path / "parts", at, monkeypatch, fit)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() == {"slope", "offset"}
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


def test_parts_of_its_batches_add_up(config, tmp_path):
    for parts in (1, 4):
        fit(config.replace(accumulate=parts), tmp_path / str(parts), progress=False)
    torch.testing.assert_close(weights(tmp_path / "4"), weights(tmp_path / "1"), rtol=1e-4, atol=1e-5)


def test_each_group_learns_at_its_share_of_the_rate(config, tmp_path, monkeypatch):
    groups = Regression.parameter_groups
    monkeypatch.setattr(Regression, "parameter_groups", lambda self: [groups(self)[0], groups(self)[1] | {"share": 0.0}])
    fit(config, tmp_path, progress=False)
    found, before = weights(tmp_path), Regression(config).model.state_dict()
    assert torch.equal(found["offset"], before["offset"]) and not torch.equal(found["slope"], before["slope"])


def test_its_own_check_refuses_before_anything_is_written(config, tmp_path):
    with pytest.raises(ValueError, match="a line has 3 dimensions"):
        fit(config.replace(num_slots=4), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_resume_must_find_what_it_was_trained_on(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Training, "finish", lambda self: {})
        fit(config, tmp_path, progress=False)
    monkeypatch.setattr(Regression, "facts", {"dataset": "another line"})
    with pytest.raises(ValueError, match="trained on {'dataset': 'a line'}.*another line"):
        fit(config, tmp_path, progress=False)


def test_a_step_that_is_not_finite_is_named(config, tmp_path, monkeypatch):
    update = Training.update

    def poison(self, batch):
        if self.step == 17:
            self.model.slope.data.fill_(float("nan"))
        return update(self, batch)

    monkeypatch.setattr(Training, "update", poison)
    with pytest.raises(NonFiniteError, match="step 17.*the parameter slope"):
        fit(config, tmp_path, progress=False)
    assert runs.state(tmp_path) == "failed" and (tmp_path / "nonfinite" / "17" / "weights.safetensors").exists()
