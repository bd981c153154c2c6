"""How each measured value moves with the samples it rests on: what makes two audits on the same samples comparable in pairs.

Shapes use B draws, G groups, J concepts, K components, N samples, U independent units.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from semlens_audit import behaviour
from semlens_audit.assignment import AssignedLayer, assign_layer
from semlens_audit.checks import LINES, Quantity
from semlens_audit.data import DataSet
from semlens_audit.digest import digest
from semlens_audit.effect_measure import concept_presences
from semlens_audit.evidence import Evidence
from semlens_audit.flow import ClassFlow, Flows
from semlens_audit.interpretability import ComponentMeasures
from semlens_audit.interpretability_measure import asked_measures, drawn_measure, measures_of_layer
from semlens_audit.measure import Measurements
from semlens_audit.plan import AuditPlan
from semlens_audit.presence import Presence
from semlens_audit.release_records import InfluenceRecord
from semlens_audit.reliance import drawn_clarity, drawn_reliance
from semlens_audit.units import count_units

__all__ = ["LENGTH", "VERSION", "Influences", "definitions", "influences", "unit_groups"]

VERSION = 3
"""Raised whenever a change here changes a number; what the store keeps under another version is computed anew."""

LENGTH = 512
"""Most numbers that are kept of a quantity: a correlation of 0.5 that rests on so many is told to within 0.03."""


class Influences(BaseModel):
    """Influences on all quantities of an audit, as the store keeps them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int
    records: tuple[InfluenceRecord, ...]


def influences(
    plan: AuditPlan,
    data: DataSet,
    evidence: Evidence,
    measured: Measurements,
    quantities: Sequence[Quantity],
    *,
    flows: Flows | None = None,
) -> Influences:
    """How each quantity that was measured moves with the samples.

    Two audits of different models on the same samples err together, as far as the same samples mislead them. The covariance of two
    values is the inner product of their vectors:

    - *Reliance, unexplained relevance, clarity, polysemanticity, redundancy*: the vector holds the first draws of the bootstrap that
      their interval rests on, minus their mean, over the root of their number. Draws weigh the same units alike in both audits, be it
      as test samples, as reference samples of components or as where random crops come from: a paired bootstrap (Efron and
      Tibshirani 1993, section 8.3).
    - *Behavioural effect*: the empirical influence of each independent unit, that is the derivative of the least-squares estimate
      by the weight of the unit, with the corrections for leverage and degrees of freedom that its interval has
      (`semlens_audit.behaviour.effects`). It is the jackknife's ``theta - theta_(u)`` in its infinitesimal form (Jaeckel, Bell
      Laboratories memorandum MM 72-1215-11, 1972; Efron and Tibshirani 1993, chapter 21). The sum of squares is the sampling
      variance.
    - *Subgroup gap, difference in presence*: the same of a difference between two means of zeros and ones.
    - *Pair effect*: the same of a mean over pairs; its groups are of pairs, not of samples.

    Of a quantity whose size counts, the influences are those on the signed value. Quantities that were not measured have none.

    Parameters
    ----------
    plan
        The audit.
    data
        Its test data; the same samples as in `evidence`.
    evidence
        What was measured on.
    measured
        What was measured.
    quantities
        What the checks ask for.
    flows
        Where the evidence's relevance flows, as far as it is known already.
    """
    digests = [sample.sha256 for sample in data.samples]
    groups, identity = unit_groups(evidence.units, digests)
    found: list[InfluenceRecord] = []
    outputs = _Outputs(plan, evidence)
    asked = [quantity for quantity in quantities if _measured(measured, quantity)]
    for quantity in asked:
        if quantity.kind == "pair_effect":
            by_unit, places, pairs = _pairs(data, evidence, quantity)
            found.append(_record(quantity, "pairs", pairs, _folded(by_unit, places)))
        elif quantity.kind in LINES:
            found.append(_record(quantity, "samples", identity, _folded(outputs.of(quantity), groups)))
    flows = flows or Flows(plan, evidence)
    drawn = digest(
        {
            "version": VERSION,
            "seed": plan.audit.seed,
            "draws": flows.weights.draws,
            "units": sorted([sha256, unit] for sha256, unit in zip(digests, evidence.units.tolist(), strict=True)),
        }
    )
    for source in evidence.layers:
        inside = [quantity for quantity in asked if quantity.layer == source.layer]
        if inside:
            layer = assign_layer(plan, evidence, source, measured.unrecognised, flows.weights)
            wanted = asked_measures(inside, source.layer)
            measures = measures_of_layer(plan, evidence, source, wanted) if wanted else None
            for quantity in inside:
                flow = flows.of(source, evidence.class_names.index(quantity.class_name))
                draws = _draws(plan, layer, measures, quantity, flow)[:LENGTH]
                found.append(_record(quantity, "draws", drawn, (draws - draws.mean()) / np.sqrt(len(draws))))
    return Influences(version=VERSION, records=tuple(found))


def unit_groups(units: np.ndarray, digests: Sequence[str]) -> tuple[np.ndarray, str]:
    """Group of each independent unit, whatever order or number the samples have.

    Up to `LENGTH` units are each a group of their own, in the order of their content; more are spread over `LENGTH` groups by a
    digest of their content.

    Parameters
    ----------
    units
        (N,) int64 unit of each sample, from 0.
    digests
        N content digests.

    Returns
    -------
    groups : numpy.ndarray
        (max(units) + 1,) int64, from 0; -1 for a number that no sample has.
    identity : str
        SHA-256 over which content is in which group: equal for equal samples in equal units.
    """
    members: dict[int, list[str]] = {}
    for unit, sha256 in zip(units.tolist(), digests, strict=True):
        members.setdefault(unit, []).append(sha256)
    keys = {unit: digest(sorted(held)) for unit, held in members.items()}
    groups = np.full(int(units.max(initial=-1)) + 1, -1, dtype=np.int64)
    if len(keys) <= LENGTH:
        for place, unit in enumerate(sorted(keys, key=lambda one: (keys[one], one))):
            groups[unit] = place
    else:
        for unit, key in keys.items():
            groups[unit] = int(key[:12], 16) % LENGTH
    table = sorted([sha256, int(groups[unit])] for unit, held in members.items() for sha256 in held)
    return groups, digest({"version": VERSION, "groups": LENGTH, "table": table})


def definitions(plan: AuditPlan, probes: Mapping[str, Any]) -> dict[str, str]:
    """Digest of what defines each concept: two audits speak of the same concept only if theirs are equal.

    Parameters
    ----------
    plan
        The audit.
    probes
        Inputs of the stage ``probes``, see `semlens_audit.stages.stage_inputs`: descriptions, templates, digests of examples.

    Returns
    -------
    dict
        concept -> SHA-256.
    """
    return {
        concept.id: digest(
            {
                "concept": probes["concepts"][concept.id],
                "templates": probes["templates"],
                "attribute": concept.attribute or concept.id,
            }
        )
        for concept in plan.spec.concepts
    }


def _measured(measured: Measurements, quantity: Quantity) -> bool:
    found = measured.quantities.get(quantity.key)
    return found is not None and found.value is not None


def _record(quantity: Quantity, basis: Any, identity: str, values: np.ndarray) -> InfluenceRecord:
    text = base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")
    return InfluenceRecord(quantity=quantity.key, basis=basis, basis_sha256=identity, length=len(values), values=text)


def _folded(by_unit: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sums over the units of each group, scaled so that squares still add up to the sampling variance."""
    held = groups >= 0
    folded = np.bincount(groups[held], weights=by_unit[held], minlength=int(groups.max(initial=0)) + 1)
    squares, kept = float((by_unit[held] ** 2).sum()), float((folded**2).sum())
    return folded * np.sqrt(squares / kept) if kept > 0.0 else folded


def _on_mean(values: np.ndarray, units: np.ndarray, count: int) -> np.ndarray:
    """(count,) influence of each unit on the mean of `values`, whose sum of squares is the unbiased variance of that mean."""
    n, independent = len(values), count_units(units)
    sums = np.bincount(units, weights=(values - values.mean()) / n, minlength=count)
    return sums * np.sqrt(independent / max(independent - 1, 1))


def _draws(
    plan: AuditPlan, layer: AssignedLayer, measures: ComponentMeasures | None, quantity: Quantity, flow: ClassFlow
) -> np.ndarray:
    """(B,) draws that the interval of a quantity inside the model rests on, as `semlens_audit.reliance` makes them."""
    if quantity.kind == "clarity":
        return drawn_clarity(layer, flow)
    if quantity.kind == "polysemanticity" or quantity.kind == "redundancy":
        if measures is None:
            raise ValueError(f"{quantity.key} is asked for without the measures of the layer")
        return drawn_measure(measures, quantity.kind, flow)
    meant = drawn_reliance(layer, flow)
    if quantity.kind == "unexplained_relevance":
        return np.asarray(1.0 - meant.sum(axis=1))
    names = [concept.id for concept in plan.spec.concepts]
    return np.asarray(meant[:, [names.index(name) for name in quantity.concepts]].sum(axis=1))


class _Outputs:
    """Influences on quantities of the model's outputs and of the data; what several of them share is computed once."""

    def __init__(self, plan: AuditPlan, evidence: Evidence) -> None:
        self._plan, self._evidence = plan, evidence
        self._count = int(evidence.units.max(initial=-1)) + 1
        self._presences: tuple[list[Presence], dict[int, Presence]] | None = None
        self._effects: dict[tuple[str, bool, tuple[int, ...]], np.ndarray | None] = {}

    def of(self, quantity: Quantity) -> np.ndarray:
        """(U,) influence of each unit on a quantity that was measured."""
        return self._effect(quantity) if quantity.kind == "behavioural_effect" else self._difference(quantity)

    def _where(self) -> tuple[list[Presence], dict[int, Presence]]:
        if self._presences is None:
            self._presences = concept_presences(self._plan, self._evidence)
        return self._presences

    def _index(self, concept: str) -> int:
        return [one.id for one in self._plan.spec.concepts].index(concept)

    def _class(self, name: str) -> int:
        return self._evidence.audited[self._evidence.class_names.index(name)]

    def _difference(self, quantity: Quantity) -> np.ndarray:
        """Influence on a difference between two shares of samples."""
        (seen, told), index = self._where(), self._index(quantity.concepts[0])
        presence, evidence = told.get(index, seen[index]), self._evidence
        own = evidence.labels == self._class(quantity.class_name)
        present = presence.present & presence.known
        if quantity.kind == "subgroup_gap":
            hit = evidence.predicted == self._class(quantity.class_name)
            groups = own & present, own & presence.known & ~present
        else:
            hit = present
            groups = own & presence.known, ~own & presence.known
        first, second = (_on_mean(hit[group].astype(np.float64), evidence.units[group], self._count) for group in groups)
        return np.asarray(first - second)

    def _effect(self, quantity: Quantity) -> np.ndarray:
        """Influence on the effect that a check is held against, regressed as `semlens_audit.effect_measure` does."""
        (seen, told), index = self._where(), self._index(quantity.concepts[0])
        concepts = self._plan.spec.concepts
        by_attributes = index in told
        presences = [told.get(row, seen[row]) for row in range(len(concepts))] if by_attributes else seen
        telling = [row for row, concept in enumerate(concepts) if concept.role_for(quantity.class_name) != "neutral"]
        rows = telling if index in telling else [*telling, index]
        key = (quantity.class_name, by_attributes, tuple(rows))
        if key not in self._effects:
            self._effects[key] = self._regressed(quantity.class_name, [presences[row] for row in rows])
        found = self._effects[key]
        if found is None:
            raise ValueError(f"{quantity.key} was measured, but its regression has no estimate")
        return np.asarray(found[:, rows.index(index)])

    def _regressed(self, class_name: str, presences: list[Presence]) -> np.ndarray | None:
        """(U, one per presence) influence of each unit on the effects of one regression; None without any."""
        settings, evidence = self._plan.audit.measurement, self._evidence
        return behaviour.influences(
            evidence.margin(evidence.class_names.index(class_name)),
            evidence.labels,
            presences,
            minimum_cell=settings.minimum_counterexamples,
            minimum_samples=settings.minimum_samples,
            units=evidence.units,
            confidence=settings.confidence,
        )


def _pairs(data: DataSet, evidence: Evidence, quantity: Quantity) -> tuple[np.ndarray, np.ndarray, str]:
    """Influence of each independent unit of pairs on a pair effect, the units' groups, and what identifies these."""
    if evidence.pairs is None or data.pairs is None:
        raise ValueError(f"{quantity.key} was measured without pairs")
    pairs = evidence.pairs
    rows = np.flatnonzero(np.array(pairs.concepts) == quantity.concepts[0])
    index = evidence.audited[evidence.class_names.index(quantity.class_name)]
    change = behaviour.class_margin(pairs.present[rows], index) - behaviour.class_margin(pairs.without[rows], index)
    place = np.unique(pairs.units[rows], return_inverse=True)[1].reshape(-1)
    means = np.bincount(place, weights=change) / np.bincount(place)
    chosen = [data.pairs.pairs[row] for row in rows.tolist()]
    contents = [digest([data.pairs.digests[pair.without], data.pairs.digests[pair.present]]) for pair in chosen]
    groups, identity = unit_groups(place, contents)
    return _on_mean(means, np.arange(len(means)), len(means)), groups, identity
