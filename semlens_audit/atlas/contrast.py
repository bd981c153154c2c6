"""Contrastive semantic projection: what a component's reference samples have that the nearest samples it ignores have not.

Pure functions of arrays, after "Contrastive Semantic Projection" (arXiv 2604.22477, CSP). Shapes use K components, m reference
samples, N candidate samples, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from semlens_audit.scores import unit

__all__ = ["BROAD", "Contrast", "contrast", "contrast_ids", "projected_embedding", "residuals", "too_broad"]

BROAD = 0.8
"""Share of samples that a component may fire on; of one that fires on more hardly any sample is without what it sees (CSP)."""

_COMPONENTS = 64
_CANDIDATES = 4096


@dataclass(frozen=True)
class Contrast:
    """Components seen against what they ignore.

    Parameters
    ----------
    ids
        (K, m) int64 candidate that each reference sample is contrasted with; -1 where there is none.
    similarity
        (K, m) float64 cosine between the two, -1 to 1; NaN where there is none.
    embeddings
        (K, d) float64 concept embeddings of unit length; zeros for a component without reference samples.
    """

    ids: np.ndarray
    similarity: np.ndarray
    embeddings: np.ndarray


def too_broad(fired: np.ndarray) -> np.ndarray:
    """(K,) bool: components that fire on `BROAD` of the samples or more, which CSP leaves out; `fired` is (K,) shares, 0 to 1."""
    return np.asarray(fired >= BROAD)


def contrast_ids(
    positives: np.ndarray, present: np.ndarray, candidates: np.ndarray, below: Callable[[slice, slice], np.ndarray]
) -> np.ndarray:
    """For each reference sample the most similar candidate that does not drive the component.

    ``n_i = argmax_x cos(p_i, x)`` over candidates x whose activation lies below the component's mean (CSP).

    Parameters
    ----------
    positives
        (K, m, d) embeddings of the reference samples' crops.
    present
        (K, m) bool
    candidates
        (N, d) embeddings.
    below
        Given slices of candidates and of components: (n, k) bool, whether the activation lies below the component's mean over all
        samples. Asked for some at a time, so that a matrix (N, K) need not exist.

    Returns
    -------
    numpy.ndarray
        (K, m) int64; of equally similar candidates the first. -1 where there is no reference sample or no candidate.
    """
    components, references = positives.shape[:2]
    best = np.full((components, references), -np.inf, dtype=np.float32)
    ids = np.full((components, references), -1, dtype=np.int64)
    crops = unit(positives.astype(np.float64)).astype(np.float32)
    for start in range(0, len(candidates), _CANDIDATES):
        rows = slice(start, min(start + _CANDIDATES, len(candidates)))
        others = unit(candidates[rows].astype(np.float64)).astype(np.float32)
        for first in range(0, components, _COMPONENTS):
            part = slice(first, min(first + _COMPONENTS, components))
            cosine = (crops[part].reshape(-1, crops.shape[2]) @ others.T).reshape(-1, references, len(others))
            cosine[~np.broadcast_to(below(rows, part).T[:, None], cosine.shape)] = -np.inf
            place = cosine.argmax(axis=2)
            value = np.take_along_axis(cosine, place[..., None], axis=2)[..., 0]
            better = value > best[part]
            best[part] = np.where(better, value, best[part])
            ids[part] = np.where(better, place + start, ids[part])
    return np.where(present, ids, -1)


def residuals(positives: np.ndarray, contrasts: np.ndarray, gamma: float) -> np.ndarray:
    """What is left of embeddings when a share of their contrast is projected out.

    ``r_i = p_i - gamma <p_i, n_i> n_i`` with p and n of unit length (CSP).

    Parameters
    ----------
    positives, contrasts
        (..., d); a contrast of zeros takes nothing away.
    gamma
        0: the embeddings themselves, as in SemanticLens; 1: r is orthogonal to n. The paper uses 0.5 and 1.

    Returns
    -------
    numpy.ndarray
        (..., d) float64, of length at most 1.

    Raises
    ------
    ValueError
        `gamma` below 0 or above 1.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma}, not 0 to 1")
    p, n = unit(positives.astype(np.float64)), unit(contrasts.astype(np.float64))
    return np.asarray(p - gamma * (p * n).sum(axis=-1, keepdims=True) * n)


def projected_embedding(left: np.ndarray, activations: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Concept embeddings from residuals, weighted by activation.

    ``theta_k = unit(sum_i a_i r_i / sum_i a_i)`` (CSP).

    Parameters
    ----------
    left
        (K, m, d) residuals.
    activations
        (K, m) pooled activations. What is not above zero has no weight, unless that holds for all of a component's: then all have
        the same.
    present
        (K, m) bool

    Returns
    -------
    numpy.ndarray
        (K, d) float64 of unit length; zeros for a component without reference samples.
    """
    weight = np.where(present, np.maximum(activations.astype(np.float64), 0.0), 0.0)
    weight = np.where(weight.any(axis=1, keepdims=True), weight, present)
    weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return unit(np.einsum("km,kmd->kd", weight, left))


def contrast(
    positives: np.ndarray, activations: np.ndarray, present: np.ndarray, candidates: np.ndarray,
    below: Callable[[slice, slice], np.ndarray], *, gamma: float,
) -> Contrast:  # fmt: skip
    """Contrastive concept embeddings of all components; see `contrast_ids`, `residuals`, `projected_embedding`.

    Where the foundation model sees crops, candidates should be crops too, or else the contrast is between parts and wholes.
    """
    ids = contrast_ids(positives, present, candidates, below)
    similarity = np.full(ids.shape, np.nan)
    embeddings = np.zeros((len(positives), positives.shape[2]))
    for first in range(0, len(positives), _COMPONENTS):
        part = slice(first, first + _COMPONENTS)
        known = ids[part] >= 0
        chosen = np.zeros_like(positives[part])
        chosen[known] = candidates[ids[part][known]]
        own = unit(positives[part].astype(np.float64))
        similarity[part] = np.where(known, (own * unit(chosen.astype(np.float64))).sum(axis=2), np.nan)
        left = residuals(positives[part], chosen, gamma)
        embeddings[part] = projected_embedding(left, activations[part], present[part])
    return Contrast(ids, similarity, embeddings)
