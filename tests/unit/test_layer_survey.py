"""Which layers a network has, counted by hand, and which an audit does well to begin with, for every family."""

from __future__ import annotations

import semlens_audit._torchvision  # noqa: F401  # isort: skip

import io
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from rich.console import Console
from ruamel.yaml import YAML
from typer.testing import CliRunner

from semlens_audit.cli import app
from semlens_audit.errors import AuditError
from semlens_audit.layer_listing import Listing, list_architecture
from semlens_audit.layer_screen import print_layers
from semlens_audit.layer_survey import LayerCost, Survey, default_layers, survey
from semlens_audit.layouts import Layout

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]

FAMILIES = [
    ("torchvision", "resnet18", 64, ("layer3", "layer4")),
    ("timm", "resnet50", 64, ("layer3", "layer4")),
    ("torchvision", "vgg11_bn", 64, ("features.20", "features.27")),
    ("torchvision", "densenet121", 64, ("features.denseblock3", "features.denseblock4")),
    ("torchvision", "mobilenet_v2", 64, ("features.13", "features.18")),
    ("timm", "tf_efficientnet_lite0", 64, ("blocks.4", "blocks.6")),
    ("timm", "efficientnet_b0", 64, ("blocks.4", "blocks.6")),
    ("timm", "convnext_atto", 64, ("stages.2", "stages.3")),
    ("torchvision", "convnext_tiny", 64, ("features.5", "features.7")),
    ("torchvision", "swin_t", 224, ("features.5.5.mlp.1", "features.7.1.mlp.1")),
    ("timm", "swin_tiny_patch4_window7_224", 224, ("layers.2.blocks.5.mlp.act", "layers.3.blocks.1.mlp.act")),
    ("timm", "vit_tiny_patch16_224", 224, ("blocks.10.mlp.act", "blocks.11.mlp.act")),
    ("timm", "deit_tiny_distilled_patch16_224", 224, ("blocks.10.mlp.act", "blocks.11.mlp.act")),
    ("torchvision", "vit_b_16", 224, ("encoder.layers.encoder_layer_10.mlp.1", "encoder.layers.encoder_layer_11.mlp.1")),
    ("timm", "mixer_s32_224", 224, ("blocks.6.mlp_channels.act", "blocks.7.mlp_channels.act")),
    ("timm", "pvt_v2_b0", 64, ("stages.2.blocks.1.mlp.act", "stages.3.blocks.1.mlp.act")),
    ("timm", "regnety_002", 64, ("s3", "s4")),
]


WITHOUT_DATA = {"vit_b_16", "vgg11_bn", "resnet50", "densenet121", "convnext_tiny"}
"""Only their shapes are asked for, and numbers would take seconds to draw."""


@pytest.mark.parametrize(("library", "name", "size", "expected"), FAMILIES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_last_blocks_of_the_last_stages_are_chosen(library, name, size, expected):
    with torch.device("meta" if name in WITHOUT_DATA else "cpu"):
        model = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
    found = survey(model.eval(), size)
    assert default_layers(found) == expected
    rows = {row.name: row for row in found.layers}
    assert all(rows[layer].layout is not None for layer in expected)


class Net(torch.nn.Module):
    """Every operation counted by hand below."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
        self.stage = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, stride=2, padding=1), torch.nn.Conv2d(8, 8, 1), torch.nn.ReLU())
        self.twice = torch.nn.Conv2d(8, 8, 1)
        self.never = torch.nn.Linear(2, 2)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.stage(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


def test_operations_shapes_and_order_by_hand():
    found = survey(Net().eval(), 16)
    rows = {row.name: row for row in found.layers}
    assert list(rows) == ["stem.0", "stem.1", "stem", "stage.0", "stage.1", "stage.2", "stage", "twice", "head"]
    stem, first, second, twice, head = 2 * 256 * 27 * 4, 2 * 64 * 36 * 8, 2 * 64 * 64, 2 * 2 * 64 * 64, 2 * 8 * 2
    assert rows["stem"].flops == stem
    assert rows["stem"].own == 0
    assert rows["stage"].flops == first + second
    assert rows["stage"].before == stem + first + second
    assert rows["twice"].flops == rows["twice"].own == twice
    assert found.flops == rows["head"].before == stem + first + second + twice + head
    assert (rows["stage"].shape, rows["stage"].components, rows["stage"].side) == ((8, 8, 8), 8, 8)
    assert (rows["head"].layout, rows["head"].shape) == (Layout.VECTOR, (2,))
    assert rows["stage.1"].parent == "stage"
    assert rows["stage"].parent == ""
    assert found.unused == ("never",)
    assert found.share(stem) == pytest.approx(stem / found.flops)


def test_the_survey_leaves_the_network_as_it_was():
    model = Net().eval()
    before = torch.backends.mha.get_fastpath_enabled()
    survey(model, 16)
    with pytest.raises(RuntimeError):
        survey(torch.nn.Sequential(torch.nn.Linear(7, 2)), 16)
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_audited_is_listed_with_the_reason():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=3
    )
    rows = {row.name: row for row in survey(model.eval(), 32).layers}
    assert rows["layers.0.blocks.0.attn"].layout is None
    assert "windows" in rows["layers.0.blocks.0.attn"].refusal
    assert rows["layers.0"].layout is Layout.CHANNELS_LAST
    assert rows["layers.0"].shape == (12, 8, 8)


def test_a_network_without_stages_or_blocks_has_no_choice():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    assert default_layers(survey(model.eval(), 8)) == ()
    assert default_layers(Survey((), (), 0, 8)) == ()


# ---- the verb


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["layers", *arguments], env={"COLUMNS": "120"})
    return result.exit_code, result.output


def test_an_architecture_by_its_name():
    code, text = call("timm:vit_tiny_patch16_224", "--size", "32", "--argument", "img_size=32", "--argument", "depth=3", "--json")
    assert code == 0
    told = json.loads(text)
    assert told["default"] == ["blocks.1.mlp.act", "blocks.2.mlp.act"]
    row = next(one for one in told["layers"] if one["name"] == "blocks.2.mlp.act")
    assert row["semantics"] == "token features"
    assert (row["shape"], row["components"], row["grid"], row["prefix_tokens"]) == ([5, 768], 768, 2, 1)
    assert row["crops"] == 768 * 30
    assert row["attribution"]["method"] == "activation_x_gradient"
    assert "attention" in row["attribution"]["reason"]
    assert not told["trained"]
    assert [one["name"] for one in told["layers"] if one["default"]] == told["default"]


def test_an_audit_file():
    code, text = call(str(ROOT / "audits" / "phantom-clean.yaml"))
    assert code == 0
    assert "layers: [layer3, layer4]" in text
    assert "The audit names: layers: [layer3]" in text
    assert "●○" in text
    assert "64 channels 8x8" in text


def test_every_layer_on_demand():
    short, long = call("torchvision:resnet18", "--size", "32")[1], call("torchvision:resnet18", "--size", "32", "--all")[1]
    assert "layer4.1.conv2" in long
    assert "layer4.1.conv2" not in short
    assert "--all lists every layer" in short


@pytest.mark.parametrize(
    ("arguments", "slug"),
    [
        (["nowhere"], "unknown-model"), (["x" * 5000], "unknown-model"),
        (["timm:resnett18"], "unknown-architecture"), (["jax:resnet"], "unknown-model"),
        (["timm:resnet18", "--argument", "x"], "bad-argument"), (["timm:vit_tiny_patch16_224", "--size", "100"], "model-fails"),
        (["export:none.pt2"], "code-not-allowed"), (["export:none.pt2", "--allow-code"], "bad-export"),
        ([str(ROOT / "audits" / "phantom-clean.yaml"), "--size", "32"], "unused-option"),
    ],
)  # fmt: skip
def test_what_cannot_be_listed_is_said(arguments, slug):
    code, text = call(*arguments)
    assert code in (2, 4)
    assert f"[{slug}]" in text


@pytest.mark.parametrize(
    ("model", "argument", "why"),
    [
        ("timm:resnet18", "checkpoint_path=x.pt", "other files"), ("timm:resnet18", 'pretrained_cfg={"file": "x.pt"}', "other files"),
        ("torchvision:resnet18", "weights=DEFAULT", "other files"), ("timm:resnet18", "num_classes=1000000000", "larger than"),
        ("open_clip:none", "cache_dir=x", "other files"),
    ],
)  # fmt: skip
def test_arguments_that_audits_refuse_are_refused(model, argument, why):
    code, text = call(model, "--argument", argument)
    assert code == 2
    assert "[bad-arguments]" in text
    assert why in text


def test_names_are_written_as_an_audit_file_takes_them():
    names = ["layer3", "blocks.1.mlp.act", "1", "1.0", "1e5", "on", "a b: [x] #1", 'say "x"', "été"]
    found = Survey(tuple(LayerCost(n, "ReLU", "", Layout.MAPS, (4, 2, 2), 4, 2, 0, 1, 1) for n in names), (), 1, 8)
    console = Console(file=io.StringIO(), width=400)
    print_layers(Listing("m", True, found, tuple(names), tuple(names), 5, {}), console=console)
    said = [line.partition("layers: ")[2] for line in console.file.getvalue().splitlines() if "layers: [" in line]
    assert [YAML(typ="safe").load(text) for text in said] == [names, names]
    assert said[0].startswith("[layer3, blocks.1.mlp.act,")


def test_a_zero_shot_model_by_its_directory():
    listing = list_architecture("open_clip:phantom:clip", None, {})
    assert listing.found.size == 64
    assert listing.chosen == ("visual.layer3", "visual.layer4")
    assert listing.trained


def test_wrong_layers_of_an_audit_do_not_hide_the_list(tmp_path):
    (tmp_path / "audits").mkdir()
    shutil.copytree(ROOT / "specs", tmp_path / "specs")
    audit = (ROOT / "audits" / "phantom-clean.yaml").read_text(encoding="utf-8")
    assert "layers: [layer3]" in audit
    (tmp_path / "audits" / "a.yaml").write_text(audit.replace("layers: [layer3]", "layers: [layr3, layer2]"), encoding="utf-8")
    code, text = call(str(tmp_path / "audits" / "a.yaml"))
    assert code == 0, text
    assert "layr3, which the audit names, is no layer that is run." in text


def test_names_that_lead_nowhere_are_usage_errors():
    with pytest.raises(AuditError):
        list_architecture("timm:", None, {})
