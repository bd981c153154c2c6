"""Reliance of a class on concepts in one layer: what of its relevance flows through components that mean them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semlens_audit.assignment import AssignedLayer
from semlens_audit.checks import Quantity
from semlens_audit.draws import COSINE, SHARE, interval
from semlens_audit.evidence import Evidence
from semlens_audit.flow import ClassFlow
from semlens_audit.interpretability import ComponentMeasures
from semlens_audit.interpretability_measure import class_measure
from semlens_audit.plan import AuditPlan
from semlens_audit.records import ClassLayer, ComponentRecord, Interval, Measurement

__all__ = ["drawn_clarity", "drawn_reliance", "measure_class"]

_RESAMPLED = "test samples, reference samples and random crops"
_DRAWS = 64


def drawn_reliance(layer: AssignedLayer, flow: ClassFlow) -> np.ndarray:
    """(B, J) float64 draws of the share of a class's relevance that flows through components meaning each concept."""
    draws = flow.drawn.astype(np.float64, copy=False)
    out = np.empty((len(draws), layer.weight_draws.shape[2]))
    for start in range(0, len(draws), _DRAWS):
        part = slice(start, start + _DRAWS)
        out[part] = np.matmul(draws[part, None], layer.weight_draws[part].astype(np.float32))[:, 0]
    return out


def drawn_clarity(layer: AssignedLayer, flow: ClassFlow) -> np.ndarray:
    """(B,) float64 draws of the components' clarity, weighted by their share of a class's relevance."""
    known = _clear(layer)
    draws = flow.drawn[:, known].astype(np.float64, copy=False)
    return np.asarray((draws * layer.clarity_draws[:, known]).sum(axis=1) / draws.sum(axis=1))


def _clear(layer: AssignedLayer) -> np.ndarray:
    """(K,) bool: live components whose clarity is known."""
    return ~np.isnan(layer.clarity) & ~layer.source.dead


@dataclass(frozen=True)
class _Reliance:
    """The shares of one class in one layer as measurements.

    Parameters
    ----------
    point, drawn
        (J,) and (B, J) share of relevance of each concept.
    concepts
        J ids.
    n
        Samples.
    """

    plan: AuditPlan
    point: np.ndarray
    drawn: np.ndarray
    concepts: tuple[str, ...]
    n: int

    def of(self, concepts: Sequence[str], nested: bool = False) -> Measurement:
        """Share of relevance through components that mean any of the concepts."""
        chosen = [self.concepts.index(concept) for concept in concepts]
        return self._share("reliance", float(self.point[chosen].sum()), self.drawn[:, chosen].sum(axis=1), nested)

    def unexplained(self, nested: bool = False) -> Measurement:
        """Share of relevance through components that mean no concept."""
        return self._share("unexplained relevance", 1.0 - float(self.point.sum()), 1.0 - self.drawn.sum(axis=1), nested)

    def _share(self, quantity: str, value: float, draws: np.ndarray, nested: bool) -> Measurement:
        value = min(max(value, 0.0), 1.0)
        spread = interval(self.plan, value, draws, _RESAMPLED, SHARE, nested=nested)
        return Measurement(quantity=quantity, unit="share", value=value, interval=spread, n=self.n)


def measure_class(
    plan: AuditPlan,
    evidence: Evidence,
    layer: AssignedLayer,
    position: int,
    flow: ClassFlow,
    asked: Sequence[Quantity],
    measures: ComponentMeasures | None = None,
) -> tuple[ClassLayer, dict[str, Measurement]]:
    """Reliance of one class in one layer, and the quantities asked of it.

    Parameters
    ----------
    layer
        The layer's components and what they mean.
    position
        Position of the class among the audited ones.
    flow
        Where its relevance flows in the layer.
    asked
        Quantities of this class and layer.
    measures
        Of the layer's components, those that `asked` names, see `semlens_audit.interpretability_measure`.

    Returns
    -------
    record, values
        The record; quantity's key -> its measurement.
    """
    reason = _not_measured(plan, evidence, layer, position, flow)
    if reason is not None:
        return _missing(plan, evidence, layer, position, flow, reason), {q.key: q.missing(reason, flow.samples) for q in asked}
    name, concepts = evidence.class_names[position], plan.spec.concepts
    shares = _Reliance(
        plan, flow.mean @ layer.weights, drawn_reliance(layer, flow), tuple(concept.id for concept in concepts), flow.samples
    )

    def role(wanted: str) -> list[str]:
        return [concept.id for concept in concepts if concept.role_for(name) == wanted]

    record = ClassLayer(
        class_name=name,
        layer=layer.source.layer,
        samples=flow.samples,
        concepts={concept.id: shares.of([concept.id]) for concept in concepts},
        valid=shares.of(role("valid")),
        spurious=shares.of(role("spurious")),
        neutral=shares.of(role("neutral")),
        unexplained=shares.unexplained(),
        components=_components(plan, layer, flow),
    )
    return record, {quantity.key: _value(plan, layer, flow, shares, quantity, measures) for quantity in asked}


def _value(
    plan: AuditPlan,
    layer: AssignedLayer,
    flow: ClassFlow,
    shares: _Reliance,
    quantity: Quantity,
    measures: ComponentMeasures | None,
) -> Measurement:
    if quantity.kind == "unexplained_relevance":
        return shares.unexplained(nested=True)
    if quantity.kind == "clarity":
        return _weighted_clarity(plan, layer, flow)
    if quantity.kind == "polysemanticity" or quantity.kind == "redundancy":
        if measures is None:
            raise ValueError(f"{quantity.key} is asked for without the measures of the layer")
        return class_measure(plan, measures, quantity.kind, flow)
    if not quantity.concepts:
        return quantity.missing("the check speaks of no concept", flow.samples)
    return shares.of(quantity.concepts, nested=True)


def _not_measured(
    plan: AuditPlan, evidence: Evidence, layer: AssignedLayer, position: int, flow: ClassFlow
) -> str | None:
    """Why nothing can be said of a class in a layer; None: it can."""
    settings, name, place = plan.audit.measurement, evidence.class_names[position], layer.source.layer
    if not layer.present.any():
        # What never varies has no reference samples: even where it carries relevance, nothing tells what it means.
        return f"every component of layer {place} is dead: none varies over the test data"
    if flow.units < settings.minimum_samples:
        several = f", {flow.units} of them independent" if flow.units < flow.rows else ""
        found = f"{flow.rows} {'sample' if flow.rows == 1 else 'samples'} of class {name}{several}"
        return f"{found}, {settings.minimum_samples} needed"
    if flow.carried_units < settings.minimum_samples:
        several = "independent samples" if flow.carried_units < flow.samples else "samples"
        return (
            f"relevance reaches layer {place} in only {flow.carried_units} {several} of class {name},"
            f" {settings.minimum_samples} needed"
        )
    varies = float(evidence.margin(position).std())
    if varies < settings.minimum_spread:
        # Shares add up to 1 even where there is nothing to share: an untrained network rests its constant output on something.
        return (
            f"the margin of {name} hardly varies over the test data (standard deviation {varies:.2g} logits,"
            f" {settings.minimum_spread:g} needed): there is no decision that could rest on anything"
        )
    if not layer.eligible.any():
        return f"no live component of layer {place} has two reference samples that could say what it means"
    return None


def _missing(
    plan: AuditPlan, evidence: Evidence, layer: AssignedLayer, position: int, flow: ClassFlow, reason: str
) -> ClassLayer:
    missing = Measurement(quantity="reliance", unit="share", n=flow.samples, not_measured=reason)
    return ClassLayer(
        class_name=evidence.class_names[position],
        layer=layer.source.layer,
        samples=flow.samples,
        concepts={concept.id: missing for concept in plan.spec.concepts},
        valid=missing,
        spurious=missing,
        neutral=missing,
        unexplained=missing,
        components=(),
    )


def _weighted_clarity(plan: AuditPlan, layer: AssignedLayer, flow: ClassFlow) -> Measurement:
    """Mean clarity of the components, weighted by their share of the class's relevance."""
    known, n = _clear(layer), flow.samples
    total = float(flow.mean[known].sum())
    if total <= 0:
        return Measurement(
            quantity="clarity", unit="cosine", n=n, not_measured="no component with relevance has two reference samples"
        )
    value = float(np.clip((flow.mean[known] * layer.clarity[known]).sum() / total, *COSINE))
    spread = interval(plan, value, drawn_clarity(layer, flow), _RESAMPLED, COSINE, nested=True)
    return Measurement(quantity="clarity", unit="cosine", value=value, interval=spread, n=n)


def _components(plan: AuditPlan, layer: AssignedLayer, flow: ClassFlow) -> tuple[ComponentRecord, ...]:
    """All components of the layer, most relevant first."""
    identifiers = [concept.id for concept in plan.spec.concepts]
    level = plan.audit.measurement.confidence
    low, high = np.quantile(flow.drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    magnitude = flow.magnitude
    signed = np.divide(flow.signed, magnitude, out=np.zeros_like(magnitude), where=magnitude > 0)
    method = f"Bayesian bootstrap over test samples, {len(flow.drawn)} draws"
    usable: np.ndarray = np.asarray(layer.present.any(axis=1)) & (layer.concept_null is not None)
    records = []
    for index in np.lexsort((np.arange(len(flow.mean)), -flow.mean)):
        k, share = int(index), float(min(flow.mean[index], 1.0))
        meant = layer.weights[k]
        records.append(
            ComponentRecord(
                component=k,
                share=share,
                signed=float(np.clip(signed[k], -1.0, 1.0)),
                dead=bool(layer.source.dead[k]),
                interval=Interval(
                    low=min(float(low[k]), share), high=min(max(float(high[k]), share), 1.0), level=level, method=method
                ),
                assigned=identifiers[int(meant.argmax())] if meant.any() else None,
                meaning={name: round(float(meant[j]), 4) for j, name in enumerate(identifiers) if meant[j] >= 5e-5},
                best=identifiers[int(layer.z[k].argmax())] if usable[k] and identifiers else None,
                alignment={name: round(float(layer.alignment[k, j]), 6) for j, name in enumerate(identifiers)}
                if usable[k]
                else {},
                z={name: round(float(layer.z[k, j]), 4) for j, name in enumerate(identifiers)} if usable[k] else {},
                clarity=None if np.isnan(layer.clarity[k]) else float(np.clip(layer.clarity[k], -1.0, 1.0)),
            )
        )
    return tuple(records)
