"""A description on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from semlens_audit.atlas.description import Description, LayerDescription
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
from semlens_audit.terminal import Text
from semlens_audit.wording import count, format_number

__all__ = ["print_description"]


def print_description(
    found: Description, *, top: int, graph: AttributionGraph | None = None, files: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print what a class rests on.

    Parameters
    ----------
    found
        What was found.
    top
        Groups and components of each layer to print.
    graph
        Printed below, where it was asked for.
    files
        Files written.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    for layer in found.layers:
        for sentence in sentences(layer, found.class_name, run=found.run is not None):
            console.print(Text(sentence))
        console.print()
        console.print(_groups(layer, found, top))
        if rest := shown_groups(layer, top)[1]:
            share = percent(sum(group.share for group in rest))
            console.print(Text(f"and {count(len(rest), 'more group')} with {share}", style="dim"))
        console.print()
        console.print(_components(layer, found, top))
        console.print()
    if graph is not None:
        console.print(_edges(graph))
        console.print()
    for path in files:
        console.print(Text(path, style="cyan"), soft_wrap=True)


def _table(*heads: tuple[str, bool]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    for name, numeric in heads:
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric or name.startswith("first"), overflow="fold")
    return table


def _groups(layer: LayerDescription, found: Description, top: int) -> Table:
    table = _table(("meaning", False), ("relevance", True), ("speaks", False), ("likeness", True), ("components", False))
    for group in shown_groups(layer, top)[0]:
        shown = " ".join(str(number) for number in group.components[:6])
        more = f" and {len(group.components) - 6} more" if len(group.components) > 6 else ""
        cells = [group_name(group), percent(group.share), direction(group.signed, found.class_name), likeness_text(group), shown + more]
        table.add_row(*map(Text, cells))
    return table


def _components(layer: LayerDescription, found: Description, top: int) -> Table:
    heads = [("component", True), ("relevance", True), ("together", True), ("signed", True), ("clarity", True), ("meaning", False)]
    table = _table(*heads, ("first sample", False))
    titles = {group.concept: group.name for group in layer.groups if group.concept is not None}
    for one in layer.described[:top]:
        clarity = "–" if one.clarity is None else format_number(one.clarity, 2)
        cells = [str(one.component), percent(one.share), percent(one.cumulative), format_number(one.signed, 2, sign=True), clarity]
        table.add_row(*map(Text, [*cells, meaning(one, titles), Path(one.references[0].sample).name if one.references else "never active"]))
    return table


def _edges(graph: AttributionGraph) -> Table:
    table = _table(("component", False), ("is fed by", False), ("share", True), (f"{100 * graph.level:g} % interval", True))
    for earlier, later in zip(graph.layers, graph.layers[1:], strict=False):
        for edge in graph.edges[later]:
            interval = f"{percent(edge.low)} to {percent(edge.high)}"
            table.add_row(*map(Text, [f"{later}:{edge.later}", f"{earlier}:{edge.earlier}", percent(edge.share), interval]))
    return table
