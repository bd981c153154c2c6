"""Layouts of layers' outputs: one order for whoever reads them, and the network's own put back, against slow loops."""

from __future__ import annotations

import semlens_audit._torchvision  # noqa: F401  # isort: skip

import numpy as np
import pytest
import timm
import torch
import torchvision
from open_clip.model import CLIP

from semlens_audit.attribution import heatmaps, relevance
from semlens_audit.components import TopReferences, capture, maps, pool
from semlens_audit.errors import SubjectError
from semlens_audit.intervention import ablate
from semlens_audit.layouts import Layout, grid_of, layout_of, observed, prefix_tokens

torch.set_num_threads(1)


class Loaded:
    """As much of a subject as the passes ask for."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)


class Tower(torch.nn.Module):
    """The image tower of a CLIP with a linear head."""

    def __init__(self, visual: torch.nn.Module) -> None:
        super().__init__()
        self.visual, self.head = visual, torch.nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.visual(images))


def swin() -> torch.nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=3
    )


def torchvision_swin() -> torch.nn.Module:
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=3
    )


def convnext() -> torch.nn.Module:
    return timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(6, 12, 18, 24), num_classes=3)


def deit() -> torch.nn.Module:
    return timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
    )


def vit() -> torch.nn.Module:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 32, num_classes=3)
    torch.nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model


def clip(**vision: object) -> torch.nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16} | vision
    text = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    return Tower(CLIP(16, vision, text).visual)


def densenet() -> torch.nn.Module:
    return torchvision.models.DenseNet(8, (2, 2), 8, num_classes=3)


def efficientnet() -> torch.nn.Module:
    return timm.create_model("tf_efficientnet_lite0", num_classes=3)


FAMILIES = {
    "swin": (swin, {"layers.0": ("maps_last", 12, 8), "layers.1.blocks.0.mlp.act": ("tokens", 96, 4), "norm": ("maps_last", 24, 4)}),
    "torchvision_swin": (torchvision_swin, {"features.1.1": ("maps_last", 12, 8), "features.1.0.mlp.1": ("maps_last", 48, 8)}),
    "convnext": (convnext, {"stages.1": ("maps", 12, 4), "stages.1.blocks.0.mlp.act": ("maps_last", 48, 4)}),
    "deit": (deit, {"blocks.1": ("tokens", 24, 4), "patch_embed": ("tokens", 24, 4)}),
    "vit": (vit, {"encoder.layers.encoder_layer_1": ("tokens", 24, 4), "encoder.layers.encoder_layer_1.self_attention": ("tokens", 24, 4)}),
    "clip": (clip, {"visual.transformer.resblocks.1": ("tokens", 32, 4), "visual": ("vector", 16, 0)}),
    "densenet": (densenet, {"features.denseblock2": ("maps", 28, 4)}),
    "efficientnet": (efficientnet, {"blocks.6": ("maps", 320, 2)}),
}  # fmt: skip
LAYERS = [(family, layer) for family, (_, layers) in FAMILIES.items() for layer in layers]
_MADE: dict[str, torch.nn.Module] = {}


def made(family: str) -> torch.nn.Module:
    if family not in _MADE:
        torch.manual_seed(1)
        _MADE[family] = Loaded(FAMILIES[family][0]()).model
    return _MADE[family]


def side(family: str) -> int:
    return 64 if family == "efficientnet" else 32


def images(family: str, count: int = 3) -> torch.Tensor:
    return torch.randn((count, 3, side(family), side(family)), generator=torch.Generator().manual_seed(2))


def raw(model: torch.nn.Module, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """The layer's output as it gives it."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return kept[-1]


def value_at(output: torch.Tensor, kind: str, row: int, component: int, place: int, width: int, prefix: int) -> float:
    """One number of a layer's output by hand."""
    y, x = divmod(place, width)
    return float({
        "maps": lambda: output[row, component, y, x], "maps_last": lambda: output[row, y, x, component],
        "tokens": lambda: output[row, prefix + place, component], "vector": lambda: output[row, component],
    }[kind]())  # fmt: skip


@pytest.mark.parametrize(("family", "layer"), LAYERS)
def test_every_family_is_shown_in_one_order(family, layer):
    kind, components, width = FAMILIES[family][1][layer]
    model, inputs = made(family), images(family)
    plain, logits = raw(model, layer, inputs), model(inputs)
    with torch.no_grad(), capture(model, [layer]) as seen:
        assert torch.equal(model(inputs), logits)
    shown = seen[layer]
    assert shown.ndim == {"maps": 4, "maps_last": 4, "tokens": 3, "vector": 2}[kind]
    pooled = pool(shown, "max")
    assert pooled.shape == (3, components)
    rows = plain.shape[1] if kind == "tokens" else max(1, width * width)
    prefix = rows - width * width if kind == "tokens" else 0
    for row, component in ((0, 0), (2, components - 1)):
        by_hand = max(value_at(plain, kind, row, component, place, max(1, width), 0) for place in range(rows))
        assert float(pooled[row, component]) == by_hand
    if kind != "vector":
        grid = maps(shown, prefix_tokens(model))
        assert grid.shape == (3, components, width, width)
        for place in range(width * width):
            y, x = divmod(place, width)
            assert float(grid[1, 3, y, x]) == value_at(plain, kind, 1, 3, place, width, prefix)


@pytest.mark.parametrize(("family", "layer"), LAYERS)
def test_gradients_reach_the_outputs_in_the_order_shown(family, layer):
    kind, components, _ = FAMILIES[family][1][layer]
    model, inputs = made(family), images(family, 2)
    found, kept = relevance(Loaded(model), inputs, [layer], [0, 2], "activation_x_gradient")
    assert found[layer].shape == (2, 2, components)
    assert kept[layer].shape == (2, 2)
    plain = raw(model, layer, inputs)
    # By hand: what the logit loses to first order when the component shrinks, from finite differences in double precision.
    double, step = FAMILIES[family][0]().double().eval().requires_grad_(False), 1e-6
    double.load_state_dict({name: value.double() if value.is_floating_point() else value for name, value in model.state_dict().items()})
    component = components // 2
    axis = 1 if kind in ("maps", "vector") else plain.ndim - 1

    def scaled(by: float) -> torch.Tensor:
        def hook(_m: torch.nn.Module, _i: object, out: object) -> object:
            tensor = (out[0] if isinstance(out, tuple) else out).clone()
            tensor.select(axis, component).mul_(by)
            return (tensor, *out[1:]) if isinstance(out, tuple) else tensor

        handle = double.get_submodule(layer).register_forward_hook(hook)
        try:
            return double(inputs.double())[:, [0, 2]]
        finally:
            handle.remove()

    slope = ((scaled(1 + step) - scaled(1 - step)) / (2 * step)).numpy()
    assert np.allclose(found[layer][:, :, component], slope, rtol=2e-3, atol=2e-5)
    assert np.abs(slope).max() > 0


@pytest.mark.parametrize(("family", "layer"), LAYERS)
def test_components_are_switched_off_where_the_network_has_them(family, layer):
    kind, components, _ = FAMILIES[family][1][layer]
    model, inputs = made(family), images(family)
    plain = raw(model, layer, inputs)
    shown = Layout.CHANNELS_LAST.canonical(plain) if kind == "maps_last" else plain
    values = shown.mean(dim=0)
    sets = [[], [0, components - 1], list(range(components))]
    answers = ablate(Loaded(model), inputs, layer, sets, values)
    axis = 1 if kind in ("maps", "vector") else plain.ndim - 1
    for row, chosen in enumerate(sets):

        def hook(_m: torch.nn.Module, _i: object, out: object, chosen: list[int] = chosen) -> object:
            tensor = (out[0] if isinstance(out, tuple) else out).clone()
            for component in chosen:
                mean = plain.mean(dim=0).select(axis - 1, component)
                tensor.select(axis, component).copy_(mean.expand_as(tensor.select(axis, component)))
            return (tensor, *out[1:]) if isinstance(out, tuple) else tensor

        handle = model.get_submodule(layer).register_forward_hook(hook)
        with torch.no_grad():
            by_hand = model(inputs).numpy()
        handle.remove()
        assert np.allclose(answers[row], by_hand, atol=2e-5)


@pytest.mark.parametrize(("family", "layer"), LAYERS)
def test_every_layer_gets_heatmaps(family, layer):
    heat = heatmaps(Loaded(made(family)), images(family), layer, [0, 1, 2], "activation_x_gradient")
    assert heat.shape == (3, side(family), side(family))
    assert np.isfinite(heat).all()
    assert np.abs(heat).max() > 0


def test_a_token_map_leaves_the_prefix_out():
    model, inputs = made("deit"), images("deit")
    plain = raw(model, "blocks.1", inputs)
    assert plain.shape == (3, 18, 24)
    with torch.no_grad(), capture(model, ["blocks.1"]) as seen:
        model(inputs)
    # 18 tokens: two before a grid of 4 x 4.
    grid = maps(seen["blocks.1"], prefix_tokens(model))
    assert torch.equal(grid[:, :, 1, 2], plain[:, 2 + 4 * 1 + 2])


@pytest.mark.parametrize(
    ("family", "said"), [("deit", 2), ("vit", 1), ("clip", 1), ("swin", None), ("convnext", None), ("densenet", None)]
)
def test_prefix_tokens_are_what_the_model_says(family, said):
    assert prefix_tokens(made(family)) == said


def test_registers_count_as_prefix():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=2, reg_tokens=4
    )
    assert prefix_tokens(torch.nn.Sequential(model)) == 5
    # 4 + 5 tokens would also fill a grid of 3 x 3; the model knows better.
    assert grid_of(9, 5) == (5, 2)
    assert grid_of(9) == (0, 3)


@pytest.mark.parametrize(
    ("tokens", "prefix", "grid"),
    [(197, 1, (1, 14)), (196, 1, (0, 14)), (198, 2, (2, 14)), (60, 1, None), (60, None, None), (0, None, None), (1, 1, (0, 1))],
)
def test_grids(tokens, prefix, grid):
    assert grid_of(tokens, prefix) == grid


# ---- what cannot be told is refused by name


def refusal(model: torch.nn.Module, layer: str, inputs: torch.Tensor) -> SubjectError:
    with pytest.raises(SubjectError) as caught, torch.no_grad(), capture(model, [layer]):
        model(inputs)
    assert repr(layer) in str(caught.value)
    return caught.value


@pytest.mark.parametrize("layer", ["layers.0.blocks.0.attn", "layers.0.blocks.0.attn.qkv", "layers.0.blocks.0.attn.proj"])
def test_windows_are_refused_with_the_block_that_holds_them(layer):
    error = refusal(made("swin"), layer, images("swin"))
    assert error.slug == "partitioned-output"
    assert "`layers.0.blocks.0`" in error.problems[0].hint


def test_attention_weights_have_no_place():
    error = refusal(made("deit"), "blocks.0.attn.q_norm", images("deit"))
    assert error.slug == "unknown-layout"
    assert "`blocks.0`" in error.problems[0].hint


class Shape(torch.nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3)).reshape(-1, *(1 for _ in self.shape)).expand(-1, *self.shape)


@pytest.mark.parametrize("shape", [(5, 6, 7), (6, 5, 6), (2, 3, 4, 5), ()])
def test_orders_that_nobody_uses(shape):
    assert refusal(torch.nn.Sequential(Shape(*shape)), "0", torch.zeros(2, 3, 8, 8)).slug == "unknown-layout"


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        (lambda: torch.nn.Conv2d(3, 8, 1), Layout.MAPS), (lambda: torch.nn.BatchNorm2d(8), Layout.MAPS),
        (lambda: torch.nn.LayerNorm(8), Layout.CHANNELS_LAST), (lambda: torch.nn.Linear(8, 8), Layout.CHANNELS_LAST),
    ],
)  # fmt: skip
def test_three_equal_axes_are_told_by_what_the_layer_is_made_of(kind, layout):
    model = torch.nn.Sequential(kind(), torch.nn.LayerNorm(8))
    assert layout_of(model, "0", torch.zeros(2, 8, 8, 8), 2) is layout


def test_three_equal_axes_without_a_sign_are_refused_unless_nothing_puts_components_last():
    output = torch.zeros(2, 8, 8, 8)
    assert layout_of(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(8, 2)), "0", output, 2) is Layout.MAPS
    for first in (torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.LayerNorm(8))):
        with pytest.raises(SubjectError) as caught:
            layout_of(torch.nn.Sequential(first, torch.nn.LayerNorm(8)), "0", output, 2)
        assert caught.value.slug == "ambiguous-layout"


class SequenceFirst(torch.nn.Module):
    """A transformer that puts tokens before the batch, as torch's own does by default."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 8, 8, 8)
        self.block = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(images).flatten(2).permute(2, 0, 1)).mean(dim=0))


def test_tokens_before_the_batch():
    torch.manual_seed(0)
    model = SequenceFirst().eval()
    inputs = torch.randn(3, 3, 32, 32)
    plain, logits = raw(model, "block", inputs), model(inputs)
    assert plain.shape == (16, 3, 8)
    with torch.no_grad(), capture(model, ["block"]) as seen:
        assert torch.equal(model(inputs), logits)
    assert torch.equal(seen["block"], plain.transpose(0, 1))
    error = refusal(model, "block", torch.randn(16, 3, 32, 32))
    assert error.slug == "ambiguous-layout"
    assert "batch_size" in error.problems[0].hint


def test_what_is_seen_may_be_replaced_by_more_rows():
    model = made("torchvision_swin")
    inputs = images("torchvision_swin")
    with torch.no_grad(), observed(model, ["features.1"], lambda _name, output: output.repeat(2, 1, 1, 1)):
        twice = model(inputs)
    assert torch.allclose(twice, model(inputs).repeat(2, 1), atol=1e-6)


# ---- signed and silent components, in every order of axes


@pytest.mark.parametrize("shape", [(6, 5, 4, 4), (6, 9, 5), (6, 5)])
@pytest.mark.parametrize("how", ["max", "mean"])
def test_signed_and_silent_components(shape, how):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    axis = 2 if len(shape) == 3 else 1
    values.select(axis, 1).fill_(0.0)  # never fires
    values.select(axis, 2).abs_().neg_().sub_(1.0)  # always negative
    pooled = pool(values, how).numpy()
    top = TopReferences(5, 3)
    for first in (0, 4):
        top.update(np.arange(first, min(first + 4, 6)), pooled[first : first + 4])
    rows = values.movedim(axis, 1).reshape(6, 5, -1).numpy()
    for component in range(5):
        by_hand = [float(row.max() if how == "max" else row.astype(np.float64).mean()) for row in rows[:, component]]
        order = sorted(range(6), key=lambda sample: (-np.float32(by_hand[sample]), sample))[:3]
        assert top.ids[component].tolist() == order
    assert top.dead.tolist()[1:3] == [True, True]
    assert top.ids[1].tolist() == [0, 1, 2]
    assert (top.values[2] < 0).all()
    assert top.nonzero[1] == 0
