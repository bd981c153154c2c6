"""Small statistics that no light dependency offers."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

__all__ = ["auroc", "benjamini_hochberg", "holm", "nested_levels", "normal_tail", "otsu", "student_factor"]

_EPSILON = 1e-12


def normal_tail(z: np.ndarray) -> np.ndarray:
    """Upper tail probability of the standard normal distribution, same shape as `z`."""
    flat = np.fromiter((0.5 * math.erfc(value / math.sqrt(2.0)) for value in np.ravel(z)), dtype=np.float64, count=np.size(z))
    return flat.reshape(np.shape(z))


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: probability that a positive scores above a negative, ties counted half.

    Parameters
    ----------
    scores
        (n,)
    positive
        (n,) bool

    Returns
    -------
    float or None
        0 to 1; None if either group is empty.
    """
    hits, total = int(positive.sum()), positive.size
    if hits == 0 or hits == total:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse.reshape(-1)]
    return float((ranks[positive].sum() - hits * (hits + 1) / 2.0) / (hits * (total - hits)))


def otsu(values: np.ndarray) -> tuple[float, float]:
    """Threshold that divides values into two groups with the largest variance between them (Otsu 1979).

    Parameters
    ----------
    values
        (n,), n >= 2

    Returns
    -------
    threshold : float
        Values above it form the upper group.
    separability : float
        Variance between the groups over total variance, 0 to 1; 0 for constant values. A normal distribution reaches 0.64.
    """
    ordered = np.sort(values.astype(np.float64))
    n, variance = ordered.size, float(values.astype(np.float64).var())
    if variance <= _EPSILON:
        return float(ordered[-1]), 0.0
    lower = np.arange(1, n)
    sums = np.cumsum(ordered)
    below = sums[:-1] / lower
    above = (sums[-1] - sums[:-1]) / (n - lower)
    between = lower * (n - lower) * (below - above) ** 2 / n**2
    between = np.where(ordered[1:] > ordered[:-1], between, -1.0)
    cut = int(between.argmax())
    return float((ordered[cut] + ordered[cut + 1]) / 2.0), float(between[cut] / variance)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the false-discovery rate (Benjamini & Hochberg 1995), same shape as `p`."""
    flat = np.ravel(p)
    order = np.argsort(flat, kind="stable")
    scaled = flat[order] * flat.size / np.arange(1, flat.size + 1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted.reshape(np.shape(p))


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the family-wise error rate whatever the dependence (Holm 1979), same shape as `p`."""
    flat = np.ravel(p)
    order = np.argsort(flat, kind="stable")
    adjusted = np.empty_like(flat, dtype=np.float64)
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * np.arange(flat.size, 0, -1)), 1.0)
    return adjusted.reshape(np.shape(p))


def nested_levels(level: float, draws: int) -> tuple[float, ...]:
    """Levels of nested percentile intervals, highest first: from the least that B draws resolve, 1 - 2 / B, down to 0.2.

    Parameters
    ----------
    level
        Nominal level; always among them.
    draws
        B.
    """
    tails = (2.0 / draws, 4.0 / draws, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2, 0.4, 0.8)
    return tuple(sorted({level, *(1.0 - tail for tail in tails if tail >= 2.0 / draws)}, reverse=True))


def student_factor(freedom: float, level: float) -> float:
    """How much wider an interval of Student's t is than that of a normal distribution, at least 1.

    Parameters
    ----------
    freedom
        Degrees of freedom, greater than 0; fewer than 2 count as 2, below which no bootstrap interval means anything.
    level
        Two-sided, between 0 and 1.
    """
    from scipy.special import stdtrit  # a tenth of a second, which a verdict that is only re-decided has no need of

    tail = (1.0 + level) / 2.0
    return max(1.0, float(stdtrit(max(freedom, 2.0), tail)) / NormalDist().inv_cdf(tail))
