"""Weights files: found, read without running code, loaded strictly, named by their content. Imports torch only to read one."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semlens_audit.errors import SubjectError

if TYPE_CHECKING:
    import torch

__all__ = ["load_weights", "read_state", "state_digest", "weights_file"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema")
_LISTED = 3


def weights_file(path: Path) -> Path:
    """The weights file that `path` means: itself, or the one weights file in that folder.

    Raises
    ------
    SubjectError
        ``missing-weights`` or ``unsafe-weights`` (a format that cannot be read without running code).
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if len(files) != 1:
            raise SubjectError(
                "missing-weights",
                f"The folder holds {len(files)} weights files; it must be exactly one.",
                "Name the file itself.",
                file=str(path),
            )
        path = files[0]
    if not path.is_file():
        raise SubjectError(
            "missing-weights", "The weights file does not exist.", "Mend `weights` in the audit.", file=str(path)
        )
    if path.suffix not in _SUFFIXES:
        raise SubjectError(
            "unsafe-weights",
            f"Weights with the suffix {path.suffix!r} are not read.",
            "Save a state dict as .safetensors, or with torch.save as .pt.",
            file=str(path),
        )
    return path


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running any code from the file.

    Raises
    ------
    SubjectError
        ``unsafe-weights`` for a pickle that holds more than tensors, ``unreadable-weights`` for a damaged file,
        ``unsupported-weights`` for quantised, sparse or empty (meta) tensors.
    """
    import torch

    path = weights_file(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SubjectError(
            "unsafe-weights",
            "The weights file holds pickled objects other than tensors; loading it could run code.",
            "Save only the state dict: torch.save(model.state_dict(), ...), better as .safetensors.",
            file=str(path),
        ) from error
    except Exception as error:
        raise SubjectError(
            "unreadable-weights",
            f"The weights file cannot be read: {type(error).__name__}: {error}.",
            "Copy it again.",
            file=str(path),
        ) from error
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, torch.Tensor) for v in value.values()):
        raise SubjectError(
            "unreadable-weights",
            "The weights file holds no state dict (a mapping from names to tensors).",
            "Save model.state_dict().",
            file=str(path),
        )
    _check_dense(value, path)
    return {str(key): tensor for key, tensor in value.items()}


def _check_dense(state: Mapping[Any, torch.Tensor], path: Path) -> None:
    """Refuse tensors that hold no plain numbers one by one: quantised, sparse, or without data."""
    import torch

    for name, tensor in state.items():
        kind = (
            "is quantised" if tensor.is_quantized
            else "has no data (device `meta`)" if tensor.device.type == "meta"
            else f"is sparse ({str(tensor.layout).removeprefix('torch.')})" if tensor.layout is not torch.strided
            else "is nested" if tensor.is_nested
            else None
        )  # fmt: skip
        if kind is not None:
            raise SubjectError(
                "unsupported-weights",
                f"The tensor {name!r} {kind}; only dense tensors are audited.",
                "Save the network before it was quantised or pruned to sparse tensors, or convert it back: tensor.dequantize(), "
                "tensor.to_dense().",
                file=str(path),
            )


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a state dict strictly, converting half precision to the model's single precision.

    A ``module.`` prefix on every name, which DataParallel leaves, is dropped.

    Raises
    ------
    SubjectError
        ``weights-do-not-fit``, listing the first missing, unexpected and mis-shaped tensors; ``weights-not-finite``.
    """
    import torch

    state = read_state(path)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    own = model.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in state and name not in optional]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    complaints = [
        f"{len(names)} {what} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if complaints:
        raise SubjectError(
            "weights-do-not-fit",
            f"The weights do not fit the architecture: {'; '.join(complaints)}.",
            "Mend the architecture's name or arguments (e.g. num_classes), or the weights' path.",
            file=str(path),
        )
    broken = [
        name for name, tensor in state.items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise SubjectError(
            "weights-not-finite",
            f"{len(broken)} tensors hold NaN or infinities ({', '.join(broken[:_LISTED])}).",
            "Train or convert the model again.",
            file=str(path),
        )
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, strict=False)


def state_digest(model: torch.nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer, sorted by name: the identity of the network."""
    import torch

    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        state.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return state.hexdigest()
