"""One model under many settings of merging: the shortcut gives what a whole evaluation gives."""

import numpy as np
import pytest

from dias_lab.analysis.evaluate import METRICS, evaluate
from dias_lab.analysis.interventions import with_fields
from dias_lab.analysis.sweep import calibrated_threshold, merge_sweep
from dias_lab.data import store
from dias_lab.methods import build
from dias_lab.modules.redundancy import dendrogram

SETTINGS = {
    "none": {"merging": "none"},
    "merge": {"merging": "merge", "merge_threshold": 0.4},
    "to two": {"merge_threshold": 1.5, "min_kept": 2},
    ".6": {"merge_threshold": 0.6},
    ".6, cancelled": {"merge_threshold": 0.6, "guard": "cancel"},
    "gap": {"merge_rule": "gap"},
    "otsu": {"merge_rule": "otsu", "reinitialize_from": "survivor"},
    "fresh": {"merge_threshold": 0.8, "reinitialize_from": "sample", "mask_reinitialized": False},
}


@pytest.mark.parametrize("target", [{}, dict(target="quantised", codebook_size=16), dict(target="quantised", code_dim=6)])
def test_a_sweep_equals_whole_evaluations(target, small_config, small_scenes):
    model, scenes = build(small_config.replace(**target)).eval(), store.open(small_scenes / "validation.lmdb")
    table, heights = merge_sweep(model, scenes, SETTINGS)
    assert len(table) == len(SETTINGS) * len(scenes) and heights.shape == (len(scenes), small_config.num_slots - 1)
    for name, rows in table.groupby("setting"):
        whole = evaluate(with_fields(model, **SETTINGS[name]), scenes).images
        assert rows["item"].tolist() == whole["item"].tolist()
        assert rows["kept"].tolist() == whole["kept"].tolist()
        np.testing.assert_allclose(rows["reconstruction"], whole["reconstruction"], atol=1e-6)
        for metric in METRICS:
            np.testing.assert_allclose(rows[metric], whole[f"decoder.{metric}"], atol=1e-6)
    assert table.groupby("setting")["kept"].mean().nunique() > 3  # the settings do differ
    assert table["objects"].between(2, 5).all()


def test_the_heights_are_those_of_the_slots_that_are_merged(small_config, small_scenes):
    model, scenes = build(small_config).eval(), store.open(small_scenes / "validation.lmdb")
    heights = merge_sweep(model, scenes, {"none": {"merging": "none"}})[1]
    short = with_fields(model, merging="none", num_iterations=small_config.num_iterations - 1)
    slots = []
    hook = short.aggregator.register_forward_hook(lambda module, inputs, output: slots.append(output.slots))
    evaluate(short, scenes)
    hook.remove()
    np.testing.assert_allclose(heights, np.concatenate([dendrogram(part, "average").heights for part in slots]), atol=1e-5)


def test_what_acts_before_the_merge_is_refused(small_config, small_scenes):
    with pytest.raises(ValueError, match="num_slots"):
        merge_sweep(build(small_config), store.open(small_scenes / "test.lmdb"), {"more": {"num_slots": 9}})


def test_the_calibrated_threshold_parts_orders_of_magnitude_and_a_few_far_slots_do_not_move_it():
    random = np.random.default_rng(0)
    near, apart = random.uniform(0.004, 0.01, 200), random.uniform(0.2, 0.4, 200)
    threshold = calibrated_threshold(np.concatenate([near, apart]))
    assert near.max() < threshold < apart.min()
    far = np.concatenate([near, apart, np.full(20, 1.9)])
    assert near.max() < calibrated_threshold(far) < apart.min()
    assert calibrated_threshold(np.concatenate([near * 1e-6, apart])) < 0.2  # what is below the floor is alike
