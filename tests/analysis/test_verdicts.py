"""An interval's words: clear only where 0 is outside, and never without bounds."""

import pandas as pd
import pytest

from dias_lab.analysis import verdicts

NAN = float("nan")


@pytest.mark.parametrize(
    "low, high, expected",
    [(0.1, 0.3, "up"), (-0.3, -0.1, "down"), (-0.1, 0.1, "open"), (0.0, 0.2, "open"), (-0.2, 0.0, "open"), (NAN, NAN, None)],
)
def test_only_an_interval_without_zero_is_a_finding(low, high, expected):
    assert verdicts.side(low, high, "up", "down", "open") == expected
    assert verdicts.side(low, high, "up", "down", "open", "one seed") == (expected or "one seed")


def test_points():
    assert verdicts.points(1.24, 0.31, 2.05) == "+1.2 [+0.3, +2.0]"
    assert verdicts.points(-1.2, NAN, NAN) == "-1.2" and verdicts.points(NAN, NAN, NAN) == "n/a"


@pytest.fixture
def rows():
    """A grid's table: the baseline, a setting that harms, one within noise, one of one seed."""
    rows = pd.DataFrame({"setting": ["complete", "off", "half", "alone"]})
    rows["last.ari difference"], rows["last.ari low"] = [NAN, -0.05, 0.01, 0.02], [NAN, -0.08, -0.01, NAN]
    return rows.assign(**{"last.ari high": [NAN, -0.02, 0.03, NAN]})


def test_a_line_for_each_setting_but_the_baseline(rows):
    assert verdicts.changes(rows, "last.ari").splitlines() == [
        "* off: -5.0 [-8.0, -2.0]: **clear**",
        "* half: +1.0 [-1.0, +3.0]: within noise",
        "* alone: +2.0: one seed: no interval, no verdict",
    ]


def test_a_claim_that_a_part_is_needed(rows):
    _, off, half, alone = (row for _, row in rows.iterrows())
    assert verdicts.lowers(off, "last.ari", "this grid") == "**holds here** (-5.0 [-8.0, -2.0], this grid)"
    assert verdicts.lowers(half, "last.ari", "x") == "**is not seen here: within noise** (+1.0 [-1.0, +3.0], x)"
    assert verdicts.lowers(alone, "last.ari", "x") == "+2.0 points, one seed: no verdict"
    raised = -off.drop("setting").astype(float).rename({"last.ari low": "last.ari high", "last.ari high": "last.ari low"})
    assert verdicts.lowers(raised, "last.ari", "x").startswith("**the opposite is seen here** (+5.0 [+2.0, +8.0]")


def test_a_method_beside_the_baseline():
    def row(mean, low, high):
        return {"own.ari difference": mean, "own.ari difference low": low, "own.ari difference high": high, "n": 3}

    assert verdicts.beside(row(0.02, 0.01, 0.03), "own.ari", "ARI") == "ARI above DIAS (+2.0, n = 3)"
    assert verdicts.beside(row(-0.02, -0.03, -0.01), "own.ari", "ARI", "SPOT") == "ARI below SPOT (-2.0, n = 3)"
    assert verdicts.beside(row(0.0, -0.01, 0.01), "own.ari", "ARI") == "ARI not told apart from DIAS (+0.0, n = 3)"
    assert verdicts.beside(row(0.02, NAN, NAN), "own.ari", "ARI") == "ARI not decided, one seed"
    assert verdicts.beside(row(NAN, NAN, NAN), "own.ari", "ARI") is None
