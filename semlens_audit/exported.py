"""Networks that ``torch.export`` has saved (.pt2), with their layers under the names they were exported with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from semlens_audit.errors import SubjectError, UsageError

__all__ = ["load_exported"]

_DYNAMIC = "torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim('batch')},))"
_TOLERANCE = 1e-4
_NAMED = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "add", "add_", "avg_pool2d", "batch_norm", "bmm",
    "cat", "chunk", "clamp", "clamp_", "clamp_max", "clamp_min", "clone", "contiguous", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "div", "div_", "dropout", "elu", "elu_", "expand", "feature_dropout", "flatten",
    "flip", "gelu", "group_norm", "hardsigmoid", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "layer_norm",
    "leaky_relu", "leaky_relu_", "linear", "matmul", "max_pool2d", "mean", "mish", "mul", "mul_", "narrow", "pad", "permute",
    "pixel_shuffle", "prelu", "relu", "relu6", "relu_", "reshape", "roll", "select", "sigmoid", "sigmoid_", "silu", "silu_",
    "softmax", "softplus", "split", "squeeze", "stack", "sub", "sum", "tanh", "tanh_", "transpose", "unbind", "unsqueeze",
    "view",
}  # fmt: skip
"""aten operations whose arguments stand in the order of the functions of torch that have their names (batch norm: see below)."""


def load_exported(path: Path, size: int, batch: int, *, allow_code: bool = False) -> torch.nn.Module:
    """Load an exported program as a module whose sub-modules are those of the network it was made from.

    The saved graph is flat; its nodes still tell which sub-module each came from, by which ``torch.export.unflatten`` puts the
    hierarchy together again. Its operations are aten overloads, which are called here by the functions of torch that they
    implement, so that rules of relevance propagation find them.

    Parameters
    ----------
    path
        The .pt2 file.
    size
        Side of the square input, pixels.
    batch
        Number of inputs that are run at a time.
    allow_code
        Whether the user allowed running code from the file: reading such a file unpickles, and evaluates expressions.

    Raises
    ------
    UsageError
        ``code-not-allowed``.
    SubjectError
        ``bad-export``: unreadable, or exported in training mode; ``fixed-batch``: exported for another number of inputs;
        ``export-unfaithful``: put together again, it gives other outputs.
    """
    if not allow_code:
        raise UsageError(
            "code-not-allowed",
            f"The exported program {path.name} would be read with torch.export.load, which can run code from the file.",
            "If you trust where it comes from, run again with --allow-code; weights as .safetensors never need that.",
        )
    if not path.is_file():
        raise SubjectError("bad-export", "The exported program does not exist.", "Mend `model.name` in the audit.", file=str(path))
    import semlens_audit._torchvision  # noqa: F401  (the program may use its operations)

    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.export.load(str(path))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise SubjectError(
            "bad-export",
            f"The file is no exported program that this torch reads: {type(error).__name__}: {first}",
            f"Save it again with torch.export.save, by a torch no newer than {torch.__version__}.",
            file=str(path),
        ) from error
    _check_inputs(program, path, size, batch)
    _check_mode(program, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, model = program.module(), torch.export.unflatten(program)
    for module in model.modules():
        if isinstance(getattr(module, "graph", None), torch.fx.Graph):
            _name_operations(module)
    _check_same(plain, model, path, size)
    if not any(name for name, _ in model.named_modules()):
        raise SubjectError(
            "bad-export", "The program tells of no layers: its graph does not say which sub-module an operation belongs to.",
            f"Export the network itself: {_DYNAMIC}.", file=str(path),
        )  # fmt: skip
    return model


class _quiet:  # noqa: N801  (reads as a statement)
    """torch.export logs a traceback before it raises; the exception says all of it."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)


def _check_inputs(program: Any, path: Path, size: int, batch: int) -> None:
    names = set(program.graph_signature.user_inputs)
    inputs = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor) or inputs[0].ndim != 4 or inputs[0].shape[1] != 3:
        raise SubjectError(
            "bad-export", "The program does not take one batch of RGB images, (batch, 3, height, width).",
            f"Export a classifier of images: {_DYNAMIC}.", file=str(path),
        )  # fmt: skip
    shape: tuple[Any, ...] = tuple(inputs[0].shape)
    rows, height, width = shape[0], shape[2], shape[3]
    for side in (height, width):
        if isinstance(side, int) and side != size:
            raise SubjectError(
                "bad-export", f"The program was exported for inputs of {height} x {width} pixels, not {size} x {size}.",
                f"Set `preprocessing: {{size: {side}}}`, or export it for that size.", file=str(path),
            )  # fmt: skip
    if isinstance(rows, int):
        raise SubjectError(
            "fixed-batch", f"The program was exported for batches of exactly {rows}.",
            f"Export it with a batch of any size: {_DYNAMIC}.", file=str(path),
        )  # fmt: skip
    bounds = program.range_constraints.get(rows.node.expr)
    if bounds is not None and bool(bounds.upper < batch):
        raise SubjectError(
            "fixed-batch", f"The program was exported for batches of at most {int(bounds.upper)}; the audit runs {batch} at a time.",
            f"Set `measurement: {{batch_size: {int(bounds.upper)}}}`, or export it with a batch of any size: {_DYNAMIC}.", file=str(path),
        )  # fmt: skip


def _check_mode(program: Any, path: Path) -> None:
    """A program keeps the mode it was exported in for good."""
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        names = [argument.name for argument in node.target._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if given.get("training") is True or given.get("train") is True:
            raise SubjectError(
                "bad-export", "The program was exported in training mode: it drops values at random or uses statistics of the batch.",
                f"Export it in eval mode: {_DYNAMIC}.", file=str(path),
            )  # fmt: skip


def _check_same(plain: torch.nn.Module, model: torch.nn.Module, path: Path, size: int) -> None:
    images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            expected, given = plain(images), model(images)
    except Exception as error:
        raise SubjectError(
            "model-fails", f"The exported program does not run: {type(error).__name__}: {error}.",
            "Export it on the CPU, in single precision.", file=str(path),
        ) from error  # fmt: skip
    if isinstance(expected, torch.Tensor) and isinstance(given, torch.Tensor) and expected.shape == given.shape:
        if torch.allclose(expected, given, rtol=_TOLERANCE, atol=_TOLERANCE * max(1.0, float(expected.abs().max()))):
            return
    elif type(expected) is type(given):
        return  # whether it is a classifier is for others to say
    raise SubjectError(
        "export-unfaithful", "With its layers put together again, the exported program gives other outputs.",
        "Export it anew, or audit the network from own code (source: code).", file=str(path),
    )  # fmt: skip


def _name_operations(module: Any) -> None:
    """Call the operations of a graph by the functions of torch that they implement."""
    for node in module.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
            function = _function(node.target)
            if function is not None:
                node.target = function
    if hasattr(module, "recompile"):
        module.recompile()


def _batch_norm(
    value: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float, _cudnn: bool
) -> torch.Tensor:
    """``aten.batch_norm``, whose arguments are in another order."""
    return functional.batch_norm(value, mean, variance, weight, bias, training, momentum, eps)


def _function(target: Any) -> Callable[..., Any] | None:
    """The function that people call for an aten operation, or ``None`` where it is left as it is."""
    name = target._schema.name.partition("::")[2]
    if name not in _NAMED:
        return None
    if name == "batch_norm":
        return _batch_norm
    first = target._schema.arguments[0].name if target._schema.arguments else ""
    for place in (*((torch.Tensor,) if first == "self" else ()), torch, torch._C._nn):
        found = getattr(place, name, None)
        if callable(found):
            return found
    return None
