"""From evidence to measurements: assignment of components, reliance of classes, behavioural effects, each with its interval.

Reads NumPy arrays only, so that a verdict is re-decided without the model, the data or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from semlens_audit.assignment import AssignedLayer, assign_layer
from semlens_audit.checks import Quantity
from semlens_audit.data_measure import measure_data
from semlens_audit.digest import digest, digest_array, digest_file
from semlens_audit.draws import COSINE, interval
from semlens_audit.effect_measure import effect_quantities, measure_effects
from semlens_audit.evidence import Evidence
from semlens_audit.flow import Flows
from semlens_audit.interpretability_measure import asked_measures, interpretability_remarks, measures_of_layer
from semlens_audit.plan import AuditPlan
from semlens_audit.recognition import probe_aurocs, unrecognised
from semlens_audit.records import (
    ClassLayer,
    DataPresence,
    EffectRecord,
    LayerRecord,
    Measurement,
    PairEffectRecord,
    ReferenceRecord,
)
from semlens_audit.reliance import measure_class

__all__ = ["MODULES", "INTERVENTION_SETTINGS", "VERSION", "Measurements", "measure", "measure_layers", "measurement_key"]

VERSION = 10
"""Raised whenever a change here changes a number; part of every cache key."""

MODULES = (
    "assignment", "behaviour", "calibration", "checks", "contrast",
    "data_gallery", "data_measure", "draws", "effect_measure", "evidence", "flow",
    "gallery", "headroom", "interpretability", "interpretability_measure", "meanings", "measure", "neighbours", "outputs",
    "polysemanticity", "presence", "proportions", "reading", "recognition", "records", "reliance", "resampling", "scenarios", "scores",
    "statistics", "units", "vectors",
)  # fmt: skip
"""What a cached value is made by and read with; their source is part of every cache key."""
INTERVENTION_SETTINGS = ("intervention", "intervention_samples", "control_sets", "smallest_effect")
"""Settings that no measured value depends on; interventions have a key of their own."""


class Measurements(BaseModel):
    """All measured values of one audit; what the store caches under `measurement_key`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layers: tuple[LayerRecord, ...]
    class_layers: tuple[ClassLayer, ...]
    effects: tuple[EffectRecord, ...]
    presence_in_data: tuple[DataPresence, ...] = ()
    pair_effects: tuple[PairEffectRecord, ...] = ()
    quantities: dict[str, Measurement]
    remarks: dict[str, str] = Field(default_factory=dict)
    """Key of a quantity -> sentence on what its measurement rests on."""
    presence_auroc: dict[str, float] = Field(default_factory=dict)
    probe_auroc: dict[str, float] = Field(default_factory=dict)
    unrecognised: dict[str, str] = Field(default_factory=dict)
    """concept -> why the foundation model is held not to recognise it."""
    accuracy: float | None
    per_class: dict[str, int]


def measurement_key(
    plan: AuditPlan,
    stages: dict[str, str],
    quantities: Sequence[Quantity],
    attributes: Mapping[str, np.ndarray] | None = None,
    groups: np.ndarray | None = None,
    pairs: str | None = None,
) -> str:
    """Digest of everything that `measure` depends on: evidence, definitions, settings, code; not criteria, rationales or titles.

    Parameters
    ----------
    stages
        Stage -> key of the evidence.
    quantities
        What is to be measured.
    attributes
        Attribute columns of the data, which no stage depends on.
    groups
        Independent units of the samples, which no stage depends on either.
    pairs
        Digest of the counterfactual pairs; their stage depends on the images only.
    """
    folder = Path(__file__).parent
    concepts = [
        (
            concept.id,
            concept.label,
            concept.role,
            concept.roles,
            concept.descriptions,
            concept.attribute,
            [example.model_dump(mode="json") for example in concept.examples],
        )
        for concept in plan.spec.concepts
    ]
    return digest(
        {
            "version": VERSION,
            "code": {name: digest_file(folder / f"{name}.py") for name in MODULES},
            "stages": stages,
            "attributes": {name: digest_array(column) for name, column in (attributes or {}).items()},
            "groups": None if groups is None else digest_array(groups),
            "pairs": pairs,
            "layers": list(plan.audit.layers),
            "sensitivity": plan.audit.sensitivity.model_dump(mode="json"),
            "concepts": concepts,
            "templates": plan.spec.templates,
            "classes": list(plan.spec.classes),
            "map": plan.audit.subject.class_map,
            "seed": plan.audit.seed,
            "settings": plan.audit.measurement.model_dump(mode="json", exclude={"batch_size", *INTERVENTION_SETTINGS}),
            "quantities": sorted(quantity.key for quantity in quantities),
        }
    )


def measure(
    plan: AuditPlan,
    evidence: Evidence,
    quantities: Sequence[Quantity],
    *,
    flows: Flows | None = None,
    progress: Callable[[int], None] | None = None,
) -> Measurements:
    """Measure everything that the plan's checks and the report need.

    Parameters
    ----------
    quantities
        What the checks ask for, see `semlens_audit.checks.quantities`.
    flows
        Where this evidence's relevance flows, as far as it is known already.
    progress
        Called with the number of finished layers and classes.

    Raises
    ------
    DataError
        If there are too few random crops to calibrate on, or the evidence holds values that are not finite.
    SpecError
        If a concept has no probe that the foundation model can embed.
    """
    evidence.require_finite()
    step = progress or (lambda _: None)
    effects, aurocs = measure_effects(plan, evidence)
    held_out = probe_aurocs(evidence.probes, np.concatenate([layer.null_embeddings for layer in evidence.layers]))
    missed = unrecognised(plan, held_out, aurocs)
    flows = flows or Flows(plan, evidence)
    layers, class_layers, values = measure_layers(plan, evidence, quantities, missed, flows=flows, progress=step)
    shown = measure_data(plan, evidence, quantities, missed)
    found = effect_quantities(quantities, effects, missed) | values | shown.values
    valued = {key for key, one in values.items() if one.value is not None}
    beside = dict(interpretability_remarks(plan, evidence, quantities, valued, flows))
    predicted = evidence.predicted
    return Measurements(
        layers=tuple(layers),
        class_layers=tuple(class_layers),
        effects=tuple(effects),
        presence_in_data=shown.presence,
        pair_effects=shown.pairs,
        quantities=found,
        remarks=shown.remarks | beside,
        presence_auroc=aurocs,
        probe_auroc=held_out,
        unrecognised=missed,
        accuracy=float((predicted == evidence.labels).mean()) if len(predicted) else None,
        per_class={name: int((evidence.labels == index).sum()) for index, name in enumerate(evidence.classes)},
    )


def measure_layers(
    plan: AuditPlan,
    evidence: Evidence,
    quantities: Sequence[Quantity],
    unrecognised: Mapping[str, str],
    *,
    flows: Flows | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[LayerRecord], list[ClassLayer], dict[str, Measurement]]:
    """The mechanistic line of evidence in every layer of `evidence`.

    Parameters
    ----------
    quantities
        What the checks ask for; those of other layers, or of none, are left alone.
    unrecognised
        Concepts that the foundation model does not recognise, with the reason.
    flows
        Where the relevance of these samples flows, as far as it is known already: it depends on neither concepts nor references.
    progress
        Called with the number of finished layers and classes.

    Returns
    -------
    layers, class_layers, values
        Records of the layers; of each class in each layer; quantity's key -> its measurement.
    """
    step = progress or (lambda _: None)
    concept_ids = [concept.id for concept in plan.spec.concepts]
    layers: list[LayerRecord] = []
    class_layers: list[ClassLayer] = []
    found: dict[str, Measurement] = {}
    flows = flows or Flows(plan, evidence)
    for source in evidence.layers:
        source.require_finite()
        layer = assign_layer(plan, evidence, source, unrecognised, flows.weights)
        step(1)
        layers.append(_layer_record(plan, layer, concept_ids))
        wanted = asked_measures(quantities, source.layer) if layer.eligible.any() else ()
        measures = measures_of_layer(plan, evidence, source, wanted) if wanted else None
        for position, name in enumerate(evidence.class_names):
            asked = [q for q in quantities if q.layer == source.layer and q.class_name == name]
            record, values = measure_class(plan, evidence, layer, position, flows.of(source, position), asked, measures)
            class_layers.append(record)
            found.update(values)
            step(1)
    return layers, class_layers, found


def _layer_record(plan: AuditPlan, layer: AssignedLayer, concepts: list[str]) -> LayerRecord:
    known = ~np.isnan(layer.clarity) & ~layer.source.dead
    if known.any():
        value = float(np.clip(layer.clarity[known].mean(), *COSINE))
        draws = layer.clarity_draws[:, known].mean(axis=1)
        clarity = Measurement(
            quantity="clarity",
            unit="cosine",
            value=value,
            n=int(known.sum()),
            interval=interval(plan, value, draws, "reference samples", COSINE),
        )
    else:
        dead = layer.source.dead.all()
        reason = "every component of the layer is dead" if dead else "no live component has two reference samples"
        clarity = Measurement(quantity="clarity", unit="cosine", n=0, not_measured=reason)
    mean, deviation = layer.concept_null or (np.empty(0), np.empty(0))
    finite = layer.source.conservation[np.isfinite(layer.source.conservation)]
    return LayerRecord(
        layer=layer.source.layer,
        components=len(layer.weights),
        dead=int(layer.source.dead.sum()),
        attribution=layer.source.attribution,
        method=layer.source.chosen[0] if layer.source.chosen else plan.audit.measurement.attribution,
        choice=layer.source.chosen[1] if layer.source.chosen else None,
        conservation=float(np.median(finite)) if finite.size else None,
        clarity=clarity,
        calibration=tuple(
            ReferenceRecord(concept=name, null_mean=float(mean[index]), null_deviation=float(deviation[index]))
            for index, name in enumerate(concepts[: len(mean)])
        ),
    )
