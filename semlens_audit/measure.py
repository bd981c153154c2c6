"""From evidence to measurements: assignment of components, reliance of classes, behavioural effects, each with its interval.

Reads NumPy arrays only, so that a verdict is re-decided without the model, the data or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from semlens_audit import scores
from semlens_audit.assignment import COSINE, SHARE, AssignedLayer, assign_layer, draw_units, interval
from semlens_audit.behaviour import class_margin
from semlens_audit.checks import Quantity
from semlens_audit.data_measure import measure_data
from semlens_audit.digest import digest, digest_array, digest_file
from semlens_audit.effect_measure import effect_quantities, measure_effects
from semlens_audit.evidence import Evidence
from semlens_audit.plan import AuditPlan
from semlens_audit.recognition import probe_aurocs, unrecognised
from semlens_audit.records import (
    ClassLayer,
    ComponentRecord,
    DataPresence,
    EffectRecord,
    Interval,
    LayerRecord,
    Measurement,
    PairEffectRecord,
    ReferenceRecord,
)
from semlens_audit.units import count_units, effective_units, spread_factor

__all__ = ["MODULES", "INTERVENTION_SETTINGS", "VERSION", "Measurements", "measure", "measure_layers", "measurement_key"]

VERSION = 8
"""Raised whenever a change here changes a number; part of every cache key."""

MODULES = (
    "assignment", "behaviour", "calibration", "checks", "data_gallery", "data_measure", "effect_measure", "gallery",
    "headroom", "measure", "presence", "proportions", "recognition", "records", "resampling", "scenarios", "scores", "statistics",
    "units",
)  # fmt: skip
"""What a cached value is made by and read with; their source is part of every cache key."""
INTERVENTION_SETTINGS = ("intervention", "intervention_samples", "control_sets", "smallest_effect")
"""Settings that no measured value depends on; interventions have a key of their own."""

_RESAMPLED = "test samples, reference samples and random crops"


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
    progress: Callable[[int], None] | None = None,
) -> Measurements:
    """Measure everything that the plan's checks and the report need.

    Parameters
    ----------
    quantities
        What the checks ask for, see `semlens_audit.checks.quantities`.
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
    layers, class_layers, values = measure_layers(plan, evidence, quantities, missed, progress=step)
    shown = measure_data(plan, evidence, quantities, missed)
    found = effect_quantities(quantities, effects, missed) | values | shown.values
    predicted = evidence.logits.argmax(axis=1)
    return Measurements(
        layers=tuple(layers),
        class_layers=tuple(class_layers),
        effects=tuple(effects),
        presence_in_data=shown.presence,
        pair_effects=shown.pairs,
        quantities=found,
        remarks=shown.remarks,
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
    progress: Callable[[int], None] | None = None,
) -> tuple[list[LayerRecord], list[ClassLayer], dict[str, Measurement]]:
    """The mechanistic line of evidence in every layer of `evidence`.

    Parameters
    ----------
    quantities
        What the checks ask for; those of other layers, or of none, are left alone.
    unrecognised
        Concepts that the foundation model does not recognise, with the reason.
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
    weights = draw_units(plan, evidence)
    for source in evidence.layers:
        source.require_finite()
        layer = assign_layer(plan, evidence, source, unrecognised, weights)
        step(1)
        layers.append(_layer_record(plan, layer, concept_ids))
        for position, name in enumerate(evidence.class_names):
            asked = [q for q in quantities if q.layer == source.layer and q.class_name == name]
            record, values = _measure_class(plan, evidence, layer, position, name, asked, weights)
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
        conservation=float(np.median(finite)) if finite.size else None,
        clarity=clarity,
        calibration=tuple(
            ReferenceRecord(concept=name, null_mean=float(mean[index]), null_deviation=float(deviation[index]))
            for index, name in enumerate(concepts[: len(mean)])
        ),
    )


def _measure_class(
    plan: AuditPlan,
    evidence: Evidence,
    layer: AssignedLayer,
    position: int,
    name: str,
    asked: Sequence[Quantity],
    weights: np.ndarray,
) -> tuple[ClassLayer, dict[str, Measurement]]:
    """Reliance of one class in one layer, and the quantities asked of it."""
    settings = plan.audit.measurement
    rows = np.flatnonzero(evidence.labels == evidence.audited[position])
    relevance = layer.source.relevance[rows, position]
    shares = scores.relevance_shares(relevance)
    carried = shares.sum(axis=1) > 0
    shares, relevance, units = shares[carried], relevance[carried], evidence.units[rows[carried]]
    n, concepts, reason = len(shares), plan.spec.concepts, None
    independent = count_units(evidence.units[rows])
    varies = float(class_margin(evidence.logits, evidence.audited[position]).std())
    if not layer.present.any():
        # What never varies has no reference samples: even where it carries relevance, nothing tells what it means.
        reason = f"every component of layer {layer.source.layer} is dead: none varies over the test data"
    elif independent < settings.minimum_samples:
        several = f", {independent} of them independent" if independent < len(rows) else ""
        found = f"{len(rows)} {'sample' if len(rows) == 1 else 'samples'} of class {name}{several}"
        reason = f"{found}, {settings.minimum_samples} needed"
    elif count_units(units) < settings.minimum_samples:
        several = "independent samples" if count_units(units) < n else "samples"
        reason = (
            f"relevance reaches layer {layer.source.layer} in only {count_units(units)} {several} of class {name},"
            f" {settings.minimum_samples} needed"
        )
    elif varies < settings.minimum_spread:
        # Shares add up to 1 even where there is nothing to share: an untrained network rests its constant output on something.
        reason = (
            f"the margin of {name} hardly varies over the test data (standard deviation {varies:.2g} logits,"
            f" {settings.minimum_spread:g} needed): there is no decision that could rest on anything"
        )
    elif not layer.eligible.any():
        reason = f"no live component of layer {layer.source.layer} has two reference samples that could say what it means"
    roles = [concept.role_for(name) for concept in concepts]
    groups = {
        role: [c.id for c, r in zip(concepts, roles, strict=True) if r == role] for role in ("valid", "spurious", "neutral")
    }
    if reason is not None:
        missing = Measurement(quantity="reliance", unit="share", n=n, not_measured=reason)
        record = ClassLayer(
            class_name=name,
            layer=layer.source.layer,
            samples=n,
            concepts={concept.id: missing for concept in concepts},
            valid=missing,
            spurious=missing,
            neutral=missing,
            unexplained=missing,
            components=(),
        )
        return record, {q.key: q.missing(reason, n) for q in asked}
    own = weights[units].T.astype(np.float64)
    mean_shares, drawn_shares = shares.mean(axis=0), (own / own.sum(axis=1, keepdims=True)) @ shares
    worth = effective_units(units[None], np.ones((1, n), dtype=bool))[0]
    drawn_shares = mean_shares + (drawn_shares - mean_shares) * spread_factor(worth)
    point = mean_shares @ layer.weights
    drawn = np.matmul(drawn_shares[:, None], layer.weight_draws.astype(np.float32))[:, 0]
    position_of = {concept.id: index for index, concept in enumerate(concepts)}

    def reliance(identifiers: Sequence[str], nested: bool = False) -> Measurement:
        chosen = [position_of[identifier] for identifier in identifiers]
        return _share(plan, "reliance", float(point[chosen].sum()), drawn[:, chosen].sum(axis=1), n, nested)

    def unexplained(nested: bool = False) -> Measurement:
        value = 1.0 - float(point.sum())
        return _share(plan, "unexplained relevance", value, 1.0 - drawn.sum(axis=1), n, nested)

    record = ClassLayer(
        class_name=name,
        layer=layer.source.layer,
        samples=n,
        concepts={concept.id: reliance([concept.id]) for concept in concepts},
        valid=reliance(groups["valid"]),
        spurious=reliance(groups["spurious"]),
        neutral=reliance(groups["neutral"]),
        unexplained=unexplained(),
        components=_components(plan, layer, mean_shares, drawn_shares, relevance),
    )
    values: dict[str, Measurement] = {}
    for quantity in asked:
        if quantity.kind == "unexplained_relevance":
            values[quantity.key] = unexplained(nested=True)
        elif quantity.kind == "clarity":
            values[quantity.key] = _weighted_clarity(plan, layer, mean_shares, drawn_shares, n)
        elif not quantity.concepts:
            values[quantity.key] = quantity.missing("the check speaks of no concept", n)
        else:
            values[quantity.key] = reliance(quantity.concepts, nested=True)
    return record, values


def _share(plan: AuditPlan, quantity: str, value: float, draws: np.ndarray, n: int, nested: bool) -> Measurement:
    value = min(max(value, 0.0), 1.0)
    spread = interval(plan, value, draws, _RESAMPLED, SHARE, nested=nested)
    return Measurement(quantity=quantity, unit="share", value=value, interval=spread, n=n)


def _weighted_clarity(
    plan: AuditPlan, layer: AssignedLayer, mean_shares: np.ndarray, drawn_shares: np.ndarray, n: int
) -> Measurement:
    """Mean clarity of the components, weighted by their share of the class's relevance."""
    known = ~np.isnan(layer.clarity) & ~layer.source.dead
    total = float(mean_shares[known].sum())
    if total <= 0:
        return Measurement(
            quantity="clarity", unit="cosine", n=n, not_measured="no component with relevance has two reference samples"
        )
    value = float(np.clip((mean_shares[known] * layer.clarity[known]).sum() / total, *COSINE))
    draws = (drawn_shares[:, known] * layer.clarity_draws[:, known]).sum(axis=1) / drawn_shares[:, known].sum(axis=1)
    spread = interval(plan, value, draws, _RESAMPLED, COSINE, nested=True)
    return Measurement(quantity="clarity", unit="cosine", value=value, interval=spread, n=n)


def _components(
    plan: AuditPlan, layer: AssignedLayer, mean_shares: np.ndarray, drawn_shares: np.ndarray, relevance: np.ndarray
) -> tuple[ComponentRecord, ...]:
    """All components of the layer, most relevant first."""
    identifiers = [concept.id for concept in plan.spec.concepts]
    level = plan.audit.measurement.confidence
    low, high = np.quantile(drawn_shares, [(1 - level) / 2, (1 + level) / 2], axis=0)
    magnitude = np.abs(relevance).mean(axis=0, dtype=np.float64)
    signed = np.divide(relevance.mean(axis=0, dtype=np.float64), magnitude, out=np.zeros_like(magnitude), where=magnitude > 0)
    method = f"Bayesian bootstrap over test samples, {len(drawn_shares)} draws"
    usable: np.ndarray = np.asarray(layer.present.any(axis=1)) & (layer.concept_null is not None)
    records = []
    for index in np.lexsort((np.arange(len(mean_shares)), -mean_shares)):
        k, share = int(index), float(min(mean_shares[index], 1.0))
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
