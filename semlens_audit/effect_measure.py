"""Measured behavioural effects: `semlens_audit.behaviour` applied to the evidence of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from semlens_audit import behaviour
from semlens_audit.assignment import build_probes
from semlens_audit.checks import Quantity
from semlens_audit.draws import LOGITS, generator, interval
from semlens_audit.evidence import Evidence
from semlens_audit.outputs import mean_row
from semlens_audit.plan import AuditPlan
from semlens_audit.presence import Presence, presence_from_attribute, presences_from_embeddings
from semlens_audit.records import EffectRecord, Measurement, PresenceRecord
from semlens_audit.statistics import auroc

__all__ = ["concept_presences", "effect_quantities", "measure_effects"]


def concept_presences(plan: AuditPlan, evidence: Evidence) -> tuple[list[Presence], dict[int, Presence]]:
    """Where each concept is present.

    Returns
    -------
    seen
        One entry per concept of the spec: as the foundation model sees it on whole images.
    told
        Position of a concept -> as its attribute column says, where there is one.
    """
    concepts = plan.spec.concepts
    centre = mean_row(evidence.image_embeddings)
    pools = [layer.null_embeddings.astype(np.float64).mean(axis=0) for layer in evidence.layers if len(layer.null_embeddings)]
    # A dead layer has no random crops; where no layer has any, whole images stand for the data.
    probes = build_probes(plan, evidence, np.mean(pools, axis=0) if pools else centre, centre)
    seen = presences_from_embeddings(evidence.image_embeddings, probes)
    told = {
        index: presence_from_attribute(evidence.attributes[concept.attribute or concept.id])
        for index, concept in enumerate(concepts)
        if (concept.attribute or concept.id) in evidence.attributes
    }
    return seen, told


def measure_effects(plan: AuditPlan, evidence: Evidence) -> tuple[list[EffectRecord], dict[str, float]]:
    """Behavioural effect of every concept on every audited class, from each source of presence there is."""
    settings, concepts = plan.audit.measurement, plan.spec.concepts
    seen, told = concept_presences(plan, evidence)
    aurocs: dict[str, float] = {}
    for index, presence in told.items():
        present = presence.present[presence.known]
        area = auroc(seen[index].score[presence.known], present)
        if area is not None and min(present.sum(), (~present).sum()) >= settings.minimum_counterexamples:
            aurocs[concepts[index].id] = area
    records: list[EffectRecord] = []
    for position, name in enumerate(evidence.class_names):
        margin = evidence.margin(position)
        sources = [seen]
        if told:
            sources.insert(0, [told.get(index, seen[index]) for index in range(len(concepts))])
        neutral = np.array([concept.role_for(name) == "neutral" for concept in concepts])
        for number, presences in enumerate(sources):
            results = _effects(plan, evidence, margin, presences, neutral, generator(plan, "effects", name, str(number)))
            for concept, presence, result in zip(concepts, presences, results, strict=True):
                if told and number == 0 and presence.source != "attributes":
                    continue
                records.append(_effect_record(plan, evidence, name, concept.id, presence, result))
    return records, aurocs


def _effects(
    plan: AuditPlan,
    evidence: Evidence,
    margin: np.ndarray,
    presences: Sequence[Presence],
    neutral: np.ndarray,
    rng: np.random.Generator,
) -> list[behaviour.Effect]:
    """Effects of all concepts, those of valid and spurious ones with only each other as covariates.

    A neutral concept, such as the skin or the sky around, is in every picture: how plainly it shows depends on the others, and
    as their covariate it would take a part of their effect.
    """
    settings = plan.audit.measurement

    def regressed(rows: Sequence[int]) -> list[behaviour.Effect]:
        return behaviour.effects(
            margin,
            evidence.labels,
            [presences[row] for row in rows],
            bootstrap=settings.bootstrap,
            minimum_cell=settings.minimum_counterexamples,
            minimum_samples=settings.minimum_samples,
            rng=rng,
            units=evidence.units,
            confidence=settings.confidence,
        )

    telling = np.flatnonzero(~neutral).tolist()
    found = dict(zip(telling, regressed(telling), strict=True)) if telling else {}
    for row in np.flatnonzero(neutral).tolist():
        found[row] = regressed([*telling, row])[-1]
    return [found[row] for row in range(len(presences))]


def _effect_record(
    plan: AuditPlan, evidence: Evidence, name: str, concept: str, presence: Presence, result: behaviour.Effect
) -> EffectRecord:
    if result.value is None:
        effect = Measurement(quantity="behavioural effect", unit="logits", n=result.n, not_measured=result.reason)
    else:
        spread = interval(plan, result.value, result.draws, "test samples", LOGITS, nested=True)
        effect = Measurement(quantity="behavioural effect", unit="logits", value=result.value, interval=spread, n=result.n)
    on, off = presence.present & presence.known, ~presence.present & presence.known
    counts = [
        {label: int((mask & (evidence.labels == index)).sum()) for index, label in enumerate(evidence.classes)}
        for mask in (on, off)
    ]
    record = PresenceRecord(
        source="attributes" if presence.source == "attributes" else "foundation model",
        present=counts[0],
        absent=counts[1],
        separation=presence.separation,
    )
    return EffectRecord(class_name=name, concept=concept, effect=effect, presence=record)


def effect_quantities(
    quantities: Sequence[Quantity], effects: Sequence[EffectRecord], unrecognised: Mapping[str, str]
) -> dict[str, Measurement]:
    """The effects that checks ask for: from attributes where they are known, else as the foundation model sees presence.

    Presence that only a foundation model tells which does not recognise the concept gives no measurement.
    """
    values: dict[str, Measurement] = {}
    for quantity in quantities:
        if quantity.kind != "behavioural_effect":
            continue
        matching = [e for e in effects if e.class_name == quantity.class_name and e.concept == quantity.concepts[0]]
        preferred = sorted(matching, key=lambda e: e.presence.source != "attributes")
        chosen, reason = preferred[0], unrecognised.get(quantity.concepts[0])
        if reason is not None and chosen.presence.source == "foundation model":
            values[quantity.key] = quantity.missing(reason, chosen.effect.n)
        else:
            values[quantity.key] = quantity.transform(chosen.effect)
    return values
