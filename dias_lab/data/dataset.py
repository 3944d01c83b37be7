"""From a store to batches: the reference's transforms on integer label maps, batches(seed, step).

Sources: transforms of Genera1Z/DIAS v4, with torchvision v2. A batch is a pure function of (seed, step): the items are
those of the epoch's permutation, and each image's crop and flip are drawn from (seed, step, place).

Axes: B images, H W pixels of a picture, R pixels of the protocol's square.
"""

import functools
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as transforms
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode

from dias_lab.data import draws, pictures
from dias_lab.data import store as stores
from dias_lab.trace import LAST_SEGMENT, VOID


class Batches(Dataset):
    """Training batches by step: `Batches(store, config)[step]` is a dict of image, segments and info.

    image uint8 [B 3 R R]; segments uint8 [B R R]: 0 background (stuff included), 1.. objects, 254 overlap, 255 void;
    info: {"item" int64 [B], "step" int}. With `requests` (the model's) also the draws of a training step: made here, they
    are made by the processes that read.
    """

    def __init__(self, store, config, seed: int | None = None, places: range | None = None, requests=(), segments=True):
        """`places` of the global batch, for one process of several; by default all. `segments=False` saves their decoding."""
        if len(store) == 0:
            raise ValueError(f"the store {store.path} is empty")
        self.store, self.config, self.requests, self.segments = store, config, requests, segments
        self.seed = config.seed if seed is None else seed
        self.taken = range(config.batch_size) if places is None else places
        self.num_items = len(store)  # of an epoch

    def __getitem__(self, step: int) -> dict:
        items, images, segments = zip(*((item, *self.view(item, random)) for item, random in self.places(step)))
        true = {"segments": torch.stack(segments)} if self.segments else {}
        return {"image": torch.stack(images), **true, **self.about(step, items)}

    def about(self, step: int, items: Sequence[int]) -> dict:
        drawn = {"draws": draws.draw(self.seed, step, self.taken, self.requests)} if self.requests else {}
        return {"info": {"item": torch.tensor(items), "step": step}, **drawn}

    def places(self, step: int) -> Iterator[tuple[int, np.random.Generator]]:
        """The item at each place, from the epoch's permutation, and the random numbers that say how it is seen."""
        for place in self.taken:
            epoch, position = divmod(step * self.config.batch_size + place, self.num_items)
            item = int(permutation(self.seed, epoch, self.num_items)[position])
            yield item, draws.generator(self.seed, step, place, "view")

    def view(self, item: int, random: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """A crop of an image, and its segments: one of the fixed views, or a new crop and perhaps its flip."""
        if self.config.cache_views:
            number = int(random.integers(2 * self.config.cache_views))
            return fixed_view(self.store, item, number, self.config, self.segments)
        views = crop(self.store, item, self.config, random, self.segments)
        return flipped(views) if random.random() < 0.5 else views


class Squares(Dataset):
    """Evaluation batches: the centre squares of the items, in order. `Squares(store, size, batch_size)[number]`.

    Where the store knows classes, info has "classes" uint8 [B 256]: see `class_table`. `crowds=False` leaves crowd regions
    out: StoreError if the store does not know what is beneath them.
    """

    def __init__(self, store, size: int, batch_size: int, limit: int = 0, crowds: bool = True):
        if not crowds and store.meta["schema"] < 2 and store.meta.get("annotations") == "instances":
            raise stores.StoreError(f"{store.path} does not say what is beneath its crowds: it is older. Convert the data again")
        self.store, self.size, self.batch_size, self.crowds = store, size, batch_size, crowds
        self.num_items = min(limit or len(store), len(store))

    def __len__(self) -> int:
        return math.ceil(self.num_items / self.batch_size)

    def __getitem__(self, number: int) -> dict:
        items = range(number * self.batch_size, min((number + 1) * self.batch_size, self.num_items))
        views = [square(*(part[None] for part in read(self.store, item, self.crowds)), self.size) for item in items]
        images, segments = (torch.cat(parts) for parts in zip(*views))
        infos = [self.store[item].info for item in items]
        known = any(info.get("classes") for info in infos)
        classes = {"classes": torch.stack([class_table(info, self.crowds) for info in infos])} if known else {}
        return {"image": images, "segments": segments, "info": {"item": torch.tensor(items), **classes}}


def batches(
    store, config, seed=None, step: int = 0, steps: int | None = None, places=None, requests=(), segments=True, kind=Batches
) -> Iterator[dict]:  # fmt: skip
    """Training batches from `step` up to `steps` (default: `config.steps`), decoded by `config.workers` processes."""
    steps = config.steps if steps is None else steps
    return loaded(kind(store, config, seed, places, requests, segments), range(step, steps), config)


def squares(store, config, limit: int = 0, first: int = 0, every: int = 1, crowds: bool = True) -> Iterator[dict]:
    """Evaluation batches of the first `limit` items (0: all): batches first, first + every, ... `crowds`: see `Squares`."""
    batch_size = config.batch_size // (config.accumulate * config.devices * config.num_nodes)
    dataset = Squares(store, config.image_size, max(batch_size, 1), limit, crowds)
    return loaded(dataset, range(first, len(dataset), every), config)


def loaded(dataset: Dataset, order, config) -> Iterator[dict]:
    """What `loader` gives. Raises RuntimeError with a way out where a process that reads has died."""
    try:
        yield from loader(dataset, order, config)
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"one of {config.workers} processes that read and decode has died, perhaps for want of memory: take fewer "
            f"workers, or workers=0. A training goes on from its last checkpoint. ({error})"
        ) from error


def loader(dataset: Dataset, order, config) -> DataLoader:
    context = None
    if config.workers:  # neither the store's map nor torch's threads cross a fork
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imports once, and not in every process
    pin = config.device != "cpu" and torch.cuda.is_available()
    return DataLoader(
        dataset, batch_size=None, sampler=order, num_workers=config.workers, multiprocessing_context=context, pin_memory=pin
    )


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return draws.generator(seed, epoch, 0, "shuffle").permutation(length)


def read(store, item: int, crowds: bool = True) -> tuple[UInt8[Tensor, "3 H W"], UInt8[Tensor, "H W"]]:
    """Image and segments of one item; stuff is background. Without masks every pixel is void."""
    record = store[item]
    image = as_image(_opened(store, item, "image", record.image))
    return image, true_segments(store, item, record, *image.shape[1:], crowds)


def _opened(store, item: int, what: str, blob: bytes) -> Image.Image:
    return pictures.opened(blob, f"{getattr(store, 'path', 'the store')}: the {what} of item {item}")


def true_segments(store, item: int, record: stores.Record, height: int, width: int, crowds=True) -> UInt8[Tensor, "H W"]:
    if record.segments is None:
        return torch.full((height, width), VOID, dtype=torch.uint8)
    table = torch.from_numpy(stores.thing_map(record.info, crowds))
    return table[torch.from_numpy(np.array(_opened(store, item, "segments", record.segments))).long()]


def class_table(info: dict, crowds: bool = True) -> UInt8[Tensor, "256"]:
    """Lookup table from a thing to its class, numbered from 1 within the image; background, overlap and void stay.

    An image whose things have no known class is void throughout.
    """
    table = torch.arange(256, dtype=torch.uint8)
    shown = np.unique(stores.thing_map(info, crowds)).tolist()
    things, classes = [segment for segment in shown if 0 < segment <= LAST_SEGMENT], info.get("classes") or {}
    if any(segment not in classes for segment in things):
        return torch.full_like(table, VOID)
    names = sorted({classes[segment] for segment in things})
    for segment in things:
        table[segment] = 1 + names.index(classes[segment])
    return table


def as_image(picture: Image.Image) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def square(images: UInt8[Tensor, "B 3 H W"], segments: Int[Tensor, "B H W"] | None, size: int):
    """The centre square of images (and segments) at `size` pixels (R).

    Raises ValueError unless images are uint8 [B 3 H W], not empty, and the segments have their size.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"expected images [B 3 H W] with at least one pixel, got shape {tuple(images.shape)}")
    if images.dtype != torch.uint8:
        raise ValueError(f"expected images as uint8, 0 to 255, got {images.dtype}; NaN or scaled values cannot be meant")
    B, _, H, W = images.shape
    if segments is not None and tuple(segments.shape) != (B, H, W):
        raise ValueError(f"the images are [B H W] = {(B, H, W)}, the segments {tuple(segments.shape)}")
    side = min(H, W)
    top, left = round((H - side) / 2), round((W - side) / 2)
    rows, columns = slice(top, top + side), slice(left, left + side)
    return resize(images[:, :, rows, columns], None if segments is None else segments[:, rows, columns], size)


def resize(images, segments, size: int):
    """Images bilinearly with antialias, on uint8; segments by the nearest pixel."""
    if images.shape[-2:] != (size, size):
        images = transforms.resize(images, [size, size], InterpolationMode.BILINEAR, antialias=True)
    if segments is not None and segments.shape[-2:] != (size, size):
        segments = transforms.resize(segments[:, None], [size, size], InterpolationMode.NEAREST_EXACT)[:, 0]
    return images, segments


def crop(store, item: int, config, random: np.random.Generator, segments: bool = True):
    """A random crop of an item at `config.image_size`: image uint8 [3 R R], segments [R R], or None unless asked for."""
    record = store[item]
    box = crop_box(record.info["height"], record.info["width"], config.crop_scale, random)
    return cut(store, item, record, box, config.image_size, segments)


def cut(store, item: int, record: stores.Record, box: tuple[int, int, int, int], size: int, segments: bool = True):
    """This crop (top, left, height, width) of an item at `size` pixels (R): image uint8 [3 R R], segments [R R] or None.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, where the crop still has R pixels a side then.
    """
    picture, (top, left, height, width) = _opened(store, item, "image", record.image), box
    W, H = picture.size
    share = min(size / min(height, width), 1.0)
    picture.draft(None, (math.ceil(W * share), math.ceil(H * share)))  # changes nothing but JPEGs
    y, x = picture.height / H, picture.width / W  # 1, or the scale that it will be decoded at
    rows, columns = slice(round(top * y), round((top + height) * y)), slice(round(left * x), round((left + width) * x))
    true = true_segments(store, item, record, H, W)[None, top : top + height, left : left + width] if segments else None
    image, true = resize(as_image(picture)[None, :, rows, columns], true, size)
    return image[0], None if true is None else true[0]


def flipped(views: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    return tuple(None if view is None else view.flip(-1) for view in views)


def fixed_view(store, item: int, view: int, config, segments: bool = True):
    """What `crop` gives, of fixed crops: view 2 k is crop k of an item, drawn from (seed, item, k), and view 2 k + 1 its flip.

    The frames of a clip share the crops of its first.
    """
    views = crop(store, item, config, view_generator(store, item, view, config), segments)
    return flipped(views) if view % 2 else views


def view_generator(store, item: int, view: int, config) -> np.random.Generator:
    return draws.generator(config.seed, view // 2, store.clip_start(item), "fixed view")


def crop_box(height: int, width: int, scale: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, by torchvision's rule for random resized crops.

    The area is uniform from `scale` to 1 of the *largest square's* area, the aspect log-uniform from 3/4 to 4/3; after
    ten misses, and at scale 1, it is the centre square.
    """
    side = min(height, width)
    for _ in range(10 if scale < 1 else 0):
        area = side * side * random.uniform(scale, 1)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    return round((height - side) / 2), round((width - side) / 2), side, side


def read_photos(paths, size: int) -> tuple[UInt8[Tensor, "B 3 R R"], list[str]]:
    """The centre squares of photo files, read by the rules of `pictures`, and their names; folders stand for their photos.

    Raises ValueError that names all files that are missing, damaged or refused, and where there is no photo at all.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}")
        inside = (file for file in path.iterdir() if file.suffix.lower() in pictures.SUFFIXES and file.name[0] != ".")
        files += sorted(inside) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"no photos ({' '.join(pictures.SUFFIXES)}) in {', '.join(map(str, paths))}")
    images, problems = [], []
    for file in files:
        try:
            images.append(square(as_image(pictures.rgb(file))[None], None, size)[0])
        except pictures.PictureError as error:
            problems.append(str(error))
    if problems:
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError("\n  ".join(problems[:10]) + more)
    return torch.cat(images), [file.name for file in files]
