"""Significance of alignment against random reference sets, and the assignment that follows from it.

Shapes use K components, J concepts, P probes, S random sets, M random crops, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist

import numpy as np

from semlens_audit.scores import EPSILON, ProbeSet, alignment, same_origin, unit
from semlens_audit.statistics import benjamini_hochberg, normal_tail

__all__ = [
    "Calibration",
    "NullDraws",
    "calibrate",
    "concept_z",
    "critical_z",
    "divide",
    "excess",
    "resample_null",
]

_SCATTER = 1e-9
"""Deviation that rounding alone may leave."""


@dataclass(frozen=True)
class Calibration:
    """Null distribution of alignment: what random sets of reference samples reach.

    Parameters
    ----------
    mean, deviation
        (P,) of the alignment of random sets with each probe.
    concept_mean, concept_deviation
        (J,) of the largest standardised alignment over a concept's probes; removes the advantage of many descriptions.
    """

    mean: np.ndarray
    deviation: np.ndarray
    concept_mean: np.ndarray
    concept_deviation: np.ndarray

    @classmethod
    def stack(cls, parts: Sequence[Calibration]) -> Calibration:
        """One calibration per component: arrays with the components first, (K, P) and (K, J)."""
        return cls(*(np.stack([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def of(self, part: slice) -> Calibration:
        """Those of some components, to be held against values of shape (k, B, P)."""
        return Calibration(*(getattr(self, field.name)[part][:, None] for field in fields(self)))


def calibrate(pool: np.ndarray, m: int, sets: int, probes: ProbeSet, rng: np.random.Generator) -> Calibration:
    """Distribution of alignment under "the reference samples are m random samples of the data set".

    The mean over *components* is never used: a dominant shortcut would become the mean it is compared with.

    Parameters
    ----------
    pool
        (M, d) unit-length embeddings of random crops.
    m
        Reference samples per set.
    sets
        Number of random sets S.

    Raises
    ------
    ValueError
        If the pool holds fewer than m crops.
    """
    if len(pool) < m:
        raise ValueError(f"{len(pool)} random crops are too few for sets of {m}")
    means = np.empty((sets, pool.shape[1]), dtype=np.float64)
    for row in range(sets):
        # With replacement: drawn without, large sets would share most of the pool and differ less than sets of the data do.
        means[row] = pool[rng.integers(len(pool), size=m)].mean(axis=0)
    null = alignment(means, probes)
    mean, deviation = null.mean(axis=0), null.std(axis=0, ddof=1)
    largest = _largest(_standardise(null, mean, deviation), probes)
    return Calibration(mean, deviation, largest.mean(axis=0), largest.std(axis=0, ddof=1))


@dataclass(frozen=True)
class NullDraws:
    """How far the null distribution would move with other random crops and other random sets.

    Parameters
    ----------
    shift
        (B, P) change of the null mean, in units of the null deviation for sets of `size`.
    spread
        (B, P) factor of the null deviation.
    size
        Reference samples per set. For sets of another size n the shift is ``sqrt(n / size)`` times as large, since the
        deviation falls with the square root of n and the change of the mean does not.
    """

    shift: np.ndarray
    spread: np.ndarray
    size: int


def resample_null(
    pool: np.ndarray, weights: np.ndarray, m: int, sets: int, probes: ProbeSet, rng: np.random.Generator
) -> NullDraws:
    """Bootstrap of the null distribution over random crops and over random sets, without drawing sets anew.

    The alignment of a random set is, to first order, a sum over its crops: ``a(v) = mean + g . (v - x_bar)`` with g the mean
    gradient of the alignment over random sets (Stein's lemma makes it the regression of a on v where v is nearly normal;
    Hajek projection, van der Vaart, Asymptotic Statistics, 1998, section 11.3). Weights on crops then move the mean by the
    weighted mean of ``g . (x_i - x_bar)`` and the variance in proportion to its weighted variance. What the limited number of
    sets adds is a bootstrap over their alignments (Rubin 1981).

    Parameters
    ----------
    pool
        (M, d) embeddings of random crops.
    weights
        (B, M) non-negative, each row adds up to 1.
    m, sets
        Size and number of the random sets.
    """
    means = np.stack([pool[rng.integers(len(pool), size=m)].mean(axis=0) for _ in range(sets)])
    null = alignment(means, probes)
    deviation = np.maximum(null.std(axis=0, ddof=1), _SCATTER)
    parts = (pool - pool.mean(axis=0)) @ mean_gradient(means, probes).T
    scale = np.maximum(parts.std(axis=0), _SCATTER)
    centre = weights @ parts
    squares = np.maximum(weights @ parts**2 - centre**2, 0.0) / scale**2
    own = rng.standard_exponential((len(weights), sets))
    own /= own.sum(axis=1, keepdims=True)
    standard = (null - null.mean(axis=0)) / deviation
    drift = own @ standard
    spread = np.sqrt(np.maximum(squares, 0.0) * np.maximum(own @ standard**2 - drift**2, 0.0))
    flat = null.std(axis=0, ddof=1) <= _SCATTER
    return NullDraws(np.where(flat, 0.0, centre / deviation + drift), np.where(flat, 1.0, np.maximum(spread, 0.1)), m)


def mean_gradient(vectors: np.ndarray, probes: ProbeSet) -> np.ndarray:
    """(P, d) gradient of `semlens_audit.scores.alignment` with respect to the embedding, averaged over embeddings (n, d)."""
    out = np.zeros_like(probes.directions, dtype=np.float64)
    for rows in same_origin(probes.origins):
        out[rows] = _cosine_gradient(vectors - probes.origins[rows[0]], unit(probes.directions[rows]))
    return out - _cosine_gradient(vectors, unit(probes.baselines))


def _cosine_gradient(vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(P, d) mean over v of ``(u - cos(v, u) v / |v|) / |v|``, the gradient of the cosine with unit directions u."""
    length = np.maximum(np.linalg.norm(vectors, axis=1), EPSILON)
    along = vectors / length[:, None]
    cosine = along @ directions.T
    return directions * (1.0 / length).mean() - (cosine / length[:, None]).T @ along / len(vectors)


def _standardise(values: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Deviations from the null mean; 0 where random sets do not differ, since nothing can then be called unusual."""
    return np.where(deviation > _SCATTER, (values - mean) / np.maximum(deviation, _SCATTER), 0.0)


def _largest(z: np.ndarray, probes: ProbeSet) -> np.ndarray:
    """(n, P) -> (n, J): largest value over each concept's probes."""
    out = np.full((*z.shape[:-1], probes.count), -np.inf)
    for concept in range(probes.count):
        out[..., concept] = z[..., probes.concepts == concept].max(axis=-1)
    return out


def concept_z(
    values: np.ndarray, calibration: Calibration, probes: ProbeSet, moved: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Z of each concept against random reference sets.

    Parameters
    ----------
    values
        (..., P) alignments.
    moved
        Shift, in deviations, and factor of the deviation of a resampled null, see `NullDraws`; they broadcast to `values`. The
        second standardisation, over a concept's probes, is that of values standardised already and stays as it is.

    Returns
    -------
    numpy.ndarray
        (..., J): largest standardised alignment over a concept's probes, standardised by its own null distribution.
    """
    standard = _standardise(values, calibration.mean, calibration.deviation)
    if moved is not None:
        standard = (standard - moved[0]) / moved[1]
    largest = _largest(standard, probes)
    return _standardise(largest, calibration.concept_mean, calibration.concept_deviation)


def critical_z(z: np.ndarray, eligible: np.ndarray, *, least: float, rate: float) -> float:
    """z that a pair has to reach: the larger of `least` and the step-up threshold of Benjamini and Hochberg (1995).

    With i the number of pairs that false-discovery control alone rejects (at least 1) out of n, the threshold is the z whose
    upper tail is ``rate * i / n``.

    Parameters
    ----------
    z
        (K, J)
    eligible
        (K,) bool
    """
    tested = z[eligible]
    if tested.size == 0:
        return least
    rejected = int((benjamini_hochberg(normal_tail(tested)) <= rate).sum())
    return max(least, -NormalDist().inv_cdf(rate * max(rejected, 1) / tested.size))


def excess(values: np.ndarray, calibration: Calibration, probes: ProbeSet, shift: np.ndarray | float = 0.0) -> np.ndarray:
    """Alignment above what random reference sets reach, for each concept.

    Parameters
    ----------
    values
        (..., P) alignments.
    shift
        Of a resampled null mean, in deviations, see `NullDraws`.

    Returns
    -------
    numpy.ndarray
        (..., J), in units of the cosine: the largest ``alignment - null mean`` over a concept's probes.
    """
    return _largest(values - calibration.mean - shift * calibration.deviation, probes)


def divide(z: np.ndarray, above: np.ndarray, significant: np.ndarray, doubtful: np.ndarray) -> np.ndarray:
    """How a component divides among the concepts that it significantly means.

    ``w_j = (z_j e_j)^2 / sum_i (z_i e_i)^2`` over the significant concepts, with the excess alignment e. A component that means one
    concept most by far belongs to it nearly alone; one that means two about equally is divided between them. Giving each component
    to one concept tells relying from free models about as well (``tests/benchmarks``), but then shares leap where two concepts are
    nearly tied, and their intervals with them. The excess alone favours concepts whose alignment varies much from crop to crop, z
    alone those whose alignment hardly varies.

    Parameters
    ----------
    z
        (..., J) z against random reference sets.
    above
        (..., J) excess alignment.
    significant
        (..., J) bool
    doubtful
        (J,) bool: concepts that count only where no other is significant.

    Returns
    -------
    numpy.ndarray
        (..., J) float64; adds up to 1, or to 0 where no concept is significant.
    """
    firm = significant & ~doubtful
    counted = np.where(firm.any(axis=-1, keepdims=True), firm, significant)
    weight = np.where(counted, (np.maximum(z, 0.0) * np.maximum(above, 0.0)) ** 2, 0.0)
    return weight / np.maximum(weight.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
