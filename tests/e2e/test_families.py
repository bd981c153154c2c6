"""An audit of one model of every family, through the real command line: layouts, attribution, dead units, exit code."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semlens_audit.data import open_data
from semlens_audit.index import load_evidence
from semlens_audit.resources import audits_dir, specs_dir
from semlens_audit.store import Store
from semlens_audit.yaml_source import load
from tests.e2e.conftest import Run
from tests.unit import index_world as world

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from semlens_audit.cli import app  # noqa: E402
from tests.unit.family_world import FAMILIES, settle  # noqa: E402

DEAD = 3
SIDE = 64
NULL = 40


@dataclass(frozen=True)
class Audited:
    """A family as it is audited.

    Parameters
    ----------
    layers
        Layer -> number of its components.
    silenced
        Tensor of the weights whose entry `DEAD` is set so low that the unit after it never fires, in the last of the layers.
    attribution
        How the record has to begin to say by what the layers were attributed.
    why
        Pattern of the recorded reason.
    source
        Of the model; own code where no library builds one as small.
    """

    layers: dict[str, int]
    silenced: str
    attribution: str
    why: str = "^relevance propagation conserves: "
    source: dict[str, Any] = field(default_factory=lambda: {"source": "code"})


LRP, GRADIENT = "LRP, composite EpsilonPlusFlat", "activation x gradient"
ATTENTION, BIASES = "^the network has attention, and ", "is taken by biases"
_TRANSFORMER = {"img_size": SIDE, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 4}
AUDITED = {
    "residual": Audited(
        {"layer3": 16, "layer4": 32}, "layer4.1.bn2.bias", LRP,
        source={"source": "timm", "name": "resnet18", "arguments": {"channels": [8, 16, 16, 32], "num_classes": 4}},
    ),
    "plain": Audited({"features.2": 8, "features": 16}, "features.8.bias", LRP),
    "dense": Audited({"features.denseblock1": 32, "features": 32}, "features.norm5.bias", LRP),
    "inverted residual": Audited(
        {"features.17": 80, "features.17.conv.0": 240}, "features.17.conv.0.1.bias", LRP,
        source={"source": "torchvision", "name": "mobilenet_v2", "arguments": {"width_mult": 0.25, "num_classes": 4}},
    ),
    "squeeze and excitation": Audited({"features.2": 24, "features": 96}, "features.3.1.bias", LRP),
    "hard swish": Audited({"features.3": 24, "features": 144}, "features.4.1.bias", GRADIENT, BIASES),
    "convnext": Audited(
        {"stages": 16, "stages.3.blocks.0.mlp.act": 64}, "stages.3.blocks.0.mlp.fc1.bias", LRP,
        source={
            "source": "timm", "name": "convnext_atto",
            "arguments": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "num_classes": 4},
        },
    ),
    "vit": Audited(
        {"blocks.1": 32, "blocks.1.mlp.act": 64}, "blocks.1.mlp.fc1.bias", GRADIENT, ATTENTION,
        {"source": "timm", "name": "vit_tiny_patch16_224", "arguments": _TRANSFORMER},
    ),
    "deit": Audited(
        {"blocks.1": 32, "blocks.1.mlp.act": 64}, "blocks.1.mlp.fc1.bias", GRADIENT, ATTENTION,
        {"source": "timm", "name": "deit_tiny_distilled_patch16_224", "arguments": _TRANSFORMER},
    ),
    "swin": Audited(
        {"layers.0": 16, "layers.1.blocks.1.mlp.act": 128}, "layers.1.blocks.1.mlp.fc1.bias", GRADIENT, ATTENTION,
        {
            "source": "timm", "name": "swin_tiny_patch4_window7_224",
            "arguments": {
                "img_size": SIDE, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 4,
            },
        },
    ),
    "clip": Audited(
        {"visual.transformer.resblocks.0": 32, "visual.transformer.resblocks.0.mlp.gelu": 128},
        "visual.transformer.resblocks.0.mlp.c_fc.bias", GRADIENT, ATTENTION, {"source": "open_clip", "name": "subject-clip"},
    ),
}  # fmt: skip
CLASSES = ("nevus", "melanoma", "wart", "freckle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, foundation model and spec that all audits share."""
    folder = world.write_world(tmp_path_factory.mktemp("families"))
    clarity = {
        "id": "clear", "kind": "clarity", "class": "melanoma", "statement": "The components are clear.",
        "criterion": {"at_least": -0.9}, "rationale": "Chosen so that the test has a threshold.",
    }  # fmt: skip
    (folder / "spec.yaml").write_text(json.dumps(world.spec(checks=[clarity])))
    (folder / "own.py").write_text(
        "from tests.unit.family_world import FAMILIES\n\n\ndef network(family):\n    return FAMILIES[family].make()\n"
    )
    return folder


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few random crops, and one thread: what is computed is small."""
    monkeypatch.setattr("semlens_audit.stages.NULL_CROPS", NULL)
    torch.set_num_threads(1)


def write(folder: Path, family: str) -> Path:
    """Weights of the family, with one unit silenced, and its audit."""
    chosen, name = AUDITED[family], family.replace(" ", "-")
    source = dict(chosen.source)
    if family == "clip":
        weights = world.write_clip(folder / "subject-clip", seed=5) / "open_clip_model.safetensors"
        state = load_file(weights)
        state[chosen.silenced][DEAD] = -100.0
        save_file(state, weights)
    else:
        torch.manual_seed(1)
        state = {key: value.contiguous() for key, value in settle(FAMILIES[family].make()).state_dict().items()}
        state[chosen.silenced][DEAD] = -100.0
        save_file(state, folder / f"{name}.safetensors")
        source["weights"] = f"{name}.safetensors"
        if source["source"] == "code":
            source |= {"name": "own.py:network", "arguments": {"family": family}}
    base = world.audit()
    subject = {
        **base["subject"], "name": name, "model": source, "classes": list(CLASSES),
        "preprocessing": {"size": 24 if family == "clip" else SIDE, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }  # fmt: skip
    measurement = {
        **base["measurement"], "attribution": "auto", "reference_samples": 2, "intervention": "none", "minimum_samples": 2,
        "batch_size": 16,
    }  # fmt: skip
    audit = base | {
        "audit": name, "store": f"{name}.duckdb", "subject": subject, "layers": list(chosen.layers), "measurement": measurement,
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(audit))
    return file


def references(folder: Path, file: Path, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Number of reference samples of each component of the layer, and whether it is dead."""
    plan = world.plan(folder, json.loads(file.read_text()), json.loads((folder / "spec.yaml").read_text()))
    with Store.open(folder / f"{file.stem}.duckdb", read_only=True) as store:
        evidence = load_evidence(plan, open_data(plan), store)
        assert evidence is not None
        (found,) = (one for one in evidence.layers if one.layer == layer)
        return (found.reference_ids >= 0).sum(axis=1), found.dead


def checked(record: dict[str, Any], report: str, family: str) -> None:
    """What a record of the family has to say."""
    chosen = AUDITED[family]
    assert record["verdict"]["exit_code"] in (0, 1, 3)
    assert record["settings"]["attribution"] == "auto"
    layers = {layer["layer"]: layer for layer in record["layers"]}
    assert {name: layer["components"] for name, layer in layers.items()} == chosen.layers
    assert layers[list(chosen.layers)[-1]]["dead"] >= 1
    for layer in layers.values():
        assert layer["attribution"].startswith(chosen.attribution)
        assert layer["method"] == ("lrp" if chosen.attribution == LRP else "activation_x_gradient")
        assert re.search(chosen.why, layer["choice"])
        assert layer["conservation"] is not None
        said = [sentence for sentence in record["limitations"] if re.match(rf"In [^,]*{re.escape(layer['layer'])}\b", sentence)]
        if layer["method"] == "activation_x_gradient":
            assert any(layer["choice"] in sentence for sentence in said)
        if abs(layer["conservation"] - 1) > 0.25:
            assert any(f"adds up to {layer['conservation']:.2f} times the output" in sentence for sentence in said)
    assert layers[next(iter(layers))]["choice"] in html.unescape(report)


@pytest.mark.parametrize("family", AUDITED)
def test_a_model_of_the_family_is_audited(folder: Path, command: Run, family: str) -> None:
    file = write(folder, family)
    allowed = ["--allow-code"] if AUDITED[family].source["source"] == "code" else []
    done = CliRunner().invoke(app, ["run", str(file), *allowed])
    assert done.exit_code in (0, 1, 3), f"{done.output}\n{done.exception!r}"
    reports = folder / "reports" / file.stem
    record = json.loads((reports / "results.json").read_text())
    assert record["verdict"]["exit_code"] == done.exit_code
    checked(record, (reports / "report.html").read_text(), family)
    samples, dead = references(folder, file, list(AUDITED[family].layers)[-1])
    assert dead[DEAD]
    assert samples[DEAD] == 0, "a unit that never fires has no samples that speak for it"
    assert (samples[~dead] == 2).mean() > 0.8, "only units that carry relevance on a sample or none have fewer"
    if family == "convnext":  # as a process of its own, on the store that is complete but for its random crops
        command("run", file, code=done.exit_code)
        again = json.loads((reports / "results.json").read_text())
        assert [layer["choice"] for layer in again["layers"]] == [layer["choice"] for layer in record["layers"]]


@pytest.mark.slow
def test_the_real_photographs_network_is_propagated_where_its_biases_leave_enough(
    tmp_path: Path, shared_data: Path
) -> None:
    """MobileNetV2, trained on ImageNet: all that it says arrives in its last block, less than half in the one before."""
    audit = load(audits_dir() / "photographs.yaml").data
    picked = sorted((shared_data / "imagenet_samples").glob("*.jpg"))[::84]
    (tmp_path / "images").mkdir()
    for file in picked:
        (tmp_path / "images" / file.name).symlink_to(file)
    for place in ("subject", "foundation_model"):
        model = audit[place].get("model", audit[place])
        audit[place]["preprocessing"] |= {"resize": 110, "size": 96}
        model["weights"] = str(shared_data / "models" / Path(model["weights"]).name)
    audit["subject"]["classes"] = str(audits_dir() / "imagenet-classes.json")
    audit |= {
        "spec": str(specs_dir() / "photographs-examples.yaml"), "store": "store.duckdb", "reports": "reports",
        "layers": ["features.16", "features.17"], "examples_root": str(shared_data / "imagenet_samples"),
    }  # fmt: skip
    audit["data"] |= {"path": "images"}
    audit["measurement"] = {
        "attribution": "auto", "selection": "activation", "crop_threshold": 0.4, "reference_samples": 2, "null_sets": 100,
        "bootstrap": 100, "batch_size": 12, "intervention": "none",
    }  # fmt: skip
    (tmp_path / "audit.yaml").write_text(json.dumps(audit))
    trusted = [f"--allow-path={folder}" for folder in (shared_data.resolve(), specs_dir(), audits_dir())]
    done = CliRunner().invoke(app, ["run", str(tmp_path / "audit.yaml"), *trusted])
    assert done.exit_code == 4, f"one photograph of a class: nothing can be judged, and it says so: {done.output}"
    record = json.loads((tmp_path / "reports" / "photographs" / "results.json").read_text())
    early, late = record["layers"]
    assert (late["components"], late["method"]) == (320, "lrp")
    assert late["choice"].startswith("relevance propagation conserves")
    assert late["conservation"] == pytest.approx(1, abs=0.1)
    assert (early["components"], early["method"]) == (160, "activation_x_gradient")
    assert re.search(r"0\.[5-9]\d is taken by biases", early["choice"])
