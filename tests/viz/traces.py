"""Traces of random maps, and the shell's commands, for the tests of this folder."""

from dataclasses import replace

import numpy as np

from dias_lab.__main__ import main
from dias_lab.trace import AttentionTrace

B, T, N, h, w, H, W = 3, 2, 4, 5, 6, 20, 24
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028&amp;\"'"


def some_trace(images=B, iterations=T, slots=N, cells=(h, w), size=(H, W), seed=0, pictures=None, **fields):
    """A trace of random maps; the last slot of the first image is merged away in the last maps."""
    random = np.random.default_rng(seed)
    maps = random.dirichlet(np.full(slots, 0.5), (iterations + 1, images, *cells)).transpose(0, 1, 4, 2, 3)
    keep = np.ones((images, slots), bool)
    if slots > 2:
        keep[0, -1] = False
        maps[-2:, 0, -1] = 0
        maps[-2:, 0] /= maps[-2:, 0].sum(axis=1, keepdims=True)
    arrays = {
        "images": np.random.default_rng(1).integers(0, 256, (images, *size, 3), dtype=np.uint8) if pictures is None else pictures,
        "attention": maps[:iterations], "decoder_attention": maps[iterations], "keep": keep,
        "segments": random.choice(np.array([0, 1, 2, 254, 255], np.uint8), (images, *size)),
    }  # fmt: skip
    return AttentionTrace(**{**arrays, **fields})


def some_training(steps=(0, 50, 200), **fields):
    """A trace of a training: random maps at each step, of the same pictures."""
    plain = [some_trace(seed=number, **fields) for number, _ in enumerate(steps)]
    same = [replace(trace, segments=plain[0].segments) for trace in plain]
    return AttentionTrace.over_training(dict(zip(steps, same, strict=True)))


def run(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:  # tyro's own refusals
        return stop.code
