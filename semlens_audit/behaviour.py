"""The behavioural line of evidence: how the class margin moves with a concept's presence, seen from outside the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit import scores
from semlens_audit.statistics import otsu

__all__ = ["Effect", "Presence", "class_margin", "effects", "presence_from_attribute", "presence_from_embeddings"]


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
    holds under unequal variances too.

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
        Fewer usable samples: not measured.

    Returns
    -------
    list of Effect
        One per concept, in order.
    """
    usable = np.ones(len(margin), dtype=bool)
    for presence in presences:
        if presence.known.any():
            usable &= presence.known
    reasons = [_reason(presence, labels, usable, minimum_cell, minimum_samples) for presence in presences]
    measured = [index for index, reason in enumerate(reasons) if reason is None]
    n = int(usable.sum())
    if not measured:
        return [Effect(None, np.empty(0), n, reason) for reason in reasons]
    present_classes = np.unique(labels[usable])
    intercepts = (labels[usable][:, None] == present_classes[None]).astype(np.float64)
    columns = np.stack([presences[index].score[usable] * 1.0 for index in measured], axis=1)
    centre = columns.mean(axis=0)
    design = np.concatenate([intercepts, columns - centre], axis=1)
    point, draws = _weighted_least_squares(design, margin[usable], bootstrap, rng)
    results: list[Effect] = []
    for index, (presence, reason) in enumerate(zip(presences, reasons, strict=True)):
        if reason is not None:
            results.append(Effect(None, np.empty(0), n, reason))
            continue
        column = intercepts.shape[1] + measured.index(index)
        results.append(Effect(float(point[column] * presence.step), draws[:, column] * presence.step, n, None))
    return results


def _reason(presence: Presence, labels: np.ndarray, usable: np.ndarray, minimum_cell: int, minimum_samples: int) -> str | None:
    n = int(usable.sum())
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


def _weighted_least_squares(
    design: np.ndarray, target: np.ndarray, bootstrap: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary least squares (p,) and Bayesian-bootstrap draws (B, p) of the coefficients.

    A ridge of 1e-9 of the mean diagonal keeps a concept that equals another solvable; its interval is then wide.
    """
    n, p = design.shape
    products = (design[:, :, None] * design[:, None, :]).reshape(n, p * p)
    moments = design * target[:, None]
    weights = rng.standard_exponential((bootstrap, n))
    weights = np.concatenate([np.ones((1, n)), weights / weights.mean(axis=1, keepdims=True)])
    left = (weights @ products).reshape(-1, p, p)
    ridge = 1e-9 * np.trace(left, axis1=1, axis2=2) / p
    left = left + ridge[:, None, None] * np.eye(p)
    solved = np.linalg.solve(left, (weights @ moments)[..., None])[..., 0]
    return solved[0], solved[1:]
