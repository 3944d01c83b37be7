"""Whether two settings differ: a paired bootstrap over seeds and images (Efron and Tibshirani 1993).

Axes: B images, S seeds.
"""

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
    random, (S, B) = np.random.default_rng(seed), differences.shape
    drawn = [(random.integers(S, size=S), random.integers(B, size=B)) for _ in range(draws)]
    seeds = np.stack([np.bincount(one, minlength=S) for one, _ in drawn]).astype(float)  # how often each was drawn
    images = np.stack([np.bincount(other, minlength=B) for _, other in drawn])
    defined = np.isfinite(differences)
    with np.errstate(invalid="ignore"):  # a draw of nothing but undefined differences has no mean
        means = (seeds @ np.where(defined, differences, 0) * images).sum(1) / (seeds @ defined * images).sum(1)
    return float(np.nanmean(differences)), *(float(bound) for bound in np.nanquantile(means, [0.025, 0.975]))


def widened_interval(differences: Float[np.ndarray, "S B"]) -> tuple[float, float, float]:
    """The same, its bounds moved away from the mean for few seeds; NaN for bounds that one seed cannot give.

    The bootstrap's percentiles of few seeds are too close to each other: of three seeds, they miss the truth one time in
    four. Their distance from the mean is multiplied by t(S-1) / 1.96 * sqrt(S / (S-1)) (Hesterberg 2015, The American
    Statistician 69:4), which for means of seeds comes close to Student's interval.
    """
    from scipy.special import stdtrit

    seeds = len(differences)
    if not np.isfinite(differences).any():
        return np.nan, np.nan, np.nan
    if seeds < 2:
        return float(np.nanmean(differences)), np.nan, np.nan
    mean, low, high = paired_interval(differences)
    wider = float(stdtrit(seeds - 1, 0.975)) / 1.96 * (seeds / (seeds - 1)) ** 0.5
    return mean, mean - wider * (mean - low), mean + wider * (high - mean)
