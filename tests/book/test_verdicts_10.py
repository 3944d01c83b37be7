"""10's verdicts follow from the numbers that stand above them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from verdicts import said

from dias_lab import runs
from dias_lab.analysis import intervals, verdicts
from dias_lab.book import parameters

NAMES = dict(intervals=intervals, verdicts=verdicts, Markdown=str, trained="9 steps", pd=pd)
CELLS = parameters.read(runs.resolve("notebooks/10_prediction.ipynb")).cells
exec(next(cell.source for cell in CELLS if cell.source.startswith("def gains")), NAMES)
WAVE = np.array([1, -1, 1, -1, 1, -1])


def errors(own, straight, copied=10.0) -> pd.DataFrame:
    """Six clips; `own` and `straight`: errors by step of SlotFormer and constant velocity."""
    rows = []
    for method, values in {"SlotFormer": own, "copy last": [copied] * len(own), "constant velocity": straight}.items():
        for step, value in enumerate(values, start=1):
            for clip, wave in enumerate(WAVE * (0.1 if method == "SlotFormer" else 0)):
                rows.append({"method": method, "step": step, "clip": clip, "centroid_error": value + wave, "slot_mse": value + wave})
    return pd.DataFrame(rows)


def test_from_which_step_on_it_is_no_longer_better():
    slots, copying, straight = said("10", 0, table=errors([2, 4, 9, 12], [3, 4, 5, 6]), **NAMES).splitlines()[-3:]
    assert "copying, by slot error: better up to step 3, **no longer from step 4 on**; clearly worse at 1 of 4" in slots
    assert "+8.0 [" in copying and "at the first step, -2.0 [" in copying
    assert "constant velocity, by centroids: better up to step 1, **no longer from step 2 on**; clearly worse at 2 of 4" in straight


def test_better_throughout_never_and_again():
    always, _, never = said("10", 0, table=errors([2, 3, 4], [1, 2, 3]), **NAMES).splitlines()[-3:]
    assert "better **at every step**" in always and "**at no step better**; clearly worse at 3 of 3" in never
    late = said("10", 0, table=errors([2, 4, 4, 4], [1, 5, 4, 5]), **NAMES).splitlines()[-1]
    assert "**not better from the first step on** (again at 2, 4); clearly worse at 1 of 4 steps" in late


def counterfactual(gain: float, spread=0.1, clips=6) -> str:
    rows = {"clip": range(clips), "toy": "car", "with": 9.0, "without": 9 - gain + spread * WAVE[:clips]}
    return said("10", 1, apart=pd.DataFrame(rows), **NAMES)


def test_whether_the_counterfactual_is_one():
    assert "is **nearer** to the world without the toy: +2.0 [" in counterfactual(2.0)
    assert "**farther** from" in counterfactual(-2.0) and "**not told apart**" in counterfactual(0.1, spread=3)
    assert "1 clips in which it could show: no verdict" in counterfactual(2.0, clips=1)
    assert "0 clips" in counterfactual(2.0, clips=0)


def test_whether_slots_help_to_answer():
    exam = SimpleNamespace(clips=range(6))
    shares = {"blind": pd.DataFrame({"count": 0.5 + 0.1 * WAVE, "half": 0.5})}
    shares["seen"] = shares["blind"].assign(count=0.8)
    shares["rolled out"] = pd.DataFrame({"count": 0.2 + 0.1 * WAVE, "half": 0.5 + 0.2 * WAVE})
    count, half = said("10", 2, shares=shares, exam=exam, reader_steps=9, **NAMES).splitlines()[-2:]
    assert "count: seen **above** blind (+30.0 [" in count and "rolled out **below** blind (-30.0 [" in count
    assert "half: seen not told apart from blind (+0.0" in half and "rolled out not told apart" in half


def test_what_was_measured_at_length():
    def claim(name, low, high, n=3):
        return dict(claim=name, about="so", measure="px", against="beside it", n=n, gain=(low + high) / 2, low=low, high=high)

    found = pd.DataFrame([claim("one", 1, 3), claim("one", -3, -1), claim("two", -1, 1), claim("three", np.nan, np.nan, n=1)])
    text = said("10", 3, claims=found, **NAMES)
    assert "* one (so)\n    * beside it, px: **holds here** (+2.0 [+1.0, +3.0], n = 3)\n    * beside it, px: **the opposite" in text
    assert "undecided here" in text and "no verdict" in text
    assert "Nothing was measured" in said("10", 3, claims=pd.DataFrame(), **NAMES)
