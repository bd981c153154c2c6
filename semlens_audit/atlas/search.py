"""Search: the components nearest to a text, an image or a component, and whether they are nearer than chance would bring them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from semlens_audit.atlas.common_words import word_probes
from semlens_audit.atlas.opening import Atlas, chosen_layers
from semlens_audit.atlas.query import Directions, Query
from semlens_audit.atlas.query_images import embed_one, image_key
from semlens_audit.atlas.random_sets import RandomSets, adjusted, set_sizes
from semlens_audit.atlas.rows import ComponentRow, foreign_row, own_row
from semlens_audit.component_search import ComponentSearch, Hit
from semlens_audit.foreign_layers import ForeignLayer, foreign_layers
from semlens_audit.scores import EPSILON, unit
from semlens_audit.units import effective_units
from semlens_audit.vectors import null_vectors
from semlens_audit.wording import capital, count

__all__ = ["Found", "Search"]

_TESTED = 1000
"""Nearest components that are tested at least; what is further away counts as tested and not significant."""
_REMEMBERED = 256
"""Embeddings of queries that are kept."""
_LEAST_WORDS = 0.05
"""A text comes near to a component only where no more than this share of everyday words come as near."""
_HELD = 20_000
"""Components whose nearness to everyday words is kept."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Parameters
    ----------
    query
        What was looked for.
    rows
        The nearest components, nearest first.
    searched, layers
        Components and layers that were searched.
    near
        Components among the nearest `tested` that are significantly near.
    tested
        Components that significance was found for.
    rate
        False-discovery rate among those called significantly near.
    least_z
        Least z that counts.
    words
        Most everyday words, as a share, that may come as near; ``None`` unless a text alone was looked for.
    picture
        JPEG of the image that was looked for.
    """

    query: Query
    rows: tuple[ComponentRow, ...]
    searched: int
    layers: int
    near: int
    tested: int
    rate: float
    least_z: float
    words: float | None = None
    picture: bytes | None = None

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        where = f"of {count(self.searched, 'component')} in {count(self.layers, 'layer')}"
        rule = f"false-discovery rate {100 * self.rate:g}\u00a0%, z at least {self.least_z:g}"
        if self.words is not None:
            rule += f", nearer than {100 - 100 * self.words:g}\u00a0% of everyday words"
        if not self.searched:
            return "There is no component to be searched."
        if not self.near:
            return f"Nothing here is significantly near: {where}, none comes nearer than chance would bring it ({rule})."
        least = "at least " if self.near == self.tested < self.searched else ""
        verb = "is" if self.near == 1 else "are"
        return capital(f"{least}{self.near:,} {where} {verb} significantly near ({rule}).")


@dataclass(frozen=True)
class _Place:
    """A layer that is searched: the audit's own, or another index's."""

    layer: str
    key: str
    pool: str
    other: ForeignLayer | None


@dataclass(frozen=True)
class _Tests:
    """What random sets, and everyday words, say of each hit; all (n,), NaN where the layer has too few random crops."""

    expected: np.ndarray
    z: np.ndarray
    p: np.ndarray
    words: np.ndarray | None = None


class Search:
    """Searches in an opened index; keeps what it has read and drawn for the next query.

    Parameters
    ----------
    atlas
        The opened index.
    """

    def __init__(self, atlas: Atlas) -> None:
        self._atlas, self._nearest = atlas, ComponentSearch(atlas.store)
        self._sets: dict[str, RandomSets] = {}
        self._sizes: dict[str, dict[int, int]] = {}
        self._components: dict[str, int] = {}
        self._known: dict[str, np.ndarray] = {}
        self._near_words: dict[str, dict[int, np.ndarray]] = {}
        self._others: list[ForeignLayer] | None = None

    def __call__(self, query: Query, *, layer: str | None = None, top: int = 10, everywhere: bool = False) -> Found:
        """The components nearest to a query.

        Significance is that of the audit: z against random reference sets of as many samples as the component has, its tail
        probability (`semlens_audit.atlas.random_sets.tail`), adjusted for every component searched. At least the `_TESTED` nearest
        are tested; the others count as not significant, which never makes the nearest more significant than they are. A text has to
        come nearer than everyday words as well (`semlens_audit.atlas.common_words`), by z, since words differ in how much random
        sets scatter along them.

        Parameters
        ----------
        query
            What to look for.
        layer
            One of the audit's layers; ``None``: all.
        top
            Components to return.
        everywhere
            Whether to search every other index in the store too that was made with the same foundation model.

        Raises
        ------
        UsageError
            ``no-query``, ``box-without-image``, ``bad-weight``, ``weight-without-text``, ``empty-query``, ``nothing-left``,
            ``unknown-layer``, ``component-name``, ``unknown-component``, ``dead-component``.
        DataError
            An image that cannot be read; ``box-outside-image``.
        SubjectError
            ``no-text-tower``.
        StoreError
            ``store-damaged``.
        """
        atlas, settings = self._atlas, self._atlas.plan.audit.measurement
        wanted = chosen_layers(atlas.plan, layer)
        directions = Directions(atlas, query, self._embedded, self._probe)
        places = {place.key: place for place in self._places(wanted, layer, everywhere)}
        column: Literal["vector", "centred"] = "centred" if directions.centred else "vector"
        own = atlas.keys[f"null:{directions.excluded[0]}"] if directions.excluded else None
        searched = sum(self._count(key) for key in places) - (own in places)
        towards = {
            key: directions.towards(self._random(place).centre if directions.of_layer else None)
            for key, place in places.items()
            if self._count(key)
        }
        hits = self._nearest.nearest(towards, column, max(top, _TESTED) + 1)
        hits = [hit for hit in hits if (hit.stage, hit.component) != (own, directions.excluded and directions.excluded[1])]
        hits = hits[: max(top, _TESTED)]
        tests = self._tested(hits, places, towards, directions)
        fair = adjusted(np.where(np.isnan(tests.p), 1.0, tests.p), max(searched, len(hits)))
        near = (fair <= settings.false_discovery_rate) & (tests.z >= settings.significance)
        if tests.words is not None:
            near &= tests.words <= _LEAST_WORDS
        rows = []
        for i, hit in enumerate(hits[: max(top, 0)]):
            row = replace(self._row(places[hit.stage], hit.component), similarity=hit.similarity)
            if not np.isnan(tests.z[i]):
                row = replace(
                    row, expected=float(tests.expected[i]), z=float(tests.z[i]), p=float(tests.p[i]), adjusted_p=float(fair[i]),
                    words=None if tests.words is None else float(tests.words[i]), significant=bool(near[i]),
                )  # fmt: skip
            rows.append(row)
        return Found(
            query, tuple(rows), searched, len(towards), int(near.sum()), len(hits), settings.false_discovery_rate,
            settings.significance, None if tests.words is None else _LEAST_WORDS, directions.picture,
        )  # fmt: skip

    def other(self, index: str) -> ForeignLayer:
        """The layer of another index that a row names by the first digits of its key."""
        return next(one for one in self._foreign() if one.key.startswith(index))

    def _row(self, place: _Place, component: int) -> ComponentRow:
        if place.other is None:
            return own_row(self._atlas, place.layer, component)
        return foreign_row(self._atlas, place.other, component)

    def _tested(
        self, hits: list[Hit], places: dict[str, _Place], towards: dict[str, np.ndarray], directions: Directions
    ) -> _Tests:
        """Hold each hit against random sets of its own size."""
        tests = _Tests(*(np.full(len(hits), np.nan) for _ in range(3)))
        words = np.full(len(hits), np.nan) if directions.only_text else None
        groups: dict[tuple[str, int], list[int]] = {}
        for position, hit in enumerate(hits):
            groups.setdefault((hit.stage, self._size(places[hit.stage], hit.component)), []).append(position)
        for (stage, size), at in groups.items():
            random = self._random(places[stage])
            if size < 2 or len(random) < size:
                continue
            null = random.null(towards[stage], size, directions.centred)
            values = np.array([hits[position].similarity for position in at])
            tests.expected[at], tests.z[at], tests.p[at] = null.expected, null.z(values), null.p(values)
            if words is not None:
                others = self._words(places[stage], size, [hits[position].component for position in at])
                as_near = (others >= tests.z[at][:, None]).sum(axis=1)
                words[at] = (1 + as_near) / (1 + others.shape[1])
        return replace(tests, words=words)

    def _words(self, place: _Place, size: int, components: list[int]) -> np.ndarray:
        """(n, W) z of components' similarity with everyday words."""
        if sum(map(len, self._near_words.values())) > _HELD:
            self._near_words.clear()
        known = self._near_words.setdefault(place.key, {})
        missing = [component for component in components if component not in known]
        if missing:
            probes = self._remembered("words", lambda: word_probes(self._atlas))
            mean, deviation = self._random(place).nulls(probes, size)
            rows = self._atlas.store.arrays(
                "SELECT component, vector FROM meaning WHERE stage = ? AND component IN (SELECT unnest(?::INTEGER[]))",
                (place.key, missing),
            )
            z = (unit(rows["vector"].astype(np.float64)) @ unit(probes).T - mean) / np.maximum(deviation, EPSILON)
            known.update(zip(rows["component"].tolist(), z, strict=True))
        return np.stack([known[component] for component in components])

    def _places(self, wanted: tuple[str, ...], layer: str | None, everywhere: bool) -> list[_Place]:
        keys = self._atlas.keys
        own = [_Place(name, keys[f"null:{name}"], keys["foundation"], None) for name in sorted(wanted)]
        others = [one for one in self._foreign() if layer is None or one.layer == layer] if everywhere else []
        return own + [_Place(one.layer, one.key, one.pool, one) for one in others]

    def _foreign(self) -> list[ForeignLayer]:
        if self._others is None:
            keys = self._atlas.keys
            self._others = foreign_layers(self._atlas.store, keys["foundation"], set(keys.values()))
        return self._others

    def _count(self, key: str) -> int:
        if key not in self._components:
            ((rows,),) = self._atlas.store.rows("SELECT count(*) FROM meaning WHERE stage = ?", (key,))
            self._components[key] = int(rows)
        return self._components[key]

    def _random(self, place: _Place) -> RandomSets:
        if place.key not in self._sets:
            pool = (
                self._atlas.layers[place.layer].null_embeddings
                if place.other is None
                else null_vectors(self._atlas.store, place.key, place.pool)
            )
            self._sets[place.key] = RandomSets(self._atlas.plan, place.layer, pool)
        return self._sets[place.key]

    def _size(self, place: _Place, component: int) -> int:
        """Size of the random sets that a component is held against; 0 for one with fewer than two reference samples."""
        if place.key not in self._sizes:
            names, counts = self._counts(place)
            enough = counts >= 2
            usual = round(float(np.median(counts[enough]))) if enough.any() else 2
            sizes = np.where(enough, set_sizes(counts, usual), 0)
            self._sizes[place.key] = dict(zip(names.tolist(), sizes.tolist(), strict=True))
        return self._sizes[place.key].get(component, 0)

    def _counts(self, place: _Place) -> tuple[np.ndarray, np.ndarray]:
        """Components of a layer, and how many independent reference samples each has."""
        atlas, other = self._atlas, place.other
        if other is None:
            source = atlas.layers[place.layer]
            present = source.reference_ids >= 0
            units = np.where(present, atlas.evidence.units[source.reference_ids], -1 - np.arange(present.shape[1]))
            counts = np.where(source.dead, 0.0, effective_units(units, present))
            return np.arange(len(counts)), counts
        rows = atlas.store.arrays(
            "SELECT component, count(*) AS samples FROM reference WHERE stage = ? AND rank < ? GROUP BY component",
            (other.references, other.declared),
        )
        return rows["component"], rows["samples"].astype(np.float64)

    def _probe(self, text: str) -> np.ndarray:
        return self._remembered(f"text {text}", lambda: self._atlas.text_probe(text))

    def _embedded(self, image: Image.Image) -> np.ndarray:
        return self._remembered(f"image {image_key(image)}", lambda: embed_one(self._atlas.foundation, image))

    def _remembered(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self._known:
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = make()
        return self._known[key]
