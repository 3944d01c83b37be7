"""Stores of tiny clips with questions about them, and slots that hold the answers."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from dias_lab import runs
from dias_lab.config import Config
from dias_lab.data import pictures, questions, store
from dias_lab.data.convert import common
from dias_lab.data.questions import Question

FRAMES, N, D = 4, 3, 5
SMALL = dict(slot_courses=False, observed=FRAMES, reasoning_frames=3, reasoning_dim=16, reasoning_layers=1, reasoning_heads=2, reasoning_mlp_dim=16)


def odd(clip: int) -> bool:
    return clip % 3 != 0  # two of three


def ask(clip: int) -> list[Question]:
    """A word, and choices."""
    words = "is the star odd".split()
    box = {2: [0.1, 0.2, 0.5, 0.6]}
    options = [["it", "is", "odd"], ["it", "is", "even"]]
    return [
        Question(clip, "word", words, [], "yes" if odd(clip) else "no", box),
        Question(clip, "choice", ["what", "is", "it"], options, [odd(clip), not odd(clip)], {}),
    ]


def make_store(folder, split: str, clips: int, asked=ask):
    """A store of pictures of 8 x 8 pixels, and its questions."""
    blob = pictures.png(Image.fromarray(np.zeros((8, 8, 3), np.uint8)))
    records = [common.frame(blob, None, f"clip {clip}", frame, "-") for clip in range(clips) for frame in range(FRAMES)]
    opened = store.open(store.write(folder / f"{split}.lmdb", records, {"dataset": "small", "split": split, "kind": "video"}))
    questions.write(questions.beside(opened), opened, [one for clip in range(clips) for one in asked(clip)], {})
    return opened


def slots_of(config, opened):
    """Slots of noise [M N D]; in the last frame's slot number clip % N, the first number says the answer. The last slot is
    left out in the first frame."""
    clips = len(opened) // FRAMES
    slots = np.random.default_rng(len(opened)).normal(0, 0.3, (clips, FRAMES, N, D)).astype(np.float16)
    for clip in range(clips):
        slots[clip, -1, clip % N, 0] = 2 if odd(clip) else -2
    keep = np.ones((clips, FRAMES, N), bool)
    keep[:, 0, -1] = False
    return SimpleNamespace(slots=slots.reshape(-1, N, D), keep=keep.reshape(-1, N), segments=None, about={"identity": "small"})


def config_of(folder, **fields) -> Config:
    parent = runs.PACKAGE / "shipped" / "clips"
    options = {"data": str(folder), "device": "cpu", **SMALL, **fields}
    return Config.load(parent).for_task("reasoning", str(parent), **options)
