"""Assignment of a layer's components to concepts: probes, calibration, resampled reference samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit import scores
from semlens_audit.calibration import Calibration, assign, calibrate, concept_z, critical_z, excess, false_discovery_mask
from semlens_audit.digest import digest
from semlens_audit.errors import DataError, SpecError
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.plan import AuditPlan
from semlens_audit.records import Interval
from semlens_audit.resampling import resampled_alignment, resampled_clarity

__all__ = ["COSINE", "LOGITS", "SHARE", "AssignedLayer", "assign_layer", "build_probes", "generator", "interval"]

_CHUNK = 64
SHARE = (0.0, 1.0)
COSINE = (-1.0, 1.0)
LOGITS = (-np.inf, np.inf)


def generator(plan: AuditPlan, *names: str) -> np.random.Generator:
    """Random generator that depends on the audit's seed and the names of what is drawn, not on the order of drawing."""
    return np.random.default_rng([plan.audit.seed, *(int(digest(name)[:8], 16) for name in names)])


def interval(plan: AuditPlan, value: float, draws: np.ndarray, over: str, bounds: tuple[float, float]) -> Interval:
    """Percentile interval of the draws, shifted so that their median is the point estimate, and cut to the quantity's range.

    Resampled reference samples are noisier than the samples themselves, so that fewer components reach significance in a draw
    than at the point. Without the shift (the bootstrap's estimate of its own bias, Efron and Tibshirani 1993, chapter 10) an interval
    would lie to one side of the estimate, and a check could fail by resampling alone.
    """
    level = plan.audit.measurement.confidence
    low, middle, high = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Interval(
        low=max(value + float(low - middle), bounds[0]),
        high=min(value + float(high - middle), bounds[1]),
        level=level,
        method=f"Bayesian bootstrap over {over}, {len(draws)} draws",
    )


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
    """Measured values of a layer that no class changes."""

    source: LayerEvidence
    present: np.ndarray
    alignment: np.ndarray
    z: np.ndarray
    ranking: np.ndarray
    assigned: np.ndarray
    assigned_draws: np.ndarray
    clarity: np.ndarray
    clarity_draws: np.ndarray
    calibration: Calibration
    concept_null: tuple[np.ndarray, np.ndarray]


def assign_layer(plan: AuditPlan, evidence: Evidence, source: LayerEvidence) -> AssignedLayer:
    """Assign each component to the concept it significantly means, at the point and under resampled reference samples.

    Under resampling the critical z of the point estimate is kept, so that one draw costs no false-discovery control of its own.

    Raises
    ------
    DataError
        If there are fewer random crops than reference samples.
    """
    settings = plan.audit.measurement
    embeddings, present = source.embeddings, source.reference_ids >= 0
    slots = embeddings.shape[1]
    eligible = (present.sum(axis=1) >= 2) & ~source.dead
    usual = int(np.median(present.sum(axis=1)[eligible])) if eligible.any() else slots
    if len(source.null_embeddings) < max(usual, 2):
        raise DataError(
            "too-few-random-crops",
            f"layer {source.layer}: {len(source.null_embeddings)} random crops for reference sets of {usual}",
            "use more samples or fewer reference samples",
        )
    centre = source.null_embeddings.astype(np.float64).mean(axis=0)
    probes = build_probes(plan, evidence, centre, centre)
    null = calibrate(
        source.null_embeddings.astype(np.float64),
        max(usual, 2),
        settings.null_sets,
        probes,
        generator(plan, "null", source.layer),
    )
    theta = scores.concept_embedding(embeddings, present).astype(np.float64)
    aligned = scores.alignment(theta, probes)
    z = concept_z(aligned, null, probes)
    significant = false_discovery_mask(z, eligible, least=settings.significance, rate=settings.false_discovery_rate)
    cut = critical_z(significant, eligible, least=settings.significance, rate=settings.false_discovery_rate)
    ranking = excess(aligned, null, probes)
    assigned = np.where(eligible, assign(ranking, significant), -1)
    rng = generator(plan, "references", source.layer)
    assigned_draws = np.full((settings.bootstrap, len(embeddings)), -1, dtype=np.int16)
    clarity_draws = np.zeros((settings.bootstrap, len(embeddings)), dtype=np.float32)
    for start in range(0, len(embeddings), _CHUNK):
        part = slice(start, start + _CHUNK)
        weights = rng.standard_exponential((len(embeddings[part]), settings.bootstrap, slots), dtype=np.float32)
        weights *= present[part][:, None, :]
        weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-12)
        drawn = resampled_alignment(embeddings[part], weights, probes)
        chosen = assign(excess(drawn, null, probes), concept_z(drawn, null, probes) >= cut)
        assigned_draws[:, part] = np.where(eligible[part][:, None], chosen, -1).T
        clarity_draws[:, part] = resampled_clarity(embeddings[part], weights).T
    best = _best_alignment(aligned, null, probes)
    mean, deviation = _concept_null(null, probes)
    return AssignedLayer(
        source,
        present,
        best,
        z,
        ranking,
        assigned,
        assigned_draws,
        scores.clarity(embeddings, present),
        clarity_draws,
        null,
        (mean, deviation),
    )


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
