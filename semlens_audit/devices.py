"""Devices that networks run on. Imports torch only once one is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semlens_audit.arithmetic import fix_arithmetic
from semlens_audit.errors import ExecutionError, UsageError
from semlens_audit.store import StageState

if TYPE_CHECKING:
    import torch

__all__ = ["describe", "device_of", "find_device", "has_bfloat16", "on_device", "require_name", "require_same"]


def require_name(name: str) -> None:
    """Raise a `UsageError` ``unknown-device`` unless `name` is one that a device can have; needs no torch."""
    kind, _, number = name.partition(":")
    if name != "auto" and (kind not in ("cpu", "cuda") or (":" in name and not (kind == "cuda" and number.isdecimal()))):
        raise UsageError("unknown-device", f"{name!r} is no device.", "Write auto, cpu, cuda or cuda:N.")


def find_device(name: str) -> torch.device:
    """The device called `name`, with an arithmetic that is one: see `semlens_audit.arithmetic`.

    Parameters
    ----------
    name
        ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: the first CUDA device if there is one, else the CPU.

    Raises
    ------
    UsageError
        ``unknown-device``: another name. ``no-cuda``: CUDA is asked for by name, and there is no such device.
    """
    import torch

    require_name(name)
    fix_arithmetic()
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not count:
        return torch.device("cpu")
    wanted = int(number) if number else 0
    if wanted >= count:
        have = f"only {count} of them" if count else "none that this PyTorch can use"
        raise UsageError("no-cuda", f"The device {name!r} is asked for, but there is {have}.", "Use --device cpu or --device auto.")
    return torch.device("cuda", wanted)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the parameters of `model` are; the CPU where it has none."""
    import torch

    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def describe(device: torch.device) -> str:
    """``cpu``, or ``cuda (NVIDIA H200)``: what a stage records, the same for like devices of one machine."""
    import torch

    return "cpu" if device.type == "cpu" else f"{device.type} ({torch.cuda.get_device_name(device)})"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by instructions of its own, instead of emulating it."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(native is not None and native())


def out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed for want of memory, which says nothing about whether it can be done."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; on its way to a GPU it is pinned, so that the copy waits for nothing."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def require_same(state: StageState, device: str) -> None:
    """Refuse to go on with a stage on another device than the one that it was begun on: its rows would differ in their last bits.

    Parameters
    ----------
    state
        The stage; its fact ``device`` says where it was begun.
    device
        `describe` of the present one.

    Raises
    ------
    ExecutionError
        ``other-device``, naming both.
    """
    begun = state.facts.get("device")
    if begun is not None and begun != device:
        where = str(begun).partition(" ")[0]
        raise ExecutionError(
            "other-device",
            f"The stage {state.name!r} was begun on {begun} and is asked to go on with {device}; its rows would not be of one kind.",
            f"Run with --device {where} on a machine that has it, or give the audit another `store:`.",
        )
