"""Evaluation: a model's segments, from its first, last and decoder map, scored under a named protocol.

A map is upsampled bilinearly to the protocol's square, each pixel goes to its strongest slot, and scores are computed an
image, then averaged over the images where they are defined. Image i draws its slots from (seed, i).
"""

import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from dias_lab import devices, runs
from dias_lab.data import store as stores
from dias_lab.data.dataset import squares
from dias_lab.methods import Method, checkpoint, segments_from
from dias_lab.metrics import OVERLAP, VOID, segmentation_scores

MAPS = ("first", "last", "decoder")
METRICS = ("ari", "fg_ari", "mbo", "miou")


class Evaluation(NamedTuple):
    scores: dict  # protocol, store, images, and a dict of mean scores (fractions) for each map
    images: pd.DataFrame  # a row an image: item, kept slots, reconstruction error, and "<map>.<metric>"


@torch.no_grad()
def evaluate(
    subject, store, protocol: str = "dias", seed: int | None = None, limit: int = 0, out=None, fabric=None
) -> Evaluation:
    """Score a model, or the best checkpoint of a run directory, on a store (or its path).

    `limit`: only the first images; 0 takes all. The scores are also written to the file `out`, if given; with a run
    directory, by default to its `scores/<store>-<protocol>.json`, and beside it those of each image as .images.csv. Raises
    ValueError for an empty store or an unknown protocol. With `fabric`, its processes share the batches, and each gets
    the whole: every image's own row.
    """
    started = time.perf_counter()
    model = subject if isinstance(subject, Method) else checkpoint.load_model(subject)
    store = store if isinstance(store, stores.Store) else stores.open(runs.resolve(store))
    seed = model.config.seed if seed is None else seed
    was_training = model.training
    first, every = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    share = squares(store, model.config, limit, first, every)
    try:
        model.eval()
        tables = [_score_batch(model, batch, protocol, seed) for batch in share]
    finally:
        model.train(was_training)
    tables = devices.gather(fabric, tables)
    tables.sort(key=lambda table: table["item"].iloc[0])
    if not tables:
        raise ValueError(f"the store {store.path} is empty: there is nothing to evaluate")
    images = pd.concat(tables, ignore_index=True)
    scores = summarise(images, protocol, store.path.stem)
    if out is None and subject is not model:
        out = scores_file(subject, store, protocol, limit)
    if out is not None:
        facts = {"seed": seed, "step": model.step, "device": str(model.device), "data": str(store.path)}
        if subject is model:  # no run directory says what it is
            facts |= {"reference": model.source, "config": model.config.to_dict()}
        about = {**runs.about(), **facts, "seconds": time.perf_counter() - started}
        if subject is not model:  # for paired comparisons with other runs
            runs.write_text(runs.resolve(out).with_suffix(".images.csv"), images.to_csv(index=False))
        runs.write_json(runs.resolve(out), {**scores, "about": about})
    return Evaluation(scores, images)


def scores_file(run_dir, store: stores.Store, protocol: str, limit: int = 0) -> Path:
    """Where the scores of a run go; those of a part of the split stand apart from those of the whole."""
    return runs.resolve(run_dir) / "scores" / scores_name(store, protocol, limit)


def scores_name(store: stores.Store, protocol: str, limit: int = 0) -> str:
    part = f"-first{limit}" if 0 < limit < len(store) else ""
    return f"{store.path.stem}-{protocol}{part}.json"


def _score_batch(model, batch, protocol, seed) -> pd.DataFrame:
    items = batch["info"]["item"].tolist()
    output = model(model.normalise(batch["image"]), draws=model.draw(items, seed))
    error = (output.reconstruction - output.features).square().mean(dim=(1, 2, 3))
    columns = {"item": items, "kept": output.keep.sum(1).cpu(), "reconstruction": error.cpu()}
    true, classes = batch["segments"].to(model.device), None
    if "classes" in batch["info"]:
        table = batch["info"]["classes"].to(model.device)
        classes = table.gather(1, true.flatten(1).long()).view_as(true)
    for name, attention in zip(MAPS, (output.attention[0], output.attention[-1], output.decoder_attention)):
        found = segmentation_scores(segments_from(attention, true.shape[-1]), true, protocol, classes)
        if classes is not None:
            found["mbo_class"][(table[:, 1:OVERLAP] == VOID).any(dim=1).cpu()] = torch.nan  # classes not known
        columns |= {f"{name}.{metric}": found[metric] for metric in found}
    return pd.DataFrame(columns)


def summarise(images: pd.DataFrame, protocol: str, store: str) -> dict:
    """Mean scores over the images where they are defined, a dict a map; and how many images that are."""
    means = images.mean()
    scores = {"protocol": protocol, "store": store, "images": len(images)}
    scores |= {"kept": float(means["kept"]), "reconstruction": float(means["reconstruction"])}
    scores["valid"] = {metric: int(images[f"decoder.{metric}"].notna().sum()) for metric in METRICS}
    for name in MAPS:  # and mBO over classes where the store knows them
        scores[name] = {
            metric: float(means[f"{name}.{metric}"])
            for metric in (*METRICS, "mbo_class")
            if f"{name}.{metric}" in images
        }
    return scores
