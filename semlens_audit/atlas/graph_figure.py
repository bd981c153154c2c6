"""The attribution graph as a picture: layers as columns, components with what drives them, lines as wide as what flows."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from semlens_audit.atlas.graph import AttributionGraph, Edge, Node
from semlens_audit.figures import Figure, Palette, caption, drawing, escape
from semlens_audit.wording import NARROW, join

__all__ = ["draw_graph", "graph_sentence", "graph_values"]

VERSION = 1
"""Of the shape of `graph_values`."""

_WIDTH = 864
_BOX = (176, 58)
_ROW = 72
_TOP = 34
_WIDEST = 30.0
"""Pixels of a line that stands for all of a component's relevance."""


def graph_values(graph: AttributionGraph) -> dict[str, Any]:
    """A graph as JSON-ready values: ``{"document": "attribution-graph", "version": 1, ...}`` with the fields of `AttributionGraph`."""
    return {"document": "attribution-graph", "version": VERSION, **asdict(graph)}


def graph_sentence(graph: AttributionGraph, names: Mapping[tuple[str, int], str]) -> str:
    """What the picture shows, for whoever does not see it: each component of the last layer with its strongest feeder."""
    said = []
    last, before = graph.layers[-1], graph.layers[-2]
    for node in graph.nodes[last]:
        own = [edge for edge in graph.edges[last] if edge.later == node.component]
        if own:
            first = max(own, key=lambda edge: abs(edge.share))
            fed = _named(before, first.earlier, names)
            said.append(f"{_named(last, node.component, names)} most by {fed} ({100 * first.share:.0f}{NARROW}%)")
    return f"Attribution graph from {graph.layers[0]} to {last}. Fed are: {join(said)}." if said else "Attribution graph without edges."


def draw_graph(
    graph: AttributionGraph,
    palette: Palette,
    names: Mapping[tuple[str, int], str],
    pictures: Mapping[tuple[str, int], bytes],
    place: Callable[[bytes], str] | None = None,
) -> Figure:
    """The picture of a graph.

    Components of a layer stand in the order of what they feed, so that few lines cross. A line is as wide as the share it stands for;
    a dashed one is a share below zero.

    Parameters
    ----------
    graph
        What to draw.
    palette
        Colours of the medium.
    names
        (layer, component) -> what it means; those that mean nothing known are left out.
    pictures
        (layer, component) -> JPEG of the crop of its first reference sample.
    place
        Gives the address under which a picture is found; default: a ``data:`` URI.
    """
    place = place or (lambda jpeg: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii"))
    ordered = _ordered(graph)
    tallest = max(len(nodes) for nodes in ordered.values())
    height = _TOP + tallest * _ROW
    gap = (_WIDTH - 2 - _BOX[0]) / max(len(graph.layers) - 1, 1)
    where: dict[tuple[str, int], tuple[float, float]] = {}
    for column, layer in enumerate(graph.layers):
        offset = _TOP + (tallest - len(ordered[layer])) * _ROW / 2
        for row, node in enumerate(ordered[layer]):
            where[layer, node.component] = (1 + column * gap, offset + row * _ROW)
    body = "".join(
        caption(column * gap + _BOX[0] / 2, 16, layer, palette.soft, 12) for column, layer in enumerate(graph.layers)
    )
    for earlier, later in zip(graph.layers, graph.layers[1:], strict=False):
        for edge in sorted(graph.edges[later], key=lambda edge: abs(edge.share)):
            body += _line(where[earlier, edge.earlier], where[later, edge.later], edge, palette)
    longest = max((node.share for nodes in ordered.values() for node in nodes), default=0.0) or 1.0
    for nodes in ordered.values():
        for node in nodes:
            key = (node.layer, node.component)
            address = place(pictures[key]) if key in pictures else None
            body += _node(where[key], node, names.get(key, ""), address, longest, palette)
    return drawing(_WIDTH, height, body, graph_sentence(graph, names), palette)


def _named(layer: str, component: int, names: Mapping[tuple[str, int], str]) -> str:
    name = names.get((layer, component))
    return f"component {component} of {layer}" + (f" ({name})" if name else "")


def _ordered(graph: AttributionGraph) -> dict[str, list[Node]]:
    """Nodes of each layer, by the weighted mean position of what they feed (barycentre heuristic; Sugiyama et al. 1981)."""
    last = graph.layers[-1]
    ordered = {last: list(graph.nodes[last])}
    for earlier, later in zip(graph.layers[-2::-1], graph.layers[:0:-1], strict=True):
        position = {node.component: float(row) for row, node in enumerate(ordered[later])}

        def middle(node: Node, later: str = later, position: dict[int, float] = position) -> float:
            own = [(abs(edge.share), position[edge.later]) for edge in graph.edges[later] if edge.earlier == node.component]
            total = sum(weight for weight, _ in own)
            return sum(weight * at for weight, at in own) / total if total else 0.0

        ordered[earlier] = sorted(graph.nodes[earlier], key=lambda node: (middle(node), node.component))
    return {layer: ordered[layer] for layer in graph.layers}


def _line(start: tuple[float, float], end: tuple[float, float], edge: Edge, palette: Palette) -> str:
    x0, y0, x1, y1 = start[0] + _BOX[0], start[1] + _BOX[1] / 2, end[0], end[1] + _BOX[1] / 2
    bend = (x1 - x0) / 2
    colour, dashes = (palette.valid, "") if edge.share >= 0 else (palette.spurious, "stroke-dasharray:6 4;")
    width = max(1.0, _WIDEST * abs(edge.share))
    path = f"M{x0:.1f} {y0:.1f}C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    title = escape(f"{edge.earlier} feeds {edge.later}: {100 * edge.share:.0f} % ({100 * edge.low:.0f} to {100 * edge.high:.0f} %)")
    style = f"fill:none;stroke:{colour};stroke-width:{width:.1f};stroke-opacity:.55;{dashes}"
    return f'<path d="{path}" style="{style}"><title>{title}</title></path>'


def _node(
    at: tuple[float, float], node: Node, name: str, address: str | None, longest: float, palette: Palette
) -> str:
    x, y = at
    width, height = _BOX
    body = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height}" rx="3" '
        f'style="fill:{palette.paper};stroke:{palette.line}"/>'
    )
    side = height - 10
    if address is not None:
        body += f'<image x="{x + 5:.1f}" y="{y + 5:.1f}" width="{side}" height="{side}" href="{address}" aria-hidden="true"/>'
    left, room = x + side + 12, width - side - 18
    body += caption(left, y + 17, str(node.component), palette.ink, 12.5, "start")
    body += caption(left, y + 32, name if len(name) <= 18 else name[:17] + "…", palette.soft, 10.5, "start")
    body += f'<rect x="{left:.1f}" y="{y + 41:.1f}" width="{room - 34:.1f}" height="7" style="fill:{palette.line}"/>'
    part = (room - 34) * node.share / longest
    body += f'<rect x="{left:.1f}" y="{y + 41:.1f}" width="{part:.1f}" height="7" style="fill:{palette.ink}"/>'
    return body + caption(x + width - 5, y + 48.5, f"{100 * node.share:.1f} %", palette.ink, 10, "end")
