"""03's verdicts follow the numbers under which they stand."""

from types import SimpleNamespace

import pytest
from verdicts import said, verdict_cells

TITLES = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO"}


def scores(value: float, last: float | None = None) -> dict:
    maps = {"first": 0.1, "last": value if last is None else last, "decoder": value}
    return {name: dict.fromkeys(TITLES, share) for name, share in maps.items()}


def test_every_verdict_of_the_notebook_has_its_test():
    assert len(verdict_cells("03")) == 4


def test_the_loss():
    config = SimpleNamespace(steps=1800)
    assert "0.900 -> 0.200" in said("03", 0, first=0.9, last=0.2, config=config)
    with pytest.raises(AssertionError, match="did not fall"):
        said("03", 0, first=0.9, last=0.9, config=config)


def test_curves_that_rise_and_curves_that_do_not():
    def words(end, last=None):
        lines = [{"loss": 1.0}, {"validation": scores(end, last)}]
        names = {"maps": ["first", "last", "decoder"], "metrics": list(TITLES), "TITLES": TITLES}
        return said("03", 1, untrained=SimpleNamespace(scores=scores(0.3)), lines=lines, **names)

    risen, flat, mixed = words(0.5), words(0.31), words(0.5, last=0.05)
    assert "rose" in risen and "fell" not in risen and "stayed" not in risen
    assert "stayed within 2 points" in flat and "rose" not in flat
    assert "ARI of the last map from 30.0 to 5.0" in mixed.partition("fell: ")[2]
    assert "last map +40.0 beside the first" in risen and "last map -5.0 beside the first" in mixed


def test_whose_map_is_nearer_to_things_than_to_parts():
    def words(things, parts):
        curves = {"things": things, "parts": parts}
        agreement = {(which, name): values for which in ("last", "decoder") for name, values in curves.items()}
        return said("03", 2, agreement=agreement, wholes=curves, steps_seen=[0, 100, 200])

    turned = words([20, 40, 60], [30, 35, 30])
    assert "nearer to the things from step 100 on" in turned and "curve rises: from 20 to 60" in turned
    assert "never nearer to the parts" in words([40, 40, 41], [30, 30, 30]) and "is flat" in words(
        [40, 40, 41], [30, 30, 30]
    )
    stayed = words([40, 30, 20], [50, 50, 50])
    assert "nearer to the parts still at the last step" in stayed and "curve falls" in stayed


def test_a_run_that_kept_no_maps_has_no_word_on_them():
    assert said("03", 2, agreement={}, wholes={}) == ""


def test_scores_on_test_beside_those_on_validation():
    def words(there):
        return said("03", 3, lines=[{"validation": scores(0.5)}], test=SimpleNamespace(scores=scores(there)))

    assert "as good as" in words(0.52) and "worse than" in words(0.3) and "better than" in words(0.7)
