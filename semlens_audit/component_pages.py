"""The part of a report's section on the change that shows what became of the components."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.atlas import comparison_words as words
from semlens_audit.atlas.measure_figures import Dot, DotRow, Span, dots
from semlens_audit.component_changes import ComponentChanges, LayerChanges, Side
from semlens_audit.component_words import KINDS, NO_CHECK, ChangedRow, changed_rows, heading, opening, similarity_sentences
from semlens_audit.figures import Figure, Palette
from semlens_audit.pages import Table
from semlens_audit.records import AuditRecord
from semlens_audit.wording import capital, count, format_number

__all__ = ["ChangedComponent", "ChangedComponents", "ChangedGroup", "ChangedLayer", "ChangedPicture", "changed_components"]

_WIDTH = 650
_CONCEPTS = 8
"""Concepts that are drawn, those that changed most; the table has all."""
_LEADS = {
    "learned": "Nothing in the baseline means what these do.",
    "lost": "Nothing in this model means what these did.",
    "became": "Similar to one of the baseline beyond chance, but counted for something else than it.",
    "moved": "The same meaning as in the baseline, with another weight in the decision.",
}


@dataclass(frozen=True)
class ChangedPicture:
    """A reference sample of a component."""

    uri: str
    """``data:`` URI of the part that drives it."""
    when: str
    """``then`` or ``now``, where both of a pair are shown; else empty."""
    alt: str
    activation: str
    sample: str


@dataclass(frozen=True)
class ChangedComponent:
    """A component, or both of a pair."""

    title: str
    text: str
    pictures: tuple[ChangedPicture, ...]


@dataclass(frozen=True)
class ChangedGroup:
    """Components to which the same happened."""

    title: str
    lead: str
    components: tuple[ChangedComponent, ...]
    more: str


@dataclass(frozen=True)
class ChangedLayer:
    """Two layers held against each other."""

    title: str
    sentences: tuple[str, ...]
    similarity: Figure
    similarities: Table
    states: Table
    concepts: Figure | None
    concept_table: Table | None
    groups: tuple[ChangedGroup, ...]


@dataclass(frozen=True)
class ChangedComponents:
    """All of it."""

    opening: str
    no_check: str
    made: str
    remarks: tuple[str, ...]
    layers: tuple[ChangedLayer, ...]


def changed_components(record: AuditRecord, palette: Palette) -> ChangedComponents | None:
    """What became of the components since the baseline; None where the record does not say.

    Parameters
    ----------
    record
        What was found.
    palette
        Colours of the medium.
    """
    found = record.change.components if record.change is not None else None
    if found is None:
        return None
    shown: set[tuple[Side, str, int]] = set()
    return ChangedComponents(
        opening=opening(found.layers),
        no_check=NO_CHECK,
        made=_made(found),
        remarks=tuple(remark.replace("`", "") for remark in found.remarks),
        layers=tuple(_layer(record, found, layer, palette, shown) for layer in found.layers),
    )


def _made(found: ComponentChanges) -> str:
    if found.source == "store":
        return "Made from both indexes, which lay in one store when this audit ran."
    digests = ", ".join(digest[:12] for digest in found.files)
    files = "a comparison" if len(found.files) == 1 else "comparisons"
    return f"Taken from {files} handed over as a file ({digests}…), whose models, data and indexes are those of both records."


def _layer(
    record: AuditRecord, found: ComponentChanges, layer: LayerChanges, palette: Palette, shown: set[tuple[Side, str, int]]
) -> ChangedLayer:
    labels = {concept.id: concept.label for concept in record.concepts}
    title = heading(layer)
    concepts, table = _concepts(layer, labels, palette)
    return ChangedLayer(
        title=f"Components of {title}",
        sentences=(*layer.sentences, *similarity_sentences(layer)),
        similarity=_similarity(layer, palette),
        similarities=Table(
            caption=f"Set similarity: mean cosine with the most similar component of the other side; {title}",
            head=("Components of", "Seen", "Weighted", "Value, interval", "Other components", "Random sets"),
            rows=tuple(words.similarity_rows(layer)),
            numeric=(5,),
        ),
        states=Table(
            caption=f"What became of the components; {title}",
            head=("Side", "State", "Components", "Relevance"),
            rows=tuple(words.state_rows(layer)),
            numeric=(2,),
        ),
        concepts=concepts,
        concept_table=table,
        groups=_groups(record, found, layer, labels, shown),
    )


def _similarity(layer: LayerChanges, palette: Palette) -> Figure:
    held = [row for row in layer.similarities if row.origin == "centre"]
    rows = [
        DotRow(
            words.side_name(layer, row.of) + ("" if row.weighting is None else ", by relevance"),
            (Dot(row.measurement, row.population, filled=row.of == "second", colour="soft" if row.of == "first" else "ink"),),
            row.chance,
        )
        for row in held
    ]
    ends = [
        end
        for row in held
        for spread in (row.measurement.interval, row.population)
        if spread is not None
        for end in (spread.low, spread.high)
    ]
    ends += [row.chance for row in held if row.chance is not None]
    alt = f"Set similarity, {heading(layer)}. {' '.join(similarity_sentences(layer))}"
    return dots(rows, Span.holding("cosine", ends, min([0.0, *ends])), palette, alt, _WIDTH)


def _concepts(layer: LayerChanges, labels: dict[str, str], palette: Palette) -> tuple[Figure | None, Table | None]:
    if not layer.concept_shares:
        return None, None

    def name(concept: str | None) -> str:
        return "unexplained" if concept is None else labels.get(concept, concept)

    every = words.by_change(layer)
    held = every[:_CONCEPTS]
    then, now = words.side_name(layer, "first"), words.side_name(layer, "second")
    rows = [DotRow(name(row.concept), (Dot(row.first, filled=False, colour="soft"), Dot(row.second))) for row in held]
    ends = [side.interval.high for row in held for side in (row.first, row.second) if side.interval is not None]
    said = "; ".join(f"{name(row.concept)} {words.percent(row.first.value)} and {words.percent(row.second.value)}" for row in held)
    figure = dots(
        rows, Span.holding("share", ends, 0.0), palette, f"Share of the relevance for {layer.class_name} in {then} and {now}: {said}.",
        _WIDTH,
    )  # fmt: skip
    table = Table(
        caption=f"Relevance by concept; {heading(layer)}",
        head=("Concept", then, now, "Change, percentage points", "Beyond noise"),
        rows=tuple(
            (
                name(row.concept),
                words.between(row.first),
                words.between(row.second),
                words.points(row.change),
                "yes" if row.changed else "no",
            )
            for row in every
        ),
    )
    return figure, table


def _groups(
    record: AuditRecord,
    found: ComponentChanges,
    layer: LayerChanges,
    labels: dict[str, str],
    shown: set[tuple[Side, str, int]],
) -> tuple[ChangedGroup, ...]:
    totals = {name: sum(row.components for row in layer.shares if row.state == name) for name in ("learned", "lost")}
    totals |= {"became": layer.shifted, "moved": layer.reweighted}
    rows = changed_rows(layer, labels)
    groups = []
    for kind, lead in _LEADS.items():
        own = [row for row in rows if row.kind == kind]
        if not own:
            continue
        rest = totals[kind] - len(own)
        noun = "more component" if kind in ("learned", "lost") else "more pair"
        groups.append(
            ChangedGroup(
                title=capital(KINDS[kind]),
                lead=lead,
                components=tuple(_component(record, found, layer, row, shown) for row in own),
                more=f"and {count(rest, noun)}" if rest > 0 else "",
            )
        )
    return tuple(groups)


def _component(
    record: AuditRecord, found: ComponentChanges, layer: LayerChanges, row: ChangedRow, shown: set[tuple[Side, str, int]]
) -> ChangedComponent:
    pair = row.first is not None and row.second is not None
    pictures: list[ChangedPicture] = []
    for side, number, word in (("first", row.first, "then"), ("second", row.second, "now")):
        if number is None:
            continue
        own: Side = "first" if side == "first" else "second"
        place = layer.first.layer if own == "first" else layer.second.layer
        if (own, place, number) not in shown:
            shown.add((own, place, number))
            pictures += _pictures(record, found, own, place, number, word if pair else "")
    title = f"Component {row.first} then, {row.second} now" if pair else f"Component {row.first if row.second is None else row.second}"
    relevance = "" if layer.class_name is None else f"; {row.relevance if pair else f'{row.relevance} of the relevance'}"
    partner = "similarity" if pair else "nearest on the other side"
    return ChangedComponent(
        title=title,
        text=f"{capital(row.counted)}{relevance}; {partner} {row.similarity}",
        pictures=tuple(pictures),
    )


def _pictures(
    record: AuditRecord, found: ComponentChanges, side: Side, layer: str, component: int, when: str
) -> tuple[ChangedPicture, ...]:
    own = next((one for one in found.portraits if (one.side, one.layer, one.component) == (side, layer, component)), None)
    if own is None:
        return ()
    whose = "the baseline's" if side == "first" else "this model's"
    return tuple(
        ChangedPicture(
            uri=f"data:image/jpeg;base64,{record.images[reference.image]}",
            when=when,
            alt=f"Crop of {reference.sample} that drives {whose} component {component}.",
            activation=format_number(reference.activation, 2),
            sample=reference.sample,
        )
        for reference in own.references
    )
