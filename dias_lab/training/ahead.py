"""The next batch is made ready while the device still works on the last one.

On a GPU a stream of its own copies the images from pinned memory, normalises them and runs the frozen backbone. The step
only waits for it where it has caught up. On a CPU there is nothing to overlap: the step prepares its batch itself.
"""

from collections.abc import Callable, Iterable, Iterator

import torch


def ahead(batches: Iterable[dict], prepare: Callable[[dict], tuple], device: torch.device) -> Iterator[dict]:
    """The batches, on a GPU with what `prepare` makes of each one as "prepared": dicts of tensors or None."""
    if device.type != "cuda":
        yield from batches
        return
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    begun, older = main.record_event(), None  # the step before the one that is running has ended
    for batch in batches:
        if older is not None:
            older.synchronize()  # the host is never more than two steps ahead: what it prepares takes memory at once
        older = begun
        side.wait_event(begun)
        with torch.cuda.stream(side):
            prepared = prepare(batch)
        begun = main.record_event()
        main.wait_stream(side)
        for tensor in (value for given in prepared for value in given.values() if value is not None):
            tensor.record_stream(main)  # its memory is not reused before the step has read it
        yield {**batch, "prepared": prepared}
