"""A comparison of layers as a page: what moved, what was learned and lost, and the components themselves, side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace

from semlens_audit.atlas import comparison_words as words
from semlens_audit.atlas.cards import ComponentCard, card
from semlens_audit.atlas.compared import Comparison, LayerComparison, Pair, Side, Single
from semlens_audit.atlas.measure_figures import Dot, DotRow, PairPoint, Span, dots, pair_plot
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.pages import longest_share, render_page, sources
from semlens_audit.atlas.telling import kinds
from semlens_audit.figures import SCREEN, Figure
from semlens_audit.pages import Fact, Table
from semlens_audit.wording import count, format_number

__all__ = ["comparison_page"]

_PICTURES = 4


@dataclass(frozen=True)
class _PairView:
    """Two cards side by side, and what is said of the pair."""

    sentence: str
    first: ComponentCard
    second: ComponentCard


@dataclass(frozen=True)
class _Group:
    """Components in one state."""

    title: str
    lead: str
    cards: tuple[ComponentCard, ...]
    pairs: tuple[_PairView, ...]
    more: str


@dataclass(frozen=True)
class _Section:
    """One pair of layers."""

    title: str
    sentences: tuple[str, ...]
    concepts: Figure | None
    concept_table: Table | None
    states: Table
    similarities: Table
    plot: Figure | None
    groups: tuple[_Group, ...]


def comparison_page(first: Atlas, second: Atlas, found: Comparison, *, top: int = 8) -> str:
    """A comparison as one offline HTML file.

    Parameters
    ----------
    first, second
        The open indexes.
    found
        What was found in them.
    top
        Components or pairs of each kind that are shown with pictures.
    """
    sections = [_section(first, second, layer, top) for layer in found.layers]
    groups = [group for section in sections for group in section.groups]
    shown = [one for group in groups for one in group.cards]
    shown += [one for group in groups for pair in group.pairs for one in (pair.first, pair.second)]
    both = (first,) if first is second else (first, second)
    made = [
        Fact(f"{fact.term}, {side}" if len(both) > 1 else fact.term, fact.text)
        for side, atlas in zip(("first", "second"), both, strict=False)
        for fact in sources(atlas)
    ]
    names = (first.plan.audit.audit, second.plan.audit.audit)
    title = f"{names[0]} and {names[1]}" if names[0] != names[1] else f"Two sides of {names[0]}"
    return render_page(
        "atlas/compare.html.j2",
        title,
        {
            "compared": tuple(sections),
            "remarks": found.remarks,
            "class_name": found.class_name,
            "longest": longest_share(shown),
            "paired": all(layer.paired_samples for layer in found.layers),
        },
        sources=made,
    )


def _section(first: Atlas, second: Atlas, found: LayerComparison, top: int) -> _Section:
    names = (words.side_name(found, "first"), words.side_name(found, "second"))
    figure = table = None
    if found.concept_shares:
        labels = {concept.id: concept.label for concept in first.plan.spec.concepts}
        rows = [
            DotRow(labels.get(row.concept or "", "unexplained"), (Dot(row.first, filled=False, colour="soft"), Dot(row.second)))
            for row in words.by_change(found)
        ]
        alt = f"Share of the relevance for {found.class_name} by concept in {names[0]} and {names[1]}: " + "; ".join(
            f"{labels.get(row.concept or '', 'unexplained')} {words.percent(row.first.value)} and {words.percent(row.second.value)}"
            for row in found.concept_shares
        )
        ends = [side.interval.high for row in found.concept_shares for side in (row.first, row.second) if side.interval is not None]
        figure = dots(rows, Span.holding("share", ends, 0.0), SCREEN, f"{alt}.")
        table = Table(
            caption=f"Relevance for {found.class_name} by concept",
            head=("Concept", names[0], names[1], "Change, percentage points", "Beyond noise"),
            rows=tuple(
                (
                    labels.get(row.concept or "", "unexplained"),
                    words.between(row.first),
                    words.between(row.second),
                    words.points(row.change),
                    "yes" if row.changed else "no",
                )
                for row in words.by_change(found)
            ),
        )
    return _Section(
        title=f"{found.first.layer} of {found.first.audit} and {found.second.layer} of {found.second.audit}",
        sentences=tuple(words.sentences(found)),
        concepts=figure,
        concept_table=table,
        states=Table(
            caption="What became of the components",
            head=("Side", "State", "Components", "Relevance"),
            rows=tuple(words.state_rows(found)),
            numeric=(2,),
        ),
        similarities=Table(
            caption="Set similarity: mean cosine with the most similar component of the other side",
            head=("Components of", "Seen", "Weighted", "Value, interval", "Other components", "Random sets"),
            rows=tuple(words.similarity_rows(found)),
            numeric=(5,),
        ),
        plot=_plot(second, found, names),
        groups=tuple(_groups(first, second, found, top)),
    )


def _plot(second: Atlas, found: LayerComparison, names: tuple[str, str]) -> Figure | None:
    shares = [(pair, pair.first_share, pair.second_share) for pair in found.pairs]
    roles = {concept.id: concept.role_for(found.class_name or "") for concept in second.plan.spec.concepts}
    marks = [
        PairPoint(one, other, roles.get(pair.second_concept or "", "unexplained"), pair.shifted)
        for pair, one, other in shares
        if one is not None and other is not None
    ]
    if not marks:
        return None
    alt = (
        f"{count(len(marks), 'pair')} of components by their share of relevance for {found.class_name} in {names[0]} (across) and in "
        f"{names[1]} (up); {sum(mark.shifted for mark in marks):,} are counted for another concept."
    )
    return pair_plot(marks, names, SCREEN, alt)


def _groups(first: Atlas, second: Atlas, found: LayerComparison, top: int) -> list[_Group]:
    out = []
    every = kinds(found)
    for title, lead, members in (
        ("Learned", "Only the second side has components like these.", every.learned),
        ("Lost", "Only the first side has components like these.", every.lost),
    ):
        cards = tuple(_single_card(second if one.side == "second" else first, found, one) for one in members[:top])
        if members:
            out.append(_Group(title, lead, cards, (), _more(len(members) - top, "component")))
    for title, lead, pairs in (
        ("Counted for another concept", "Similar beyond chance, but each side is counted for something else.", every.became),
        ("Changed in relevance", "The same meaning with another weight in the decision.", every.moved),
        ("Unchanged", "The same meaning with the same weight.", every.same),
    ):
        views = tuple(_pair_view(first, second, found, pair) for pair in pairs[:top])
        if pairs:
            out.append(_Group(title, lead, (), views, _more(len(pairs) - top, "pair")))
    return out


def _more(number: int, noun: str) -> str:
    return f"and {count(number, f'more {noun}')}" if number > 0 else ""


def _named(made: ComponentCard, found: LayerComparison, side: Side) -> ComponentCard:
    """The card with its side, which also keeps anchors apart."""
    return replace(made, index=words.side_name(found, side) if found.first.audit != found.second.audit else side)


def _single_card(atlas: Atlas, found: LayerComparison, one: Single) -> ComponentCard:
    layer = found.second.layer if one.side == "second" else found.first.layer
    facts = [("counted for", one.concept)] if one.concept is not None else []
    if one.nearest is not None:
        facts.append((f"nearest on the other side: component {one.nearest} at", words.cosine(one.similarity, one.interval)))
    if one.level is not None:
        facts.append(("random sets reach", format_number(one.level, 2)))
    made = card(atlas, layer, one.component, facts=facts, references=6)
    return replace(_named(made, found, one.side), label_note=f"{one.reason[0].upper()}{one.reason[1:]}.")


def _pair_view(first: Atlas, second: Atlas, found: LayerComparison, pair: Pair) -> _PairView:
    said = f"Similarity {words.cosine(pair.similarity, pair.interval)}"
    if pair.shifted:
        said += f"; counted for {pair.first_concept or 'no concept'} in the first, for {pair.second_concept or 'no concept'} in the second"
    if pair.change is not None:
        said += f"; relevance for {found.class_name} {words.points(pair.change)} percentage points"
        said += "" if pair.changed else ", within noise"
    one = _named(card(first, found.first.layer, pair.first, references=_PICTURES), found, "first")
    other = _named(card(second, found.second.layer, pair.second, references=_PICTURES), found, "second")
    return _PairView(f"{said}.", one, other)
