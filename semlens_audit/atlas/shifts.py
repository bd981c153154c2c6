"""Whether two similar components are counted for the same concept of the spec.

What random reference samples reach is a low bar: components that both show a lesion are similar, whether or not one of them shows a
ruler beside it. The concepts of the spec tell such pairs apart. Shapes use K components, J concepts, B draws, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semlens_audit.assignment import assign_layer
from semlens_audit.atlas.opening import Atlas
from semlens_audit.flow import ClassFlow
from semlens_audit.plan import AuditPlan
from semlens_audit.recognition import probe_aurocs, unrecognised
from semlens_audit.statistics import benjamini_hochberg
from semlens_audit.units import UnitWeights

__all__ = ["Counted", "Flowed", "Shift", "common_concepts", "counted", "firm", "flowed", "kin", "meant", "shifts"]

_ROWS = 512


@dataclass(frozen=True)
class Counted:
    """How the components of a layer divide among concepts, as in the audit's checks (`semlens_audit.calibration.divide`).

    Parameters
    ----------
    weights
        (K, J) at the point; rows add up to 1, or to 0 where no concept is significant.
    draws
        (B, K, J) under resampled reference samples.
    """

    weights: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True)
class Shift:
    """The concepts that the components of a pair are counted for.

    Parameters
    ----------
    first, second
        Concept that most of the component is counted for; ``None``: most of it is unexplained.
    adjusted_p
        Of no difference between the two sides in what either counts for most; adjusted over all pairs.
    shifted
        Whether these concepts differ, beyond noise.
    """

    first: str | None
    second: str | None
    adjusted_p: float
    shifted: bool


def common_concepts(one: AuditPlan, other: AuditPlan) -> list[str]:
    """Ids of the concepts that both specs define alike, in the order of the first."""

    def defined(plan: AuditPlan) -> dict[str, tuple[object, ...]]:
        templates = plan.spec.templates
        return {
            concept.id: (templates, concept.descriptions, tuple(example.model_dump_json() for example in concept.examples))
            for concept in plan.spec.concepts
        }

    first, second = defined(one), defined(other)
    return [name for name in first if second.get(name) == first[name]]


def counted(atlas: Atlas, layer: str, weights: UnitWeights, concepts: Sequence[str]) -> Counted:
    """Divide a layer's components among concepts.

    Parameters
    ----------
    weights
        Of the audit's units; where both sides saw the same samples, the same for both.
    concepts
        Columns of the result, ids of the audit's spec.

    Raises
    ------
    DataError
        If there are fewer random crops than reference samples.
    SpecError
        If a concept has no probe that the foundation model can embed.
    """
    plan, evidence = atlas.plan, atlas.evidence
    settings = plan.audit.measurement.model_copy(update={"bootstrap": weights.draws})
    plan = plan.model_copy(update={"audit": plan.audit.model_copy(update={"measurement": settings})})
    pool = np.concatenate([source.null_embeddings for source in evidence.layers])
    doubtful = unrecognised(plan, probe_aurocs(evidence.probes, pool), {})
    found = assign_layer(plan, evidence, atlas.layers[layer], doubtful.keys(), weights)
    names = [concept.id for concept in plan.spec.concepts]
    places = [names.index(name) for name in concepts]
    return Counted(found.weights[:, places], found.weight_draws[:, :, places].astype(np.float64))


def meant(side: Counted) -> np.ndarray:
    """(K,) place of the concept that most of each component is counted for; J: most of it is unexplained."""
    return np.asarray(_with_rest(side.weights).argmax(axis=1))


def firm(side: Counted, level: float) -> np.ndarray:
    """(K,) bool: components that are counted for the same concept most in at least this share of the draws."""
    point = meant(side)
    return np.asarray((_with_rest(side.draws).argmax(axis=2) == point).mean(axis=0) >= level)


def kin(
    one: np.ndarray,
    other: np.ndarray,
    levels: tuple[np.ndarray, np.ndarray],
    kinds: tuple[np.ndarray, np.ndarray],
    unexplained: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the other layer has components similar beyond chance, and among them one counted for the same concept.

    Parameters
    ----------
    one, other
        (K, d), (L, d) unit-length directions.
    levels
        (K,), (L,) cosine that has to be exceeded, from either side.
    kinds
        (K,), (L,) place of the concept that each is counted for.
    unexplained
        The place that stands for none; any component is kin to those.

    Returns
    -------
    near, same : numpy.ndarray
        (K,) bool
    """
    near, same = np.zeros(len(one), dtype=bool), np.zeros(len(one), dtype=bool)
    for start in range(0, len(one), _ROWS):
        rows = slice(start, start + _ROWS)
        close = one[rows] @ other.T > np.maximum(levels[0][rows, None], levels[1])
        near[rows] = close.any(axis=1)
        same[rows] = (close & ((kinds[0][rows, None] == kinds[1]) | (kinds[0][rows, None] == unexplained))).any(axis=1)
    return near, same


@dataclass(frozen=True)
class Flowed:
    """How much of a class's relevance flows through components that are counted for a concept, in either layer.

    Parameters
    ----------
    first, second
        (J + 1,) shares, the last what is unexplained.
    first_draws, second_draws
        (B, J + 1) under resampled test and reference samples.
    """

    first: np.ndarray
    second: np.ndarray
    first_draws: np.ndarray
    second_draws: np.ndarray


def flowed(sides: tuple[Counted, Counted], flows: tuple[ClassFlow, ClassFlow]) -> Flowed:
    """Shares of relevance by concept, ``sum_k w_kj share_k``, as in the audit's checks."""
    point = [flow.mean @ _with_rest(side.weights) for side, flow in zip(sides, flows, strict=True)]
    drawn = [
        np.einsum("bk,bkj->bj", flow.drawn[: len(side.draws)].astype(np.float64), _with_rest(side.draws))
        for side, flow in zip(sides, flows, strict=True)
    ]
    return Flowed(point[0], point[1], drawn[0], drawn[1])


def shifts(
    first: Counted, second: Counted, pairs: tuple[np.ndarray, np.ndarray], concepts: Sequence[str], rate: float
) -> list[Shift]:
    """Compare what the components of pairs are counted for.

    A pair has shifted where the concept that most of it is counted for (or none) is another one, and the difference of what is counted
    for these is beyond noise: no more than few draws of the bootstrap have the opposite sign, adjusted over all pairs (Benjamini and
    Hochberg 1995).

    Parameters
    ----------
    pairs
        (P,) components of either side.
    rate
        False-discovery rate.
    """
    left, right = (_with_rest(side.weights[rows]) for side, rows in zip((first, second), pairs, strict=True))
    drawn = (
        _with_rest(second.draws[:, pairs[1]]) - _with_rest(first.draws[:, pairs[0]]) if len(left) else np.empty((1, 0, len(concepts) + 1))
    )
    one, other, rows = left.argmax(axis=1), right.argmax(axis=1), np.arange(len(left))
    # What the second counts for most has to have gained, or what the first counted for most to have lost, as a whole.
    moved = drawn[:, rows, other] - drawn[:, rows, one]
    opposite = (moved <= 0).sum(axis=0)
    p = np.where(one == other, 1.0, np.minimum((1 + opposite) * 2 / (1 + len(drawn)), 1.0))
    adjusted = benjamini_hochberg(p) if len(p) else p
    names = [*concepts, None]
    return [
        Shift(names[one[at]], names[other[at]], float(adjusted[at]), bool(one[at] != other[at] and adjusted[at] <= rate)) for at in rows
    ]


def _with_rest(weights: np.ndarray) -> np.ndarray:
    """(..., J + 1): with what is counted for none of the concepts."""
    return np.concatenate([weights, 1.0 - weights.sum(axis=-1, keepdims=True)], axis=-1)
