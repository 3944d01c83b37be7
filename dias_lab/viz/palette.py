"""The colours: slot n looks the same in every figure.

The first seven are those of Okabe and Ito (2008). The others were chosen greedily, each as far as possible from all
before it, from the void's grey and from the background, in OKLab, by the smallest of its distances in normal sight
(weight 0.8), protanopia and deuteranopia (1.25 each; Machado et al. 2009). Colours alone never carry a figure: slots
are numbered as well.
"""

import numpy as np
from PIL.ImageColor import getrgb as rgb

from dias_lab import trace

SLOT_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#0000fc",
    "#844860", "#906cfc", "#600cb4", "#78cc90", "#006000", "#cc189c", "#840078", "#84fc9c",
    "#fc486c", "#b40c24", "#5454d8", "#3c90d8", "#9cccfc", "#00cc54", "#fca8c0", "#30900c",
)  # fmt: skip
VOID = "#d9d9d9"  # overlap, too
BACKGROUND = "#303438"  # label 0 of true segments
MERGED = "#8a8a8a"  # text about slots that were merged away
MAPS = "viridis"  # attention maps, always from 0 to 1
_AXIS = {"gridcolor": "#e6e6e6", "linecolor": "#8a8a8a", "zeroline": False, "ticks": "outside"}
TEMPLATE = {"layout": {  # of plotly: white, the slot colours in order, viridis
    "font": {"family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", "size": 13, "color": "#222222"},
    "title": {"x": 0, "xref": "paper", "font": {"size": 15}},
    "colorway": SLOT_COLOURS, "colorscale": {"sequential": "Viridis"},
    "paper_bgcolor": "white", "plot_bgcolor": "white", "xaxis": _AXIS, "yaxis": _AXIS, "hovermode": "closest",
}}  # fmt: skip


def slot_colour(slot: int) -> str:
    """The colour of a slot, counted from 0; they repeat after 24."""
    return SLOT_COLOURS[slot % len(SLOT_COLOURS)]


def slot_colours(num_slots: int) -> np.ndarray:
    """The first colours as uint8 [num_slots 3]."""
    return np.array([rgb(slot_colour(slot)) for slot in range(num_slots)], np.uint8).reshape(-1, 3)


def true_colours() -> np.ndarray:
    """Colours of the 256 labels of true segments, uint8 [256 3].

    Objects take the palette from its other end, so that nobody reads a slot into them.
    """
    colours = slot_colours(256)
    colours[1:] = slot_colours(len(SLOT_COLOURS))[::-1][np.arange(255) % len(SLOT_COLOURS)]
    colours[trace.BACKGROUND] = rgb(BACKGROUND)
    colours[trace.OVERLAP :] = rgb(VOID)
    return colours


def ink(slot: int, kept: bool = True) -> str:
    """The slot's colour for text on white: darkened until its contrast is at least 4.5 (WCAG AA). Grey if not kept."""
    if not kept:
        return MERGED
    colour = np.array(rgb(slot_colour(slot)), float)
    while contrast_with_white(colour) < 4.5:
        colour *= 0.95
    return "#" + bytes(colour.astype(np.uint8)).hex()


def contrast_with_white(colour) -> float:
    """The contrast ratio of WCAG 2, from 1 (white) to 21 (black)."""
    share = np.asarray(colour, float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


def use() -> None:
    """Make the package's colours the default of plotly and matplotlib. Figures of `viz` have them anyway."""
    import plotly.io  # here, since the explorer and the exports need neither
    from matplotlib import pyplot

    pyplot.rcParams["axes.prop_cycle"] = pyplot.cycler(color=SLOT_COLOURS[:6])
    plotly.io.templates["dias_lab"] = TEMPLATE
    plotly.io.templates.default = "dias_lab"
