"""Whether circuits fall into two groups, or lie along one: a test of unimodality on the line between the centres of the groups.

k-means finds two groups in anything. How distinct they look depends on how many components a circuit has: what sets two things apart is
most of a circuit of 32 components and a small part of one of 320, so that no bound on a silhouette carries over from one layer to
another. The *shape* of the circuits along the line between the two centres does. Two groups leave a valley between them; one hardly does,
whatever its spread. On the very circuits that the centres were found from, the line itself would make a valley, the deeper the more
components there are. Each circuit is therefore placed on the line of those of the other parts (cross-fitting). Pure functions of NumPy.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from semlens_audit.splitting.division import divided

__all__ = ["dip", "p_of_dip", "places_between", "valley"]

_DRAWS = 9999
_SEED = 0
_TIED = 1e-12


def valley(circuits: np.ndarray) -> tuple[float, float]:
    """How deep a valley two groups of circuits leave between them, and how likely circuits of one group leave one as deep.

    Parameters
    ----------
    circuits
        (n, C), of independent samples.

    Returns
    -------
    dip : float
        Of their `places_between`; 0 where there are fewer than four.
    p : float
        See `p_of_dip`; 1 where there are fewer than four.
    """
    if len(circuits) < 4:
        return 0.0, 1.0
    found = dip(places_between(circuits))
    return found, p_of_dip(found, len(circuits))


def places_between(circuits: np.ndarray, folds: int = 10) -> np.ndarray:
    """Where each circuit lies on the line between the centres of two groups that were found without it.

    Parameters
    ----------
    circuits
        (n, C), n >= 4. Sample i is of part ``i mod folds``.
    folds
        Parts of the samples, 2 at least; no more than there are samples are made.

    Returns
    -------
    numpy.ndarray
        (n,) float64: 1 at one centre, -1 at the other, the same way round in all parts, and 0 midway. 0 where the other parts' circuits are
        all alike.
    """
    values = circuits.astype(np.float64)
    (one, other), _ = divided(values)
    whole, places, part = one - other, np.zeros(len(values)), np.arange(len(values)) % max(min(folds, len(values)), 2)
    for fold in range(int(part.max()) + 1):
        held = part == fold
        (one, other), _ = divided(values[~held])
        line = one - other if (one - other) @ whole >= 0 else other - one
        length = float(line @ line)
        if length > 0:
            places[held] = 2.0 * (values[held] - (one + other) / 2) @ line / length
    return places


def dip(values: np.ndarray) -> float:
    """How far a sample is from having one mode (Hartigan and Hartigan 1985, The dip test of unimodality, Ann. Statist. 13).

    The least, over all distribution functions that are convex up to a mode and concave beyond it, of the largest distance to the empirical
    one. Algorithm AS 217 (P. M. Hartigan 1985, Appl. Statist. 34): an interval closes around the mode, on the left of which the convex
    minorant is the best that can be had, and on the right the concave majorant.

    Parameters
    ----------
    values
        (n,), n >= 2.

    Returns
    -------
    float
        ``1 / (2 n)`` to 0.25, the value of two equal groups of equal values; the same however values are moved, scaled or turned round.
    """
    x, n = sorted(values.astype(np.float64).tolist()), len(values)
    if x[0] == x[-1]:
        return 1 / (2 * n)
    before = _knots_before(x)
    after = [n - 1 - one for one in reversed(_knots_before([-one for one in reversed(x)]))]
    low, high, found = 0, n - 1, 1.0
    while True:
        under, over = _walk(before, high, low)[::-1], _walk(after, low, high)
        widest, left, right = _widest(x, under, over)
        if widest <= found:
            break
        # The empirical function rises by one at each value: its upper corner is held against the minorant, its lower against the majorant.
        for start, end in pairwise(one for one in under if one <= left):
            found = max(found, *(at + 1 - _between(x, start, end, at) for at in range(start, end + 1)))
        for start, end in pairwise(one for one in over if one >= right):
            found = max(found, *(_between(x, start, end, at) - (at - 1) for at in range(start, end + 1)))
        if (low, high) == (left, right):
            break
        low, high = left, right
    return found / (2 * n)


def _knots_before(x: list[float]) -> list[int]:
    """Of each value, the knot before it of the greatest convex minorant of the points ``(x[i], i)`` up to it."""
    before = [0]
    for at in range(1, len(x)):
        knot = at - 1
        while knot and (x[at] - x[knot]) * (knot - before[knot]) >= (x[knot] - x[before[knot]]) * (at - knot):
            knot = before[knot]
        before.append(knot)
    return before


def _walk(knots: list[int], start: int, end: int) -> list[int]:
    """From one value to another, from knot to knot."""
    found = [start]
    while found[-1] != end:
        found.append(knots[found[-1]])
    return found


def _between(x: list[float], start: int, end: int, at: int) -> float:
    """Height at a value of the line from one point ``(x[i], i)`` to another; where that is upright, at its own point."""
    width = x[end] - x[start]
    return start + (x[at] - x[start]) * (end - start) / width if width > 0 else float(at)


def _widest(x: list[float], under: list[int], over: list[int]) -> tuple[float, int, int]:
    """Largest distance of majorant and minorant, and the interval that closes: from the knot of the one to that of the other around it."""
    widest, left, right = 0.0, under[-2], over[1]
    below, above = 1, 1
    while True:
        if under[below] > over[above]:
            gap, ends = over[above] + 1 - _between(x, under[below - 1], under[below], over[above]), (under[below - 1], over[above])
            above += 1
        else:
            gap, ends = _between(x, over[above - 1], over[above], under[below]) - (under[below] - 1), (under[below], over[above])
            below += 1
        if gap >= widest:
            widest, (left, right) = gap, ends
        if below == len(under) or above == len(over):
            return widest, left, right


@lru_cache(maxsize=64)
def _of_uniform(count: int) -> np.ndarray:
    """(B,) ascending dips of samples of the uniform distribution, drawn with one seed for each size."""
    rng = np.random.default_rng([_SEED, count])
    return np.sort([dip(rng.random(count)) for _ in range(_DRAWS)])


def p_of_dip(value: float, count: int) -> float:
    """Share of samples of the uniform distribution whose dip is as large, the one that is asked for counted.

    Of distributions with one mode, the uniform is that whose samples dip most (Hartigan and Hartigan 1985), so that those of any other
    exceed their level less often.

    Parameters
    ----------
    value
        See `dip`.
    count
        Size of the sample.

    Returns
    -------
    float
        1/10000 to 1.
    """
    drawn = _of_uniform(count)
    return float((1 + len(drawn) - np.searchsorted(drawn, value - _TIED)) / (1 + len(drawn)))
