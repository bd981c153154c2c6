"""The attribution graph: which components of an earlier layer feed the components that a class rests on.

For a component k of a later layer, relevance starts at its own activation, all other components masked, and is followed back to the
earlier layer only (concept-conditional relevance: Achtibat et al., "From attribution maps to human-understandable explanations
through Concept Relevance Propagation", Nature Machine Intelligence 2023; lower-level circuits as in PURE, Dreyer et al., arXiv
2404.06453). What arrives at each component j there, summed over space, as a share of the absolute relevance that arrives, is the weight
of the edge from j to k; it is averaged over the reference samples of k. Where the audit attributes by activation x gradient, what
arrives is ``a_j * d(sum of a_k) / d a_j``.

Shapes use J components of the earlier layer, K of the later one, m reference samples, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semlens_audit import scores
from semlens_audit.atlas.opening import Atlas
from semlens_audit.component_search import cache_folder, when_finished
from semlens_audit.digest import digest, digest_file
from semlens_audit.draws import SHARE, draw_units
from semlens_audit.errors import UsageError
from semlens_audit.execution import Execution
from semlens_audit.kept_array import kept_array
from semlens_audit.places import placed_in_audit
from semlens_audit.progress import Progress, SilentProgress
from semlens_audit.statistics import student_factor
from semlens_audit.units import effective_units, reference_weights, spread_factor

if TYPE_CHECKING:
    from semlens_audit.attribution_maps import Method
    from semlens_audit.work import Bench

__all__ = ["AttributionGraph", "Edge", "Node", "attribution_graph", "edges_of"]


@dataclass(frozen=True)
class Edge:
    """How much of a component's relevance comes from a component of the layer before it.

    Parameters
    ----------
    earlier, later
        Components of the earlier and of the later layer.
    share
        Mean over the later component's reference samples of its signed share of the absolute relevance that arrives in the earlier
        layer, -1 to 1; below 0: it speaks against the later component.
    low, high
        Interval of `share` over reference samples.
    """

    earlier: int
    later: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Node:
    """A component in the graph.

    Parameters
    ----------
    layer, component
        Which.
    share
        Mean share of the class's absolute relevance in its layer, 0 to 1.
    arrived
        What arrives in the earlier layer of one unit of the component's relevance, the median over its reference samples; the rest
        is taken by biases, or passes the earlier layer by. ``None`` in the first layer, and where it was nowhere active.
    samples
        Reference samples that this is measured on.
    shown
        Share of the absolute relevance that arrives which the edges of the graph carry, 0 to 1.
    """

    layer: str
    component: int
    share: float
    arrived: float | None = None
    samples: int = 0
    shown: float = 0.0


@dataclass(frozen=True)
class AttributionGraph:
    """Layers, their components and what flows between them.

    Parameters
    ----------
    class_name
        Whose most relevant components the last layer shows.
    layers
        In the order in which the network runs them.
    nodes
        Layer -> its components: in the last layer the largest share of the class's relevance first, elsewhere what feeds most.
    edges
        Later layer -> its edges from the layer before it, ordered by later component, then by size.
    method
        ``lrp`` or ``activation_x_gradient``, for each layer that has edges.
    level
        Confidence level of the intervals.
    top, feeders
        Components of the last layer that were asked for, and most edges that lead to one component.
    device
        Where the network ran, as `semlens_audit.devices.describe` says it.
    """

    class_name: str
    layers: tuple[str, ...]
    nodes: dict[str, tuple[Node, ...]]
    edges: dict[str, tuple[Edge, ...]]
    method: dict[str, Method]
    level: float
    top: int
    feeders: int
    device: str


def attribution_graph(
    atlas: Atlas,
    class_name: str,
    *,
    top: int = 6,
    feeders: int = 4,
    most: int = 12,
    allow_code: bool = False,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> AttributionGraph:
    """The components that a class rests on most in the audit's last layer, what feeds them, and what feeds that.

    Every component's relevance is kept beside the store as soon as it is computed, so that an interrupted call goes on where it
    was, and a graph that was made once needs no pass through the network.

    Parameters
    ----------
    atlas
        The opened index, of an audit of at least two layers.
    class_name
        Class of the spec.
    top
        Components of the last layer.
    feeders
        Most edges that lead to one component: those of the largest absolute share.
    most
        Most components of every other layer: those that feed the components after them most.
    allow_code, execution
        See `semlens_audit.work.Bench`; what is computed here is computed by this process.
    progress
        Where each layer reports.

    Raises
    ------
    UsageError
        ``one-layer``: the audit has a single layer, so nothing feeds it.
    SubjectError
        ``unused-layer``, ``layers-in-parallel``: a layer does not depend on the one before it.
    """
    if len(atlas.layers) < 2:
        raise UsageError(
            "one-layer",
            "The audit has a single layer: nothing of it feeds another.",
            "Name an earlier layer in the audit's `layers` too, and index it; `semlens-audit layers` lists them.",
        )
    from semlens_audit.work import Bench

    bench = Bench(atlas.plan, atlas.data, allow_code=allow_code, execution=execution)
    circuits = _Circuits(atlas, bench, progress or SilentProgress())
    with placed_in_audit(atlas.plan):
        order = circuits.order()
        nodes, edges = _traced(atlas, circuits, order, class_name, top, feeders, most)
    return AttributionGraph(
        class_name,
        tuple(order),
        {layer: nodes[layer] for layer in order},
        {layer: edges[layer] for layer in order[1:]},
        {layer: circuits.method(before, layer) for before, layer in zip(order, order[1:], strict=False)},
        atlas.plan.audit.measurement.confidence,
        top,
        feeders,
        circuits.device,
    )


def _traced(
    atlas: Atlas, circuits: _Circuits, order: Sequence[str], class_name: str, top: int, feeders: int, most: int
) -> tuple[dict[str, tuple[Node, ...]], dict[str, tuple[Edge, ...]]]:
    """Layer -> components shown, and layer -> edges that lead to them: from the last layer of `order` back to its first."""
    position = list(atlas.plan.spec.classes).index(class_name)
    share = {layer: atlas.shares(layer)[position] for layer in order}
    last = order[-1]
    chosen = {last: _most_relevant(atlas, last, share[last], top)}
    weight = {k: float(share[last][k]) for k in chosen[last]}
    nodes: dict[str, tuple[Node, ...]] = {}
    edges: dict[str, tuple[Edge, ...]] = {}
    for earlier, later in zip(order[-2::-1], order[:0:-1], strict=True):
        found = circuits.between(earlier, later, chosen[later])
        kept = {k: edges_of(atlas, later, k, raw, feeders) for k, raw in found.items()}
        inflow = _inflow([edge for some, _ in kept.values() for edge in some], weight)
        names = sorted(inflow, key=lambda j: (-inflow[j], j))[:most]
        edges[later] = tuple(edge for some, _ in kept.values() for edge in some if edge.earlier in names)
        shown = {k: sum(abs(edge.share) for edge in edges[later] if edge.later == k) for k in kept}
        nodes[later] = tuple(
            Node(later, k, float(share[later][k]), *kept[k][1], min(shown[k], 1.0)) for k in chosen[later]
        )
        chosen[earlier], weight = names, inflow
    first = order[0]
    nodes[first] = tuple(Node(first, j, float(share[first][j])) for j in chosen[first])
    return nodes, edges


def _most_relevant(atlas: Atlas, layer: str, share: np.ndarray, top: int) -> list[int]:
    """The first components by share, of those that carry any and have a reference sample."""
    alive = (share > 0) & (atlas.layers[layer].reference_ids >= 0).any(axis=1)
    return [int(k) for k in np.argsort(-share, kind="stable") if alive[k]][:top]


def _inflow(edges: Sequence[Edge], weight: dict[int, float]) -> dict[int, float]:
    """Earlier component -> what it feeds, each edge weighted by what it leads to."""
    found: dict[int, float] = {}
    for edge in edges:
        found[edge.earlier] = found.get(edge.earlier, 0.0) + weight[edge.later] * abs(edge.share)
    return found


def edges_of(
    atlas: Atlas, later: str, component: int, raw: np.ndarray, feeders: int
) -> tuple[tuple[Edge, ...], tuple[float | None, int]]:
    """The strongest edges to a component, and its `Node.arrived` and `Node.samples`.

    Parameters
    ----------
    raw
        (m, J + 1) float64: what arrives at each component of the earlier layer on each reference sample, and last what it started
        with; rows of empty places are zero.
    feeders
        Edges to give.
    """
    source, settings = atlas.layers[later], atlas.plan.audit.measurement
    arrived, started = raw[:, :-1], raw[:, -1]
    present = (source.reference_ids[component] >= 0) & (np.abs(arrived).sum(axis=1) > 0)
    if not present.any():
        return (), (None, 0)
    size = scores.relevance_shares(arrived) * np.sign(arrived)
    point = size[present].mean(axis=0)
    ids = np.where(present, source.reference_ids[component], 0)
    units = np.where(present, atlas.evidence.units[ids], -1 - np.arange(len(ids)))[None]
    weights = reference_weights(draw_units(atlas.plan), units, present[None])[0].astype(np.float64)
    order = np.lexsort((np.arange(len(point)), -np.abs(point)))
    order = order[np.abs(point[order]) > 0][:feeders]
    drawn = weights @ size[:, order]
    worth = effective_units(units, present[None])
    factor = float(spread_factor(worth)[0]) * student_factor(float(worth[0]) - 1.0, settings.confidence)
    drawn = point[order] + (drawn - drawn.mean(axis=0)) * factor
    tail = (1.0 - settings.confidence) / 2.0
    low, high = np.clip(np.quantile(drawn, [tail, 1.0 - tail], axis=0), -SHARE[1], SHARE[1])
    some = tuple(
        Edge(int(j), component, float(point[j]), float(min(a, point[j])), float(max(b, point[j])))
        for j, a, b in zip(order, low, high, strict=True)
    )
    known = present & (started != 0)
    kept = float(np.median(arrived[known].sum(axis=1) / started[known])) if known.any() else None
    return some, (kept, int(present.sum()))


class _Circuits:
    """Relevance of earlier components for later ones: read from beside the store, or computed."""

    def __init__(self, atlas: Atlas, bench: Bench, progress: Progress) -> None:
        self._atlas, self._bench, self._progress = atlas, bench, progress
        self._code = digest([digest_file(Path(__file__).with_name(name)) for name in ("graph.py", "conditional_relevance.py")])

    @property
    def device(self) -> str:
        """Where the network runs."""
        from semlens_audit.devices import describe

        return describe(self._bench.device)

    def order(self) -> list[str]:
        """The audit's layers as the network runs them."""
        layers = list(self._atlas.layers)
        keys = sorted(self._atlas.keys[f"relevance:{layer}"] for layer in layers)
        name = digest([keys, layers, self._code])[:16]

        def find() -> np.ndarray:
            from semlens_audit.atlas.conditional_relevance import running_order

            return np.array([layers.index(layer) for layer in running_order(self._bench, layers)], dtype=np.float64)

        return [layers[int(place)] for place in kept_array(self._folder / f"{name}.order", (len(layers),), find)]

    def method(self, earlier: str, later: str) -> Method:
        """Relevance propagation where it applies to both layers."""
        chosen = self._atlas.plan.audit.measurement.attribution
        both = [self._atlas.layers[layer].chosen for layer in (earlier, later)]
        methods = {one[0] if one is not None else chosen for one in both}
        return "lrp" if methods == {"lrp"} else "activation_x_gradient"

    def between(self, earlier: str, later: str, components: Sequence[int]) -> dict[int, np.ndarray]:
        """Component of the later layer -> (m, J + 1), see `edges_of`."""
        found = {}
        with self._progress.stage(f"Attribution graph, {earlier} to {later}", len(components)) as advance:
            for component in components:
                found[component] = self._of(earlier, later, component)
                advance(1)
        return found

    def _of(self, earlier: str, later: str, component: int) -> np.ndarray:
        atlas, method = self._atlas, self.method(earlier, later)
        ids = atlas.layers[later].reference_ids[component]
        stages = [atlas.keys[f"{stage}:{layer}"] for layer in (earlier, later) for stage in ("relevance", "crops")]
        made = [when_finished(atlas.store, stage) for stage in stages]
        name = digest([stages, made, earlier, later, component, method, ids.tolist(), self.device, self._code])

        def compute() -> np.ndarray:
            from semlens_audit.atlas.conditional_relevance import conditional_relevance

            present = np.flatnonzero(ids >= 0)
            raw = np.zeros((len(ids), atlas.layers[earlier].components + 1))
            if len(present):
                samples = ids[present].tolist()
                raw[present] = conditional_relevance(self._bench, samples, earlier, later, component, method)
            return raw

        shape = (len(ids), atlas.layers[earlier].components + 1)
        return kept_array(self._folder / f"{name[:32]}.circuit", shape, compute)

    @property
    def _folder(self) -> Path:
        return cache_folder(self._atlas.store.path)
