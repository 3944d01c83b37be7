"""A task that looks through its parent's model: what the loop does with it, by a head of one number."""

import functools

import pytest
import torch
from interruptions import stopped
from torch import nn

from dias_lab import Config, runs
from dias_lab.methods import checkpoint, task
from dias_lab.training import loop


class Scale(task.Head):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, slots, draws=None):
        return self.scale * slots


class Head:
    """A Task: the scale that makes 3 of 1."""

    through_parent = True

    def __init__(self, config):
        self.config, self.model = config, Scale()

    @staticmethod
    def check(config):
        pass

    def begin(self, fabric):
        return {"records": {}}

    def batches(self, places, step, progress=False):
        for number in range(step, self.config.steps):
            yield {"slots": torch.ones(len(places), 1), "info": {"step": number}}

    def prepare(self, batch, places):
        return {"slots": batch["slots"]}, {}

    def losses(self, output, progress):
        return {"error": (output - 3).square().mean()}, {"error": 1.0}

    def measured(self, output):
        return {}

    def parameter_groups(self):
        return [{"params": list(self.model.parameters()), "share": 1.0}]

    def compiled(self):
        return []

    def evaluate(self, fabric):
        return {"scale": self.model.scale.item()}

    def selection(self, scores):
        return scores["scale"]


@pytest.fixture
def config(shipped_run):
    return Config.load(shipped_run).for_task("recognition", str(shipped_run), steps=4, evaluate_every=2, batch_size=2, device="cpu")


@pytest.fixture
def shipped_run():
    return runs.PACKAGE / "shipped"


def test_it_is_trained_resumed_and_remembers_whose_slots_it_saw(config, shipped_run, tmp_path, monkeypatch):
    train = functools.partial(loop.fit, progress=False, task=Head)
    whole = train(config, tmp_path / "whole")
    stopped(config, tmp_path / "run", 3, monkeypatch, fit=functools.partial(loop.fit, task=Head))
    assert train(config, tmp_path / "run")["scores"] == whole["scores"]
    assert whole["about"]["parent"] == runs.weights_hash(shipped_run) and whole["scores"]["scale"] > 0
    with pytest.raises(ValueError, match="learnt recognition from the slots of"):
        checkpoint.load_model(tmp_path / "run")


def test_another_parents_slots_are_refused(config, tmp_path):
    loop.fit(config, tmp_path / "run", progress=False, task=Head)
    (tmp_path / "run" / "metrics.json").unlink()
    other = config.replace(parent=str(runs.PACKAGE / "shipped" / "clips"))
    with pytest.raises(ValueError, match="has started from other weights"):
        loop.fit(other, tmp_path / "run", progress=False, task=Head)


def test_a_parent_that_is_no_run(config, tmp_path):
    with pytest.raises(ValueError, match="is it a run directory"):
        loop.fit(config.replace(parent=str(tmp_path)), tmp_path / "run", progress=False, task=Head)
    assert not (tmp_path / "run").exists()
