"""Contrastive semantic projection: what sets the crops of a component apart from crops that look alike and do not drive it.

Pure functions of NumPy arrays. CSP stands for contrastive semantic projection, arXiv 2604.22477.
"""

from __future__ import annotations

import numpy as np

__all__ = ["NONE", "below_mean", "contrasts", "left_of", "project_out"]

NONE = -1
"""Position that stands for no contrastive sample."""

_ROWS = 1024
_TOGETHER = 64
"""Components, or random crops, whose contrastive samples are projected out together."""


def below_mean(activations: np.ndarray) -> np.ndarray:
    """Which samples may be contrastive for which component: those that drive it less than the mean sample does (CSP).

    Parameters
    ----------
    activations
        (N, K) pooled activations.

    Returns
    -------
    numpy.ndarray
        (N, K) bool; no sample of a component that is the same on all of them.
    """
    return np.asarray(activations < activations.mean(axis=0, dtype=np.float64))


def contrasts(positives: np.ndarray, candidates: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The contrastive sample of each positive example: the most similar one that is allowed, ``argmax_x cos(p_i, x)`` (CSP).

    Parameters
    ----------
    positives
        (n, d) unit-length embeddings.
    candidates
        (N, d) unit-length embeddings.
    allowed
        (N,) bool, or (n, N) bool: for each positive its own.

    Returns
    -------
    numpy.ndarray
        (n,) int64 positions among the candidates, the first of equally similar ones; `NONE` where none is allowed.
    """
    found = np.full(len(positives), NONE, dtype=np.int64)
    for start in range(0, len(positives), _ROWS):
        part = slice(start, start + _ROWS)
        open_ = allowed[part] if allowed.ndim == 2 else np.broadcast_to(allowed, (len(positives[part]), len(candidates)))
        if not len(candidates):
            continue
        similarity = np.where(open_, positives[part].astype(np.float64) @ candidates.astype(np.float64).T, -np.inf)
        found[part] = np.where(open_.any(axis=1), similarity.argmax(axis=1), NONE)
    return found


def project_out(positives: np.ndarray, contrastive: np.ndarray, gamma: float) -> np.ndarray:
    """What is left of embeddings when their contrastive samples are projected out: ``r_i = p_i - gamma <p_i, n_i> n_i`` (CSP).

    Parameters
    ----------
    positives
        (..., d) embeddings.
    contrastive
        (..., d) unit-length embeddings n_i; zeros where there is none, which leaves the positive as it is.
    gamma
        0 (nothing) to 1 (all of it).
    """
    along = (positives * contrastive).sum(axis=-1, keepdims=True)
    return np.asarray(positives - gamma * along * contrastive)


def left_of(embeddings: np.ndarray, crops: np.ndarray, positions: np.ndarray, gamma: float) -> np.ndarray:
    """What is left of embeddings (n, ..., d) beside the random crops (M, d) at `positions` (n, ...), float32; see `project_out`."""
    held = np.vstack([crops, np.zeros((1, embeddings.shape[-1]), dtype=crops.dtype)])  # the last one stands for none
    out = np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, len(embeddings), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        out[part] = project_out(embeddings[part].astype(np.float64), held[positions[part]].astype(np.float64), gamma)
    return out
