"""Gradients in closed form against those of autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from semlens_audit.devices import has_bfloat16
from semlens_audit.lrp_pulls import pull_convolution, pull_linear, pull_one

CPU = torch.device("cpu")
CONVOLUTIONS = {
    "1 x 1": ((6, 5, 1, 1), {}),
    "1 x 1, stride": ((6, 5, 1, 1), {"stride": 2}),
    "3 x 3": ((6, 5, 3, 3), {"padding": 1}),
    "3 x 3 without padding": ((6, 5, 3, 3), {}),
    "3 x 5": ((6, 5, 3, 5), {"padding": (1, 2)}),
    "3 x 3, stride": ((6, 5, 3, 3), {"stride": 2, "padding": 1}),
    "3 x 3, wide padding": ((6, 5, 3, 3), {"padding": 4}),
    "3 x 3, dilated": ((6, 5, 3, 3), {"padding": 2, "dilation": 2}),
    "in groups": ((6, 2, 3, 3), {"padding": 1, "groups": 3}),
    "depthwise": ((6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "depthwise, 5 x 3": ((6, 1, 5, 3), {"padding": (2, 1), "groups": 6}),
    "depthwise, stride": ((6, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 6}),
    "depthwise, strides": ((6, 1, 3, 3), {"stride": (2, 3), "padding": (0, 1), "groups": 6}),
    "depthwise, wide padding": ((6, 1, 3, 3), {"padding": 3, "groups": 6}),
    "depthwise, dilated": ((6, 1, 3, 3), {"padding": 2, "dilation": 2, "groups": 6}),
    "depthwise, two outputs each": ((12, 1, 3, 3), {"padding": 1, "groups": 6}),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def made(name: str, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, dict[str, object], torch.Tensor]:
    """Input, weight, arguments and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    shape, named = CONVOLUTIONS[name]
    channels = shape[1] * int(named.get("groups", 1))
    value = torch.randn(3, channels, *size, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(shape, generator=generator)
    output = functional.conv2d(value, weight, **named)
    gradient = torch.randn(output.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    return value, weight, named, gradient


def by_autograd(value: torch.Tensor, weight: torch.Tensor, named: dict[str, object], gradient: torch.Tensor) -> torch.Tensor:
    own = value.clone().requires_grad_(True)
    return torch.autograd.grad(functional.conv2d(own, weight, **named), own, gradient)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(12, 12), (11, 14)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_is_the_gradient(name, size, dtype):
    if dtype == torch.bfloat16 and not has_bfloat16(CPU):
        pytest.skip("the processor has no bfloat16 instructions")
    value, weight, named, gradient = made(name, size)
    known = by_autograd(value, weight, named, gradient)
    pull = pull_convolution((value, weight), named)
    found = pull(gradient.to(dtype), shape=value.shape, weight=weight.to(dtype))
    assert found.dtype == dtype
    assert found.shape == known.shape
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(found.float(), known, rtol=tolerance, atol=tolerance * float(known.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["1 x 1", "3 x 3", "3 x 3 without padding", "3 x 5"])
def test_of_one_channel_is_that_of_all_where_the_others_have_none(name, dtype):
    if dtype == torch.bfloat16 and not has_bfloat16(CPU):
        pytest.skip("the processor has no bfloat16 instructions")
    value, weight, named, gradient = made(name, (12, 10))
    channels = torch.tensor([4, 0, 4])
    alone = torch.zeros_like(gradient)
    rows = torch.arange(3)
    alone[rows, channels] = gradient[rows, channels]
    known = by_autograd(value, weight, named, alone)
    found = pull_one((value, weight), named)(gradient[rows, channels].unsqueeze(1).to(dtype), channels, weight=weight.to(dtype))
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(found.float(), known, rtol=tolerance, atol=tolerance * float(known.abs().max()))


@pytest.mark.parametrize(
    "name", ["1 x 1, stride", "3 x 3, stride", "3 x 3, wide padding", "3 x 3, dilated", "in groups", "depthwise"]
)
def test_of_one_channel_there_is_no_shorter_way(name):
    value, weight, named, _ = made(name, (12, 12))
    assert pull_one((value, weight), named) is None


def test_padding_by_name_is_left_to_autograd():
    value, weight = torch.randn(1, 5, 8, 8), torch.randn(6, 5, 3, 3)
    assert pull_convolution((value, weight), {"padding": "same"}) is None
    assert pull_one((value, weight), {"padding": "same"}) is None


def test_flat_weights_give_one_map_to_all_channels():
    value, weight, named, gradient = made("3 x 3, stride", (12, 12))
    ones = torch.ones_like(weight)
    known = by_autograd(value, ones, named, gradient)
    found = pull_convolution((value, weight), named, flat=True)(gradient, shape=value.shape, weight=ones)
    assert found.shape == known.shape
    assert torch.allclose(found, known, rtol=1e-4, atol=1e-4)


def test_linear():
    weight, gradient = torch.randn(7, 5), torch.randn(3, 4, 7)
    value = torch.randn(3, 4, 5, requires_grad=True)
    (known,) = torch.autograd.grad(functional.linear(value, weight), value, gradient)
    assert torch.allclose(pull_linear(gradient, value.shape, weight), known, rtol=1e-5, atol=1e-5)
