"""08's verdicts follow from the numbers that stand above them."""

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact
from verdicts import said

from dias_lab.analysis import compare, intervals, verdicts

NAMES = dict(compare=compare, intervals=intervals, verdicts=verdicts, fisher_exact=fisher_exact, Markdown=str)


def of_clips(fg_ari: float, switches: float, spread=0.01) -> pd.DataFrame:
    """Six clips as `evaluate` has them."""
    wave = spread * np.array([1, -1, 1, -1, 1, -1])
    return pd.DataFrame({"decoder.video_fg_ari": fg_ari + wave, "decoder.switches": switches + 0 * wave})


def test_what_carrying_slots_on_and_training_are_worth():
    scored = {"frame by frame": of_clips(0.1, 60), "slots carried on": of_clips(0.6, 3), "temporal DIAS": of_clips(0.7, 2)}
    text = said("08", 0, scored=scored, scored_clips=6, **NAMES)
    assert "carrying slots on **raises** video FG-ARI: +50.0" in text and "training on clips **lowers** switches a clip: -1.0" in text
    scored["temporal DIAS"] = of_clips(0.4, 9)
    text = said("08", 0, scored=scored, scored_clips=6, **NAMES)
    assert "training on clips **lowers** video FG-ARI: -20.0" in text and "both **raises** video FG-ARI" in text
    scored["temporal DIAS"] = of_clips(0.605, 3, spread=0.2)
    assert "training on clips does not clearly change video FG-ARI" in said("08", 0, scored=scored, scored_clips=6, **NAMES)


def measured(low: float, high: float) -> pd.DataFrame:
    change = {"decoder.video_fg_ari difference": (low + high) / 2}
    change |= {"decoder.video_fg_ari difference low": low, "decoder.video_fg_ari difference high": high}
    rows = [{"setting": "slots carried on", "n": 3}, {"setting": "temporal DIAS", "n": 3} | change]
    return pd.DataFrame(rows).set_index("setting")


def test_what_the_measured_numbers_say():
    text = said("08", 1, measured=measured(0.01, 0.03), **NAMES)
    assert "temporal DIAS: video FG-ARI **above** *slots carried on* (+2.0 [+1.0, +3.0], n = 3)" in text
    assert "**below**" in said("08", 1, measured=measured(-0.03, -0.01), **NAMES)
    assert "not told apart from" in said("08", 1, measured=measured(-0.03, 0.01), **NAMES)
    assert "Nothing was measured" in said("08", 1, measured=pd.DataFrame(), **NAMES)


def test_what_breaks_identity():
    counts = pd.DataFrame({"size": [20, 100, 40, 200], "sum": [6, 2, 3, 10]}, ["exit", "crossing", "occluded", "none"])
    table = counts.assign(mean=counts["sum"] / counts["size"])
    text = said("08", 2, by_event=table, **NAMES)
    assert "exit: 30.0 in 100 (6 of 20), **above** what nothing at all costs" in text
    assert "crossing: 2.0 in 100 (2 of 100), not told apart from what nothing" in text  # as few as these may be by chance
    assert "occluded: 7.5 in 100 (3 of 40), not told apart from" in text and "nothing of these: 5.0 in 100 (10 of 200)" in text
    table.loc["crossing"] = [1000, 2, 0.002]
    assert "crossing: 0.2 in 100 (2 of 1000), **below** what nothing" in said("08", 2, by_event=table, **NAMES)
    table.loc["none"] = [200, 0, 0.0]
    assert "(6 of 20), **above** what nothing" in said("08", 2, by_event=table, **NAMES)
    assert "nothing to compare it with" in said("08", 2, by_event=table.drop("none"), **NAMES)


def test_what_the_predictor_foresees():
    def moved(before, after):
        return {"clips": pd.DataFrame({"before to now": [before] * 3, "predicted to now": [after] * 3})}

    assert "**foresees part of the change**" in said("08", 3, moved=moved(0.2, 0.1), **NAMES)
    assert "**adds to the distance**" in said("08", 3, moved=moved(0.1, 0.2), **NAMES)
    assert "**foresees nothing**" in said("08", 3, moved=moved(0.1, 0.1), **NAMES)


def test_other_settings_of_the_same_weights():
    swept = {"as trained: 2 iterations": of_clips(0.6, 1), "iterations: 1": of_clips(0.5, 1), "refresh every 2 frames": of_clips(0.7, 1)}
    text = said("08", 4, swept=swept, **NAMES)
    assert "beside them as trained: 2 iterations" in text
    assert "* iterations: 1: **hurts** (video FG-ARI -10.0" in text and "* refresh every 2 frames: **helps** (video FG-ARI +10.0" in text
    swept["iterations: 1"] = of_clips(0.601, 1, spread=0.1)
    assert "iterations: 1: changes nothing that can be told" in said("08", 4, swept=swept, **NAMES)


def of_method(setting: str, score: float, difference: float, gain: float) -> dict:
    row = {"setting": setting, "n": 3, "num_slots": 7}
    for metric in ("video_ari", "video_fg_ari", "video_mbo"):
        row[f"own.{metric}"] = score
        for name, value in (("difference", difference), ("gain", gain)):
            row |= {f"own.{metric} {name}{end}": value + step for end, step in (("", 0), (" low", -0.02), (" high", 0.02))}
    return row


def test_methods_beside_temporal_dias_and_their_own_twins():
    rows = [of_method("temporal DIAS", 0.5, np.nan, 0.2), of_method("STEVE", 0.3, -0.2, 0.01), of_method("RandSF.Q", 0.6, 0.1, -0.3)]
    beside = pd.DataFrame([dict.fromkeys(("video_ari", "video_fg_ari", "video_mbo"), 0.4)], ["k-means"])
    dias, steve, randsfq = said("08", 5, methods=pd.DataFrame(rows), beside=beside, **NAMES).splitlines()[-3:]
    assert "**temporal DIAS**: Training raises video ARI (+20.0)" in dias and "Above k-means of 7 clusters in video ARI" in dias
    assert "below temporal DIAS (-20.0, n = 3)" in steve and "does not clearly change" in steve and "clusters in nothing" in steve
    assert "above temporal DIAS (+10.0, n = 3)" in randsfq and "raining lowers" in randsfq
    none = pd.DataFrame(columns=["n", "num_slots"])
    assert "Nothing was measured" in said("08", 5, methods=none, beside=none, **NAMES)


def test_what_the_papers_claim():
    def claim(name, low, high, margin=0.0, n=3):
        return dict(claim=name, about="so", measure="video FG-ARI", n=n, gain=(low + high) / 2, low=low, high=high, margin=margin)

    found = [claim("one", 1.0, 3.0), claim("two", -3.0, -1.0), claim("three", -1.0, 1.0), claim("suffices", -1.0, 1.0, margin=2.0)]
    found += [claim("gone", np.nan, np.nan, n=0)] * 2
    one, two, three, suffices, gone = said("08", 6, claims=pd.DataFrame(found), **NAMES).splitlines()[-5:]
    assert one == "* one (so): **holds here** (video FG-ARI +2.0 [+1.0, +3.0], n = 3)"
    assert "**the opposite is seen here**" in two and "undecided here" in three and "**holds here**" in suffices
    assert gone == "* gone (so): runs are missing"
    assert "Nothing was measured" in said("08", 6, claims=pd.DataFrame(columns=["claim"]), **NAMES)
