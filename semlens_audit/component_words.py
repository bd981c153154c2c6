"""What is said of components that changed, on a terminal, in Markdown and on pages alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semlens_audit.atlas import comparison_words as words
from semlens_audit.component_changes import LayerChanges, Pair, SetSimilarity, Single
from semlens_audit.wording import count, format_number

__all__ = ["KINDS", "NO_CHECK", "ChangedRow", "changed_rows", "counts", "heading", "opening", "similarity_sentences"]

NO_CHECK = "No check rests on this: it says where to look, and changes neither a result nor the decision on the release."
KINDS: dict[str, str] = {
    "learned": "learned",
    "lost": "lost",
    "became": "counted for another concept",
    "moved": "changed in relevance",
}


@dataclass(frozen=True)
class ChangedRow:
    """A component without a partner, or a pair.

    Parameters
    ----------
    kind
        Key into `KINDS`.
    first, second
        Component of the baseline and of what is audited now; ``None`` for none.
    counted
        What it is counted for.
    relevance
        Its share of the class's relevance, or the change in percentage points.
    similarity
        With its partner, or the nearest of the other side.
    """

    kind: str
    first: int | None
    second: int | None
    counted: str
    relevance: str
    similarity: str


def heading(layer: LayerChanges) -> str:
    """``layer3, relevance for melanoma``; both layers where they differ."""
    names = layer.first.layer if layer.first.layer == layer.second.layer else f"{layer.first.layer} and {layer.second.layer}"
    return names if layer.class_name is None else f"{names}, relevance for {layer.class_name}"


def opening(layers: Sequence[LayerChanges]) -> str:
    """What was held against what, in one sentence."""
    names = list(dict.fromkeys((layer.first.model, layer.second.model) for layer in layers))
    both = " and ".join(names[0]) if names[0][0] != names[0][1] else f"{names[0][0]}, then and now"
    classes = list(dict.fromkeys(layer.class_name for layer in layers if layer.class_name is not None))
    relevance = f", with relevance for {', '.join(classes)}" if classes else ""
    return f"The components of {both}, held against each other by what drives them{relevance}."


def counts(layer: LayerChanges) -> str:
    """How many pairs there are, and how many components only one side has."""
    held = {name: sum(row.components for row in layer.shares if row.state == name) for name in ("learned", "lost", "open")}
    return (
        f"{count(layer.pairs, 'pair')}, of which {layer.shifted:,} counted for another concept and {layer.changed:,} changed in "
        f"relevance; {held['learned']:,} learned, {held['lost']:,} lost, {held['open']:,} open"
    )


def similarity_sentences(layer: LayerChanges) -> list[str]:
    """How similar the layers are, seen from the centre of random crops, with intervals."""
    return [_similarity(layer, row) for row in layer.similarities if row.origin == "centre" and row.weighting is None]


def _similarity(layer: LayerChanges, row: SetSimilarity) -> str:
    own, other = words.side_name(layer, row.of), words.side_name(layer, "second" if row.of == "first" else "first")
    found = row.measurement
    if found.value is None:
        return f"How near components of {own} come to those of {other} was not measured: {found.not_measured}"
    chance = "" if row.chance is None else f"; random sets reach {format_number(row.chance, 2)}"
    return f"Components of {own} come as near as {words.cosine(found.value, found.interval)} to those of {other} on average{chance}."


def changed_rows(layer: LayerChanges, labels: Mapping[str, str] | None = None) -> list[ChangedRow]:
    """Those that tell most: learned, lost, counted for another concept, changed in relevance.

    Parameters
    ----------
    labels
        Concept -> what it is called; left out: its id.
    """
    named = labels or {}

    def concept(name: str | None) -> str:
        return "no concept" if name is None else named.get(name, name)

    def single(kind: str, one: Single) -> ChangedRow:
        then, now = (None, one.component) if one.side == "second" else (one.component, None)
        near = words.cosine(one.similarity, one.interval)
        return ChangedRow(kind, then, now, concept(one.concept), words.percent(one.share), near)

    def pair(kind: str, one: Pair) -> ChangedRow:
        apart = one.first_concept != one.second_concept and one.shifted
        counted = f"{concept(one.first_concept)} → {concept(one.second_concept)}" if apart else concept(one.second_concept)
        moved = f"{words.percent(one.first_share)} → {words.percent(one.second_share)}, {words.points(one.change)} points"
        return ChangedRow(
            kind, one.first, one.second, counted, "–" if one.change is None else moved, words.cosine(one.similarity, one.interval)
        )

    rows = [single("learned", one) for one in layer.learned] + [single("lost", one) for one in layer.lost]
    return rows + [pair("became", one) for one in layer.became] + [pair("moved", one) for one in layer.moved]
