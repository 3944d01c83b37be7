"""What 05 says about the numbers of an ablation."""

import pandas as pd
from verdicts import said

from dias_lab.analysis import intervals, verdicts

TITLES = ("ARI", "FG-ARI", "mBO")


def beside_its_twin(after: float) -> str:
    twins = pd.DataFrame({(title, "mean"): [20.0, 30.0] for title in TITLES})
    complete = pd.Series({f"decoder.{metric} mean": after for metric in ("ari", "fg_ari", "mbo")})
    table = type("Table", (), {"frame": pd.DataFrame([{"setting": "complete", **complete}]), "baseline": "complete"})
    return said(
        "05", 0, table=table, twins=twins, METRICS=("ari", "fg_ari", "mbo"), intervals=intervals, Markdown=lambda text: text
    )


def test_a_baseline_that_has_learned_nothing_is_called_so():
    assert beside_its_twin(0.5).count("is above") == 3
    assert beside_its_twin(0.25).count("**not above**") == 3


def claims(low: float, high: float, shapes: float) -> str:
    both = [("merging helps", metric) for metric in ("ari", "fg_ari")]
    names = dict(differences=dict.fromkeys(both, ((low + high) / 2, low, high, "this grid")), contrast=dict.fromkeys(both, shapes))
    return said("05", 1, **names, verdicts=verdicts, Markdown=lambda text: text)


def test_a_claims_verdict_follows_its_interval():
    assert claims(0.01, 0.03, 0.2).count("**holds here**") == 2 and "none of what is decided" in claims(0.01, 0.03, 0.2)
    assert claims(-0.03, -0.01, -0.2).count("**the opposite is seen here**") == 2
    assert claims(-0.01, 0.03, 0.2).count("undecided here") == 2
    assert "merging helps (ARI); merging helps (FG-ARI)" in claims(0.01, 0.03, -0.2)
