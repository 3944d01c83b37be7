"""Slots on disk: what a model, or something simpler, sees in every item of a store, for the heads that look at it again.

Their files (data/slot_files.py) say of which weights and which records they are. Each image, or clip, draws as in an
evaluation: these are the slots that evaluation sees. An extraction that was killed goes on where it was.

Axes: M items of the store (of clips: frames, clip after clip), B of them at a time, N slots, D slot width, C feature
channels, h w locations, R pixels of the square.
"""

import dataclasses
import functools
import hashlib
import time

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from dias_lab import config, runs
from dias_lab.analysis.baselines import cluster_segments, followed, position_segments
from dias_lab.data.clips import Clips, ClipSquares
from dias_lab.data.dataset import Squares, loaded
from dias_lab.data.features import PATIENCE
from dias_lab.data.slot_files import ABOUT, PROGRESS, Slots, Writer, opened, read
from dias_lab.data.store import thing_map
from dias_lab.files import checksum
from dias_lab.methods import Method, checkpoint, segments_from
from dias_lab.methods.base import locations
from dias_lab.trace import LAST_SEGMENT

CHOICES = {"source": ("model", "untrained", "true", "k_means", "tiles"), "dtype": ("float16", "float32")}
NONE = 255  # the slot of a pixel that has none
PARTS = (config.Backbone, config.Clips, config.Slots, config.Decoder, config.Codes, *config.OWN)
ELSEWHERE = {"backbone_weights", "teacher_run"}  # paths; what they lead to is among the weights


def identity(model: Method) -> str:
    """16 hex digits that change with any weight, the backbone's included, and with the fields that slots depend on."""
    fields = {field.name for part in PARTS if dataclasses.is_dataclass(part) for field in dataclasses.fields(part)}
    fields = {"method", "seed", "image_size"} | fields - model.config.unread() - ELSEWHERE
    digest = hashlib.sha256(checksum({name: getattr(model.config, name) for name in fields}, 64).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def slots_for(config, store) -> Slots:
    """Those that a head's config asks for: `slots_of` its parent's model, in the folder <slots>/<split>, by default
    slots/<identity>-<source>/<split> beside the store. They are extracted where they are missing, as `extract` has it; a
    terminal shows how far this is."""
    model, source = checkpoint.load_model(config.parent, device="cpu" if config.device == "cpu" else None), config.slots_of
    folder = runs.resolve(config.slots) if config.slots else store.path.parent / "slots" / f"{identity(model)}-{source}"
    folder /= store.path.stem
    if (folder / ABOUT).exists():  # in either precision
        return open_slots(folder, model, store, source)
    return extract(model, store, folder, source, progress=None)


def open_slots(folder, model: Method | None = None, store=None, source: str | None = None) -> Slots:
    """The slots in a folder. ValueError where there are none, where they are unfinished or damaged, and where they are of
    another model, store or source than those that are given: it names what differs."""
    expected = {} if model is None else {"identity": identity(model)}
    expected |= {} if store is None else {"records": store.fingerprint()[:16]}
    return opened(runs.resolve(folder), expected | ({} if source is None else {"source": source}))


def extract(model: Method, store, folder, source: str = "model", dtype: str = "float16", progress: bool | None = False) -> Slots:
    """Slots of all items of a store, in a folder; those that are whole already are only opened. Errors: see `Extraction`.
    progress: whether a bar is shown; None: on a terminal."""
    return Extraction(model, store, folder, source, dtype).run(progress)


class Extraction:
    """What `extract` does. What cannot begin is refused when this is made, and nothing is written: ValueError for an unknown
    source or dtype, a folder with slots of something else, an empty store, and one without true segments for the source
    "true"; StoreError for a model of clips and a store of images.

    `run` waits for another process that extracts the same; runs.RunBusy where that has written nothing for ten minutes.
    OSError for a full disk, ValueError for a slot that is not finite: what is done stays, and the next one goes on there. The
    model is in evaluation mode afterwards.
    """

    def __init__(self, model: Method, store, folder, source: str = "model", dtype: str = "float16"):
        for name, value in {"source": source, "dtype": dtype}.items():
            if value not in CHOICES[name]:
                raise ValueError(f"{name} is one of {', '.join(CHOICES[name])}, got {value!r}")
        if len(store) == 0:
            raise ValueError(f"the store {store.path} is empty: it has no slots")
        self.model, self.folder, config = model, runs.resolve(folder), model.config
        self.count, self.done = len(store), 0  # how many items there are, and how many are there already
        own = source in ("model", "untrained")
        self.about = {"identity": identity(model), "records": store.fingerprint()[:16], "split": store.path.stem}
        self.about |= {"source": source, "dtype": dtype, "map": model.evaluated_map if own else source, "seed": config.seed}
        for name in (ABOUT, PROGRESS):
            if (self.folder / name).exists():
                self.done = read(self.folder, name, self.about).get("done", self.count)
        if not (self.folder / ABOUT).exists():
            clips = Clips(store) if config.clip_frames or store.meta["kind"] == "video" else None
            size = max(config.batch_size // (config.accumulate * config.devices * config.num_nodes), 1)  # an evaluation's
            self.starts = range(0, len(store), size) if clips is None else [items.start for items in clips]
            self.squares = Squares(store, config.image_size, size) if clips is None else ClipSquares(store, config)
            seen = model.untrained() if source == "untrained" else model
            self.see = functools.partial(_seen, seen) if own else _of_segments(model, store, source)

    def run(self, progress: bool | None = False) -> Slots:
        started = time.time()
        self.model.eval()
        while not (self.folder / ABOUT).exists():
            try:
                with runs.claim(self.folder):
                    if not (self.folder / ABOUT).exists():  # else another process was faster
                        self._write(progress)
            except runs.RunBusy:
                if time.time() - max([started, *(path.stat().st_mtime for path in self.folder.glob("*.npy"))]) > PATIENCE:
                    raise
                time.sleep(0.5)
        return opened(self.folder, self.about)

    @torch.no_grad()
    def _write(self, progress: bool | None):
        writer = Writer(self.folder, self.about, self.count, self.starts)
        first = [*self.starts, self.count].index(writer.done)
        batches = loaded(self.squares, range(first, len(self.starts)), self.model.config)
        told = dict(desc=f"slots {self.about['split']}", unit="batch", disable=None if progress is None else not progress)
        for batch in tqdm(batches, total=len(self.starts), initial=first, **told):
            slots, keep, segments = (one.cpu().numpy() for one in self.see(batch))
            slots = slots.astype(self.about["dtype"])
            if not np.isfinite(slots).all():
                items = f"items {writer.done} to {writer.done + len(slots) - 1}"
                raise ValueError(f"a slot of {items} is not finite as {slots.dtype}; numbers above 65504 need dtype='float32'")
            writer.add([slots, keep, segments.astype(np.uint8)])
        writer.finish(runs.about())


def _seen(model: Method, batch: dict) -> list[Tensor]:
    """What a model sees in images, or in the frames of a clip: slots [B N D], keep [B N], segments [B R R]."""
    config, last = model.config, model.evaluated_map == "last"
    if config.clip_frames:
        given = {"draws": model.draw(batch["info"]["clip"].tolist(), config.seed, frames=1), "boxes": batch.get("boxes")}
        outputs = (piece.as_images() for piece in model.pieces(batch["image"], decoder_attention=not last, **given))
    else:
        parts = (one.split(config.batch_size) for one in (batch["image"].flatten(0, -4), batch["info"]["item"].flatten()))
        drawn = ((model.normalise(image), model.draw(item.tolist(), config.seed)) for image, item in zip(*parts))
        outputs = (model(image, draws=draws, decoder_attention=not last) for image, draws in drawn)
    maps = ((one, one.attention[-1] if last else one.decoder_attention) for one in outputs)
    seen = [(one.slots, one.keep, segments_from(map_, batch["image"].shape[-1])) for one, map_ in maps]
    return [torch.cat(part) for part in zip(*seen)]


def _of_segments(model: Method, store, source: str):
    """A function of a batch that gives the same, with segments of another source, and their mean features [B N C] as slots."""
    config, tables = model.config, _tables(store) if source == "true" else None
    num = 1 + int(tables[tables < NONE].max()) if source == "true" else config.num_slots
    tiles = position_segments(model.backbone.grid, num, config.image_size, 1) if source == "tiles" else None

    def see(batch: dict):
        images, items = batch["image"].flatten(0, -4), batch["info"]["item"].flatten()
        features = torch.cat([model.backbone(model.normalise(part)) for part in images.split(config.batch_size)])
        if source == "true":
            true = batch["segments"].flatten(0, -3)
            segments = tables[items].gather(1, true.flatten(1).long()).view_as(true)
        elif source == "tiles":
            segments = tiles.expand(len(items), -1, -1)
        else:
            segments = cluster_segments(features, num, config.image_size)
            segments = followed(segments, num) if "frames" in batch else segments
        return *mean_features(features, segments, num), segments

    return see


def _tables(store) -> Int[Tensor, "M 256"]:
    """The slot of each number in an item's true segments: things are counted, in a clip over all frames, the rest has none."""
    things, tables = set(range(1, LAST_SEGMENT + 1)), torch.full((len(store), 256), NONE)
    shown = [things & set(thing_map(store[item].info).tolist()) for item in range(len(store))]
    for items in Clips(store) if store.meta["kind"] == "video" else [range(item, item + 1) for item in range(len(store))]:
        for number, thing in enumerate(sorted(set().union(*shown[items.start : items.stop]))):
            tables[items.start : items.stop, thing] = number
    if (tables == NONE).all():
        raise ValueError(f"{store.path} has no true segments of things: take another source of slots, or convert masks, too")
    return tables


def mean_features(features: Float[Tensor, "B C h w"], segments: Int[Tensor, "B R R"], num: int) -> tuple[Tensor, Tensor]:
    """Mean features [B num C] of each segment, and whether there is one [B num]; 0 where not. Numbers from `num` on are none.

    A location counts as often as it has pixels of the segment: small ones that fill no location have features, too.
    """
    (B, _, h, w), R = features.shape, segments.shape[-1]
    row, column = (torch.arange(R) * side // R for side in (h, w))
    number = torch.arange(B)[:, None, None] * (num + 1) + segments.long().cpu().clamp_max(num)
    place = number * h * w + row[:, None] * w + column  # [B R R]
    pixels = torch.bincount(place.flatten(), minlength=B * (num + 1) * h * w).view(B, num + 1, h * w)[:, :num].to(features)
    total = pixels.sum(2, keepdim=True)
    return pixels @ locations(features) / total.clamp_min(1), total[..., 0] > 0
