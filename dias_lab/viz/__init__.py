"""Pictures of attention traces: explorer, palette, overlays and figures. Needs numpy and plotting, never torch."""

import importlib

_HOME = {
    "explore": "explorer", "iterations": "figures", "gallery": "figures",
    "contact_sheet": "figures", "learning_curves": "charts", "interval_plot": "comparison", "data_sheet": "sheet",
    "use": "palette", "film_strip": "figures", "Watch": "watch", "progress_figure": "charts", "curve_panels": "charts",
    "film": "clip_figures", "frames": "clip_figures", "Stream": "stream",
}  # fmt: skip
__all__ = list(_HOME)


def __getattr__(name: str):
    """A public name from its module, imported on first use: plotly takes longer to import than a trace to load."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
