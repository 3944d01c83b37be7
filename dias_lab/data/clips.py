"""From a store of frames to batches of clips: those of dataset.py, with frames.

For training every `clip_stride`-th frame is taken, F in all. Where they start, crop and flip are drawn once for all of them.

Axes: B clips, F frames, R pixels of the protocol's square, N slots, C h w feature maps; boxes are [S 4], left, top, right,
bottom, of S = N - 1 objects: one slot is for the background.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from dias_lab.data import dataset, draws, features
from dias_lab.data import store as stores
from dias_lab.data.dataset import Batches, Squares, crop_box, cut, flipped, loaded
from dias_lab.data.features import FeatureBatches
from dias_lab.data.pictures import PictureError
from dias_lab.trace import LAST_SEGMENT


class Clips(Sequence):
    """The clips of a store: `Clips(store)[clip]` is the range of its items. Raises StoreError for a store of images."""

    def __init__(self, store):
        meta = store.meta
        if meta["kind"] != "video":
            way_out = "Train on images (clip_frames=0), or convert frames (python -m dias_lab convert --help)"
            raise stores.StoreError(f"{store.path} holds images, not the frames of clips. {way_out}")
        self.store, self.ranges = store, [range(first, first + frames) for first, frames in meta["clips"]]

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, clip: int) -> range:
        return self.ranges[clip]

    def name(self, clip: int) -> str:
        return self.store[self[clip].start].info["clip"]

    @contextlib.contextmanager
    def naming(self, clip: int):
        """An error about an item says also which clip it belongs to."""
        try:
            yield
        except (stores.StoreError, PictureError) as error:
            raise type(error)(f"clip {clip} (items {self[clip].start} to {self[clip].stop - 1}): {error}") from error


class ClipBatches(Batches):
    """Training batches of clips by step: `ClipBatches(store, config)[step]` is a dict.

    image uint8 [B F 3 R R]; segments uint8 [B F R R], as in `Batches`; frames bool [B F], False where a clip is shorter than
    `config.clip_frames` and its last frame is repeated; with `config.condition="boxes"` boxes float32 [B S 4]: see
    `boxes_in`; info: {"item" int64 [B F], "clip" int64 [B], "step" int}.
    """

    def __init__(self, store, config, seed: int | None = None, places: range | None = None, requests=(), segments=True):
        if not config.clip_frames:
            raise ValueError("clip_frames=0 is for images; a training clip has at least one frame")
        super().__init__(store, config, seed, places, requests, segments)
        self.clips = Clips(store)
        self.num_items = len(self.clips)

    def __getitem__(self, step: int) -> dict:
        taken = [self.take(clip, random) for clip, random in self.places(step)]
        images, segments = zip(*(self.frames_of(*one) for one in taken))
        true = {"segments": torch.stack(segments)} if self.segments else {}
        return {"image": torch.stack(images), **true, **self.about_clips(step, taken)}

    def take(self, clip: int, random: np.random.Generator) -> tuple[int, list[int], tuple[int, int, int, int], int]:
        """What is seen of a clip: the clip, its items (padded where they are fewer than F), the crop, and the number of the view.

        Views of odd numbers are flipped. With a cache it is one of the fixed views, for all frames that of the first.
        """
        items, config, view = self.clips[clip], self.config, None
        span = (config.clip_frames - 1) * config.clip_stride + 1
        first = int(random.integers(max(len(items) - span, 0) + 1))
        shown = list(items[first :: config.clip_stride][: config.clip_frames])
        with self.clips.naming(clip):
            info = self.store[items.start].info
        if config.cache_views:
            view = int(random.integers(2 * config.cache_views))
            random = dataset.view_generator(self.store, items.start, view, config)
        crop = crop_box(info["height"], info["width"], config.crop_scale, random)
        view = int(random.random() < 0.5) if view is None else view
        return clip, shown, crop, view

    def padded(self, frames: list) -> list:
        return [*frames, *frames[-1:] * (self.config.clip_frames - len(frames))]

    def frames_of(self, clip: int, items: list[int], crop, view: int) -> tuple[Tensor, Tensor | None]:
        """Images [F 3 R R] and segments [F R R], or None."""
        size, segments = self.config.image_size, self.segments
        with self.clips.naming(clip):
            views = [cut(self.store, item, self.store[item], crop, size, segments) for item in items]
        views = (torch.stack(part) if part[0] is not None else None for part in zip(*self.padded(views)))
        return flipped(views) if view % 2 else tuple(views)

    def about_clips(self, step: int, taken: list[tuple]) -> dict:
        config, (clips, items, *_) = self.config, zip(*taken)
        about = {"item": torch.tensor([*map(self.padded, items)]), "clip": torch.tensor(clips), "step": step}
        found = {"frames": torch.arange(config.clip_frames) < torch.tensor([[len(one)] for one in items]), "info": about}
        if config.condition == "boxes":
            boxes = [boxes_in(self.clips, clip, items[0], config.num_slots, crop, view % 2) for clip, items, crop, view in taken]
            found["boxes"] = torch.stack(boxes)
        if self.requests:
            found["draws"] = draws.draw(self.seed, step, self.taken, self.requests, config.clip_frames)
        return found


class ClipSquares(Squares):
    """Evaluation: the centre squares of whole clips, in order, one clip a batch: the dict of `ClipBatches`, without step.

    `ClipSquares(store, config, limit, crowds)[number]`; see `Squares` for crowds.
    """

    def __init__(self, store, config, limit: int = 0, crowds: bool = True):
        super().__init__(store, config.image_size, 1, 0, crowds)
        self.clips, self.config = Clips(store), config
        self.num_items = min(limit or len(self.clips), len(self.clips))

    def __getitem__(self, number: int) -> dict:
        items, boxes = self.clips[number], {}
        with self.clips.naming(number):
            views = (dataset.read(self.store, item, self.crowds) for item in items)  # one at a time at full size
            views = [dataset.square(image[None], true[None], self.size) for image, true in views]
        images, segments = (torch.cat(parts)[None] for parts in zip(*views))
        if self.config.condition == "boxes":
            boxes = {"boxes": boxes_in(self.clips, number, items.start, self.config.num_slots, crowds=self.crowds)[None]}
        about = {"item": torch.tensor([list(items)]), "clip": torch.tensor([number])}
        frames = torch.ones(1, len(items), dtype=torch.bool)
        return {"image": images, "segments": segments, "frames": frames, **boxes, "info": about}


class ClipFeatureBatches(FeatureBatches, ClipBatches):
    """`ClipBatches` with features float16 [B F C h w] of the same crops in place of images and segments."""

    def __getitem__(self, step: int) -> dict:
        taken = [self.take(clip, random) for clip, random in self.places(step)]
        maps = self.views_of([(item, view) for _, items, _, view in taken for item in self.padded(items)])  # [B*F C h w]
        return {"features": maps.unflatten(0, (len(taken), -1)), **self.about_clips(step, taken)}


clip_batches = functools.partial(dataset.batches, kind=ClipBatches)  # both with the arguments of images
clip_feature_batches = functools.partial(features.feature_batches, kind=ClipFeatureBatches)


def clip_squares(store, config, limit: int = 0, first: int = 0, every: int = 1, crowds: bool = True) -> Iterator[dict]:
    """The first `limit` clips (0: all), one a batch: batches first, first + every, ... `crowds`: see `Squares`."""
    whole = ClipSquares(store, config, limit, crowds)
    return loaded(whole, range(first, len(whole), every), config)


def boxes_in(
    clips: Clips, clip: int, item: int, num_slots: int, crop=None, flip: int = 0, crowds: bool = True
) -> Float32[Tensor, "S 4"]:  # fmt: skip
    """The boxes of a frame's things in the order of their segments, as shares of the crop's sides (0..1), then rows of -1.

    They are the info's, or else the map's. Without a crop (top, left, height, width) it is the centre square; what lies outside
    is cut off, and a box with nothing inside is left out. Raises ValueError for more things than rows, and for a frame with
    neither boxes nor masks.
    """
    with clips.naming(clip):
        record = clips.store[item]
        info, known = record.info, record.info.get("boxes") or {}
        if record.segments is None:
            things = sorted(known)
        else:
            things = [one for one in np.unique(stores.thing_map(info, crowds)).tolist() if 0 < one <= LAST_SEGMENT]
        if set(things) - set(known):
            true = dataset.true_segments(clips.store, item, record, info["height"], info["width"], crowds).numpy()
            known = stores.boxes(true) | known
    where = f"{clips.store.path}: the frame of item {item}, clip {info['clip']!r},"
    if record.segments is None and "boxes" not in info:
        raise ValueError(f"{where} has neither boxes nor masks: condition='none' needs none")
    if len(things) >= num_slots:
        room = f"num_slots={num_slots} has room for {num_slots - 1}"
        raise ValueError(f"{where} has {len(things)} objects, and {room}: take more slots, or condition='none'")
    top, left, height, width = crop or crop_box(info["height"], info["width"], 1.0, None)
    boxes = torch.tensor([known[one] for one in things], dtype=torch.float32).reshape(-1, 4)
    boxes = ((boxes - torch.tensor([left, top, left, top])) / torch.tensor([width, height, width, height])).clamp(0, 1)
    boxes = boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
    if flip:
        boxes = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], dim=1)
    return torch.cat([boxes, boxes.new_full((num_slots - 1 - len(boxes), 4), -1.0)])
