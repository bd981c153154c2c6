"""Programs that torch.export has saved: layers under their names, the same numbers, and what cannot be audited refused."""

from __future__ import annotations

import semlens_audit._torchvision  # noqa: F401  # isort: skip

import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch.export import Dim

from semlens_audit.attribution import heatmaps, relevance
from semlens_audit.components import capture
from semlens_audit.errors import SubjectError, UsageError
from semlens_audit.exported import load_exported
from semlens_audit.intervention import ablate
from semlens_audit.layouts import Layout, layout_of, prefix_tokens
from semlens_audit.plan import ModelSource, Preprocessing
from semlens_audit.subject import load_subject, subject_digest

torch.set_num_threads(1)


class Small(torch.nn.Module):
    """Convolutions with batch norms, a residual sum, pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(6), torch.nn.ReLU(True))
        self.inner = torch.nn.Sequential(torch.nn.Conv2d(6, 6, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(6))
        self.last = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3, 2, 1), torch.nn.Hardtanh(-1.0, 3.0))
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.nn.functional.relu(x + self.inner(x))
        x = torch.nn.functional.max_pool2d(x, 2)
        return self.head(self.last(x).mean(dim=(2, 3)))


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    model = Small()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
    ).eval()  # fmt: skip


def swin() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=3
    ).eval()  # fmt: skip


def save(model: torch.nn.Module, path: Path, *, batch: object = "any", size: int = 32) -> Path:
    shapes = {"any": ({0: Dim("batch")},), "fixed": None, "few": ({0: Dim("batch", max=4)},)}[str(batch)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (torch.zeros(2, 3, size, size),), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, tuple[torch.nn.Module, Path]]:
    folder = tmp_path_factory.mktemp("programs")
    return {name: (make(), save(make(), folder / f"{name}.pt2")) for name, make in (("small", small), ("vit", vit), ("swin", swin))}


def images(count: int = 3) -> torch.Tensor:
    return torch.randn((count, 3, 32, 32), generator=torch.Generator().manual_seed(1))


class Loaded:
    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)


LAYERS = {
    "small": ["stem", "stem.1", "last", "last.1"],
    "vit": ["patch_embed", "blocks.0", "blocks.1.mlp.act"],
    "swin": ["features.1", "features.3.0"],
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_keep_their_names_and_outputs(programs, name):
    model, path = programs[name]
    again = load_exported(path, 32, 64, allow_code=True).eval()
    for count in (1, 3, 65):
        with torch.no_grad(), capture(model, LAYERS[name]) as expected, capture(again, LAYERS[name]) as given:
            assert torch.allclose(model(images(count)), again(images(count)), atol=1e-5)
        for layer in LAYERS[name]:
            assert expected[layer].shape == given[layer].shape
            assert torch.allclose(expected[layer], given[layer], atol=1e-5)


@pytest.mark.parametrize("name", list(LAYERS))
def test_relevance_and_heatmaps_are_those_of_the_network(programs, name):
    model, path = programs[name]
    again = load_exported(path, 32, 64, allow_code=True)
    layer = LAYERS[name][-2]
    for method in ("lrp", "activation_x_gradient")[name != "small" :]:
        expected = relevance(Loaded(model), images(), [layer], [0, 2], method)
        given = relevance(Loaded(again), images(), [layer], [0, 2], method)
        assert np.allclose(expected[0][layer], given[0][layer], atol=1e-5)
        assert np.abs(expected[0][layer]).max() > 0
        assert np.allclose(expected[1][layer], given[1][layer], atol=1e-3)
        heat = [heatmaps(Loaded(one), images(), layer, [0, 1, 2], method) for one in (model, again)]
        assert np.allclose(*heat, atol=1e-5)


@pytest.mark.parametrize("name", list(LAYERS))
def test_components_are_switched_off_likewise(programs, name):
    model, path = programs[name]
    again, layer = load_exported(path, 32, 64, allow_code=True), LAYERS[name][-1]
    with torch.no_grad(), capture(model, [layer]) as seen:
        model(images())
    values = seen[layer].mean(dim=0)
    answers = [ablate(Loaded(one), images(), layer, [[], [0, 2]], values) for one in (model, again)]
    assert np.allclose(*answers, atol=1e-5)
    assert np.abs(answers[0][0] - answers[0][1]).max() > 0


def test_prefix_tokens_survive(programs):
    assert prefix_tokens(load_exported(programs["vit"][1], 32, 64, allow_code=True)) == 2


def test_components_last_are_told_where_all_axes_are_equal(programs):
    model = load_exported(programs["swin"][1], 32, 64, allow_code=True)
    # 8 x 8 places and 8 components.
    assert layout_of(model, "features.1.0.norm1", torch.zeros(2, 8, 8, 8), 2) is Layout.CHANNELS_LAST
    assert layout_of(model, "features.0.0", torch.zeros(2, 8, 8, 8), 2) is Layout.MAPS
    with torch.no_grad(), pytest.raises(SubjectError) as caught, capture(model, ["features.0"]):
        model(images())
    assert caught.value.slug == "ambiguous-layout"


# ---- what is refused


def refused(path: Path, size: int = 32, batch: int = 64) -> SubjectError:
    with pytest.raises(SubjectError) as caught:
        load_exported(path, size, batch, allow_code=True)
    return caught.value


def test_code_has_to_be_allowed(programs):
    with pytest.raises(UsageError) as caught:
        load_exported(programs["small"][1], 32, 64)
    assert caught.value.slug == "code-not-allowed"


def test_a_fixed_batch(programs, tmp_path):
    error = refused(save(small(), tmp_path / "m.pt2", batch="fixed"))
    assert error.slug == "fixed-batch"
    assert "dynamic_shapes" in error.problems[0].hint
    few = save(small(), tmp_path / "few.pt2", batch="few")
    assert "batch_size: 4" in refused(few).problems[0].hint
    assert load_exported(few, 32, 4, allow_code=True)(images(4)).shape == (4, 3)


def test_another_size(programs):
    error = refused(programs["small"][1], size=64)
    assert error.slug == "bad-export"
    assert "size: 32" in error.problems[0].hint


def test_training_mode(tmp_path):
    model = vit()
    model.blocks[0].attn.proj_drop = torch.nn.Dropout(0.5)
    assert "training mode" in str(refused(save(model.train(), tmp_path / "m.pt2")))


def test_other_inputs(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(2, 4),), dynamic_shapes=({0: Dim("batch")},))
        torch.export.save(program, tmp_path / "m.pt2")
    assert "RGB images" in str(refused(tmp_path / "m.pt2"))


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_damaged_files(programs, tmp_path, content):
    path = tmp_path / "m.pt2"
    whole = programs["small"][1].read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert refused(path).slug == "bad-export"
    assert refused(tmp_path / "none.pt2").slug == "bad-export"


# ---- as the subject of an audit


def test_as_a_subject(programs, plan_of, tmp_path):
    model, path = programs["small"]
    (tmp_path / "m.pt2").write_bytes(path.read_bytes())
    parts = {"classes": ("a", "b", "c"), "preprocessing": Preprocessing(size=32), "layers": ("last.1",)}
    plan = plan_of(model=ModelSource(source="export", name="m.pt2"), **parts)
    with pytest.raises(UsageError):
        load_subject(plan)
    subject = load_subject(plan, allow_code=True)
    assert torch.allclose(subject.model(images()), model(images()), atol=1e-5)
    assert subject.architecture == "export m.pt2"
    before = subject_digest(plan)
    other = plan_of(model=ModelSource(source="export", name="other.pt2"), **parts)
    (tmp_path / "other.pt2").write_bytes(path.read_bytes())
    assert subject_digest(other) == before
    (tmp_path / "other.pt2").write_bytes(programs["vit"][1].read_bytes())
    assert subject_digest(other) != before
    with pytest.raises(SubjectError):
        subject_digest(plan_of(model=ModelSource(source="export", name="none.pt2"), **parts))
