"""How much each group of samples moves each measured value: what makes two audits on the same samples comparable in pairs.

Shapes use C audited classes, G groups, K components, N samples, U independent units.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from semlens_audit import behaviour, scores
from semlens_audit.checks import LINES, Quantity
from semlens_audit.data import DataSet
from semlens_audit.digest import digest
from semlens_audit.effect_measure import concept_presences
from semlens_audit.evidence import Evidence
from semlens_audit.measure import Measurements
from semlens_audit.plan import AuditPlan
from semlens_audit.presence import Presence
from semlens_audit.records import ClassLayer, Measurement
from semlens_audit.release_records import InfluenceRecord
from semlens_audit.units import count_units

__all__ = ["GROUPS", "VERSION", "Influences", "definitions", "influence_values", "influences", "unit_groups"]

VERSION = 1
"""Raised whenever a change here changes a number; what the store keeps under another version is computed anew."""

GROUPS = 512
"""Most groups that units are folded into. A correlation of 0.9 that rests on so many is told to within 0.01."""

_NUDGE = 1e-4
"""How much a unit's weight is raised to see how the estimate follows: small beside 1, large beside rounding."""


class Influences(BaseModel):
    """Influences on all quantities of an audit, as the store keeps them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int
    records: tuple[InfluenceRecord, ...]
    sample_groups: str


def influences(
    plan: AuditPlan, data: DataSet, evidence: Evidence, measured: Measurements, quantities: Sequence[Quantity]
) -> Influences:
    """Empirical influence of the independent units of the data on each quantity that was measured.

    The value of unit u says how far the estimate would move if u were left out, with the sign turned: the jackknife's
    ``theta - theta_(u)``, up to terms of order 1 / U^2, in the infinitesimal form of Jaeckel (Bell Laboratories memorandum
    MM 72-1215-11, 1972; Efron and Tibshirani 1993, chapter 21). The sum of squares is the sampling variance. Sums of products
    with the influences that the same units have on another model's value give the covariance of both, which is what pairing is.

    - *Reliance, unexplained relevance, clarity*: means over a class's samples of what each sample's shares of relevance give,
      the meaning of components being held. What resampled reference samples and random crops add to the interval goes into
      `InfluenceRecord.residual`: two models have other components, other reference samples, and nothing to pair there.
    - *Behavioural effect*: derivative of the least-squares estimate by the weight of a unit, with the corrections for leverage
      and for degrees of freedom that its interval has (`semlens_audit.behaviour.effects`).
    - *Subgroup gap, difference in presence*: differences of two means of zeros and ones.
    - *Pair effect*: mean over pairs; its groups are of pairs, not of samples.

    Of a quantity whose size counts, the influences are those on the signed value. Quantities that were not measured have none.

    Parameters
    ----------
    plan
        The audit.
    data
        Its test data; the same samples as in `evidence`.
    measured
        What was measured on `evidence`.
    quantities
        What the checks ask for.
    """
    digests = [sample.sha256 for sample in data.samples]
    groups, identity = unit_groups(evidence.units, digests)
    found: list[InfluenceRecord] = []
    samples = _Samples(plan, evidence, measured)
    # one class and layer after the other, whose shares are then read once
    for quantity in sorted(quantities, key=lambda one: (one.class_name, one.layer or "")):
        measurement = measured.quantities.get(quantity.key)
        if measurement is None or measurement.value is None:
            continue
        if quantity.kind == "pair_effect":
            by_unit, places = _pairs(plan, data, evidence, quantity)
            residual = 0.0
        else:
            by_unit = samples.of(quantity)
            places = groups
            residual = _residual(measurement, by_unit) if quantity.kind not in LINES else 0.0
        found.append(_record(quantity.key, by_unit, places, residual))
    return Influences(version=VERSION, records=tuple(found), sample_groups=identity)


def unit_groups(units: np.ndarray, digests: Sequence[str]) -> tuple[np.ndarray, str]:
    """Group of each independent unit, whatever order or number the samples have.

    Up to `GROUPS` units are each a group of their own, in the order of their content; more are spread over `GROUPS` by a digest
    of their content.

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
    if len(keys) <= GROUPS:
        for place, unit in enumerate(sorted(keys, key=lambda one: (keys[one], one))):
            groups[unit] = place
    else:
        for unit, key in keys.items():
            groups[unit] = int(key[:12], 16) % GROUPS
    table = sorted([sha256, int(groups[unit])] for unit, held in members.items() for sha256 in held)
    return groups, digest({"version": VERSION, "groups": GROUPS, "table": table})


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


def influence_values(record: InfluenceRecord) -> np.ndarray:
    """(G,) float64 influences that a record holds.

    Raises
    ------
    ValueError
        If the text is no base64 of as many finite numbers as the record has groups.
    """
    raw = base64.b64decode(record.values.encode("ascii"), validate=True)
    if len(raw) != 4 * record.groups:
        raise ValueError(f"{len(raw)} bytes of influences on {record.quantity}, {4 * record.groups} needed")
    values = np.frombuffer(raw, dtype="<f4").astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"influences on {record.quantity} that are not finite")
    return values


def _record(key: str, by_unit: np.ndarray, groups: np.ndarray, residual: float) -> InfluenceRecord:
    """Fold units into groups, so that squares still add up to the sampling variance."""
    held = groups >= 0
    folded = np.bincount(groups[held], weights=by_unit[held], minlength=int(groups.max(initial=0)) + 1)
    squares, kept = float((by_unit[held] ** 2).sum()), float((folded**2).sum())
    if kept > 0.0:
        folded *= np.sqrt(squares / kept)
    text = base64.b64encode(folded.astype("<f4").tobytes()).decode("ascii")
    return InfluenceRecord(quantity=key, groups=len(folded), values=text, residual=residual)


def _residual(measurement: Measurement, by_unit: np.ndarray) -> float:
    """Standard error that the interval has beyond what the choice of samples explains.

    The wider side of the interval counts: an end that is cut at the least or largest possible value says nothing of the spread.
    """
    interval, value = measurement.interval, measurement.value
    if interval is None or value is None:
        return 0.0
    reach = max(value - interval.low, interval.high - value) / NormalDist().inv_cdf((1.0 + interval.level) / 2.0)
    return float(np.sqrt(max(reach**2 - float((by_unit**2).sum()), 0.0)))


def _summed(values: np.ndarray, units: np.ndarray, count: int) -> np.ndarray:
    """(count,) influence of each unit on the mean of `values`, whose sum of squares is the unbiased variance of that mean."""
    n, independent = len(values), count_units(units)
    sums = np.bincount(units, weights=(values - values.mean()) / n, minlength=count)
    return sums * np.sqrt(independent / max(independent - 1, 1))


@dataclass
class _Samples:
    """Influences of test samples, by unit; what several quantities share is computed once."""

    plan: AuditPlan
    evidence: Evidence
    measured: Measurements

    def __post_init__(self) -> None:
        self._count = int(self.evidence.units.max(initial=-1)) + 1
        self._presences: tuple[list[Presence], dict[int, Presence]] | None = None
        self._shares: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        self._effects: dict[tuple[str, bool, tuple[int, ...]], list[np.ndarray | None]] = {}

    def of(self, quantity: Quantity) -> np.ndarray:
        """(U,) influence of each unit on a quantity that was measured."""
        if quantity.kind == "behavioural_effect":
            return self._effect(quantity)
        if quantity.kind in ("subgroup_gap", "concept_presence"):
            return self._difference(quantity)
        return self._relevance(quantity)

    def _relevance(self, quantity: Quantity) -> np.ndarray:
        place = next(
            one for one in self.measured.class_layers if (one.class_name, one.layer) == (quantity.class_name, quantity.layer)
        )
        shares, units = self._carried(place)
        names = [concept.id for concept in self.plan.spec.concepts]
        meaning = np.zeros((shares.shape[1], len(names)))
        clarity = np.full(shares.shape[1], np.nan)
        for component in place.components:
            meaning[component.component] = [component.meaning.get(name, 0.0) for name in names]
            if component.clarity is not None and not component.dead:
                clarity[component.component] = component.clarity
        if quantity.kind == "clarity":
            known = ~np.isnan(clarity)
            total = float(shares[:, known].sum(axis=1).mean())
            mean = float((shares[:, known] @ clarity[known]).mean()) / total
            return _summed(shares[:, known] @ (clarity[known] - mean) / total, units, self._count)
        if quantity.kind == "unexplained_relevance":
            return _summed(-(shares @ meaning.sum(axis=1)), units, self._count)
        chosen = [names.index(name) for name in quantity.concepts]
        return _summed(shares @ meaning[:, chosen].sum(axis=1), units, self._count)

    def _carried(self, place: ClassLayer) -> tuple[np.ndarray, np.ndarray]:
        """Shares (n, K) of the samples of a class that relevance reaches in a layer, and their units (n,)."""
        key = (place.class_name, place.layer)
        if key not in self._shares:
            position = self.evidence.class_names.index(place.class_name)
            source = next(layer for layer in self.evidence.layers if layer.layer == place.layer)
            rows = np.flatnonzero(self.evidence.labels == self.evidence.audited[position])
            shares = scores.relevance_shares(source.relevance[rows, position])
            carried = shares.sum(axis=1) > 0
            self._shares = {key: (shares[carried], self.evidence.units[rows[carried]])}
        return self._shares[key]

    def _where(self) -> tuple[list[Presence], dict[int, Presence]]:
        if self._presences is None:
            self._presences = concept_presences(self.plan, self.evidence)
        return self._presences

    def _difference(self, quantity: Quantity) -> np.ndarray:
        """Influence on a difference between two shares of samples."""
        seen, told = self._where()
        index = [concept.id for concept in self.plan.spec.concepts].index(quantity.concepts[0])
        presence = told.get(index, seen[index])
        own = self.evidence.labels == self.evidence.audited[self.evidence.class_names.index(quantity.class_name)]
        present = presence.present & presence.known
        if quantity.kind == "subgroup_gap":
            hit = (
                self.evidence.logits.argmax(axis=1)
                == self.evidence.audited[self.evidence.class_names.index(quantity.class_name)]
            )
            first, second = own & present, own & presence.known & ~present
        else:
            hit = present
            first, second = own & presence.known, ~own & presence.known
        units = self.evidence.units
        return _summed(hit[first].astype(np.float64), units[first], self._count) - _summed(
            hit[second].astype(np.float64), units[second], self._count
        )

    def _effect(self, quantity: Quantity) -> np.ndarray:
        """Influence on the effect that a check is held against, regressed as `semlens_audit.effect_measure` does."""
        seen, told = self._where()
        concepts = self.plan.spec.concepts
        index = [concept.id for concept in concepts].index(quantity.concepts[0])
        by_attributes = index in told
        presences = [told.get(row, seen[row]) for row in range(len(concepts))] if by_attributes else seen
        telling = [row for row, concept in enumerate(concepts) if concept.role_for(quantity.class_name) != "neutral"]
        rows = telling if index in telling else [*telling, index]
        key = (quantity.class_name, by_attributes, tuple(rows))
        if key not in self._effects:
            self._effects[key] = self._regressed(quantity.class_name, [presences[row] for row in rows])
        found = self._effects[key][rows.index(index)]
        if found is None:
            raise ValueError(f"{quantity.key} was measured, but its regression has no estimate")
        return found

    def _regressed(self, class_name: str, presences: list[Presence]) -> list[np.ndarray | None]:
        """(U,) influence of each unit on every effect of one regression; None for what has no estimate."""
        settings, units = self.plan.audit.measurement, self.evidence.units
        usable = np.ones(len(units), dtype=bool)
        for presence in presences:
            if count_units(units[presence.known]) >= settings.minimum_samples:
                usable &= presence.known
        counted = np.unique(units[usable])
        results = behaviour.effects(
            behaviour.class_margin(self.evidence.logits, self.evidence.audited[self.evidence.class_names.index(class_name)]),
            self.evidence.labels,
            presences,
            bootstrap=len(counted),
            minimum_cell=settings.minimum_counterexamples,
            minimum_samples=settings.minimum_samples,
            rng=_Nudges(),
            units=units,
            confidence=settings.confidence,
        )
        out: list[np.ndarray | None] = []
        for result in results:
            if result.value is None:
                out.append(None)
                continue
            by_unit = np.zeros(self._count)
            by_unit[counted] = (result.draws - result.value) / _NUDGE
            out.append(by_unit)
        return out


class _Nudges(np.random.Generator):
    """Weights that are 1 but for one unit each, one unit after the other, where a bootstrap would draw them at random.

    What `semlens_audit.behaviour.effects` makes of them is its estimate's derivative by each unit's weight.
    """

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))
        self._next = 0

    def standard_exponential(self, size: Any = None, *_: Any, **__: Any) -> Any:
        """(draws, units) weights; `size` is that pair."""
        draws, count = size
        weights = np.ones((draws, count))
        weights[np.arange(draws), self._next + np.arange(draws)] += _NUDGE
        self._next += draws
        return weights


def _pairs(plan: AuditPlan, data: DataSet, evidence: Evidence, quantity: Quantity) -> tuple[np.ndarray, np.ndarray]:
    """Influence of each independent unit of pairs on a pair effect, and the units' groups."""
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
    groups, _ = unit_groups(place, contents)
    return _summed(means, np.arange(len(means)), len(means)), groups
