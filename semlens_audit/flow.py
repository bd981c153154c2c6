"""Where the relevance of a class flows: mean shares of components, and how they move with the test samples.

Shapes use B draws, C audited classes, K components, N samples, U independent units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit import scores
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.units import count_units, effective_units, spread_factor

__all__ = ["ClassFlow", "class_flow"]


@dataclass(frozen=True)
class ClassFlow:
    """How one class's relevance divides among the components of a layer.

    Parameters
    ----------
    rows, units
        Samples of the class, and independent units that they make.
    samples, carried_units
        Those of them that carry any relevance in the layer, and their independent units.
    mean
        (K,) float64 mean share, see `semlens_audit.scores.relevance_shares`.
    drawn
        (B, K) mean share under bootstrap weights of units, with the spread that the number of units asks for.
    magnitude, signed
        (K,) float64 mean of the relevance's size, and of the relevance itself.
    """

    rows: int
    units: int
    samples: int
    carried_units: int
    mean: np.ndarray
    drawn: np.ndarray
    magnitude: np.ndarray
    signed: np.ndarray


def class_flow(evidence: Evidence, source: LayerEvidence, position: int, weights: np.ndarray) -> ClassFlow:
    """Flow of the class at a position among the audited ones, with (U, B) `weights` of units."""
    rows = np.flatnonzero(evidence.labels == evidence.audited[position])
    relevance = source.relevance[rows, position]
    shares = scores.relevance_shares(relevance)
    carried = shares.sum(axis=1) > 0
    shares, relevance, units = shares[carried], relevance[carried], evidence.units[rows[carried]]
    n, independent = len(shares), count_units(evidence.units[rows])
    if not n:
        blank = np.zeros(shares.shape[1])
        return ClassFlow(len(rows), independent, 0, 0, blank, np.zeros((weights.shape[1], len(blank))), blank, blank)
    own = weights[units].T.astype(np.float64)
    mean, drawn = shares.mean(axis=0), (own / own.sum(axis=1, keepdims=True)) @ shares
    worth = effective_units(units[None], np.ones((1, n), dtype=bool))[0]
    return ClassFlow(
        len(rows),
        independent,
        n,
        count_units(units),
        mean,
        mean + (drawn - mean) * spread_factor(worth),
        np.abs(relevance).mean(axis=0, dtype=np.float64),
        relevance.mean(axis=0, dtype=np.float64),
    )
