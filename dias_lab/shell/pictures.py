"""The shell's commands on attention traces, explore and segments. They need no torch."""

from pathlib import Path

import tyro

from dias_lab import viz
from dias_lab.shell import refusing
from dias_lab.trace import AttentionTrace
from dias_lab.viz.export import export, stop_of


def explore(traces: tyro.conf.Positional[list[Path]], out: Path):
    """Write a trace, or two of the same images, as an HTML page to explore offline.

    The page holds all that it shows: the images, and where in them every slot looks, iteration by iteration. Two traces
    stand side by side.

    Args:
        traces: one or two files that `python -m dias_lab trace` wrote
        out: the page
    """
    with refusing():
        loaded = [AttentionTrace.load(path) for path in traces]
        explorer = viz.explore(loaded)
    explorer.to_html(out)
    print(f"wrote {out}: {len(loaded[0])} images, {out.stat().st_size / 1e6:.2f} MB; open it in a browser")


def segments(trace: tyro.conf.Positional[Path], out: Path, map: str | None = None):
    """Write the slots' segments of a trace as label PNGs and COCO RLE JSON.

    A pixel belongs to the slot that attends to it most; its label is that slot's number plus 1. segments.json has the
    same segments as the COCO data set writes them: run-length encoded (RLE) masks, which pycocotools reads.

    Args:
        trace: a file that `python -m dias_lab trace` wrote
        out: the folder for one PNG an image, and segments.json
        map: whose segments: an iteration of the slots, counted from 1, or decoder; if not given, the last of all
    """
    with refusing():
        loaded = AttentionTrace.load(trace)
        which = stop_of(loaded, map)
    print(f"wrote {export(loaded, out, which)} and {len(loaded)} label maps beside it")
