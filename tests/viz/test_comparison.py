import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dias_lab.viz import interval_plot, palette
from dias_lab.viz.comparison import NOISE

NAN = float("nan")
PARTS = ("mean", "std", "difference", "low", "high")
SETTINGS = {
    "baseline": (0.40, 0.01, NAN, NAN, NAN), "better": (0.50, 0.02, 0.10, 0.05, 0.15), "alike": (0.41, 0.02, 0.01, -0.05, 0.07),
    "one seed": (0.45, NAN, 0.05, NAN, NAN), "failed": (NAN,) * 5,
}  # fmt: skip


def test_differences_are_filled_where_their_interval_leaves_out_0():
    rows = [{"setting": name, "n": 3, **dict(zip([f"ari {part}" for part in PARTS], values))} for name, values in SETTINGS.items()]
    (axis,) = interval_plot(pd.DataFrame(rows), {"ari": "ARI"}, "a title").axes
    assert [text.get_text() for text in axis.texts] == ["40.0 ± 1.0", "50.0 ± 2.0", "41.0 ± 2.0", "45.0", "n/a"]
    dots = {round(line.get_xdata()[0], 6): to_hex(line.get_markerfacecolor()) for line in axis.lines if line.get_marker() == "o"}
    assert dots == {10: palette.slot_colour(0), 1: "#ffffff", 5: "#ffffff"}
    intervals = {tuple(line.get_xdata().round(6)): to_hex(line.get_color()) for line in axis.lines[1:] if line.get_marker() != "o"}
    assert intervals == {(5, 15): palette.slot_colour(0), (-5, 7): NOISE}
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"{name} (n = 3)" for name in SETTINGS]


def test_no_setting_is_refused():
    with pytest.raises(ValueError, match="no setting to draw"):
        interval_plot(pd.DataFrame(), {"ari": "ARI"})
