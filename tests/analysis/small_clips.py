"""What the tests of clips share: stores of moving squares."""

import io

import numpy as np
from PIL import Image

from dias_lab.data import store

SIDE = 128
LENGTHS = {"red": 4, "green": 3, "blue": 5}


def frames_of(number: int, frames: int) -> np.ndarray:
    """True segments [F H W]: two squares that move towards each other."""
    true = np.zeros((frames, SIDE, SIDE), np.uint8)
    for frame in range(frames):
        true[frame, 10 : 50 + number, 5 + 10 * frame : 45 + 10 * frame] = 1
        true[frame, 70:120, 75 - 10 * frame : 115 - 10 * frame] = 2
    return true


def write_clips(folder, splits=("train", "validation", "test"), dataset="squares", without_masks=(), lengths=LENGTHS):
    """Stores of the clips of `lengths`; `without_masks` are (clip's name, frame)."""
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for split in splits:
        records, clips = [], []
        for number, (name, frames) in enumerate(lengths.items()):
            clips.append([len(records), frames])
            for frame, true in enumerate(frames_of(number, frames)):
                pixels = np.array([[90, 90, 90], [220, 40, 40], [40, 80, 220]])[true] + random.integers(0, 20, (SIDE, SIDE, 3))
                buffer = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
                info = {"source": f"{name} {frame}", "clip": name, "frame": frame}
                known = (name, frame) not in without_masks
                things = {"things": {1: True, 2: True}} if known else {}
                records.append(store.Record(buffer.getvalue(), true if known else None, info | things))
        meta = {"dataset": dataset, "split": split, "kind": "video", "clips": clips}
        store.write(folder / f"{split}.lmdb", records, meta)
    return folder
