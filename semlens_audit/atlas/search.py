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
from semlens_audit.atlas.random_sets import adjusted
from semlens_audit.atlas.rows import ComponentRow, foreign_row, own_row
from semlens_audit.atlas.searched_layer import SearchedLayer
from semlens_audit.component_search import ComponentSearch, Hit
from semlens_audit.foreign_layers import ForeignLayer, foreign_layers
from semlens_audit.wording import capital, count

__all__ = ["Found", "Search"]

_TESTED = 1000
"""Nearest components that are tested at least; what is further away counts as tested and not significant."""
_REMEMBERED = 256
"""Embeddings of queries that are kept."""
_LEAST_WORDS = 0.05
"""A text comes near to a component only where no more than this share of everyday words stand out as much anywhere."""


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
        Most everyday words, as a share, that may stand out as much; ``None`` unless a text alone was looked for.
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
            rule += f", standing out more than {100 - 100 * self.words:g}\u00a0% of everyday words"
        if not self.searched:
            return "There is no component to be searched."
        if not self.near:
            return f"Nothing here is significantly near: none {where} ({rule})."
        least = "at least " if self.near == self.tested < self.searched else ""
        verb = "is" if self.near == 1 else "are"
        return capital(f"{least}{self.near:,} {where} {verb} significantly near ({rule}).")


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
        self._layers: dict[str, SearchedLayer] = {}
        self._known: dict[str, np.ndarray] = {}
        self._others: list[ForeignLayer] | None = None

    def __call__(self, query: Query, *, layer: str | None = None, top: int = 10, everywhere: bool = False) -> Found:
        """The components nearest to a query.

        Significance is that of the audit: z against random reference sets of as many samples as the component has, its tail
        probability (`semlens_audit.atlas.random_sets.tail`), adjusted for every component searched. At least the `_TESTED` nearest
        are tested; the others count as not significant, which never makes the nearest more significant than they are. A text has to
        stand out from everyday words as well, see `semlens_audit.atlas.common_words`.

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
        layers = {one.key: one for one in self._chosen(wanted, layer, everywhere) if len(one.components)}
        excluded = (atlas.keys[f"null:{directions.excluded[0]}"], directions.excluded[1]) if directions.excluded else ("", -1)
        searched = sum(len(one.components) for one in layers.values()) - (excluded[0] in layers)
        towards = {
            key: directions.towards(one.random.centre if directions.of_layer else None) for key, one in layers.items()
        }
        column: Literal["vector", "centred"] = "centred" if directions.centred else "vector"
        hits = self._nearest.nearest(towards, column, max(top, _TESTED) + 1)
        hits = [hit for hit in hits if (hit.stage, hit.component) != excluded][: max(top, _TESTED)]
        tests = self._tested(hits, layers, towards, directions)
        fair = adjusted(np.where(np.isnan(tests.p), 1.0, tests.p), max(searched, len(hits)))
        near = (fair <= settings.false_discovery_rate) & (tests.z >= settings.significance)
        if tests.words is not None:
            near &= tests.words <= _LEAST_WORDS
        rows = []
        for i, hit in enumerate(hits[: max(top, 0)]):
            row = replace(self._row(layers[hit.stage], hit.component), similarity=hit.similarity)
            if not np.isnan(tests.z[i]):
                row = replace(
                    row, expected=float(tests.expected[i]), z=float(tests.z[i]), p=float(tests.p[i]), adjusted_p=float(fair[i]),
                    words=None if tests.words is None else float(tests.words[i]), significant=bool(near[i]),
                )  # fmt: skip
            rows.append(row)
        return Found(
            query, tuple(rows), searched, len(layers), int(near.sum()), len(hits), settings.false_discovery_rate,
            settings.significance, None if tests.words is None else _LEAST_WORDS, directions.picture,
        )  # fmt: skip

    def other(self, index: str) -> ForeignLayer:
        """The layer of another index that a row names by the first digits of its key."""
        return next(one for one in self._foreign() if one.key.startswith(index))

    def _row(self, place: SearchedLayer, component: int) -> ComponentRow:
        if place.other is None:
            return own_row(self._atlas, place.layer, component)
        return foreign_row(self._atlas, place.other, component)

    def _tested(
        self, hits: list[Hit], layers: dict[str, SearchedLayer], towards: dict[str, np.ndarray], directions: Directions
    ) -> _Tests:
        """Hold each hit against random sets of its own size, and a text against everyday words."""
        tests, beyond = _Tests(*(np.full(len(hits), np.nan) for _ in range(3))), np.full(len(hits), np.nan)
        components = np.array([hit.component for hit in hits], dtype=np.int64)
        similarity = np.array([hit.similarity for hit in hits])
        places: dict[str, list[int]] = {}
        for position, hit in enumerate(hits):
            places.setdefault(hit.stage, []).append(position)
        for stage, at in places.items():
            found = layers[stage].against_chance(towards[stage], directions.centred, components[at], similarity[at])
            tests.expected[at], tests.z[at], tests.p[at] = found
            if directions.only_text:
                beyond[at] = layers[stage].beyond_words(self._words, components[at], tests.z[at])
        if not directions.only_text:
            return tests
        # Of each word its best component anywhere, so that a text is not called near because there are many components to be near to.
        most = np.max([one.most_beyond(self._words) for one in layers.values()], axis=0, initial=-np.inf)
        as_far = (most[None] >= beyond[:, None]).sum(axis=1)
        return replace(tests, words=np.where(np.isnan(beyond), np.nan, (1 + as_far) / (1 + len(most))))

    def _chosen(self, wanted: tuple[str, ...], layer: str | None, everywhere: bool) -> list[SearchedLayer]:
        """The layers to search, in the order in which equal similarities are given."""
        others = [one for one in self._foreign() if layer is None or one.layer == layer] if everywhere else []
        asked: list[tuple[str, ForeignLayer | None]] = [*((name, None) for name in sorted(wanted)), *((one.layer, one) for one in others)]
        made = []
        for name, other in asked:
            key = self._atlas.keys[f"null:{name}"] if other is None else other.key
            if key not in self._layers:
                self._layers[key] = SearchedLayer(self._atlas, name, other)
            made.append(self._layers[key])
        return made

    def _foreign(self) -> list[ForeignLayer]:
        if self._others is None:
            keys = self._atlas.keys
            self._others = foreign_layers(self._atlas.store, keys["foundation"], set(keys.values()))
        return self._others

    def _words(self) -> np.ndarray:
        return self._remembered("words", lambda: word_probes(self._atlas))

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
