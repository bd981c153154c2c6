"""Looking into an index without auditing: components of a layer by relevance, and search by text or image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semlens_audit.atlas.opening import Atlas, chosen_class, chosen_layers
from semlens_audit.component_search import ComponentSearch
from semlens_audit.errors import UsageError
from semlens_audit.foreign_layers import ForeignLayer, foreign_layers
from semlens_audit.plan import AuditPlan

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


class Explorer(Atlas):
    """Listings and searches in the index of an audit, opened once for any number of them.

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
        super().__init__(plan, max_memory)
        self._search = ComponentSearch(self.store)

    def components(self, *, layer: str | None = None, class_name: str | None = None, top: int = 20) -> list[ComponentRow]:
        """The components that carry most of a class's relevance, see `components`."""
        place = list(self.plan.spec.classes).index(chosen_class(self.plan, class_name))
        rows = []
        for name in chosen_layers(self.plan, layer):
            order = np.argsort(-self.shares(name)[place], kind="stable")[:top]
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
        wanted = {self.keys[f"null:{name}"]: name for name in sorted(chosen_layers(self.plan, layer))}
        others = foreign_layers(self.store, self.keys["foundation"], set(self.keys.values())) if everywhere else []
        others = [one for one in others if layer is None or one.layer == layer]
        query = self.text_probe(text or "") if image is None else self.image_embedding(image)
        pools = dict.fromkeys(wanted, self.keys["foundation"]) | {one.key: one.pool for one in others}
        directions = {key: query if image is None else query - self.centre_of(key, pool) for key, pool in pools.items()}
        hits = self._search.nearest(directions, "vector" if image is None else "centred", top)
        foreign = {one.key: one for one in others}
        return [
            self._row(wanted[hit.stage], hit.component, hit.similarity)
            if hit.stage in wanted
            else self._foreign_row(foreign[hit.stage], hit.component, hit.similarity)
            for hit in hits
        ]

    def _row(self, layer: str, component: int, similarity: float | None = None) -> ComponentRow:
        source, share = self.layers[layer], self.shares(layer)
        ids, paths = source.reference_ids[component], self.evidence.paths
        references = tuple(
            Reference(
                sample=paths[int(ids[rank])],
                activation=float(source.activations[component, rank]),
                box=tuple(int(value) for value in source.boxes[component, rank]),  # type: ignore[arg-type]
            )
            for rank in np.flatnonzero(ids >= 0)[:_NEIGHBOURS]
        )
        shares = {name: float(share[i, component]) for i, name in enumerate(self.plan.spec.classes)}
        return ComponentRow(layer, component, bool(source.dead[component]), shares, references, similarity)

    def _foreign_row(self, source: ForeignLayer, component: int, similarity: float) -> ComponentRow:
        known = [sample.path for sample in self.data.samples] if source.data == self.data.sha256 else None
        rows = self.store.rows(
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
    chosen_layers(plan, layer)
    with Explorer(plan) as explorer:
        return explorer.search(text=text, image=image, layer=layer, top=top, everywhere=everywhere)
