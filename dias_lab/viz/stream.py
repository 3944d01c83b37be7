"""A clip that does not end, live in JupyterLab: the explorer of its last frames, which grows while a cell runs.

Axes: T iterations, N slots, h w locations of the feature map, H W pixels.
"""

from dataclasses import replace

import numpy as np
import traitlets

from dias_lab.files import as_array
from dias_lab.viz.explorer import VIEWS, Explorer, _traces
from dias_lab.viz.payload import payload


class Stream(Explorer):
    """The explorer of a stream's last `window` frames, which are added one by one:

        stream = Stream()
        display(stream)
        with stream:
            for image in source:
                output, state = model.step(...)
                stream.add(image, output.attention[:, 0])
                if stream.stopped:
                    break

    Its stop button sets `stopped`. Most kernels hear of it only after the cell: half a second later JupyterLab interrupts the
    block, as the kernel's own stop button does anywhere, and the cell goes on after it. The page shows frames as fast as it can
    draw them, and stays where somebody looks back. `stream.page` is the page of what the window holds; it needs no kernel.
    """

    latest = traitlets.Dict().tag(sync=True)  # the last frame added, as extend() in clips.js takes it
    stopped = traitlets.Bool(False).tag(sync=True)  # somebody has pressed the button
    running = traitlets.Bool(False).tag(sync=True)  # inside of `with stream`

    def __init__(self, window: int = 240, view: str = "overlay"):
        if window < 2 or view not in VIEWS:
            raise ValueError(f"a stream keeps at least 2 frames and opens with one of {', '.join(VIEWS)}; got {window}, {view!r}")
        self.window, self.number, self.kept = window, 0, None
        super().__init__({}, "stream", {"view": view})

    def add(self, image, attention, keep=None) -> None:
        """Add a frame: image uint8 [H W 3], its maps [T N h w], and keep bool [N] of the slots that are not merged away.

        A frame that has fewer iterations than the first has its first map at the front as well. Raises ValueError for other
        arrays, and for a frame that has other sizes than the first.
        """
        maps = as_array(attention)
        if self.number and maps.ndim == 4 and len(maps):
            maps = np.concatenate([maps[:1]] * (self.sizes["attention"][0] - len(maps)) + [maps])
        (trace,) = _traces(image, maps)
        if keep is not None:
            trace = replace(trace, keep=as_array(keep)[None])
        sizes = {"image": list(trace.images.shape[1:]), "attention": list(trace.attention[:, 0].shape)}
        if self.number and sizes != self.sizes:
            raise ValueError(f"frame {self.number} of the stream has {sizes}, and the first has {self.sizes}")
        data = payload([replace(trace, names=[str(self.number)], about={"frames": 1})])
        before, self.kept, self.sizes = self.kept, trace.keep[0], sizes
        if self.number == 0:
            data["clips"]["names"] = [self.title]
            self.data, self.stop = data, trace.num_iterations - 1
        else:
            (image,), (run,) = data["images"], data["runs"]
            latest = {
                "number": self.number, "window": self.window, "image": image, "keep": run["keep"][0],
                "attention": run["attention"]["images"][0], "shares": [shares[0] for shares in run["story"]["shares"]],
                "merged": np.flatnonzero(before & ~self.kept).tolist(), "revived": np.flatnonzero(~before & self.kept).tolist(),
            }  # fmt: skip
            extend(self.data, **latest)  # in place: a page that is opened later gets it all
            self.latest = latest
        self.number += 1

    def __enter__(self) -> "Stream":
        self.stopped, self.running = False, True
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        self.stopped, self.running = True, False
        return kind is KeyboardInterrupt


def extend(data: dict, number: int, window: int, image: dict, keep, attention: str, shares, merged, revived) -> None:
    """Add a frame to a stream's payload, and drop the first of more than `window`. clips.js has the same."""
    clips, (run,) = data["clips"], data["runs"]
    story, at = run["story"], clips["frames"]
    lists = [data["images"], run["keep"], run["attention"]["images"], *story["shares"]]
    for values, value in zip(lists, [image, keep, attention, *shares], strict=True):
        values.append(value)
    story["merged"] += [[at, slot, None] for slot in merged]
    story["revived"] += [[at, slot] for slot in revived]
    clips["frames"] += 1
    if clips["frames"] > window:
        for values in lists:
            del values[0]
        for kind in ("merged", "revived"):
            story[kind] = [[frame - 1, *what] for frame, *what in story[kind] if frame]
        clips["first"], clips["frames"] = clips["first"] + 1, window
