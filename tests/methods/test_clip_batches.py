"""Batches of clips go into models for clips as they are, and these train: bit-exact resume, parts of a batch, any parent."""

import pytest
import torch
from small_methods import interrupted, states

from dias_lab import runs
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.data.clips import clip_batches, clip_squares
from dias_lab.data.convert import scenes
from dias_lab.methods import build
from dias_lab.training.loop import fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    scenes.convert_clips(folder, train=2, validation=1, test=1, frames=3)
    return folder


@pytest.mark.parametrize("method", ["dias", "smoothsa"])
@pytest.mark.parametrize("condition", ["none", "boxes"])
def test_a_training_batch_and_an_evaluation(method, condition, folder):
    config = Config.preset(
        "clips", method=method, condition=condition, clip_frames=4, batch_size=2, num_slots=9, steps=3, cache_views=0, device="cpu",
        conditioning="none", transition="rsfq",
    )  # fmt: skip
    model = build(config).train()
    batch = next(clip_batches(store.open(folder / "train.lmdb"), config, step=2, requests=model.requests(), segments=False))
    draws = model.draw(range(2), config.seed, 2)
    assert batch["draws"].keys() == draws.keys() and all(torch.equal(batch["draws"][name], draws[name]) for name in draws)
    assert batch["frames"].tolist() == [[True, True, True, False]] * 2  # a clip has three
    given = dict(boxes=batch.get("boxes"), frames=batch["frames"], draws=draws)
    output = model(model.normalise(batch["image"]), **given)
    losses, weights = model.losses(output, 0.5)
    assert losses.keys() == weights.keys() and all(loss.isfinite() for loss in losses.values())
    whole = next(clip_squares(store.open(folder / "test.lmdb"), config))
    output = model.eval()(model.normalise(whole["image"]), boxes=whole.get("boxes"), draws=model.draw([0], 0))
    assert output.attention.shape[:4] == (8, 1, 3, 9 - (method == "smoothsa" and condition == "boxes"))


@pytest.fixture
def config(folder):
    return Config.preset(
        "clips", clip_frames=3, batch_size=2, steps=3, evaluate_every=3, evaluate_images=1, log_every=1, device="cpu", data=str(folder),
        transition="rsfq", transition_dropout=0.5, refresh=2, contrast_weight=0.5, conditioning_images=2, warmup=0.0, num_iterations=3,
        evaluation_iterations=0,
    )  # fmt: skip


def test_training_starts_from_the_shipped_model_and_resumes_bit_for_bit(config, tmp_path, monkeypatch):
    config = config.replace(parent=str(runs.PACKAGE / "shipped"))
    result = fit(config, tmp_path / "whole", progress=False)
    assert result["steps"] == 3 and 0 <= result["scores"]["last"]["video_fg_ari"] <= 1
    interrupted(config, tmp_path / "again", 2, monkeypatch)
    whole, again = states(tmp_path / "whole", tmp_path / "again")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not torch.equal(whole["transition.time.weight"], build(config).transition.time.weight)


def test_parts_of_a_batch_add_up_whatever_is_dropped(config, tmp_path):
    logs, config = [], config.replace(method="smoothsa", contrast_weight=0.0, steps=1)  # contrast is among all clips
    for parts in (1, 2):
        fit(config.replace(accumulate=parts), tmp_path / str(parts), progress=False)
        logs.append(next(line for line in runs.read_lines(tmp_path / str(parts) / "metrics.jsonl") if "loss" in line))
    assert config.transition_dropout == 0.5 and logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    assert logs[0]["gradient_norm"] == pytest.approx(logs[1]["gradient_norm"], rel=1e-3)
