"""Looking into an index without auditing: components of a layer by relevance, and search by text or image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semlens_audit import scores
from semlens_audit.component_search import ComponentSearch, cache_folder, when_finished
from semlens_audit.data import open_data
from semlens_audit.digest import digest, digest_array
from semlens_audit.errors import StoreError, UsageError
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.flow import class_shares
from semlens_audit.foreign_layers import ForeignLayer, foreign_layers
from semlens_audit.index import evidence_stages, load_evidence
from semlens_audit.kept_array import kept_array
from semlens_audit.memory import divide
from semlens_audit.paths import store_path
from semlens_audit.plan import AuditPlan
from semlens_audit.probe_texts import prompts
from semlens_audit.store import Store
from semlens_audit.vectors import null_vectors

if TYPE_CHECKING:
    from types import TracebackType

    from semlens_audit.foundation import Foundation

__all__ = ["ComponentRow", "Explorer", "Reference", "components", "search"]

_NEIGHBOURS = 5


@dataclass(frozen=True)
class Reference:
    """One reference sample.

    Parameters
    ----------
    sample
        Path relative to the data's root; ``sample N`` where the data is another audit's.
    activation
        Pooled activation.
    box
        Crop x0, y0, x1, y1 in pixels of the network's input.
    """

    sample: str
    activation: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class ComponentRow:
    """One component of a layer, as a listing shows it.

    Parameters
    ----------
    layer, component
        Which.
    dead
        Never above zero on the data.
    share
        Class of the spec -> mean share of the class's absolute relevance in the layer, 0 to 1; empty for another index.
    references
        Its first reference samples, highest activation first.
    similarity
        Cosine between its concept embedding and the query, -1 to 1; ``None`` in a listing without a query.
    index
        ``None`` for the audit's own index; of another index in the store, the first 12 digits of the stage that holds the concept
        embeddings.
    """

    layer: str
    component: int
    dead: bool
    share: dict[str, float]
    references: tuple[Reference, ...]
    similarity: float | None = None
    index: str | None = None


class Explorer:
    """The index of an audit, opened once for any number of questions; reads the store only, and loads what a question needs once.

    Parameters
    ----------
    plan
        The audit; its index must be complete.
    max_memory
        Bytes of main memory that may be used, or ``None``: as much as it takes.

    Raises
    ------
    StoreError
        ``index-incomplete``, or no store.
    """

    def __init__(self, plan: AuditPlan, max_memory: int | None = None) -> None:
        self._plan = plan
        self._store = Store.open(store_path(plan), read_only=True, memory_limit=divide(max_memory).database)
        try:
            self._data = open_data(plan, self._store.file_digest)
            self._keys = evidence_stages(plan, self._data, self._store)
            if not self._store.complete(list(self._keys.values())):
                raise _incomplete(self._store)
        except BaseException:
            self._store.close()
            raise
        self._search = ComponentSearch(self._store)
        self._centres: dict[str, np.ndarray] = {}
        self._shares: dict[str, np.ndarray] = {}
        self._foundation: Foundation | None = None

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    @cached_property
    def _evidence(self) -> Evidence:
        found = load_evidence(self._plan, self._data, self._store)
        if found is None:
            raise _incomplete(self._store)
        return found

    @cached_property
    def _sources(self) -> dict[str, LayerEvidence]:
        return {source.layer: source for source in self._evidence.layers}

    def components(self, *, layer: str | None = None, class_name: str | None = None, top: int = 20) -> list[ComponentRow]:
        """The components that carry most of a class's relevance, see `components`."""
        names = list(self._plan.spec.classes)
        chosen = names[0] if class_name is None else class_name
        if chosen not in names:
            raise UsageError("unknown-class", f"The spec has no class {chosen!r}.", f"Its classes: {', '.join(names)}.")
        rows = []
        for name in _layers(self._plan, layer):
            order = np.argsort(-self._share(name)[names.index(chosen)], kind="stable")[:top]
            rows += [self._row(name, int(component)) for component in order]
        return rows

    def search(
        self, *, text: str | None = None, image: Path | None = None, layer: str | None = None, top: int = 10,
        everywhere: bool = False,
    ) -> list[ComponentRow]:  # fmt: skip
        """The components whose concept embedding is nearest to a text or an image, see `search`."""
        if (text is None) == (image is None):
            raise UsageError(
                "one-query", "Search needs a text or an image, and not both.", 'Write e.g. search AUDIT.yaml "a ruler".'
            )
        wanted = {self._keys[f"null:{name}"]: name for name in sorted(_layers(self._plan, layer))}
        others = foreign_layers(self._store, self._keys["foundation"], set(self._keys.values())) if everywhere else []
        others = [one for one in others if layer is None or one.layer == layer]
        query = self._query(text, image)
        pools = dict.fromkeys(wanted, self._keys["foundation"]) | {one.key: one.pool for one in others}
        directions = {key: query if image is None else query - self._centre(key, pool) for key, pool in pools.items()}
        hits = self._search.nearest(directions, "vector" if image is None else "centred", top)
        foreign = {one.key: one for one in others}
        return [
            self._row(wanted[hit.stage], hit.component, hit.similarity)
            if hit.stage in wanted
            else self._foreign_row(foreign[hit.stage], hit.component, hit.similarity)
            for hit in hits
        ]

    def _query(self, text: str | None, image: Path | None) -> np.ndarray:
        from semlens_audit.foundation import load_foundation
        from semlens_audit.images import read_image

        if self._foundation is None:
            self._foundation = load_foundation(self._plan)
        foundation = self._foundation
        if image is not None:
            return foundation.embed_images([read_image(Path(image))])[0].astype(np.float64)
        templates = self._plan.spec.templates
        described = foundation.embed_texts(prompts(templates, [text or ""])).astype(np.float64)
        empty = foundation.embed_texts(prompts(templates, [""])).astype(np.float64)
        probe = np.asarray(scores.template_probes(described[None], empty)[0])
        if not probe.any():
            raise UsageError("empty-query", f"The text {text!r} says nothing.", 'Write what to look for, e.g. "a ruler".')
        return probe

    def _centre(self, null: str, pool: str) -> np.ndarray:
        if null not in self._centres:
            self._centres[null] = null_vectors(self._store, null, pool).astype(np.float64).mean(axis=0)
        return self._centres[null]

    def _share(self, layer: str) -> np.ndarray:
        """(C, K) mean share of each component; read from relevance once, and kept beside the store where that can be written."""
        if layer not in self._shares:
            evidence = self._evidence
            stage = self._keys[f"relevance:{layer}"]
            counted = [digest_array(evidence.labels), list(evidence.audited), stage, when_finished(self._store, stage)]
            self._shares[layer] = kept_array(
                cache_folder(self._store.path) / f"{stage}.{digest(counted)[:16]}.shares",
                (len(evidence.audited), len(self._sources[layer].dead)),
                lambda: class_shares(self._sources[layer], evidence.labels, evidence.audited),
            )
        return self._shares[layer]

    def _row(self, layer: str, component: int, similarity: float | None = None) -> ComponentRow:
        source, share = self._sources[layer], self._share(layer)
        ids, paths = source.reference_ids[component], self._evidence.paths
        references = tuple(
            Reference(
                sample=paths[int(ids[rank])],
                activation=float(source.activations[component, rank]),
                box=tuple(int(value) for value in source.boxes[component, rank]),  # type: ignore[arg-type]
            )
            for rank in np.flatnonzero(ids >= 0)[:_NEIGHBOURS]
        )
        shares = {name: float(share[i, component]) for i, name in enumerate(self._plan.spec.classes)}
        return ComponentRow(layer, component, bool(source.dead[component]), shares, references, similarity)

    def _foreign_row(self, source: ForeignLayer, component: int, similarity: float) -> ComponentRow:
        known = [sample.path for sample in self._data.samples] if source.data == self._data.sha256 else None
        rows = self._store.rows(
            "SELECT sample, activation, x0, y0, x1, y1 FROM reference JOIN crop USING (component, rank, sample) "
            "WHERE reference.stage = ? AND crop.stage = ? AND component = ? ORDER BY rank LIMIT ?",
            (source.references, source.crops, component, min(_NEIGHBOURS, source.declared)),
        )
        references = tuple(
            Reference(f"sample {sample}" if known is None else known[sample], float(activation), tuple(box))  # type: ignore[arg-type]
            for sample, activation, *box in rows
        )
        return ComponentRow(source.layer, component, False, {}, references, similarity, index=source.key[:12])


def components(
    plan: AuditPlan, *, layer: str | None = None, class_name: str | None = None, top: int = 20
) -> list[ComponentRow]:
    """The components that carry most of a class's relevance, most relevant first; reads the store only.

    Parameters
    ----------
    plan
        The audit; its index must be complete.
    layer
        One of the audit's layers; ``None``: each of them, one after the other.
    class_name
        Class of the spec; ``None``: the first.
    top
        Components of each layer.

    Raises
    ------
    UsageError
        ``unknown-layer``, ``unknown-class``.
    StoreError
        ``index-incomplete``, or no store.
    """
    with Explorer(plan) as explorer:
        return explorer.components(layer=layer, class_name=class_name, top=top)


def search(
    plan: AuditPlan, *, text: str | None = None, image: Path | None = None, layer: str | None = None, top: int = 10,
    everywhere: bool = False,
) -> list[ComponentRow]:  # fmt: skip
    """The components whose concept embedding is nearest to a text or an image, over all layers; loads the foundation model.

    A text is compared as the probe of a concept is: its mean difference to the empty prompt over the spec's templates
    (SemanticLens, arXiv 2501.05398). An image is compared from the centre of the layer's random crops, because embeddings of
    images crowd in a narrow cone. The answer is exact however many components there are, see `semlens_audit.component_search`;
    of equal similarities the layer that comes first by name goes first, then the lower component.

    Parameters
    ----------
    plan
        The audit; its index must be complete.
    text, image
        Exactly one of them.
    layer
        One of the audit's layers; ``None``: all.
    top
        Components to return.
    everywhere
        Whether to search every other index in the store too that was made with the same foundation model: other models, other
        data, older settings.

    Raises
    ------
    UsageError
        Neither or both of `text` and `image`; ``unknown-layer``.
    SubjectError
        ``no-text-tower``: the foundation model cannot read text.
    StoreError
        ``index-incomplete``, ``store-damaged``, or no store.
    """
    _layers(plan, layer)
    with Explorer(plan) as explorer:
        return explorer.search(text=text, image=image, layer=layer, top=top, everywhere=everywhere)


def _layers(plan: AuditPlan, layer: str | None) -> tuple[str, ...]:
    if layer is None:
        return plan.audit.layers
    if layer not in plan.audit.layers:
        raise UsageError("unknown-layer", f"The audit has no layer {layer!r}.", f"Its layers: {', '.join(plan.audit.layers)}.")
    return (layer,)


def _incomplete(store: Store) -> StoreError:
    return StoreError(
        "index-incomplete",
        "The index of this audit is not complete.",
        "Run `semlens-audit index` with it first.",
        file=str(store.path),
    )
