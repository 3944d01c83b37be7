"""06: other numbers, other words."""

import numpy as np
import pandas as pd
import pytest
from verdicts import said, verdict_cells

from dias_lab.analysis import verdicts
from dias_lab.analysis.intervals import paired_interval

NAMES = {"np": np, "pd": pd, "verdicts": verdicts, "paired_interval": paired_interval, "Markdown": str}
METRICS = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO"}
RULES = (".1", "calibrated", "gap", "otsu")


def of_images(setting="0.1", **columns) -> pd.DataFrame:
    return pd.DataFrame({"setting": setting, "item": range(12), "objects": [2, 3, 4] * 4, **columns})


@pytest.mark.parametrize(("shift", "word"), [(0.2, ": above"), (-0.2, ": below"), (0, "not told apart")])
def test_a_run_beside_k_means(shift, word):
    noise = np.resize([0.1, -0.1], 12)
    scored = of_images(**{metric: 0.5 + shift + noise for metric in METRICS})
    baselines = pd.DataFrame({f"k-means.{metric}": np.full(12, 0.5) for metric in METRICS})
    told = said("06", 0, scored=scored, baselines=baselines, chosen="0.1", metrics=METRICS, **NAMES)
    assert told.count(word) == 3


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ([3, 4, 5], ("follows the objects", "as many as needed in the mean (+0.0)")),
        ([7, 7, 7], ("does not follow", "too many in the mean (+3.0)")),
        ([3, 2, 1], ("does not follow", "too few in the mean (-2.0)")),
    ],
)
def test_whether_the_slots_follow_the_objects(kept, words):
    scored = pd.concat([of_images(rule, kept=kept * 4) for rule in RULES])
    told = said("06", 1, scored=scored, chosen=".1", **NAMES)
    assert all(told.count(word) == 4 for word in words)


UP, FLAT, DOWN = (2.0, 1.0, 3.0), (0.1, -0.5, 0.7), (-2.0, -3.0, -1.0)


@pytest.mark.parametrize(
    ("alone", "on_top", "words"),
    [
        (UP, FLAT, "adds nothing that could be told from noise"),
        (UP, DOWN, "restarting costs some of it"),
        (UP, UP, "Restarting adds to merging"),
        (FLAT, UP, "Only restarting gains"),
        (FLAT, FLAT, "Neither gains"),
    ],
)
def test_what_re_initialization_adds(alone, on_top, words):
    rows = {"merging alone": alone, "re-initialization on top of it": on_top, "both": UP}
    gains = pd.DataFrame({label: {title: cell for title in METRICS.values()} for label, cell in rows.items()}).T
    told = said("06", 2, gains=gains, **NAMES)
    assert words in told and told.count("raises") == 3 * (1 + (alone == UP) + (on_top == UP))
    assert told.count("lowers") == 3 * (on_top == DOWN)


def test_how_wide_the_place_of_good_thresholds_is():
    names = ["0.02", "0.05", "0.1", "0.2"]
    wide = said("06", 3, sweep=pd.DataFrame({"score": [70, 70.4, 70.2, 60]}, index=names), **NAMES)
    assert "Best on these images: 0.05. From 0.02 to 0.1" in wide and "wide:" in wide and "moves by 10.4" in wide
    narrow = said("06", 3, sweep=pd.DataFrame({"score": [50, 60, 75, 60]}, index=names), **NAMES)
    assert "From 0.1 to 0.1" in narrow and "narrow:" in narrow


@pytest.mark.parametrize(
    ("loss", "words"), [([0.2, 0.1, -0.3], "**more often**"), ([0.2, -0.1, -0.3], "**less often**"), ([0.2, -0.1], "**as often**")]
)
def test_how_often_merging_does_harm(loss, words):
    assert words in said("06", 4, loss=pd.Series(loss), **NAMES)
    assert "says nothing" in said("06", 4, loss=pd.Series([], dtype=float), **NAMES)


def test_whether_a_rule_is_within_noise_of_hindsight():
    rows = [("scenes", 7, "gap", -0.01, True), ("crowded", 5, "gap", -0.12, False), ("scenes", 7, "otsu", 0.0, True)]
    study = pd.DataFrame(rows, columns=["data", "slots", "rule", "difference", "within_noise"])
    told = said("06", 5, study=study, rules=["gap", "otsu"], **NAMES)
    assert "**gap**: within noise of hindsight in 1 of 2 settings; mean -6.5, worst -12.0 (crowded, 5 slots)" in told
    assert "Within noise everywhere: otsu." in told
    assert "No rule is within noise" in said("06", 5, study=study, rules=["gap"], **NAMES)


def test_every_verdict_is_tested():
    assert len(verdict_cells("06")) == 6
