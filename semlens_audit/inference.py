"""A network as its forward pass is run quickest: batch norms folded into their convolutions, channels last, in bfloat16 where asked.

Nothing here changes the network that it is given; parameters that stay as they are, are shared with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

__all__ = ["Precision", "folded", "halved", "in_precision", "shared_copy"]

Precision = Literal["fp32", "bf16"]

_Change = Callable[[torch.nn.Module], torch.nn.Module]


class _Passed(torch.nn.BatchNorm2d):
    """A batch norm that has gone into the convolution before it; it stays one by type, for whoever asks what a layer is made of."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return input


class _Exact(torch.nn.Module):
    """A layer that computes in single precision inside autocast."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, value: torch.Tensor) -> Any:
        with torch.autocast(value.device.type, enabled=False):
            return self.layer(value.float())


def shared_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the modules that shares every parameter and buffer with `model`."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def folded(model: torch.nn.Module, example: torch.Tensor) -> tuple[torch.nn.Module, int]:
    """Fold each batch norm that follows a convolution into its weights: w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + c.

    Here g, c, m, v and e are the norm's scale, shift, running mean, running variance and epsilon; computed in double precision. Pairs are
    found by running the network once. What else reads a convolution's output is not seen: hold the result against `model`.

    Parameters
    ----------
    model
        In eval mode.
    example
        (1, 3, S, S) input.

    Returns
    -------
    network : torch.nn.Module
        Shares what is not folded with `model`.
    count : int
        Norms folded.
    """
    network = shared_copy(model)
    pairs = _pairs(network, example)
    for convolution, norm in pairs:
        _fold(network.get_submodule(convolution), network.get_submodule(norm))
        _replace(network, norm, _passed)
    return network.to(memory_format=torch.channels_last), len(pairs)  # type: ignore[call-overload]


def _pairs(network: torch.nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms that work on their outputs, each of them run exactly once."""
    made: dict[int, tuple[str, torch.Tensor]] = {}
    runs: dict[str, int] = {}
    found: list[tuple[str, str]] = []

    def after(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            made[id(output)] = name, output  # kept, so that no other tensor gets its id
            runs[name] = runs.get(name, 0) + 1

        return hook

    def before(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            runs[name] = runs.get(name, 0) + 1
            if inputs and id(inputs[0]) in made:
                found.append((made[id(inputs[0])][0], name))

        return hook

    handles = []
    for name, module in network.named_modules():
        if type(module) is torch.nn.Conv2d:
            handles.append(module.register_forward_hook(after(name)))
        elif _foldable(module):
            handles.append(module.register_forward_pre_hook(before(name)))
    try:
        with torch.inference_mode():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    used = [name for pair in found for name in pair]
    return [pair for pair in found if all(runs[name] == 1 and used.count(name) == 1 for name in pair)]


def _foldable(module: torch.nn.Module) -> bool:
    plain = type(module) is torch.nn.BatchNorm2d or _acts(module)
    return plain and not module.training and module.running_mean is not None


def _acts(module: torch.nn.Module) -> bool:
    """Whether it is timm's batch norm with an activation behind it."""
    return type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm.")


def _passed(norm: torch.nn.Module) -> torch.nn.Module:
    if _acts(norm):
        return torch.nn.Sequential(_passed_norm(norm), norm.drop, norm.act)  # type: ignore[arg-type]
    return _passed_norm(norm)


def _passed_norm(norm: Any) -> torch.nn.Module:
    return _Passed(norm.num_features, affine=False, track_running_stats=False).eval()


@torch.no_grad()
def _fold(convolution: Any, norm: Any) -> None:
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = 1.0 / torch.sqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -mean * scale if convolution.bias is None else (convolution.bias.double() - mean) * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    kind = convolution.weight.dtype
    weight = convolution.weight.double() * scale[:, None, None, None]
    convolution.weight = torch.nn.Parameter(weight.to(kind), requires_grad=False)
    convolution.bias = torch.nn.Parameter(bias.to(kind), requires_grad=False)


def _replace(network: torch.nn.Module, name: str, change: _Change) -> None:
    above, _, own = name.rpartition(".")
    parent = network.get_submodule(above) if above else network
    setattr(parent, own, change(getattr(parent, own)))


@torch.no_grad()
def halved(model: torch.nn.Module, example: torch.Tensor | None = None) -> torch.nn.Module:
    """A copy for autocast to bfloat16 whose weights need no cast at every call.

    Convolutions, linear layers and attention of exactly PyTorch's own kinds get weights in bfloat16; whatever else a network
    holds, autocast treats as always. What it gives has to be held against single precision, as what autocast alone gives would.

    Parameters
    ----------
    model
        In eval mode.
    example
        (1, 3, S, S) input; where given, the linear layer whose output is the network's stays in single precision, so that outputs are not
        rounded to eight bits.
    """
    network = shared_copy(model)
    last = None if example is None else _last(network, example)
    for name, module in list(network.named_modules()):
        if name == last:
            continue
        if type(module) in (torch.nn.Conv2d, torch.nn.Linear, torch.nn.MultiheadAttention):
            for own, value in list(module.named_parameters(recurse=False)):
                if value.dtype == torch.float32:
                    module.register_parameter(own, torch.nn.Parameter(value.bfloat16(), requires_grad=False))
    if last is not None:
        _replace(network, last, _Exact)
    return network


def _last(network: torch.nn.Module, example: torch.Tensor) -> str | None:
    """Name of the linear layer, run once, whose output is the network's; ``None`` where there is none."""
    outputs: dict[str, list[torch.Tensor]] = {}

    def after(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs.setdefault(name, []).append(output)

    handles = [
        module.register_forward_hook(after(name)) for name, module in network.named_modules() if name and type(module) is torch.nn.Linear
    ]
    try:
        with torch.inference_mode():
            final = network(example)
    finally:
        for handle in handles:
            handle.remove()
    return next((name for name, made in outputs.items() if len(made) == 1 and made[0] is final), None)


@contextmanager
def in_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inference without graphs, with autocast to bfloat16 where that is the precision."""
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield
