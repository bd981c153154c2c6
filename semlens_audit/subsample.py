"""A part of the test data on which something costly is done, drawn so that rare concepts are in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["draw_samples", "inclusion"]


def inclusion(labels: np.ndarray, concepts: Sequence[np.ndarray], size: int, least: int) -> np.ndarray:
    """Probability of each sample to be drawn, so that every cell of label x presence gets `least` samples on average, if it can.

    Where every cell is large, all samples are equally probable; samples of small cells are drawn with preference, and count less
    in estimates: each stands for 1 / probability samples (Horvitz and Thompson 1952).

    Parameters
    ----------
    labels
        (N,) class of each sample.
    concepts
        For each concept (N,) int8: 1 present, 0 absent, -1 unknown.
    size
        Samples wanted.
    least
        Samples wanted of each cell.

    Returns
    -------
    numpy.ndarray
        (N,) float64 in (0, 1], adding up to `size` at most; all 1 where there are no more samples than that.
    """
    n = len(labels)
    if n <= size:
        return np.ones(n)
    wanted = np.zeros(n)
    for present in concepts:
        for label in np.unique(labels):
            for state in (0, 1):
                cell = (labels == label) & (present == state)
                if cell.any():
                    wanted[cell] = np.maximum(wanted[cell], min(1.0, least / int(cell.sum())))
    floor = 0.5 * size / n
    if np.maximum(wanted, floor).sum() > size:
        # More rare cells than there is room for: half of the draw goes to everyone alike, half to these cells in proportion.
        return np.minimum(1.0, floor + wanted * (size - floor * n) / wanted.sum())
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(wanted, middle).sum() < size else (low, middle)
    return np.maximum(wanted, high)


def draw_samples(probability: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample ids drawn with the given probabilities, ascending: systematic sampling over a random order (Madow 1949).

    Parameters
    ----------
    probability
        (N,) in (0, 1].

    Returns
    -------
    numpy.ndarray
        int64; as many as the probabilities add up to, to within one. No sample twice.
    """
    if (probability >= 1.0).all():
        return np.arange(len(probability), dtype=np.int64)
    order = rng.permutation(len(probability))
    passed = np.floor(np.cumsum(probability[order]) + rng.random())
    return np.sort(order[np.diff(passed, prepend=0.0) >= 1.0]).astype(np.int64)
