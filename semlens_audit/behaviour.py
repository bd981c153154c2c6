"""The behavioural line of evidence: how the class margin moves with a concept's presence, seen from outside the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit import scores
from semlens_audit.statistics import otsu

__all__ = ["Effect", "Presence", "class_margin", "effects", "presence_from_attribute", "presence_from_embeddings"]

_DRAWS = 64
_TOLERANCE = 1e-6


def class_margin(logits: np.ndarray, index: int) -> np.ndarray:
    """Log-odds of a class: its logit minus the log-sum-exp of all others.

    Parameters
    ----------
    logits
        (N, C), C >= 2.
    index
        Class.

    Returns
    -------
    numpy.ndarray
        (N,) float64, in logits; with two classes the difference of the two logits.
    """
    values = logits.astype(np.float64)
    others = np.delete(values, index, axis=1)
    top = others.max(axis=1, keepdims=True)
    return values[:, index] - (top[:, 0] + np.log(np.exp(others - top).sum(axis=1)))


@dataclass(frozen=True)
class Presence:
    """Where a concept is present.

    Parameters
    ----------
    score
        (N,) float64 graded presence; NaN where unknown.
    present
        (N,) bool
    known
        (N,) bool
    step
        Difference of the mean score between present and absent samples: the change of score that stands for switching the
        concept on. 0 if either group is empty.
    separability
        Share of the score's variance between the two groups, 0 to 1; None for an attribute column.
    source
        ``"foundation model"`` or ``"attributes"``.
    """

    score: np.ndarray
    present: np.ndarray
    known: np.ndarray
    step: float
    separability: float | None
    source: str


def presence_from_attribute(column: np.ndarray) -> Presence:
    """Presence as an attribute column states it: (N,) int8, 1 present, 0 absent, -1 unknown."""
    known = column >= 0
    present = column == 1
    step = 1.0 if present.any() and (known & ~present).any() else 0.0
    return Presence(np.where(known, present.astype(np.float64), np.nan), present, known, step, None, "attributes")


def presence_from_embeddings(image_embeddings: np.ndarray, probes: scores.ProbeSet, concept: int) -> Presence:
    """Presence as the foundation model sees it on the whole image.

    The score is the mean over the concept's probes of the alignment, each standardised over the data; Otsu's threshold
    divides it into present and absent.

    Parameters
    ----------
    image_embeddings
        (N, d)
    """
    rows = np.flatnonzero(probes.concepts == concept)
    chosen = scores.ProbeSet(
        probes.directions[rows], probes.origins[rows], probes.baselines[rows], np.zeros(len(rows), dtype=np.int64)
    )
    values = scores.alignment(image_embeddings, chosen)
    deviation = values.std(axis=0)
    score = ((values - values.mean(axis=0)) / np.maximum(deviation, 1e-12)).mean(axis=1)
    threshold, separability = otsu(score)
    present = score > threshold
    groups = present.any() and (~present).any()
    step = float(score[present].mean() - score[~present].mean()) if groups else 0.0
    return Presence(score, present, np.ones(len(score), dtype=bool), step, separability, "foundation model")


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
        Samples used.
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
) -> list[Effect]:
    """Effect of every concept: least squares of the margin on the label and on all concepts' presence together.

    ``margin_i = a_label(i) + sum_j b_j * score_ij + e_i``; effect_j = b_j * step_j. Intervals come from the Bayesian
    bootstrap over samples (Rubin 1981): each draw re-solves the normal equations under Dirichlet(1, ..., 1) weights, which
    holds under unequal variances too. Residuals of n samples under p coefficients are too small by sqrt((n - p) / n), so the
    draws are spread by the inverse.

    Not measured, with the reason: too few samples for the coefficients (n < 2 p), where the fit would follow the noise and the
    interval would be too narrow; and a concept whose presence other concepts determine, where least squares would share one
    effect out among them.

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

    Returns
    -------
    list of Effect
        One per concept, in order.
    """
    usable = np.ones(len(margin), dtype=bool)
    for presence in presences:
        if int(presence.known.sum()) >= minimum_samples:
            usable &= presence.known
    reasons = [_reason(presence, labels, usable, minimum_cell, minimum_samples) for presence in presences]
    measured = [index for index, reason in enumerate(reasons) if reason is None]
    n = int(usable.sum())
    if not measured:
        return [Effect(None, np.empty(0), n, reason) for reason in reasons]
    groups = np.unique(labels[usable], return_inverse=True)[1].reshape(-1)
    coefficients = int(groups.max()) + 1 + len(measured)
    if n < 2 * coefficients:
        few = f"{n} usable samples are too few to tell {coefficients} effects of classes and concepts apart"
        return [Effect(None, np.empty(0), n, reason or few) for reason in reasons]
    columns = np.stack([presences[index].score[usable] for index in measured], axis=1)
    columns = columns - columns.mean(axis=0)
    entangled = _entangled(columns, groups)
    point, draws = _weighted_least_squares(columns, groups, margin[usable], bootstrap, rng)
    draws = point + (draws - point) * np.sqrt(n / (n - coefficients))
    results: list[Effect] = []
    for index, (presence, reason) in enumerate(zip(presences, reasons, strict=True)):
        column = measured.index(index) if reason is None else -1
        if reason is None and entangled[column]:
            reason = "within each class, other concepts determine its presence, so that their effects cannot be told apart"
        if reason is not None:
            results.append(Effect(None, np.empty(0), n, reason))
            continue
        results.append(Effect(float(point[column] * presence.step), draws[:, column] * presence.step, n, None))
    return results


def _reason(presence: Presence, labels: np.ndarray, usable: np.ndarray, minimum_cell: int, minimum_samples: int) -> str | None:
    known, n = int(presence.known.sum()), int(usable.sum())
    if known < min(minimum_samples, len(labels)):
        return f"whether the concept is present is known for {known} samples, {minimum_samples} needed"
    if n < minimum_samples:
        return f"{n} usable samples, {minimum_samples} needed"
    on, off = int((presence.present & usable).sum()), int((~presence.present & usable).sum())
    if on == 0 or off == 0:
        return f"the concept is present in {on} of {n} samples: nothing to compare"
    best = max(
        min(
            int((presence.present & usable & (labels == label)).sum()),
            int((~presence.present & usable & (labels == label)).sum()),
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
    columns: np.ndarray, groups: np.ndarray, target: np.ndarray, bootstrap: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary least squares (p,) and Bayesian-bootstrap draws (B, p) of the slopes, every group with its own intercept.

    The intercepts are eliminated by centring within groups under the weights (Frisch and Waugh 1933), so that a thousand classes
    cost no more than two. A ridge of 1e-9 of the mean diagonal keeps a concept that equals another solvable.
    """
    n, p = columns.shape
    products = (columns[:, :, None] * columns[:, None, :]).reshape(n, p * p)
    values = np.concatenate([columns, target[:, None]], axis=1)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    solved = np.empty((bootstrap + 1, p))
    for start in range(0, bootstrap + 1, _DRAWS):
        count = min(_DRAWS, bootstrap + 1 - start)
        weights = rng.standard_exponential((count, n))
        if start == 0:
            weights[0] = 1.0
        weights /= weights.mean(axis=1, keepdims=True)
        ordered = weights[:, order]
        mass = np.add.reduceat(ordered, starts, axis=1)
        sums = np.stack([np.add.reduceat(ordered * value, starts, axis=1) for value in values[order].T], axis=2)
        across = np.matmul(sums.transpose(0, 2, 1), sums / mass[..., None])
        left = (weights @ products).reshape(-1, p, p) - across[:, :p, :p]
        right = weights @ (columns * target[:, None]) - across[:, :p, p]
        ridge = 1e-9 * np.trace(left, axis1=1, axis2=2) / p
        left = left + ridge[:, None, None] * np.eye(p)
        solved[start : start + count] = np.linalg.solve(left, right[..., None])[..., 0]
    return solved[0], solved[1:]
