"""What a search found as a page: the query, the hits with what drives them, and how near is nearer than chance."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.atlas.cards import ComponentCard, card, foreign_card
from semlens_audit.atlas.common_words import WORDS
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.pages import longest_share, percent, render_page, sources
from semlens_audit.atlas.rows import ComponentRow
from semlens_audit.atlas.search import Found, Search
from semlens_audit.pages import Fact
from semlens_audit.wording import format_number

__all__ = ["format_p", "search_page"]


@dataclass(frozen=True)
class _HitView:
    """One component found, as the page shows it."""

    rank: int
    card: ComponentCard
    similarity: str
    z: str
    p: str
    words: str
    significant: bool
    model: str
    relevance: str


def search_page(atlas: Atlas, search: Search, found: Found) -> str:
    """What a search found as one offline HTML file.

    Parameters
    ----------
    atlas, search
        The opened index, and what searched in it.
    found
        What it found.
    """
    class_name = next(iter(atlas.plan.spec.classes))
    hits = [_view(atlas, search, rank + 1, row, class_name) for rank, row in enumerate(found.rows)]
    query = found.query
    asked = [
        Fact(term, text)
        for term, text in (
            ("Text", query.text),
            ("Image", query.image.name if query.image else None),
            ("Box", "{}, {} to {}, {}".format(*query.box) if query.box else None),
            ("Component", query.like),
            ("Weight of the text", f"{query.weight:g}" if query.weight != 1 else None),
            ("Without", query.without),
            ("Without the image", query.without_image.name if query.without_image else None),
        )
        if text is not None
    ]
    cards = [hit.card for hit in hits]
    return render_page(
        "atlas/search.html.j2",
        f"Components near {query.words}",
        {
            "found": found,
            "asked": tuple(asked),
            "hits": tuple(hits),
            "class_name": class_name,
            "several": len({hit.model for hit in hits}) > 1,
            "longest": longest_share(cards),
            "word_count": len(WORDS),
            "selection": atlas.plan.audit.measurement.selection,
        },
        sources=sources(atlas),
    )


def format_p(p: float | None) -> str:
    """``0.031``, or ``<0.001``; a dash where it is not known."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.9995 else "1"


def _view(atlas: Atlas, search: Search, rank: int, row: ComponentRow, class_name: str) -> _HitView:
    similarity = format_number(row.similarity or 0.0, 3)
    z = "–" if row.z is None else format_number(row.z, 1)
    words = "–" if row.words is None else percent(row.words)
    by_chance = "" if row.expected is None else f" (random sets {format_number(row.expected, 3)})"
    facts = [("similarity", similarity + by_chance), ("z", z), ("adjusted p", format_p(row.adjusted_p))]
    facts += [("everyday words that stand out as much", words)] if row.words is not None else []
    model = row.model or ""
    if row.index is None:
        shown = card(atlas, row.layer, row.component, facts=facts)
    else:
        shown = foreign_card(atlas, search.other(row.index), row.component, facts=[*facts, ("model", model)])
    relevance = percent(row.share[class_name]) if class_name in row.share else "–"
    return _HitView(rank, shown, similarity, z, format_p(row.adjusted_p), words, bool(row.significant), model, relevance)
