"""The AttentionTrace of a model: its maps, and the pictures that they are shown on, which may be larger than what it sees.

Axes: B images, T iterations, N slots, S pixels of the pictures' square, R pixels of what the model sees.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dias_lab.data.dataset import square
from dias_lab.trace import AttentionTrace

LARGEST_SIDE = 768  # pixels (S) of a picture that is kept
MOST_PIXELS = 2**26  # of all pictures together, three bytes each: 113 of the largest


def picture_side(count: int, image_size: int) -> int:
    """Pixels a side at which so many pictures are read and kept: no fewer than the model sees (R)."""
    return max(min(LARGEST_SIDE, math.isqrt(MOST_PIXELS // max(count, 1))), image_size)


def photo_side(paths, image_size: int) -> int:
    """The same for photo files, and folders of them: no more than the largest of them has."""
    files = [file for path in map(Path, paths) for file in (path.iterdir() if path.is_dir() else [path])]
    return max(min(picture_side(len(files), image_size), max(map(_own_side, files), default=0)), image_size)


def _own_side(file: Path) -> int:
    """Pixels a side of a photo's square; 0 where it cannot be read, which whoever decodes it says."""
    try:
        with Image.open(file) as picture:
            return min(picture.size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0


@torch.no_grad()
def traced(model, images, segments=None, seed: int = 0, names=None, about=None, passes=None) -> AttentionTrace:
    """See `Method.trace`. `passes` gives the outputs of uint8 squares [B 3 R R], some images at a time, in order."""
    was_training, config = model.training, model.config
    model.eval()
    seen, _ = square(images, None, config.image_size)
    side = min(min(images.shape[-2:]), picture_side(len(images), config.image_size))
    pictures, cut = square(images, segments, side)
    names_of = ("attention", "decoder_attention", "keep", "leader")
    parts = []
    for output in batches(model, seen, seed) if passes is None else passes(seen):
        found = [getattr(output, name) for name in names_of]
        parts.append([None if one is None else one.cpu().numpy() for one in found])
    model.train(was_training)
    attention, decoded, keep, leader = (
        None if part[0] is None else np.concatenate(part, axis=axis)
        for part, axis in zip(zip(*parts, strict=True), (1, 0, 0, 1), strict=True)
    )
    return AttentionTrace(
        images=pictures.permute(0, 2, 3, 1).cpu().numpy(),
        attention=attention.astype(np.float16),
        decoder_attention=decoded.astype(np.float16),
        keep=keep,
        segments=None if cut is None else cut.cpu().numpy().astype(np.uint8),
        names=list(names) if names is not None else [f"image {i}" for i in range(len(pictures))],
        about={"method": config.method, "seed": seed, **(about or {})},
        leader=leader,
    )


def batches(model, seen, seed: int):
    """The outputs of images, each of which draws from (seed, its place)."""
    for places in torch.arange(len(seen)).split(model.config.batch_size):
        yield model(model.normalise(seen[places]), draws=model.draw(places.tolist(), seed))
