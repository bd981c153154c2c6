"""Circuits divided into two groups, and what is gained by the division. Pure functions of NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit.polysemanticity import halves
from semlens_audit.scores import unit

__all__ = ["Comparison", "clarity_raised", "divided", "one_of_each"]

_TIED = 1e-12
_ALIKE = 1e-6
"""Difference of circuits, in their usual length, that rounding alone makes."""


def divided(circuits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide circuits by k-means with k = 2 (PURE, arXiv 2404.06453), from starts that depend on neither chance nor order.

    Parameters
    ----------
    circuits
        (n, C), n >= 2.

    Returns
    -------
    centroids : numpy.ndarray
        (2, C) float64 mean circuits, that of the larger group first; of equal groups, that of the one with the first sample.
    first : numpy.ndarray
        (n,) bool: whether a sample belongs to the first group. All of them where the circuits are all alike: the centroids are then equal.
    """
    scale = float(np.sqrt(np.square(circuits).sum(axis=1).mean()))  # a circuit of many components is short
    values = circuits / scale if scale > 0 else circuits
    if np.ptp(values, axis=0).max() <= _ALIKE:
        return np.repeat(circuits.mean(axis=0)[None], 2, axis=0), np.ones(len(circuits), dtype=bool)
    first = halves(values[None], np.ones((1, len(circuits)), dtype=bool)).first[0]
    size = int(first.sum())
    if 2 * size < len(first) or (2 * size == len(first) and not first[0]):
        first = ~first
    return np.stack([circuits[first].mean(axis=0), circuits[~first].mean(axis=0)]), first


@dataclass(frozen=True)
class Comparison:
    """Clarity before and after a division.

    Parameters
    ----------
    sizes
        Reference samples in either group, one of each independent unit.
    before
        Mean cosine of pairs of reference samples.
    groups
        The same within either group.
    after
        Mean of the two, weighted by their samples.
    apart
        ``1 - cos`` of the mean embeddings of the two groups, 0 to 1: polysemanticity with the groups of circuits in the place of those
        of embeddings. A cosine below 0 counts as 0.
    p
        Share of random divisions into groups of the same sizes whose clarity is as high, the division itself counted.
    """

    sizes: tuple[int, int]
    before: float
    groups: tuple[float, float]
    after: float
    apart: float
    p: float


def one_of_each(units: np.ndarray) -> np.ndarray:
    """Ascending positions of the first sample of each independent unit (m,)."""
    return np.sort(np.unique(units, return_index=True)[1])


def clarity_raised(embeddings: np.ndarray, first: np.ndarray, rng: np.random.Generator, draws: int = 9999) -> Comparison | None:
    """Whether the two groups are clearer than all reference samples together, held against random groups of the same sizes.

    Where groups formed by circuits have nothing to do with what the samples look like, every division into groups of these sizes is as
    likely (permutation test; Phipson and Smyth 2010 for the count of the division itself).

    Parameters
    ----------
    embeddings
        (m, d) unit length, of independent samples.
    first
        (m,) bool.
    rng
        Draws the random divisions.
    draws
        How many.

    Returns
    -------
    Comparison or None
        ``None`` where a group has fewer than two samples.
    """
    sizes = (int(first.sum()), int((~first).sum()))
    if min(sizes) < 2:
        return None
    vectors = embeddings.astype(np.float64)
    inner = vectors @ vectors.T
    np.fill_diagonal(inner, 0.0)
    one, other = (_within(inner, mask[None])[0] for mask in (first, ~first))
    after = float((sizes[0] * one + sizes[1] * other) / len(first))
    drawn = rng.permuted(np.broadcast_to(first, (draws, len(first))), axis=1)
    random = (sizes[0] * _within(inner, drawn) + sizes[1] * _within(inner, ~drawn)) / len(first)
    p = (1 + int((random >= after - _TIED).sum())) / (1 + draws)
    means = unit(np.stack([vectors[first].mean(axis=0), vectors[~first].mean(axis=0)]))
    apart = 1.0 - float(np.clip(means[0] @ means[1], 0.0, 1.0))
    return Comparison(sizes, float(_within(inner, np.ones((1, len(first)), dtype=bool))[0]), (float(one), float(other)), after, apart, p)


def _within(inner: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(B,) mean of off-diagonal inner products within groups (B, m), of two samples at least."""
    chosen = groups.astype(np.float64)
    count = chosen.sum(axis=1)
    return np.asarray(np.einsum("bm,bm->b", chosen @ inner, chosen) / (count * (count - 1)))
