import numpy as np
import pytest

from dias_lab.viz import palette


def test_colours_are_told_apart():
    colours = palette.slot_colours(24).astype(int)
    difference = np.abs(colours[:, None] - colours).sum(axis=-1) + 999 * np.eye(24, dtype=int)
    assert colours.shape == (24, 3) and difference.min() > 60
    assert palette.slot_colour(0) == palette.slot_colour(24) == "#0072b2"
    for slot in range(24):
        assert palette.contrast_with_white(palette.rgb(palette.ink(slot))) >= 4.5
    assert palette.contrast_with_white((0, 0, 0)) == pytest.approx(21)
