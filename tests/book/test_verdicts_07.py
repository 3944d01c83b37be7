"""07's verdicts follow from the numbers that stand above them."""

import numpy as np
import pandas as pd
from verdicts import said

from dias_lab.analysis import compare, verdicts


def results(difference=-0.1, gain=0.2, spread=0.05) -> pd.DataFrame:
    """Two methods as `compare.summary` has them."""
    rows = []
    for name in ("DIAS", compare.STAGE_2):
        row = {"setting": name, "n": 3, "num_slots": 7}
        for column in ("own.ari", "own.fg_ari", "own.mbo"):
            row[column] = 0.6 if name == "DIAS" else 0.6 + difference
            for word, value in (("difference", np.nan if name == "DIAS" else difference), ("gain", gain)):
                row |= {f"{column} {word}": value, f"{column} {word} low": value - spread, f"{column} {word} high": value + spread}
        rows.append(row)
    return pd.DataFrame(rows)


def floors(score: float) -> pd.DataFrame:
    return pd.DataFrame({metric: [score] for metric in ("ari", "fg_ari", "mbo")}, index=["k-means, 7"])


def test_what_the_scores_say():
    names = dict(compare=compare, Markdown=str)
    worse = said("07", 0, results=results(), floors=floors(0.55), **names)
    assert "ARI below DIAS (-10.0, n = 3)" in worse and "Training raises ARI (+20.0)" in worse
    assert worse.count("Above k-means of 7 clusters in ARI, FG-ARI, mBO") == 1 and "in nothing" in worse
    better = said("07", 0, results=results(0.1, -0.2), floors=floors(0.9), **names)
    assert "FG-ARI above DIAS (+10.0" in better and "Training lowers ARI (-20.0)" in better and better.count("in nothing") == 2
    unclear = said("07", 0, results=results(0.01, 0.01), floors=pd.DataFrame(), **names)
    assert "mBO not told apart from DIAS" in unclear and "does not clearly change ARI" in unclear and "k-means" not in unclear
    assert "Nothing" in said("07", 0, results=pd.DataFrame(), floors=pd.DataFrame(), **names)


def test_whether_dias_costs_half():
    names = dict(compare=compare, verdicts=verdicts, Markdown=str)
    half = said("07", 1, shares={"seconds": 0.5}, results=results(), **names)
    assert "about half (50%)" in half and "below DIAS" in half
    dear = said("07", 1, shares={"seconds": 0.9, "operations": np.nan}, results=results(0.2), **names)
    assert "more than half (90%)" in dear and "not measured" in dear and "above DIAS" in dear
    assert "less than half" in said("07", 1, shares={"seconds": 0.2}, results=pd.DataFrame(), **names)


def test_what_each_gets_wrong():
    causes = ["split", "merge", "leak", "background", "position"]
    one = pd.DataFrame([[0.8, 0.1, 0.1, 0.1, 0.0], [0.1, 0.1, 0.1, 0.6, 0.0]], ["A", "B"], causes)
    text = said("07", 2, failures=one, Markdown=str)
    assert "**A**: most of all split (0.80); set apart by more split" in text and "less split (0.10, the others 0.80)" in text
    alike = said("07", 2, failures=pd.concat([one[:1], one[:1].rename({"A": "B"})]), Markdown=str)
    assert alike.count("nothing that sets it apart") == 2
    assert "Not measured" in said("07", 2, failures=pd.DataFrame(), Markdown=str)


def swept(first_with: float, first_without: float, seeds=2) -> pd.DataFrame:
    rows = []
    for name, first in (("SmoothSA", first_with), ("Slot Attention", first_without)):
        for seed in range(seeds):
            for number, score in ((1, first), (2, first), (3, 0.6)):
                rows.append({"method": name, "seed": seed, "iterations": number, "fg_ari": score, "mbo": score})
    return pd.DataFrame(rows)


def test_whether_preheating_saves_iterations():
    names = dict(pd=pd, Markdown=str)
    assert "+5.0 with it, +30.0 without: **less** with preheating" in said("07", 3, swept=swept(0.55, 0.3), **names)
    assert "**more** with preheating" in said("07", 3, swept=swept(0.3, 0.5), **names)
    assert "**not always less**" in said("07", 3, swept=swept(0.3, 0.3), **names)
    assert "one seed: not decided" in said("07", 3, swept=swept(0.5, 0.3, seeds=1), **names)
    assert "Not measured" in said("07", 3, swept=pd.DataFrame(), **names)


def test_which_rows_ask_the_slots():
    falling = np.linspace(1, 0, 12)
    by_row = pd.DataFrame({"raster": falling / falling.sum(), "reverse": falling[::-1] / falling.sum(), "all": np.full(12, 1 / 12)})
    text = said("07", 4, by_row=by_row, Markdown=str)
    assert "raster: 45%" in text and text.index("early rows ask more") < text.index("late rows ask more") < text.index("spread")
    assert "Not measured" in said("07", 4, by_row=pd.DataFrame(), Markdown=str)
