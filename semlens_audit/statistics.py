"""Small statistics that no light dependency offers."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["auroc", "benjamini_hochberg", "normal_tail", "otsu"]

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
