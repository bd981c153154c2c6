"""Conditional relevance of many components at once: a recorded forward pass, run backward for several conditions an image.

The rules are those of `lrp_rules`; what differs is what is computed once. Every rule that relevance meets between a layer and the
pixels, except the flat rule of the first convolution, gives relevance that is proportional to the value it arrives at,
``R = x * G``. So relevance is kept as such a product: the scale x is the same for all conditions of an image, passes unchanged
through elementwise functions, and is multiplied with the factor 1 / z of the next operation once for all conditions. What is left
per condition and convolution is one product and one transposed convolution, on as many rows at once as the processor's caches
hold; where maps grow, rows are divided. In bfloat16 only what is multiplied is rounded: sums are single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from semlens_audit.lrp_rules import Passed, Prepared, Ruled, Summed, prepared, share

__all__ = ["Conditional"]

_ROWS = 4 << 20
"""Bytes of the largest tensor of one run; several of them pass through a cache of the second level."""


@dataclass
class _Term:
    """A part of the relevance at one place of the graph: ``scale * value``."""

    scale: torch.Tensor | None
    """(B, ...) as the forward pass has it, or ``None``: one."""
    value: torch.Tensor
    """(C * B, ...), conditions outermost."""
    own: bool = True
    """Whether nothing else holds `value`, so that it may be written to."""
    channel: torch.Tensor | None = None
    """(C * B,) where all but one channel of each row are zero: which one, and `value` is (C * B, 1, ...)."""


_Edge = tuple[int, int]
_Pending = dict[_Edge, list[_Term]]


class Conditional:
    """The way from a layer back to the input of one batch of images, for any number of conditions.

    Parameters
    ----------
    activation
        (B, K, ...) output of the layer, with the graph that `RelevanceModel.up_to` records.
    inputs
        (B, 3, S, S) leaf of that graph.
    dtype
        What is multiplied: ``torch.float32`` or ``torch.bfloat16``.
    side
        Of the map that is wanted: relevance is followed back no further than to the first map of at least this side that all of it
        passes through. ``None``, or no such map: to the pixels.
    """

    def __init__(
        self, activation: torch.Tensor, inputs: torch.Tensor, dtype: torch.dtype = torch.float32, side: int | None = None
    ) -> None:
        first = torch.autograd.graph.get_gradient_edge(activation)
        self._activation = activation.detach()
        self._output = first.output_nr
        self._inputs = inputs
        self._dtype = dtype
        self._side = side
        self._batch = len(inputs)
        self._nodes = _consumers_first(first.node)
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self._cuts = self._find_cuts()
        self._prepared: dict[int, Prepared] = {}
        self._factors: dict[int, torch.Tensor] = {}
        self._totals: set[int] = set()
        self._scales: dict[tuple[object, ...], torch.Tensor] = {}

    def __call__(self, components: torch.Tensor) -> torch.Tensor:
        """Relevance of the input, summed over colours, for each condition alone.

        Parameters
        ----------
        components
            (C, B) int64: component of each condition and image.

        Returns
        -------
        torch.Tensor
            (C, B, S, S) float32, or smaller maps where `side` stops them. A row depends on its image, its component and C alone.
        """
        activation, conditions = self._activation, len(components)
        components = components.to(activation.device)
        start = activation[torch.arange(self._batch, device=activation.device), components].to(self._dtype).unsqueeze(2)
        whole = _Term(None, start.flatten(0, 1), channel=components.flatten())
        found = self._flow(0, {(0, self._output): [whole]}, conditions)
        self._factors.clear()  # whatever they are multiplied with has been
        return found

    # -- the graph

    def _find_cuts(self) -> dict[int, int]:
        """Place of every node that all relevance passes through -> rows that go on from there at once."""
        reached, cuts = {0}, []
        for place, node in enumerate(self._nodes):
            reached.discard(place)
            if not reached:
                cuts.append(place)
            reached |= {self._places[after] for after, _ in node.next_functions if after in self._places}
        width = torch.finfo(self._dtype).bits // 8
        result = {}
        for place, end in zip(cuts, [*cuts[1:], len(self._nodes)], strict=True):
            largest = max((_size(node) for node in self._nodes[place:end]), default=1)
            result[place] = max(1, _power_of_two(_ROWS // max(1, largest * width)))
        return result

    def _flow(self, first: int, pending: _Pending, conditions: int) -> torch.Tensor:
        """Send what is pending at the cut `first` on to the input; (C, B, ...) what arrives."""
        found: torch.Tensor | None = None
        for place in range(first, len(self._nodes)):
            if place in self._cuts:
                terms = [term for terms in pending.values() for term in terms]
                if self._side is not None and place and terms and _map_side(terms[0].value) >= self._side:
                    return self._arrived(terms, conditions)
                step = self._cuts[place]
                if step < conditions:
                    parts = [slice(start, min(start + step, conditions)) for start in range(0, conditions, step)]
                    return torch.cat([self._flow(place, self._part(pending, part), part.stop - part.start) for part in parts])
            node = self._nodes[place]
            outputs = {edge[1]: pending.pop(edge) for edge in [edge for edge in pending if edge[0] == place]}
            if outputs and getattr(node, "variable", None) is self._inputs:
                found = self._arrived(outputs[0], conditions)
            elif outputs and not hasattr(node, "variable"):
                for (after, output), terms in zip(node.next_functions, self._back(place, node, outputs, conditions), strict=True):
                    if after is not None and terms:
                        _merge(pending.setdefault((self._places[after], output), []), terms)
        if found is None:
            found = self._inputs.new_zeros(conditions, self._batch, *self._inputs.shape[2:])
        return found

    def _part(self, pending: _Pending, part: slice) -> _Pending:
        rows = slice(part.start * self._batch, part.stop * self._batch)
        return {
            edge: [
                replace(term, value=term.value[rows], channel=None if term.channel is None else term.channel[rows])
                for term in terms
            ]
            for edge, terms in pending.items()
        }

    def _arrived(self, terms: list[_Term], conditions: int) -> torch.Tensor:
        total, _ = self._joined(terms, conditions)
        total = total.sum(dim=1, dtype=torch.float32)
        return total.unflatten(0, (conditions, self._batch))

    # -- one operation

    def _back(self, place: int, node: Any, outputs: dict[int, list[_Term]], conditions: int) -> list[list[_Term]]:
        """Relevance of the outputs of a node -> of each of its inputs."""
        if _made_by(node, Ruled):
            return [self._ruled(place, node, outputs[0], conditions)] + [[]] * (len(node.next_functions) - 1)
        if _made_by(node, Passed):
            return [outputs[0]] + [[]] * (len(node.next_functions) - 1)
        if _made_by(node, Summed):
            return self._summed(place, node, outputs[0], conditions)
        return self._routed(node, outputs, conditions)

    def _ruled(self, place: int, node: Any, terms: list[_Term], conditions: int) -> list[_Term]:
        known = self._prepared.get(place)
        if known is None:
            known = self._prepared[place] = prepared(node.operation, node.value, self._dtype)
            self._factors[place] = known.factor
            known.release()
        if all(pull is None for pull in known.pulls):
            return []
        scaled, channel = self._times(place, terms, conditions)
        if channel is not None and all(pull is None or one is not None for pull, one in zip(known.pulls, known.ones, strict=True)):
            parts = [None if one is None else one(scaled, channel) for one in known.ones]
        else:
            scaled = scaled if channel is None else self._spread(scaled, channel)
            parts = [None if pull is None else self._pulled(known, pull, scaled, conditions) for pull in known.pulls]
        present = [part for part in parts if part is not None]
        if not known.product:
            return [_Term(None, present[0], own=False)]  # the flat rule gives one map to all channels
        if len(present) == 2:  # one branch has the positive, the other the negative values
            above = self._kept(("above", place), lambda: node.value.clamp(min=0))
            below = self._kept(("below", place), lambda: node.value.clamp(max=0))
            positive, negative = (self._by_condition(part, conditions) for part in present)
            return [_Term(None, positive.mul_(above).addcmul_(negative, below).view_as(present[0]))]
        return [_Term(node.value, present[0])]

    def _pulled(self, known: Prepared, pull: Callable[[torch.Tensor], torch.Tensor], scaled: torch.Tensor, conditions: int) -> torch.Tensor:
        if known.closed:
            return pull(scaled)
        parts = [pull(part.float()).to(self._dtype) for part in scaled.unflatten(0, (conditions, self._batch))]
        return torch.cat(parts)

    def _summed(self, place: int, node: Any, terms: list[_Term], conditions: int) -> list[list[_Term]]:
        left, right, total = node.terms
        if place not in self._totals:
            self._totals.add(place)
            self._factors[place] = share(total)
        value, channel = self._times(place, terms, conditions)
        if left.shape == right.shape == total.shape:
            return [[_Term(left, value, own=False, channel=channel)], [_Term(right, value, own=False, channel=channel)]]
        value = value if channel is None else self._spread(value, channel)
        parts = value.unflatten(0, (conditions, self._batch))
        return [
            [_Term(None, torch.cat([(part * value).sum_to_size(value.shape).to(self._dtype) for part in parts]))]
            for value in (left, right)
        ]

    def _routed(self, node: Any, outputs: dict[int, list[_Term]], conditions: int) -> list[list[_Term]]:
        """Operations that only move values, whose gradient moves relevance likewise; each knows one batch of images."""
        joined: dict[int, torch.Tensor] = {}
        for output, terms in outputs.items():
            value, channel = self._joined(terms, conditions)
            value = value if channel is None else self._spread(value, channel)
            joined[output] = value.unflatten(0, (conditions, self._batch))
        found: list[list[torch.Tensor]] = [[] for _ in node.next_functions]
        for condition in range(conditions):
            given = [joined[output][condition] if output in joined else None for output in range(max(joined) + 1)]
            moved = _pooled_back(node, given[0]) if node.name().startswith("MaxPool2DWithIndices") else node(*given)
            for place, part in enumerate(moved if isinstance(moved, tuple) else (moved,)):
                if part is not None:
                    found[place].append(part.to(self._dtype))
        return [[_Term(None, torch.cat(parts) if len(parts) > 1 else parts[0])] if parts else [] for parts in found]

    # -- products

    def _times(self, place: int, terms: list[_Term], conditions: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sum of ``scale * value`` over the terms, times the factor of the node at `place`; and its channel, where it has but one."""
        keys = [("factor", place) if term.scale is None else ("factor", place, *_identity(term.scale)) for term in terms]
        whole = [self._kept(key, partial(self._weighed, term.scale, place)) for key, term in zip(keys, terms, strict=True)]
        return self._total(terms, whole, conditions)

    def _weighed(self, scale: torch.Tensor | None, place: int) -> torch.Tensor:
        return self._factors[place] if scale is None else scale * self._factors[place]

    def _joined(self, terms: list[_Term], conditions: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sum of ``scale * value`` over the terms; and its channel, where it has but one."""
        scales = [
            None if term.scale is None else self._kept(("scale", *_identity(term.scale)), term.scale.detach) for term in terms
        ]
        return self._total(terms, scales, conditions)

    def _total(
        self, terms: list[_Term], scales: Sequence[torch.Tensor | None], conditions: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        channel = terms[0].channel if all(term.channel is not None for term in terms) else None
        total: torch.Tensor | None = None
        for term, scale in zip(terms, scales, strict=True):
            part = term.value if scale is None else self._multiplied(term, scale, conditions)
            if term.channel is not None and channel is None:
                part = self._spread(part, term.channel)
            if total is None:
                total = part
            else:
                total = total + part if scale is None or scales[0] is None else total.add_(part)
        if total is None:
            raise ValueError("no relevance")
        return total, channel

    def _multiplied(self, term: _Term, scale: torch.Tensor, conditions: int) -> torch.Tensor:
        if term.channel is not None:
            rows = torch.arange(self._batch, device=scale.device).repeat(conditions)
            return term.value * scale[rows, term.channel].unsqueeze(1)
        value = self._by_condition(term.value, conditions)
        return (value.mul_(scale) if term.own else value * scale).view_as(term.value)

    def _spread(self, value: torch.Tensor, channel: torch.Tensor) -> torch.Tensor:
        """(C * B, 1, ...) of one channel in each row -> (C * B, K, ...) with zeros in all others."""
        shape = (len(value), self._activation.shape[1], *value.shape[2:])
        layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
        wide = torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=layout).zero_()
        wide[torch.arange(len(value), device=value.device), channel] = value[:, 0]
        return wide

    def _by_condition(self, value: torch.Tensor, conditions: int) -> torch.Tensor:
        """(C * B, ...) as what a tensor of all images can be multiplied with: (C, B, ...), or (C, ...) where there is one image."""
        return value if self._batch == 1 else value.unflatten(0, (conditions, self._batch))

    def _kept(self, key: tuple[object, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What is the same for all conditions, made once."""
        found = self._scales.get(key)
        if found is None:
            made = make()
            found = self._scales[key] = made if made.dtype == torch.bool else made.to(self._dtype)
        return found


def _consumers_first(last: Any) -> list[Any]:
    """The nodes of a graph, each before those it passes relevance on to."""
    order: list[Any] = []
    seen: set[Any] = {last}
    stack: list[tuple[Any, Iterator[Any]]] = [(last, iter(last.next_functions))]
    while stack:
        node, rest = stack[-1]
        for after, _ in rest:
            if after is not None and after not in seen:
                seen.add(after)
                stack.append((after, iter(after.next_functions)))
                break
        else:
            order.append(node)
            stack.pop()
    return order[::-1]


def _merge(present: list[_Term], new: Sequence[_Term]) -> None:
    """Add terms, those of one scale to one another."""
    for term in new:
        same = next(
            (known for known in present if _alike(known.scale, term.scale) and known.channel is term.channel), None
        )
        if same is None:
            present.append(term)
        elif same.own:
            same.value.add_(term.value)
        elif term.own:
            same.value, same.own = term.value.add_(same.value), True
        else:
            same.value, same.own = same.value + term.value, True


def _alike(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return _identity(one) == _identity(other)


def _identity(value: torch.Tensor) -> tuple[object, ...]:
    return value.data_ptr(), value.shape, value.stride()


def _made_by(node: Any, function: Any) -> bool:
    return isinstance(node, function._backward_cls)


def _size(node: Any) -> int:
    """Elements of the largest tensor of one image that the node works on."""
    if _made_by(node, Ruled):
        return max(node.value.numel(), node.outputs) // len(node.value)
    if _made_by(node, Summed):
        return int(node.terms[2][0].numel())
    if node.name().startswith("MaxPool"):
        return node._saved_self.numel() // len(node._saved_self)
    return 1


def _map_side(value: torch.Tensor) -> int:
    """Side of a square map; relevance that is laid out otherwise at the moment, as inside a layer norm, is none to stop at."""
    return value.shape[-1] if value.ndim == 4 and value.shape[-1] == value.shape[-2] else 0


def _power_of_two(value: int) -> int:
    return 1 << max(0, value.bit_length() - 1)


def _pooled_back(node: Any, gradient: Any) -> torch.Tensor:
    """The gradient of max pooling, also in another precision than the forward pass had."""
    like = torch.empty_like(node._saved_self, dtype=gradient.dtype)
    return torch.ops.aten.max_pool2d_with_indices_backward(
        gradient, like, node._saved_kernel_size, node._saved_stride, node._saved_padding, node._saved_dilation,
        node._saved_ceil_mode, node._saved_result1,
    )  # fmt: skip
