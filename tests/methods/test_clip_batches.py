"""Batches of clips go into models for clips as they are: with the draws of the processes that read, boxes, and padding."""

import pytest
import torch

from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.data.clips import clip_batches, clip_squares
from dias_lab.data.convert import scenes
from dias_lab.methods import build


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
