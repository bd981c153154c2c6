"""Scores under resampled reference samples, without ever forming a resampled embedding.

Shapes use K components, B draws, m reference samples, P probes, d dimensions.
"""

from __future__ import annotations

import numpy as np

from semlens_audit.scores import EPSILON, ProbeSet, gram, same_origin, unit
from semlens_audit.statistics import student_factor
from semlens_audit.units import all_different, spread_factor

__all__ = ["reference_factor", "resampled_alignment", "resampled_clarity"]


def reference_factor(counts: np.ndarray, confidence: float) -> np.ndarray:
    """What deviations under resampled reference samples are multiplied by, so that intervals are as wide as their number asks for.

    A handful of reference samples says little of its own scatter: Student's t in place of the normal distribution.

    Parameters
    ----------
    counts
        (K,) independent reference samples.
    confidence
        Level of the interval, in (0, 1).

    Returns
    -------
    numpy.ndarray
        (K,) float64, at least 1.
    """
    return spread_factor(counts) * np.array([student_factor(count - 1.0, confidence) for count in counts])


def _group_dots(embeddings: np.ndarray, probes: ProbeSet, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of references with unit directions (K, m, p) and Gram matrices (K, m, m), both from the group's origin."""
    origin = probes.origins[rows[0]]
    dots = (embeddings - origin.astype(embeddings.dtype)) @ unit(probes.directions[rows]).T.astype(embeddings.dtype)
    return dots.astype(np.float64), gram(embeddings, origin)


def resampled_alignment(embeddings: np.ndarray, weights: np.ndarray, probes: ProbeSet) -> np.ndarray:
    """Alignment of concept embeddings under resampled reference samples.

    Uses ``|sum_i w_i v_i|^2 = w^T G w``, so that no resampled embedding is ever formed.

    Parameters
    ----------
    embeddings
        (K, m, d)
    weights
        (K, B, m) non-negative, each row adds up to 1.

    Returns
    -------
    numpy.ndarray
        (K, B, P)
    """
    weights = weights.astype(np.float64, copy=False)
    out = np.zeros((*weights.shape[:2], len(probes.directions)))
    for rows in same_origin(probes.origins):
        dots, inner = _group_dots(embeddings, probes, rows)
        out[..., rows] = np.matmul(weights, dots) / _lengths(weights, inner)[..., None]
    if np.any(probes.baselines):
        plain = np.matmul(weights, (embeddings @ unit(probes.baselines).T.astype(embeddings.dtype)).astype(np.float64))
        out -= plain / _lengths(weights, gram(embeddings))[..., None]
    return out


def _lengths(weights: np.ndarray, inner: np.ndarray) -> np.ndarray:
    squared = np.einsum("kbm,kbm->kb", np.matmul(weights, inner), weights)
    return np.sqrt(np.maximum(squared, EPSILON**2))


def resampled_clarity(embeddings: np.ndarray, weights: np.ndarray, units: np.ndarray | None = None) -> np.ndarray:
    """Clarity under resampled reference samples: weighted mean cosine over pairs of different samples.

    Parameters
    ----------
    embeddings
        (K, m, d) unit length.
    weights
        (K, B, m) non-negative, each row adds up to 1.
    units
        (K, m) unit of each sample: pairs within a unit do not count. Left out, every sample is its own.

    Returns
    -------
    numpy.ndarray
        (K, B); 0 where a single unit holds all the weight.
    """
    weights = weights.astype(np.float64, copy=False)
    inner = gram(embeddings)
    total = np.einsum("kbm,kbm->kb", np.matmul(weights, inner), weights)
    if units is None or all_different(units):
        square = (weights**2).sum(axis=-1)
        own = np.einsum("kbm,km->kb", weights**2, np.einsum("kmm->km", inner))
    else:
        same = (units[:, :, None] == units[:, None, :]).astype(np.float64)
        square = np.einsum("kbm,kbm->kb", np.matmul(weights, same), weights)
        own = np.einsum("kbm,kbm->kb", np.matmul(weights, inner * same), weights)
    # What rounding leaves of a single unit's weight is no pair.
    return np.where(1.0 - square > 1e-9, (total - own) / np.maximum(1.0 - square, EPSILON), 0.0)
