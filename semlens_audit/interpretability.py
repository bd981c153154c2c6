"""How interpretable the components of a layer are: clarity, polysemanticity, redundancy of each, and what chance alone reaches.

Shapes use K components, m reference samples, B draws. SemanticLens stands for Dreyer et al., arXiv 2501.05398.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from semlens_audit.draws import draw_units, generator
from semlens_audit.meanings import LayerMeanings, recentred
from semlens_audit.neighbours import best_match, drawn_redundancy, redundancy
from semlens_audit.plan import AuditPlan
from semlens_audit.polysemanticity import polysemanticity, polysemanticity_and_draws
from semlens_audit.resampling import resampled_clarity
from semlens_audit.scores import unit
from semlens_audit.units import UnitWeights, reference_weights

__all__ = [
    "DRAWS", "NO_RELEVANCE", "QUANTITIES", "UNDEFINED", "ComponentMeasures", "Quantity", "chance", "draw_weights", "measure_components",
    "weighted_mean",
]  # fmt: skip

Quantity = Literal["clarity", "polysemanticity", "redundancy"]

QUANTITIES: dict[Quantity, tuple[float, float]] = {
    "clarity": (-1.0, 1.0),
    "polysemanticity": (0.0, 1.0),
    "redundancy": (-1.0, 1.0),
}
"""Each measure and its range."""

UNDEFINED: dict[Quantity, str] = {
    "clarity": "no live component has two independent reference samples",
    "polysemanticity": "no live component has two independent reference samples",
    "redundancy": "no two live components have reference samples",
}
"""Each measure and why a layer may have none."""

NO_RELEVANCE = "the components that it is defined for carry no relevance"
"""Why it may have none weighted by relevance."""

DRAWS = 200
"""Most draws of the bootstrap; an audit that declares fewer gets no more. Every draw compares all pairs of components."""

_CHUNK = 64


@dataclass(frozen=True)
class ComponentMeasures:
    """Measures of each component of a layer, at the point and under resampled reference samples.

    Parameters
    ----------
    values
        Measure -> (K,) float64; NaN where it is not defined: a dead component, one with fewer than two independent reference samples
        (clarity, polysemanticity), the only one of its layer (redundancy).
    draws
        Measure -> (B, K) float32, their mean is the value; NaN where the value is.
    """

    values: dict[Quantity, np.ndarray]
    draws: dict[Quantity, np.ndarray]


def draw_weights(plan: AuditPlan) -> UnitWeights:
    """Bootstrap weights of an audit's units: the first `DRAWS` of those that its checks use."""
    settings = plan.audit.measurement
    limited = settings.model_copy(update={"bootstrap": min(settings.bootstrap, DRAWS)})
    return draw_units(plan.model_copy(update={"audit": plan.audit.model_copy(update={"measurement": limited})}))


def measure_components(
    meanings: LayerMeanings, wanted: Collection[Quantity] = tuple(QUANTITIES), factor: np.ndarray | None = None
) -> ComponentMeasures:
    """Measures of each component, with draws of the bootstrap over reference samples.

    Pairs of reference samples of one unit do not count for clarity, and count as one member of a group for polysemanticity.

    Parameters
    ----------
    meanings
        Of the layer.
    wanted
        Which measures.
    factor
        (K,) what deviations of the draws are multiplied by; left out: `LayerMeanings.factor`.
    """
    factor = meanings.factor if factor is None else factor
    found = [_of_crops(meanings, wanted, factor)] if {"clarity", "polysemanticity"} & set(wanted) else []
    if "redundancy" in wanted:
        alike = redundancy(meanings.directions(0.0), meanings.known)
        drawn = drawn_redundancy((unit(one) for one in meanings.drawn()), meanings.known)
        found.append(ComponentMeasures({"redundancy": alike}, {"redundancy": recentred(alike, drawn, factor)}))
    return ComponentMeasures(
        {name: values for one in found for name, values in one.values.items()},
        {name: draws for one in found for name, draws in one.draws.items()},
    )


def _of_crops(meanings: LayerMeanings, wanted: Collection[Quantity], factor: np.ndarray) -> ComponentMeasures:
    """What rests on the crops of one component at a time."""
    shape = (meanings.weights.draws, meanings.components)
    enough = (meanings.counts >= 2) & ~meanings.dead
    names: list[Quantity] = [name for name in ("clarity", "polysemanticity") if name in wanted]
    values = {name: np.full(shape[1], np.nan) for name in names}
    draws = {name: np.full(shape, np.nan, dtype=np.float32) for name in names}
    every = meanings.embeddings
    for start in range(0, shape[1], _CHUNK):
        rows = start + np.flatnonzero(enough[start : start + _CHUNK])
        if not len(rows):
            continue
        embeddings, present, units = every[rows], meanings.present[rows], meanings.units[rows]
        weights = reference_weights(meanings.weights, units, present)
        for name in names:
            if name == "clarity":
                even = present / present.sum(axis=1, keepdims=True)
                value = np.clip(resampled_clarity(embeddings, even[:, None], units)[:, 0], -1.0, 1.0)
                drawn = resampled_clarity(embeddings, weights, units)
            else:
                value, drawn = polysemanticity_and_draws(embeddings, present, weights, units)
            values[name][rows], draws[name][:, rows] = value, recentred(value, drawn.T, factor[rows])
    return ComponentMeasures(values, draws)


def weighted_mean(value: np.ndarray, weight: np.ndarray, bounds: tuple[float, float]) -> float:
    """Mean of a measure over the components that it is defined for.

    Parameters
    ----------
    value
        (K,) NaN where it is not defined; defined for one component at least.
    weight
        (K,) non-negative, not zero for all of these.
    bounds
        Range of the measure.
    """
    known = np.isfinite(value)
    return float(np.clip((weight[known] * value[known]).sum() / weight[known].sum(), *bounds))


def chance(plan: AuditPlan, meanings: LayerMeanings, wanted: Collection[Quantity] = tuple(QUANTITIES)) -> dict[Quantity, float]:
    """Mean of each measure over sets of random crops, as many as there are components with reference samples, and as large.

    Parameters
    ----------
    plan
        The audit: its seed draws the sets.
    meanings
        Of the layer.
    wanted
        Which measures.

    Returns
    -------
    dict
        Measure -> mean; absent where it is not defined.
    """
    count, size = int(meanings.known.sum()), round(float(np.median(meanings.counts[meanings.known]))) if meanings.known.any() else 0
    if not count or size < 1 or not len(meanings.pool):
        return {}
    rng = generator(plan, "measures", meanings.layer)
    clear: list[np.ndarray] = []
    several: list[np.ndarray] = []
    means: list[np.ndarray] = []
    for start in range(0, count, _CHUNK):
        drawn = rng.integers(len(meanings.pool), size=(min(_CHUNK, count - start), size))
        crops, present = meanings.pool[drawn], np.ones(drawn.shape, dtype=bool)
        # The same crop drawn twice is one unit, as a sample is.
        if "clarity" in wanted:
            clear.append(resampled_clarity(crops, np.full((len(drawn), 1, size), 1.0 / size), drawn)[:, 0])
        if "polysemanticity" in wanted:
            several.append(polysemanticity(crops, present, drawn))
        means.append(crops.astype(np.float64).mean(axis=1))
    directions, known = unit(np.concatenate(means)), np.ones(count, dtype=bool)
    found: dict[Quantity, float] = {}
    if size >= 2 and clear:
        found["clarity"] = float(np.concatenate(clear).mean())
    if size >= 2 and several:
        found["polysemanticity"] = float(np.nanmean(np.concatenate(several)))
    if count >= 2 and "redundancy" in wanted:
        found["redundancy"] = float(best_match(directions, directions, known, known, itself=False)[1].mean())
    return {name: value for name, value in found.items() if np.isfinite(value)}
