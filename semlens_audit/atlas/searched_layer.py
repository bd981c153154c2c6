"""One layer that is searched, the audit's own or another index's: its components, and how near chance and everyday words come to them.

Shapes use K components, W everyday words, n components that are asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from semlens_audit.atlas.common_words import WORDS
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.random_sets import RandomSets, set_sizes
from semlens_audit.component_search import cache_folder, when_finished
from semlens_audit.digest import digest, digest_array
from semlens_audit.foreign_layers import ForeignLayer
from semlens_audit.kept_array import kept_array
from semlens_audit.scores import EPSILON, unit
from semlens_audit.units import effective_units
from semlens_audit.vectors import null_vectors

__all__ = ["SearchedLayer"]

_AT_ONCE = 2048
"""Components whose embeddings are in memory at a time."""


class SearchedLayer:
    """A layer whose concept embeddings are searched; everything is found when first asked for and kept.

    Parameters
    ----------
    atlas
        The opened index.
    layer
        Name of the layer.
    other
        The layer of another index in the store; ``None``: the audit's own.
    """

    def __init__(self, atlas: Atlas, layer: str, other: ForeignLayer | None = None) -> None:
        self._atlas, self.layer, self.other = atlas, layer, other
        self.key = atlas.keys[f"null:{layer}"] if other is None else other.key

    @cached_property
    def components(self) -> np.ndarray:
        """(K,) numbers of the components that have a concept embedding, ascending."""
        sql = "SELECT component FROM meaning WHERE stage = ? ORDER BY component"
        return np.asarray(self._atlas.store.arrays(sql, (self.key,))["component"], dtype=np.int64)

    @cached_property
    def random(self) -> RandomSets:
        """Random reference sets of the layer."""
        atlas = self._atlas
        own = self.other is None
        pool = atlas.layers[self.layer].null_embeddings if own else null_vectors(atlas.store, self.key, self._pool)
        return RandomSets(atlas.plan, self.layer, pool)

    @property
    def _pool(self) -> str:
        return self._atlas.keys["foundation"] if self.other is None else self.other.pool

    @cached_property
    def _sizes(self) -> np.ndarray:
        """(K,) size of the random sets that each component is held against; 0 for one with fewer than two reference samples."""
        numbers, counts = self._counts()
        enough = counts >= 2
        usual = round(float(np.median(counts[enough]))) if enough.any() else 2
        sizes = np.where(enough, set_sizes(counts, usual), 0)
        sizes[sizes > len(self.random)] = 0
        found = np.zeros(int(max(self.components.max(initial=-1), numbers.max(initial=-1))) + 1, dtype=np.int64)
        found[numbers] = sizes
        return np.asarray(found[self.components])

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of components, and how many independent reference samples each has."""
        atlas, other = self._atlas, self.other
        if other is None:
            source = atlas.layers[self.layer]
            present = source.reference_ids >= 0
            units = np.where(present, atlas.evidence.units[source.reference_ids], -1 - np.arange(present.shape[1]))
            counts = np.where(source.dead, 0.0, effective_units(units, present))
            return np.arange(len(counts)), counts
        rows = atlas.store.arrays(
            "SELECT component, count(*) AS samples FROM reference WHERE stage = ? AND rank < ? GROUP BY component",
            (other.references, other.declared),
        )
        return rows["component"].astype(np.int64), rows["samples"].astype(np.float64)

    def against_chance(
        self, direction: np.ndarray, centred: bool, components: np.ndarray, similarity: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hold components against random sets of their own size.

        Parameters
        ----------
        direction
            (d,) what was looked for.
        centred
            Whether the similarities are seen from the centre of random crops.
        components, similarity
            (n,) numbers of components, and their similarity with the direction.

        Returns
        -------
        expected, z, p
            (n,) mean similarity of random sets, and z and p of the component; NaN where it has too few reference samples.
        """
        expected, z, p = (np.full(len(components), np.nan) for _ in range(3))
        sizes = self._sizes[np.searchsorted(self.components, components)]
        for size in np.unique(sizes[sizes > 0]).tolist():
            null, at = self.random.null(direction, size, centred), sizes == size
            expected[at], z[at], p[at] = null.expected, null.z(similarity[at]), null.p(similarity[at])
        return expected, z, p

    def beyond_words(self, probes: Callable[[], np.ndarray], components: np.ndarray, z: np.ndarray) -> np.ndarray:
        """How far components stand out from their nearness to everyday words.

        Parameters
        ----------
        probes
            Gives the (W, d) probes of the words.
        components, z
            (n,) numbers of components, and z of their similarity with a text.

        Returns
        -------
        numpy.ndarray
            (n,) deviations of z above the mean over the words, for the same component.
        """
        mean, deviation, _ = self._words(probes)
        at = np.searchsorted(self.components, components)
        return (z - mean[at]) / np.maximum(deviation[at], EPSILON)

    def most_beyond(self, probes: Callable[[], np.ndarray]) -> np.ndarray:
        """(W,) of each everyday word, how far the component that it stands out most for stands out; -inf without components."""
        return self._words(probes)[2]

    def _words(self, probes: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(K,), (K,) mean and deviation over the words of each component's z; (W,) as `most_beyond`. Kept beside the store."""
        kept, store = len(self.components), self._atlas.store
        settings = self._atlas.plan.audit
        stands_for = [
            self.key, when_finished(store, self.key), self._atlas.evidence.foundation["sha256"], list(self._atlas.plan.spec.templates),
            list(WORDS), settings.seed, settings.measurement.null_sets, digest_array(self._sizes),
        ]  # fmt: skip
        if "_kept" not in self.__dict__:
            path = cache_folder(store.path) / f"{digest(stands_for)[:24]}.words"
            self._kept = kept_array(path, (2 * kept + len(WORDS),), lambda: self._beside_words(probes()))
        return self._kept[:kept], self._kept[kept : 2 * kept], self._kept[2 * kept :]

    def _beside_words(self, probes: np.ndarray) -> np.ndarray:
        directions = unit(probes)
        nulls = {size: self.random.nulls(probes, size) for size in np.unique(self._sizes[self._sizes > 0]).tolist()}
        means, deviations, most = [np.empty(0)], [np.empty(0)], np.full(len(probes), -np.inf)
        at = 0
        sql = "SELECT component, vector FROM meaning WHERE stage = ? ORDER BY component"
        for block in self._atlas.store.blocks(sql, (self.key,), _AT_ONCE):
            sizes = self._sizes[at : at + len(block["component"])]
            z = np.full((len(sizes), len(probes)), np.nan)
            for size, (mean, deviation) in nulls.items():
                rows = sizes == size
                cosines = unit(block["vector"][rows].astype(np.float64)) @ directions.T
                z[rows] = (cosines - mean) / np.maximum(deviation, EPSILON)
            centre, spread = z.mean(axis=1), z.std(axis=1, ddof=1)
            beyond = (z - centre[:, None]) / np.maximum(spread, EPSILON)[:, None]
            most = np.fmax(most, np.fmax.reduce(beyond, axis=0, initial=-np.inf))
            means.append(centre)
            deviations.append(spread)
            at += len(sizes)
        return np.concatenate([*means, *deviations, most])
