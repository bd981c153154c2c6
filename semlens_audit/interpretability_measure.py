"""Polysemanticity and redundancy of the components that a class rests on: measurements for checks, and what stands beside them.

Shapes use K components, B draws.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from semlens_audit.checks import Quantity
from semlens_audit.draws import interval
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.flow import ClassFlow, Flows
from semlens_audit.interpretability import (
    NO_RELEVANCE,
    QUANTITIES,
    UNDEFINED,
    ComponentMeasures,
    chance,
    draw_weights,
    measure_components,
    weighted_mean,
)
from semlens_audit.interpretability import Quantity as Measure
from semlens_audit.meanings import LayerMeanings
from semlens_audit.plan import AuditPlan
from semlens_audit.records import Measurement
from semlens_audit.resampling import reference_factor
from semlens_audit.wording import format_number, format_value

__all__ = ["asked_measures", "class_measure", "drawn_measure", "interpretability_remarks", "measures_of_layer"]

_WHOLE = 0.9995
"""Share of relevance from which on components count as all there are: less would be printed as below 100 %."""


def asked_measures(quantities: Collection[Quantity], layer: str) -> tuple[Measure, ...]:
    """Measures that checks ask for in a layer, each once; without clarity, which components are assigned with."""
    kinds = {quantity.kind for quantity in quantities if quantity.layer == layer}
    return tuple(name for name in QUANTITIES if name in kinds and name != "clarity")


def measures_of_layer(
    plan: AuditPlan, evidence: Evidence, source: LayerEvidence, wanted: Collection[Measure]
) -> ComponentMeasures:
    """Measures of a layer's components, in the first `semlens_audit.interpretability.DRAWS` draws that clarity is judged by.

    Parameters
    ----------
    wanted
        Which measures.
    """
    meanings = LayerMeanings(source, evidence.units, draw_weights(plan))
    return measure_components(meanings, wanted, reference_factor(meanings.counts, plan.audit.measurement.confidence))


def drawn_measure(measures: ComponentMeasures, measure: Measure, flow: ClassFlow) -> np.ndarray:
    """(B,) float64 draws of a measure, weighted by the components' share of a class's relevance in the same draws."""
    known, drawn = np.isfinite(measures.values[measure]), measures.draws[measure]
    share = flow.drawn[: len(drawn), known].astype(np.float64)
    return np.asarray((share * drawn[:, known]).sum(axis=1) / share.sum(axis=1))


def class_measure(plan: AuditPlan, measures: ComponentMeasures, measure: Measure, flow: ClassFlow) -> Measurement:
    """Mean of a measure over a layer's components, weighted by their share of a class's relevance.

    Parameters
    ----------
    measures
        Of the layer's components, see `measures_of_layer`.
    measure
        Which.
    flow
        Where the class's relevance flows in the layer.
    """
    known, n = np.isfinite(measures.values[measure]), flow.samples
    if not known.any():
        return Measurement(quantity=measure, unit="cosine", n=n, not_measured=UNDEFINED[measure])
    if flow.mean[known].sum() <= 0 or (flow.drawn[: len(measures.draws[measure]), known].sum(axis=1) <= 0).any():
        return Measurement(quantity=measure, unit="cosine", n=n, not_measured=NO_RELEVANCE)
    bounds = QUANTITIES[measure]
    value = weighted_mean(measures.values[measure], flow.mean, bounds)
    spread = interval(plan, value, drawn_measure(measures, measure, flow), "test samples and reference samples", bounds, nested=True)
    return Measurement(quantity=measure, unit="cosine", value=value, interval=spread, n=n)


def interpretability_remarks(
    plan: AuditPlan, evidence: Evidence, quantities: Sequence[Quantity], measured: Collection[str], flows: Flows
) -> Iterator[tuple[str, str]]:
    """What the measured values rest on and what chance alone reaches.

    Parameters
    ----------
    quantities
        What the checks ask for; those of other kinds are left alone.
    measured
        Keys of the quantities that have a value.
    flows
        Where the evidence's relevance flows.

    Yields
    ------
    key, sentence : str
        Of each quantity that has a value.
    """
    for source in evidence.layers:
        wanted = asked_measures([quantity for quantity in quantities if quantity.key in measured], source.layer)
        if not wanted:
            continue
        meanings = LayerMeanings(source, evidence.units, draw_weights(plan))
        by_chance = chance(plan, meanings, wanted)
        for measure in wanted:
            defined = meanings.known if measure == "redundancy" else (meanings.counts >= 2) & ~meanings.dead
            for quantity in quantities:
                if (quantity.kind, quantity.layer) != (measure, source.layer) or quantity.key not in measured:
                    continue
                share = float(flows.of(source, evidence.class_names.index(quantity.class_name)).mean[defined].sum())
                said = []
                if measure in by_chance:
                    said.append(f"As many sets of random crops reach {format_number(by_chance[measure], 2)}.")
                if share < _WHOLE:
                    held = format_value("share", share, 1)
                    said.append(f"The components that it is defined for hold {held} of the relevance.")
                if said:
                    yield quantity.key, " ".join(said)
