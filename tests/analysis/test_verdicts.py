"""An interval's words: clear only where 0 is outside, and never without bounds."""

import tomllib

import pandas as pd
import pytest

from dias_lab import runs
from dias_lab.analysis import verdicts
from dias_lab.analysis.evaluate import MAPS

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


def test_a_claim_holds_only_where_its_interval_leaves_zero_out():
    words = [verdicts.claimed(*bounds) for bounds in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (NAN, NAN))]
    assert words == ["**holds here**", "**the opposite is seen here**", "undecided here", "one seed: no verdict"]
    bounds = ((-0.1, 0.1), (-0.3, 0.1), (-0.4, -0.3))
    words = [verdicts.claimed(*one, margin=0.2) for one in bounds]  # no more than so much is lost
    assert words == ["**holds here**", "undecided here", "**the opposite is seen here**"]


def test_the_papers_claims_are_about_settings_of_the_ablations():
    files = [tomllib.loads(runs.resolve(f"notebooks/grids/{name}.toml").read_text()) for name in ("ablations", "ablations_start")]
    for claim, *both in verdicts.CLAIMS:
        homes = [{setting for setting, _ in both} <= {one["name"] for one in file["variants"]} for file in files]
        assert any(homes), claim
        assert both[0] != both[1] and {which for _, which in both} <= set(MAPS)


def test_a_method_beside_the_baseline():
    def row(mean, low, high):
        return {"own.ari difference": mean, "own.ari difference low": low, "own.ari difference high": high, "n": 3}

    assert verdicts.beside(row(0.02, 0.01, 0.03), "own.ari", "ARI") == "ARI above DIAS (+2.0, n = 3)"
    assert verdicts.beside(row(-0.02, -0.03, -0.01), "own.ari", "ARI", "SPOT") == "ARI below SPOT (-2.0, n = 3)"
    assert verdicts.beside(row(0.0, -0.01, 0.01), "own.ari", "ARI") == "ARI not told apart from DIAS (+0.0, n = 3)"
    assert verdicts.beside(row(0.02, NAN, NAN), "own.ari", "ARI") == "ARI not decided, one seed"
    assert verdicts.beside(row(NAN, NAN, NAN), "own.ari", "ARI") is None
