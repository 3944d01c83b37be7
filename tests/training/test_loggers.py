"""A logger of the user's choice beside metrics.jsonl: what it gets, who writes, and what is refused before anything starts."""

import csv
import importlib.util
import json
import math
import sys
import types

import pytest
from interruptions import stopped

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.config import LATER, Config
from dias_lab.training import devices
from dias_lab.training.loop import fit

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
needs_tensorboard = pytest.mark.skipif(not HAS_TENSORBOARD, reason="no tensorboard")


def expected(run_dir) -> dict[str, dict[int, float]]:
    """The numbers of metrics.jsonl: name, then step."""
    found = {}
    for line in runs.read_lines(run_dir / "metrics.jsonl"):
        for name, value in runs.flat(line).items():
            if isinstance(value, (int, float)) and name != "step":
                found.setdefault(name, {})[line["step"]] = value
    return found


def read_csv(folder) -> dict[str, dict[int, float]]:
    found = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault(name, {})[int(row["step"])] = float(value)
    return found


def read_tensorboard(folder) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {one.step: one.value for one in events.Scalars(name)} for name in events.Tags()["scalars"] if name != "step"}


READERS = {"csv": read_csv, "tensorboard": read_tensorboard}
kinds = pytest.mark.parametrize("kind", ["csv", pytest.param("tensorboard", marks=needs_tensorboard)])


@kinds
def test_a_logger_gets_the_numbers_of_the_log(kind, small_config, tmp_path):
    fit(small_config.replace(steps=10, logger=kind), tmp_path, progress=False)
    told, wanted = READERS[kind](tmp_path / kind / "version_0"), expected(tmp_path)
    assert {"loss", "kept", "learning_rate", "validation.decoder.ari", "images_per_second"} <= told.keys()
    assert told.keys() == wanted.keys()
    for name in wanted:
        assert told[name].keys() == wanted[name].keys()
        for step, value in wanted[name].items():
            assert told[name][step] == pytest.approx(value, rel=1e-5, nan_ok=True)


@kinds
def test_a_resumed_run_may_have_another_logger_and_each_start_its_own_folder(kind, small_config, tmp_path, monkeypatch):
    config = small_config.replace(steps=10, log_every=2)
    stopped(config.replace(logger=kind), tmp_path, 7, monkeypatch)
    told = READERS[kind](tmp_path / kind / "version_0")
    assert list(told["loss"]) == [2, 4, 5, 6]  # on the disk, though step 6 is of no checkpoint
    fit(config.replace(logger="csv"), tmp_path, progress=False)
    second = read_csv(tmp_path / "csv" / ("version_1" if kind == "csv" else "version_0"))
    assert list(second["loss"]) == [6, 8, 10]
    lines = [line["step"] for line in runs.read_lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert lines == [2, 4, 5, 6, 8, 10]


@kinds
def test_a_logger_changes_nothing_of_the_run(kind, small_config, tmp_path):
    for name, logger in (("without", "none"), ("with", kind)):
        fit(small_config.replace(steps=5, logger=logger), tmp_path / name, progress=False)
    files = [tmp_path / name / "checkpoints/5/weights.safetensors" for name in ("without", "with")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {path.name for path in (tmp_path / "with").iterdir()} - {path.name for path in (tmp_path / "without").iterdir()} == {kind}


@pytest.mark.parametrize("kind, absent, told", [
    ("tensorboard", {"tensorboard"}, "'tensorboard' needs tensorboard: pip install tensorboard"),
    ("wandb", {"wandb", "lightning"}, "'wandb' needs wandb and lightning: pip install wandb lightning"),
    ("wandb", {"lightning"}, "'wandb' needs lightning: pip install lightning"),
])  # fmt: skip
def test_a_missing_package_is_named_before_anything_is_written(kind, absent, told, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else name)
    with pytest.raises(ValueError, match=told):
        fit(small_config.replace(logger=kind), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("logger", ["tensorbord", "", "all", None])
def test_other_loggers_are_refused(logger):
    with pytest.raises(ValueError, match="logger"):
        Config(logger=logger)


def test_weights_and_biases_get_a_run_named_as_the_folder(small_config, tmp_path, monkeypatch):
    """Their own class is not here; what it is given is."""
    given = []

    class WandbLogger:
        def __init__(self, name, save_dir):
            given.append((name, save_dir))

        def log_metrics(self, metrics, step):
            given.append((step, "loss" in metrics))

        def finalize(self, status):
            given.append(status)

    for name in ("wandb", "wandb.integration", "wandb.integration.lightning", "wandb.integration.lightning.fabric", "lightning"):
        monkeypatch.setitem(sys.modules, name, module := types.ModuleType(name))
        module.WandbLogger, module.__spec__ = WandbLogger, name
    fit(small_config.replace(steps=4, log_every=2, evaluate_every=4, logger="wandb"), tmp_path / "mine", progress=False)
    assert given == [("mine", tmp_path / "mine"), (2, True), (4, True), (4, False), "success"]


def test_only_the_first_process_writes(small_config, tmp_path, monkeypatch):
    config = small_config.replace(devices=2, logger="csv")
    assert len(devices.loggers(config, tmp_path)) == 1
    monkeypatch.setenv("RANK", "1")
    assert devices.loggers(config, tmp_path) == [] and not list(tmp_path.iterdir())


def test_runs_of_older_versions_have_none(small_config, tmp_path):
    assert "logger" in LATER
    fields = {name: value for name, value in small_config.to_dict().items() if name != "logger"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert Config.load(tmp_path).logger == "none"


def test_the_shell_takes_it(small_scenes, tmp_path):
    sizes = "--steps 2 --batch-size 2 --evaluate-images 2 --num-slots 4 --slot-dim 12 --decoder-heads 2 --device cpu --logger csv"
    words = ["train", "--preset", "shapes", "--data", small_scenes, "--run-dir", tmp_path / "run", *sizes.split()]
    main([*map(str, words)])
    assert math.isfinite(read_csv(tmp_path / "run/csv/version_0")["loss"][2])
