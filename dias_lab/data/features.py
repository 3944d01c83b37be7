"""Cache of frozen feature maps: the backbone runs once over fixed crops, and training reads what it gave.

A cache is a folder beside the store: `features.bin`, a memory map float16 [items views L C], and `features.json`, which
says what it was made of. The folder's name follows from that: the images, the transform, the backbone and a hash of its
weights. What is lost against training from pixels: no crop is new after the first epoch.

Axes: B images, V views (crop k is view 2 k, its flip 2 k + 1), L = h * w locations, C feature channels.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from dias_lab import runs
from dias_lab.config import Backbone
from dias_lab.data.dataset import Batches, fixed_view, loaded

FEATURES, PARTIAL, ABOUT, DONE = "features.bin", ".features.bin.partial", "features.json", "done"
CROPS = 2  # counts up when the same config gives other crops
SAVED = 512  # items after which a build that is killed goes on
PIECE = 8  # images that go through the backbone at a time on a CPU: convolutions of more leave its cache, twice as slow
PATIENCE = 600  # seconds without a write of the process that builds


class FeatureBatches(Batches):
    """Training batches by step, as `Batches`, but with features float16 [B C h w] in place of images and segments.

    They are those of the crops that `Batches` shows with the same config. Raises ValueError unless `folder` holds a
    whole cache.
    """

    def __init__(self, store, config, folder: Path, places: range | None = None, requests=()):
        super().__init__(store, config, None, places, requests)
        about = runs.read_json(folder / ABOUT)
        self.path, self.maps = folder / FEATURES, None
        self.shape, self.grid = tuple(about["shape"]), about["grid"]
        found, expected = self.path.stat().st_size, 2 * math.prod(self.shape)
        if found != expected:
            raise ValueError(f"{self.path} has {found} bytes, not {expected}. Delete {folder} to make it again")

    def __getitem__(self, step: int) -> dict:
        if self.maps is None:  # in each process
            self.maps = np.memmap(self.path, np.float16, "r", shape=self.shape)
        chosen = [(item, int(random.integers(self.shape[1]))) for item, random in self.places(step)]
        features = torch.from_numpy(np.stack([self.maps[place] for place in chosen]))  # [B L C]
        features = features.transpose(1, 2).unflatten(2, self.grid)
        return {"features": features, **self.about(step, [item for item, _ in chosen])}

    def __getstate__(self):
        return {**self.__dict__, "maps": None}  # pickling would copy what is mapped


class FixedViews(Dataset):
    """All views of a few items at a time, from item `first` on: images uint8 [K * V 3 R R], and the first and last item."""

    def __init__(self, store, config, first: int):
        self.store, self.config = store, config
        self.items = [range(i, len(store))[: config.batch_size] for i in range(first, len(store), config.batch_size)]

    def __getitem__(self, number: int) -> dict:
        items, views = self.items[number], range(2 * self.config.cache_views)
        images = [fixed_view(self.store, item, view, self.config, False)[0] for item in items for view in views]
        return {"image": torch.stack(images), "items": [items[0], items[-1]]}


def feature_batches(
    store, config, backbone, step: int = 0, progress: bool = False, places: range | None = None, requests=()
) -> Iterator[dict]:  # fmt: skip
    """`dataset.batches` from the cache, which is made first where there is none."""
    dataset = FeatureBatches(store, config, make(store, config, backbone, progress), places, requests)
    return loaded(dataset, range(step, config.steps), config)


def make(store, config, backbone, progress: bool = False) -> Path:
    """The cache's folder, beside the store; its features are computed if they are not there, in single precision.

    A build that was killed goes on where it was; one of another process is waited for. Raises OSError if the disk is
    too small, runs.RunBusy where the other process has written nothing for ten minutes, ValueError where a feature is
    not finite in half precision.
    """
    shape = (len(store), 2 * config.cache_views, backbone.grid[0] * backbone.grid[1], backbone.feature_dim)
    about = {"shape": shape, "grid": backbone.grid, "store": store.path.stem, **identity(store, config, backbone)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    folder = store.path.parent / "features" / f"{store.path.stem}-{key}"
    started = time.time()
    while not (folder / ABOUT).exists():
        try:
            with runs.claim(folder):
                if not (folder / ABOUT).exists():
                    _build(folder, store, config, backbone, shape, progress)
                    runs.write_json(folder / ABOUT, about)  # last: it says that the features are whole
                    (folder / DONE).unlink()
        except runs.RunBusy:  # the runs of a grid need the same cache at the same time
            partial = folder / PARTIAL
            if time.time() - max(started, partial.stat().st_mtime if partial.exists() else 0) > PATIENCE:
                raise
            time.sleep(0.5)
    return folder


def identity(store, config, backbone) -> dict:
    """What the features of a view follow from."""
    fields = config.to_dict()
    digest = hashlib.sha256()
    for name, tensor in sorted([*backbone.named_parameters(), *backbone.named_buffers()]):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "images": store.fingerprint(),
        "transform": {name: fields[name] for name in ("seed", "crop_scale", "cache_views")} | {"crops": CROPS},
        "backbone": {name: fields[name] for name in ("image_size", *config.of(Backbone)) if name != "backbone_weights"},
        "weights": digest.hexdigest(),
    }


@torch.no_grad()
def _build(folder: Path, store, config, backbone, shape, progress: bool):
    """Write features.bin. After every few items what is done is on the disk, and the number of these items beside it."""
    partial, done = folder / PARTIAL, folder / DONE
    first = int(done.read_text()) if done.exists() and partial.exists() else 0
    size, free = 2 * math.prod(shape), shutil.disk_usage(folder).free
    whose = f"{shape[0]} images x {shape[1]} views x {shape[2]} locations x {shape[3]} channels, {size / 1e9:.2f} GB"
    if not first and size > free:
        wrong = f"the feature cache of {store.path} needs {whose}; {folder} has {free / 1e9:.2f} GB free"
        raise OSError(f"{wrong}. Make room, take fewer cache_views, or train from pixels: cache_views=0")
    if progress:
        print(f"feature cache {runs.short(folder)}: {whose} ({free / 1e9:.0f} GB free)")
    maps = np.memmap(partial, np.float16, "r+" if first else "w+", shape=shape)
    device = next(itertools.chain(backbone.parameters(), backbone.buffers())).device
    mean, std = (255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    views = FixedViews(store, config, first)
    bar = tqdm(total=shape[0], initial=first, desc="features", unit="image", disable=not progress, mininterval=1)
    for batch in loaded(views, range(len(views.items)), config):
        first, last = batch["items"]
        pieces = batch["image"].split(PIECE if device.type == "cpu" else len(batch["image"]))
        features = torch.cat([backbone((piece.to(device) - mean) / std) for piece in pieces])
        features = features.flatten(2).transpose(1, 2)  # [K*V L C]
        features = features.half().cpu().unflatten(0, (-1, shape[1]))
        if not features.isfinite().all():
            raise ValueError(f"a feature of items {first} to {last} is not finite in half precision; cache_views=0")
        maps[first : last + 1] = features.numpy()
        bar.update(len(features))
        if (last + 1) // SAVED > first // SAVED:
            maps.flush()
            runs.write_text(done, str(last + 1))
    bar.close()
    maps.flush()
    runs.write_text(done, str(shape[0]))
    del maps
    os.replace(partial, folder / FEATURES)
