"""Whether the foundation model recognises a concept at all: without that, "no component means it" would say nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from semlens_audit import scores
from semlens_audit.evidence import ConceptProbes
from semlens_audit.plan import AuditPlan
from semlens_audit.statistics import auroc

__all__ = ["held_out_auroc", "probe_aurocs", "unrecognised"]

_FEWEST = 5


def held_out_auroc(examples: np.ndarray, others: np.ndarray, centre: np.ndarray) -> float | None:
    """How well a concept's example probe tells a held-out example from other crops.

    Every example is scored by the probe made of the remaining ones, every other crop by the probe made of all.

    Parameters
    ----------
    examples
        (E, d) unit-length embeddings; fewer than 5: not judged.
    others
        (M, d) unit-length embeddings of crops that do not define the concept.
    centre
        (d,) mean embedding of random crops.

    Returns
    -------
    float or None
        Area under the ROC curve, 0 to 1.
    """
    count = len(examples)
    if count < _FEWEST or not len(others):
        return None
    centred, total = examples - centre, examples.sum(axis=0)
    remaining = scores.unit((total - examples) / (count - 1) - centre)
    inside = (scores.unit(centred) * remaining).sum(axis=1)
    outside = scores.unit(others - centre) @ scores.unit(examples.mean(axis=0) - centre)
    return auroc(np.concatenate([inside, outside]), np.arange(count + len(others)) < count)


def probe_aurocs(probes: Mapping[str, ConceptProbes], pool: np.ndarray) -> dict[str, float]:
    """Held-out AUROC of every concept that example images define: the lower of two.

    Against random crops of the data, as in the significance test; and against the other concepts' examples, as in the
    assignment.

    Parameters
    ----------
    probes
        concept id -> probes.
    pool
        (M, d) embeddings of random crops; without any, nothing is judged.
    """
    if not len(pool):
        return {}
    centre = pool.astype(np.float64).mean(axis=0)
    found: dict[str, float] = {}
    for name, own in probes.items():
        rivals = [other.examples for key, other in probes.items() if key != name and len(other.examples)]
        groups = [pool, np.concatenate(rivals)] if rivals else [pool]
        areas = [held_out_auroc(own.examples.astype(np.float64), group.astype(np.float64), centre) for group in groups]
        known = [area for area in areas if area is not None]
        if known:
            found[name] = min(known)
    return found


def unrecognised(plan: AuditPlan, probe: Mapping[str, float], presence: Mapping[str, float]) -> dict[str, str]:
    """Concepts that the foundation model is known not to recognise, with the reason.

    Parameters
    ----------
    probe
        concept -> held-out AUROC of its examples, where it could be judged.
    presence
        concept -> AUROC on whole images, where attributes say which hold it; counts only where no example probe was judged.
    """
    needed = plan.audit.measurement.minimum_recognition
    reasons: dict[str, str] = {}
    for concept in plan.spec.concepts:
        if concept.id in probe:
            area, what = probe[concept.id], "held-out examples"
        elif concept.id in presence:
            area, what = presence[concept.id], "whole images"
        else:
            continue
        if area < needed:
            reasons[concept.id] = (
                f"the foundation model does not recognise {concept.label}: area under the ROC curve {area:.2f} on {what},"
                f" {needed:.2f} needed"
            )
    return reasons
