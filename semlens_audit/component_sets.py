"""Which components are switched off together: those assigned to a concept, and random sets as relevant as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Controls", "control_sets"]

_STEPS = 400
_MATCHED = (0.02, 0.1)
"""How near the relevance of a set must come; the second only where the first leaves too few different sets."""
_REPEATS = 5
_NEARER = 0.9
"""An exchange must leave no more than this part of the gap; smaller steps would go on for ever between equal shares."""


@dataclass(frozen=True)
class Controls:
    """Random sets of components that are compared with the components of a concept.

    Parameters
    ----------
    kind
        ``matched``: as relevant as the concept's. ``complement``: all other components, because they hold less relevance together
        than the concept's. ``none``: no other component carries relevance.
    sets
        Component indices of each set, ascending; no two sets are alike.
    scale
        What the effect of a set is multiplied by to stand for equal relevance; 1 for matched sets.
    share
        Mean share of relevance that a set holds; None without sets.
    error
        Mean over sets of ``|share of the set - share of the concept's| / share of the concept's``; None without sets.
    """

    kind: Literal["matched", "complement", "none"]
    sets: tuple[tuple[int, ...], ...]
    scale: float
    share: float | None
    error: float | None


def control_sets(shares: np.ndarray, members: Sequence[int], count: int, rng: np.random.Generator) -> Controls:
    """Sets of components outside `members` that hold as much relevance, and as many components as that allows.

    Each starts as a random set of the same size; components are then exchanged, at random among the exchanges that bring its
    relevance much nearer, and added or left out where no exchange does, until it holds the wanted relevance to
    within 2 % (10 % where that leaves fewer different sets than wanted).
    Where the members hold more than all others together, no set can be as relevant: all others form the one control, and its
    effect has to be scaled by `Controls.scale`, as if effects grew in proportion to relevance.

    Parameters
    ----------
    shares
        (K,) non-negative, shares of a class's relevance.
    members
        The concept's components, with a positive share together.
    count
        Different sets wanted; fewer are returned where there are no more.
    rng
        What the sets are drawn with.
    """
    inside = np.zeros(len(shares), dtype=bool)
    inside[list(members)] = True
    target = float(shares[inside].sum())
    others = np.flatnonzero(~inside & (shares > 0))
    total = float(shares[others].sum())
    if not len(others) or target <= 0:
        return Controls("none", (), 1.0, None, None)
    if total <= target:
        return Controls("complement", (tuple(map(int, others)),), target / total, total, abs(total - target) / target)
    found: dict[tuple[int, ...], float] = {}
    for tolerance in _MATCHED:
        repeats = 0
        while len(found) < count and repeats < _REPEATS * count:
            # Where few sets of the same size are as relevant, larger ones of less relevant components follow.
            size = min(int(inside.sum()) + repeats // _REPEATS, len(others))
            chosen = _matched(shares, others, target, size, tolerance, rng)
            repeats += chosen in found
            found.setdefault(chosen, float(shares[list(chosen)].sum()))
    held = np.array(list(found.values()))
    return Controls("matched", tuple(found), 1.0, float(held.mean()), float(np.abs(held - target).mean() / target))


def _matched(
    shares: np.ndarray, others: np.ndarray, target: float, size: int, tolerance: float, rng: np.random.Generator
) -> tuple[int, ...]:
    """A random set of components of `others` that holds `target`, ascending."""
    order = rng.permutation(others)
    chosen, free = list(order[:size]), list(order[size:])
    for _ in range(_STEPS):
        gap = target - float(shares[chosen].sum())
        if abs(gap) <= tolerance * target:
            break
        moved = _exchange(shares, chosen, free, gap, rng)
        if not moved:
            source, sink = (free, chosen) if gap > 0 else (chosen, free)
            left = np.abs(abs(gap) - shares[source]) if source else np.empty(0)
            if not len(left) or float(left.min()) >= abs(gap) or (gap < 0 and len(chosen) == 1):
                break
            better = np.flatnonzero(left < abs(gap))
            sink.append(source.pop(int(rng.choice(better))))
    return tuple(sorted(int(index) for index in chosen))


def _exchange(shares: np.ndarray, chosen: list[int], free: list[int], gap: float, rng: np.random.Generator) -> bool:
    """Exchange a random chosen component for a free one that at least halves the gap, or for the best; False if none helps much."""
    for position in rng.permutation(len(chosen)):
        left = np.abs(gap + shares[chosen[position]] - shares[free]) if free else np.empty(0)
        if not len(left) or float(left.min()) > _NEARER * abs(gap):
            continue
        halved = np.flatnonzero(left <= 0.5 * abs(gap))
        taken = int(rng.choice(halved)) if len(halved) else int(left.argmin())
        chosen[position], free[taken] = free[taken], chosen[position]
        return True
    return False
