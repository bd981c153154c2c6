"""A description as a page: how relevance divides, each group with what drives its components, and the attribution graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from semlens_audit.atlas.cards import ComponentCard, card
from semlens_audit.atlas.description import Described, Description, Group, LayerDescription
from semlens_audit.atlas.description_words import (
    direction,
    group_name,
    likeness_text,
    meaning,
    percent,
    sentences,
    shown_groups,
)
from semlens_audit.atlas.graph import AttributionGraph
from semlens_audit.atlas.graph_figure import draw_graph
from semlens_audit.atlas.label_pages import format_p
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.pages import longest_share, render_page, sources
from semlens_audit.figures import SCREEN, Figure, Segment, stacked
from semlens_audit.pages import Fact, Table
from semlens_audit.wording import NARROW, count, format_number, join

__all__ = ["description_page"]

_CARDS = 3
"""Components of a group that are shown with pictures."""
_PICTURES = 6
_RANKED = 15


@dataclass(frozen=True)
class _GroupView:
    title: str
    role: str
    facts: str
    cards: tuple[ComponentCard, ...]
    pointers: str


@dataclass(frozen=True)
class _LayerView:
    layer: str
    sentences: tuple[str, ...]
    bar: Figure | None
    groups: Table
    components: Table
    shown: tuple[_GroupView, ...]
    left_out: str


class _GraphView:
    """The graph, drawn when it is known where its pictures go."""

    def __init__(self, atlas: Atlas, graph: AttributionGraph, found: Description) -> None:
        self._graph = graph
        self._names = _names(atlas, found)
        keys = [(layer, node.component) for layer in graph.layers for node in graph.nodes[layer]]
        self._pictures = {key: atlas.thumbnail(*key, 0)[0] for key in keys if (atlas.layers[key[0]].reference_ids[key[1], 0]) >= 0}
        self.sentences = _graph_sentences(graph)
        self.table = self._table()

    def figure(self, place: Callable[[bytes], str]) -> Figure:
        """The picture; `place` gives the address of a JPEG."""
        return draw_graph(self._graph, SCREEN, self._names, self._pictures, place)

    def _table(self) -> Table:
        graph, rows = self._graph, []
        for earlier, later in zip(graph.layers, graph.layers[1:], strict=False):
            for edge in graph.edges[later]:
                interval = f"{percent(edge.low)} to {percent(edge.high)}"
                rows.append((self._name(later, edge.later), self._name(earlier, edge.earlier), percent(edge.share), interval))
        head = ("Component", "Fed by", "Share", f"{100 * graph.level:g}{NARROW}% interval")
        return Table("The graph as a table", head, tuple(rows), numeric=(2, 3))

    def _name(self, layer: str, component: int) -> str:
        name = self._names.get((layer, component))
        return f"{layer}: {component}" + (f", {name}" if name else "")


def description_page(atlas: Atlas, found: Description, graph: AttributionGraph | None = None, *, groups: int = 12) -> str:
    """A description as one offline HTML file.

    Parameters
    ----------
    atlas
        The opened index.
    found
        What to show.
    graph
        Shown too where it is given.
    groups
        Most groups of each layer that are shown with pictures.
    """
    layers = tuple(_layer(atlas, found, one, groups) for one in found.layers)
    cards = [shown for layer in layers for group in layer.shown for shown in group.cards]
    return render_page(
        "atlas/description.html.j2",
        f"What the decision for {found.class_name} rests on",
        {
            "found": found,
            "layers": layers,
            "graph": None if graph is None else _GraphView(atlas, graph, found),
            "longest": longest_share(cards),
            "attribution": join([f"{name}: {source.attribution}" for name, source in atlas.layers.items()]),
        },
        sources=(*sources(atlas), *_asked(found)),
    )


def _asked(found: Description) -> tuple[Fact, ...]:
    run = f"those of the run of {found.run}" if found.run else "none: no run of this spec and audit has assigned any"
    words = f"{found.vocabulary}; false-discovery rate {100 * (found.level or 0):g}{NARROW}%" if found.vocabulary else "none"
    return (
        Fact("Concepts", run),
        Fact("Vocabulary of labels", words),
        Fact("Alike", f"mean cosine of concept embeddings of at least {found.likeness:g} within a group, average linkage"),
    )


def _names(atlas: Atlas, found: Description) -> dict[tuple[str, int], str]:
    names = {}
    for layer in found.layers:
        for one in layer.described:
            if one.concept is not None:
                names[layer.layer, one.component] = atlas.plan.spec.concept(one.concept).label
            elif one.label is not None:
                names[layer.layer, one.component] = f"“{one.label.word}”"
    return names


def _layer(atlas: Atlas, found: Description, layer: LayerDescription, groups: int) -> _LayerView:
    shown, rest = shown_groups(layer, groups)
    left = f"{count(len(rest), 'more group')}, {percent(sum(group.share for group in rest))} of the relevance." if rest else ""
    return _LayerView(
        layer=layer.layer,
        sentences=sentences(layer, found.class_name, run=found.run is not None),
        bar=_bar(layer, found.class_name),
        groups=_group_table(shown, found.class_name, layer),
        components=_component_table(layer, found),
        shown=tuple(_group(atlas, found, layer, group) for group in shown),
        left_out=left,
    )


def _bar(layer: LayerDescription, class_name: str) -> Figure | None:
    """How relevance divides over roles; ``None`` where no run has assigned concepts."""
    if not layer.roles:
        return None
    words = [f"{percent(share)} {role}" for role, share in layer.roles.items()]
    alt = f"Relevance for {class_name} in {layer.layer}: {join(words)}."
    segments = [Segment(role, share, f"{100 * share:.0f}{NARROW}%") for role, share in layer.roles.items()]
    return stacked(segments, SCREEN, alt, 864)


def _group_table(groups: Sequence[Group], class_name: str, layer: LayerDescription) -> Table:
    rows = tuple(
        (group_name(group), percent(group.share), direction(group.signed, class_name), likeness_text(group), str(len(group.components)))
        for group in groups
    )
    head = ("Meaning", "Relevance", "Speaks", "Likeness", "Components")
    return Table(f"What components of {layer.layer} mean", head, rows, numeric=(1, 3, 4))


def _component_table(layer: LayerDescription, found: Description) -> Table:
    titles = {group.concept: group.name for group in layer.groups if group.concept is not None}
    rows = tuple(
        (
            str(one.component),
            percent(one.share),
            percent(one.cumulative),
            format_number(one.signed, 2, sign=True),
            "–" if one.clarity is None else format_number(one.clarity, 2),
            _meaning(one, titles),
        )
        for one in layer.described[:_RANKED]
    )
    head = ("Component", "Relevance", "With all above", "Signed", "Clarity", "Meaning")
    return Table(f"The {len(rows)} components that carry most", head, rows, numeric=(1, 2, 3, 4))


def _meaning(one: Described, titles: Mapping[str, str]) -> str:
    sure = f" (z {format_number(one.label.z, 1)})" if one.concept is None and one.label is not None else ""
    return meaning(one, titles) + sure


def _group(atlas: Atlas, found: Description, layer: LayerDescription, group: Group) -> _GroupView:
    members = [layer.component(number) for number in group.components]
    facts = [f"{percent(group.share)} of the relevance, speaks {direction(group.signed, found.class_name)}"]
    facts += [f"likeness {likeness_text(group)}"] if group.likeness is not None else []
    rest = members[_CARDS:]
    pointers = ""
    if rest:
        listed = join([f"{one.component} ({percent(one.share)})" for one in rest[:12]])
        pointers = f"Further: {listed}" + (f", and {len(rest) - 12:,} more." if len(rest) > 12 else ".")
    return _GroupView(
        title=group_name(group)[:1].upper() + group_name(group)[1:],
        role=group.role or "unexplained",
        facts=", ".join(facts),
        cards=tuple(_card(atlas, found, layer.layer, one) for one in members[:_CARDS]),
        pointers=pointers,
    )


def _card(atlas: Atlas, found: Description, layer: str, one: Described) -> ComponentCard:
    label, note = None, ""
    if one.label is not None:
        label, note = f"“{one.label.word}”", f"z {format_number(one.label.z, 1)}, p {format_p(one.label.p)}"
    if one.concept is not None:  # the group's heading names what it counts for; a word beside it is only a remark
        word = f"; nearest word {label} ({note})" if label else ""
        label, note = None, f"counted for {atlas.plan.spec.concept(one.concept).label}{word}"
    elif label:
        note = f"label: {note}"
    facts = [("signed", format_number(one.signed, 2, sign=True))]
    return card(atlas, layer, one.component, label=label, label_note=note, facts=facts, references=_PICTURES)


def _graph_sentences(graph: AttributionGraph) -> tuple[str, ...]:
    methods = {"lrp": "relevance propagation from its own activation", "activation_x_gradient": "activation x gradient"}
    used = join(sorted({methods[method] for method in graph.method.values()}))
    kept = [node for layer in graph.layers[1:] for node in graph.nodes[layer] if node.arrived is not None]
    said = [
        f"The {len(graph.nodes[graph.layers[-1]])} components of {graph.layers[-1]} that carry most of the relevance for"
        f" {graph.class_name}, and what feeds them: for each component at most {graph.feeders} components of the layer before, those of"
        f" the largest share, by {used}, averaged over its reference samples."
    ]
    if kept:
        arrived = sorted(node.arrived for node in kept if node.arrived is not None)
        shown = sorted(node.shown for node in kept)
        said.append(
            f"Of a component's relevance, {100 * arrived[0]:.0f} to {100 * arrived[-1]:.0f}{NARROW}% arrive in the layer before; the rest"
            f" is taken by biases or passes that layer by. Shares are of what arrives; the lines shown carry {100 * shown[0]:.0f} to"
            f" {100 * shown[-1]:.0f}{NARROW}% of it."
        )
    return tuple(said)
