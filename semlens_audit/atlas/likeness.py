"""Whether a component's reference crops have anything in common, and which components look alike.

Shapes use K components, m reference samples, d dimensions.
"""

from __future__ import annotations

import numpy as np

from semlens_audit import scores
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.random_sets import set_sizes
from semlens_audit.draws import generator
from semlens_audit.resampling import resampled_clarity
from semlens_audit.units import effective_units

__all__ = ["CHANCE", "alike", "clear_components", "likeness"]

CHANCE = 0.95
"""Share of random reference sets that a component's clarity has to exceed for its crops to have something in common."""

_CHUNK = 64


def clear_components(atlas: Atlas, layer: str, components: np.ndarray) -> tuple[list[float | None], np.ndarray]:
    """Clarity of some components, and whether it exceeds that of most random reference sets of as many crops.

    Pairs of reference samples of one unit do not count for clarity.

    Parameters
    ----------
    components
        (k,) int64.

    Returns
    -------
    clarity : list
        k values of -1 to 1; ``None`` for a component that is dead or has fewer than two independent reference samples.
    clear : numpy.ndarray
        (k,) bool.
    """
    source = atlas.layers[layer]
    ids = source.reference_ids[components]
    present = ids >= 0
    units = np.where(present, atlas.evidence.units[ids], -1 - np.arange(ids.shape[1]))
    counts = effective_units(units, present) if len(ids) else np.zeros(0)
    enough, values = (counts >= 2) & ~source.dead[components], np.full(len(components), np.nan)
    every = source.embeddings
    for start in range(0, len(components), _CHUNK):
        rows = start + np.flatnonzero(enough[start : start + _CHUNK])
        if len(rows):
            even = present[rows] / present[rows].sum(axis=1, keepdims=True)
            values[rows] = np.clip(resampled_clarity(every[components[rows]], even[:, None], units[rows])[:, 0], -1.0, 1.0)
    limit = np.full(len(components), np.inf)
    if enough.any():
        sizes = set_sizes(counts, round(float(np.median(counts[enough]))))
        for size in np.unique(sizes[enough]):
            limit[enough & (sizes == size)] = _chance_clarity(atlas, layer, int(size))
    return [None if np.isnan(value) else float(value) for value in values], values > limit


def _chance_clarity(atlas: Atlas, layer: str, size: int) -> float:
    """Clarity that 95 in 100 random reference sets of a size do not exceed; infinite without random crops."""
    pool, rng = atlas.layers[layer].null_embeddings, generator(atlas.plan, "description", layer, str(size))
    if not len(pool):
        return float("inf")
    found = []
    for _ in range(atlas.plan.audit.measurement.null_sets):
        drawn = pool[rng.integers(len(pool), size=size)].astype(np.float64)
        found.append(scores.clarity(drawn[None], np.ones((1, size), dtype=bool))[0])
    return float(np.quantile(found, CHANCE))


def alike(vectors: np.ndarray, least: float) -> list[np.ndarray]:
    """Divide vectors into groups that look alike.

    Agglomerative clustering with average linkage of cosine distances, cut where two groups' mean cosine falls below `least`.

    Parameters
    ----------
    vectors
        (n, d) unit length, in an order that depends on nothing but themselves.
    least
        Above 0, at most 1.

    Returns
    -------
    list of numpy.ndarray
        Positions of each group's members, ascending; groups by their first member.
    """
    if len(vectors) < 2:
        return [np.arange(len(vectors))] if len(vectors) else []
    from scipy.cluster.hierarchy import fcluster, linkage  # a tenth of a second, which a listing has no need of
    from scipy.spatial.distance import squareform

    distances = np.clip(1.0 - vectors @ vectors.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    places = fcluster(linkage(squareform(distances, checks=False), "average"), 1.0 - least, criterion="distance")
    _, first = np.unique(places, return_index=True)
    return [np.flatnonzero(places == places[start]) for start in np.sort(first)]


def likeness(vectors: np.ndarray, share: np.ndarray) -> float | None:
    """Mean cosine over pairs of (n, d) unit vectors, pairs weighted by the product of their (n,) shares; ``None`` for a single one."""
    if len(vectors) < 2:
        return None
    weights = np.outer(share, share)
    np.fill_diagonal(weights, 0.0)
    return float((weights * (vectors @ vectors.T)).sum() / weights.sum())
