"""Gradients of linear operations with respect to their inputs, in closed form: what relevance is sent back with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

__all__ = ["bind", "pull_convolution", "pull_linear", "pull_one"]

_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _geometry(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[int], list[int], list[int], list[int], int] | None:
    """Shape of the weights, stride, padding, dilation and groups of a 2-d convolution; ``None`` where padding is given by name."""
    bound = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **bind(_NAMES, args, kwargs)}
    if isinstance(bound["padding"], str):
        return None
    stride, padding, dilation = (
        [value, value] if isinstance(value, int) else list(value) * (3 - len(value))
        for value in (bound["stride"], bound["padding"], bound["dilation"])
    )
    return list(bound["weight"].shape), stride, padding, dilation, int(bound["groups"])


def pull_linear(gradient: torch.Tensor, shape: Sequence[int], weight: torch.Tensor) -> torch.Tensor:
    """The gradient of a linear layer with respect to its input."""
    return torch.matmul(gradient, weight)


def _direct(gradient: torch.Tensor) -> bool:
    """Whether oneDNN convolves it: its forward convolutions are its fastest operations, also for gradients."""
    return gradient.device.type == "cpu" and gradient.dtype != torch.float64 and torch.backends.mkldnn.is_available()


def _pull_pointwise(gradient: torch.Tensor, shape: Sequence[int], weight: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution is one product of matrices once channels are last; torch's own way may not take it as one."""
    if _direct(gradient):
        turned = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return torch.ops.aten.mkldnn_convolution(gradient, turned, None, [0, 0], [1, 1], [1, 1], 1)
    return torch.matmul(gradient.permute(0, 2, 3, 1), weight[:, :, 0, 0]).permute(0, 3, 1, 2)


def _pull_depthwise(
    gradient: torch.Tensor, shape: Sequence[int], weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    """The gradient of a convolution of each channel by itself is one with the kernel turned round, of what zeros have spread."""
    kernel = list(weight.shape[2:])
    if list(stride) != [1, 1]:
        spread = [size - k + 1 + 2 * p for size, k, p in zip(shape[2:], kernel, padding, strict=True)]
        shaped = (*gradient.shape[:2], *spread)
        wide = torch.empty(shaped, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
        wide[:, :, :: stride[0], :: stride[1]] = gradient
        gradient = wide
    rest = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    return torch.ops.aten.mkldnn_convolution(gradient, weight.flip(2, 3), None, rest, [1, 1], [1, 1], len(weight))


def pull_convolution(
    args: Sequence[Any], kwargs: Mapping[str, Any], *, flat: bool = False
) -> Callable[..., torch.Tensor] | None:
    """The gradient of a 2-d convolution with respect to its input, called directly; none for padding given by name.

    With `flat`, all weights are one: channels of the output may be added up first, and those of the input are all alike.
    """
    geometry = _geometry(args, kwargs)
    if geometry is None:
        return None
    kernel, stride, padding, dilation, groups = geometry
    if not flat and groups == 1 and kernel[2:] == [1, 1] and stride == [1, 1] and padding == [0, 0]:
        return _pull_pointwise
    # Each channel by itself, and no place of the padded input that no kernel has seen.
    apart = groups == kernel[0] > 1 and kernel[1] == 1 and dilation == [1, 1]
    apart = apart and all(p < k for p, k in zip(padding, kernel[2:], strict=True))

    def pull(gradient: torch.Tensor, shape: Sequence[int], weight: torch.Tensor) -> torch.Tensor:
        channels, wanted = shape[1], (len(gradient), *shape[1:])
        if flat and groups == 1:
            gradient = gradient.sum(dim=1, keepdim=True, dtype=torch.float32)
            weight, wanted = weight[:1, :1].float(), (len(gradient), 1, *shape[2:])
        dtype = gradient.dtype
        if apart and _direct(gradient) and (dtype == torch.bfloat16 or stride == [1, 1]):
            return _pull_depthwise(gradient, shape, weight, stride, padding)
        if dtype == torch.bfloat16 and groups > 1 and stride != [1, 1] and gradient.device.type == "cpu":
            gradient, weight = gradient.float(), weight.float()  # oneDNN has no fast way in bfloat16
        # Of the input only its shape and layout matter.
        like = torch.empty(wanted, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
        result: tuple[torch.Tensor, ...] = torch.ops.aten.convolution_backward(
            gradient, like, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )
        return result[0].expand(-1, channels, -1, -1) if flat and groups == 1 else result[0].to(dtype)

    return pull


def pull_one(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., torch.Tensor] | None:
    """The gradient of a 2-d convolution where only one channel of each row's output has any: of the weights, only its own matter.

    Parameters
    ----------
    args, kwargs
        Of the convolution.

    Returns
    -------
    Callable or None
        (gradient (N, 1, H, W), channels (N,) int64, weight) -> (N, K, H, W) gradient of the input; ``None`` where convolutions do not
        go from place to place, in all channels, with padding in which every place is seen.
    """
    geometry = _geometry(args, kwargs)
    if geometry is None:
        return None
    kernel, stride, padding, dilation, groups = geometry
    rest = [k - 1 - p for k, p in zip(kernel[2:], padding, strict=True)]
    if groups != 1 or stride != [1, 1] or dilation != [1, 1] or min(rest) < 0:
        return None

    def pull(gradient: torch.Tensor, channels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        own = weight[channels].flip(2, 3).flatten(2).transpose(1, 2)  # (N, places of the kernel, K)
        seen = functional.unfold(gradient, tuple(kernel[2:]), padding=tuple(rest)).transpose(1, 2)
        height, width = (size + 2 * r - k + 1 for size, r, k in zip(gradient.shape[2:], rest, kernel[2:], strict=True))
        return torch.bmm(seen, own).unflatten(1, (height, width)).permute(0, 3, 1, 2)

    return pull
