"""The measurements under other settings than the declared ones: what a report on sensitivity is decided from.

Each scenario changes one setting and keeps everything else, the random numbers included, so that what differs is due to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from semlens_audit import checks
from semlens_audit.checks import Quantity
from semlens_audit.effect_measure import effect_quantities, measure_effects
from semlens_audit.errors import AuditError
from semlens_audit.evidence import ConceptProbes, Evidence, LayerEvidence
from semlens_audit.flow import Flows
from semlens_audit.headroom import FirstReferences, fewer, slots
from semlens_audit.measure import Measurements, measure_layers
from semlens_audit.plan import AuditPlan
from semlens_audit.recognition import probe_aurocs, unrecognised
from semlens_audit.records import Measurement

__all__ = ["Knob", "Scenario", "at_layer", "measure_scenarios", "planned"]

Knob = Literal["reference samples", "prompt templates", "examples", "layer", "significance", "criteria"]

_SIXTH = 1 / 6
"""Relative change of the least significant z: 2.5 and 3.5 for 3."""


class Scenario(BaseModel):
    """What was measured under one other setting.

    Parameters
    ----------
    knob, setting
        The setting, and its other value in words.
    layer
        The layer that takes the place of the audit's own; none where the layers stay.
    quantities
        Quantity's key -> measurement, for those that the setting can change; all others are as declared.
    unrecognised
        Concepts that the foundation model does not recognise under the setting, with the reason; none: as declared.
    not_tried
        Why nothing was measured, as a clause.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    knob: Knob
    setting: str
    layer: str | None = None
    quantities: dict[str, Measurement] = Field(default_factory=dict)
    unrecognised: dict[str, str] | None = None
    not_tried: str | None = None


@dataclass(frozen=True)
class _Variant:
    """A scenario before it is measured: the plan and the evidence that its setting makes."""

    knob: Knob
    setting: str
    plan: AuditPlan
    evidence: Evidence
    layer: str | None = None
    probes: bool = False
    """Whether the definitions of the concepts change, so that presence and recognition are measured anew."""
    crops: bool = False
    """Whether other reference crops are looked at; what rests on nothing else is as declared where they are not."""


def at_layer(plan: AuditPlan, layer: str) -> AuditPlan:
    """The plan with every check that looks into the model asked of `layer` instead of the audit's own layers."""
    asked = tuple(check.model_copy(update={"layers": (layer,)}) if check.layers else check for check in plan.spec.checks)
    audit = plan.audit.model_copy(update={"layers": (layer,)})
    return plan.model_copy(update={"spec": plan.spec.model_copy(update={"checks": asked}), "audit": audit})


def planned(plan: AuditPlan, evidence: Evidence) -> int:
    """Number of scenarios that `measure_scenarios` gives."""
    return sum(1 for _ in _variants(plan, evidence))


def measure_scenarios(
    plan: AuditPlan,
    evidence: Evidence,
    quantities: Sequence[Quantity],
    measured: Measurements,
    *,
    flows: Flows | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Scenario, ...]:
    """Measure what the plan's checks ask for under every other setting that is tried.

    Parameters
    ----------
    evidence
        With `Evidence.headroom`, or else no larger number of reference samples can be tried.
    quantities
        What the checks ask for, see `semlens_audit.checks.quantities`.
    measured
        What was measured under the declared settings.
    flows
        Where the evidence's relevance flows, as far as it is known already; no setting that is tried changes it.
    progress
        Called with the number of finished scenarios.

    Returns
    -------
    tuple of Scenario
        In the order of `Knob`; those that cannot be tried say why. Criteria are no scenario: they need no measurement.
    """
    step, flows = progress or (lambda _: None), flows or Flows(plan, evidence)
    made: list[Scenario] = []
    for variant in _variants(plan, evidence):
        made.append(variant if isinstance(variant, Scenario) else _measure(variant, quantities, measured, flows))
        step(1)
    return tuple(made)


def _measure(variant: _Variant, quantities: Sequence[Quantity], measured: Measurements, flows: Flows) -> Scenario:
    plan, evidence = variant.plan, variant.evidence
    found: dict[str, Measurement] = {}
    missed: dict[str, str] | None = None
    try:
        if variant.probes:
            effects, presence = measure_effects(plan, evidence)
            missed = _unrecognised(plan, evidence, measured, presence)
            found |= effect_quantities(quantities, effects, missed)
        asked = checks.quantities(plan) if variant.layer else quantities
        if not variant.crops:
            asked = [quantity for quantity in asked if quantity.kind not in checks.CROPS]
        known = measured.unrecognised if missed is None else missed
        found |= measure_layers(plan, evidence, asked, known, flows=flows)[2]
    except AuditError as error:
        said = error.problems[0].message.rstrip(".")
        return Scenario(knob=variant.knob, setting=variant.setting, layer=variant.layer, not_tried=said)
    return Scenario(knob=variant.knob, setting=variant.setting, layer=variant.layer, quantities=found, unrecognised=missed)


def _unrecognised(plan: AuditPlan, evidence: Evidence, measured: Measurements, presence: dict[str, float]) -> dict[str, str]:
    """As `semlens_audit.recognition.unrecognised`; where fewer examples leave nothing to judge by, the declared ones count."""
    held_out = probe_aurocs(evidence.probes, np.concatenate([layer.null_embeddings for layer in evidence.layers]))
    return unrecognised(plan, measured.probe_auroc | held_out, presence)


def _variants(plan: AuditPlan, evidence: Evidence) -> Iterator[_Variant | Scenario]:
    yield from _reference_samples(plan, evidence)
    yield _templates(plan, evidence)
    yield from _examples(plan, evidence)
    if not evidence.other_layers:
        yield Scenario(knob="layer", setting="another layer", not_tried="the audit names no other layer to compare with")
    for layer in evidence.other_layers:
        yield _Variant(
            "layer",
            f"layer {layer.layer} instead of {', '.join(plan.audit.layers)}",
            at_layer(plan, layer.layer),
            replace(evidence, layers=(layer,)),
            layer=layer.layer,
            crops=True,
        )
    declared = plan.audit.measurement.significance
    for factor in (1 - _SIXTH, 1 + _SIXTH):
        z = round(declared * factor, 6)
        yield _Variant("significance", f"least z {z:g} instead of {declared:g}", _with(plan, significance=z), evidence)


def _with(plan: AuditPlan, **settings: float) -> AuditPlan:
    measurement = plan.audit.measurement.model_copy(update=settings)
    return plan.model_copy(update={"audit": plan.audit.model_copy(update={"measurement": measurement})})


def _reference_samples(plan: AuditPlan, evidence: Evidence) -> Iterator[_Variant | Scenario]:
    """Two thirds and four thirds of the declared number."""
    declared = plan.audit.measurement.reference_samples

    def variant(sources: Sequence[LayerEvidence], m: int) -> _Variant:
        layers = tuple(FirstReferences(source, m) for source in sources)
        return _Variant(
            "reference samples", words.format(m=m), _with(plan, reference_samples=m), replace(evidence, layers=layers), crops=True
        )

    words, less, more = (
        f"{{m}} reference samples instead of {declared}",
        fewer(plan.audit.measurement),
        slots(plan.audit.measurement),
    )
    if less == declared:
        reason = f"{declared} are the fewest that can be measured with"
        yield Scenario(knob="reference samples", setting="fewer reference samples", not_tried=reason)
    else:
        yield variant(evidence.layers, less)
    if any((source.reference_ids[:, declared:] >= 0).any() for source in evidence.headroom):
        yield variant(evidence.headroom, more)
    else:
        reason = f"no component has more than {declared} reference samples in the index"
        yield Scenario(knob="reference samples", setting=words.format(m=more), not_tried=reason)


def _templates(plan: AuditPlan, evidence: Evidence) -> _Variant | Scenario:
    texts = any(len(probes.text) for probes in evidence.other_probes.values())
    if not texts:
        described = any(concept.descriptions for concept in plan.spec.concepts)
        reason = "no concept is defined by a description"
        if described and not evidence.foundation.get("text", True):
            reason = "the foundation model embeds no text"
        elif described:
            reason = "the declared prompt templates hold all those that could be tried"
        return Scenario(knob="prompt templates", setting="other prompt templates", not_tried=reason)
    count = len(evidence.other_prompts)
    other = replace(evidence, probes=evidence.other_probes, empty_prompts=evidence.other_prompts)
    return _Variant("prompt templates", f"{count} other prompt templates", plan, other, probes=True)


def _examples(plan: AuditPlan, evidence: Evidence) -> Iterator[_Variant | Scenario]:
    """Each half of the example images, for all concepts that have two or more."""
    if not any(len(probes.examples) >= 2 for probes in evidence.probes.values()):
        reason = "no concept is defined by two or more example images"
        yield Scenario(knob="examples", setting="half of the example images", not_tried=reason)
        return
    for start, words in enumerate(("first, third, fifth …", "second, fourth, sixth …")):
        halves = {
            name: ConceptProbes(own.text, own.examples[start::2] if len(own.examples) >= 2 else own.examples)
            for name, own in evidence.probes.items()
        }
        setting = f"half of each concept's example images ({words})"
        yield _Variant("examples", setting, plan, replace(evidence, probes=halves), probes=True)
