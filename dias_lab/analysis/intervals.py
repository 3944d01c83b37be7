"""Means over seeds, paired differences, and how sure they are: a bootstrap over seeds and images (Efron and Tibshirani 1993).

A difference is paired: same seed, and, where the runs hold the scores of each image (scores/*.images.csv), same image.
Intervals are those of 95 %, and not corrected for the number of comparisons.

Axes: B images, S seeds.
"""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import stdtrit

from dias_lab import runs

Interval = tuple[float, float, float]  # a mean, and the lower and upper bound
TITLES = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO", "miou": "mIoU", "mbo_class": "mBO-class"}  # shown x100
TITLES |= {f"{level}_{metric}": f"{level} {title}" for level in ("video", "image") for metric, title in TITLES.items()}
TITLES |= {"gap": "image - video FG-ARI", "switch_rate": "switch rate", "j": "J", "f": "F", "jf": "J&F"}  # of clips


def scores(rows: pd.DataFrame, metric: str | list[str]) -> pd.DataFrame:
    """Of each run that has the number, by seed: value, and the file and column with what each image scored.

    `rows` are those of `runs.collect`, the runs of one setting; `metric` is a column of theirs ("test-dias.decoder.ari"), or
    one for each row.
    """
    found = []
    for name, (_, row) in zip([metric] * len(rows) if isinstance(metric, str) else metric, rows.iterrows()):
        stem, _, column = name.partition(".")
        file = runs.resolve(row["run"]) / "scores" / f"{stem}.images.csv"
        found.append({"seed": row["seed"], "value": row[name], "file": file, "column": column})
    table = pd.DataFrame(found, columns=["seed", "value", "file", "column"]).set_index("seed")
    return table.astype({"value": float}).dropna(subset="value")


def interval(own: pd.DataFrame) -> Interval:
    """The mean of a setting's `scores`, and its widened interval."""
    return widened_interval(_by_image(own).to_numpy())


def difference(own: pd.DataFrame, other: pd.DataFrame) -> Interval:
    """The mean of what a setting's `scores` are above another's, over the seeds of both, and its widened interval."""
    seeds = own.index.intersection(other.index)
    own, other = own.reindex(seeds), other.reindex(seeds)
    mine, theirs = _by_image(own), _by_image(other)
    if not mine.columns.equals(theirs.columns):  # not the same images: seeds alone are paired
        mine, theirs = own[["value"]], other[["value"]]
    return widened_interval(np.ascontiguousarray(mine.to_numpy() - theirs.to_numpy()))


def between(rows: pd.DataFrame, of: tuple[str, str], to: tuple[str, str]) -> Interval:
    """How far one setting's metric is above another's, `of` and `to` being (setting, metric); NaN where one has no run.

    `rows` are those of `runs.collect`, with a column "setting".
    """
    own, other = (scores(rows[rows["setting"] == setting], metric) for setting, metric in (of, to))
    return difference(own, other) if len(own) and len(other) else (np.nan, np.nan, np.nan)


def _by_image(own: pd.DataFrame) -> pd.DataFrame:
    """[S B]: the scores of each image, where all runs have them for the same images; else [S 1], those of the runs."""
    tables = [_read(file, file.stat().st_mtime_ns) for file in own["file"] if file.exists()]
    found = [table[column] for table, column in zip(tables, own["column"]) if column in table]
    if found and len(found) == len(own) and all(one.index.equals(found[0].index) for one in found):
        return pd.DataFrame(np.stack(found), own.index, found[0].index)
    return own[["value"]]


@functools.lru_cache(maxsize=128)  # a table asks for each of its metrics
def _read(file: Path, changed: int) -> pd.DataFrame:
    """By item, and by the store's fingerprint where it is known: images of other data are not the same."""
    table = pd.read_csv(file, dtype={"records": str})
    try:
        return table.set_index(["item", *({"records"} & {*table})]).sort_index()
    except KeyError:
        raise ValueError(f"{file} has no column item: it holds no scores of images. Delete it, and evaluate again") from None


def paired_interval(differences: Float[np.ndarray, "S B"], draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of paired differences, and its 95 % bootstrap interval over seeds and images; NaN where undefined is left out.

    Each draw takes S seeds and, for all of them alike, B images, with replacement. Raises ValueError unless [S B].
    """
    differences = np.asarray(differences, np.float64)
    if differences.ndim != 2 or not np.isfinite(differences).any():
        raise ValueError(f"expected differences [seeds images] that are defined somewhere, got shape {differences.shape}")
    seeds, images = _how_often_drawn(*differences.shape, draws, seed)
    defined = np.isfinite(differences)
    with np.errstate(invalid="ignore"):  # a draw of nothing but undefined differences has no mean
        means = (seeds @ np.where(defined, differences, 0) * images).sum(1) / (seeds @ defined * images).sum(1)
    return float(np.nanmean(differences)), *(float(bound) for bound in np.nanquantile(means, [0.025, 0.975]))


@functools.lru_cache(maxsize=4)  # a table takes the same draws for each of its cells
def _how_often_drawn(S: int, B: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[draws S] and [draws B]: how often each seed and each image is in each draw."""
    random = np.random.default_rng(seed)
    drawn = [(random.integers(S, size=S), random.integers(B, size=B)) for _ in range(draws)]
    seeds = np.stack([np.bincount(one, minlength=S) for one, _ in drawn]).astype(float)
    return seeds, np.stack([np.bincount(other, minlength=B) for _, other in drawn])


def widened_interval(differences: Float[np.ndarray, "S B"]) -> Interval:
    """The same for few seeds; NaN for bounds that one seed cannot give, and where nothing is defined.

    The bootstrap's percentiles of few seeds are too close to each other: of three seeds, they miss the truth one time in
    four. So what seeds and what images contribute to the bounds is taken apart. The distance of the bounds over seeds from
    the mean is multiplied by t(S-1) / 1.96 * sqrt(S / (S-1)) (Hesterberg 2015, The American Statistician 69:4), which for
    means of three seeds and more comes close to Student's interval; images are many, theirs stays; the two add as
    independent errors do.
    """
    seeds = len(differences)
    if not np.isfinite(differences).any():
        return np.nan, np.nan, np.nan
    mean = float(np.nanmean(differences))
    if seeds < 2:
        return mean, np.nan, np.nan
    wider = float(stdtrit(seeds - 1, 0.975)) / 1.96 * (seeds / (seeds - 1)) ** 0.5
    by_seed, by_image = _means(differences, 1), _means(differences, 0)
    distance = wider * np.abs(np.array(paired_interval(by_seed)[1:]) - by_seed.mean())
    if by_image.shape[1] > 1:
        distance = np.hypot(distance, np.array(paired_interval(by_image)[1:]) - by_image.mean())
    return mean, mean - float(distance[0]), mean + float(distance[1])


def _means(differences: Float[np.ndarray, "S B"], axis: int) -> np.ndarray:
    """Means over seeds [1 B] or images [S 1], without those that are defined nowhere."""
    defined = np.isfinite(differences).any(axis=axis)
    means = np.nanmean(np.compress(defined, differences, axis=1 - axis), axis=axis)
    return means[None] if axis == 0 else means[:, None]


def mean_text(mean: float, std: float, factor: float = 100) -> str:
    """ "56.7 ± 0.8", without a spread "56.7"; scores are shown x100, other numbers (factor 1) with four digits."""
    if mean != mean:
        return "n/a"
    style = ".1f" if factor == 100 else ".4g"
    return f"{factor * mean:{style}}" + (f" ± {factor * std:{style}}" if std == std else "")


def difference_text(difference: float, low: float, high: float, factor: float = 100) -> str:
    """ " [+1.2: -0.3 to +2.7]", of one seed " [+1.2, no interval]", and nothing where there is no difference."""
    if difference != difference:
        return ""
    difference, low, high = (f"{factor * one:{'+.1f' if factor == 100 else '+.3g'}}" for one in (difference, low, high))
    return f" [{difference}, no interval]" if "nan" in low else f" [{difference}: {low} to {high}]"


def distinct(values) -> str:
    """What runs have in common, or all that they have: "dias", "100, 200"."""
    return ", ".join(sorted({str(value).removesuffix(".0") for value in values if value == value and value is not None}))
