"""The behavioural line of evidence: how the class margin moves with a concept's presence, seen from outside the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit.outputs import class_margin
from semlens_audit.presence import SEPARATION, Presence
from semlens_audit.statistics import student_factor
from semlens_audit.units import count_units

__all__ = ["Effect", "class_margin", "effects"]

_DRAWS = 64
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Effect:
    """Effect of one concept on the margin.

    Parameters
    ----------
    value
        Change of the margin in logits when the concept is switched on, label and other concepts held; None if not measured.
    draws
        (B,) bootstrap draws of `value`.
    n
        Samples used; in a reason, independent units are meant.
    reason
        Why there is no value.
    """

    value: float | None
    draws: np.ndarray
    n: int
    reason: str | None


def effects(
    margin: np.ndarray,
    labels: np.ndarray,
    presences: list[Presence],
    *,
    bootstrap: int,
    minimum_cell: int,
    minimum_samples: int,
    rng: np.random.Generator,
    units: np.ndarray | None = None,
    confidence: float = 0.95,
) -> list[Effect]:
    """Effect of every concept: least squares of the margin on the label and on all concepts' presence together.

    ``margin_i = a_label(i) + sum_j b_j * p_ij + e_i`` with p_ij the probability that sample i holds concept j.
    Intervals come from the Bayesian bootstrap over independent units (Rubin 1981): each draw re-solves the normal equations
    under Dirichlet(1, ..., 1) weights, which holds under unequal variances too. Two corrections make small samples cover
    what they should (measured, see ``tests/benchmarks``): residuals are divided by one minus the unit's leverage before they
    are resampled, as a fit hugs the samples that shape it (HC3, MacKinnon and White 1985; of a unit with several samples the
    sum of leverages, an upper bound); and draws are spread by Student's t over the normal quantile with Satterthwaite's
    degrees of freedom of each coefficient (Bell and McCaffrey 2002, for diagonal covariance), since few counterexamples
    decide alone.

    Not measured, with the reason: too few samples for the coefficients (fewer than two units for each), where the fit would
    follow the noise and the interval would be too narrow; a concept whose presence other concepts determine, where least
    squares would share one effect out among them; and a concept whose presence cannot be told (`Presence.told`), which is no
    covariate of the others either: a score without two groups stands for everything in the picture.

    Parameters
    ----------
    margin
        (N,) logits.
    labels
        (N,) class of each sample; every class has its own intercept.
    presences
        One entry per concept.
    minimum_cell
        The concept must be present at least that often, and absent at least that often, within one and the same class;
        otherwise its presence cannot be told from the label and the effect is not measured.
    minimum_samples
        Fewer usable samples: not measured. A concept whose presence is known for fewer is left out, so that it costs the
        others no sample.
    units
        (N,) int64 independent unit of each sample; left out, each sample is one. Minimum numbers count units.
    confidence
        Level of the interval that the draws are spread for.

    Returns
    -------
    list of Effect
        One per concept, in order.
    """
    units = np.arange(len(margin)) if units is None else units
    usable, reasons, measured = _usable(labels, presences, units, minimum_cell, minimum_samples)
    n = int(usable.sum())
    if not measured:
        return [Effect(None, np.empty(0), n, reason) for reason in reasons]
    groups = np.unique(labels[usable], return_inverse=True)[1].reshape(-1)
    columns = np.stack([presences[index].probability[usable] for index in measured], axis=1)
    columns = columns - columns.mean(axis=0)
    entangled = _entangled(columns, groups)
    point, draws = _weighted_least_squares(columns, groups, margin[usable], units[usable], bootstrap, rng, confidence)
    results: list[Effect] = []
    for index, reason in enumerate(reasons):
        column = measured.index(index) if reason is None else -1
        if reason is None and entangled[column]:
            reason = "within each class, other concepts determine its presence, so that their effects cannot be told apart"
        if reason is not None:
            results.append(Effect(None, np.empty(0), n, reason))
            continue
        value = float(point[column])
        results.append(Effect(value, value + draws[:, column], n, None))
    return results


def _usable(
    labels: np.ndarray, presences: list[Presence], units: np.ndarray, minimum_cell: int, minimum_samples: int
) -> tuple[np.ndarray, list[str | None], list[int]]:
    """Usable samples (N,), why each concept has no effect of its own (None: it has), and the concepts to be regressed on."""
    usable = np.ones(len(labels), dtype=bool)
    for presence in presences:
        if count_units(units[presence.known]) >= minimum_samples:
            usable &= presence.known
    reasons = [_reason(presence, labels, units, usable, minimum_cell, minimum_samples) for presence in presences]
    measured = [index for index, reason in enumerate(reasons) if reason is None]
    if not measured:
        return usable, reasons, []
    coefficients = len(np.unique(labels[usable])) + len(measured)
    if count_units(units[usable]) < 2 * coefficients:
        independent = count_units(units[usable])
        few = f"{independent} usable samples are too few to tell {coefficients} effects of classes and concepts apart"
        return usable, [reason or few for reason in reasons], []
    return usable, reasons, measured


def _reason(
    presence: Presence, labels: np.ndarray, units: np.ndarray, usable: np.ndarray, minimum_cell: int, minimum_samples: int
) -> str | None:
    if not presence.told:
        return (
            "the foundation model's scores do not divide the samples into some that hold the concept and some that do not"
            f" (distance of the groups {presence.separation:.1f} standard deviations, {SEPARATION:g} needed)"
        )
    known, n = count_units(units[presence.known]), count_units(units[usable])
    if known < min(minimum_samples, count_units(units)):
        return f"whether the concept is present is known for {known} samples, {minimum_samples} needed"
    if n < minimum_samples:
        return f"{n} usable samples, {minimum_samples} needed"
    on, off = int((presence.present & usable).sum()), int((~presence.present & usable).sum())
    if on == 0 or off == 0:
        return f"the concept is present in {on} of {int(usable.sum())} samples: nothing to compare"
    best = max(
        min(
            count_units(units[presence.present & usable & (labels == label)]),
            count_units(units[~presence.present & usable & (labels == label)]),
        )
        for label in np.unique(labels[usable])
    )
    if best < minimum_cell:
        return (
            f"no counterexamples: within no class is the concept both present and absent in at least {minimum_cell} samples"
            f" (largest smaller group: {best})"
        )
    return None


def _entangled(columns: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(p,) bool: columns that, within the groups, are a linear combination of the others."""
    counts = np.bincount(groups)
    sums = np.stack([np.bincount(groups, weights=column) for column in columns.T], axis=1)
    inside = columns - (sums / counts[:, None])[groups]
    found = np.zeros(columns.shape[1], dtype=bool)
    for index in range(columns.shape[1]):
        own, others = inside[:, index], np.delete(inside, index, axis=1)
        rest = own - others @ np.linalg.lstsq(others, own, rcond=None)[0] if others.shape[1] else own
        found[index] = float(rest @ rest) <= _TOLERANCE * float(own @ own)
    return found


def _weighted_least_squares(
    columns: np.ndarray,
    groups: np.ndarray,
    target: np.ndarray,
    units: np.ndarray,
    bootstrap: int,
    rng: np.random.Generator,
    confidence: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary least squares (p,), and how far the effects lie from theirs in Bayesian-bootstrap draws (B, p).

    The intercepts are eliminated by centring within groups under the weights (Frisch and Waugh 1933), so that a thousand classes
    cost no more than two. A ridge of 1e-9 of the mean diagonal keeps a concept that equals another solvable.
    """
    members = np.unique(units, return_inverse=True)[1].reshape(-1)
    count, ones = int(members.max()) + 1, np.ones((1, len(target)))
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    point = _solve(columns, target, ones, order, starts)[0]
    inside = columns - (np.add.reduceat(columns[order], starts, axis=0) / np.bincount(groups)[:, None])[groups]
    residual = target - inside @ point
    residual -= (np.add.reduceat(residual[order], starts) / np.bincount(groups))[groups]
    influence = inside @ np.linalg.pinv(inside.T @ inside, hermitian=True)
    leverage = np.bincount(members, weights=(influence * inside).sum(axis=1) + 1.0 / np.bincount(groups)[groups])[members]
    # A unit that decides a coefficient alone leaves no residual; what would be divided by nothing is held at a tenth.
    spread = target + residual * (1.0 / np.maximum(1.0 - leverage, 0.1) - 1.0)
    factor = _freedom_factor(influence, members, count - columns.shape[1] - len(starts), confidence)
    drawn = np.empty((bootstrap, columns.shape[1]))
    middle = _solve(columns, spread, ones, order, starts)[0]
    for start in range(0, bootstrap, _DRAWS):
        weights = rng.standard_exponential((min(_DRAWS, bootstrap - start), count))[:, members]
        weights /= weights.mean(axis=1, keepdims=True)
        drawn[start : start + len(weights)] = (_solve(columns, spread, weights, order, starts) - middle) * factor
    return point, drawn


def _solve(columns: np.ndarray, target: np.ndarray, weights: np.ndarray, order: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(D, p) slopes under weights (D, n); `order` sorts the samples by group, `starts` says where each group begins."""
    n, p = columns.shape
    values = np.concatenate([columns, target[:, None]], axis=1)
    ordered = weights[:, order]
    mass = np.add.reduceat(ordered, starts, axis=1)
    sums = np.stack([np.add.reduceat(ordered * value, starts, axis=1) for value in values[order].T], axis=2)
    across = np.matmul(sums.transpose(0, 2, 1), sums / mass[..., None])
    products = (columns[:, :, None] * columns[:, None, :]).reshape(n, p * p)
    left = (weights @ products).reshape(-1, p, p) - across[:, :p, :p]
    right = weights @ (columns * target[:, None]) - across[:, :p, p]
    ridge = 1e-9 * np.trace(left, axis1=1, axis2=2) / p
    return np.linalg.solve(left + ridge[:, None, None] * np.eye(p), right[..., None])[..., 0]


def _freedom_factor(influence: np.ndarray, members: np.ndarray, residual: int, confidence: float) -> np.ndarray:
    """(p,) t over normal quantile, with the degrees of freedom that each coefficient's variance is estimated with.

    With a_u the squared influence of unit u on the coefficient, ``(sum a)^2 / sum a^2 - 1``, at most the residual degrees.
    """
    squared = np.stack([np.bincount(members, weights=column**2) for column in influence.T], axis=1)
    freedom = squared.sum(axis=0) ** 2 / np.maximum((squared**2).sum(axis=0), 1e-300) - 1.0
    return np.array([student_factor(min(float(one), residual), confidence) for one in freedom])
