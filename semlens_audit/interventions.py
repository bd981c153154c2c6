"""Interventions of an audit: which components to switch off, looked up in the store or run, measured and concluded.

Torch is imported only if the store lacks the model's outputs with these components switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from semlens_audit.checks import Quantity
from semlens_audit.component_sets import Controls, control_sets
from semlens_audit.data import DataSet
from semlens_audit.digest import digest, digest_file
from semlens_audit.draws import generator
from semlens_audit.effect_measure import concept_presences
from semlens_audit.errors import IntegrityError
from semlens_audit.evidence import Evidence
from semlens_audit.execution import Execution
from semlens_audit.index import load_evidence
from semlens_audit.intervention_measure import Drawn, concept_contrast, draw_weights, measure_ablation
from semlens_audit.measure import Measurements
from semlens_audit.places import placed_in_audit
from semlens_audit.plan import AuditPlan
from semlens_audit.presence import Presence
from semlens_audit.progress import Progress
from semlens_audit.records import AblationRecord, ClassLayer, ControlRecord, InterventionRecord
from semlens_audit.sae_header import autoencoder_of
from semlens_audit.store import Store
from semlens_audit.subsample import draw_samples, inclusion
from semlens_audit.virtual_header import virtual_of
from semlens_audit.work import Bench

__all__ = ["ablation_stages", "asked", "intervene"]

_MODULES = (
    "ablation_pass", "assignment", "behaviour", "component_sets", "components", "draws", "effect_measure", "intervention",
    "intervention_measure", "interventions", "layouts", "outputs", "presence", "records", "subsample",
)  # fmt: skip
_OF_PASS = ("ablation_pass", "components", "intervention", "layouts")
_LEAST = 2
"""Times `minimum_counterexamples` that the draw wants of each cell of label and presence: half of them may be missing by chance."""
_LIST = TypeAdapter(tuple[InterventionRecord, ...])


@dataclass(frozen=True)
class _Target:
    """Components to be switched off, and the sets they are compared with."""

    class_name: str
    concept: str
    components: tuple[int, ...]
    share: float
    controls: Controls


def asked(plan: AuditPlan, quantities: Sequence[Quantity]) -> dict[str, tuple[str, ...]]:
    """Class of the spec -> concepts that its checks name, in the order of the spec."""
    named: dict[str, set[str]] = {}
    for quantity in quantities:
        if quantity.kind not in ("subgroup_gap", "concept_presence"):
            named.setdefault(quantity.class_name, set()).update(quantity.concepts)
    order = [concept.id for concept in plan.spec.concepts]
    return {name: tuple(one for one in order if one in concepts) for name, concepts in named.items()}


def intervene(
    plan: AuditPlan,
    data: DataSet,
    store: Store,
    measured: Measurements,
    key: str,
    stages: Mapping[str, str],
    quantities: Sequence[Quantity],
    *,
    allow_code: bool = False,
    progress: Progress,
    execution: Execution | None = None,
) -> tuple[InterventionRecord, ...]:
    """Switch off the components of every concept that the checks name, in every layer; measured, not yet concluded.

    Parameters
    ----------
    measured
        The audit's measurements; its class layers say which components mean what.
    key
        Key of these measurements.
    stages
        Stage -> key of the evidence.
    execution
        Where and with what the model is run.

    Raises
    ------
    AuditError
        Whatever the user can mend: model, data, store; what was finished stays in the store.
    """
    settings, concepts = plan.audit.measurement, asked(plan, quantities)
    if settings.intervention == "none" or not any(concepts.values()):
        return ()
    own = digest(
        {
            "measurement": key,
            "asked": concepts,
            "method": settings.intervention,
            "samples": settings.intervention_samples,
            "controls": settings.control_sets,
            "code": _code(_MODULES),
        }
    )
    payload = store.get_measurement(own)
    if payload is not None:
        return _LIST.validate_json(payload)
    evidence = load_evidence(plan, data, store)
    if evidence is None:
        raise IntegrityError("index-incomplete", "The store lacks evidence that it had before.", "Run the same command again.")
    bench = Bench(plan, data, allow_code=allow_code, execution=execution)
    records = _run(plan, store, bench, evidence, measured, stages, concepts, progress)
    store.put_measurement(own, _LIST.dump_json(records).decode())
    return records


def _code(modules: Sequence[str]) -> dict[str, str]:
    folder = Path(__file__).parent
    return {name: digest_file(folder / f"{name}.py") for name in modules}


def _draw(plan: AuditPlan, evidence: Evidence, presences: Sequence[Presence]) -> tuple[Drawn, np.ndarray]:
    """The samples on which components are switched off, and 1 / probability of each."""
    settings = plan.audit.measurement
    states = [np.where(one.known, one.present.astype(np.int8), np.int8(-1)) for one in presences]
    probability = inclusion(evidence.labels, states, settings.intervention_samples, _LEAST * settings.minimum_counterexamples)
    samples = draw_samples(probability, generator(plan, "intervention samples"))
    chosen = probability[samples]
    weights = draw_weights(chosen, evidence.units[samples], settings.bootstrap, generator(plan, "intervention bootstrap"))
    return Drawn(samples, evidence.labels[samples], weights, tuple(one.rows(samples) for one in presences)), 1.0 / chosen


def _target(plan: AuditPlan, place: ClassLayer, concept: str) -> _Target | str:
    """What to switch off for a concept, or why there is nothing."""
    if not place.components:
        return place.unexplained.not_measured or f"nothing was measured in {place.layer}"
    shares = np.zeros(1 + max(component.component for component in place.components))
    for component in place.components:
        shares[component.component] = component.share
    members = tuple(sorted(component.component for component in place.components if component.assigned == concept))
    if not members:
        return f"no component of {place.layer} is assigned to {plan.spec.concept(concept).label}"
    rng = generator(plan, "control sets", place.class_name, place.layer, concept)
    controls = control_sets(shares, members, plan.audit.measurement.control_sets, rng)
    return _Target(place.class_name, concept, members, float(min(shares[list(members)].sum(), 1.0)), controls)


def ablation_stages(
    plan: AuditPlan,
    stages: Mapping[str, str],
    layer: str,
    drawn: np.ndarray,
    weights: np.ndarray,
    sets: Sequence[Sequence[int]],
) -> list[dict[str, Any]]:
    """Inputs of the stages that switch `sets` of a layer off, one for each method; their digest is the stage's key."""
    chosen = plan.audit.measurement.intervention
    # Outputs do not depend on what is spliced in, and what follows from switching its components off does.
    own = {"latents": stages[f"references:{layer}"]} if autoencoder_of(plan.audit, layer) or virtual_of(plan.audit, layer) else {}
    return [
        {
            "stage": "ablation",
            "outputs": stages["outputs"],
            **own,
            "layer": layer,
            "method": method,
            "samples": [int(sample) for sample in drawn],
            "weights": [float(weight) for weight in weights],
            "sets": [list(one) for one in sets],
            "seed": plan.audit.seed,
            "code": _code(_OF_PASS),
        }
        for method in ("mean", "resampling")
        if chosen in (method, "both")
    ]


def _run(
    plan: AuditPlan,
    store: Store,
    bench: Bench,
    evidence: Evidence,
    measured: Measurements,
    stages: Mapping[str, str],
    concepts: Mapping[str, tuple[str, ...]],
    progress: Progress,
) -> tuple[InterventionRecord, ...]:
    seen, told = concept_presences(plan, evidence)
    presences = [told.get(index, one) for index, one in enumerate(seen)]
    drawn, weights = _draw(plan, evidence, presences)
    targets = {
        (place.class_name, place.layer, name): _target(plan, place, name)
        for place in measured.class_layers
        for name in concepts.get(place.class_name, ())
    }
    layers = list(dict.fromkeys(layer for (_, layer, _), target in targets.items() if isinstance(target, _Target)))
    found: dict[tuple[str, str], tuple[dict[tuple[int, ...], int], np.ndarray]] = {}
    for layer in layers:
        chosen = [target for (_, where, _), target in targets.items() if where == layer and isinstance(target, _Target)]
        sets = list(dict.fromkeys([(), *(one for target in chosen for one in (target.components, *target.controls.sets))]))
        inputs = ablation_stages(plan, stages, layer, drawn.samples, weights, sets)
        if not store.complete([digest(one) for one in inputs]):
            from semlens_audit.ablation_pass import ablation_pass

            with placed_in_audit(plan):
                ablation_pass(bench, store, inputs, weights, progress)
        position = {one: index for index, one in enumerate(sets)}
        for one in inputs:
            rows = store.arrays("SELECT outputs FROM ablation WHERE stage = ? ORDER BY sample", (digest(one),))["outputs"]
            found[layer, one["method"]] = position, rows.reshape(len(drawn.samples), len(sets), -1).transpose(1, 0, 2)
    records = []
    for (class_name, layer, name), target in targets.items():
        records.append(_record(plan, evidence, measured, drawn, (class_name, layer, name), target, found))
    return tuple(records)


def _record(
    plan: AuditPlan,
    evidence: Evidence,
    measured: Measurements,
    drawn: Drawn,
    names: tuple[str, str, str],
    target: _Target | str,
    found: Mapping[tuple[str, str], tuple[dict[tuple[int, ...], int], np.ndarray]],
) -> InterventionRecord:
    """Everything measured of one concept's components, or why nothing was."""
    settings, (class_name, layer, name) = plan.audit.measurement, names
    concept = next(index for index, one in enumerate(plan.spec.concepts) if one.id == name)
    presence = drawn.presences[concept]
    told = presence.source == "attributes"
    record = InterventionRecord(
        class_name=class_name,
        layer=layer,
        concept=name,
        components=(),
        share=0.0,
        samples=len(drawn.samples),
        holding=int((presence.known & presence.present).sum()),
        source="attributes" if told else "foundation model",
    )
    if isinstance(target, str):
        return record.model_copy(update={"sentence": target})
    contrast = concept_contrast(
        drawn, concept, minimum_cell=settings.minimum_counterexamples, minimum_samples=settings.minimum_samples
    )
    if not told and name in measured.unrecognised:
        contrast = type(contrast)(None, contrast.n, measured.unrecognised[name])
    index = evidence.audited[evidence.class_names.index(class_name)]
    ablations: list[AblationRecord] = []
    for (where, method), (position, outputs) in found.items():
        if where == layer:
            chosen = [position[one] for one in ((), target.components, *target.controls.sets)]
            ablations.append(
                measure_ablation(
                    plan, drawn, contrast, concept, outputs[chosen],
                    method=method, index=index, scale=target.controls.scale, names=names,
                )
            )  # fmt: skip
    controls = target.controls
    return record.model_copy(
        update={
            "components": target.components,
            "share": target.share,
            "controls": ControlRecord(
                kind=controls.kind,
                sets=len(controls.sets),
                share=controls.share,
                error=controls.error,
                size=float(np.mean([len(one) for one in controls.sets])) if controls.sets else None,
            ),
            "ablations": tuple(ablations),
        }
    )
