"""Makes docs/film.gif: five unseen pictures, and what slots take in them while a model learns.

    python -m dias_lab train --preset scenes --seed 43 --trace-images 16 --evaluate-every 500 --run-dir runs/film
    python docs/film.py [RUN]    # by default runs/film
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dias_lab import AttentionTrace, runs
from dias_lab.viz.overlay import colour_segments, colour_true_segments

SHOWN, GAP, HEAD = [0, 1, 2, 3, 4], 6, 22  # pictures of the trace; pixels between them, and above them
FIRST, STEP, LAST = 1200, 220, 4000  # milliseconds that a frame stays


def panel(pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 [B H W 3] in a row, with a white gap after each."""
    return np.concatenate([np.pad(one, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for one in pictures], axis=1)


def frame(trace: AttentionTrace, step: int) -> Image.Image:
    """The pictures, their true segments, the last and the decoder's map of one training step."""
    now = trace.at(step)
    last, decoder = now.segments_of(now.num_iterations - 1), now.segments_of("decoder")
    rows = [trace.images, colour_true_segments(trace.segments), colour_segments(last), colour_segments(decoder)]
    pixels = np.concatenate([panel(row) for row in rows])
    pixels = np.pad(pixels, ((HEAD, 0), (GAP, 0), (0, 0)), constant_values=255)
    drawn = Image.fromarray(pixels)
    text = f"training step {step:,}     rows: picture, truth, last map, decoder's map"
    ImageDraw.Draw(drawn).text((GAP, 5), text, fill="black")
    return drawn


trace = AttentionTrace.load(runs.resolve(*sys.argv[1:2] or ["runs/film"]) / "training.npz")[SHOWN]
steps = trace.training_steps.tolist()
frames = [frame(trace, step) for step in steps]
palette = frames[-1].quantize(160, dither=Image.Dither.NONE)
frames = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
times = [FIRST, *[STEP] * (len(steps) - 2), LAST]
path = Path(__file__).with_suffix(".gif")
frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)
print(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB, {len(steps)} steps")
