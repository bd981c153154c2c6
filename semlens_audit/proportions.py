"""Intervals of shares and of their differences, and of the mean of paired differences: closed forms, no resampling."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

__all__ = ["clopper_pearson", "difference", "effective_size", "mean", "wilson"]


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934, equations 4 and 5).

    Parameters
    ----------
    hits
        0 to `n`.
    n
        At least 1.
    level
        Nominal coverage; the real one is never below it for independent draws.

    Returns
    -------
    low, high : float
        0 to 1.
    """
    from scipy.stats import beta

    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} of {n} is no proportion")
    tail = (1.0 - level) / 2.0
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(1.0 - tail, hits + 1, n - hits))
    return low, high


def wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Score interval of a share (Wilson, J Am Stat Assoc 22:209-212, 1927); holds its level in small groups and at 0 and 1.

    Parameters
    ----------
    share
        Observed share, 0 to 1.
    n
        Size of the group, greater than 0; may be an effective size, see `effective_size`.
    level
        Nominal coverage, in (0, 1).

    Returns
    -------
    tuple of float
        Lower and upper end, 0 to 1; the observed share lies between them.
    """
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    middle = share + z * z / (2.0 * n)
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n))
    scale = 1.0 + z * z / n
    # Rounding must not push an end past the observed share, which it equals at 0 and at 1.
    return min(max((middle - half) / scale, 0.0), share), max(min((middle + half) / scale, 1.0), share)


def difference(first: float, n: float, second: float, m: float, level: float) -> tuple[float, float]:
    """Interval of the difference of two independent shares: hybrid score interval.

    Method 10 of Newcombe (Stat Med 17:873-890, 1998): the two Wilson intervals, their distances added in quadrature.

    Parameters
    ----------
    first, second
        Observed shares, 0 to 1; the difference is `first` minus `second`.
    n, m
        Sizes of their groups, greater than 0; may be effective sizes.
    level
        Nominal coverage, in (0, 1).

    Returns
    -------
    tuple of float
        Lower and upper end, -1 to 1; the observed difference lies between them.
    """
    low_first, high_first = wilson(first, n, level)
    low_second, high_second = wilson(second, m, level)
    value = first - second
    return (
        max(value - math.hypot(first - low_first, high_second - second), -1.0),
        min(value + math.hypot(high_first - first, second - low_second), 1.0),
    )


def effective_size(units: np.ndarray) -> float:
    """Number of independent samples that a clustered group is worth if samples of one unit are all alike.

    Kish's effective size ``(sum m)^2 / sum m^2`` over units of m samples (Survey Sampling, 1965, section 8.2, with an
    intraclass correlation of 1): the cautious end. Samples that stand alone keep their number; a group in which each sample
    stands twice is worth half of it, so that copying samples narrows no interval.

    Parameters
    ----------
    units
        (n,) integer; samples of one unit share a value.

    Returns
    -------
    float
        Between 1 and n; 0 for an empty group.
    """
    if not len(units):
        return 0.0
    sizes = np.unique(units, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def mean(values: np.ndarray, level: float) -> tuple[float, float]:
    """Student's t interval of a mean.

    Parameters
    ----------
    values
        (n,) independent, n >= 2.
    level
        Nominal coverage, in (0, 1).

    Returns
    -------
    tuple of float
        Lower and upper end, in the unit of `values`.
    """
    from scipy.special import stdtrit

    n = values.size
    half = float(stdtrit(n - 1, (1.0 + level) / 2.0)) * float(values.std(ddof=1)) / math.sqrt(n)
    middle = float(values.mean())
    return middle - half, middle + half
