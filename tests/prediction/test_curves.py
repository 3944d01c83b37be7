"""Curves: what each column says, on cases where it is known; a perfect predictor has the curves of what was seen."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from dias_lab.data import store
from dias_lab.prediction import curves as module
from dias_lab.prediction.curves import METRICS, centroids, curves, filled, match, reflected, summary
from dias_lab.prediction.predictor import load, slots_seen
from dias_lab.prediction.task import Prediction


@pytest.fixture(scope="module")
def table(run, worlds):
    return curves(run, worlds / "validation.lmdb", steps=4)


def test_a_row_for_each_method_step_and_clip(table):
    assert [*dict.fromkeys(table["method"])] == ["SlotFormer", "copy last", "constant velocity", "seen"]
    assert len(table) == 4 * 4 * 2 and not table.duplicated(["method", "step", "clip"]).any()
    assert set(table["step"]) == {1, 2, 3, 4} and set(table["clip"]) == {0, 1}


def test_copying_is_the_unit_of_the_slots_error_and_what_was_seen_has_none(table):
    by = table.set_index("method")
    np.testing.assert_allclose(by.loc["copy last"].groupby("step")["slot_error"].mean(), 1)
    assert (by.loc["seen"]["slot_mse"] == 0).all() and (by.loc["seen", "slot_error"] == 0).all()
    assert by.loc["constant velocity", ["slot_mse", "feature_mse", "fg_ari"]].isna().all(axis=None)
    seen, copied = (by.loc[name].mean() for name in ("seen", "copy last"))
    assert seen["feature_mse"] < copied["feature_mse"] and seen["fg_ari"] > copied["fg_ari"]
    assert 0 < seen["centroid_error"] < 10  # pixels of 128


def test_a_perfect_predictor_loses_what_decoding_loses(run, worlds, monkeypatch):
    model, opened = load(run), store.open(worlds / "validation.lmdb")
    real = torch.from_numpy(slots_seen(model.config, opened).slots[[*range(10)]]).float()

    def perfect(model, slots, keep, steps):
        assert torch.equal(slots[0], real[:3])  # it sees the burn-in and nothing else
        return real[None, 3 : 3 + steps]

    monkeypatch.setattr(module, "rollout", perfect)
    table = curves(model, opened, limit=1, steps=5, name="perfect").drop(columns="method")
    own = curves(model, opened, limit=1, steps=5, name="perfect", baselines=False)
    assert set(own["method"]) == {"perfect"} and own["slot_error"].notna().all()
    pd.testing.assert_frame_equal(table[:5].reset_index(drop=True), table[-5:].reset_index(drop=True))


def test_too_many_steps_are_refused(run, worlds):
    with pytest.raises(ValueError, match="at most 7 fit"):
        curves(run, worlds / "validation.lmdb", steps=20)


def test_the_slot_of_an_object_is_the_best_one_to_one_over_the_burn_in():
    random = np.random.default_rng(0)
    segments, true = (torch.from_numpy(random.integers(0, high, (3, 6, 6), np.uint8)) for high in (4, 4))
    true[0, 0, 0], segments[1, 0, 0] = 255, 255  # void, and a pixel of no slot
    objects, slot = match(segments, true, np.array([True, True, False, True]))

    def total(order):
        pairs = [(n, s) for n, s in zip(order, (1, 2, 3))]
        return sum(((a == n) & (b == s)).sum() / ((a == n) | (b == s)).sum() for a, b in zip(segments, true) for n, s in pairs).item()

    best = max(itertools.permutations([0, 1, 3]), key=total)
    assert objects.tolist() == [1, 2, 3] and slot.tolist() == list(best)
    objects, slot = match(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.tensor([1, 2]).repeat(2, 4, 2).to(torch.uint8), np.array([True]))
    assert sorted(slot.tolist()) == [-1, 0]  # more objects than slots
    assert match(torch.zeros(2, 4, 4).int(), torch.zeros(2, 4, 4).int(), np.array([True]))[0].size == 0


def test_centroids_are_middles_in_pixels_and_a_slot_without_pixels_stays():
    segments = torch.zeros(2, 4, 6, dtype=torch.uint8)[:, :, :4]
    segments[0, 1:3, 2:4] = 1
    found = centroids(segments, 2)
    assert found[0, 1].tolist() == [3.0, 2.0] and found[1, 0].tolist() == [2.0, 2.0] and np.isnan(found[1, 1]).all()
    assert filled(found)[1, 1].tolist() == [3.0, 2.0]


def test_constant_velocity_goes_straight_on_and_turns_round_at_the_side():
    own = np.array([[[50.0, 20.0]], [[np.nan, np.nan]], [[70.0, 20.0]]])  # 10 pixels a frame
    path = reflected(own, areas=np.array([np.pi * 8**2]), size=100, steps=4)
    np.testing.assert_allclose(path[:, 0, 0], [80, 90, 84, 74])  # a disc of radius 8 turns at 92
    np.testing.assert_allclose(path[:, 0, 1], 20)
    late = reflected(own[[0, 2, 1]], np.array([0.0]), 1000, 1)
    np.testing.assert_allclose(late[0, 0], [110, 20])  # 20 a frame, and two frames after it was seen
    assert np.isnan(reflected(own * np.nan, np.array([1.0]), 100, 2)).all()


def test_the_summary_has_means_and_intervals_over_clips():
    values = np.array([1.0, 2.0, 6.0])
    rows = [{"method": name, "step": 1, "clip": clip, "centroid_error": x} for name in "ba" for clip, x in enumerate(values)]
    found = summary(pd.DataFrame(rows).reindex(columns=["method", "step", "clip", *METRICS]))
    assert [*found.index] == [("b", 1), ("a", 1)]
    mean, low, high = found.loc[("a", 1), ["centroid_error", "centroid_error_low", "centroid_error_high"]]
    assert mean == 3 and 1 <= low < mean < high <= 6 and np.isnan(found.loc[("a", 1), "ari"])


def test_the_report_is_of_as_many_steps_as_the_clips_have(run, worlds):
    scores, text = Prediction.report(run, worlds / "test.lmdb")
    assert scores["steps"] == 7 and scores["clips"] == 1 and len(scores["curves"]["step"]) == 4 * 7
    assert "copy last" in text and "px, step 7" in text
    assert Prediction.selection(None, scores) == -scores["SlotFormer"]["slot_error"]
