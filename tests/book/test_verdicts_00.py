"""00's answer follows the numbers under which it stands."""

import numpy as np
from verdicts import said, verdict_cells

from dias_lab.analysis import verdicts
from dias_lab.analysis.intervals import paired_interval


def answer(trained: float, untrained: float) -> str:
    spread = np.linspace(-0.1, 0.1, 24)
    fg_ari = {"untrained: last map": untrained + spread, "untrained: decoder map": untrained - 0.2 + spread}
    fg_ari["trained: decoder map"] = trained + spread[::-1]
    rows = {name: {"FG-ARI": values.mean()} for name, values in fg_ari.items()}
    names = {"found": fg_ari, "fg_ari": fg_ari, "rows": rows, "paired_interval": paired_interval, "verdicts": verdicts}
    return said("00", 0, **names)


def test_every_verdict_of_the_notebook_has_its_test():
    assert len(verdict_cells("00")) == 1


def test_whether_training_finds_more_of_the_things():
    assert "things? yes." in answer(0.7, 0.3) and "over untrained: last map: +40.0" in answer(0.7, 0.3)
    assert "no, fewer" in answer(0.3, 0.7) and "do not decide it" in answer(0.5, 0.5)
