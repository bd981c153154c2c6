from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional

import semlens_audit._torchvision  # noqa: F401
from semlens_audit.errors import SubjectError
from semlens_audit.lrp import RelevanceModel, relevance_model
from semlens_audit.weights import state_digest
from tests.unit.family_world import images, settle

# isort: split
import timm
from crp.attribution import CondAttribution
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

pytestmark = pytest.mark.usefixtures("one_thread")


def small_vgg(widths: list[int | str], *, batch_norm: bool = False) -> nn.Module:
    """Torchvision's VGG with a small classifier."""
    model = models.vgg.VGG(models.vgg.make_layers(widths, batch_norm=batch_norm), 4, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    width = [w for w in widths if isinstance(w, int)][-1]
    model.classifier = nn.Sequential(nn.Linear(4 * width, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 4))
    return model


def class_relevance(model: nn.Module, batch: torch.Tensor, layer: str, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits, outputs = relevance_model(model, batch).forward(batch, [layer])
    start = torch.zeros_like(logits)
    start[:, index] = logits.detach()[:, index]
    (relevance,) = torch.autograd.grad(logits, outputs[layer], start)
    return relevance, logits.detach()[:, index]


# ---- rules against slow re-implementations


def test_z_plus_equals_the_slow_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()).eval()
    batch = images(1, 6)
    activation, inputs = relevance_model(model, batch).up_to(batch, "1")
    value, weight, bias = model[0](batch).detach()[0].numpy(), model[1].weight.detach().numpy(), model[1].bias.detach().numpy()
    assert (value < 0).any()
    relevance = torch.randn(activation.shape, generator=torch.Generator().manual_seed(3))
    (found,) = torch.autograd.grad(activation, inputs, relevance)
    passed = np.zeros_like(value)
    padded = np.pad(value, ((0, 0), (1, 1), (1, 1)))
    for out in range(3):
        for y in range(3):
            for x in range(3):
                parts = np.zeros_like(padded)
                patch = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                parts[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3] = np.maximum(patch * weight[out], 0)
                total = parts.sum() + max(bias[out], 0)
                passed += (parts / (total + 1e-6) * float(relevance[0, out, y, x]))[:, 1:-1, 1:-1]
    # the first convolution has kernel 1 and the flat rule: each of the three colours gets a third
    assert np.allclose(found[0].sum(0).numpy(), passed.sum(0), atol=1e-5)
    assert torch.allclose(found[0, 0], found[0, 2])


def test_epsilon_equals_the_slow_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 3)).eval()
    batch = images(2, 8)
    relevance, _ = class_relevance(model, batch, "1", 2)
    value = model[1](model[0](batch)).detach()
    for i in range(2):
        for k in range(4):
            expected = float(value[i, k] * model[2].weight.detach()[2, k])
            assert float(relevance[i, k]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


class Residual(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.conv = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.head = nn.Linear(24, 2, bias=False)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        y = self.conv(x)
        if self.how == "operator":
            y = y + x
        elif self.how == "in place":
            y += x
        elif self.how == "function":
            y = torch.add(y, x)
        else:
            y = y.add_(x)
        return self.head(functional.adaptive_avg_pool2d(functional.relu_(y), 1).flatten(1))


@pytest.mark.parametrize("how", ["operator", "in place", "function", "method"])
def test_a_residual_sum_does_not_double_relevance(how):
    torch.manual_seed(0)
    model = settle(Residual(how))
    relevance, logit = class_relevance(model, images(3, 12), "stem", 0)
    assert torch.allclose(relevance.sum((1, 2, 3)), logit, rtol=1e-3)


# ---- against zennit and zennit-crp


@pytest.mark.parametrize(
    ("make", "layer", "canonizer"),
    [
        (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4), "layer3", ResNetCanonizer),
        (lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4), "layer2", ResNetCanonizer),
        (lambda: small_vgg([8, "M", 16, "M", 16], batch_norm=True), "features.8", VGGCanonizer),
    ],
)
def test_conditional_heatmaps_and_relevance_agree_with_zennit_crp(make, layer, canonizer):
    torch.manual_seed(0)
    model = settle(make())
    batch, components = images(2), [3, 5]
    activation, inputs = relevance_model(model, batch).up_to(batch, layer)
    start = torch.zeros_like(activation)
    for row, k in enumerate(components):
        start[row, k] = activation.detach()[row, k]
    heat = torch.autograd.grad(activation, inputs, start)[0].sum(1)
    peer = CondAttribution(copy.deepcopy(model))
    conditions = [{layer: [k]} for k in components]
    theirs = peer(batch.clone().requires_grad_(True), conditions, EpsilonPlusFlat([canonizer()]), start_layer=layer).heatmap
    for mine, other in zip(heat, theirs, strict=True):
        assert float(functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)) > 0.999
    relevance, _ = class_relevance(model, batch, layer, 1)
    recorded = peer(batch.clone().requires_grad_(True), [{"y": [1]}], EpsilonPlusFlat([canonizer()]), record_layer=[layer])
    mine, other = relevance.sum((2, 3)), recorded.relevances[layer].sum((2, 3))
    assert torch.allclose(mine, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


# ---- conservation


NETWORKS = {
    "torchvision resnet18": (lambda: models.resnet18(num_classes=5), "layer1"),
    "torchvision resnet50": (lambda: models.resnet.ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5), "layer1"),
    "torchvision vgg11": (lambda: small_vgg([16, "M", 32, "M"]), "features.0"),
    "torchvision mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=5, width_mult=0.5), "features.3"),
    "torchvision densenet": (lambda: models.DenseNet(8, (2, 2), 16, num_classes=5), "features.pool0"),
    "timm resnet18": (lambda: timm.create_model("resnet18", channels=(32, 32, 32, 32), num_classes=5), "layer1"),
    "timm mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_050", pad_type="same", num_classes=5), "blocks.1"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_is_conserved_without_biases(name):
    make, layer = NETWORKS[name]
    torch.manual_seed(2)
    model = settle(make(), bias=False).double()
    batch = images(2).double()
    relevance, logit = class_relevance(model, batch, layer, 1)
    ratio = relevance.sum((1, 2, 3)) / logit
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-3), ratio


def test_biases_absorb_relevance_and_the_ratio_says_so():
    torch.manual_seed(0)
    model = settle(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3), bias=False)
    with torch.no_grad():
        model.layer4[0].bn1.bias.fill_(1.0)
    relevance, logit = class_relevance(model, images(), "layer3", 0)
    assert ((relevance.sum((1, 2, 3)) / logit - 1).abs() > 0.02).all()


# ---- operations as they are executed


class Disordered(nn.Module):
    """Batch norms defined in another order than they run in, one of them twice, one behind a convolution that two read."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first, self.third = nn.BatchNorm2d(6), nn.BatchNorm2d(4), nn.BatchNorm2d(6)
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(6, 6, 1, groups=2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(self.conv1(x)))
        x = functional.relu(self.second(self.conv2(x)))
        y = self.conv3(x)
        x = functional.relu(self.third(y) + y)
        return self.head(x.mean((2, 3)))


def test_a_batch_norm_is_folded_only_into_the_convolution_it_alone_reads():
    model = settle(Disordered())
    batch = images(3, 12)
    propagation = RelevanceModel(model, batch)
    assert propagation.folded == 2
    logits, _ = propagation.forward(batch, ["conv1"])
    assert torch.allclose(logits, model(batch), atol=1e-5)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.head = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 1), nn.Linear(6, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.conv(x))
        x = x * torch.sigmoid(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        return self.head(x.mean((2, 3)))


def test_squeeze_and_excitation_passes_relevance_through_the_signal():
    torch.manual_seed(0)
    model = settle(Gated(), bias=False)
    relevance, logit = class_relevance(model, images(2, 10), "conv", 0)
    assert torch.allclose(relevance.sum((1, 2, 3)), logit, rtol=1e-3, atol=1e-5)


class Summing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.head, self.how = nn.Conv2d(3, 6, 3, bias=False), nn.Linear(6, 2, bias=False), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.conv(x))
        if self.how == "cat":
            parts = torch.cat(torch.chunk(x, 2, dim=1)[::-1], dim=1)
            return self.head(functional.adaptive_avg_pool2d(parts, 1).flatten(1))
        return self.head(x.sum((2, 3)) / 64 if self.how == "sum" else x.mean((2, 3)) * 2)


@pytest.mark.parametrize("how", ["sum", "mean", "cat"])
def test_sums_averages_and_rearrangements_conserve_relevance(how):
    torch.manual_seed(0)
    relevance, logit = class_relevance(model := settle(Summing(how), bias=False), images(2, 10), "conv", 1)
    assert torch.allclose(relevance.sum((1, 2, 3)), logit, rtol=1e-3)
    value = functional.relu(model.conv(images(2, 10)))
    assert torch.equal(relevance != 0, value > 0)  # a pool's relevance follows its inputs, not its area


def test_the_model_is_not_changed():
    torch.manual_seed(0)
    model = settle(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3))
    batch = images()
    digest, plain = state_digest(model), model(batch)
    modules = [name for name, _ in model.named_modules()]
    class_relevance(model, batch, "layer2", 0)
    relevance_model(model, batch).up_to(batch, "layer3")
    assert state_digest(model) == digest
    assert torch.equal(model(batch), plain)
    assert [name for name, _ in model.named_modules()] == modules
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_changed_weights_are_noticed():
    torch.manual_seed(0)
    model = settle(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3))
    batch = images()
    before, _ = class_relevance(model, batch, "layer2", 0)
    again, _ = class_relevance(model, batch, "layer2", 0)
    assert torch.equal(before, again)
    with torch.no_grad():
        model.layer4[0].bn1.weight.mul_(-1)
    after, logit = class_relevance(model, batch, "layer2", 0)
    assert not torch.allclose(before, after)
    assert torch.allclose(logit, model(batch)[:, 0], atol=1e-4)


def test_a_model_that_is_dropped_is_freed():
    model = settle(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3))
    relevance_model(model, images(1, 32))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_parameters_that_still_require_gradients_make_no_difference():
    torch.manual_seed(0)
    model = settle(Disordered())
    batch = images(2, 12)
    before, _ = class_relevance(model, batch, "conv1", 0)
    trainable = copy.deepcopy(model).requires_grad_(True)
    after, _ = class_relevance(trainable, batch, "conv1", 0)
    assert torch.allclose(before, after)


# ---- refusals


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention, self.head = (
            nn.Conv2d(3, 8, 4, stride=4),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x)[0].mean(1))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a(x) * self.b(x)).mean((2, 3))


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(self.conv(x), 2).mean((2, 3))


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2), "scaled_dot_product_attention"),
        (Attention, "multi_head_attention_forward"),
        (Product, "same size"),
        (Spectral, "cumsum"),
        (BatchStatistics, "statistics"),
    ],
)
def test_operations_without_rule_are_refused_by_name(model, word):
    with pytest.raises(SubjectError, match=word) as caught:
        RelevanceModel(model().eval(), images(1, 32))
    assert caught.value.slug == "lrp-not-applicable"
    assert "activation_x_gradient" in str(caught.value)


class Restless(nn.Module):
    """Runs another branch on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (self.a if self.calls % 2 else self.b)(x).mean((2, 3))


def test_a_model_that_runs_differently_each_time_is_refused():
    with pytest.raises(SubjectError, match="other operations") as caught:
        RelevanceModel(Restless().eval(), images(1, 8))
    assert caught.value.slug == "lrp-not-applicable"


class Secret(nn.Module):
    """Changes a tensor behind the interception, so that the rewritten pass would differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.conv(x)
        self.relu(kept)  # the result is not used: the network counts on the tensor having been changed
        return kept.mean((2, 3))


def test_a_rewritten_pass_that_gives_other_outputs_is_refused():
    torch.manual_seed(0)
    with pytest.raises(SubjectError) as caught:
        RelevanceModel(Secret().eval(), images(1, 8))
    assert caught.value.slug == "lrp-unfaithful"


def test_a_layer_that_takes_no_part():
    model = settle(Disordered())
    model.extra = nn.Conv2d(3, 3, 1)
    batch = images(1, 12)
    with pytest.raises(SubjectError) as caught:
        relevance_model(model, batch).up_to(batch, "extra")
    assert caught.value.slug == "unused-layer"
    assert not model.extra._forward_hooks


def test_graphs_are_freed_after_use() -> None:
    """An output that its own node keeps is a cycle in C++ that nothing frees: memory grew with every group of images."""
    network = timm.create_model("resnet18", channels=(16, 32, 64, 128), num_classes=2).eval()
    images = torch.randn(8, 3, 128, 128)
    process, sizes = psutil.Process(), []
    for _ in range(10):
        activation, source = relevance_model(network, images).up_to(images, "layer4")
        torch.autograd.grad(activation, source, torch.ones_like(activation), retain_graph=True)
        del activation, source
        gc.collect()
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[2] < 60e6
