"""What the tests of clips share: a store of moving squares, and stand-ins for what reads clips and for a model of them."""

import dataclasses
import importlib.util
import io
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from dias_lab.config import METHODS
from dias_lab.data import store
from dias_lab.data.dataset import read as read_item
from dias_lab.data.dataset import square
from dias_lab.methods import Method, build

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


class Clips:
    """A stand-in for dias_lab.data.clips.Clips."""

    def __init__(self, store_):
        if store_.meta["kind"] != "video":
            raise store.StoreError(f"{store_.path} holds images, not the frames of clips: convert frames")
        self.store, self.ranges = store_, [range(first, first + frames) for first, frames in store_.meta["clips"]]

    def __len__(self):
        return len(self.ranges)

    def __getitem__(self, clip):
        return self.ranges[clip]

    def name(self, clip):
        return self.store[self.ranges[clip].start].info["clip"]


class ClipSquares:
    def __init__(self, store_, config, limit=0, crowds=True):
        self.clips, self.config = Clips(store_), config
        self.num_items = min(limit or len(self.clips), len(self.clips))

    def __len__(self):
        return self.num_items

    def __getitem__(self, number):
        items = self.clips[number]
        views = [square(*(part[None] for part in read_item(self.clips.store, item)), self.config.image_size) for item in items]
        images, segments = (torch.cat(part)[None] for part in zip(*views))
        info = {"item": torch.tensor([list(items)]), "clip": torch.tensor([number])}
        return {"image": images, "segments": segments, "frames": torch.ones(1, len(items), dtype=torch.bool), "info": info}


def clip_squares(store_, config, limit=0, first=0, every=1, crowds=True):
    read = ClipSquares(store_, config, limit, crowds)
    return (read[number] for number in range(first, len(read), every))


def clip_batches(store_, config, seed=None, step=0, steps=None, places=None, requests=(), segments=True):
    """The first frames of clips one after the other; what is too short is padded."""
    read, places = ClipSquares(store_, config), range(config.batch_size) if places is None else places
    for number in range(step, config.steps):
        chosen = [read[(number * config.batch_size + place) % len(read)] for place in places]
        images, items, frames = [], [], []
        for batch in chosen:
            shown = [min(frame, batch["image"].shape[1] - 1) for frame in range(config.clip_frames)]
            images.append(batch["image"][0, shown])
            items.append(batch["info"]["item"][0, shown])
            frames.append([frame < batch["image"].shape[1] for frame in range(config.clip_frames)])
        info = {"item": torch.stack(items), "clip": torch.cat([batch["info"]["clip"] for batch in chosen]), "step": number}
        yield {"image": torch.stack(images), "frames": torch.tensor(frames), "info": info}


@pytest.fixture
def reading(monkeypatch):
    """What reads clips, or its stand-in while it is not there."""
    if importlib.util.find_spec("dias_lab.data.clips") is None:
        module = types.ModuleType("dias_lab.data.clips")
        module.Clips, module.ClipSquares, module.clip_squares, module.clip_batches = Clips, ClipSquares, clip_squares, clip_batches
        module.clip_feature_batches = None
        monkeypatch.setitem(sys.modules, "dias_lab.data.clips", module)


@dataclasses.dataclass
class ClipOutput:
    features: torch.Tensor
    slots: torch.Tensor
    attention: torch.Tensor
    keep: torch.Tensor
    reconstruction: torch.Tensor
    decoder_attention: torch.Tensor
    frames: torch.Tensor | None = None


class StandIn(Method):
    """A model of clips: each frame starts from the slots that the frame before ended with."""

    def __init__(self, config):
        image_model = build(config.replace(clip_frames=0))
        super().__init__(config, image_model.backbone)
        self.image_model = image_model

    @classmethod
    def check(cls, config):
        pass

    def requests(self, num_locations=None):
        return []

    def draw(self, places, seed=None, step=0, num_locations=None, frames=1):
        return self.image_model.draw(places, seed, step)

    def forward(self, images, initial_slots=None, decoder_attention=None, keep=None, draws=None, features=None, boxes=None, frames=None):
        found, slots = [], initial_slots
        for image in images.unbind(1):
            output = self.image_model(image, slots, decoder_attention, keep, draws)
            slots = output.slots
            found.append(output)
        parts = {name: [getattr(one, name) for one in found] for name in ("features", "slots", "keep", "reconstruction", "decoder_attention")}
        stacked = {name: None if part[0] is None else torch.stack(part, 1) for name, part in parts.items()}
        return ClipOutput(attention=torch.stack([one.attention for one in found], 2), frames=frames, **stacked)

    def pieces(self, images, draws=None, boxes=None):
        yield self(self.normalise(images), draws=draws, boxes=boxes)

    def losses(self, output, progress):
        return {"reconstruction": (output.reconstruction - output.features).square().mean()}, {"reconstruction": 1.0}

    def trace(self, images, segments=None, seed=0, names=None, about=None, boxes=None):
        frames = images.shape[1]
        flat = self.image_model.trace(images.flatten(0, 1), segments.flatten(0, 1), seed, names)
        return dataclasses.replace(flat, about=flat.about | {"frames": frames})


def clip_class(config):
    """The method's own class for clips, or its stand-in while it is not there."""
    there = importlib.util.find_spec(METHODS[config.method].clips.partition(":")[0]) is not None
    return None if there else StandIn


def clip_model(config):
    stand_in = clip_class(config)
    if stand_in is None:
        return build(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return stand_in(config)


@pytest.fixture
def methods(monkeypatch, small_config):
    """Object discovery builds the stand-in while there is no model of clips."""
    if clip_class(small_config) is not None:
        from dias_lab.analysis import discovery

        images = discovery.build, discovery.method_class
        monkeypatch.setattr(discovery, "build", lambda config: clip_model(config) if config.clip_frames else images[0](config))
        monkeypatch.setattr(discovery, "method_class", lambda name, clips=False: StandIn if clips else images[1](name))


