"""What a forward pass executes, observed once and then run under the rules of layer-wise relevance propagation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from semlens_audit.errors import SubjectError
from semlens_audit.lrp_pulls import bind, pull_convolution, pull_linear, pull_one
from semlens_audit.lrp_rules import (
    EPSILON,
    FLAT,
    NORM,
    ZPLUS,
    Operation,
    Passed,
    Ruled,
    Summed,
    fold,
)

__all__ = ["Fusion", "Observe", "Propagate", "from_input"]

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_POOLS = {
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "mean",
    "sum",
}
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__"}
_QUOTIENTS = {"div", "div_", "__truediv__", "__itruediv__", "true_divide"}
_ELEMENTWISE = {
    "relu",
    "relu_",
    "relu6",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "elu",
    "elu_",
    "selu",
    "selu_",
    "celu",
    "celu_",
    "gelu",
    "silu",
    "silu_",
    "mish",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "sigmoid_",
    "tanh",
    "tanh_",
    "softplus",
    "softsign",
    "clamp",
    "clamp_",
    "clamp_min",
    "clamp_max",
    "prelu",
    "threshold",
    "batch_norm",
    "instance_norm",
    # With mean and deviation held constant, normalisation scales each value; its relevance stays where it is (identity rule of
    # AttnLRP, Achtibat et al. 2024, arXiv 2402.05602, proposition 3.4; constants as in Ali et al. 2022, arXiv 2202.07304).
    "layer_norm",
    "group_norm",
    "rms_norm",
}
_ROUTES = {
    "flatten",
    "view",
    "view_as",
    "reshape",
    "permute",
    "transpose",
    "contiguous",
    "squeeze",
    "unsqueeze",
    "cat",
    "concat",
    "concatenate",
    "chunk",
    "split",
    "tensor_split",
    "unbind",
    "stack",
    "narrow",
    "select",
    "__getitem__",
    "movedim",
    "swapaxes",
    "clone",
    "to",
    "float",
    "type_as",
    "expand",
    "pad",
    "dropout",
    "dropout2d",
    "feature_dropout",
    "alpha_dropout",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "adaptive_max_pool2d",
    "channel_shuffle",
    "pixel_shuffle",
    "roll",
    "flip",
    "amax",
    "detach",
    "requires_grad_",
    "retain_grad",
    "register_hook",
    "_max_pool2d",
    "max_pool2d_with_indices",
    "drop_path",
    "identity",
}
_IN_PLACE = {
    name for name in _ELEMENTWISE | _SUMS | _PRODUCTS | _QUOTIENTS if name.endswith("_") and name[0] != "_"
} | {
    "__iadd__",
    "__imul__",
    "__itruediv__",
}


def from_input(value: torch.Tensor) -> torch.Tensor:
    """Mark `value` as an activation: whatever is made of it shares relevance, even where no relevance is asked of it."""
    value.__dict__["_from_input"] = True
    return value


def _active(value: object) -> bool:
    return isinstance(value, torch.Tensor) and "_from_input" in value.__dict__


def _needs(value: object) -> bool:
    """Whether relevance flows to `value`; parameters get none, whether or not they are frozen."""
    return isinstance(value, torch.Tensor) and value.requires_grad and not isinstance(value, torch.nn.Parameter)


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    parts = [part for value in values for part in (value if isinstance(value, list | tuple) else (value,))]
    return [part for part in parts if isinstance(part, torch.Tensor)]


class Fusion:
    """Which convolution of a forward pass, counted in order of execution, is followed by which batch norm and nothing else."""

    def __init__(self) -> None:
        self.norms: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.weights: list[int] = []
        self.operations: dict[int, Operation] = {}
        self.residuals = 0


class Observe(TorchFunctionMode):
    """Record which tensors are read by which operations in one plain forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = Fusion()
        self._made: dict[int, tuple[int, torch.Tensor]] = {}
        self._readers: dict[int, list[str]] = {}
        self._norms: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and name not in {"__get__", "detach", "clone"}:
            for part in _tensors((*args, *kwargs.values())):
                if id(part) in self._made:
                    index = self._made[id(part)][0]
                    self._readers.setdefault(index, []).append(name)
                    if name == "batch_norm":
                        self._norms[index] = _norm_parameters(args, kwargs)
        if name in _CONVOLUTIONS:
            self._made[id(result)] = (len(self.fusion.weights), result)
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.fusion.weights.append(id(weight))
        return result

    def finish(self) -> Fusion:
        """The convolutions whose only reader was one batch norm."""
        self.fusion.norms = {i: norm for i, norm in self._norms.items() if self._readers[i] == ["batch_norm"]}
        return self.fusion


def _norm_parameters(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    bound = bind(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"), args, kwargs
    )
    if bound.get("training") or bound["running_mean"] is None:
        raise SubjectError(
            "lrp-not-applicable",
            "A batch norm of the model uses the statistics of the batch.",
            "Set measurement.attribution: activation_x_gradient.",
        )
    scale = (bound["running_var"] + bound.get("eps", 1e-5)).rsqrt()
    if bound.get("weight") is not None:
        scale = scale * bound["weight"]
    shift = -bound["running_mean"] * scale
    if bound.get("bias") is not None:
        shift = shift + bound["bias"]
    return scale.detach(), shift.detach()


class Propagate(TorchFunctionMode):
    """Run a forward pass whose graph carries relevance instead of gradients.

    Parameters
    ----------
    fusion
        What `Observe` saw.
    dtype
        To which convolutions round their input and parameters, or ``None``: not at all.
    """

    def __init__(self, fusion: Fusion, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._fusion = fusion
        self._dtype = dtype
        self._linear = 0
        self._convolution = 0
        self._folded: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        result = self._apply(func, args, kwargs)
        if any(_active(part) for part in _tensors((*args, *kwargs.values()))):
            for part in _tensors([result]):
                from_input(part)
        return result

    def _apply(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if name in _CONVOLUTIONS:
            return self._convolve(func, args, kwargs)
        if name == "linear":
            return self._apply_linear(args, kwargs)
        if name == "batch_norm" and args and id(args[0]) in self._folded:
            return args[0]
        tensors = [value for value in (*args, *kwargs.values()) if _needs(value)]
        if not tensors:
            nested = [part for value in args if isinstance(value, list | tuple) for part in value if _needs(part)]
            return self._route(func, name, args, kwargs) if nested else func(*args, **kwargs)
        return self._ruled(func, name, tensors, args, kwargs)

    def _ruled(self, func: Any, name: str, tensors: list[torch.Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        # What bypasses the first layer asked for has its share of a sum or product as well, though nobody asks for it.
        parts = [value for value in (*args, *kwargs.values()) if _needs(value) or _active(value)]
        if name in _SUMS and len(parts) == 2:
            return Summed.apply(*parts) if kwargs.get("alpha", 1) == 1 else self._route(func, name, args, kwargs)
        if name in _PRODUCTS and len(parts) == 2:
            return self._gate(func, name, parts, args, kwargs)
        if (name in _SUMS | _PRODUCTS | _QUOTIENTS | _ELEMENTWISE) and len(tensors) == 1:
            return self._pass(func, tensors[0], args, kwargs)
        if name in _POOLS and len(tensors) == 1:
            rest = args[1:]
            operation = Operation(lambda value, weight, bias: func(value, *rest, **kwargs), NORM)
            return Ruled.apply(args[0] if args else tensors[0], operation)
        return self._route(func, name, args, kwargs)

    def _route(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Operations that only move values: their gradient moves relevance likewise."""
        result = func(*args, **kwargs)
        parts = result if isinstance(result, list | tuple) else (result,)
        if name not in _ROUTES and any(_needs(part) for part in parts):
            raise SubjectError(
                "lrp-not-applicable",
                f"Relevance propagation has no rule for the operation {name!r} that the model uses.",
                "Set measurement.attribution: activation_x_gradient.",
            )
        return result

    @staticmethod
    def _pass(func: Any, value: torch.Tensor, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Evaluate out of place, also where the network asks for in place: `value` may be a tensor that others still read."""
        own = value.detach()
        if func.__name__ in _IN_PLACE or any(part is True for part in (*args, *kwargs.values())):
            own = own.clone()
        plain = tuple(own if part is value else part for part in args)
        named = {key: own if part is value else part for key, part in kwargs.items()}
        return Passed.apply(value, func(*plain, **named))

    @staticmethod
    def _gate(func: Any, name: str, tensors: list[torch.Tensor], args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """A product of a signal and a gate (squeeze and excitation): the signal takes all, the gate is a constant."""
        signal, gate = sorted(tensors, key=lambda tensor: -tensor.numel())
        if signal.numel() == gate.numel():
            raise SubjectError(
                "lrp-not-applicable",
                "The model multiplies two activations of the same size, for which there is no rule.",
                "Set measurement.attribution: activation_x_gradient.",
            )
        return Passed.apply(signal, signal.detach() * gate.detach())

    def _apply_linear(self, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        bound = bind(("input", "weight", "bias"), args, kwargs)
        # Applied at every place of a map, channels last, a linear layer is a 1 x 1 convolution and has its rule (ConvNeXt).
        rule = FLAT if self._linear == 0 else ZPLUS if bound["input"].ndim == 4 else EPSILON
        self._linear += 1
        if not bound["input"].requires_grad:
            return functional.linear(bound["input"], bound["weight"], bound.get("bias"))
        operation = Operation(
            functional.linear, rule, bound["weight"].detach(), _detached(bound.get("bias")), pull_linear
        )
        return Ruled.apply(bound["input"], operation)

    def _convolve(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        bound = bind(("input", "weight", "bias"), args[:3], kwargs)
        value, weight, bias = bound.pop("input"), bound.pop("weight"), bound.pop("bias", None)
        index, first = self._convolution, self._linear == 0
        self._convolution += 1
        self._linear += 1
        fusion = self._fusion
        if index >= len(fusion.weights) or fusion.weights[index] != id(weight):
            raise SubjectError(
                "lrp-not-applicable",
                "The model executes other operations from one input to the next.",
                "Set measurement.attribution: activation_x_gradient.",
            )
        operation = fusion.operations.get(index)
        if operation is None:
            rest = args[3:]
            weight, bias = weight.detach(), _detached(bias)
            if index in fusion.norms:
                weight, bias = fold(
                    weight,
                    bias,
                    *fusion.norms[index],
                    transposed="transpose" in func.__name__,
                    groups=_groups(func, args, kwargs),
                )
            pull = pull_convolution(args, kwargs, flat=first) if func.__name__ == "conv2d" else None
            one = None if pull is None or first else pull_one(args, kwargs)
            operation = Operation(
                lambda v, w, b: func(v, w, b, *rest, **bound), FLAT if first else ZPLUS, weight, bias, pull, one
            )
            fusion.operations[index] = operation
        result = Ruled.apply(value, operation, self._dtype) if value.requires_grad else operation(value, self._dtype)
        if index in fusion.norms:
            self._folded[id(result)] = result
        return result


def _groups(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    place = 7 if "transpose" in func.__name__ else 6
    return int(kwargs.get("groups", args[place] if len(args) > place else 1))


def _detached(value: torch.Tensor | None) -> torch.Tensor | None:
    return None if value is None else value.detach()
