"""What the components of a layer mean, as embeddings, and how that would move with other reference samples.

Shapes use K components, m reference samples, d embedding dimensions, B draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from semlens_audit import scores
from semlens_audit.evidence import LayerEvidence
from semlens_audit.units import UnitWeights, effective_units, normalised, spread_factor

__all__ = ["LayerMeanings", "recentred"]

_TOGETHER = 8
"""Draws of embeddings that are made at a time: with 2,048 components and 512 dimensions 34 MB."""
_CHUNK = 64


class LayerMeanings:
    """Concept embeddings of one layer's components, at the point and under resampled reference samples.

    Samples of one unit share their weight, as everywhere (`semlens_audit.units.UnitWeights`); components that share reference
    samples move together.

    Parameters
    ----------
    source
        The layer's evidence.
    units
        (N,) int64 independent unit of each sample of the data.
    weights
        Bootstrap weights of these units; where two layers of the same data are compared, the same for both.

    Attributes
    ----------
    present, units : numpy.ndarray
        (K, m) whether a place for a reference sample is filled; the unit of its sample.
    counts : numpy.ndarray
        (K,) float64 independent reference samples.
    known : numpy.ndarray
        (K,) bool: live components with a reference sample.
    """

    def __init__(self, source: LayerEvidence, units: np.ndarray, weights: UnitWeights) -> None:
        self.layer, self.weights, self._source = source.layer, weights, source
        ids = self._source.reference_ids
        self.present = ids >= 0
        self.units = np.where(self.present, units[ids], -1 - np.arange(ids.shape[1]))
        self.counts = effective_units(self.units, self.present)
        self.dead: np.ndarray = self._source.dead
        self.known = ~self.dead & self.present.any(axis=1)

    @property
    def components(self) -> int:
        """K."""
        return len(self.dead)

    @property
    def embeddings(self) -> np.ndarray:
        """(K, m, d) float32 embeddings of the crops."""
        return self._source.embeddings

    @property
    def pool(self) -> np.ndarray:
        """(M, d) float32 embeddings of the layer's random crops."""
        return self._source.null_embeddings

    @cached_property
    def centre(self) -> np.ndarray:
        """(d,) float64 mean embedding of the layer's random crops."""
        return np.asarray(self.pool.astype(np.float64).sum(axis=0) / max(len(self.pool), 1))

    @cached_property
    def vectors(self) -> np.ndarray:
        """(K, d) float64 concept embeddings (SemanticLens); zeros without reference samples."""
        every, parts = self.embeddings, range(0, self.components, _CHUNK)
        means = [
            scores.concept_embedding(every[at : at + _CHUNK].astype(np.float64), self.present[at : at + _CHUNK]) for at in parts
        ]
        return np.concatenate(means) if means else np.zeros((0, self.centre.shape[0]))

    def directions(self, origin: np.ndarray | float) -> np.ndarray:
        """(K, d) float64 concept embeddings seen from `origin`, unit length; zeros for a component that is not `known`."""
        return scores.unit(self.vectors - origin) * self.known[:, None]

    @cached_property
    def factor(self) -> np.ndarray:
        """(K,) what deviations of the Bayesian bootstrap fall short of, see `semlens_audit.units.spread_factor`."""
        return spread_factor(self.counts)

    def drawn(self) -> Iterator[np.ndarray]:
        """Concept embeddings under resampled reference samples.

        Yields
        ------
        numpy.ndarray
            (K, d) float32, zeros for a component that is not `known`; one draw after the other.
        """
        names, place = np.unique(np.where(self.present, self.units, 0), return_inverse=True)
        weights, place, every = self.weights.of(names), place.reshape(self.present.shape), self.embeddings
        for start in range(0, self.weights.draws, _TOGETHER):
            some = np.ascontiguousarray(weights[:, start : start + _TOGETHER])
            moved = np.empty((some.shape[1], self.components, every.shape[2]), dtype=np.float32)
            for at in range(0, self.components, _CHUNK):
                part = slice(at, at + _CHUNK)
                chosen = normalised(some[place[part]], self.present[part])
                moved[:, part] = np.matmul(chosen, every[part]).transpose(1, 0, 2)
            moved[:, ~self.known] = 0.0
            yield from moved


def recentred(value: np.ndarray, draws: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Draws moved to have the estimate as their mean, with the spread that the number of samples asks for.

    Resampled reference samples are more alike than the samples themselves, or scatter more, which shifts what is measured from
    them (bootstrap bias correction, Efron and Tibshirani 1993, chapter 10).

    Parameters
    ----------
    value, factor
        (K,)
    draws
        (B, K)
    """
    return np.asarray(value + (draws - draws.mean(axis=0)) * factor)
