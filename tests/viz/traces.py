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


def some_clips(clips=2, frames=24, slots=7, size=128, cells=16, iterations=3, seed=0, texture=0.04, **fields):
    """Clips of four coloured discs that move and pass in front of each other, and maps that follow them.

    Slot 0 has the background. From frame 8 on (if there are so many) objects 1 and 2 have exchanged their slots, from frame 16
    on object 3 has slot 5, all in every clip: three identity switches. Slot 6 is merged into slot 0 on the first frame, and
    revived on frame 12.
    """
    random = np.random.default_rng(seed)
    down, across = (np.mgrid[:size, :size] + 0.5) / size
    colours = np.array([[225, 84, 60], [70, 160, 90], [65, 105, 225], [240, 190, 40]])
    images, segments, slot_of = [], [], []
    for _ in range(clips):
        start, speed = random.uniform(0.25, 0.75, (4, 2)), random.uniform(0.5, 0.9, (4, 2)) * random.choice([-1, 1], (4, 2))
        ground = 90 + 70 * down[..., None] * [1, 0.9, 0.8] + 40 * across[..., None]
        for frame in range(frames):
            image, labels = ground.copy(), np.zeros((size, size), np.uint8)
            places = start + speed * frame / 24
            places = 0.12 + 0.76 * np.abs((places - 0.12) / 0.76 % 2 - 1)  # they bounce
            for number, ((y, x), radius) in enumerate(zip(places, (0.16, 0.13, 0.11, 0.12), strict=True), 1):
                disc = (down - y) ** 2 + (across - x) ** 2 < radius**2
                image[disc] = colours[number - 1] * (1.1 - 0.5 * ((down - y + radius) / (2 * radius))[disc][:, None])
                labels[disc] = number
            images.append((image + 255 * texture * random.standard_normal(image.shape)).clip(0, 255))
            segments.append(labels)
            slot_of.append([0, *((2, 1) if frame >= 8 else (1, 2)), 5 if frame >= 16 else 3, 4])
    segments, slot_of, step = np.stack(segments), np.array(slot_of), size // cells
    wanted = np.eye(slots, dtype=np.float32)[np.take_along_axis(slot_of, segments.reshape(len(segments), -1), 1)]  # [B H*W N]
    wanted = wanted.reshape(-1, cells, step, cells, step, slots).mean((2, 4)).transpose(0, 3, 1, 2)  # [B N h w]
    noise = random.standard_normal((1, slots, cells, cells)) * 0.5
    logits = np.stack([sharpness * wanted + noise for sharpness in (*np.linspace(2, 6, iterations), 9)])
    maps = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)  # [T+1 B N h w]
    keep = np.ones((len(images), slots), bool)
    leader = np.broadcast_to(np.arange(slots), (iterations, len(images), slots)).copy()
    if slots > 6 and iterations > 1:
        gone = np.arange(len(images)) % frames < 12
        keep[gone, 6], maps[-2:, gone, 6], leader[-1, gone, 6] = False, 0, 0
        maps /= maps.sum(axis=2, keepdims=True)
    names = [f"discs {clip}/{frame:05d}" for clip in range(clips) for frame in range(frames)]
    arrays = {"images": np.stack(images).astype(np.uint8), "attention": maps[:-1], "decoder_attention": maps[-1], "keep": keep}
    about = {"run": "drawn by hand", "seed": seed, "frames": frames}
    return AttentionTrace(**{**arrays, "segments": segments, "leader": leader, "names": names, "about": about, **fields})


def run(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:  # tyro's own refusals
        return stop.code
