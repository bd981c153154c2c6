"""Many conditions at once against one at a time by automatic differentiation, which the tests of `lrp` hold against zennit."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import semlens_audit._torchvision  # noqa: F401
from semlens_audit import lrp_conditional
from semlens_audit.cropping import boxes
from semlens_audit.devices import has_bfloat16
from semlens_audit.lrp import relevance_model
from semlens_audit.lrp_conditional import Conditional
from tests.unit.family_world import images, settle
from tests.unit.test_lrp import Gated, small_vgg

# isort: split
import timm
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

native = pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="the processor has no bfloat16 instructions")


pytestmark = pytest.mark.usefixtures("one_thread")


class Shared(nn.Module):
    """One map added to another of one channel, halves swapped, pools of both kinds, a convolution padded by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 1, 1)
        self.wide, self.last = nn.Conv2d(6, 8, 3, padding="same"), nn.Conv2d(8, 5, 3, stride=2, groups=1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.stem(x))
        x = x + self.one(x)
        x = functional.avg_pool2d(functional.relu(self.wide(x)), 2) + functional.max_pool2d(self.wide(x), 2)
        x = torch.cat(torch.chunk(x, 2, dim=1)[::-1], dim=1)
        return self.head(functional.relu(self.last(x)).mean((2, 3)))


NETWORKS = {
    "residual": (lambda: ResNet(BasicBlock, [2, 1, 1, 1], num_classes=4), "layer3", 64),
    "bottleneck": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4), "layer2", 64),
    "plain": (lambda: small_vgg([8, "M", 16, "M", 16], batch_norm=True), "features.8", 32),
    "inverted residual": (lambda: models.mobilenet_v2(num_classes=5, width_mult=0.25), "features.8", 64),
    "dense": (lambda: models.DenseNet(8, (2, 2), 16, num_classes=5), "features.denseblock2", 64),
    "gates": (Gated, "squeeze", 12),
    "depthwise, normalised": (lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), "stages.1", 64),
    "gated depthwise": (lambda: timm.create_model("mobilenetv3_small_050"), "blocks.2", 64),
    "shared": (Shared, "last", 16),
    "a layer without places": (lambda: small_vgg([8, "M"]), "classifier.0", 32),
    "a shallow layer": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4), "conv1", 32),
}


def made(name: str, *, bias: bool = True) -> tuple[nn.Module, str, torch.Tensor]:
    make, layer, size = NETWORKS[name]
    torch.manual_seed(0)
    return settle(make(), bias=bias), layer, images(2, size)


def one_by_one(model: nn.Module, batch: torch.Tensor, layer: str, components: torch.Tensor) -> torch.Tensor:
    """Slow: a backward pass of torch's autograd for each condition."""
    activation, inputs = relevance_model(model, batch).up_to(batch, layer)
    found = []
    for condition in components:
        start = torch.zeros_like(activation)
        for row, component in enumerate(condition):
            start[row, component] = activation.detach()[row, component]
        (gradient,) = torch.autograd.grad(activation, inputs, start, retain_graph=True)
        found.append(gradient.sum(dim=1))
    return torch.stack(found)


def conditional(model: nn.Module, batch: torch.Tensor, layer: str, **options: object) -> Conditional:
    activation, inputs = relevance_model(model, batch).up_to(batch, layer, options.get("dtype"))
    return Conditional(activation, inputs, **options)


def some(model: nn.Module, batch: torch.Tensor, layer: str, count: int) -> torch.Tensor:
    """(count, B) components of which all are active on their images."""
    activation, _ = relevance_model(model, batch).up_to(batch, layer)
    total = activation.detach().abs().flatten(2).sum(2) if activation.ndim == 4 else activation.detach().abs()
    return total.topk(count, dim=1).indices.T


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_one_condition_at_a_time(name):
    model, layer, batch = made(name)
    components = some(model, batch, layer, 3)
    slow = one_by_one(model, batch, layer, components)
    run = conditional(model, batch, layer)
    for _ in range(2):  # what the first call keeps must serve the second
        found = run(components)
        assert found.shape == slow.shape
        assert found.dtype == torch.float32
        scale = slow.abs().amax(dim=(2, 3), keepdim=True)
        assert (scale > 0).all()
        assert float(((found - slow).abs() / scale).max()) < 1e-3


@pytest.mark.parametrize("name", ["residual", "inverted residual", "dense"])
def test_rows_are_divided_without_a_trace(name, monkeypatch):
    model, layer, batch = made(name)
    components = some(model, batch, layer, 4)
    whole = conditional(model, batch, layer)(components)
    monkeypatch.setattr(lrp_conditional, "_ROWS", 1)
    parts = conditional(model, batch, layer)(components)
    assert torch.allclose(parts, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_the_order_of_conditions_does_not_matter_nor_what_they_are_computed_with():
    model, layer, batch = made("residual")
    components = some(model, batch, layer, 4)
    run = conditional(model, batch, layer)
    together, reverse = run(components), run(components.flip(0)).flip(0)
    assert torch.equal(together, reverse)
    others = components.clone()
    others[1:] = components[:1]
    assert torch.equal(run(others)[0], together[0])


@pytest.mark.parametrize("name", ["residual", "bottleneck", "plain", "dense"])
def test_relevance_is_conserved_without_biases_from_the_component_to_the_pixels(name):
    model, layer, batch = made(name, bias=False)
    components = some(model, batch, layer, 2)
    activation, _ = relevance_model(model, batch).up_to(batch, layer)
    put_in = activation.detach()[torch.arange(2), components].sum((2, 3))
    run = conditional(model, batch, layer)
    assert torch.allclose(run(components).sum((2, 3)), put_in, rtol=2e-2)
    if name != "plain":
        half = conditional(model, batch, layer, side=batch.shape[-1] // 4)(components)
        assert half.shape[-1] == batch.shape[-1] // 4
        assert torch.allclose(half.sum((2, 3)), put_in, rtol=2e-2)


def test_a_component_at_zero_has_an_empty_map():
    model, layer, batch = made("residual")
    with torch.no_grad():
        block = getattr(model, layer)[-1]
        block.bn2.weight[5] = block.bn2.bias[5] = 0.0
        block.downsample[1].weight[5] = block.downsample[1].bias[5] = 0.0
    found = conditional(model, batch, layer)(torch.tensor([[5, 5], [1, 2]]))
    assert not found[0].any()
    assert found[1].any()


def test_a_smaller_map_is_what_the_first_large_enough_one_holds():
    model, layer, batch = made("residual")
    components = some(model, batch, layer, 2)
    activation, _ = relevance_model(model, batch).up_to(batch, layer)
    start = torch.zeros_like(activation)
    start[torch.arange(2), components[0]] = activation.detach()[torch.arange(2), components[0]]
    kept: list[torch.Tensor] = []
    handle = model.layer1.register_forward_hook(lambda _m, _i, out: kept.append(out))
    activation, _ = relevance_model(model, batch).up_to(batch, layer)
    handle.remove()
    (inside,) = torch.autograd.grad(activation, kept[0], start)
    found = conditional(model, batch, layer, side=16)(components)
    assert found.shape == (2, 2, 16, 16)
    assert torch.allclose(found[0], inside.sum(1), rtol=1e-3, atol=1e-5 * float(inside.abs().max()))


def test_no_map_is_as_large_as_that():
    model, layer, batch = made("plain")
    components = some(model, batch, layer, 1)
    whole = conditional(model, batch, layer)(components)
    assert torch.equal(conditional(model, batch, layer, side=33)(components), whole)


def test_the_input_itself_is_a_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(200, 2)).eval()
    batch = images(2, 12)
    found = conditional(model, batch, "0")(torch.tensor([[1, 2]]))
    assert torch.equal(found[0], torch.stack([batch[0, 1], batch[1, 2]]))


@native
@pytest.mark.parametrize("name", ["residual", "inverted residual", "plain", "dense"])
def test_bfloat16_gives_the_same_boxes(name):
    model, layer, batch = made(name)
    components = some(model, batch, layer, 4)
    exact = conditional(model, batch, layer)(components).flatten(0, 1)
    found = conditional(model, batch, layer, dtype=torch.bfloat16)(components).flatten(0, 1)
    assert not torch.equal(exact, found)
    cosines = functional.cosine_similarity(found.flatten(1), exact.flatten(1))
    assert float(cosines.median()) > 0.99
    assert float(cosines.min()) > 0.9
    for threshold in (0.05, 0.3):
        one, other = (boxes(value.numpy(), 51, threshold, 8).astype(float) for value in (exact, found))
        shared = np.clip(np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]), 0, None).prod(1)
        union = (one[:, 2] - one[:, 0]) ** 2 + (other[:, 2] - other[:, 0]) ** 2 - shared
        assert np.median(shared / union) >= 0.9


def test_what_is_kept_does_not_grow_and_goes_with_it():
    model, layer, batch = made("inverted residual")
    run = conditional(model, batch, layer)
    run(some(model, batch, layer, 2))
    kept = len(run._scales)
    for count in (1, 2, 4):
        run(some(model, batch, layer, count))
    assert len(run._scales) == kept
    assert not run._factors
    watched = weakref.ref(next(iter(run._scales.values())))
    del run
    gc.collect()
    assert watched() is None
