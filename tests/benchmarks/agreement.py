"""What two ways of computing the same thing are compared by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["cosines", "intersection_over_union", "overlaps", "ratios", "slope"]


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of boxes, one by one.

    Parameters
    ----------
    a, b
        (n, 4) x0, y0, x1, y1, the last two exclusive, neither empty.

    Returns
    -------
    np.ndarray
        (n,) float64, 0 to 1.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(axis=1)
    own = [(box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b)]
    return shared / (own[0] + own[1] - shared)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) float64 cosine of each row of `a` (n, d) with that of `b`; 0 where a row is zero."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(K,) share of the ids in each row of `a` (K, m) that the same row of `b` holds, in any order; -1 is no id."""
    return np.array([len((set(x) - {-1}) & set(y)) / len(x) for x, y in zip(a.tolist(), b.tolist(), strict=True)])


def ratios(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and largest of ``slow[i] / fast[i]``; the i-th of both were measured one after the other."""
    found = np.asarray(slow, dtype=np.float64) / np.asarray(fast, dtype=np.float64)
    return float(np.median(found)), float(found.min()), float(found.max())


def slope(size: Sequence[float], cost: Sequence[float]) -> float:
    """Exponent p of ``cost ~ size**p`` by least squares in logarithms: 1 is linear growth, 0 none."""
    x, y = np.log(np.asarray(size, dtype=np.float64)), np.log(np.asarray(cost, dtype=np.float64))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())
