"""Layer-wise relevance propagation for convolutional networks: zennit's rules, applied to the operations a forward pass executes.

The composite is EpsilonPlusFlat, as in SemanticLens (arXiv 2501.05398) and CRP (Achtibat et al., Nature Machine Intelligence 2023):
flat rule at the first convolution, z+ at the others, epsilon at linear layers, proportional shares at sums and average pools,
relevance passed through elementwise functions. Relevance flows as the "gradient" of torch's autograd.

zennit attaches rules to modules and therefore needs a canonizer per architecture, which turns a residual ``x + y`` into a module
and folds batch norms by the order in which modules were defined. Here the *executed* operations are intercepted instead, so that
any torchvision, timm or own network is covered: a batch norm is folded into the convolution whose output it was seen to be the only
reader of, and every sum, pool and activation is met wherever it is written. What has no rule is refused by name, never treated as
a plain gradient. The model itself is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from zennit.core import BasicHook, stabilize
from zennit.rules import Epsilon, Flat, Norm, ZPlus

from semlens_audit.components import first_tensor
from semlens_audit.errors import SubjectError
from semlens_audit.networks import nearest_layer

__all__ = ["COMPOSITE", "RelevanceModel", "relevance_model"]

COMPOSITE = "EpsilonPlusFlat"

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_POOLS = {
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "sum",
}  # fmt: skip
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__"}
_QUOTIENTS = {"div", "div_", "__truediv__", "__itruediv__", "true_divide"}
_ELEMENTWISE = {
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "celu_",
    "gelu", "silu", "silu_", "mish", "hardswish", "hardsigmoid", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "softsign",
    "clamp", "clamp_", "clamp_min", "clamp_max", "prelu", "threshold", "batch_norm", "instance_norm",
}  # fmt: skip
_ROUTES = {
    "flatten", "view", "view_as", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "cat", "concat",
    "concatenate", "chunk", "split", "tensor_split", "unbind", "stack", "narrow", "select", "__getitem__", "movedim", "swapaxes",
    "clone", "to", "float", "type_as", "expand", "pad", "dropout", "dropout2d", "feature_dropout", "alpha_dropout", "max_pool1d",
    "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "channel_shuffle", "pixel_shuffle", "roll", "flip", "amax", "detach",
    "requires_grad_", "retain_grad", "register_hook", "_max_pool2d", "max_pool2d_with_indices", "drop_path", "identity",
}  # fmt: skip
_INPLACE = {name for name in _ELEMENTWISE if name.endswith("_")}


class _Operation:
    """A linear operation with its rule and the parameters that each branch of the rule modifies."""

    def __init__(
        self, call: Callable[..., torch.Tensor], rule: BasicHook, weight: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        self.call = call
        self.rule = rule
        self.weight = weight
        self.bias = bias
        self.branches: list[tuple[torch.Tensor | None, torch.Tensor | None]] | None = None

    def modified(self) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """(weight, bias) of every branch of the rule; computed once, because they do not depend on the input."""
        if self.branches is None:
            self.branches = [
                (
                    None if self.weight is None else modify(self.weight, "weight"),
                    None if self.bias is None else modify(self.bias, "bias"),
                )
                if modify is not None
                else (None, None)
                for modify in self.rule.param_modifiers
            ]
        return self.branches

    def __call__(self, value: torch.Tensor, branch: int | None = None) -> torch.Tensor:
        weight, bias = (self.weight, self.bias) if branch is None else self.modified()[branch]
        return self.call(value, weight, bias)


class _Ruled(torch.autograd.Function):
    """Forward as it is, backward by an LRP rule."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, operation: _Operation) -> torch.Tensor:
        ctx.value = value.detach()
        ctx.operation = operation
        ctx.prepared = None
        return operation(ctx.value)

    @staticmethod
    def backward(ctx: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.prepared is None:
            ctx.prepared = _prepare(ctx.operation, ctx.value)
        inputs, outputs, factors = ctx.prepared
        gradients = [
            torch.zeros((), dtype=relevance.dtype)
            if output is None
            else torch.autograd.grad(output, value, relevance * factor, retain_graph=True)[0]
            for value, output, factor in zip(inputs, outputs, factors, strict=True)
        ]
        return ctx.operation.rule.reducer([value.detach() for value in inputs], gradients), None


def _prepare(
    operation: _Operation, value: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor | None], Sequence[torch.Tensor]]:
    """What a rule needs of the forward pass, shared by every relevance that is sent back through it.

    Returns
    -------
    tuple
        Modified inputs; modified outputs with their graphs, ``None`` where the input is all zero, so that neither the branch nor
        its gradient times its input can contribute; factors that turn relevance into the gradient of each output.
    """
    rule = operation.rule
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor | None] = []
    values: list[torch.Tensor] = []
    for branch, modify in enumerate(rule.input_modifiers):
        changed = modify(value).detach()
        bias = operation.modified()[branch][1]
        empty = not bool(changed.any()) and (bias is None or not bool(bias.any()))
        if not empty:
            changed.requires_grad_(True)
            with torch.enable_grad():
                output = rule.output_modifiers[branch](operation(changed, branch))
        inputs.append(changed)
        outputs.append(None if empty else output)
        values.append(torch.zeros((), dtype=value.dtype) if empty else output.detach())
    if all(output is None for output in outputs):
        return inputs, outputs, values
    shape = next(output for output in outputs if output is not None).shape
    # Every zennit rule used here is linear in the relevance, so its share per output is a factor that can be kept.
    factors = rule.gradient_mapper(torch.ones(shape, dtype=value.dtype), [v.expand(shape) for v in values])
    return inputs, outputs, [factors] if isinstance(factors, torch.Tensor) else factors


class _Passed(torch.autograd.Function):
    """An elementwise function, whose relevance belongs wholly to its input."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        return result

    @staticmethod
    def backward(ctx: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, None]:
        return relevance, None


class _Summed(torch.autograd.Function):
    """A sum of two activations; each gets its share (zennit's ``Norm`` at ``Sum``)."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        total = left + right
        ctx.terms = (left.detach(), right.detach(), total)
        ctx.factor = None
        return total

    @staticmethod
    def backward(ctx: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right, total = ctx.terms
        if ctx.factor is None:
            ctx.factor = 1.0 / stabilize(total.detach())
        part = relevance * ctx.factor
        return (part * left).sum_to_size(left.shape), (part * right).sum_to_size(right.shape)


def _needs(value: object) -> bool:
    """Whether relevance flows to `value`; parameters get none, whether or not they are frozen."""
    return isinstance(value, torch.Tensor) and value.requires_grad and not isinstance(value, torch.nn.Parameter)


class _Fusion:
    """Which convolution of a forward pass, counted in order of execution, is followed by which batch norm and nothing else."""

    def __init__(self) -> None:
        self.norms: dict[int, tuple[torch.Tensor | None, ...]] = {}
        self.weights: list[int] = []
        self.operations: dict[int, _Operation] = {}
        self.residuals = 0


class _Observe(TorchFunctionMode):
    """Record which tensors are read by which operations in one plain forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = _Fusion()
        self._made: dict[int, tuple[int, torch.Tensor]] = {}
        self._readers: dict[int, list[str]] = {}
        self._norms: dict[int, tuple[torch.Tensor | None, ...]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and name not in {"__get__", "detach", "clone"}:
            for value in (*args, *kwargs.values()):
                for part in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(part, torch.Tensor) and id(part) in self._made:
                        index = self._made[id(part)][0]
                        self._readers.setdefault(index, []).append(name)
                        if name == "batch_norm":
                            self._norms[index] = _norm_parameters(args, kwargs)
        if name in _CONVOLUTIONS:
            self._made[id(result)] = (len(self.fusion.weights), result)
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.fusion.weights.append(id(weight))
        return result

    def finish(self) -> _Fusion:
        """The convolutions whose only reader was one batch norm."""
        self.fusion.norms = {i: norm for i, norm in self._norms.items() if self._readers[i] == ["batch_norm"]}
        return self.fusion


def _norm_parameters(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor | None, ...]:
    bound = _bind(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"), args, kwargs
    )
    if bound.get("training") or bound["running_mean"] is None:
        raise SubjectError("lrp-not-applicable", "A batch norm of the model uses the statistics of the batch.",
                           "Audit the model in eval mode with running statistics, or set attribution: activation_x_gradient.")  # fmt: skip
    scale = (bound["running_var"] + bound.get("eps", 1e-5)).rsqrt()
    if bound.get("weight") is not None:
        scale = scale * bound["weight"]
    shift = -bound["running_mean"] * scale
    if bound.get("bias") is not None:
        shift = shift + bound["bias"]
    return scale.detach(), shift.detach()


def _bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


class _Propagate(TorchFunctionMode):
    """Run a forward pass whose graph carries relevance instead of gradients."""

    def __init__(self, fusion: _Fusion) -> None:
        super().__init__()
        self._fusion = fusion
        self._linear = 0
        self._convolution = 0
        self._folded: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
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
        if name in _SUMS and len(tensors) == 2 and kwargs.get("alpha", 1) == 1:
            return _Summed.apply(*tensors)
        if name in _PRODUCTS and len(tensors) == 2:
            return self._gate(func, name, tensors, args, kwargs)
        if (name in _SUMS | _PRODUCTS | _QUOTIENTS | _ELEMENTWISE) and len(tensors) == 1:
            return self._pass(func, tensors[0], args, kwargs)
        if name in _POOLS and len(tensors) == 1:
            rest = args[1:]
            operation = _Operation(lambda value, weight, bias: func(value, *rest, **kwargs), _NORM, None, None)
            return _Ruled.apply(args[0] if args else tensors[0], operation)
        return self._route(func, name, args, kwargs)

    def _route(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Operations that only move values: their gradient moves relevance likewise."""
        result = func(*args, **kwargs)
        parts = result if isinstance(result, list | tuple) else (result,)
        if name not in _ROUTES and any(_needs(part) for part in parts):
            raise SubjectError(
                "lrp-not-applicable", f"The model uses the operation {name!r}, for which layer-wise relevance propagation has no rule here.",
                "Set measurement.attribution: activation_x_gradient.",
            )  # fmt: skip
        return result

    @staticmethod
    def _pass(func: Any, value: torch.Tensor, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Evaluate out of place, also where the network asks for in place: `value` may be a tensor that others still read."""
        own = value.detach().clone()
        plain = tuple(own if part is value else part for part in args)
        named = {key: own if part is value else part for key, part in kwargs.items()}
        return _Passed.apply(value, func(*plain, **named))

    @staticmethod
    def _gate(func: Any, name: str, tensors: list[torch.Tensor], args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """A product of a signal and a gate (squeeze and excitation): the signal takes all, the gate is a constant."""
        signal, gate = sorted(tensors, key=lambda tensor: -tensor.numel())
        if signal.numel() == gate.numel():
            raise SubjectError(
                "lrp-not-applicable", "The model multiplies two activations of the same size; relevance cannot be shared between them.",
                "Set measurement.attribution: activation_x_gradient.",
            )  # fmt: skip
        return _Passed.apply(signal, signal.detach() * gate.detach())

    def _apply_linear(self, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        bound = _bind(("input", "weight", "bias"), args, kwargs)
        rule = _FLAT if self._linear == 0 else _EPSILON
        self._linear += 1
        operation = _Operation(functional.linear, rule, bound["weight"].detach(), _detached(bound.get("bias")))
        return _Ruled.apply(bound["input"], operation)

    def _convolve(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        bound = _bind(("input", "weight", "bias"), args[:3], kwargs)
        value, weight, bias = bound.pop("input"), bound.pop("weight"), bound.pop("bias", None)
        index, first = self._convolution, self._linear == 0
        self._convolution += 1
        self._linear += 1
        fusion = self._fusion
        if index >= len(fusion.weights) or fusion.weights[index] != id(weight):
            raise SubjectError("lrp-not-applicable", "The model executes other operations from one input to the next.",
                               "Set measurement.attribution: activation_x_gradient.")  # fmt: skip
        operation = fusion.operations.get(index)
        if operation is None:
            rest = args[3:]
            weight, bias = weight.detach(), _detached(bias)
            if index in fusion.norms:
                weight, bias = _fold(weight, bias, *fusion.norms[index], transposed="transpose" in func.__name__,
                                     groups=_groups(func, args, kwargs))  # fmt: skip
            operation = _Operation(
                lambda v, w, b: func(v, w, b, *rest, **bound), _FLAT if first else _ZPLUS, weight, bias
            )
            fusion.operations[index] = operation
        result = _Ruled.apply(value, operation) if value.requires_grad else operation(value)
        if index in fusion.norms:
            self._folded[id(result)] = result
        return result


def _groups(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    place = 7 if "transpose" in func.__name__ else 6
    return int(kwargs.get("groups", args[place] if len(args) > place else 1))


def _detached(value: torch.Tensor | None) -> torch.Tensor | None:
    return None if value is None else value.detach()


def _fold(
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


_FLAT, _ZPLUS, _EPSILON, _NORM = Flat(), ZPlus(), Epsilon(), Norm()


class _Reached(Exception):
    """The layer that a partial forward pass goes to has been reached."""


class RelevanceModel:
    """A network whose backward pass carries relevance.

    Parameters
    ----------
    model
        Convolutional network in eval mode; not changed.
    example
        (B, 3, S, S) input on which its operations are observed.

    Raises
    ------
    SubjectError
        ``lrp-not-applicable``: an operation without a rule; ``lrp-unfaithful``: the rewritten forward pass gives other outputs.
    """

    def __init__(self, model: torch.nn.Module, example: torch.Tensor) -> None:
        self._model = ref(model)
        self._fingerprint = _fingerprint(model)
        observe = _Observe()
        with torch.no_grad(), observe:
            plain = first_tensor(model(example[:1]))
        self._fusion = observe.finish()
        with self._propagating():
            again = first_tensor(model(example[:1].detach().clone().requires_grad_(True)))
        if not torch.allclose(plain, again.detach(), rtol=1e-3, atol=1e-3 * max(1.0, float(plain.abs().max()))):
            raise SubjectError(
                "lrp-unfaithful", "Rewritten for relevance propagation, the model no longer gives the same outputs.",
                "Set measurement.attribution: activation_x_gradient.",
            )  # fmt: skip

    @property
    def model(self) -> torch.nn.Module:
        """The network, held weakly."""
        model = self._model()
        if model is None:
            raise ReferenceError("the model is gone")
        return model

    @property
    def folded(self) -> int:
        """Number of batch norms folded into convolutions."""
        return len(self._fusion.norms)

    @property
    def stale(self) -> bool:
        """Whether the model's parameters were changed since its operations were observed."""
        return self._fingerprint != _fingerprint(self.model)

    def _propagating(self) -> _Propagate:
        return _Propagate(self._fusion)

    def forward(self, images: torch.Tensor, layers: Sequence[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run the network so that gradients of its output with respect to the layers' outputs are relevances.

        Parameters
        ----------
        images
            (B, 3, S, S).
        layers
            Names of layers; what comes before the first of them is not recorded.

        Returns
        -------
        tuple
            (B, C) outputs with a graph, and layer -> its output inside that graph.
        """
        with _collecting(self.model, layers) as outputs, self._propagating(), torch.enable_grad():
            result = first_tensor(self.model(images.detach()))
        return result, outputs

    def up_to(self, images: torch.Tensor, layer: str) -> torch.Tensor:
        """Run the network only up to `layer`, so that gradients with respect to `images` (which must require them) are relevances."""
        reached: list[torch.Tensor] = []

        def stop(module: torch.nn.Module, inputs: object, output: object) -> None:
            reached.append(first_tensor(output))
            raise _Reached

        handle = nearest_layer(self.model, layer).register_forward_hook(stop)
        try:
            with self._propagating(), torch.enable_grad():
                self.model(images)
        except _Reached:
            return reached[0]
        finally:
            handle.remove()
        raise SubjectError(
            "unused-layer", f"The layer {layer!r} takes no part in the forward pass.", "Audit another layer."
        )


@contextmanager
def _collecting(model: torch.nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect layer outputs; one without a graph becomes the start of one."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, object, object], None]:
        def hook(module: torch.nn.Module, inputs: object, output: object) -> None:
            tensor = first_tensor(output)
            # In place, because a folded batch norm recognises its convolution by the very tensor.
            outputs[name] = tensor if tensor.requires_grad else tensor.requires_grad_(True)

        return hook

    handles = [nearest_layer(model, name).register_forward_hook(keep(name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _fingerprint(model: torch.nn.Module) -> tuple[tuple[int, int], ...]:
    return tuple((value.data_ptr(), value._version) for value in model.state_dict(keep_vars=True).values())


_MODELS: WeakKeyDictionary[torch.nn.Module, RelevanceModel] = WeakKeyDictionary()


def relevance_model(model: torch.nn.Module, example: torch.Tensor) -> RelevanceModel:
    """The `RelevanceModel` of `model`, made on first use and again after its parameters have changed."""
    known = _MODELS.get(model)
    if known is None or known.stale:
        known = _MODELS[model] = RelevanceModel(model, example)
    return known
