"""The behavioural line of evidence: how the class margin moves with a concept's presence, seen from outside the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit.outputs import ROWS, class_margin
from semlens_audit.presence import SEPARATION, Presence
from semlens_audit.statistics import student_factor
from semlens_audit.units import count_units

__all__ = ["Effect", "class_margin", "effects", "influences"]

_DRAWS = 64
_WEIGHTS = 1 << 20
"""Weights that are drawn at a time, 8 MB."""
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
    columns, groups = _columns(presences, measured, usable, labels)
    entangled = _entangled(columns, groups)
    fit = _fit(columns, groups, margin[usable], units[usable], confidence)
    draws = _resampled(fit, bootstrap, rng)
    results: list[Effect] = []
    for index, reason in enumerate(reasons):
        column = measured.index(index) if reason is None else -1
        if reason is None and entangled[column]:
            reason = "within each class, other concepts determine its presence, so that their effects cannot be told apart"
        if reason is not None:
            results.append(Effect(None, np.empty(0), n, reason))
            continue
        value = float(fit.point[column])
        results.append(Effect(value, value + draws[:, column], n, None))
    return results


def influences(
    margin: np.ndarray,
    labels: np.ndarray,
    presences: list[Presence],
    *,
    minimum_cell: int,
    minimum_samples: int,
    units: np.ndarray,
    confidence: float = 0.95,
) -> np.ndarray | None:
    """How each effect of `effects` moves with the weight of each unit: the derivative of its draws where all weights are 1.

    The sum of squares over units is the sampling variance, with the corrections for leverage and degrees of freedom that the
    interval has.

    Parameters
    ----------
    margin, labels, presences, minimum_cell, minimum_samples, units, confidence
        As in `effects`.

    Returns
    -------
    numpy.ndarray or None
        (max(units) + 1, one per concept) float64: zeros for units that are not used, and for concepts that are not regressed on.
        None if no concept is.
    """
    usable, _, measured = _usable(labels, presences, units, minimum_cell, minimum_samples)
    if not measured:
        return None
    columns, groups = _columns(presences, measured, usable, labels)
    found = np.zeros((int(units.max()) + 1, len(presences)))
    rows = np.unique(units[usable])
    found[rows[:, None], np.array(measured)] = _by_unit(_fit(columns, groups, margin[usable], units[usable], confidence))
    return found


def _columns(
    presences: list[Presence], measured: list[int], usable: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n, p) centred probabilities of the concepts to be regressed on, and (n,) the number of each sample's label."""
    columns = np.stack([presences[index].probability[usable] for index in measured], axis=1)
    return columns - columns.mean(axis=0), np.unique(labels[usable], return_inverse=True)[1].reshape(-1)


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


@dataclass(frozen=True)
class _Fit:
    """Ordinary least squares of a margin on the label and on concepts; samples are sorted by their label.

    The intercepts are eliminated by centring within groups under the weights (Frisch and Waugh 1933), so that a thousand classes
    cost no more than two.

    Parameters
    ----------
    columns
        (n, p) probabilities of the concepts.
    starts
        Where each group of samples with one label begins.
    members
        (n,) number of each sample's unit, from 0.
    point
        (p,) effects.
    spread
        (n,) margins with their residuals divided by one minus the leverage of the unit.
    middle
        (p,) effects on `spread`.
    influence
        (n, p) derivative of the effects by each margin.
    factor
        (p,) what draws are spread by.
    """

    columns: np.ndarray
    starts: np.ndarray
    members: np.ndarray
    point: np.ndarray
    spread: np.ndarray
    middle: np.ndarray
    influence: np.ndarray
    factor: np.ndarray


def _fit(columns: np.ndarray, groups: np.ndarray, margin: np.ndarray, units: np.ndarray, confidence: float) -> _Fit:
    order = np.argsort(groups, kind="stable")
    columns, groups, margin = columns[order], groups[order], margin[order]
    members = np.unique(units, return_inverse=True)[1].reshape(-1)[order]
    starts, sizes, count = np.flatnonzero(np.diff(groups, prepend=-1)), np.bincount(groups), int(members.max()) + 1
    ones = np.ones((1, len(margin)))
    point = _solve(columns, margin, ones, starts)[0]
    inside = columns - (np.add.reduceat(columns, starts, axis=0) / sizes[:, None])[groups]
    residual = margin - inside @ point
    residual -= (np.add.reduceat(residual, starts) / sizes)[groups]
    influence = inside @ np.linalg.pinv(inside.T @ inside, hermitian=True)
    leverage = np.bincount(members, weights=(influence * inside).sum(axis=1) + 1.0 / sizes[groups])[members]
    # A unit that decides a coefficient alone leaves no residual; what would be divided by nothing is held at a tenth.
    spread = margin + residual * (1.0 / np.maximum(1.0 - leverage, 0.1) - 1.0)
    factor = _freedom_factor(influence, members, count - columns.shape[1] - len(starts), confidence)
    middle = _solve(columns, spread, ones, starts)[0]
    return _Fit(columns, starts, members, point, spread, middle, influence, factor)


def _resampled(fit: _Fit, bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """(B, p) how far the effects lie from theirs in Bayesian-bootstrap draws."""
    count = int(fit.members.max()) + 1
    drawn = np.empty((bootstrap, fit.columns.shape[1]))
    step = min(max(_WEIGHTS // count, 1), _DRAWS)
    for start in range(0, bootstrap, step):
        weights = rng.standard_exponential((min(step, bootstrap - start), count))[:, fit.members]
        weights /= weights.mean(axis=1, keepdims=True)
        drawn[start : start + len(weights)] = (_solve(fit.columns, fit.spread, weights, fit.starts) - fit.middle) * fit.factor
    return drawn


def _by_unit(fit: _Fit) -> np.ndarray:
    """(u, p) derivative of what `_resampled` draws by each unit's weight, where all weights are 1.

    With centred columns x and residuals e of the fit, ``(X^T X)^-1 sum_i x_i e_i`` over the unit's samples (infinitesimal
    jackknife; Jaeckel 1972).
    """
    rest = fit.spread - fit.columns @ fit.middle
    sizes = np.diff(fit.starts, append=len(rest))
    rest -= np.repeat(np.add.reduceat(rest, fit.starts) / sizes, sizes)
    parts = [np.bincount(fit.members, weights=column * rest) for column in fit.influence.T]
    return np.stack(parts, axis=1) * fit.factor


def _solve(columns: np.ndarray, target: np.ndarray, weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(D, p) slopes under weights (D, n); samples are sorted by group, and `starts` says where each group begins.

    A ridge of 1e-9 of the mean diagonal keeps a concept that equals another solvable.
    """
    n, p = columns.shape
    mass = np.add.reduceat(weights, starts, axis=1)
    sums = np.stack([np.add.reduceat(weights * value, starts, axis=1) for value in (*columns.T, target)], axis=2)
    left, right = np.zeros((len(weights), p * p)), weights @ (columns * target[:, None])
    for start in range(0, n, ROWS):
        part = slice(start, start + ROWS)
        left += weights[:, part] @ (columns[part, :, None] * columns[part, None, :]).reshape(-1, p * p)
    across = np.matmul(sums.transpose(0, 2, 1), sums / mass[..., None])
    square, right = left.reshape(-1, p, p) - across[:, :p, :p], right - across[:, :p, p]
    ridge = 1e-9 * np.trace(square, axis1=1, axis2=2) / p
    return np.linalg.solve(square + ridge[:, None, None] * np.eye(p), right[..., None])[..., 0]


def _freedom_factor(influence: np.ndarray, members: np.ndarray, residual: int, confidence: float) -> np.ndarray:
    """(p,) t over normal quantile, with the degrees of freedom that each coefficient's variance is estimated with.

    With a_u the squared influence of unit u on the coefficient, ``(sum a)^2 / sum a^2 - 1``, at most the residual degrees.
    """
    squared = np.stack([np.bincount(members, weights=column**2) for column in influence.T], axis=1)
    freedom = squared.sum(axis=0) ** 2 / np.maximum((squared**2).sum(axis=0), 1e-300) - 1.0
    return np.array([student_factor(min(float(one), residual), confidence) for one in freedom])
