"""Indices of models from every source: zero-shot and linear-head towers of open_clip, exported programs, Swin with places in between."""

from __future__ import annotations

import semlens_audit._torchvision  # noqa: F401  # isort: skip

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from semlens_audit import index, stages
from semlens_audit.data import open_data
from semlens_audit.errors import UsageError
from semlens_audit.images import read_image
from semlens_audit.plan import AuditPlan
from semlens_audit.store import Store
from semlens_audit.subject import load_subject
from tests.unit import index_world as world


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    with world.quick(30):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("sources"))


def plan_of(folder: Path, name: str, model: dict[str, Any], layers: list[str], attribution: str, **view: Any) -> AuditPlan:
    values = world.audit(store=f"{name}.duckdb", layers=layers)
    values["subject"] = {**values["subject"], "model": model, "preprocessing": {**values["subject"]["preprocessing"], **view}}
    values["measurement"] = {**values["measurement"], "attribution": attribution}
    return world.plan(folder, values)


@dataclass(frozen=True)
class Layer:
    """Evidence of one layer, read from the store."""

    relevance: np.ndarray
    reference_ids: np.ndarray
    boxes: np.ndarray
    attribution: str


@dataclass(frozen=True)
class Indexed:
    """An index, read."""

    logits: np.ndarray
    architecture: str
    stages: dict[str, str]
    layers: list[Layer]
    content: str


def indexed(plan: AuditPlan, *, allow_code: bool = False) -> Indexed:
    """Build the index and read it."""
    index.build(plan, allow_code=allow_code)
    with Store.open(Path(plan.audit_file).parent / plan.audit.store, read_only=True) as store:
        evidence = index.load_evidence(plan, open_data(plan), store)
        assert evidence is not None
        layers = []
        for layer in evidence.layers:
            relevance = np.asarray(layer.relevance)
            assert np.isfinite(relevance).all()
            assert np.abs(relevance).max() > 0
            assert np.isfinite(layer.embeddings).all()
            assert (layer.boxes[..., 2] > layer.boxes[..., 0]).all()
            layers.append(Layer(relevance, np.array(layer.reference_ids), np.array(layer.boxes), layer.attribution))
        architecture = evidence.subject["architecture"]
        return Indexed(np.array(evidence.logits), architecture, dict(evidence.stages), layers, store.content_digest())


def logits_by_hand(plan: AuditPlan, *, allow_code: bool = False) -> np.ndarray:
    subject, data = load_subject(plan, allow_code=allow_code), open_data(plan)
    with torch.no_grad():
        rows = [subject.model(subject.transform(read_image(data.file(sample)))[None])[0] for sample in data.samples]
    return torch.stack(rows).numpy()


ZERO_SHOT = {"source": "open_clip", "name": "clip", "prompts": {"nevus": ["a mole"]}}
VIEW = {"size": 24, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def test_a_zero_shot_tower(folder):
    plan = plan_of(folder, "zero", ZERO_SHOT, ["visual.transformer.resblocks.0"], "activation_x_gradient", **VIEW)
    evidence = indexed(plan)
    assert np.allclose(evidence.logits, logits_by_hand(plan), atol=1e-4)
    assert evidence.architecture == "open_clip zero-shot clip"
    assert evidence.layers[0].relevance.shape == (world.SAMPLES, 2, 32)
    assert indexed(plan).content == evidence.content
    # Other prompts are another model: nothing that depends on them is taken from the store, what does not is.
    other = plan_of(folder, "zero", {**ZERO_SHOT, "prompts": {}}, ["visual.transformer.resblocks.0"], "activation_x_gradient", **VIEW)
    found = indexed(other)
    assert not np.allclose(found.logits, evidence.logits, atol=1e-3)
    same = {name for name, key in found.stages.items() if evidence.stages[name] == key}
    assert {"images", "foundation", "views", "probes"} <= same
    assert not same & {"outputs", "relevance:visual.transformer.resblocks.0"}


def test_a_tower_with_a_linear_head(folder):
    torch.manual_seed(1)
    save_file({"weight": torch.randn(2, 16), "bias": torch.randn(2)}, folder / "head.safetensors")
    model = {"source": "open_clip", "name": "clip", "head": "head.safetensors"}
    plan = plan_of(folder, "head", model, ["visual.transformer.resblocks.0"], "auto", **VIEW)
    evidence = indexed(plan)
    assert np.allclose(evidence.logits, logits_by_hand(plan), atol=1e-4)
    assert evidence.architecture == "open_clip linear-head clip"


def test_an_exported_program_gives_what_its_network_gives(folder):
    plain = plan_of(folder, "plain", world.audit()["subject"]["model"], ["layer3"], "lrp")
    network = load_subject(plain).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            network, (torch.zeros(2, 3, world.SIDE, world.SIDE),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        torch.export.save(program, folder / "small.pt2")
    exported = plan_of(folder, "exported", {"source": "export", "name": "small.pt2"}, ["layer3"], "lrp")
    with pytest.raises(UsageError):
        index.build(exported)
    one, other = indexed(plain), indexed(exported, allow_code=True)
    assert np.allclose(one.logits, other.logits, atol=1e-5)
    assert np.allclose(one.layers[0].relevance, other.layers[0].relevance, atol=1e-5)
    assert (one.layers[0].reference_ids == other.layers[0].reference_ids).all()
    assert (one.layers[0].boxes == other.layers[0].boxes).all()
    assert one.layers[0].attribution == other.layers[0].attribution


def test_places_in_between_are_read_as_such_all_the_way(folder):
    arguments = {"img_size": 32, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "num_classes": 2}
    torch.manual_seed(2)
    network = timm.create_model("swin_tiny_patch4_window7_224", **arguments).eval()
    save_file(network.state_dict(), folder / "swin.safetensors")
    model = {"source": "timm", "name": "swin_tiny_patch4_window7_224", "weights": "swin.safetensors", "arguments": arguments}
    plan = plan_of(folder, "swin", model, ["layers.0", "layers.1"], "auto")
    evidence = indexed(plan)
    assert [layer.relevance.shape[2] for layer in evidence.layers] == [12, 24]
    # By hand: activation x gradient of one sample, the components being the last axis of what the stage gives.
    data, subject = open_data(plan), load_subject(plan)
    kept: list[torch.Tensor] = []

    def keep(_m: torch.nn.Module, _i: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[0]

    handle = subject.model.get_submodule("layers.0").register_forward_hook(keep)
    sample = data.samples[5]
    logits = subject.model(subject.transform(read_image(data.file(sample)))[None])
    handle.remove()
    for place, output in enumerate(stages.audited_classes(plan)):
        (gradient,) = torch.autograd.grad(logits[0, output], kept[0], retain_graph=True)
        by_hand = (gradient * kept[0]).detach().sum(dim=(1, 2))[0].numpy()
        assert np.allclose(evidence.layers[0].relevance[5, place], by_hand, rtol=1e-3, atol=1e-5)
