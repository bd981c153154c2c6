"""From outputs under ablation to measured effects: what flows through a concept's components, against that of random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semlens_audit.behaviour import class_margin
from semlens_audit.draws import LOGITS, SHARE, generator, interval
from semlens_audit.plan import AuditPlan
from semlens_audit.presence import Presence
from semlens_audit.proportions import wilson
from semlens_audit.records import AblationRecord, Interval, Measurement

__all__ = ["Contrast", "Drawn", "concept_contrast", "draw_weights", "measure_ablation"]

_TOLERANCE = 1e-6
_DIFFERENCE = (-1.0, 1.0)


@dataclass(frozen=True)
class Drawn:
    """The test samples on which components were switched off.

    Parameters
    ----------
    samples
        (n,) int64 sample ids.
    labels
        (n,) int64 class of each.
    weights
        (B + 1, n) float64, each row adding up to 1: the first for the estimate, the others for bootstrap draws; see
        `draw_weights`.
    presences
        One entry per concept of the spec, over these samples.
    """

    samples: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    presences: tuple[Presence, ...]


def draw_weights(probability: np.ndarray, units: np.ndarray, bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of samples that were drawn with unequal probability, and their Bayesian bootstrap (Rubin 1981) over units.

    Parameters
    ----------
    probability
        (n,) with which each sample was drawn; it counts 1 / probability.
    units
        (n,) independent unit of each sample: samples of one unit share a weight.
    bootstrap
        B, number of draws.

    Returns
    -------
    numpy.ndarray
        (B + 1, n) rows that add up to 1; the first is the estimate's.
    """
    names, unit = np.unique(units, return_inverse=True)
    drawn = np.concatenate([np.ones((1, len(names))), rng.standard_exponential((bootstrap, len(names)))])
    weights = drawn[:, unit.reshape(-1)] / probability
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Contrast:
    """How the effect of a concept's presence on any output is read off samples: a weight for each sample.

    Parameters
    ----------
    rows
        (B + 1, n) float64: the effect on an output y (n,) is ``rows @ y``; the first row gives the estimate, the others bootstrap
        draws. None if the effect cannot be told.
    n
        Samples it rests on.
    reason
        Why there is none.
    """

    rows: np.ndarray | None
    n: int
    reason: str | None


def concept_contrast(drawn: Drawn, concept: int, *, minimum_cell: int, minimum_samples: int) -> Contrast:
    """Effect of one concept's presence, label and other concepts held: weighted least squares, as in `semlens_audit.behaviour`.

    Least squares is linear in what is explained: the effect of presence on the whole network's margin is the sum of its effect on
    the margin with the components switched off and of its effect on the difference of the two, which is what the components
    mediate. Other concepts are held where their presence is known for all samples for which this one's is.

    Parameters
    ----------
    concept
        Position among `Drawn.presences`.
    minimum_cell
        Samples of one and the same label that must hold the concept, and that must not.
    minimum_samples
        Samples for which its presence must be known.
    """
    own = drawn.presences[concept]
    rows = np.flatnonzero(own.known)
    n, labels, present = len(rows), drawn.labels[rows], own.present[rows]
    if not own.told:
        return Contrast(None, n, "the foundation model's scores do not tell which samples hold the concept")
    if n < minimum_samples:
        return Contrast(None, n, f"whether the concept is present is known for {n} of the samples, {minimum_samples} needed")
    cells = [min(int(present[labels == one].sum()), int((~present[labels == one]).sum())) for one in np.unique(labels)]
    if max(cells) < minimum_cell:
        return Contrast(
            None,
            n,
            f"within no class is the concept both present and absent in at least {minimum_cell} of the samples"
            f" (largest smaller group: {max(cells)})",
        )
    # As in the behavioural line: a score without two groups stands for everything in the picture and is no covariate.
    held_apart = [one for index, one in enumerate(drawn.presences) if index != concept and one.told and one.known[rows].all()]
    others = [one.probability[rows] for one in held_apart if np.ptp(one.probability[rows]) > 0]
    columns = np.stack([own.probability[rows], *others], axis=1)
    columns = columns - columns.mean(axis=0)
    intercepts = (labels[:, None] == np.unique(labels)).astype(np.float64)
    if n < 2 * (columns.shape[1] + intercepts.shape[1]):
        return Contrast(None, n, f"{n} samples are too few to tell {columns.shape[1]} concepts' effects apart")
    held = np.concatenate([intercepts, columns[:, 1:]], axis=1)
    rest = columns[:, 0] - held @ np.linalg.lstsq(held, columns[:, 0], rcond=None)[0]
    if float(rest @ rest) <= _TOLERANCE * float(columns[:, 0] @ columns[:, 0]):
        return Contrast(None, n, "other concepts determine its presence, so that their effects cannot be told apart")
    design = np.concatenate([columns[:, :1], held], axis=1)
    weights = drawn.weights[:, rows]
    weights = weights / weights.sum(axis=1, keepdims=True)
    width = design.shape[1]
    inner = (weights @ (design[:, :, None] * design[:, None, :]).reshape(n, width * width)).reshape(-1, width, width)
    # A ridge of a billionth keeps concepts that equal each other solvable; the one in question was seen to differ from all.
    inner = inner + 1e-9 * np.trace(inner, axis1=1, axis2=2)[:, None, None] / width * np.eye(width)
    first = np.zeros((width, 1))
    first[0] = 1.0
    solved = np.linalg.solve(inner, np.broadcast_to(first, (len(inner), width, 1)))[..., 0]
    effect = (solved @ design.T) * weights
    # Residuals of n samples under so many coefficients are too small by sqrt((n - width) / n).
    effect[1:] = effect[0] + (effect[1:] - effect[0]) * np.sqrt(n / (n - width))
    whole = np.zeros((len(effect), len(drawn.labels)))
    whole[:, rows] = effect
    return Contrast(whole, n, None)


def measure_ablation(
    plan: AuditPlan,
    drawn: Drawn,
    contrast: Contrast,
    concept: int,
    outputs: np.ndarray,
    *,
    method: str,
    index: int,
    scale: float,
    names: Sequence[str],
) -> AblationRecord:
    """What changes when a concept's components are switched off, against control sets.

    Parameters
    ----------
    drawn
        The samples.
    contrast
        Of this concept, see `concept_contrast`.
    concept
        Position among the spec's concepts.
    outputs
        (2 + R, n, C) float32: of the whole network, with the concept's components switched off, and with each of R control sets.
    method
        ``mean`` or ``resampling``.
    index
        Class among the outputs.
    scale
        What control effects are multiplied by to stand for equal relevance.
    names
        Class, layer and concept; random draws depend on them.
    """
    margins = np.stack([class_margin(one, index) for one in outputs])
    lost = (margins[0] - margins[1:]).T
    changes = drawn.weights @ -lost
    right = (outputs.argmax(axis=2) == drawn.labels).astype(np.float64)
    accuracy = drawn.weights @ (right[1:] - right[0]).T
    turned = (outputs[1:].argmax(axis=2) != outputs[0].argmax(axis=1)).astype(np.float64).T
    n = len(drawn.labels)
    presence = drawn.presences[concept]
    holding = presence.known & presence.present
    record: dict[str, Measurement] = {
        "margin": _measured(plan, "change of the margin", "logits", changes[:, 0], n),
        "accuracy": _measured(plan, "change of accuracy", "difference", accuracy[:, 0], n),
    }
    flips = np.empty((0, lost.shape[1]))
    if not holding.any():
        record["flips"] = _missing("predictions that change", "share", "no sample is known to hold the concept", 0)
    else:
        weights = drawn.weights[:, holding]
        flips = (weights / weights.sum(axis=1, keepdims=True)) @ turned[holding]
        record["flips"] = _measured(plan, "predictions that change", "share", flips[:, 0], int(holding.sum()))
    effects = np.empty((0, lost.shape[1]))
    if contrast.rows is None:
        record["mediated"] = _missing("mediated effect", "logits", contrast.reason or "", contrast.n)
        record["contrast"] = _missing("contrast", "logits", contrast.reason or "", contrast.n)
    else:
        effects = contrast.rows @ lost
        record["mediated"] = _measured(plan, "mediated effect", "logits", effects[:, 0], contrast.n)
        record["contrast"] = _contrast(plan, effects, scale, contrast.n, (method, *names))
    return AblationRecord(
        method="mean" if method == "mean" else "resampling",
        **record,
        control_mediated=_listed(effects, scale),
        control_margin=_listed(changes, scale),
        control_accuracy=_listed(accuracy, 1.0),
        control_flips=_listed(flips, 1.0),
    )


def _contrast(plan: AuditPlan, effects: np.ndarray, scale: float, n: int, names: Sequence[str]) -> Measurement:
    """Size of the concept's effect minus the mean size of the controls'; draws resample samples and control sets alike.

    Sizes of noisy effects are too large on average, which makes the comparison err on the side of the controls.
    """
    controls = np.abs(effects[:, 1:]) * scale
    if not controls.shape[1]:
        return _missing("contrast", "logits", "there is no control set to compare with", n)
    mix = np.full((len(effects), controls.shape[1]), 1.0)
    if controls.shape[1] > 1:
        mix[1:] = generator(plan, "controls", *names).standard_exponential((len(effects) - 1, controls.shape[1]))
    mix /= mix.sum(axis=1, keepdims=True)
    values = np.sign(effects[0, 0]) * effects[:, 0] - (mix * controls).sum(axis=1)
    return _measured(plan, "contrast", "logits", values, n, "test samples and control sets")


def _measured(plan: AuditPlan, quantity: str, unit: str, values: np.ndarray, n: int, over: str = "test samples") -> Measurement:
    settings = plan.audit.measurement
    bounds = {"logits": LOGITS, "share": SHARE, "difference": _DIFFERENCE}[unit]
    value = float(np.clip(values[0], *bounds))
    if unit != "share" and n < settings.minimum_samples:
        return _missing(quantity, unit, f"{n} samples, {settings.minimum_samples} needed", n)
    spread = interval(plan, value, values[1:], over, bounds)
    if unit != "logits" and float(np.ptp(values)) < _TOLERANCE:
        # Where no prediction differs, draws do not either: the interval is that of a share of which none of n was seen.
        least = wilson(0.0, n, settings.confidence)[1]
        low, high = max(value - least, bounds[0]), min(value + least, bounds[1])
        spread = Interval(low=low, high=high, level=settings.confidence, method="Wilson score interval")
    return Measurement.model_validate({"quantity": quantity, "unit": unit, "value": value, "interval": spread, "n": n})


def _missing(quantity: str, unit: str, reason: str, n: int) -> Measurement:
    return Measurement.model_validate({"quantity": quantity, "unit": unit, "n": n, "not_measured": reason})


def _listed(values: np.ndarray, scale: float) -> tuple[float, ...]:
    """Estimates of the control sets."""
    return tuple(round(float(value) * scale, 5) for value in values[0, 1:]) if len(values) else ()
