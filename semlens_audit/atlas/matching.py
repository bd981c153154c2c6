"""Which components of two layers mean the same: beyond chance, one to one.

Pure functions of NumPy arrays. Shapes use K and L components, M random crops, S random sets, d dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from semlens_audit.resampling import resampled_clarity
from semlens_audit.scores import unit
from semlens_audit.statistics import benjamini_hochberg

__all__ = ["SETS", "Chance", "beyond_chance", "chance_clarity", "chance_matches", "one_to_one"]

SETS = 2000
"""Random sets of reference samples; the least p-value that they resolve is 1 / 2,001."""

_CHUNK = 256
_ROWS = 512
_NEAREST = 64
"""Partners that are considered for a component, in each direction."""
_SHIFT = 1.0


@dataclass(frozen=True)
class Chance:
    """Components held against random reference sets.

    Parameters
    ----------
    p
        (K,) float64 probability that a random set reaches what the component does, in (0, 1]; 1 where there is nothing to hold.
    level
        (K,) float64 what a component with its number of reference samples has to reach, given all that were tested.
    significant
        (K,) bool after control of the false-discovery rate (Benjamini and Hochberg 1995).
    """

    p: np.ndarray
    level: np.ndarray
    significant: np.ndarray


def chance_matches(
    pool: np.ndarray, centre: np.ndarray, other: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
) -> dict[int, np.ndarray]:
    """Cosine of random sets of crops with the component of another layer that is most similar to them.

    A component that means nothing in particular has random reference samples; the best of many components is similar to any set to
    some degree, and more so the fewer dimensions the data fill.

    Parameters
    ----------
    pool
        (M, d) embeddings of the layer's random crops.
    centre
        (d,) that sets are seen from.
    other
        (L, d) unit-length directions of the other layer's components; L >= 1.
    sizes
        Numbers of reference samples that a set may have, each at least 1.

    Returns
    -------
    dict
        Size -> (S,) float64 in ascending order.
    """
    found = {}
    for size in np.unique(sizes).tolist():
        best = np.empty(SETS)
        for start in range(0, SETS, _CHUNK):
            drawn = rng.integers(len(pool), size=(min(_CHUNK, SETS - start), size))
            means = unit(pool[drawn].astype(np.float64).mean(axis=1) - centre)
            best[start : start + len(drawn)] = (means @ other.T).max(axis=1)
        found[int(size)] = np.sort(best)
    return found


def chance_clarity(pool: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Clarity of random sets of crops: size -> (S,) float64 in ascending order; for sizes of at least 2."""
    found = {}
    for size in np.unique(sizes[sizes >= 2]).tolist():
        clear = np.empty(SETS)
        for start in range(0, SETS, _CHUNK):
            drawn = rng.integers(len(pool), size=(min(_CHUNK, SETS - start), size))
            even = np.full((len(drawn), 1, size), 1.0 / size)
            clear[start : start + len(drawn)] = resampled_clarity(pool[drawn], even, drawn)[:, 0]
        found[int(size)] = np.sort(clear)
    return found


def beyond_chance(values: np.ndarray, sizes: np.ndarray, null: Mapping[int, np.ndarray], rate: float) -> Chance:
    """Hold components against random sets of as many reference samples.

    Parameters
    ----------
    values
        (K,) of each component; NaN where there is none.
    sizes
        (K,) int64 its number of reference samples, a key of `null` where there is a value.
    null
        Size -> (S,) ascending values of random sets.
    rate
        False-discovery rate over the layer's components, in (0, 1).
    """
    p, level, tested = np.ones(len(values)), np.full(len(values), np.nan), np.isfinite(values)
    for size, ordered in null.items():
        rows = np.flatnonzero(tested & (sizes == size))
        reached = len(ordered) - np.searchsorted(ordered, values[rows], side="left")
        p[rows] = (1 + reached) / (1 + len(ordered))
    significant = np.zeros(len(values), dtype=bool)
    if tested.any():
        significant[tested] = benjamini_hochberg(p[tested]) <= rate
        cut = rate * max(int(significant.sum()), 1) / int(tested.sum())
        for size, ordered in null.items():
            level[tested & (sizes == size)] = _level(ordered, cut)
    return Chance(p, level, significant)


def _level(ordered: np.ndarray, tail: float) -> float:
    """What has to be exceeded for a p-value of at most `tail`; the largest value of any set where that is below 1 / (S + 1)."""
    above = max(int(np.floor(tail * (1 + len(ordered)) + 1e-9)) - 1, 0)
    return float(ordered[max(len(ordered) - 1 - above, 0)])


def one_to_one(
    one: np.ndarray,
    other: np.ndarray,
    chance: Chance,
    chance_other: Chance,
    kinds: tuple[np.ndarray, np.ndarray],
    tie: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of components that mean the same: the assignment with the largest similarity beyond chance.

    Each component is in one pair at most, and a pair is formed only where its cosine reaches what both components need
    (`Chance.level`). Pairs of mutually best matches would be the stricter rule, but in layers whose components say the same several
    times few are each other's best, and the others would seem to be without a counterpart. The optimum over all pairs (Kuhn 1955;
    sparse Jonker-Volgenant of SciPy) does not depend on the order of the components. Partners are sought among the nearest 64 of each
    component.

    Parameters
    ----------
    one, other
        (K, d), (L, d) unit-length directions; zeros for a component without one.
    chance, chance_other
        Of the K and of the L components.
    kinds
        (K,) and (L,) integers: pairs of equal kind are formed first, then what is left over.
    tie
        (K,) and (L,) values: of equally similar pairs those with nearer values are formed.

    Returns
    -------
    left, right : numpy.ndarray
        (P,) int64 components, `left` ascending.
    """
    places = (np.arange(len(one)), np.arange(len(other)))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    names = np.intersect1d(*kinds).tolist()
    for kind in [*names, None] if len(np.union1d(*kinds)) > 1 else [None]:
        taken = [np.concatenate([pair[side] for pair in found] or [np.empty(0, dtype=np.int64)]) for side in (0, 1)]
        rows, columns = (
            np.setdiff1d(place if kind is None else place[own == kind], used)
            for place, own, used in zip(places, kinds, taken, strict=True)
        )
        left, right = _assign(
            one[rows],
            other[columns],
            (chance.level[rows], chance_other.level[columns]),
            None if tie is None else (tie[0][rows], tie[1][columns]),
        )
        found.append((rows[left], columns[right]))
    left, right = (np.concatenate([pair[side] for pair in found]).astype(np.int64) for side in (0, 1))
    order = np.argsort(left)
    return left[order], right[order]


def _assign(
    one: np.ndarray, other: np.ndarray, levels: tuple[np.ndarray, np.ndarray], tie: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """`one_to_one` among components of one kind."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, columns, gains = _eligible(one, other, levels)
    if not len(rows):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    if tie is not None:
        gains = gains + 1e-9 * (1.0 - np.minimum(np.abs(tie[0][rows] - tie[1][columns]), 1.0))
    # A column of its own lets each component stay alone; adding the same to every edge changes no optimum.
    alone = np.arange(len(one))
    table = coo_array(
        (
            np.concatenate([gains + _SHIFT, np.full(len(one), _SHIFT)]),
            (np.concatenate([rows, alone]), np.concatenate([columns, len(other) + alone])),
        ),
        shape=(len(one), len(other) + len(one)),
    ).tocsr()
    left, right = min_weight_full_bipartite_matching(table, maximize=True)
    paired = right < len(other)
    return left[paired].astype(np.int64), right[paired].astype(np.int64)


def _eligible(
    one: np.ndarray, other: np.ndarray, levels: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and excess over the level of all pairs that may be formed."""
    places: list[np.ndarray] = []
    width = len(other)
    for start in range(0, len(one), _ROWS):
        table = _excess(one[start : start + _ROWS], other, levels[0][start : start + _ROWS], levels[1])
        near = np.argsort(-table, axis=1, kind="stable")[:, :_NEAREST]
        places.append(((start + np.arange(len(table)))[:, None] * width + near)[np.take_along_axis(table, near, axis=1) > 0])
    for start in range(0, len(other), _ROWS):
        table = _excess(other[start : start + _ROWS], one, levels[1][start : start + _ROWS], levels[0])
        near = np.argsort(-table, axis=1, kind="stable")[:, :_NEAREST]
        places.append((near * width + (start + np.arange(len(table)))[:, None])[np.take_along_axis(table, near, axis=1) > 0])
    cells = np.unique(np.concatenate(places)) if places else np.empty(0, dtype=np.int64)
    rows, columns = cells // max(width, 1), cells % max(width, 1)
    cosine = (one[rows] * other[columns]).sum(axis=1)
    return rows, columns, cosine - np.maximum(levels[0][rows], levels[1][columns]) + 1e-6


def _excess(one: np.ndarray, other: np.ndarray, level: np.ndarray, level_other: np.ndarray) -> np.ndarray:
    """(k, L) cosine above both levels; a hair more, so that a pair at the level is one; minus infinity without a level."""
    apart = one @ other.T - np.maximum(level[:, None], level_other) + 1e-6
    return np.where(np.isfinite(apart), apart, -np.inf)
