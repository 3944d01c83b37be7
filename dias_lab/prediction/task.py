"""Prediction as a Task: SlotFormer learns how the slots of a frozen model go on in the training split's clips.

A window is `burn_in` + `rollout` frames, every `clip_stride`-th. The loss is the squared error of the predicted slots that
count, standardised, and with `feature_weight` that of the features which the frozen decoder makes of them: SlotFormer's image
loss, of features. Decoding is most of a step's work, so DECODED of the predicted frames are decoded a step, drawn anew.

Axes: B clips, F = T + K frames, seen and predicted, S decoded ones, N slots, D slot width, C h w feature maps.
"""

import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from dias_lab import runs
from dias_lab.analysis.discovery import Discovery, open_stores
from dias_lab.config import Config
from dias_lab.data import draws, features
from dias_lab.data import store as stores
from dias_lab.data.clips import Clips
from dias_lab.data.dataset import Batches
from dias_lab.prediction import predictor
from dias_lab.prediction.curves import curves, curves_text, longest, means, summary
from dias_lab.prediction.predictor import Predictor, Rolled, slots_seen

DECODED = 2


class Windows(Batches):
    """Training windows by step: slots [B F N D], keep [B N] (those that count throughout), features [B S C h w] of the frames
    that are decoded, if any, and draws: "decoded" [B S], numbers of predicted frames, and "dropout" [B]."""

    def __init__(self, store, config, slots, cache=None, places: range | None = None):
        decoded = functools.partial(_some, min(DECODED, config.rollout), config.rollout)
        requests = [draws.Request("dropout", _number), draws.Request("decoded frames", decoded)]
        super().__init__(store, config, None, places, requests, segments=False)
        self.clips, self.slots, self.cache = Clips(store), slots, cache
        self.num_items = len(self.clips)

    def __getitem__(self, step: int) -> dict:
        config, windows = self.config, []
        for clip, random in self.places(step):
            items = list(self.clips[clip])
            span = (config.burn_in + config.rollout - 1) * config.clip_stride + 1
            windows.append(items[int(random.integers(len(items) - span + 1)) :][: span : config.clip_stride])
        about = self.about(step, [items[0] for items in windows])
        slots, keep = (np.stack([array[items] for items in windows]) for array in (self.slots.slots, self.slots.keep))
        found = {"slots": torch.from_numpy(slots).float(), "keep": torch.from_numpy(keep).all(dim=1), **about}
        if self.cache is not None:
            later = [(items[config.burn_in :], which.tolist()) for items, which in zip(windows, about["draws"]["decoded"])]
            maps = self.cache.views_of([(items[k], 0) for items, which in later for k in which])
            found["features"] = maps.float().unflatten(0, (len(windows), -1))
        return found


class Prediction:
    through_parent = True
    text = staticmethod(curves_text)
    records = staticmethod(Discovery.records)  # of the stores

    def __init__(self, config: Config):
        self.config = config
        kinds = open_stores(config)[0].meta["classes"] if config.slots_of == "oracle" else None
        self.model = Predictor(config, config.slot_dim if kinds is None else predictor.BODY + len(kinds))

    @staticmethod
    def check(config: Config):
        if config.slots_of not in ("model", "untrained", "oracle"):
            raise ValueError(
                f"slots_of={config.slots_of!r} gives mean features of segments, which nothing decodes: to predict, take "
                '"model", "untrained" or "oracle", the true states of the world with physics'
            )
        model = predictor.frozen_model(config)
        for store in open_stores(config):
            if store.meta["kind"] != "video":
                way_out = "convert clips (python -m dias_lab convert physics, or convert --help)"
                raise stores.StoreError(f"{store.path} holds images, in which nothing comes next: {way_out}")
            clips = Clips(store)
            for clip in range(len(clips)):
                predictor.clip_window(config, clips, clip, config.rollout)
        if config.slots_of != "oracle" and config.feature_weight and predictor.needs_features(model):
            raise ValueError(
                f"the decoder of {config.parent} sees the features that it reconstructs, or reconstructs codes: it makes no "
                "features of predicted slots. Take feature_weight=0, and slots alone are compared"
            )

    def begin(self, fabric: Fabric) -> dict:
        config = self.config
        self.train_store, self.validation_store = open_stores(config)
        self.slots = slots_seen(config, self.train_store)
        self.model.fit(self.slots, self.train_store)
        meta, records = self.train_store.meta, self.records(config)
        return {name: meta[name] for name in ("dataset", "split", "count")} | {"records": records}

    def batches(self, places: range, step: int, progress: bool = False) -> Iterator[dict]:
        config, store, cache = self.config, self.train_store, None
        if config.feature_weight and self.model.shows:
            whole = config.replace(crop_scale=1.0, cache_views=1)  # view 0 is the centre square
            folder = features.make(store, whole, self.model.slot_model.backbone, progress)
            cache = features.FeatureBatches(store, whole, folder)
        windows = Windows(store, config, self.slots, cache, places)
        return (windows[one] for one in range(step, config.steps))  # no picture is read: no process needs to read ahead

    def prepare(self, batch: dict, places: range) -> tuple[dict, dict]:
        device = self.model.places.device
        inputs = {name: batch[name].to(device, non_blocking=True) for name in ("slots", "keep", "features") if name in batch}
        return inputs, batch["draws"]

    def losses(self, output: Rolled, progress: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        deviation = self.model.rollouter.deviation
        error = ((output.predicted - output.true) / deviation).square().mean(dim=(1, 3))  # [B N]
        kept = output.keep.float()
        terms, weights = {"slots": (error * kept).sum() / kept.sum().clamp_min(1)}, {"slots": 1.0}
        if output.decoded is not None:
            terms["features"] = (output.decoded - output.features).square().mean()
            weights["features"] = self.config.feature_weight
        return terms, weights

    def measured(self, output: Rolled) -> dict[str, Tensor]:
        return {"kept": output.keep.float().sum(-1).mean()}

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.model.parameters()), "share": 1.0}]

    def compiled(self) -> list[torch.nn.Module]:
        return [self.model.rollouter.encoder]

    def evaluate(self, fabric: Fabric) -> dict:
        """Means over the rollout's steps and the validation clips, for each method; "slot_error" is relative to copying."""
        was_training, config = self.model.training, self.config
        table = curves(self.model.eval(), self.validation_store, config.evaluate_images, config.rollout)
        self.model.train(was_training)
        return means(table)

    def selection(self, scores: dict) -> float:
        """Minus the error of the slots, relative to copying the last ones; of true states, that of their centroids."""
        own = scores["SlotFormer"]
        error = own["centroid_error"] if own["slot_error"] is None else own["slot_error"]
        return math.nan if error is None else -error

    @staticmethod
    def report(run_dir, store, limit: int = 0) -> tuple[dict, str]:
        """Of 20 steps, or as many as the clips have: what `means` gives, and "curves", their `summary`."""
        store = store if isinstance(store, stores.Store) else stores.open(runs.resolve(store))
        model = predictor.load(run_dir)
        table = curves(model, store, limit, min(20, longest(model, store, limit)))
        scores = means(table)
        return scores | {"curves": summary(table).reset_index().to_dict("list")}, curves_text(scores, table)


def _number(random: np.random.Generator) -> dict:
    return {"dropout": random.integers(2**62)}


def _some(count: int, of: int, random: np.random.Generator) -> dict:
    return {"decoded": random.permutation(of)[:count]}
