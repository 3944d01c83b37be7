"""What a head for recognition is judged by; every score is a ratio of sums over images (or clips), so it has an interval.

Source: top-1, top-3 and box IoU over the matched slots are those of Genera1Z/RandSF.Q and SmoothSA; box R2 is DIAS's (Zhao et al.
2025, arXiv:2507.23755), for which no code is public: it is scikit-learn's r2_score here. They are conditional on a slot having
found its object, so recall and what is over all objects stand beside them.

Axes: B images (or clips, whose frames belong together), K objects that were found, C classes.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from dias_lab.analysis.intervals import mean_text, paired_interval, widened_interval
from dias_lab.heads.matching import BOX

SAID = [f"said_{edge}" for edge in BOX]  # the box that the head says
# of each score: its title, what is divided by what, and what that is
SCORES = {
    "top1": ("top-1", "correct", "matched", "found objects whose class is said"),
    "top3": ("top-3", "among_three", "matched", "found objects whose class is among the three most probable"),
    "box_iou": ("box IoU", "overlap", "matched", "mean IoU of said and true box, of found objects"),
    "r2": ("box R2", "", "", "1 - SSE/SST, SST around the mean true box of the found objects evaluated; mean of 4 coordinates"),
    "recall": ("recall", "matched", "true", "objects that a slot has found"),
    "recall_50": ("recall@50", "half", "true", "objects that a slot has found and whose box is said at IoU above 0.5"),
    "recall_75": ("recall@75", "three_quarters", "true", "the same above 0.75"),
    "top1_all": ("top-1 of all", "correct", "true", "objects that are found and whose class is said: top-1 x recall"),
}
DEFINITIONS = "\n".join(f"{title}: {told}" for title, *_, told in SCORES.values())


def box_iou(one: Float[Tensor, "K 4"], other: Float[Tensor, "K 4"]) -> Float[Tensor, "K"]:
    """IoU of each pair of boxes left, top, right, bottom; a box whose sides are crossed has no area. 0 where neither has one."""
    corners = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    inner, *own = ((box[:, 2:] - box[:, :2]).clamp_min(0).prod(dim=1) for box in (torch.cat(corners, dim=1), one, other))
    union = sum(own) - inner
    return torch.where(union > 0, inner / union, 0)


def judged(objects: pd.DataFrame, logits: Float[Tensor, "K C"], boxes: Float[Tensor, "K 4"]) -> pd.DataFrame:
    """The objects of known class, and what is said of those that a slot has found, in order (else NaN): said, the place of the
    most probable class; probability, its own; rank, how many are more probable than the true one; box, `SAID`; box_iou."""
    known = objects[objects["label"] >= 0].reset_index(drop=True)
    found = known[known["slot"] >= 0]
    order, true = logits.argsort(dim=1, descending=True, stable=True), torch.tensor(found[["label", *BOX]].to_numpy())
    values = {
        "said": order[:, 0], "probability": logits.softmax(dim=1).amax(dim=1), "rank": (order == true[:, :1]).int().argmax(dim=1),
        **dict(zip(SAID, boxes.double().T)), "box_iou": box_iou(boxes.double(), true[:, 1:]),
    }  # fmt: skip
    return known.join(pd.DataFrame({name: value.numpy() for name, value in values.items()}, index=found.index, dtype=float))


def by_image(table: pd.DataFrame) -> dict[str, Float[np.ndarray, "B"]]:
    """Of each score one number an image (or clip) with objects, of which the score is the mean.

    A score is a ratio of sums over images, Y/X; the numbers are Y/X + (y - x Y/X) / mean x, by which a bootstrap over images
    gives the ratio's own interval to first order (linearisation; Cochran 1977, Sampling Techniques).
    """
    found, true = table[table["slot"] >= 0], table[BOX].to_numpy()
    error = np.square(table[SAID].to_numpy() - true)
    spread = np.square(true - found[BOX].mean().to_numpy())
    iou, rank = table["box_iou"], table["rank"]
    parts = {"true": np.ones(len(table)), "matched": table["slot"] >= 0, "correct": rank == 0, "among_three": rank < 3}
    parts |= {"overlap": iou, "half": iou > 0.5, "three_quarters": iou > 0.75}
    parts |= {**dict(zip(SAID, error.T)), **dict(zip(BOX, np.where(table[["slot"]] >= 0, spread, 0).T))}
    sums = pd.DataFrame(parts, index=table.index).astype(float).groupby(table["unit"]).sum()
    values = {name: _linear(sums[over], sums[under]) for name, (_, over, under, _) in SCORES.items() if over}
    # a coordinate that is the same everywhere: 1 where it is said exactly, else 0, as scikit-learn has it
    left = sum(_linear(sums[said], sums[edge], float(sums[said].sum() > 0)) for said, edge in zip(SAID, BOX))
    values["r2"] = 1 - left / 4 if len(found) > 1 else np.nan * left
    return {name: values[name].to_numpy() for name in SCORES}


def _linear(over: pd.Series, under: pd.Series, undefined: float = np.nan) -> pd.Series:
    ratio = over.sum() / under.sum() if under.any() else undefined
    return ratio + (over - ratio * under) / (under.mean() or np.inf)


def scores(table: pd.DataFrame) -> dict[str, float]:
    """Each of SCORES as a share (NaN where nothing was found), and how many objects there are (true) and were found (matched)."""
    means = {name: float(values.mean()) if len(values) else np.nan for name, values in by_image(table).items()}
    return {**means, "matched": int((table["slot"] >= 0).sum()), "true": len(table)}


def by_class(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """A row for each class that has objects: true, how many; matched, how many a slot has found; of these top1 and box_iou."""
    found = table.assign(matched=table["slot"] >= 0, top1=(table["rank"] == 0).where(table["slot"] >= 0).astype(float))
    groups = found.groupby(found["label"].map(dict(enumerate(names))).rename("class"))
    return groups.agg(true=("label", "size"), matched=("matched", "sum"), top1=("top1", "mean"), box_iou=("box_iou", "mean"))


def summary(tables: list[pd.DataFrame]) -> dict[str, float]:
    """Of the same objects, judged by several seeds: n, and each score's mean, " std", " low" and " high": the 95 % interval of
    a bootstrap over images (clips), with several seeds over both (analysis/intervals.py)."""
    seeds, row = [by_image(table) for table in tables], {"n": len(tables)}
    for name in SCORES:
        values = np.stack([one[name] for one in seeds])  # [S B]
        interval = paired_interval if len(values) == 1 and np.isfinite(values).any() else widened_interval
        row |= {f"{name}{end}": value for end, value in zip(("", " low", " high"), interval(values))}
        row[f"{name} std"] = float(values.mean(axis=1).std(ddof=1)) if len(values) > 1 else np.nan
    return row | {"matched": float(np.mean([(one["slot"] >= 0).sum() for one in tables])), "true": len(tables[0])}


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `summary` rows for people, x100: mean ± standard deviation over seeds [95 % interval]."""
    cells = {"n": table["n"].astype(int)}
    for name, (title, *_) in SCORES.items():
        parts = table[[name, f"{name} std", f"{name} low", f"{name} high"]].to_numpy(float)
        cells[title] = [mean_text(mean, std) + f" [{100 * low:.1f}, {100 * high:.1f}]" for mean, std, low, high in parts]
    return pd.DataFrame(cells | {"matched / true": [f"{m:.0f} / {t:.0f}" for m, t in table[["matched", "true"]].to_numpy()]})
