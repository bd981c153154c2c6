"""Looking into an index without auditing: components of a layer by relevance, and search by text, image or component."""

from __future__ import annotations

import numpy as np

from semlens_audit.atlas.opening import Atlas, chosen_class, chosen_layers
from semlens_audit.atlas.pages import write_page
from semlens_audit.atlas.query import Query
from semlens_audit.atlas.rows import ComponentRow, Reference, own_row
from semlens_audit.atlas.search import Found, Search
from semlens_audit.atlas.search_pages import search_page
from semlens_audit.plan import AuditPlan

__all__ = ["ComponentRow", "Explorer", "Found", "Query", "Reference", "components", "search", "write_page"]


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
        self._search = Search(self)

    def components(self, *, layer: str | None = None, class_name: str | None = None, top: int = 20) -> list[ComponentRow]:
        """The components that carry most of a class's relevance, see `components`."""
        place = list(self.plan.spec.classes).index(chosen_class(self.plan, class_name))
        rows = []
        for name in chosen_layers(self.plan, layer):
            order = np.argsort(-self.shares(name)[place], kind="stable")[:top]
            rows += [own_row(self, name, int(component)) for component in order]
        return rows

    def search(self, query: Query, *, layer: str | None = None, top: int = 10, everywhere: bool = False) -> Found:
        """The components nearest to a query, see `search`."""
        return self._search(query, layer=layer, top=top, everywhere=everywhere)

    def search_page(self, found: Found) -> str:
        """What a search found as an offline HTML page."""
        return search_page(self, self._search, found)


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


def search(plan: AuditPlan, query: Query, *, layer: str | None = None, top: int = 10, everywhere: bool = False) -> Found:
    """The components whose concept embedding is nearest to a query, over all layers; loads the foundation model if it is needed.

    A text is compared as the probe of a concept is: its mean difference to the empty prompt over the spec's templates
    (SemanticLens, arXiv 2501.05398). Images and components are compared from the centre of the layer's random crops, because
    embeddings of images crowd in a narrow cone; how they are put together says `semlens_audit.atlas.query.Directions`. The answer is
    exact however many components there are, see `semlens_audit.component_search`; of equal similarities the layer that comes first
    by name goes first, then the lower component.

    Parameters
    ----------
    plan
        The audit; its index must be complete.
    query
        What to look for.
    layer
        One of the audit's layers; ``None``: all.
    top
        Components to return.
    everywhere
        Whether to search every other index in the store too that was made with the same foundation model: other models, other
        data, older settings.

    Raises
    ------
    AuditError
        As `semlens_audit.atlas.search.Search`; ``index-incomplete``, or no store.
    """
    query.check()
    chosen_layers(plan, layer)
    with Explorer(plan) as explorer:
        return explorer.search(query, layer=layer, top=top, everywhere=everywhere)
