"""Evaluation: what predicts segments, a model or something simpler, scored under a named protocol.

A model's map is upsampled bilinearly to the protocol's square, each pixel goes to its strongest slot, and scores are
computed an image, then averaged over the images where they are defined. Image i draws its slots from (seed, i).
A store of frames is scored clip by clip, at two levels (metrics.py): clip i draws from (seed, i), and an image model, which
sees each frame alone, from (seed, the frame's item).

Axes: B images or clips, F frames, R pixels of the protocol's square.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from dias_lab import runs
from dias_lab.analysis.intervals import TITLES, mean_text
from dias_lab.data import store as stores
from dias_lab.data.dataset import squares
from dias_lab.methods import Method, checkpoint, segments_from
from dias_lab.metrics import OVERLAP, VOID, named, region_and_contour, segmentation_scores, video_scores

MAPS = ("first", "last", "decoder")
METRICS = ("ari", "fg_ari", "mbo", "miou")
CLIP_METRICS = tuple(f"{level}_{metric}" for level in ("video", "image") for metric in METRICS)


class Evaluation(NamedTuple):
    scores: dict  # protocol, store, images (and clips), and a dict of mean scores (fractions) for each map
    images: pd.DataFrame  # a row an image (or clip): item, kept slots, reconstruction error, and "<map>.<metric>"


@torch.no_grad()
def score(predict: Callable, store, config, protocol: str = "dias", limit: int = 0, fabric=None) -> pd.DataFrame:
    """A row an image of the store: item, and what a predictor says of it.

    predict(batch of `squares`) gives tensors by name: segments int [B R R], which become columns "<name>.<metric>", mBO over
    classes among them where the store knows classes; and numbers [B], which are columns. `limit`: only the first images; 0
    takes all. With `fabric`, its processes share the batches, and each gets the whole. Raises ValueError for an empty store
    or an unknown protocol.

    A store of frames gives a row a clip: item (its number, which `limit` counts), name, frames. Batches are of `clip_squares`,
    segments [B F R R], numbers [B], or [B F] to be averaged over frames, and columns "<name>.video_ari" and so on
    (`metrics.video_scores`), of DAVIS also "<name>.jf". StoreError for a config of clips and a store of images.
    """
    first, every = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    read, clips, contours = squares, None, "davis" in store.meta["dataset"].lower()
    if config.clip_frames or store.meta["kind"] == "video":
        from dias_lab.data.clips import Clips, clip_squares
        read, clips = clip_squares, Clips(store)
    batches = read(store, config, limit, first, every, named(protocol).crowds)
    tables = [_scored(batch, predict(batch), protocol, contours) for batch in batches]
    if every > 1:
        parts = [None] * every
        torch.distributed.all_gather_object(parts, tables)
        tables = sorted((table for part in parts for table in part), key=lambda table: table["item"].iloc[0])
    if not tables:
        raise ValueError(f"the store {store.path} is empty: there is nothing to evaluate")
    table = pd.concat(tables, ignore_index=True)
    return table.assign(name=table["item"].map(clips.name)) if clips else table


def _scored(batch: dict, predicted: dict, protocol: str, contours: bool = False) -> pd.DataFrame:
    if "frames" in batch:
        return _scored_clips(batch, predicted, protocol, contours)
    columns, maps = {"item": batch["info"]["item"].tolist()}, {"true": batch["segments"]}
    if (table := batch["info"].get("classes")) is not None:
        maps["classes"] = table.gather(1, maps["true"].flatten(1).long()).view_as(maps["true"])
    for name, tensor in predicted.items():
        if tensor.ndim == 1:
            columns[name] = tensor.cpu()
            continue
        found = segmentation_scores(tensor, protocol=protocol, **{key: map_.to(tensor.device) for key, map_ in maps.items()})
        if table is not None:
            found["mbo_class"][(table[:, 1:OVERLAP] == VOID).any(dim=1)] = torch.nan  # classes not known
        columns |= {f"{name}.{metric}": found[metric] for metric in found}
    return pd.DataFrame(columns)


def _scored_clips(batch: dict, predicted: dict, protocol: str, contours: bool) -> pd.DataFrame:
    true, frames = batch["segments"], batch["frames"]
    columns = {"item": batch["info"]["clip"].tolist(), "frames": frames.sum(1)}
    for name, tensor in predicted.items():
        if tensor.ndim < 3:  # of each clip, or of each of its frames
            columns[name] = tensor.double().reshape(len(tensor), -1).mean(1).cpu()
            continue
        found = video_scores(tensor, true, protocol, frames) | (region_and_contour(tensor, true, frames) if contours else {})
        columns |= {f"{name}.{metric}": found[metric] for metric in found}
    return pd.DataFrame(columns)


def maps_of(model: Method, seed: int) -> Callable:
    """A predictor: a model's first, last and decoder map, its kept slots, and its reconstruction error; of clips, too."""

    def found(output, size: int) -> dict:
        error = (output.reconstruction - output.features).square().mean(dim=(-3, -2, -1))  # [B], or [B F]
        maps = zip(MAPS, (output.attention[0], output.attention[-1], output.decoder_attention))
        segments = {name: segments_from(one.flatten(0, -4), size).unflatten(0, one.shape[:-3]) for name, one in maps}
        return {"kept": output.keep.sum(-1), "reconstruction": error, **segments}

    def predict(batch):
        draws = model.draw(batch["info"]["item"].tolist(), seed)
        return found(model(model.normalise(batch["image"]), draws=draws), batch["image"].shape[-1])

    def predict_clips(batch):  # in pieces: a long clip needs no more memory than a short one
        draws = model.draw(batch["info"]["clip"].tolist(), seed, frames=1)
        pieces = model.pieces(batch["image"], draws=draws, boxes=batch.get("boxes"))
        parts = [found(piece, batch["image"].shape[-1]) for piece in pieces]
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}

    return predict_clips if model.config.clip_frames else frame_by_frame(predict, model.config.batch_size)


def frame_by_frame(predict: Callable, size: int) -> Callable:
    """A predictor of images as one that takes clips as well: it sees their frames each alone, `size` at a time."""

    def predict_clips(batch):
        if "frames" not in batch:
            return predict(batch)
        image, true, item = (one.flatten(0, 1).split(size) for one in (batch["image"], batch["segments"], batch["info"]["item"]))
        parts = [predict({"image": a, "segments": b, "info": {"item": c}}) for a, b, c in zip(image, true, item)]
        return {name: torch.cat([part[name] for part in parts]).unflatten(0, batch["frames"].shape) for name in parts[0]}

    return predict_clips


def evaluate(
    subject, store, protocol: str = "dias", seed: int | None = None, limit: int = 0, out=None, fabric=None
) -> Evaluation:
    """Score a model, or the best checkpoint of a run directory, on a store (or its path); the rest as `score` has it.

    The scores are also written to the file `out`, if given; with a run directory, by default to its
    `scores/<store>-<protocol>.json`, and beside it those of each image as .images.csv.
    """
    started = time.perf_counter()
    model = subject if isinstance(subject, Method) else checkpoint.load_model(subject)
    store = store if isinstance(store, stores.Store) else stores.open(runs.resolve(store))
    seed = model.config.seed if seed is None else seed
    was_training = model.training
    try:
        model.eval()
        images = score(maps_of(model, seed), store, model.config, protocol, limit, fabric)
    finally:
        model.train(was_training)
    scores = summarise(images, protocol, store.path.stem)
    if out is None and subject is not model:
        out = scores_file(subject, store, protocol, limit)
    if out is not None:
        facts = {"seed": seed, "step": model.trained_steps, "device": str(model.device), "data": str(store.path)}
        facts |= {"records": store.fingerprint()[:16]}  # what tells them from others of the same name and number
        if subject is model:  # no run directory says what it is
            facts |= {"reference": model.source, "config": model.config.to_dict()}
        else:  # for paired comparisons with other runs
            known = images.assign(records=facts["records"])
            runs.write_text(runs.resolve(out).with_suffix(".images.csv"), known.to_csv(index=False))
        about = {**runs.about(), **facts, "seconds": time.perf_counter() - started}
        runs.write_json(runs.resolve(out), {**scores, "about": about})
    return Evaluation(scores, images)


def scores_file(run_dir, store: stores.Store, protocol: str, limit: int = 0) -> Path:
    """Where the scores of a run go; those of a part of the split stand apart from those of the whole."""
    return runs.resolve(run_dir) / "scores" / scores_name(store, protocol, limit)


def scores_name(store: stores.Store, protocol: str, limit: int = 0) -> str:
    part = f"-first{limit}" if 0 < limit < len(store.meta.get("clips", store)) else ""
    return f"{store.path.stem}-{protocol}{part}.json"


def summarise(images: pd.DataFrame, protocol: str, store: str) -> dict:
    """Mean scores over the images (or clips) where they are defined, a dict a map; and how many images that are."""
    means, clips = images.mean(numeric_only=True), "frames" in images
    count = {"clips": len(images), "images": int(images["frames"].sum())} if clips else {"images": len(images)}
    scores = {"protocol": protocol, "store": store, **count}
    scores |= {name: float(means[name]) for name in ("kept", "reconstruction")}
    scores["valid"] = {metric: int(images[f"decoder.{metric}"].notna().sum()) for metric in (CLIP_METRICS if clips else METRICS)}
    for name in MAPS:  # and mBO over classes where the store knows them
        there = {metric: f"{name}.{metric}" for metric in (*TITLES, "switches")}
        scores[name] = {metric: float(means[column]) for metric, column in there.items() if column in images}
    return scores


def scores_text(*found: dict) -> str:
    """The scores of a run, or mean and sample standard deviation of several, under their protocol, as a table of text."""
    first, spread = found[0], f", mean ± standard deviation of n = {len(found)} runs" if len(found) > 1 else ""
    titles = TITLES | {"switches": "switches a clip"}
    titles = {metric: title for metric, title in titles.items() if all(metric in one["decoder"] for one in found)}
    rows = {}
    for name in MAPS:
        values = pd.DataFrame([one[name] for one in found])[list(titles)].astype(float)
        values["switches"] = values.get("switches", 0) / 100  # of a clip: a number, and no share
        rows[name] = {title: mean_text(values[metric].mean(), values[metric].std()) for metric, title in titles.items()}
    table = pd.DataFrame(rows) if "clips" in first else pd.DataFrame(rows).T
    count = f"{first['clips']} clips ({first['images']} frames)" if "clips" in first else f"{first['images']} images"
    return f"{count} of {first['store']}, protocol {first['protocol']}, scores x100{spread}\n{table.to_string(col_space=10)}"
