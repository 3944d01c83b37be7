"""Whether two settings differ: a paired bootstrap over seeds and images (Efron and Tibshirani 1993).

Axes: B images, S seeds.
"""

import functools

import numpy as np
from jaxtyping import Float


def paired_interval(
    differences: Float[np.ndarray, "S B"], draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of paired differences, and its 95 % bootstrap interval over seeds and images; NaN where undefined is left out.

    Each draw takes S seeds and, for all of them alike, B images, with replacement. Raises ValueError unless [S B].
    """
    differences = np.asarray(differences, np.float64)
    if differences.ndim != 2 or not np.isfinite(differences).any():
        raise ValueError(
            f"expected differences [seeds images] that are defined somewhere, got shape {differences.shape}"
        )
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


def widened_interval(differences: Float[np.ndarray, "S B"]) -> tuple[float, float, float]:
    """The same for few seeds; NaN for bounds that one seed cannot give.

    The bootstrap's percentiles of few seeds are too close to each other: of three seeds, they miss the truth one time in
    four. So what seeds and what images contribute to the bounds is taken apart. The distance of the bounds over seeds from
    the mean is multiplied by t(S-1) / 1.96 * sqrt(S / (S-1)) (Hesterberg 2015, The American Statistician 69:4), which for
    means of three seeds and more comes close to Student's interval; images are many, theirs stays; the two add as
    independent errors do.
    """
    from scipy.special import stdtrit

    seeds = len(differences)
    if not np.isfinite(differences).any():
        return np.nan, np.nan, np.nan
    if seeds < 2:
        return float(np.nanmean(differences)), np.nan, np.nan
    wider = float(stdtrit(seeds - 1, 0.975)) / 1.96 * (seeds / (seeds - 1)) ** 0.5
    by_seed, by_image = _means(differences, 1), _means(differences, 0)
    mean = float(np.nanmean(differences))
    distance = wider * np.abs(np.array(paired_interval(by_seed)[1:]) - by_seed.mean())
    if by_image.shape[1] > 1:
        distance = np.hypot(distance, np.array(paired_interval(by_image)[1:]) - by_image.mean())
    return mean, mean - float(distance[0]), mean + float(distance[1])


def _means(differences: Float[np.ndarray, "S B"], axis: int) -> np.ndarray:
    """Means over seeds [1 B] or images [S 1], without those that are defined nowhere."""
    defined = np.isfinite(differences).any(axis=axis)
    means = np.nanmean(np.compress(defined, differences, axis=1 - axis), axis=axis)
    return means[None] if axis == 0 else means[:, None]
