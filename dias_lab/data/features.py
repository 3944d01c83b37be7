"""Cache of frozen feature maps: the backbone runs once over fixed crops, and training reads what it gave.

A cache is a folder beside the store: `features.bin`, a memory map float16 [items views L C], and `features.json`, which
says what it was made of: the images, the transform, the backbone and a hash of its weights. The folder's name follows from
that. `checksums.bin` holds a CRC-32 of every view, compared when a process first reads that view (0.2 ms for 200 kB; caches
of older versions have none). What is lost against training from pixels: no crop is new after the first epoch.

Axes: B images, V views (crop k is view 2 k, its flip 2 k + 1), L = h * w locations, C feature channels.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from dias_lab import runs
from dias_lab.config import Backbone
from dias_lab.data.dataset import Batches, fixed_view, loaded
from dias_lab.files import file_checksum, full_disk, read_object, write_sealed

FEATURES, PARTIAL, ABOUT, DONE = "features.bin", ".features.bin.partial", "features.json", "done"
SUMS, PARTIAL_SUMS = "checksums.bin", ".checksums.bin.partial"  # uint32 [items views]; features.json has its checksum
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
        about = _about(folder)
        self.path, self.maps = folder / FEATURES, None
        self.shape, self.grid = tuple(about["shape"]), about["grid"]
        if self.shape[:2] != (len(store), 2 * config.cache_views):
            raise ValueError(f"{self.path} is of {self.shape[:2]} items and views, not {len(store), 2 * config.cache_views}")
        self.sums = _sums(folder, about)
        found, expected = self.path.stat().st_size if self.path.exists() else 0, 2 * math.prod(self.shape)
        if found != expected:
            raise ValueError(f"{self.path} has {found} bytes, not {expected}. {_way_out(folder)}")

    def __getitem__(self, step: int) -> dict:
        chosen = [(item, int(random.integers(self.shape[1]))) for item, random in self.places(step)]
        return {"features": self.views_of(chosen), **self.about(step, [item for item, _ in chosen])}

    def views_of(self, places: list[tuple[int, int]]) -> torch.Tensor:
        """The features [B C h w] of B items and views."""
        features = torch.from_numpy(np.stack([self.view_of(place) for place in places]))  # [B L C]
        return features.transpose(1, 2).unflatten(2, self.grid)

    def view_of(self, place: tuple[int, int]) -> np.ndarray:
        """The features [L C] of a view. ValueError, the first time, where they are not those that were written."""
        if self.maps is None:  # in each process
            self.maps, self.read = np.memmap(self.path, np.float16, "r", shape=self.shape), set()
        features = self.maps[place]
        if self.sums is not None and place not in self.read:
            if zlib.crc32(features) != self.sums[place]:
                wrong = f"{self.path} is not as it was written: the checksum of item {place[0]}, view {place[1]} differs"
                raise ValueError(f"{wrong}. {_way_out(self.path.parent)}")
            self.read.add(place)
        return features

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
    store, config, backbone, step=0, progress: bool = False, places: range | None = None, requests=(), kind=FeatureBatches
) -> Iterator[dict]:  # fmt: skip
    """`dataset.batches` from the cache, which is made first where there is none."""
    folder = make(store, config, backbone, progress)
    return loaded(kind(store, config, folder, places, requests), range(step, config.steps), config)


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
                    sums = {"checksums": file_checksum(folder / SUMS)}
                    write_sealed(folder / ABOUT, about | sums)  # last: it says that the features are whole
                    (folder / DONE).unlink()
        except runs.RunBusy:  # the runs of a grid need the same cache at the same time
            partial = folder / PARTIAL
            if time.time() - max(started, partial.stat().st_mtime if partial.exists() else 0) > PATIENCE:
                raise
            time.sleep(0.5)
    found = _about(folder)
    if {name: found.get(name) for name in about} != json.loads(json.dumps(about)):
        raise ValueError(f"{folder / ABOUT} is not about these images and this backbone. {_way_out(folder)}")
    return folder


def _about(folder: Path) -> dict:
    """What features.json says. ValueError where it is not as it was written, or not of this kind at all."""
    try:
        about = read_object(folder / ABOUT, {"shape": list, "grid": list})
        sizes = [*about["shape"], *about["grid"]]
        if len(sizes) != 6 or any(type(size) is not int or size < 1 for size in sizes) or sizes[2] != sizes[4] * sizes[5]:
            raise ValueError(f"{folder / ABOUT} has the shape {about['shape']} and the grid {about['grid']}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}. {_way_out(folder)}") from None
    return about


def _sums(folder: Path, about: dict) -> np.ndarray | None:
    if "checksums" not in about:
        return None
    path = folder / SUMS
    if not path.exists() or file_checksum(path) != about["checksums"]:
        raise ValueError(f"{path} is not as it was written: its checksum differs. {_way_out(folder)}")
    return np.fromfile(path, np.uint32).reshape(about["shape"][:2])


def _way_out(folder: Path) -> str:
    return f"Delete {folder} to make it again"


def identity(store, config, backbone) -> dict:
    """What the features of a view follow from."""
    fields = config.to_dict()
    crops = ("seed",) if config.crop_scale < 1 else ()  # all seeds see the same whole squares
    digest = hashlib.sha256()
    for name, tensor in sorted([*backbone.named_parameters(), *backbone.named_buffers()]):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "images": store.fingerprint(),
        "transform": {name: fields[name] for name in (*crops, "crop_scale", "cache_views")} | {"crops": CROPS},
        "backbone": {name: fields[name] for name in ("image_size", *config.of(Backbone)) if name != "backbone_weights"},
        "weights": digest.hexdigest(),
    }


@torch.no_grad()
def _build(folder: Path, store, config, backbone, shape, progress: bool):
    """Write features.bin. After every few items what is done is on the disk, and the number of these items beside it."""
    partial, done = folder / PARTIAL, folder / DONE
    first = _first(done, shape[0]) if partial.exists() and (folder / PARTIAL_SUMS).exists() else 0
    size, free = 2 * math.prod(shape), shutil.disk_usage(folder).free
    whose = f"{shape[0]} images x {shape[1]} views x {shape[2]} locations x {shape[3]} channels, {size / 1e9:.2f} GB"
    if not first and size > free:
        wrong = f"the feature cache of {store.path} needs {whose}; {folder} has {free / 1e9:.2f} GB free"
        raise OSError(f"{wrong}. Make room, take fewer cache_views, or train from pixels: cache_views=0")
    if progress:
        print(f"feature cache {runs.short(folder)}: {whose} ({free / 1e9:.0f} GB free)")
    if not first:
        _reserve(partial, size)
        _reserve(folder / PARTIAL_SUMS, 4 * shape[0] * shape[1])
    maps = np.memmap(partial, np.float16, "r+", shape=shape)
    sums = np.memmap(folder / PARTIAL_SUMS, np.uint32, "r+", shape=shape[:2])
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
        sums[first : last + 1] = [[zlib.crc32(view) for view in item] for item in features.contiguous().numpy()]
        bar.update(len(features))
        if (last + 1) // SAVED > first // SAVED:
            maps.flush()
            sums.flush()
            runs.write_text(done, str(last + 1))
    bar.close()
    maps.flush()
    sums.flush()
    runs.write_text(done, str(shape[0]))
    del maps, sums
    os.replace(folder / PARTIAL_SUMS, folder / SUMS)
    os.replace(partial, folder / FEATURES)


def _first(done: Path, items: int) -> int:
    """How many items a build that was killed has on the disk; 0 where nobody can tell."""
    with contextlib.suppress(OSError, ValueError):
        return max(0, min(int(done.read_text()), items))
    return 0


def _reserve(path: Path, size: int):
    """An empty file of this size, whose space is there: where none is, writing to a memory map would kill the process."""
    with full_disk(path), open(path, "wb") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # Linux
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
                    raise
