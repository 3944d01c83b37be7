"""How errors grow: what a predictor says of each future frame, against simpler guesses and what was really there.

Methods. "SlotFormer", or the name that is given; "copy last": the slots of the last seen frame stay; "constant velocity": the
centroid of each slot's segment goes on as in the burn-in, and turns round where a disc of its area meets the picture's side;
"seen": the slots of the frames themselves, which shows what decoding loses.

Errors, a row for each method, step and clip, of the slots that count:
slot_mse         squared error of slots, in their own units; slot_error: divided by the mean of "copy last" at this step
feature_mse      squared error of the features that the slots decode to, against the backbone's
ari, fg_ari, miou  of the decoder's map, each frame alone
centroid_error   pixels between the centroids of an object and of its slot's predicted segment

An object's slot is found once, on the burn-in, by Hungarian matching on IoU summed over its frames; `matched` is the share of
the objects shown there that have one. Frames that do not show an object do not count; a slot without pixels stays where it
had some last. True states (slots_of="oracle") have centroids alone, body k being object k; slots whose decoder sees the features
that it reconstructs have slot_mse alone.

Axes: F frames, T of them the burn-in, K predicted ones, N slots, S objects, R pixels of the square.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dias_lab import runs
from dias_lab.analysis.intervals import paired_interval
from dias_lab.data import store as stores
from dias_lab.data.clips import Clips
from dias_lab.methods import segments_from
from dias_lab.metrics import OVERLAP, confusion, segmentation_scores
from dias_lab.prediction.predictor import Predictor, clip_window, frames_at, load, rollout, slots_seen

METRICS = ("slot_mse", "slot_error", "feature_mse", "ari", "fg_ari", "miou", "centroid_error")
LABELS = 256


@torch.no_grad()
def curves(model, store, limit: int = 0, steps: int = 20, name: str = "SlotFormer", baselines: bool = True) -> pd.DataFrame:
    """The table described above, of the first `limit` clips (0: all): method, step (1 is the first predicted frame), clip,
    METRICS and matched. `model`: a predictor, or the directory of its run; `store`: one, or its path.

    `baselines=False`: the rows of this predictor alone, to be put below those of others. Raises ValueError where a clip is too
    short for so many steps, and where slots are of something else.
    """
    model = model if isinstance(model, Predictor) else load(model)
    store = store if isinstance(store, stores.Store) else stores.open(runs.resolve(store))
    clips, slots = Clips(store), slots_seen(model.config, store)
    numbers = range(min(limit or len(clips), len(clips)))
    windows = [clip_window(model.config, clips, clip, steps) for clip in numbers]
    of_clip = states_of_clip if model.slot_model is None else slots_of_clip
    table = pd.concat([of_clip(model, store, slots, items, name).assign(clip=clip) for clip, items in zip(numbers, windows)])
    table = table.reindex(columns=["method", "step", "clip", *METRICS, "matched"])
    copied = table[table["method"] == "copy last"].groupby("step")["slot_mse"].mean()
    table["slot_error"] = table["slot_mse"] / table["step"].map(copied)
    return table[baselines | (table["method"] == name)].reset_index(drop=True)


def slots_of_clip(model: Predictor, store, slots, items: list[int], name: str) -> pd.DataFrame:
    """The rows of one clip."""
    config, T, device = model.config, model.config.burn_in, model.places.device
    images, true = frames_at(store, items, config.image_size)
    real, keep = torch.from_numpy(slots.slots[items]).float().to(device), slots.keep[items[:T]].all(axis=0)
    kept = torch.from_numpy(keep).to(device)
    told = {name: rollout(model, real[None, :T], kept[None], len(items) - T)[0]}  # [K N D] each
    told |= {"copy last": real[T - 1].expand_as(told[name]), "seen": real[T:]}

    segments = torch.from_numpy(slots.segments[items[:T]])
    objects, slot = match(segments, true[:T], keep)
    own, places = centroids(segments, len(keep)), centroids(true, LABELS)[T:, objects]  # [T N 2] and [K S 2]
    share = {"matched": (slot >= 0).mean() if len(slot) else np.nan}
    found = slot >= 0

    def distance(path: np.ndarray) -> np.ndarray:  # of [K N 2]
        return mean_of(np.linalg.norm(path[:, slot[found]] - places[:, found], axis=2))

    features = model.slot_model.backbone(model.slot_model.normalise(images[T:])) if model.shows else None  # [K C h w]
    tables = []
    for predicted in told.values():
        tables.append({"slot_mse": (predicted - real[T:])[:, kept].square().mean(dim=(1, 2)).cpu()})
        if model.shows:
            decoded, maps = model.decode(predicted, kept.expand(len(predicted), -1))
            shown = segments_from(maps, config.image_size).cpu()  # [K R R]
            tables[-1] |= segmentation_scores(shown, true[T:], config.protocol)
            tables[-1] |= {"feature_mse": (decoded - features).square().mean(dim=(1, 2, 3)).cpu()}
            tables[-1] |= {"centroid_error": distance(filled(np.concatenate([own, centroids(shown, len(keep))]))[T:])}
    areas = np.array([(segments == n).sum().item() for n in range(len(keep))]) / T
    straight = distance(reflected(own, areas, config.image_size, len(items) - T))
    rows = [pd.DataFrame(table).assign(method=method, **share) for method, table in zip(told, tables)]
    rows.insert(2, pd.DataFrame({"centroid_error": straight}).assign(method="constant velocity", **share))
    return pd.concat([table.assign(step=np.arange(1, len(table) + 1)) for table in rows])


def states_of_clip(model: Predictor, store, slots, items: list[int], name: str) -> pd.DataFrame:
    """The same of true states. A centroid is as far from the body's place as it was in the burn-in."""
    config, T = model.config, model.config.burn_in
    _, true = frames_at(store, items, config.image_size)
    states, keep = torch.from_numpy(slots.slots[items]), torch.from_numpy(slots.keep[items[:T]].all(axis=0))
    told = rollout(model, states[None, :T], keep[None], len(items) - T)[0].cpu()  # [K N D]
    info = store[items[0]].info
    side, corner = min(info["width"], info["height"]), np.array([info["width"], info["height"]])
    path = (torch.cat([states[:T], told])[..., :2].numpy() - (corner - side) / 2) * config.image_size / side
    apart = centroids(true, LABELS)[:, 1 : len(keep) + 1] - path  # [F N 2]
    apart = (apart - np.nanmean(apart[:T], axis=0))[T:, keep.numpy()]
    error = mean_of(np.linalg.norm(apart, axis=2))
    return pd.DataFrame({"method": name, "step": np.arange(1, len(error) + 1), "centroid_error": error, "matched": 1.0})


def match(segments: Int[Tensor, "T R R"], true: Int[Tensor, "T R R"], keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The objects [S] that the frames show, and the slot of each [S]; -1 where none is left that overlaps it."""
    count = confusion(segments.int(), true.int(), LABELS).astype(float)  # [T 256 256]
    union = count.sum(axis=1, keepdims=True) + count.sum(axis=2, keepdims=True) - count
    iou = (count / np.maximum(union, 1)).sum(axis=0)[: len(keep), 1:OVERLAP] * keep[:, None]  # [N 253]
    objects = np.flatnonzero(count.any(axis=(0, 1))[1:OVERLAP])
    slot = np.full(len(objects), -1)
    rows, columns = linear_sum_assignment(iou[:, objects], maximize=True)
    slot[columns] = np.where(iou[rows, objects[columns]] > 0, rows, -1)
    return objects + 1, slot


def centroids(segments: Int[Tensor, "F R R"], count: int) -> Float[np.ndarray, "F count 2"]:
    """x and y, in pixels, of the middle of each segment 0 to count - 1; NaN where it has no pixel."""
    F, R, _ = segments.shape
    cell = (torch.arange(F)[:, None, None] * LABELS + segments.long()).flatten()
    row, column = (one.expand(F, R, R).flatten().double() + 0.5 for one in (torch.arange(R)[:, None], torch.arange(R)))
    size, x, y = (torch.bincount(cell, weights, F * LABELS).view(F, LABELS)[:, :count] for weights in (None, column, row))
    return torch.stack([x, y], dim=2).numpy() / np.where(size > 0, size, np.nan)[..., None]


def filled(path: Float[np.ndarray, "F N 2"]) -> Float[np.ndarray, "F N 2"]:
    """A slot without pixels is where it had some last."""
    return np.stack([pd.DataFrame(path[..., axis]).ffill().to_numpy() for axis in (0, 1)], axis=2)


def reflected(own: Float[np.ndarray, "T N 2"], areas: np.ndarray, size: int, steps: int) -> Float[np.ndarray, "K N 2"]:
    """Centroids that go on as from the first to the last frame that shows them, as balls between walls do."""
    T, path = len(own), np.full((steps, *own.shape[1:]), np.nan)
    for n in range(own.shape[1]):
        shown = np.flatnonzero(np.isfinite(own[:, n, 0]))
        if len(shown):
            first, last = shown[[0, -1]]
            velocity = (own[last, n] - own[first, n]) / max(last - first, 1)
            straight = own[last, n] + velocity * (T - last + np.arange(steps))[:, None]  # [K 2]
            low = min(np.sqrt(areas[n] / np.pi), size / 2 - 0.5)
            width = size - 2 * low
            path[:, n] = low + width - abs((straight - low) % (2 * width) - width)
    return path


def mean_of(errors: Float[np.ndarray, "K S"]) -> Float[np.ndarray, "K"]:
    """Means over the objects where they are defined; NaN where none is."""
    return pd.DataFrame(errors).mean(axis=1).to_numpy()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By method and step, in the order of the table: the mean of each of METRICS over clips, and the bounds of its 95 % interval
    in <metric>_low and <metric>_high (a bootstrap over clips); NaN where no clip has the metric."""
    rows = {}
    for key, group in table.groupby(["method", "step"], sort=False):
        known = {metric: group[metric].to_numpy(float) for metric in METRICS}
        found = {m: paired_interval(one[None]) if np.isfinite(one).any() else (np.nan,) * 3 for m, one in known.items()}
        rows[key] = {f"{m}{end}": value for m, three in found.items() for end, value in zip(("", "_low", "_high"), three)}
    return pd.DataFrame(rows).T.rename_axis(["method", "step"])


def means(table: pd.DataFrame) -> dict:
    """{clips, steps, method: {metric: mean over steps and clips, None where undefined}}; "slot_error" of means."""
    found = {"clips": int(table["clip"].nunique()), "steps": int(table["step"].max())}
    for method, rows in table.groupby("method", sort=False):
        values = rows[[*METRICS, "matched"]].groupby(rows["step"]).mean().mean()
        found[method] = {name: float(value) if value == value else None for name, value in values.items()}
    return found


def longest(model: Predictor, store, limit: int = 0) -> int:
    """The most steps that the clips have after the burn-in."""
    ranges = Clips(store).ranges[: limit or None]
    return min(len(items[:: model.config.clip_stride]) for items in ranges) - model.config.burn_in


def curves_text(scores: dict, table: pd.DataFrame | None = None) -> str:
    """Scores as a table, a line a method; with the curves also centroids after the first, the middle and the last step."""
    lines = {method: row for method, row in scores.items() if isinstance(row, dict) and method != "curves"}
    shown = pd.DataFrame(lines).T[[*METRICS]].astype(float)
    if table is not None:
        for step in sorted({1, (scores["steps"] + 1) // 2, scores["steps"]}):
            shown[f"px, step {step}"] = table[table["step"] == step].groupby("method")["centroid_error"].mean()
    head = f"means over {scores['steps']} steps, {scores['clips']} clips; slot_error: 1 is copying; centroids in pixels"
    return f"{head}\n{shown.to_string(float_format='{:.3f}'.format)}"
