"""The attention explorer: `explore(trace)` as a page that needs no kernel, or live in JupyterLab.

explorer.js draws, with clips.js for what has frames; this module gives them their data. The page is page.html with all
inside: these two and host.js, which starts them, the pictures, the maps as they are in the trace (float16; a byte for
those of earlier training steps). Its content security policy forbids every request and every script but this one. In a
notebook, the page stands in an iframe, so that the executed notebook and its HTML keep it alive; with `live=True`
anywidget connects it with Python.

Axes: B images, T iterations, N slots, h w locations of the feature map, H W pixels.
"""

import base64
import hashlib
import html
import json
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from dias_lab import files
from dias_lab.trace import AttentionTrace
from dias_lab.viz.payload import expected_bytes, payload

FOLDER = Path(__file__).parent
MODULE = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("explorer.js", "clips.js"))  # one, in two files
PAGE, PAGE_SCRIPT = FOLDER / "page.html", FOLDER / "host.js"
FIELDS = ("image", "stop", "location", "slot", "view", "step")  # what the explorer and Python tell each other
VIEWS = ("overlay", "heat", "masked", "segments", "difference")
FRAME_HEIGHT = 900  # pixels of the iframe, until the page in it says its own
POLICY = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"  # and this script and style alone
STYLE = ":root { color-scheme: light dark; background: Canvas } body { margin: 0 }"


def explore(
    what, attention=None, *, live: bool = False,
    image: int = 0, stop: int | str | None = None, slot: int | None = None, view: str = "overlay",
    step: int | None = None, limit_mb: float = 50,
):  # fmt: skip
    """The attention explorer of a trace, of two traces of the same images, or of an image and any attention maps.

    what       an AttentionTrace; a list of one or two of them, shown side by side; or an image uint8 [H W 3]
    attention  with an image: its maps, floats [T N h w] in [0, 1] that sum to 1 over N (what a softmax over slots gives)
    live       False: an `ExplorerPage`, which needs no kernel. True: an `Explorer` widget, whose traits Python observes
    image, stop, slot, view, step   what it opens with. Of clips, `image` is a frame, counted through all of them. `stop` is an
               iteration from 0 or "decoder", the last iteration if not given; `view` is one of overlay, heat, masked,
               segments, difference; `step` is a training step, the last one if not given, of traces that have several
    limit_mb   the largest page in MB, by an estimate before anything is encoded

    Raises ValueError for anything else, naming what is expected.
    """
    traces = _traces(what, attention)
    iterations = max(trace.num_iterations for trace in traces)
    if stop in (None, "decoder"):
        stop = iterations - 1 + (stop == "decoder" and any(trace.decoder_attention is not None for trace in traces))
    if (size := expected_bytes(traces) / 1e6) > limit_mb:
        told = f"the page of these {len(traces[0])} images would have about {size:,.0f} MB, over {limit_mb:g}"
        raise ValueError(f"{told}. Show fewer, such as trace[:100], or allow it: limit_mb={size + 1:.0f}")
    data = payload(traces)
    step = max(_steps(data), default=None) if step is None else step
    start = {"image": image, "stop": stop, "location": None, "slot": slot, "view": view, "step": step}
    try:
        _check_state(start, data)
    except traitlets.TraitError as error:
        raise ValueError(str(error)) from None
    names, what = (data["clips"]["names"], "clips") if data["clips"] else (traces[0].names, "pictures")
    title = names[0] if len(names) == 1 else f"{len(names)} {what}"
    return Explorer(data, title, start) if live else ExplorerPage(data, title, start)


class ExplorerPage:
    """The explorer as a page of its own; in a notebook, in an iframe."""

    def __init__(self, data: dict, title: str, start: dict):
        self.data, self.title, self.start = data, title, start

    def html(self) -> str:
        """The whole page. It makes no request."""
        script = MODULE + "\n" + PAGE_SCRIPT.read_text(encoding="utf-8")
        policy = f"{POLICY}; script-src {_hash(script)}; style-src {_hash(STYLE)}"
        return PAGE.read_text(encoding="utf-8").format(
            policy=policy, title=f"{html.escape(self.title)} · attention explorer", style=STYLE,
            start=_safe_json(self.start), data=_safe_json(self.data), script=script,
        )  # fmt: skip

    def to_html(self, path) -> Path:
        """Write the page to `path`, whole or not at all, and give the path. Folders that are missing are made."""
        files.write_text(path, self.html())
        return Path(path)

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html())}" title="attention explorer" allow="clipboard-write" loading="lazy" '
            f'style="width: 100%; height: {FRAME_HEIGHT}px; border: 0; display: block"></iframe>'
        )


class Explorer(anywidget.AnyWidget):
    """The explorer, live: it tells Python where it stands, and Python can move it. Values are checked on the way in.

    image     int: which picture, or which frame of all clips
    stop      int: iteration from 0; the one after the last is the decoder's
    location  [row, column] of the locked cell of the attention maps (of the first run), or None
    slot      int: the slot (of the first run) that is shown alone, or None
    view      overlay, heat, masked, segments or difference
    step      int: the training step; None: the last, or the only one

    `explorer.observe(function, names=["location"])` calls the function when the user locks a place. JupyterLab shows a widget
    while its kernel lives or its page stays open; a notebook that is opened anew shows `explore(trace)`, without live=True.
    """

    _esm = MODULE
    data = traitlets.Dict().tag(sync=True)
    image = traitlets.Int(0).tag(sync=True)
    stop = traitlets.Int(0).tag(sync=True)
    location = traitlets.List(traitlets.Int(), default_value=None, allow_none=True).tag(sync=True)
    slot = traitlets.Int(None, allow_none=True).tag(sync=True)
    view = traitlets.Unicode("overlay").tag(sync=True)
    step = traitlets.Int(None, allow_none=True).tag(sync=True)

    def __init__(self, data: dict, title: str, start: dict):
        self.title = title
        super().__init__(data=data, **start)

    @traitlets.validate(*FIELDS)
    def _checked(self, proposal):
        if self.data:
            _check_state({proposal.trait.name: proposal.value}, self.data)
        return proposal.value

    @property
    def page(self) -> ExplorerPage:
        """What needs no kernel, opening as the widget stands now."""
        return ExplorerPage(self.data, self.title, {name: getattr(self, name) for name in FIELDS})

    def _repr_mimebundle_(self, **options):
        """The widget, and beside it the page that needs no kernel, which an export of the notebook shows."""
        data, metadata = super()._repr_mimebundle_(**options)
        if not self.data:  # a stream before its first frame
            return data, metadata
        return {**data, "text/html": self.page._repr_html_()}, metadata

    def show(self, what, attention=None) -> None:
        """Show another trace (or two, or an image with its maps) in the same place; where it can, it stays where it stood.

        On the page, what stands at the last training step goes on to the new last one, and `step` hears of it.
        """
        data = payload(_traces(what, attention))
        state = {name: getattr(self, name) for name in FIELDS}
        if state["step"] not in _steps(data):
            state["step"] = max(_steps(data), default=None)
        for name, first in (("image", 0), ("stop", 0), ("slot", None), ("location", None)):
            try:
                _check_state({name: state[name]}, data)
            except traitlets.TraitError:
                state[name] = first
        with self.hold_trait_notifications():
            self.data = data
            for name, value in state.items():
                setattr(self, name, value)

    def to_html(self, path) -> Path:
        """Write the page that needs no kernel, opening as the widget stands now; gives the path."""
        return self.page.to_html(path)


def _traces(what, attention) -> list[AttentionTrace]:
    traces = list(what) if isinstance(what, (list, tuple)) else [what]
    if any(isinstance(trace, AttentionTrace) for trace in traces):
        if attention is not None:
            raise ValueError("a trace has its own attention maps: explore(trace), or explore(image, attention)")
        if not all(isinstance(trace, AttentionTrace) for trace in traces) or len(traces) > 2:
            raise ValueError(f"explore shows one trace, or two side by side, got a list of {len(traces)} things")
        if len(traces) == 2:
            _check_pair(*traces)
        return traces
    if attention is None:
        raise ValueError("explore takes a trace, two traces in a list, or an image [H W 3] and its attention maps [T N h w]")
    image, maps = files.as_array(what), files.as_array(attention)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the image must be uint8 [H W 3], got {image.dtype} {list(image.shape)}")
    if maps.ndim != 4 or 0 in maps.shape:
        told = "attention must be [T N h w] (iterations, slots, rows, columns), none of them 0"
        raise ValueError(f"{told}, got {list(maps.shape)}; one map alone is attention[None]")
    return [AttentionTrace(image[None], maps[:, None], None, np.ones((1, maps.shape[1]), bool), names=["image"])]


def _check_pair(first: AttentionTrace, second: AttentionTrace) -> None:
    """ValueError unless the two traces are of the same images."""
    if first.names != second.names:
        raise ValueError(
            f"two runs are shown on the same images, in the same order: the first trace has {', '.join(first.names[:3])}..., "
            f"the second {', '.join(second.names[:3])}... ({len(first)} and {len(second)} images); choose with trace[[0, 1]]"
        )
    if first.frames != second.frames:
        raise ValueError(
            f"two runs are shown frame by frame, and their clips have {first.frames or 'no'} and {second.frames or 'no'} frames: "
            "about['frames'] must be the same"
        )
    (height, width), (other_height, other_width) = first.images.shape[1:3], second.images.shape[1:3]
    if height * other_width != width * other_height:
        raise ValueError(f"the images of two runs must have the same shape: {width} x {height}, {other_width} x {other_height}")
    for name, one, other in zip(first.names, first.images, second.images):
        if one.shape == other.shape and not np.array_equal(one, other):
            raise ValueError(f"the two traces show different images under the name {name!r}")


def _check_state(state: dict, data: dict) -> None:
    """traitlets.TraitError for what the explorer cannot stand on."""
    run = data["runs"][0]
    stops = max(run["attention"]["stops"] for run in data["runs"]) + any(run["decoder"] for run in data["runs"])
    steps = _steps(data)
    sizes = {"image": len(data["images"]), "stop": stops, "slot": run["slots"]}
    for name, value in state.items():
        if name in sizes and value is not None and not (isinstance(value, int) and 0 <= value < sizes[name]):
            raise traitlets.TraitError(f"{name} must be an integer from 0 to {sizes[name] - 1}, got {value!r}")
        if name == "step" and value not in (*steps, None):
            there = f"one of {', '.join(map(str, steps))}" if steps else "None: the trace has no maps of training steps"
            raise traitlets.TraitError(f"step must be {there}; got {value!r}")
        if name == "view" and value not in VIEWS:
            raise traitlets.TraitError(f"view must be one of {', '.join(VIEWS)}, got {value!r}")
        if name == "location" and value is not None:
            height, width = run["attention"]["height"], run["attention"]["width"]
            if len(value) != 2 or not (0 <= value[0] < height and 0 <= value[1] < width):
                raise traitlets.TraitError(f"location must be [row, column] of a map of {height} x {width} cells, got {value!r}")


def _steps(data: dict) -> list[int]:
    """The training steps of which there are maps, of any run."""
    return sorted({step for run in data["runs"] if run["training"] for step in run["training"]["steps"]})


def _safe_json(value) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII: U+2028 and its like are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
