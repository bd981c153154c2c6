"""Circuits divided into two groups, and what is gained by the division. Pure functions of NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit.polysemanticity import halves

__all__ = ["Comparison", "clarity_raised", "divided", "one_of_each", "separation", "silhouette"]

_TIED = 1e-12
_ROWS = 1024
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


def silhouette(circuits: np.ndarray, first: np.ndarray) -> float:
    """Mean silhouette width of a division (Rousseeuw 1987, J. Comput. Appl. Math. 20): how distinct its groups are.

    Of each sample, ``(b - a) / max(a, b)``, where a is its mean Euclidean distance to the other samples of its group and b that to those
    of the other group. Over 0.5 "a reasonable structure has been found"; up to 0.25 none, and in between it "is weak and could be
    artificial" (Kaufman and Rousseeuw 1990, Finding Groups in Data, table 4): what k-means makes of circuits that form no groups.

    Parameters
    ----------
    circuits
        (n, C).
    first
        (n,) bool; a sample that is alone in its group counts as 0.

    Returns
    -------
    float
        -1 to 1; 0 where a group is empty or all circuits are alike.
    """
    sizes = np.array([(~first).sum(), first.sum()])
    if not sizes.all():
        return 0.0
    values, widths = circuits.astype(np.float64) - circuits.mean(axis=0), np.zeros(len(first))
    square, groups = np.square(values).sum(axis=1), np.stack([~first, first], axis=1).astype(np.float64)
    for at in range(0, len(first), _ROWS):
        part = slice(at, at + _ROWS)
        far = np.sqrt(np.maximum(square[part, None] + square[None] - 2.0 * values[part] @ values.T, 0.0))
        far[np.arange(len(far)), np.arange(at, at + len(far))] = 0.0
        own, rows = first[part].astype(np.int64), np.arange(len(far))
        total = far @ groups
        inside = total[rows, own] / np.maximum(sizes[own] - 1, 1)
        outside = total[rows, 1 - own] / sizes[1 - own]
        longer = np.maximum(inside, outside)
        widths[part] = np.where((longer > 0) & (sizes[own] > 1), (outside - inside) / np.where(longer > 0, longer, 1.0), 0.0)
    return float(widths.mean())


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
    between
        Mean cosine of pairs of which either is of one group.
    separation
        See `separation`, -inf to 1.
    p
        Share of random divisions into groups of the same sizes whose clarity is as high, the division itself counted.
    """

    sizes: tuple[int, int]
    before: float
    groups: tuple[float, float]
    after: float
    between: float
    separation: float
    p: float


def one_of_each(units: np.ndarray) -> np.ndarray:
    """Ascending positions of the first sample of each independent unit (m,)."""
    return np.sort(np.unique(units, return_index=True)[1])


def clarity_raised(
    embeddings: np.ndarray, first: np.ndarray, rng: np.random.Generator, fewest: int = 2, draws: int = 9999
) -> Comparison | None:
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
    fewest
        Samples that either group has to have, 2 at least.
    draws
        How many.

    Returns
    -------
    Comparison or None
        ``None`` where a group has fewer samples.
    """
    sizes = (int(first.sum()), int((~first).sum()))
    if min(sizes) < max(fewest, 2):
        return None
    vectors = embeddings.astype(np.float64)
    inner = vectors @ vectors.T
    np.fill_diagonal(inner, 0.0)
    one, other = (_within(inner, mask[None])[0] for mask in (first, ~first))
    after = float((sizes[0] * one + sizes[1] * other) / len(first))
    drawn = rng.permuted(np.broadcast_to(first, (draws, len(first))), axis=1)
    random = (sizes[0] * _within(inner, drawn) + sizes[1] * _within(inner, ~drawn)) / len(first)
    p = (1 + int((random >= after - _TIED).sum())) / (1 + draws)
    before, between = float(_within(inner, np.ones((1, len(first)), dtype=bool))[0]), float(inner[np.ix_(first, ~first)].mean())
    apart = separation((float(one), float(other)), between)
    return Comparison(sizes, before, (float(one), float(other)), after, between, apart, p)


def separation(within: tuple[float, float], between: float) -> float:
    """How far two groups are apart, given how far members of a group are: ``1 - (1 - cos within) / (1 - cos between)``.

    Two groups of samples are two things where the foundation model finds samples of different groups far more different than samples of
    one; how different the things are in themselves is no matter. This is the fixation index in the form of Hudson, Slatkin and Maddison
    (1992, Genetics 132, eq. 3), ``F_ST = 1 - H_w / H_b``, with half the squared distance of unit vectors, ``1 - cos``, as the difference
    of two samples, the two groups counted alike. Means are over pairs of different samples, so that small groups are no further apart in
    expectation than large ones.

    Parameters
    ----------
    within
        Mean cosine of pairs of different samples of either group.
    between
        Mean cosine of pairs of which either is of one group.

    Returns
    -------
    float
        1 where the samples of a group are all alike; 0 where groups differ no more than their members do, or where nothing differs;
        below 0 where they differ less.
    """
    different = 1.0 - between
    return 1.0 - (1.0 - (within[0] + within[1]) / 2) / different if different > _TIED else 0.0


def _within(inner: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(B,) mean of off-diagonal inner products within groups (B, m), of two samples at least."""
    chosen = groups.astype(np.float64)
    count = chosen.sum(axis=1)
    return np.asarray(np.einsum("bm,bm->b", chosen @ inner, chosen) / (count * (count - 1)))
