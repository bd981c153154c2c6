"""Every family of vision models: which attribution applies, what it conserves, and that it agrees with a slow oracle."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from semlens_audit.attribution import relevance
from semlens_audit.attribution_choice import LOST, TAKEN, account, applies, choose
from semlens_audit.errors import SubjectError
from semlens_audit.layouts import observed
from semlens_audit.lrp import relevance_model
from tests.unit.family_world import CLASSES, FAMILIES, images, settle
from tests.unit.slow_families import Dense, Inverted, NextBlock, norms

# isort: split
import timm
from crp.attribution import CondAttribution
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

PROPAGATED = ("residual", "plain", "dense", "inverted residual", "squeeze and excitation", "hard swish", "convnext")
ATTENDING = ("vit", "deit", "swin", "clip")
SIGNED = {"inverted residual", "squeeze and excitation", "hard swish", "convnext"}
"""Families whose convolutions read or write negative activations, of which z+ loses what has no positive contribution."""


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Subject:
    model: nn.Module


def build(family: str, *, bias: bool) -> nn.Module:
    torch.manual_seed(0)
    return settle(FAMILIES[family].make(), bias=bias).double()


# ---- conservation of relevance propagation


@pytest.mark.parametrize("family", PROPAGATED)
def test_without_biases_relevance_arrives_and_what_does_not_is_accounted_for(family):
    model, (first, last) = build(family, bias=False), (FAMILIES[family].first, FAMILIES[family].last)
    for late, early in zip(account(model, images().double(), last, 1), account(model, images().double(), first, 1), strict=True):
        assert late.taken == pytest.approx(0, abs=1e-9)
        assert late.arrived == pytest.approx(1, abs=1e-3)
        # Relevance in = relevance out between the two layers, but for what units without positive contributions lose.
        assert early.arrived + early.lost == pytest.approx(late.arrived, abs=1e-3)
        if family not in SIGNED:
            assert early.lost == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("family", PROPAGATED)
def test_with_biases_every_part_of_the_output_is_accounted_for(family):
    model, first = build(family, bias=True), FAMILIES[family].first
    found = account(model, images(3).double(), first, 1)
    assert any(abs(one.taken) > 0.02 for one in found)
    for one in found:
        assert one.arrived + one.taken + one.lost == pytest.approx(1, abs=1e-3)


def test_relevance_lost_by_units_without_positive_contribution_is_found():
    """A signed unit that only negative contributions make: z+ has nothing to pass its relevance on to."""
    stem, conv, head = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False), nn.Linear(1, 2, bias=False)
    model = nn.Sequential(stem, nn.ReLU(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval().requires_grad_(False)
    conv.weight.fill_(-1.0)
    (found,) = account(model, images(1, 4), "1", 0)
    assert found.arrived == pytest.approx(0, abs=1e-6)
    assert found.lost == pytest.approx(1, abs=1e-4)
    choice = applies(model, images(1, 4), "1")
    assert choice.method == "activation_x_gradient"
    assert "lost where no input contributes" in choice.reason


def test_the_account_of_an_image_does_not_depend_on_its_company():
    model = build("residual", bias=True)
    batch = images(3).double()
    together = account(model, batch, "layer2")
    alone = [account(model, batch[i : i + 1], "layer2")[0] for i in range(3)]
    assert together == alone


def test_the_account_equals_what_hooks_on_zennits_rules_would_see():
    """Taken by the bias of one linear layer under epsilon: b / z of its relevance, by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2, bias=False), nn.Flatten(), nn.Linear(36, 3)).eval().requires_grad_(False).double()
    (found,) = account(model, images(1, 4).double(), "0", 2)
    output = float(model(images(1, 4).double())[0, 2])
    assert found.taken == pytest.approx(float(model[2].bias[2]) / output, rel=1e-4)
    assert found.arrived == pytest.approx(1 - found.taken, rel=1e-4)


# ---- which attribution applies


@pytest.mark.parametrize("family", [name for name in PROPAGATED if name != "hard swish"])
def test_relevance_is_propagated_where_it_is_conserved(family):
    model = build(family, bias=False)
    choice = applies(model, images().double(), FAMILIES[family].last)
    assert choice.method == "lrp"
    assert choice.conservation == pytest.approx(1, abs=0.01)
    assert choice.reason.startswith("relevance propagation conserves: 1.00 of the output arrives in the layer")


@pytest.mark.parametrize("family", ATTENDING)
def test_attention_takes_activation_times_gradient_and_says_so(family):
    choice = applies(build(family, bias=True), images().double(), FAMILIES[family].last)
    assert choice.method == "activation_x_gradient"
    assert choice.conservation is None
    assert choice.reason.startswith("the network has attention, and relevance propagation has no rule for the operation")


def test_a_layer_that_biases_leave_little_for_is_not_propagated_to():
    model = build("plain", bias=True)
    late, early = FAMILIES["plain"].last, "features.1"
    assert choose(model, images().double(), [late, early])[late].method == "lrp"
    norm = model.features[5]
    norm.bias.fill_(20.0)
    changed = choose(model, images().double(), [late, early])
    assert changed[early].method == "activation_x_gradient"
    assert "is taken by biases" in changed[early].reason
    (taken,) = {round(abs(one.taken) > TAKEN) for one in account(model, images().double(), early)}
    assert taken


def test_each_layer_is_chosen_for_as_if_it_were_alone():
    model, layers = build("residual", bias=True), ["layer1", "layer4", "layer3.0.conv1"]
    together = choose(model, images().double(), layers)
    assert together == {layer: applies(model, images().double(), layer) for layer in layers}


def test_a_layer_inside_a_branch_is_not_blamed_for_what_passes_it_by():
    model = build("residual", bias=False)
    choice = applies(model, images().double(), "layer4.1.conv1")
    assert abs(choice.conservation or 0) < 0.9
    assert choice.method == "lrp"


def test_without_a_layer_the_last_that_has_places_is_measured():
    model = build("inverted residual", bias=False)
    assert applies(model, images().double()) == applies(model, images().double(), "features")


@pytest.mark.parametrize("family", ["residual", "squeeze and excitation"])
def test_relevance_of_a_layer_does_not_depend_on_which_others_are_asked_for(family):
    """What bypasses a layer is recorded only where an earlier one is asked for; its share of a sum is the same either way."""
    model = build(family, bias=True)
    inner, before = {
        "residual": ("layer3.1.conv1", "layer2"), "squeeze and excitation": ("features.2.1.block.1.0", "features.1"),
    }[family]  # fmt: skip
    alone, _ = relevance(Subject(model), images().double(), [inner], [1], "lrp")
    together, ratio = relevance(Subject(model), images().double(), [before, inner], [1], "lrp")
    assert np.allclose(alone[inner], together[inner], rtol=1e-5, atol=1e-7)
    assert (np.abs(ratio[inner]) < 0.97).all()


def test_a_gate_gets_no_relevance_and_activation_times_gradient_applies():
    model = build("squeeze and excitation", bias=True)
    choice = applies(model, images().double(), "features.2.1.block.2.fc1")
    assert (choice.method, choice.reason) == ("activation_x_gradient", "relevance propagation passes the layer by")
    found, _ = relevance(Subject(model), images().double(), ["features.2.1.block.2.fc1"], [1], choice.method)
    assert np.abs(found["features.2.1.block.2.fc1"]).max() > 0


def test_a_layer_that_nothing_depends_on_is_refused_once_it_is_attributed():
    model = build("residual", bias=False)
    model.spare = nn.Conv2d(3, 3, 1)
    assert applies(model, images().double(), "spare").method == "activation_x_gradient"
    with pytest.raises(SubjectError, match="spare"):
        relevance(Subject(model), images().double(), ["spare"], [1], "activation_x_gradient")


def test_a_choice_leaves_no_hooks_and_no_changed_values():
    model = build("residual", bias=True)
    before = model(images().double())
    choose(model, images().double(), ["layer2", "layer4"])
    assert torch.equal(model(images().double()), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tolerances_are_what_the_documentation_says():
    assert (LOST, TAKEN) == (0.05, 0.5)


# ---- relevance propagation against zennit with its canonizers


@pytest.mark.parametrize(
    ("family", "layer", "canonizer"), [("residual", "layer3", ResNetCanonizer), ("plain", "features.6", VGGCanonizer)]
)
def test_class_relevance_agrees_with_zennit(family, layer, canonizer):
    if family == "residual":
        from torchvision.models.resnet import BasicBlock, ResNet

        torch.manual_seed(0)
        model = settle(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES))
    else:
        model = build(family, bias=True).float()
    found, _ = relevance(Subject(model), images(), [layer], [1], "lrp")
    peer = CondAttribution(copy.deepcopy(model))
    theirs = peer(images().requires_grad_(True), [{"y": [1]}], EpsilonPlusFlat([canonizer()]), record_layer=[layer])
    expected = theirs.relevances[layer].sum((2, 3)).numpy()
    assert np.allclose(found[layer][:, 0], expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())


# ---- relevance propagation against loops


@pytest.mark.parametrize("make", [Dense, Inverted, NextBlock])
def test_relevance_equals_the_slow_loops(make):
    torch.manual_seed(3)
    model = norms(make())
    batch = images(1, 5).double()
    found, _ = relevance(Subject(model), batch, ["act"], [0, 1], "lrp")
    for index in (0, 1):
        expected = model.slow(batch, index)
        assert np.allclose(found["act"][0, index], expected.sum((1, 2)), rtol=1e-4, atol=1e-6 * np.abs(expected).max())
        logits, outputs = relevance_model(model, batch).forward(batch, ["act"])
        start = torch.zeros_like(logits)
        start[0, index] = logits.detach()[0, index]
        (maps,) = torch.autograd.grad(logits, outputs["act"], start)
        assert np.allclose(maps[0].numpy(), expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_linear_layers_at_every_place_have_the_rule_of_the_convolutions_they_are():
    torch.manual_seed(0)
    linear = settle(FAMILIES["convnext"].make()).double()
    conv = timm.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=CLASSES, conv_mlp=True
    ).eval().requires_grad_(False).double()  # fmt: skip
    state = conv.state_dict()
    conv.load_state_dict({name: value.view_as(state[name]) for name, value in linear.state_dict().items()})
    assert torch.allclose(linear(images().double()), conv(images().double()))
    layers = ["stem", "stages.2"]
    one, _ = relevance(Subject(linear), images().double(), layers, [0, 2], "lrp")
    other, _ = relevance(Subject(conv), images().double(), layers, [0, 2], "lrp")
    for layer in layers:
        assert np.allclose(one[layer], other[layer], rtol=1e-4, atol=1e-6)


# ---- activation x gradient


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("residual", "layer3"),
        ("convnext", "stages.1"),
        ("convnext", "stages.1.blocks.0.mlp.act"),
        ("vit", "blocks.0"),
        ("vit", "blocks.1.mlp.act"),
        ("deit", "blocks.0"),
        ("swin", "layers.0"),
        ("swin", "layers.1.blocks.1"),
        ("clip", "visual.transformer.resblocks.0"),
    ],
)
def test_activation_times_gradient_equals_finite_differences(family, layer):
    """R_k is the change of the logit, to first order, as the whole of component k is scaled."""
    model, batch = build(family, bias=True), images(2).double()
    found, _ = relevance(Subject(model), batch, [layer], [2], "activation_x_gradient")

    def scaled(component: int, by: float) -> torch.Tensor:
        def see(_name: str, output: torch.Tensor) -> torch.Tensor:
            place = (slice(None), slice(None), component) if output.ndim == 3 else (slice(None), component)
            changed = output.clone()
            changed[place] *= by
            return changed

        with observed(model, [layer], see), torch.no_grad():
            return model(batch)[:, 2]

    step = 1e-4
    for component in (0, 3, 7):
        slope = (scaled(component, 1 + step) - scaled(component, 1 - step)) / (2 * step)
        assert np.allclose(found[layer][:, 0, component], slope.numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("family", "layer", "head"), [("residual", "layer4", "fc"), ("vit", "norm", "head"), ("clip", "visual", "head")]
)
def test_over_the_last_linear_stretch_activation_times_gradient_is_exact(family, layer, head):
    """Pooling and a linear layer: the relevances add up to the logit less the bias of the head."""
    model, batch = build(family, bias=True), images().double()
    found, ratio = relevance(Subject(model), batch, [layer], range(CLASSES), "activation_x_gradient")
    logits = model(batch)
    wanted = (logits - model.get_submodule(head).bias).numpy()
    assert np.allclose(found[layer].sum(2), wanted, rtol=1e-4, atol=1e-5)
    assert np.allclose(ratio[layer], wanted / logits.numpy(), rtol=1e-3)


@pytest.mark.parametrize(("family", "layers"), [("residual", ("layer1", "layer3")), ("plain", ("features.2", "features.6"))])
def test_without_biases_a_network_of_relus_is_complete_at_every_layer(family, layers):
    """Euler's theorem: the output is homogeneous of degree one in every layer."""
    model = build(family, bias=False)
    _, ratio = relevance(Subject(model), images().double(), layers, [1], "activation_x_gradient")
    for layer in layers:
        assert np.allclose(ratio[layer], 1, atol=1e-3)


@pytest.mark.parametrize(("family", "layer"), [("vit", "blocks.1"), ("deit", "blocks.1"), ("swin", "layers.1")])
def test_before_a_layer_norm_activation_times_gradient_adds_up_to_nothing(family, layer):
    """What is read only once normalised does not change as it is scaled: homogeneous of degree zero, biases or not."""
    model = build(family, bias=True)
    found, ratio = relevance(Subject(model), images().double(), [layer], [1], "activation_x_gradient")
    parts = found[layer][:, 0]
    assert (np.abs(parts.sum(1)) < 1e-3 * np.abs(parts).sum(1)).all()
    assert np.abs(ratio[layer]).max() < 0.02
