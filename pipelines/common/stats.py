"""Intervals that say how far a figure from few samples can be trusted.

Belongs here: statistics on plain numbers. Metrics that know clips or labels do not.
"""

from __future__ import annotations

from math import sqrt


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
