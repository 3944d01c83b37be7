"""What an interval says, in words: once, so that no two notebooks read one differently.

An interval is a mean with two bounds, `low` and `high`, which are NaN where one seed cannot give them. Scores and their
differences are fractions; words say points, x100.
"""

from dias_lab.files import as_markdown

# what DIAS's paper says of its parts: the claim, and which (setting, map) should be above which; settings of the ablations
CLAIMS = (
    ("the last map is better than the first", ("complete", "last"), ("complete", "first")),
    ("merging redundant slots helps", ("re-initialization: merge only", "decoder"), ("re-initialization: none", "decoder")),
    ("starting again from the clusters helps more", ("complete", "decoder"), ("re-initialization: merge only", "decoder")),
    ("both together help", ("complete", "decoder"), ("re-initialization: none", "decoder")),
    ("self-distillation helps the first map", ("complete", "first"), ("distillation: off", "first")),
    ("self-distillation helps the decoder's map", ("complete", "decoder"), ("distillation: off", "decoder")),
    (
        "random order makes better slots than raster order",
        ("decoder: no slot frames", "last"),
        ("decoder: raster order, no slot frames", "last"),
    ),
)


def claimed(low: float, high: float, margin: float = 0.0) -> str:
    """What an interval says of a claim that its difference is above 0; with a margin, that it is not so far below it."""
    low, high = low + margin, high + margin
    return side(low, high, "**holds here**", "**the opposite is seen here**", "undecided here", "one seed: no verdict")


def side(low: float, high: float, above: str, below: str, between: str, unknown: str | None = None) -> str | None:
    """The word for where an interval lies: above 0, below it, or with 0 in it; `unknown` for one without bounds."""
    if low != low or high != high:
        return unknown
    return above if low > 0 else below if high < 0 else between


def points(mean: float, low: float, high: float) -> str:
    """ "+1.2 [+0.3, +2.1]" of what counts in points already; the mean alone without bounds, "n/a" without a mean."""
    if mean != mean:
        return "n/a"
    return f"{mean:+.1f}" + ("" if low != low else f" [{low:+.1f}, {high:+.1f}]")


def changes(rows, metric: str) -> str:
    """A line of Markdown a setting: its difference to the baseline, and whether it is clear.

    `rows`: of a grid's table (grid_table.py), with "setting" and "`metric` difference", " low", " high". The baseline,
    which differs from nothing, has no line.
    """
    lines = []
    for _, row in rows.iterrows():
        change = _change(row, metric)
        if change[0] == change[0]:
            word = side(*change[1:], "**clear**", "**clear**", "within noise", "one seed: no interval, no verdict")
            lines.append(f"* {as_markdown(row['setting'])}: {points(*change)}: {word}")
    return "\n".join(lines)


def beside(row, metric: str, title: str, baseline: str = "DIAS") -> str | None:
    """Where a method's score lies beside the baseline's, in a row of compare.summary; None without a difference."""
    mean, low, high = (row[f"{metric} difference{end}"] for end in ("", " low", " high"))
    if mean != mean:
        return None
    word = side(low, high, "above", "below", "not told apart from")
    return f"{title} {word} {baseline} ({100 * mean:+.1f}, n = {row['n']})" if word else f"{title} not decided, one seed"


def _change(row, metric: str) -> list[float]:
    return [100 * row[f"{metric} {name}"] for name in ("difference", "low", "high")]
