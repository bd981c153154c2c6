"""What the test data themselves show: where a concept occurs, how the model fares with it, and what pairs of images say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from semlens_audit import behaviour, proportions
from semlens_audit.checks import Quantity
from semlens_audit.effect_measure import concept_presences
from semlens_audit.evidence import Evidence
from semlens_audit.plan import AuditPlan
from semlens_audit.presence import Presence
from semlens_audit.records import DataPicture, DataPresence, Interval, Measurement, PairEffectRecord, Proportion, SubgroupRecord
from semlens_audit.statistics import nested_levels
from semlens_audit.wording import count, format_estimate

__all__ = ["DataMeasured", "measure_data"]

_ENTANGLED = 0.5
"""A difference in presence whose interval lies wholly above this ties a concept to a class: fewer than a quarter of either
group break the tie where both are equally frequent in the data."""
_RESOLUTION = 20_000
"""Closed forms reach any level; this is as fine as 20,000 bootstrap draws would be."""
_PER_GROUP = 6
_PICTURES = 96
_SOURCES = {
    "attributes": "Which images hold it is told by the data's own attributes.",
    "foundation model": "Which images hold it is what the foundation model sees.",
}


@dataclass(frozen=True)
class DataMeasured:
    """What `measure_data` found.

    Parameters
    ----------
    values
        Key of a quantity -> measurement, for every quantity of the kinds that look at data or pairs.
    remarks
        Key of a quantity -> the counts that its measurement rests on, in one sentence.
    presence
        One entry per concept, those most strongly tied to an audited class first.
    pairs
        One entry per audited class and concept that pairs show.
    """

    values: dict[str, Measurement]
    remarks: dict[str, str]
    presence: tuple[DataPresence, ...]
    pairs: tuple[PairEffectRecord, ...]


def measure_data(
    plan: AuditPlan, evidence: Evidence, quantities: Sequence[Quantity], unrecognised: Mapping[str, str]
) -> DataMeasured:
    """Presence of concepts by class, recall with and without them, and change of the margin over counterfactual pairs.

    A concept is present where its attribute column says so, else where the foundation model sees it on the whole image. All
    concepts that must not be used for an audited class are looked at, and those that a check names.

    *Difference in presence* of a class: share of its samples that hold the concept minus the same share over all other samples.
    *Subgroup gap* of a class: its recall (share of its samples for which the model's largest output is the class) among samples
    that hold the concept minus its recall among those that do not. Both with Newcombe's hybrid score interval, see
    `semlens_audit.proportions.difference`. *Pair effect* of a class: mean over pairs of the class margin on the image with the
    concept minus the margin on the image without, with Student's t interval. Samples of one unit and pairs that share an image
    count as one. Criteria are held against the size of each, see `semlens_audit.checks.Quantity.transform`.

    Not measured, with the reason: fewer samples of the class or of all others than `minimum_samples` (presence), fewer samples of
    the class with or without the concept than `minimum_counterexamples` (gap), fewer pairs than `minimum_samples`, and presence
    that only a foundation model tells which does not recognise the concept.

    Parameters
    ----------
    quantities
        What is asked; other kinds are passed over.
    unrecognised
        Concept -> why the foundation model is held not to recognise it.
    """
    seen, told = concept_presences(plan, evidence)
    asked = {
        name for quantity in quantities if quantity.kind in ("subgroup_gap", "concept_presence") for name in quantity.concepts
    }
    records: list[DataPresence] = []
    scores: dict[str, tuple[Presence, np.ndarray]] = {}
    for index, concept in enumerate(plan.spec.concepts):
        if concept.id in asked or any(concept.role_for(name) == "spurious" for name in evidence.class_names):
            presence = told.get(index, seen[index])
            scores[concept.id] = presence, seen[index].score
            missed = unrecognised.get(concept.id) if presence.source != "attributes" else None
            records.append(_presence(plan, evidence, concept.id, presence, missed))
    records.sort(key=_tie, reverse=True)
    pairs = _pair_effects(plan, evidence)
    values: dict[str, Measurement] = {}
    remarks: dict[str, str] = {}
    for quantity in quantities:
        if quantity.kind in ("subgroup_gap", "concept_presence"):
            record = next(record for record in records if record.concept == quantity.concepts[0])
            part = next(part for part in record.subgroups if part.class_name == quantity.class_name)
            chosen = part.gap if quantity.kind == "subgroup_gap" else part.difference
            values[quantity.key] = quantity.transform(chosen)
            if chosen.value is not None:
                remarks[quantity.key] = _remark(quantity, record, part)
        elif quantity.kind == "pair_effect":
            values[quantity.key], remark = _pair_value(evidence, quantity, pairs)
            if remark:
                remarks[quantity.key] = remark
    return DataMeasured(
        values,
        remarks,
        _pictured(evidence, [_without_nested(record) for record in records], scores),
        tuple(record.model_copy(update={"effect": _plain(record.effect)}) for record in pairs),
    )


def _interval(level: float, ends: Callable[[float], tuple[float, float]], method: str) -> Interval:
    """Interval at the nominal level, and those at the levels that p-values follow from."""
    low, high = ends(level)
    nested = tuple((at, *ends(at)) for at in nested_levels(level, _RESOLUTION))
    return Interval(low=low, high=high, level=level, method=method, nested=nested)


def _plain(measurement: Measurement) -> Measurement:
    """The same without the intervals at other levels, which only checks need."""
    if measurement.interval is None:
        return measurement
    return measurement.model_copy(update={"interval": measurement.interval.model_copy(update={"nested": ()})})


def _without_nested(record: DataPresence) -> DataPresence:
    parts = [
        part.model_copy(update={"difference": _plain(part.difference), "gap": _plain(part.gap)}) for part in record.subgroups
    ]
    return record.model_copy(update={"subgroups": tuple(parts)})


def _proportion(plan: AuditPlan, hit: np.ndarray, group: np.ndarray, units: np.ndarray) -> Proportion:
    """Share of the samples of `group` that `hit` marks, both (N,) bool."""
    n, hits = int(group.sum()), int((hit & group).sum())
    if not n:
        return Proportion(hits=0, n=0)
    level = plan.audit.measurement.confidence
    low, high = proportions.wilson(hits / n, proportions.effective_size(units[group]), level)
    return Proportion(hits=hits, n=n, interval=Interval(low=low, high=high, level=level, method="Wilson score interval"))


def _difference(
    plan: AuditPlan,
    quantity: str,
    hit: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray],
    units: np.ndarray,
    reason: str | None,
) -> Measurement:
    """Share of `hit` in the first group minus that in the second."""
    first, second = groups
    n, m = int(first.sum()), int(second.sum())
    if reason is not None:
        return Measurement(quantity=quantity, unit="difference", n=n + m, not_measured=reason)
    level = plan.audit.measurement.confidence
    one, other = float(hit[first].mean()), float(hit[second].mean())
    sizes = proportions.effective_size(units[first]), proportions.effective_size(units[second])
    spread = _interval(
        level,
        lambda at: proportions.difference(one, sizes[0], other, sizes[1], at),
        "Newcombe hybrid score interval of a difference of two shares",
    )
    return Measurement(quantity=quantity, unit="difference", value=one - other, interval=spread, n=n + m)


def _presence(plan: AuditPlan, evidence: Evidence, concept: str, presence: Presence, missed: str | None) -> DataPresence:
    units, settings = evidence.units, plan.audit.measurement
    known, present = presence.known, presence.present & presence.known
    predicted = evidence.predicted
    label = plan.spec.concept(concept).label
    if missed is None and not presence.told:
        missed = f"the foundation model's scores do not tell which samples hold {label}"
    subgroups = []
    for name, index in zip(evidence.class_names, evidence.audited, strict=True):
        own, taken = evidence.labels == index, predicted == index
        inside, outside = own & known, ~own & known
        few = [
            f"{_few(units, group, words)}, {settings.minimum_samples} needed"
            for group, words in ((inside, f"of class {name}"), (outside, "of other classes"))
            if _distinct(units, group) < settings.minimum_samples
        ]
        sparse = [
            f"{_few(units, group, f'of class {name} {word} {label}')}, {settings.minimum_counterexamples} needed"
            for group, word in ((inside & present, "with"), (inside & ~present, "without"))
            if _distinct(units, group) < settings.minimum_counterexamples
        ]
        difference = _difference(
            plan, "difference in presence", present, (inside, outside), units, missed or (few[0] if few else None)
        )
        gap = _difference(
            plan,
            "subgroup gap",
            taken,
            (inside & present, inside & ~present),
            units,
            missed or (sparse[0] if sparse else None),
        )
        subgroups.append(
            SubgroupRecord(
                class_name=name,
                inside=_proportion(plan, present, inside, units),
                outside=_proportion(plan, present, outside, units),
                difference=difference,
                recall_with=_proportion(plan, taken, inside & present, units),
                recall_without=_proportion(plan, taken, inside & ~present, units),
                gap=gap,
                false_with=_proportion(plan, taken, outside & present, units),
                false_without=_proportion(plan, taken, outside & ~present, units),
            )
        )
    return DataPresence(
        concept=concept,
        source="attributes" if presence.source == "attributes" else "foundation model",
        unknown=int((~known).sum()),
        not_measured=missed,
        entangled=tuple(part.class_name for part in subgroups if _entangled(part.difference)),
        by_class={
            label: _proportion(plan, present, known & (evidence.labels == index), units)
            for index, label in enumerate(evidence.classes)
            if (evidence.labels == index).any()
        },
        subgroups=tuple(subgroups),
    )


def _distinct(units: np.ndarray, group: np.ndarray) -> int:
    return len(np.unique(units[group]))


def _few(units: np.ndarray, group: np.ndarray, words: str) -> str:
    """``12 samples of class melanoma``; of samples that repeat each other, how many units they make."""
    samples, distinct = int(group.sum()), _distinct(units, group)
    text = f"{samples} {'sample' if samples == 1 else 'samples'} {words}"
    return text if samples == distinct else f"{text} in {distinct} independent units"


def _entangled(difference: Measurement) -> bool:
    interval = difference.interval
    return interval is not None and (interval.low > _ENTANGLED or interval.high < -_ENTANGLED)


def _tie(record: DataPresence) -> float:
    """Size of the largest difference in presence; -1 where none was measured."""
    return max((abs(part.difference.value) for part in record.subgroups if part.difference.value is not None), default=-1.0)


def _shown(part: Proportion) -> str:
    if part.interval is None:
        return "none"
    return format_estimate("share", part.hits / part.n, part.interval)


def _remark(quantity: Quantity, record: DataPresence, part: SubgroupRecord) -> str:
    """The counts behind a difference, in one sentence."""
    source = _SOURCES[record.source]
    if quantity.kind == "subgroup_gap":
        return (
            f"Recognised as {part.class_name}: {_shown(part.recall_with)} of {count(part.recall_with.n, 'image')} with it,"
            f" {_shown(part.recall_without)} of {count(part.recall_without.n, 'image')} without it. {source}"
        )
    return (
        f"It is in {_shown(part.inside)} of {count(part.inside.n, 'image')} of {part.class_name} and in"
        f" {_shown(part.outside)} of {count(part.outside.n, 'other image')}. {source}"
    )


def _pair_effects(plan: AuditPlan, evidence: Evidence) -> tuple[PairEffectRecord, ...]:
    pairs, settings = evidence.pairs, plan.audit.measurement
    if pairs is None:
        return ()
    names = np.array(pairs.concepts)
    out = []
    for concept in [concept.id for concept in plan.spec.concepts if concept.id in pairs.concepts]:
        rows = np.flatnonzero(names == concept)
        without, present = pairs.without[rows], pairs.present[rows]
        units, place = np.unique(pairs.units[rows], return_inverse=True)
        n = len(units)
        for name, index in zip(evidence.class_names, evidence.audited, strict=True):
            change = behaviour.class_margin(present, index) - behaviour.class_margin(without, index)
            change = np.bincount(place.reshape(-1), weights=change) / np.bincount(place.reshape(-1))
            before, after = without.argmax(axis=1) == index, present.argmax(axis=1) == index
            if n < settings.minimum_samples:
                words = (
                    f"{len(rows)} counterfactual {'pair' if len(rows) == 1 else 'pairs'} of {plan.spec.concept(concept).label}"
                )
                apart = "" if n == len(rows) else f" in {n} independent units"
                reason = f"{words}{apart}, {settings.minimum_samples} needed"
                effect = Measurement(quantity="pair effect", unit="logits", n=n, not_measured=reason)
            else:
                spread = _interval(
                    settings.confidence, partial(proportions.mean, change), "Student's t interval over counterfactual pairs"
                )
                effect = Measurement(quantity="pair effect", unit="logits", value=float(change.mean()), interval=spread, n=n)
            out.append(
                PairEffectRecord(
                    class_name=name,
                    concept=concept,
                    effect=effect,
                    towards=int((after & ~before).sum()),
                    away=int((before & ~after).sum()),
                    pairs=len(rows),
                )
            )
    return tuple(out)


def _pair_value(evidence: Evidence, quantity: Quantity, records: Sequence[PairEffectRecord]) -> tuple[Measurement, str | None]:
    """The measurement that a check on pairs asks for, and the counts behind it."""
    concept = quantity.concepts[0]
    found = [record for record in records if record.concept == concept and record.class_name == quantity.class_name]
    if not found:
        reason = "the audit's data has no counterfactual pairs"
        if evidence.pairs is not None:
            reason = "none of the counterfactual pairs is of this concept"
        return quantity.missing(reason, 0), None
    record = found[0]
    if record.effect.value is None:
        return quantity.transform(record.effect), None
    return quantity.transform(record.effect), (
        f"Of {count(record.pairs, 'pair')}, {record.towards:,} change the decision to {record.class_name} and"
        f" {record.away:,} away from it."
    )


def _pictured(
    evidence: Evidence, records: Sequence[DataPresence], scores: Mapping[str, tuple[Presence, np.ndarray]]
) -> tuple[DataPresence, ...]:
    """Choose the images that a report shows of each concept: per audited class and of all others, clearest first.

    Clearest is what the foundation model scores highest. An image that stands for one concept is taken for another only where
    no fresh one is left.
    """
    predicted, left = evidence.predicted, _PICTURES
    used = np.zeros(len(evidence.labels), dtype=bool)
    rest = ~np.isin(evidence.labels, evidence.audited)
    out = []
    for record in records:
        presence, score = scores[record.concept]
        chosen: list[int] = []
        groups: list[str] = []
        if record.not_measured is None:
            members = [evidence.labels == index for index in evidence.audited]
            for name, group in zip((*evidence.class_names, "other classes"), (*members, rest), strict=True):
                held = np.flatnonzero(presence.present & presence.known & group)
                order = np.lexsort((held, -score[held], used[held]))
                fresh = held[order][: min(_PER_GROUP, left - len(chosen))].tolist()
                chosen, groups = chosen + fresh, groups + [name] * len(fresh)
        used[chosen] = True
        left -= len(chosen)
        pictures = tuple(
            DataPicture(
                sample=evidence.paths[sample],
                group=group,
                label=evidence.classes[evidence.labels[sample]],
                predicted=evidence.classes[predicted[sample]],
            )
            for sample, group in zip(chosen, groups, strict=True)
        )
        out.append(record.model_copy(update={"pictures": pictures}))
    return tuple(out)
