"""Statistics for few and correlated samples: figures, how far they can be trusted, and whether two arms differ.

Belongs here: statistics on plain numbers. Metrics that know clips or labels do not.

A figure is a function of `weights`, whole numbers of shape (resamples, samples) that say how often each sample counts,
and gives one value a resample: with ones, shape (1, samples), it is the figure itself, with the rows of `resample` its
spread. So a figure and its interval cannot have two definitions. Where no sample counts the value is NaN.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import sqrt

import numpy as np
from scipy.stats import binomtest

BINS = 10  # of confidence, equally wide: fewer would hide where it is off, more would stand on single clips


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval `(low, high)` of a proportion, both in 0..1.

    Unlike the normal approximation it stays inside 0..1 and keeps a width at 0 or n successes, which 30 clips often
    give. `z` = 1.96 is the two-sided 95 % interval. Without any trial nothing is known: `(0.0, 1.0)`.

    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is no proportion")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    shrink = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at 0 and n successes the bound is exact; the formula misses it by rounding
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return low, high


def mcnemar(gains: int, losses: int) -> float:
    """Exact two-sided p of McNemar's test: `gains` samples that only the second arm has right, `losses` only the first.

    The probability of counts at least as uneven if both were equally likely. 1.0 where the arms never differ.
    Raises ValueError for a negative count.
    """
    return float(binomtest(gains, gains + losses).pvalue) if gains or losses else 1.0


def resample(groups: Sequence[Hashable], times: int, seed: int) -> np.ndarray:
    """Weights int64 (times, samples): in each row as many groups as there are, drawn with replacement and kept whole.

    `groups` names each sample's. Samples of one group are not independent, so that drawing single samples would make
    every interval too narrow (the cluster bootstrap). The same groups, times and seed give the same weights.
    """
    names = list(dict.fromkeys(groups))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=times)
    return drawn[:, [names.index(group) for group in groups]]


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of a figure's values over resamples, `(low, high)`; resamples without a value are left out."""
    outside = 50 * (1 - level)
    low, high = np.nanpercentile(values, [outside, 100 - outside])
    return float(low), float(high)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(resamples,) of `values` (samples,)."""
    return _ratio(weights @ values.astype(float), weights.sum(1))


def median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(resamples,) of `values` (samples,); of an even number of samples the mean of the two in the middle."""
    order = values.argsort(kind="stable")
    until = weights[:, order].cumsum(1)  # how many lie up to and with this one
    n = until[:, -1:]
    lower, upper = ((until > place).argmax(1) for place in ((n - 1) // 2, n // 2))
    middle = (values[order[lower]] + values[order[upper]]) / 2
    return np.where(n[:, 0] > 0, middle, np.nan)


def macro_f1(truth: Sequence[Hashable], said: Sequence[Hashable | None], weights: np.ndarray) -> np.ndarray:
    """(resamples,) mean of the classes' F1, over classes that are true of some sample or answered for one.

    None in `said` is no answer: a miss of the true class that is held against no other.
    """
    names = sorted({*truth, *said} - {None}, key=str)
    true, answered = (np.array([[one == name for name in names] for one in row], float) for row in (truth, said))
    both = 2 * (weights @ (true * answered))
    f1 = _ratio(both, weights @ true + weights @ answered)
    return _ratio(np.nansum(f1, 1), (~np.isnan(f1)).sum(1))


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(resamples,) expected calibration error: mean of |confidence − share right| over bins, by samples in each.

    `confidence` (samples,) in 0..1, `right` bool (samples,).
    """
    member = _bin(confidence, bins)[:, None] == np.arange(bins)
    gaps = np.abs(weights @ (member * (confidence - right)[:, None]))
    return _ratio(gaps.sum(1), weights.sum(1))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """The bins that have samples: {low, high, samples, confidence: their mean, right: their share}."""
    place = _bin(confidence, bins)
    rows = []
    for number in np.unique(place).tolist():
        inside = place == number
        means = {"confidence": float(confidence[inside].mean()), "right": float(right[inside].mean())}
        rows.append({"low": number / bins, "high": (number + 1) / bins, "samples": int(inside.sum()), **means})
    return rows


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((confidence * bins).astype(int), bins - 1)  # 1.0 belongs to the last


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
