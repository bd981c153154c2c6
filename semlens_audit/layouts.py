"""Layouts of a layer's output, brought to one of three: (B, K, H, W) maps, (B, T, K) tokens, or (B, K) vectors.

Networks write the same thing in different orders: convolutions give (B, K, H, W), Swin and the inside of ConvNeXt blocks
(B, H, W, K), transformers (B, T, K) or (T, B, K). Whatever reads or replaces a layer's output does so through `observed`, which
shows it in one order and puts it back in the network's own, gradients included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch.fx import Graph

from semlens_audit.errors import SubjectError
from semlens_audit.networks import nearest_layer

__all__ = ["Layout", "first_tensor", "grid_of", "layout_of", "observed", "prefix_tokens", "replace_first"]

_ATTENTION = re.compile("att(entio)?n", re.IGNORECASE)
_SPATIAL = {"conv2d", "batch_norm", "_batch_norm", "group_norm", "instance_norm"}
_PREFIXES = ("class_token", "class_embedding", "cls_token", "dist_token", "distillation_token", "reg_token", "register_tokens")
_MOST_PREFIX_TOKENS = 8
_CHANNELS_FIRST = (
    torch.nn.modules.conv._ConvNd, torch.nn.modules.batchnorm._BatchNorm, torch.nn.GroupNorm, torch.nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip


class Layout(Enum):
    """Order of the axes in which a layer gives its output."""

    MAPS = "(B, K, H, W)"
    CHANNELS_LAST = "(B, H, W, K)"
    TOKENS = "(B, T, K)"
    TOKENS_FIRST = "(T, B, K)"
    VECTOR = "(B, K)"

    def canonical(self, output: torch.Tensor) -> torch.Tensor:
        """`output` as (B, K, H, W), (B, T, K) or (B, K): the tensor itself, or a view of it."""
        if self is Layout.CHANNELS_LAST:
            return output.permute(0, 3, 1, 2)
        return output.transpose(0, 1) if self is Layout.TOKENS_FIRST else output

    def restored(self, output: torch.Tensor) -> torch.Tensor:
        """Inverse of `canonical`."""
        if self is Layout.CHANNELS_LAST:
            return output.permute(0, 2, 3, 1)
        return output.transpose(0, 1) if self is Layout.TOKENS_FIRST else output


def first_tensor(output: object) -> torch.Tensor:
    """The first tensor of a layer's output, which may be a tensor or a tuple, list or mapping that holds some.

    Raises
    ------
    SubjectError
        ``no-tensor-output``.
    """
    if isinstance(output, torch.Tensor):
        return output
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(parts, list | tuple):
        for part in parts:
            if isinstance(part, torch.Tensor):
                return part
    raise SubjectError(
        "no-tensor-output", f"The layer returns {type(output).__name__}, which holds no tensor.", "Audit another layer."
    )


def replace_first(output: object, tensor: torch.Tensor) -> object:
    """`output` with its first tensor replaced, in the same container."""
    if isinstance(output, torch.Tensor):
        return tensor
    old = first_tensor(output)
    if isinstance(output, Mapping):
        return type(output)({key: tensor if part is old else part for key, part in output.items()})  # type: ignore[call-arg]
    parts = [tensor if part is old else part for part in output]  # type: ignore[attr-defined]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*parts)
    return type(output)(parts)  # type: ignore[call-arg]


@contextmanager
def observed(
    model: torch.nn.Module, layers: Sequence[str], see: Callable[[str, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Inside, every forward pass shows the outputs of the named layers to `see`, in canonical layout.

    Parameters
    ----------
    model
        Any network.
    layers
        Names of sub-modules.
    see
        Called with the layer's name and its output (first tensor of a tuple) as (B, K, H, W), (B, T, K) or (B, K). What it
        returns takes the output's place, whatever its number of rows; ``None``: what it was shown does, which is the very tensor
        that the layer gave unless the axes had to be put in order.

    Raises
    ------
    SubjectError
        ``unknown-layer``; in the forward pass ``no-tensor-output``, ``unknown-layout``, ``ambiguous-layout`` or
        ``partitioned-output``, see `layout_of`.
    """
    batch: list[int | None] = [None]

    def start(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        batch[0] = next((len(part) for part in inputs if isinstance(part, torch.Tensor) and part.ndim), None)

    def reading(name: str) -> Callable[[torch.nn.Module, object, object], object]:
        def hook(_module: torch.nn.Module, _inputs: object, output: object) -> object:
            tensor = first_tensor(output)
            layout = layout_of(model, name, tensor, batch[0])
            shown = layout.canonical(tensor)
            given = see(name, shown)
            if given is None and shown is tensor:
                return None
            return replace_first(output, layout.restored(shown if given is None else given))

        return hook

    handles = [nearest_layer(model, name).register_forward_hook(reading(name)) for name in layers]
    handles.append(model.register_forward_pre_hook(start))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layout_of(model: torch.nn.Module, name: str, output: torch.Tensor, batch: int | None) -> Layout:
    """In which order the layer called `name` gives its output.

    Inputs are square, so of four axes the two equal ones are space; where three are equal, what the layer is made of decides.

    Parameters
    ----------
    model
        The network.
    name
        Name of the layer in it.
    output
        The layer's output on a batch.
    batch
        Number of inputs in the batch, where known.

    Raises
    ------
    SubjectError
        ``unknown-layout``: no known order of axes, or the axes of attention weights; ``ambiguous-layout``: more than one fits;
        ``partitioned-output``: the layer cuts its input into pieces, such as the windows of Swin.
    """
    shape = tuple(output.shape)
    if output.ndim == 3 and batch is not None and shape[1] == batch:
        sequence_first = any(getattr(module, "batch_first", True) is False for module in model.modules())
        if shape[0] != batch:
            if sequence_first:
                return Layout.TOKENS_FIRST
        elif sequence_first:
            raise _refused(
                "ambiguous-layout", name, shape, "there are as many inputs in a batch as tokens, and the model may put either first",
                "Choose another `measurement: {batch_size: ...}`.",
            )  # fmt: skip
    if batch is not None and output.ndim in (2, 3, 4) and shape[0] != batch:
        raise _refused(
            "partitioned-output", name, shape,
            f"from {batch} inputs it gives {shape[0]} rows, so it works on pieces of the input, such as windows",
            f"Audit {_outside(model, name)}.",
        )  # fmt: skip
    if output.ndim == 4:
        return _of_four(model, name, shape)
    if output.ndim == 3:
        return Layout.TOKENS
    if output.ndim == 2:
        return Layout.VECTOR
    raise _unknown(name, shape)


def _of_four(model: torch.nn.Module, name: str, shape: tuple[int, ...]) -> Layout:
    module = nearest_layer(model, name)
    parent = nearest_layer(model, name.rpartition(".")[0]) if "." in name else model
    inside = _ATTENTION.search(type(parent).__name__) or _ATTENTION.search(name.rpartition(".")[0].rpartition(".")[2])
    if inside and not _channels_first(module) and not _channels_last(module):
        raise _refused(
            "unknown-layout", name, shape, "inside attention, its axes are heads and pairs of tokens, not places",
            f"Audit {_outside(model, name)}.",
        )  # fmt: skip
    first, second, third = shape[1:]
    if second == third != first:
        return Layout.MAPS
    if first == second != third:
        return Layout.CHANNELS_LAST
    if not first == second == third:
        raise _unknown(name, shape)
    if not _channels_last(model):
        return Layout.MAPS
    if _channels_first(module) != _channels_last(module):
        return Layout.MAPS if _channels_first(module) else Layout.CHANNELS_LAST
    raise _refused(
        "ambiguous-layout", name, shape, "components and places are equal in number, so their axes cannot be told apart",
        "Audit a neighbouring layer, or the same one at another `preprocessing.size`.",
    )  # fmt: skip


def _operations(module: torch.nn.Module) -> set[str]:
    """Names of the operations that a module of an exported program runs itself; empty for any other."""
    graph = getattr(module, "graph", None)
    return {getattr(node.target, "__name__", "").partition(".")[0] for node in graph.nodes} if isinstance(graph, Graph) else set()


def _channels_first(module: torch.nn.Module) -> bool:
    return any(
        isinstance(part, _CHANNELS_FIRST) or type(part).__name__.endswith("Norm2d") or _operations(part) & _SPATIAL
        for part in module.modules()
    )


def _channels_last(module: torch.nn.Module) -> bool:
    """Whether it holds a layer norm over the last axis, or is linear: nothing else puts components last."""
    if isinstance(module, torch.nn.Linear) or "linear" in _operations(module):
        return True
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm | torch.nn.RMSNorm) and not type(part).__name__.endswith("2d"):
            return True
        if "layer_norm" in _operations(part) and "permute" not in _operations(part):
            return True
    return False


def _outside(model: torch.nn.Module, name: str) -> str:
    """What to audit instead of a layer inside attention: the block that holds it."""
    parts = name.split(".")
    for place in range(1, len(parts)):
        kind = type(nearest_layer(model, ".".join(parts[: place + 1]))).__name__
        if _ATTENTION.search(kind) or _ATTENTION.search(parts[place]):
            return f"the block that holds it, `{'.'.join(parts[:place])}`"
    return f"the block that holds it, `{'.'.join(parts[:-1])}`" if len(parts) > 1 else "another layer"


def _refused(slug: str, name: str, shape: tuple[int, ...], why: str, hint: str) -> SubjectError:
    return SubjectError(slug, f"The output of layer {name!r} has shape {shape}: {why}.", hint)


def _unknown(name: str, shape: tuple[int, ...]) -> SubjectError:
    return _refused(
        "unknown-layout", name, shape, "components cannot be told from places",
        "Audit a layer that returns (batch, components, height, width), (batch, height, width, components), "
        "(batch, tokens, components) or (batch, components), with height equal to width.",
    )  # fmt: skip


def prefix_tokens(model: torch.nn.Module) -> int | None:
    """Number of tokens before those of the grid (class, distillation, registers), where the model says; else ``None``.

    timm says ``num_prefix_tokens``; torchvision, open_clip and others hold a parameter for each kind of such tokens.
    """
    for module in model.modules():
        said = getattr(module, "num_prefix_tokens", None)
        if isinstance(said, int) and not isinstance(said, bool):
            return said
    found = [
        value.numel() // value.shape[-1]
        for name, value in model.named_parameters()
        if name.rpartition(".")[2] in _PREFIXES and value.ndim and value.numel()
    ]
    return sum(found) if found else None


def grid_of(tokens: int, prefix: int | None = None) -> tuple[int, int] | None:
    """How tokens form a square grid.

    Parameters
    ----------
    tokens
        T, prefix tokens included where the layer has them.
    prefix
        What `prefix_tokens` says of the model; a layer before they are added, or after they are dropped, has none. ``None``: the
        largest square that leaves at most 8 over is meant.

    Returns
    -------
    tuple or None
        (prefix tokens, side of the grid), ``None`` where there is no square.
    """
    side = math.isqrt(max(tokens, 0))
    if prefix is None:
        return (tokens - side * side, side) if side >= 1 and tokens - side * side <= _MOST_PREFIX_TOKENS else None
    for before in (prefix, 0):
        inner = math.isqrt(max(tokens - before, 0))
        if inner >= 1 and inner * inner == tokens - before:
            return before, inner
    return None
