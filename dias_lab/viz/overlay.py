"""Label maps and attention maps as RGB images, in numpy: colours, blends, outlines, heat maps.

Axes: H W pixels; leading axes pass through.
"""

import matplotlib
import numpy as np
from PIL import Image

from dias_lab.viz import palette


def colour_segments(segments: np.ndarray) -> np.ndarray:
    """Slots' segments uint8 [... H W] in the slots' colours, uint8 [... H W 3]."""
    return palette.slot_colours(256)[segments]


def colour_true_segments(segments: np.ndarray) -> np.ndarray:
    """True segments uint8 [... H W] as uint8 [... H W 3]: background dark, void and overlap light grey."""
    return palette.true_colours()[segments]


def blend(image: np.ndarray, colours: np.ndarray, alpha=0.5) -> np.ndarray:
    """`colours` laid over `image`, both [... H W 3] of 0..255. `alpha`, 0..1, is their share: a number or [... H W]."""
    alpha = np.asarray(alpha, np.float32)
    alpha = alpha[..., None] if alpha.ndim else alpha
    return np.round(image * (1 - alpha) + colours * alpha).astype(np.uint8)


def draw_outlines(image: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """`image` uint8 [... H W 3], white where a pixel's right or lower neighbour has another label in `segments` [... H W]."""
    edges = np.zeros(segments.shape, bool)
    edges[..., :-1, :] |= segments[..., :-1, :] != segments[..., 1:, :]
    edges[..., :-1] |= segments[..., :-1] != segments[..., 1:]
    return np.where(edges[..., None], np.uint8(255), image)


def heat_map(maps: np.ndarray) -> np.ndarray:
    """Maps [...] as uint8 [... 3] in viridis, 0 to 1 whatever the maps' own range."""
    return matplotlib.colormaps[palette.MAPS](np.asarray(maps, np.float32).clip(0, 1), bytes=True)[..., :3]


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture uint8 [H W 3], smoothed, or labels uint8 [H W], which never mix, in another size."""
    filtered = Image.Resampling.LANCZOS if image.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((width, height), filtered))
