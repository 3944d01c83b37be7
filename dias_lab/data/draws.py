"""Every random number of a training step, as a pure function of (seed, step, place in the global batch, frame).

Counter-based generators (Philox, Salmon et al. 2011) make this exact: the seed and the stream are the key, step, place
and frame the counter. So neither workers, nor the number of devices, nor a resume can change what is drawn; evaluation
draws with step 0 and the item as its place. Parts of a model say what they want by a `Request`.

Axes: B images.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

# a stream's place decides what is drawn: new ones come last; a stream of any other name gets a number from its name
STREAMS = ("shuffle", "view", "slots", "restart", "decoding", "merging", "fixed view", "permutation", "teaching")


class Request(NamedTuple):
    """Random numbers that a part of a model wants in every pass.

    `sample(random)` gives them by name; each image (frame, or batch) has a generator of its own. It must be picklable, for
    the processes that read batches: a function of a module, or functools.partial of one.
    """

    stream: str  # streams of different names never meet
    sample: Callable[[np.random.Generator], dict[str, np.ndarray]]
    per: Literal["image", "frame", "batch"] = "image"  # image (or clip); each frame of a clip; one draw, which all get


def generator(seed: int, step: int, place: int, stream: str, frame: int = 0) -> np.random.Generator:
    """The random numbers of one image (or one frame of a clip) in one step, for one purpose."""
    hashed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little") | 2**63  # above all places
    number = STREAMS.index(stream) if stream in STREAMS else hashed
    key, counter = np.array([seed, number], np.uint64), np.array([0, frame, place, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw(seed: int, step: int, places: Sequence[int], requests: Sequence[Request], frames: int = 0) -> dict[str, Tensor]:
    """What the requests ask for, by name, stacked over the images at `places` of the global batch: [B ...], on the CPU.

    With `frames` there are clips at these places: what is drawn per frame is [B F ...], and frame 0 gets what an image would.
    """
    drawn = {}
    for request in requests:
        once, framed = request.per == "batch", frames > 0 and request.per == "frame"
        whose = [(place, frame) for place in ([0] if once else places) for frame in range(frames if framed else 1)]
        samples = [request.sample(generator(seed, step, place, request.stream, frame)) for place, frame in whose]
        samples *= len(places) if once else 1
        for name in samples[0]:
            stacked = torch.from_numpy(np.stack([one[name] for one in samples]))
            drawn[name] = stacked.unflatten(0, (-1, frames)) if framed else stacked
    return drawn


def normal(name: str, *shape: int, stream: str | None = None) -> Request:
    """Standard normal numbers of this shape for each image, float32; the stream has the name unless it is given."""
    return Request(stream or name, partial(_normal, name, shape))


def integer(name: str, below: int) -> Request:
    """One number from 0 to `below` - 1 for the whole batch: int64 [B]."""
    return Request(name, partial(_integer, name, below), "batch")


def chance(name: str, stream: str, probability: float, per: str) -> Request:
    """Whether something that has this probability happens: bool [B]."""
    return Request(stream, partial(_chance, name, probability), per)


def _normal(name, shape, random):
    return {name: random.standard_normal(shape, dtype=np.float32)}


def _integer(name, below, random):
    return {name: np.asarray(random.integers(below))}


def _chance(name, probability, random):
    return {name: np.asarray(random.random() < probability)}


def dropped(values: Tensor, share: float, key: Tensor) -> Tensor:
    """Dropout of values [B ...]: a share of them is 0, the rest scaled up. Which ones follows from the keys alone, integers
    [B], on any device: the random bits are those of SplitMix64 (Steele et al. 2014)."""
    if not share:
        return values
    number = _bits(_bits(key)[:, None] + torch.arange(values[0].numel(), device=values.device))  # [B ...], flattened
    stay = (number & 2**53 - 1 >= share * 2**53).view_as(values)
    return values * stay / (1 - share) if share < 1 else values * 0


def _bits(number: Tensor) -> Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ (number >> shift & 2 ** (64 - shift) - 1)) * (factor - 2**64)
    return number ^ (number >> 31 & 2**33 - 1)
