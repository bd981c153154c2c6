from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import semlens_audit._torchvision  # noqa: F401
from semlens_audit.attribution import describe, heatmaps, relevance, stream_heatmaps
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.images import read_image
from semlens_audit.plan import ModelSource, Preprocessing
from semlens_audit.subject import load_subject

# isort: split
import timm
from torchvision.models.resnet import BasicBlock, ResNet

METHODS = ("lrp", "activation_x_gradient")


pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def resnet() -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(model=ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4).eval().requires_grad_(False))


def vit() -> SimpleNamespace:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=16, depth=2, embed_dim=24, num_heads=2, num_classes=4
    )
    return SimpleNamespace(model=model.eval().requires_grad_(False))


class Local(nn.Module):
    """Two convolutions without pooling between: each place of the output sees 5 x 5 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.second(self.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def local() -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(model=Local().eval().requires_grad_(False))


# ---- relevance of components


@pytest.mark.parametrize("method", METHODS)
def test_shapes_types_and_classes(method):
    subject, batch = resnet(), images(3)
    found, kept = relevance(subject, batch, ["layer2", "layer4"], [3, 0], method)
    assert found["layer2"].shape == (3, 2, 128)
    assert found["layer4"].shape == (3, 2, 512)
    assert found["layer4"].dtype == kept["layer4"].dtype == np.float32
    assert kept["layer2"].shape == (3, 2)
    logits = subject.model(batch).numpy()
    for place, index in enumerate((3, 0)):
        alone, _ = relevance(subject, batch, ["layer4"], [index], method)
        assert np.allclose(alone["layer4"][:, 0], found["layer4"][:, place], atol=1e-6)
        assert np.allclose(found["layer4"][:, place].sum(1) / logits[:, index], kept["layer4"][:, place], rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_batches_do_not_matter_not_even_a_last_one_of_one(method):
    subject, batch = resnet(), images(5)
    whole, _ = relevance(subject, batch, ["layer3"], [1], method)
    for cut in (1, 4):
        parts = [relevance(subject, part, ["layer3"], [1], method)[0]["layer3"] for part in (batch[:cut], batch[cut:])]
        assert np.allclose(np.concatenate(parts), whole["layer3"], rtol=1e-3, atol=1e-5 * np.abs(whole["layer3"]).max())


def test_activation_x_gradient_equals_automatic_differentiation_written_out():
    subject, batch = local(), images(2, 10)
    model = subject.model
    found, kept = relevance(subject, batch, ["second"], [2], "activation_x_gradient")
    value = model.second(torch.relu(model.first(batch))).requires_grad_(True)
    score = model.head(torch.relu(value).mean((2, 3)))[:, 2]
    (gradient,) = torch.autograd.grad(score.sum(), value)
    expected = (value * gradient).sum((2, 3)).detach().numpy()
    assert np.allclose(found["second"][:, 0], expected, atol=1e-7)
    assert np.allclose(kept["second"][:, 0], expected.sum(1) / score.detach().numpy(), rtol=1e-4)


def test_both_methods_agree_where_the_rest_is_linear():
    subject, batch = local(), images(4, 10)
    lrp, _ = relevance(subject, batch, ["second"], [0, 1, 2], "lrp")
    gradient, _ = relevance(subject, batch, ["second"], [0, 1, 2], "activation_x_gradient")
    assert np.allclose(lrp["second"], gradient["second"], rtol=1e-3, atol=1e-6)


def test_tokens_have_components_last():
    found, _ = relevance(vit(), images(2, 64), ["blocks.0", "blocks.1"], [1], "activation_x_gradient")
    assert found["blocks.1"].shape == (2, 1, 24)


def test_images_are_taken_in_parts_without_a_trace(monkeypatch):
    subject, batch = resnet(), images(5)
    whole = relevance(subject, batch, ["layer3"], [1], "lrp")
    heat = heatmaps(subject, batch, "layer3", [0, 1, 2, 3, 4], "lrp")
    monkeypatch.setattr("semlens_audit.attribution_maps._AT_ONCE", 2 * 32**2)
    parts = relevance(subject, batch, ["layer3"], [1], "lrp")
    for one, other in zip(whole, parts, strict=True):
        assert np.allclose(one["layer3"], other["layer3"], rtol=1e-3, atol=1e-6)
    assert np.allclose(heat, heatmaps(subject, batch, "layer3", [0, 1, 2, 3, 4], "lrp"), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_do_not_count(method):
    subject, batch = resnet(), images(1)
    subject.model.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(SubjectError) as caught:
        relevance(subject, batch, ["spare"], [0], method)
    assert caught.value.slug == "unused-layer"
    with pytest.raises(SubjectError) as caught:
        relevance(subject, batch, ["layer9"], [0], method)
    assert caught.value.slug == "unknown-layer"
    with pytest.raises(SubjectError):
        heatmaps(subject, batch, "spare", [0], method)


class Detached(Local):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.second(x.repeat(1, 2, 1, 1))
        return self.head(self.first(x).mean((2, 3))[:, :5])


def test_a_layer_that_the_outputs_do_not_depend_on():
    subject = SimpleNamespace(model=Detached().eval().requires_grad_(False))
    for layers in (["second"], ["first", "second"]):
        with pytest.raises(SubjectError, match="second") as caught:
            relevance(subject, images(1), layers, [0], "activation_x_gradient")
        assert caught.value.slug == "unused-layer"


@pytest.mark.parametrize("method", METHODS)
def test_relevance_that_is_not_finite_names_the_layer(method):
    subject = local()
    batch = images(1, 10)
    relevance(subject, batch, ["second"], [0], method)
    with torch.no_grad():
        batch[0, 0, 0, 0] = float("nan")
    with pytest.raises(ExecutionError, match="second") as caught:
        relevance(subject, batch, ["second"], [0], method)
    assert caught.value.slug == "not-finite"


# ---- heatmaps


def test_a_conditional_heatmap_stays_inside_what_the_component_sees():
    subject = local()
    model = subject.model
    with torch.no_grad():
        model.first.bias.zero_()
        model.second.bias.zero_()
    batch = torch.zeros(1, 3, 20, 20)
    batch[0, :, 10, 6] = 3.0
    seen = np.zeros((20, 20), dtype=bool)
    seen[10 - 2 : 10 + 3, 6 - 2 : 6 + 3] = True
    for component in range(5):
        heat = heatmaps(subject, batch, "second", [component], "lrp")[0]
        assert (heat[~seen] == 0).all()
        assert (heat[seen] != 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_each_row_has_its_own_component_and_no_influence_on_others(method):
    subject, batch = resnet(), images(4)
    with torch.no_grad():
        model = subject.model
        stem = model.maxpool(model.relu(model.bn1(model.conv1(batch))))
        alive = model.layer3(model.layer2(model.layer1(stem))).amin(0).amax((1, 2)).topk(4).indices.tolist()
    components = np.array([alive[0], alive[1], alive[2], alive[0]])
    together = heatmaps(subject, batch, "layer3", components, method)
    assert together.shape == (4, 32, 32)
    assert together.dtype == np.float32
    for row in range(4):
        alone = heatmaps(subject, batch[row : row + 1], "layer3", components[row : row + 1], method)[0]
        assert np.allclose(together[row], alone, rtol=1e-3, atol=1e-5 * np.abs(alone).max())
    other = heatmaps(subject, batch, "layer3", [alive[3]] * 4, method)
    assert all(np.abs(one - two).max() > 0.01 * np.abs(one).max() > 0 for one, two in zip(together, other, strict=True))


def test_heatmap_carries_the_activation_of_the_component_without_biases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 8, 3, bias=False), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 64, 2))  # fmt: skip
    batch = images(2, 12)
    heat = heatmaps(SimpleNamespace(model=model.eval()), batch, "3", [1, 4], "lrp")
    activation = model[:4](batch).detach()
    expected = [float(activation[0, 1].sum()), float(activation[1, 4].sum())]
    assert np.allclose(heat.sum((1, 2)), expected, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [resnet, local])
def test_stream_gives_every_pair_once_and_the_same_as_one_by_one(method, make):
    subject, layer = make(), "layer3" if make is resnet else "second"
    batch, rng = images(5), np.random.default_rng(0)
    rows = [(0, k) for k in range(5)] + [(3, 1), (1, 2), (3, 4), (4, 0), (4, 0)] + [(2, int(k)) for k in rng.integers(0, 5, 9)]
    rng.shuffle(rows)
    loaded: list[int] = []

    def load(sample: int) -> torch.Tensor:
        loaded.append(sample)
        return batch[sample]

    for batch_size in (1, 2, 32):
        loaded.clear()
        seen = np.zeros(len(rows), dtype=int)
        for positions, heat in stream_heatmaps(subject, load, layer, rows, method, batch_size):
            seen[positions] += 1
            pictures = torch.stack([batch[rows[p][0]] for p in positions])
            expected = heatmaps(subject, pictures, layer, [rows[p][1] for p in positions], method)
            assert np.allclose(heat, expected, rtol=1e-3, atol=1e-5 * max(np.abs(expected).max(), 1e-9))
        assert (seen == 1).all()
        assert sorted(loaded) == [0, 1, 2, 3, 4]


def test_an_empty_stream():
    assert list(stream_heatmaps(local(), lambda sample: images(1)[0], "second", [], "lrp")) == []


def test_token_layers_use_the_activation_map():
    subject, batch = vit(), images(2, 64)
    heat = heatmaps(subject, batch, "blocks.1", [3, 7], "activation_x_gradient")
    assert heat.shape == (2, 64, 64)
    value: list[torch.Tensor] = []
    handle = subject.model.blocks[1].register_forward_hook(lambda module, args, output: value.append(output))
    subject.model(batch)
    handle.remove()
    grid = value[0][0, 1:, 3].reshape(4, 4)
    assert np.unravel_index(heat[0].argmax(), (64, 64))[0] // 16 == int(grid.argmax()) // 4
    assert (heat >= 0).all()


def test_a_component_that_is_nowhere_positive_is_judged_by_its_highest_place():
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(-1.0)
    batch = torch.full((1, 3, 8, 8), 1.0)
    batch[0, :, 2, 5] = 0.1
    heat = heatmaps(SimpleNamespace(model=model), batch, "0", [0], "activation_x_gradient")[0]
    assert np.unravel_index(heat.argmax(), heat.shape) == (2, 5)
    assert np.count_nonzero(heat) == 1


@pytest.mark.parametrize("method", METHODS)
def test_layers_without_place(method):
    subject, batch = local(), images(2, 10)
    heat = heatmaps(subject, batch, "head", [0, 2], method)
    assert heat.shape == (2, 10, 10)
    assert np.abs(heat).max() > 0


def test_one_component_per_image():
    with pytest.raises(ValueError, match="expected 2"):
        heatmaps(local(), images(2), "second", [1], "lrp")


def test_description_checks_that_the_method_applies():
    assert describe(vit(), images(1, 64), "activation_x_gradient").startswith("activation x gradient")
    with pytest.raises(SubjectError) as caught:
        describe(vit(), images(1, 64), "lrp")
    assert caught.value.slug == "lrp-not-applicable"
    words = describe(resnet(), images(1), "lrp")
    assert "EpsilonPlusFlat" in words
    assert "12 batch norms" in words


# ---- a real network


def test_real_mobilenet_on_real_images(plan_of, shared_data):
    weights = str(shared_data / "models" / "mobilenet_v2_ham10000.safetensors")
    plan = plan_of(
        model=ModelSource(source="torchvision", name="mobilenet_v2", weights=weights, arguments={"num_classes": 7}),
        classes=str(shared_data / "models" / "mobilenet_v2_ham10000.classes.json"),
        layers=("features.17", "features.18"),
        preprocessing=Preprocessing(size=224),
    )
    subject = load_subject(plan)
    files = sorted((shared_data / "ham10000" / "images").glob("*.jpg"))[:3]
    batch = torch.stack([subject.transform(read_image(file)) for file in files])
    lrp, kept = relevance(subject, batch, ["features.17", "features.18"], [4], "lrp")
    gradient, _ = relevance(subject, batch, ["features.18"], [4], "activation_x_gradient")
    # Behind the last convolution there is only an average and a linear layer, for which both methods are one.
    scale = np.abs(gradient["features.18"]).max()
    assert np.allclose(lrp["features.18"], gradient["features.18"], rtol=1e-3, atol=1e-4 * scale)
    # The linear layer's bias takes its share at once, the z+ rule of the last convolution hardly any more.
    assert np.allclose(kept["features.17"], kept["features.18"], rtol=0.05)
    heat = heatmaps(subject, batch, "features.18", lrp["features.18"][:, 0].argmax(1), "lrp")
    assert np.isfinite(heat).all()
    assert (np.abs(heat).max((1, 2)) > 0).all()
