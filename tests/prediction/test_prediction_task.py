"""Prediction as a Task: windows of slots, the two losses, exact resume, what is refused; and traces of what is predicted."""

import json
import shutil

import numpy as np
import pytest
import torch
from interruptions import stopped

from dias_lab import runs
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.data.clips import Clips
from dias_lab.data.store import StoreError
from dias_lab.methods import build
from dias_lab.prediction.curves import curves
from dias_lab.prediction.predictor import Predictor, Rolled, load, needs_features, predicted_trace, rollout, slots_seen
from dias_lab.prediction.task import DECODED, Prediction
from dias_lab.trace import CLIP_AXES
from dias_lab.training.loop import Training, check, fit


@pytest.fixture(scope="module")
def training(small, run, tmp_path_factory):
    """At the first step; `run` has made the slots."""
    return Training(small, tmp_path_factory.mktemp("training"))


def test_a_run_learns_and_goes_on_exactly_where_it_was(small, run, training, tmp_path, monkeypatch):
    again = tmp_path / "again"
    stopped(small, again, 3, monkeypatch)
    fit(small, again, progress=False)
    ours, theirs = (load(folder, "last").state_dict() for folder in (again, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # dropout and the decoded frames are those of the step
    assert not torch.equal(Predictor(small, small.slot_dim).rollouter.to_slot.weight, load(run).rollouter.to_slot.weight)


def test_windows_are_consecutive_frames_and_a_function_of_seed_step_and_place(small, training, worlds):
    task, T = training.task, small.burn_in
    batch, same = (next(task.batches(range(2), 1)) for _ in range(2))
    second = next(task.batches(range(1, 2), 1))
    for name in ("slots", "keep", "features"):
        torch.testing.assert_close(batch[name], same[name], rtol=0, atol=0)
        torch.testing.assert_close(batch[name][1:], second[name], rtol=0, atol=0)
    assert not torch.equal(next(task.batches(range(2), 2))["slots"], batch["slots"])
    assert batch["slots"].shape[1] == T + small.rollout
    first = batch["info"]["item"][0].item()
    items = range(first, first + T + small.rollout)
    assert any(set(items) <= set(clip) for clip in Clips(store.open(worlds / "train.lmdb")))
    np.testing.assert_array_equal(batch["slots"][0], task.slots.slots[items].astype(np.float32))
    np.testing.assert_array_equal(batch["keep"][0], task.slots.keep[items].all(axis=0))


def test_features_are_those_of_the_frames_that_are_decoded(small, training, worlds):
    from dias_lab.prediction.predictor import frames_at

    batch = next(training.task.batches(range(2), 3))
    which = batch["draws"]["decoded"]
    assert which.shape == (2, DECODED) and all(len({*row}) == DECODED for row in which.tolist())
    items = [batch["info"]["item"][1].item() + small.burn_in + k for k in which[1].tolist()]
    images, _ = frames_at(store.open(worlds / "train.lmdb"), items, small.image_size)
    model = training.model.slot_model
    torch.testing.assert_close(batch["features"][1], model.backbone(model.normalise(images)), atol=2e-3, rtol=2e-3)  # half precision


def test_a_stride_takes_every_second_frame(small, training):
    from dias_lab.prediction.task import Windows

    wide = small.replace(clip_stride=2, burn_in=2, rollout=3)
    batch = Windows(training.task.train_store, wide, training.task.slots)[0]
    first = batch["info"]["item"][0].item()
    np.testing.assert_array_equal(batch["slots"][0], training.task.slots.slots[first : first + 9 : 2].astype(np.float32))
    assert "features" not in batch


def test_losses_count_kept_slots_in_units_of_their_deviation(training):
    task, deviation = training.task, training.model.rollouter.deviation
    true = torch.randn(2, 4, 7, len(deviation))
    keep = torch.tensor([[True] * 3 + [False] * 4, [True] * 5 + [False] * 2])
    predicted = true + deviation * torch.arange(7)[:, None]  # slot n is n deviations off
    terms, weights = task.losses(Rolled(predicted, true, keep, None, None), 0.0)
    assert terms["slots"].item() == pytest.approx((0 + 1 + 4 + 0 + 1 + 4 + 9 + 16) / 8, rel=1e-4) and weights == {"slots": 1.0}
    decoded = torch.zeros(2, 1, 3, 2, 2)
    terms, weights = task.losses(Rolled(predicted, true, keep, decoded, decoded + 2), 0.0)
    assert terms["features"].item() == pytest.approx(4) and weights["features"] == task.config.feature_weight


def test_the_feature_loss_reaches_slotformer_through_a_decoder_that_stays_as_it_is(training):
    task, model = training.task, training.model
    inputs, draws = task.prepare(next(task.batches(range(2), 0)), range(2))
    before = {name: value.clone() for name, value in model.slot_model.state_dict().items()}
    model.zero_grad()
    task.losses(model(**inputs, draws=draws), 0.0)[0]["features"].backward()
    assert model.rollouter.to_slot.weight.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.slot_model.parameters())
    training.update(next(task.batches(range(2), 0)))
    assert all(torch.equal(before[name], value) for name, value in model.slot_model.state_dict().items())
    assert not any("slot_model" in name or "frozen" in name for name in model.trained_state())


def test_dropout_is_that_of_the_step_whatever_torchs_state(training):
    task, model = training.task, training.model.train()
    inputs, draws = task.prepare(next(task.batches(range(2), 0)), range(2))
    torch.manual_seed(5)
    first = model(**inputs, draws=draws).predicted
    state = torch.get_rng_state()
    torch.testing.assert_close(model(**inputs, draws=draws).predicted, first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)  # and torch's is left alone
    assert not torch.equal(model(**inputs, draws=draws | {"dropout": draws["dropout"] + 1}).predicted, first)


def test_slots_are_standardised_over_the_training_split(training):
    slots, rollouter = training.task.slots, training.model.rollouter
    kept = torch.from_numpy(slots.slots[np.asarray(slots.keep)].astype(np.float32))
    torch.testing.assert_close(rollouter.mean, kept.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rollouter.deviation, kept.std(0, correction=0), atol=1e-4, rtol=1e-4)


def test_rollout_is_in_the_units_of_the_slots(run, small, worlds):
    model, slots = load(run), slots_seen(small, store.open(worlds / "test.lmdb"))
    seen, keep = torch.from_numpy(slots.slots[[0, 1, 2]]).float()[None], torch.from_numpy(slots.keep[[0, 1, 2]]).all(dim=0)[None]
    rolled = rollout(model, seen, keep, 5)
    assert rolled.shape == (1, 5, *slots.slots.shape[1:]) and not rolled.requires_grad
    torch.testing.assert_close(rolled, model.rollouter(seen, 5, keep))
    torch.testing.assert_close(rolled[:, :, ~keep[0]], seen[:, -1:, ~keep[0]].expand(-1, 5, -1, -1))
    with pytest.raises(ValueError, match="burn-in"):
        rollout(model, seen[:, :2], keep)


def test_a_trace_shows_what_was_seen_and_what_is_predicted(run, worlds, small):
    whole = predicted_trace(run, worlds / "validation.lmdb", clip=1, steps=4)
    assert whole.about["axes"] == CLIP_AXES and whole.about["frames"] == len(whole.images) == 7 and whole.segments is not None
    assert [name.split()[-1] for name in whole.names] == ["seen"] * 3 + ["predicted"] * 4
    slot = int(np.flatnonzero(whole.keep[0])[0])
    without = predicted_trace(run, worlds / "validation.lmdb", clip=1, steps=4, without=slot)
    assert not without.keep[:, slot].any() and without.attention[:, :, slot].max() == 0 and without.about["without"] == slot
    others = whole.keep[0] & (np.arange(whole.keep.shape[1]) != slot)
    assert np.array_equal(without.keep[0], others) and np.abs(without.attention - whole.attention)[:, -1, others].max() > 0.01
    out = int(np.flatnonzero(~whole.keep[0])[0])
    for wrong in (99, out):
        with pytest.raises(ValueError, match="the slots of clip 1 are"):
            predicted_trace(run, worlds / "validation.lmdb", clip=1, steps=4, without=wrong)
    with pytest.raises(ValueError, match="at most 7 fit"):
        predicted_trace(run, worlds / "validation.lmdb", clip=1, steps=9)


def test_what_cannot_be_predicted_is_refused_before_anything_is_written(small, run, small_scenes, tmp_path):
    for changes, error, match in (
        (dict(parent="dias_lab/shipped"), ValueError, "not the same objects in the next frame"),
        (dict(data=str(small_scenes)), StoreError, "in which nothing comes next"),
        (dict(rollout=8), ValueError, "burn_in = 3 and 8 predicted ones need 11: at most 7 fit"),
        (dict(slots_of="k_means"), ValueError, "which nothing decodes"),
        (dict(parent=str(tmp_path / "nothing")), (ValueError, FileNotFoundError), "nothing"),
    ):
        with pytest.raises(error, match=match):
            check(small.replace(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(StoreError, match="holds images"):
        curves(run, small_scenes / "validation.lmdb")


def test_a_decoder_that_sees_features_shows_no_predicted_slots(small, run, training, worlds, tmp_path, monkeypatch):
    assert not needs_features(training.model.slot_model)
    fields = dict(decoder="raster", slot_frames=False, decoder_dim=8, decoder_layers=1)
    raster = build(Config.load(runs.resolve(small.parent)).replace(**fields)).eval()
    assert needs_features(raster) and needs_features(build(Config.preset("clips", method="steve")))  # which decodes codes
    monkeypatch.setattr("dias_lab.prediction.predictor.frozen_model", lambda config: raster)
    with pytest.raises(ValueError, match="Take feature_weight=0"):
        check(small, tmp_path / "run")
    check(small.replace(feature_weight=0.0), tmp_path / "run")
    table = curves(load(run), worlds / "test.lmdb", steps=2).set_index("method")
    assert table["slot_mse"][["SlotFormer", "copy last"]].notna().all() and table["fg_ari"].isna().all()
    assert table["centroid_error"]["constant velocity"].notna().all() and table["centroid_error"]["SlotFormer"].isna().all()
    with pytest.raises(ValueError, match="there are no maps"):
        predicted_trace(load(run), worlds / "test.lmdb", 0, 2)


def test_slots_of_another_model_are_refused(small, worlds, tmp_path):
    theirs = next((worlds / "slots").glob("*-model"))
    shutil.copytree(theirs, tmp_path / "slots")
    about = tmp_path / "slots" / "train" / "slots.json"
    about.write_text(about.read_text().replace(json.loads(about.read_text())["identity"], "0" * 16))
    with pytest.raises(ValueError):
        slots_seen(small.replace(slots=str(tmp_path / "slots")), store.open(worlds / "train.lmdb"))
    with pytest.raises(ValueError, match="take the parent's fields"):
        slots_seen(small.replace(num_slots=5), store.open(worlds / "train.lmdb"))


def test_only_a_run_of_this_task_and_of_the_same_parent_is_loaded(run, tmp_path):
    with pytest.raises(ValueError, match="name one of the task prediction"):
        load("dias_lab/shipped/clips")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    model = load(other, "last")
    assert not model.training and model.rollouter.mean.abs().sum() > 0
    with pytest.raises(ValueError, match="of another Predictor|cannot be read"):
        model.load_trained_state({"places": torch.zeros(1)})


def test_true_states_are_slots_too(small, worlds, tmp_path):
    config = small.replace(slots_of="oracle", steps=2)
    slots = slots_seen(config, store.open(worlds / "train.lmdb"))
    info = store.open(worlds / "train.lmdb")[4].info
    for body, state in info["bodies"].items():
        np.testing.assert_allclose(slots.slots[4, body - 1, :5], state, rtol=1e-5)
        assert slots.slots[4, body - 1, 5:].sum() == 1 and slots.keep[4, body - 1]
    assert slots.keep[4].sum() == len(info["bodies"])
    fit(config, tmp_path / "oracle", progress=False)
    scores, text = Prediction.report(tmp_path / "oracle", worlds / "test.lmdb")
    assert Prediction.selection(None, scores) == -scores["SlotFormer"]["centroid_error"] < 0
    assert scores["SlotFormer"]["slot_mse"] is None and "SlotFormer" in text
    with pytest.raises(ValueError, match="there are no maps"):
        predicted_trace(tmp_path / "oracle", worlds / "test.lmdb", 0, 4)
