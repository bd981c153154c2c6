"""The rules of layer-wise relevance propagation as autograd functions: forward as it is, backward by zennit's rule."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from zennit.core import BasicHook, stabilize
from zennit.rules import Epsilon, Flat, Norm, ZPlus

__all__ = [
    "EPSILON",
    "FLAT",
    "NORM",
    "ZPLUS",
    "Operation",
    "Passed",
    "Ruled",
    "Summed",
    "bind",
    "fold",
    "pull_convolution",
    "pull_linear",
]

FLAT, ZPLUS, EPSILON, NORM = Flat(), ZPlus(), Epsilon(), Norm()
_PRODUCT_RULES = (ZPlus, Epsilon)
"""Rules whose relevance is the sum over branches of input x gradient, with one factor for all."""
_BUFFERS = 32
_Pull = Callable[[torch.Tensor], torch.Tensor]


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
        (gradient of the output, input, weight) -> gradient of the input, in closed form; without it, autograd finds the same.
    """

    def __init__(
        self,
        call: Callable[..., torch.Tensor],
        rule: BasicHook,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        pull: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.call = call
        self.rule = rule
        self.weight = weight
        self.bias = bias
        self.pull = pull
        self._branches: list[tuple[torch.Tensor | None, torch.Tensor | None]] | None = None

    @property
    def branches(self) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """(weight, bias) of every branch of the rule; computed once, because they do not depend on the input."""
        if self._branches is None:
            self._branches = [
                (None, None)
                if modify is None
                else (_modified(modify, self.weight, "weight"), _modified(modify, self.bias, "bias"))
                for modify in self.rule.param_modifiers
            ]
        return self._branches

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """The operation with its own parameters."""
        return self.call(value, self.weight, self.bias)


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
    def forward(ctx: Any, value: torch.Tensor, operation: Operation) -> torch.Tensor:
        """Evaluate, and keep what the rule needs."""
        ctx.value = value.detach()
        ctx.operation = operation  # value and operation are also what relevance is accounted for with, see attribution_choice
        ctx.prepared = None
        return operation(ctx.value)

    @staticmethod
    def backward(ctx: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Relevance of the output -> relevance of the inputs."""
        if ctx.prepared is None:
            ctx.prepared = _prepare(ctx.operation, ctx.value)
        inputs, pulls, factors = ctx.prepared
        if all(pull is None for pull in pulls):
            return torch.zeros_like(ctx.value), None
        if ctx.operation.pull is not None and type(ctx.operation.rule) in _PRODUCT_RULES:
            return _sum_of_products(relevance, inputs, pulls, factors[0]), None
        gradients = [
            value if pull is None else pull(relevance * factor)
            for value, pull, factor in zip(inputs, pulls, factors, strict=True)
        ]
        return ctx.operation.rule.reducer(inputs, gradients), None


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


def _prepare(
    operation: Operation, value: torch.Tensor
) -> tuple[list[torch.Tensor], list[_Pull | None], Sequence[torch.Tensor]]:
    """What a rule needs of the forward pass, shared by every relevance that is sent back through it.

    Returns
    -------
    tuple
        Per branch of the rule: the modified input; the way from a gradient of the output to one of the input, ``None`` where
        the modified input is zero everywhere, so that neither output nor relevance can come of it (zero then stands for the
        input); the factor that turns relevance into the gradient of the output.
    """
    rule = operation.rule
    inputs: list[torch.Tensor] = []
    pulls: list[_Pull | None] = []
    outputs: list[torch.Tensor] = []
    zero = torch.zeros((), dtype=value.dtype)
    for modify, finish, (weight, bias) in zip(
        rule.input_modifiers, rule.output_modifiers, operation.branches, strict=True
    ):
        changed = modify(value)
        if changed is not value and torch.equal(changed, value):
            changed = value  # one tensor less in memory: most inputs are not negative anyway
        if not bool(changed.any()) and (bias is None or not bool(bias.any())):
            inputs.append(zero)
            pulls.append(None)
            outputs.append(zero)
            continue
        if operation.pull is None:
            own = changed.detach().requires_grad_(True)
            with torch.enable_grad():
                output = finish(operation.call(own, weight, bias))
            pulls.append(partial(_by_autograd, output, own))
        else:
            output = finish(operation.call(changed, weight, bias))
            pulls.append(partial(operation.pull, value=changed, weight=weight))
        inputs.append(changed)
        outputs.append(output.detach())
    largest = next((output for output in outputs if output.ndim), zero)
    # Every zennit rule used here is linear in the relevance, so its share per output is a factor that can be kept; it is laid
    # out in memory like the output, or every later product would have to translate.
    ones = torch.ones_like(largest)
    factors = rule.gradient_mapper(ones, [output if output.ndim else output.expand_as(largest) for output in outputs])
    return inputs, pulls, [factors] if isinstance(factors, torch.Tensor) else factors


def _by_autograd(output: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(output, value, gradient, retain_graph=True)[0]


def pull_linear(gradient: torch.Tensor, value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of a linear layer with respect to its input."""
    return torch.matmul(gradient, weight)


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
            ctx.factor = 1.0 / stabilize(total)
        part = relevance * ctx.factor
        return (part * left).sum_to_size(left.shape), (part * right).sum_to_size(right.shape)


def _pull_pointwise(gradient: torch.Tensor, value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution is one product of matrices once channels are last; torch's own way may not take it as one."""
    return torch.matmul(gradient.permute(0, 2, 3, 1), weight[:, :, 0, 0]).permute(0, 3, 1, 2)


def pull_convolution(
    args: Sequence[Any], kwargs: Mapping[str, Any], *, flat: bool = False
) -> Callable[..., torch.Tensor] | None:
    """The gradient of a 2-d convolution with respect to its input, called directly; none for padding given by name.

    With `flat`, all weights are one: channels of the output may be added up first, and those of the input are all alike.
    """
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    bound = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **bind(names, args, kwargs)}
    if isinstance(bound["padding"], str):
        return None
    stride, padding, dilation = (
        [value, value] if isinstance(value, int) else list(value) * (3 - len(value))
        for value in (bound["stride"], bound["padding"], bound["dilation"])
    )
    groups = bound["groups"]
    if (
        not flat
        and groups == 1
        and stride == [1, 1]
        and padding == [0, 0]
        and tuple(bound["weight"].shape[2:]) == (1, 1)
    ):
        return _pull_pointwise

    def pull(gradient: torch.Tensor, value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        channels = value.shape[1]
        if flat and groups == 1:
            gradient, value, weight = gradient.sum(dim=1, keepdim=True), value[:, :1], weight[:1, :1]
        result: tuple[torch.Tensor, ...] = torch.ops.aten.convolution_backward(
            gradient, value, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )
        return result[0].expand(-1, channels, -1, -1) if flat and groups == 1 else result[0]

    return pull


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


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
