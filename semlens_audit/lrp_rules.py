"""The rules of layer-wise relevance propagation as autograd functions: forward as it is, backward by zennit's rule."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from zennit.core import BasicHook
from zennit.rules import Epsilon, Flat, Norm, ZPlus

__all__ = [
    "EPSILON",
    "FLAT",
    "NORM",
    "ZPLUS",
    "Operation",
    "Passed",
    "Prepared",
    "Ruled",
    "Summed",
    "fold",
    "prepared",
    "share",
]

_STABILIZER = 1e-6
"""Added to denominators, away from zero: the default of zennit's rules."""
FLAT, ZPLUS, EPSILON, NORM = Flat(), ZPlus(), Epsilon(), Norm()
_PRODUCT_RULES = (ZPlus, Epsilon, Norm)
"""Rules whose relevance is the sum over branches of input x gradient, with one factor for all."""
_BUFFERS = 32
_Pull = Callable[[torch.Tensor], torch.Tensor]
_PullOne = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Operation:
    """A linear operation with its rule and the parameters that each branch of the rule modifies.

    Parameters
    ----------
    call
        (input, weight, bias) -> output.
    rule
        zennit's rule.
    weight, bias
        Parameters, or ``None``.
    pull
        (gradient of the output, shape of the input, weight) -> gradient of the input, in closed form, for any number of rows;
        without it, autograd finds the same.
    pull_one
        (gradient of one channel of the output in each row, that channel of each row, weight) -> gradient of the input; ``None``
        where there is no shorter way than `pull`.
    """

    def __init__(
        self,
        call: Callable[..., torch.Tensor],
        rule: BasicHook,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        pull: Callable[..., torch.Tensor] | None = None,
        pull_one: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.call = call
        self.rule = rule
        self.weight = weight
        self.bias = bias
        self.pull = pull
        self.pull_one = pull_one
        self._branches: dict[torch.dtype | None, list[tuple[torch.Tensor | None, torch.Tensor | None]]] = {}
        self._rounded: dict[torch.dtype, tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    def branches(self, dtype: torch.dtype | None = None) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """(weight, bias) of every branch of the rule, rounded to `dtype`; made once, because they do not depend on the input."""
        if dtype not in self._branches:
            self._branches[dtype] = [
                (None, None)
                if modify is None
                else (_rounded(_modified(modify, self.weight, "weight"), dtype), _rounded(_modified(modify, self.bias, "bias"), dtype))
                for modify in self.rule.param_modifiers
            ]
        return self._branches[dtype]

    def __call__(self, value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The operation with its own parameters; input and parameters are rounded to `dtype` where it is given."""
        if dtype is None or dtype == value.dtype or self.weight is None:
            return self.call(value, self.weight, self.bias)
        if dtype not in self._rounded:
            self._rounded[dtype] = _rounded(self.weight, dtype), _rounded(self.bias, dtype)
        return self.call(value.to(dtype), *self._rounded[dtype]).to(value.dtype)


def _rounded(value: torch.Tensor | None, dtype: torch.dtype | None) -> torch.Tensor | None:
    return value if value is None or dtype is None else value.to(dtype)


def _modified(
    modify: Callable[[torch.Tensor, str], torch.Tensor], value: torch.Tensor | None, name: str
) -> torch.Tensor | None:
    if value is None:
        return None
    changed = modify(value, name)
    return changed.contiguous(memory_format=torch.channels_last) if changed.ndim == 4 else changed


class Ruled(torch.autograd.Function):
    """Forward as it is, backward by an LRP rule."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, operation: Operation, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Evaluate, and keep what the rule needs."""
        ctx.value = value.detach()
        ctx.operation = operation  # value and operation are also what relevance is accounted for with, see attribution_choice
        ctx.prepared = None
        result = operation(ctx.value, dtype)
        ctx.outputs = result.numel()
        return result

    @staticmethod
    def backward(ctx: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Relevance of the output -> relevance of the inputs."""
        if ctx.prepared is None:
            ctx.prepared = prepared(ctx.operation, ctx.value)
        known = ctx.prepared
        if all(pull is None for pull in known.pulls):
            return torch.zeros_like(ctx.value), None, None
        if known.closed and known.product:
            return _sum_of_products(relevance, known.inputs, known.pulls, known.factor), None, None
        scaled = relevance * known.factor
        gradients = [
            value if pull is None else pull(scaled) for value, pull in zip(known.inputs, known.pulls, strict=True)
        ]
        return ctx.operation.rule.reducer(known.inputs, gradients), None, None


def _sum_of_products(
    relevance: torch.Tensor, inputs: list[torch.Tensor], pulls: list[_Pull | None], factor: torch.Tensor
) -> torch.Tensor:
    """What the reducers of z+ and epsilon give, in as few passes over memory as can be: that is what propagation waits for."""
    scaled = torch.mul(relevance, factor, out=_scratch(factor))
    total: torch.Tensor | None = None
    for value, pull in zip(inputs, pulls, strict=True):
        if pull is not None:
            part = pull(scaled).mul_(value)
            total = part if total is None else total.add_(part)
    if total is None:
        raise ValueError("no branch has an input")
    return total


_buffers = threading.local()


def _scratch(like: torch.Tensor) -> torch.Tensor:
    """A buffer laid out like `like`, the same one at every call from this thread: fresh memory costs more than the product."""
    known: OrderedDict[tuple[object, ...], torch.Tensor] = _buffers.__dict__.setdefault("known", OrderedDict())
    key = (like.shape, like.stride(), like.dtype)
    if key not in known:
        if len(known) == _BUFFERS:
            known.popitem(last=False)
        known[key] = torch.empty_like(like)
    known.move_to_end(key)
    return known[key]


@dataclass
class Prepared:
    """What a rule needs of the forward pass, shared by every relevance that is sent back through it; a value per branch."""

    inputs: list[torch.Tensor]
    """The modified input."""
    pulls: list[_Pull | None]
    """The way from a gradient of the output to one of the input; ``None`` where the modified input is zero everywhere, so that
    neither output nor relevance can come of it (zero then stands for the input)."""
    ones: list[_PullOne | None]
    """The same where only one channel of each row is sent back; ``None`` where there is no shorter way."""
    factor: torch.Tensor
    """What turns relevance into the gradient of the output, the same in every branch."""
    closed: bool
    """Whether a pull takes any number of rows, in the precision of the branches."""
    product: bool
    """Whether relevance is the sum over branches of input x gradient, with one factor for all."""

    def release(self) -> None:
        """Give up inputs and factor, for one who keeps what he makes of them."""
        self.inputs, self.factor = [], self.factor.new_zeros(())


def prepared(operation: Operation, value: torch.Tensor, dtype: torch.dtype | None = None) -> Prepared:
    """Prepare the rule of an operation.

    Parameters
    ----------
    operation
        With its rule.
    value
        (B, ...) input.
    dtype
        In which the branches are evaluated and pulled, where there is a closed form; factors are as precise as `value`.
    """
    rule = operation.rule
    closed = operation.pull is not None
    if not closed or dtype == value.dtype:
        dtype = None
    inputs: list[torch.Tensor] = []
    pulls: list[_Pull | None] = []
    ones: list[_PullOne | None] = []
    outputs: list[torch.Tensor] = []
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    for changed, finish, (weight, bias) in zip(
        _modified_inputs(rule, value), rule.output_modifiers, operation.branches(dtype), strict=True
    ):
        if changed is None and (bias is None or not bool(bias.any())):
            inputs.append(zero)
            pulls.append(None)
            ones.append(None)
            continue
        changed = torch.zeros_like(value) if changed is None else changed
        if operation.pull is None:
            own = changed.detach().requires_grad_(True)
            with torch.enable_grad():
                output = finish(operation.call(own, weight, bias))
            pulls.append(partial(_by_autograd, output, own))
        else:
            output = finish(operation.call(_as(changed, dtype), weight, bias).to(value.dtype))
            pulls.append(partial(operation.pull, shape=changed.shape, weight=weight))
        ones.append(None if operation.pull_one is None else partial(operation.pull_one, weight=weight))
        inputs.append(changed)
        outputs.append(output.detach())
    # Every rule used here is linear in the relevance, so its share per output is a factor that can be kept.
    total = sum(outputs[1:], start=outputs[0]) if outputs else zero
    # Nothing in z+ is negative but by rounding, so its stabilizer needs no sign.
    factor = total.clamp(min=0).add_(_STABILIZER).reciprocal_() if isinstance(rule, ZPlus) else share(total)
    return Prepared(inputs, pulls, ones, factor, closed, type(rule) in _PRODUCT_RULES)


def share(total: torch.Tensor) -> torch.Tensor:
    """``1 / stabilize(total)`` of zennit: what turns relevance of a sum into that of a unit of what is summed."""
    total = total + 0.0  # no zero below zero, whose stabilizer would have the other sign
    stabilizer = torch.full((), _STABILIZER, dtype=total.dtype, device=total.device)
    return torch.copysign(stabilizer, total).add_(total).reciprocal_()


def _modified_inputs(rule: BasicHook, value: torch.Tensor) -> Iterator[torch.Tensor | None]:
    """The input of every branch, ``None`` where it is zero everywhere."""
    if isinstance(rule, ZPlus):  # most inputs are nowhere negative: one look saves a branch, and a tensor
        lowest, highest = torch.aminmax(value.permute(0, 2, 3, 1) if value.ndim == 4 else value)  # many times faster so
        yield value if lowest >= 0 and highest > 0 else value.clamp(min=0) if highest > 0 else None
        yield value if highest <= 0 and lowest < 0 else value.clamp(max=0) if lowest < 0 else None
        return
    for modify in rule.input_modifiers:
        changed = modify(value)
        yield changed if bool(changed.any()) else None


def _as(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return value if dtype is None else value.to(dtype)


def _by_autograd(output: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(output, value, gradient, retain_graph=True)[0]


class Passed(torch.autograd.Function):
    """An elementwise function, whose relevance belongs wholly to its input."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """Evaluate, and keep what the rule needs."""
        return result

    @staticmethod
    def backward(ctx: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Relevance of the output -> relevance of the inputs."""
        return relevance, None


class Summed(torch.autograd.Function):
    """A sum of two activations; each gets its share (zennit's ``Norm`` at ``Sum``)."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Evaluate, and keep what the rule needs."""
        total = left + right
        # Not `total` itself: an output kept by its own node is a cycle that nothing ever frees.
        ctx.terms = (left.detach(), right.detach(), total.detach())
        ctx.factor = None
        return total

    @staticmethod
    def backward(ctx: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Relevance of the output -> relevance of the inputs."""
        left, right, total = ctx.terms
        if ctx.factor is None:
            ctx.factor = share(total)
        part = relevance * ctx.factor
        return (part * left).sum_to_size(left.shape), (part * right).sum_to_size(right.shape)


def fold(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    *,
    transposed: bool,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold ``y * scale + shift`` into the convolution that makes y."""
    extra = (1,) * (weight.ndim - 2)
    if transposed:
        per_group = weight.shape[1]
        shaped = scale.view(groups, 1, per_group, *extra)
        folded = (weight.view(groups, -1, *weight.shape[1:]) * shaped).view_as(weight)
    else:
        folded = weight * scale.view(-1, 1, *extra)
    return folded, shift if bias is None else bias * scale + shift
