"""Object discovery as a Task: a method learns slots from images or clips, and is judged by the segments of its maps."""

import contextlib
import copy
import math
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dias_lab import runs
from dias_lab.analysis.evaluate import METRICS, evaluate, scores_text
from dias_lab.config import Config, method_class
from dias_lab.data import store as stores
from dias_lab.data.clips import Clips, ClipSquares, clip_batches, clip_feature_batches
from dias_lab.data.dataset import Squares, batches, squares
from dias_lab.data.features import feature_batches
from dias_lab.methods.base import Output, build, to_device
from dias_lab.modules.conditioning import Conditioned
from dias_lab.trace import AttentionTrace


class Discovery:
    """A method of `config.method` on the stores in `config.data`; what each function gives, methods/task.py says."""

    text = staticmethod(scores_text)

    def __init__(self, config: Config):
        self.config, self.model = config, build(config)  # with clip_frames, clips take the place of images throughout
        self.frozen = None  # a GPU's own copy of the frozen backbone, for speed

    @staticmethod
    def check(config: Config):
        for store in open_stores(config):
            if config.clip_frames:
                Clips(store)  # StoreError where it holds images
        mlp = config.decoder == "mlp" and (config.decoder_locations or config.decoder_start == "lookup")
        if config.conditioning_dim or mlp:
            build(config)  # how many channels and locations there are shows then: it refuses what does not fit
        if config.backbone_weights == "checkpoint":
            raise ValueError(
                'backbone_weights "checkpoint" is that of published models, which are not trained on; take "pretrained"'
            )
        method_class(config.method, bool(config.clip_frames)).check(config)

    @staticmethod
    def records(config: Config) -> dict[str, str]:
        """What tells the records of each split from others of the same name and number."""
        return {store.path.stem: store.fingerprint()[:16] for store in open_stores(config)}

    def begin(self, fabric: Fabric) -> dict:
        self.train_store, self.validation_store = open_stores(self.config)
        if isinstance(self.model.backbone, Conditioned) and self.model.backbone.waiting:
            self.model.backbone.fit(self.samples())
        self.place(fabric)  # a GPU's copy is fitted, too
        meta = self.train_store.meta
        facts = {name: meta[name] for name in ("dataset", "split", "count")} | {"records": self.records(self.config)}
        return facts | self.model.begin()

    @torch.no_grad()
    def samples(self) -> Tensor:
        """The features [M C] that the conditioning is fitted on: all locations of the first training images."""
        config, found = self.config, []
        for batch in squares(self.train_store, config, limit=config.conditioning_images):
            features = self.model.backbone.backbone(self.model.normalise(batch["image"]))  # [B C h w]
            found.append(features.movedim(1, -1).flatten(0, 2))
        return torch.cat(found)

    def place(self, fabric: Fabric):
        """The model is on its device: a GPU gets a copy of the frozen backbone that is fast there."""
        self.fabric = fabric
        if fabric.device.type == "cuda" and not self.model.backbone.trained:
            dtype = torch.bfloat16 if fabric.strategy.precision.precision == "bf16-mixed" else torch.float32
            self.frozen = copy.deepcopy(self.model.backbone).lowered(dtype)

    def batches(self, places: range, step: int, progress: bool = False) -> Iterator[dict]:
        options = dict(step=step, places=places, requests=self.model.requests())
        clips = self.config.clip_frames > 0
        if self.config.cache_views:
            read = clip_feature_batches if clips else feature_batches
            return read(self.train_store, self.config, self.model.backbone, progress=progress, **options)
        return (clip_batches if clips else batches)(self.train_store, self.config, segments=False, **options)

    def prepare(self, batch: dict, places: range) -> tuple[dict, dict]:
        draws = batch.get("draws") or self.model.draw(places, self.config.seed, batch["info"]["step"])
        inputs = to_device({name: batch[name] for name in ("boxes", "frames") if name in batch}, self.model.device)
        if "features" in batch:
            features = batch["features"].to(self.model.device, non_blocking=True).float()
            return {"images": None, "features": features, **inputs}, to_device(draws, self.model.device)
        inputs["images"] = self.model.normalise(batch["image"])
        if self.frozen is not None:
            scaled = self.fabric.strategy.precision.precision == "16-mixed"  # else the copy has its dtype already
            with self.fabric.autocast() if scaled else contextlib.nullcontext(), torch.inference_mode():
                features = self.frozen(inputs["images"].flatten(0, -4)).unflatten(0, inputs["images"].shape[:-3])
            # a copy made outside: what comes from inference mode cannot be saved for a backward pass
            inputs["features"] = features.to(torch.float32, copy=True)
        return inputs, to_device(draws, self.model.device)

    def losses(self, output: Output, progress: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        return self.model.losses(output, progress)

    def measured(self, output: Output) -> dict[str, Tensor]:
        kept, frames = output.keep.float().sum(-1), getattr(output, "frames", None)  # slots an image, or a frame
        return {"kept": kept.mean() if frames is None else (kept * frames).sum() / frames.sum()}

    def parameter_groups(self) -> list[dict]:
        return self.model.parameter_groups()

    def compiled(self) -> list[torch.nn.Module]:
        return self.model.compiled()

    def evaluate(self, fabric: Fabric) -> dict:
        config = self.config
        return evaluate(self.model, self.validation_store, config.protocol, limit=config.evaluate_images, fabric=fabric).scores

    def trace(self, images: int) -> AttentionTrace:
        """The maps of the first validation images, from the slots that an evaluation draws; clips end with the shortest."""
        config, store = self.config, self.validation_store
        # by no loader, which would ask torch's state for a seed
        read = ClipSquares(store, config, images) if config.clip_frames else Squares(store, config.image_size, images, images)
        found = [read[number] for number in range(len(read))]
        frames = min(batch["frames"].shape[1] for batch in found) if config.clip_frames else None
        image, true = (torch.cat([batch[name][:, :frames] for batch in found]) for name in ("image", "segments"))
        items = [item for batch in found for item in batch["info"]["item"].reshape(-1)[:frames].tolist()]
        names = [stores.source_name(store[item].info) for item in items]
        boxes = {"boxes": torch.cat([batch["boxes"] for batch in found])} if "boxes" in found[0] else {}
        return self.model.trace(image, true, seed=config.seed, names=names, **boxes)

    def selection(self, scores: dict) -> float:
        """The mean of the four scores of the map that the method's source scores; of frames seen alone, at the image level."""
        level = "" if "clips" not in scores else "video_" if self.config.clip_frames else "image_"
        values = [scores[self.model.evaluated_map][f"{level}{metric}"] for metric in METRICS]
        defined = [value for value in values if value is not None and value == value]
        return sum(defined) / len(defined) if defined else math.nan


def open_stores(config: Config) -> tuple[stores.Store, stores.Store]:
    """The training and the validation split. Raises FileNotFoundError or StoreError, naming the file."""
    folder = runs.resolve(config.data)
    return stores.open(folder / "train.lmdb"), stores.open(folder / "validation.lmdb")
