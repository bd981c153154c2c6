"""Assignment of a layer's components to concepts: probes, calibration, resampled reference samples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from semlens_audit import scores
from semlens_audit.calibration import (
    Calibration,
    NullDraws,
    calibrate,
    concept_z,
    critical_z,
    divide,
    excess,
    resample_null,
)
from semlens_audit.draws import draw_units, generator
from semlens_audit.errors import DataError, SpecError
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.plan import AuditPlan
from semlens_audit.resampling import reference_factor, resampled_alignment, resampled_clarity
from semlens_audit.units import UnitWeights, effective_units, reference_weights

__all__ = ["AssignedLayer", "assign_layer", "build_probes"]

_CHUNK = 64


def build_probes(plan: AuditPlan, evidence: Evidence, centre: np.ndarray, origin: np.ndarray) -> scores.ProbeSet:
    """Probes of all concepts.

    Parameters
    ----------
    centre
        (d,) mean embedding of random crops: what example probes are differences to.
    origin
        (d,) what is subtracted from an embedding before it is compared with an example probe.
    """
    directions, origins, baselines, owners = [], [], [], []
    dimension = evidence.image_embeddings.shape[1]
    zero = np.zeros(dimension)
    for index, concept in enumerate(plan.spec.concepts):
        probes = evidence.probes[concept.id]
        if len(probes.text):
            if plan.audit.measurement.probe == "template_difference":
                text = scores.template_probes(probes.text.astype(np.float64), evidence.empty_prompts.astype(np.float64))
                baseline = zero
            else:
                text = probes.text.astype(np.float64).mean(axis=1)
                baseline = evidence.empty_prompts.astype(np.float64).mean(axis=0)
            directions += list(text)
            origins += [zero] * len(text)
            baselines += [baseline] * len(text)
            owners += [index] * len(text)
        if len(probes.examples):
            directions.append(scores.example_probe(probes.examples.astype(np.float64), centre))
            origins.append(origin)
            baselines.append(zero)
            owners.append(index)
        if not len(probes.text) and not len(probes.examples):
            raise SpecError(
                "concept-without-probe",
                f"the foundation model can embed nothing that defines concept {concept.id!r}",
                "give example images, or choose a foundation model with a text tower",
                file=plan.spec_file,
            )
    return scores.ProbeSet(np.array(directions), np.array(origins), np.array(baselines), np.array(owners))


@dataclass(frozen=True)
class AssignedLayer:
    """Measured values of a layer that no class changes; K components, J concepts, B draws.

    Parameters
    ----------
    source
        The layer's evidence.
    present
        (K, m) bool, where there is a reference sample.
    eligible
        (K,) bool, whether a component can be assigned: alive, with two reference samples.
    alignment, z
        (K, J): alignment with the probe that stands out most, z against random reference sets, alignment above theirs. NaN in a
        layer without random crops.
    weights, weight_draws
        (K, J) and (B, K, J) float16: how each component divides among the concepts it significantly means, adding up to 1, or to 0
        where it means none.
    clarity, clarity_draws
        (K,) NaN with fewer than two reference samples, and (B, K).
    concept_null
        (J,) mean and deviation of random sets' alignment; None in a layer without random crops.
    """

    source: LayerEvidence
    present: np.ndarray
    eligible: np.ndarray
    alignment: np.ndarray
    z: np.ndarray
    weights: np.ndarray
    weight_draws: np.ndarray
    clarity: np.ndarray
    clarity_draws: np.ndarray
    concept_null: tuple[np.ndarray, np.ndarray] | None


def assign_layer(
    plan: AuditPlan,
    evidence: Evidence,
    source: LayerEvidence,
    doubtful: Collection[str] = frozenset(),
    weights: UnitWeights | None = None,
) -> AssignedLayer:
    """Assign each component to the concept it significantly means, at the point and under resampled reference samples.

    Under resampling the critical z of the point estimate is kept, so that one draw costs no false-discovery control of its own.
    Resampled reference samples are noisier than the samples themselves and so align less: the draws' alignments are shifted to
    have the point estimate as their mean (bootstrap bias correction, Efron and Tibshirani 1993, chapter 10), or else a component
    near the critical z would lose its meaning in almost every draw. Each draw has its own null distribution, too, since other
    random crops would have moved it for all components together (`semlens_audit.calibration.resample_null`).

    Samples of one unit are one reference sample, taken several times: they share their weight, count as one in the size of the
    random sets, and their pairs do not count for clarity.

    Parameters
    ----------
    doubtful
        Concepts that the foundation model does not recognise: a component is assigned to one of them only if it means no other
        concept, so that a bad probe cannot take away what a good one finds.
    weights
        Of `semlens_audit.draws.draw_units`; drawn here if left out.

    Raises
    ------
    DataError
        If there are fewer random crops than reference samples.
    """
    places = _places(evidence, source)
    needed = round(float(places.counts[places.eligible].max())) if places.eligible.any() else 2
    if len(source.null_embeddings) < needed:
        if places.eligible.any():
            raise DataError(
                "too-few-random-crops",
                f"layer {source.layer}: {len(source.null_embeddings)} random crops for reference sets of {needed}",
                "use more samples or fewer reference samples",
            )
        return _unassigned(plan, source, places)
    point = _point(plan, evidence, source, places, doubtful)
    weights = draw_units(plan) if weights is None else weights
    clarity, weight_draws, clarity_draws = _resampled(plan, evidence, source, places, point, weights)
    return AssignedLayer(
        source,
        places.present,
        places.eligible,
        _best_alignment(point.aligned, point.null, point.probes),
        point.z,
        point.weights,
        weight_draws,
        clarity,
        clarity_draws,
        _concept_null(point.usual, point.probes),
    )


@dataclass(frozen=True)
class _Places:
    """A layer's places for reference samples.

    Parameters
    ----------
    present, units
        (K, m) whether a place is filled; the unit of its sample, where empty places are units of their own.
    counts
        (K,) float64 independent reference samples of each component.
    eligible
        (K,) bool: components that can mean something.
    """

    present: np.ndarray
    units: np.ndarray
    counts: np.ndarray
    eligible: np.ndarray


def _places(evidence: Evidence, source: LayerEvidence) -> _Places:
    present = source.reference_ids >= 0
    units = np.where(present, evidence.units[source.reference_ids], -1 - np.arange(present.shape[1]))
    counts = effective_units(units, present)
    return _Places(present, units, counts, (counts >= 2) & ~source.dead)


def _unassigned(plan: AuditPlan, source: LayerEvidence, places: _Places) -> AssignedLayer:
    """A layer in which no component can mean anything."""
    shape = (len(places.present), len(plan.spec.concepts))
    blank, draws = np.full(shape, np.nan), plan.audit.measurement.bootstrap
    return AssignedLayer(
        source,
        places.present,
        places.eligible,
        blank,
        blank,
        np.zeros(shape),
        np.zeros((draws, *shape), dtype=np.float16),
        np.full(shape[0], np.nan),
        np.zeros((draws, shape[0]), dtype=np.float32),
        None,
    )


@dataclass(frozen=True)
class _Point:
    """The point estimate of a layer's assignment, and what resampling holds on to of it.

    Parameters
    ----------
    probes
        Probes of all concepts.
    usual, usual_size
        Null distribution for the usual number of reference samples, and that number.
    null, sizes
        Null distribution for each component's own number, stacked, and (K,) these numbers.
    aligned
        (K, P) alignment.
    z, weights
        (K, J) z against random reference sets; how the component divides among the concepts.
    cut
        Critical z.
    doubted
        (J,) bool: concepts that the foundation model does not recognise.
    """

    probes: scores.ProbeSet
    usual: Calibration
    usual_size: int
    null: Calibration
    sizes: np.ndarray
    aligned: np.ndarray
    z: np.ndarray
    weights: np.ndarray
    cut: float
    doubted: np.ndarray


def _point(
    plan: AuditPlan, evidence: Evidence, source: LayerEvidence, places: _Places, doubtful: Collection[str]
) -> _Point:
    settings = plan.audit.measurement
    centre = source.null_embeddings.astype(np.float64).mean(axis=0)
    probes = build_probes(plan, evidence, centre, np.zeros_like(centre))
    usual_size, sizes, usual, null = _calibrations(plan, source, places.counts, places.eligible, probes)
    embeddings, parts = source.meant, range(0, source.components, _CHUNK)
    means = [scores.concept_embedding(embeddings[at : at + _CHUNK], places.present[at : at + _CHUNK]) for at in parts]
    aligned = scores.alignment(np.concatenate(means).astype(np.float64), probes)
    z = concept_z(aligned, null, probes)
    cut = critical_z(z, places.eligible, least=settings.significance, rate=settings.false_discovery_rate)
    doubted = np.array([concept.id in doubtful for concept in plan.spec.concepts], dtype=bool)
    weights = divide(z, excess(aligned, null, probes), places.eligible[:, None] & (z >= cut), doubted)
    return _Point(probes, usual, usual_size, null, sizes, aligned, z, weights, cut, doubted)


def _resampled(
    plan: AuditPlan,
    evidence: Evidence,
    source: LayerEvidence,
    places: _Places,
    point: _Point,
    weights: UnitWeights,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clarity (K,), draws of how components divide among concepts (B, K, J), draws of clarity (B, K), some components at a time."""
    settings, (components, concepts) = plan.audit.measurement, point.z.shape
    clarity = np.full(components, np.nan)
    weight_draws = np.zeros((settings.bootstrap, components, concepts), dtype=np.float16)
    clarity_draws = np.zeros((settings.bootstrap, components), dtype=np.float32)
    moved = _null_draws(plan, evidence, source, point.usual_size, point.probes, weights)
    counts = places.counts
    factor = reference_factor(counts, settings.confidence)
    every, meant = source.embeddings, source.residuals
    for start in range(0, components, _CHUNK):
        part = slice(start, start + _CHUNK)
        embeddings = np.ascontiguousarray(every[part])
        present, units, aligned, null = places.present[part], places.units[part], point.aligned[part], point.null.of(part)
        even = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
        evenly = resampled_clarity(embeddings, even[:, None], units)[:, 0]
        clarity[part] = np.where(counts[part] >= 2, evenly, np.nan)
        chosen = reference_weights(weights, units, present)
        what = embeddings if meant is None else np.ascontiguousarray(meant[part])
        drawn = resampled_alignment(what, chosen, point.probes)
        drawn = aligned[:, None] + (drawn - drawn.mean(axis=1, keepdims=True)) * factor[part][:, None, None]
        shift = moved.shift * np.sqrt(point.sizes[part] / moved.size)[:, None, None]
        z = concept_z(drawn, null, point.probes, (shift, moved.spread))
        significant = places.eligible[part][:, None, None] & (z >= point.cut)
        divided = divide(z, excess(drawn, null, point.probes, shift), significant, point.doubted)
        weight_draws[:, part] = divided.transpose(1, 0, 2)
        clear = resampled_clarity(embeddings, chosen, units)
        clear = np.nan_to_num(clarity[part])[:, None] + (clear - clear.mean(axis=1, keepdims=True)) * factor[part][:, None]
        clarity_draws[:, part] = clear.T
    return clarity, weight_draws, clarity_draws


def _calibrations(
    plan: AuditPlan, source: LayerEvidence, counts: np.ndarray, eligible: np.ndarray, probes: scores.ProbeSet
) -> tuple[int, np.ndarray, Calibration, Calibration]:
    """The usual number of reference samples, each component's own, and the null distributions for both, the latter stacked.

    Sets of few samples scatter more than sets of many: held against the null of a full set, a component with few reference
    samples would seem significant by chance.
    """
    usual = round(float(np.median(counts[eligible]))) if eligible.any() else 2
    sizes = np.where(eligible, _rounded(counts, usual), usual)
    pool = source.null_meant.astype(np.float64)
    made = {
        int(size): calibrate(
            pool,
            int(size),
            plan.audit.measurement.null_sets,
            probes,
            generator(plan, "null", source.layer, str(size)),
        )
        for size in np.unique([*sizes, usual])
    }
    return usual, sizes, made[usual], Calibration.stack([made[int(size)] for size in sizes])


def _rounded(counts: np.ndarray, usual: int) -> np.ndarray:
    """(K,) set sizes that stand for the counts: `usual` itself, else the next lower of a series in steps of a tenth, never less."""
    series = sorted({2, usual, *(int(1.1**step) for step in range(8, 80))})
    return np.array([max(size for size in series if size <= max(count, 2)) for count in counts])


def _null_draws(
    plan: AuditPlan, evidence: Evidence, source: LayerEvidence, size: int, probes: scores.ProbeSet, weights: UnitWeights
) -> NullDraws:
    """The null distribution under other random crops: crops of one unit share its weight where their samples are known."""
    pool, rng = source.null_meant.astype(np.float64), generator(plan, "null draws", source.layer)
    if source.null_samples is not None:
        crops = weights.of(evidence.units[source.null_samples]).T.astype(np.float64)
    else:
        crops = rng.standard_exponential((weights.draws, len(pool)))
    crops /= crops.sum(axis=1, keepdims=True)
    return resample_null(pool, crops, size, plan.audit.measurement.null_sets, probes, rng)


def _best_alignment(aligned: np.ndarray, null: Calibration, probes: scores.ProbeSet) -> np.ndarray:
    """(K, J): for each concept the alignment with the probe that stands out most."""
    standard = (aligned - null.mean) / np.maximum(null.deviation, 1e-12)
    out = np.empty((len(aligned), probes.count))
    for concept in range(probes.count):
        rows = np.flatnonzero(probes.concepts == concept)
        pick = rows[standard[:, rows].argmax(axis=1)]
        out[:, concept] = aligned[np.arange(len(aligned)), pick]
    return out


def _concept_null(null: Calibration, probes: scores.ProbeSet) -> tuple[np.ndarray, np.ndarray]:
    """(J,) mean and deviation of random sets' alignment, averaged over a concept's probes, for the report."""
    mean = np.array([null.mean[probes.concepts == concept].mean() for concept in range(probes.count)])
    deviation = np.array([null.deviation[probes.concepts == concept].mean() for concept in range(probes.count)])
    return mean, deviation
