from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from semlens_audit import index, spec
from semlens_audit.attribution import relevance
from semlens_audit.cli import app
from semlens_audit.components import capture, pool
from semlens_audit.data import open_data
from semlens_audit.errors import SpecError, SubjectError
from semlens_audit.execution import Execution
from semlens_audit.plan import AuditPlan
from semlens_audit.sae.model import load_autoencoder
from semlens_audit.sae.training import Settings, bare, train
from semlens_audit.sae_header import read_dictionary
from semlens_audit.stages import stage_inputs, stage_keys
from semlens_audit.store import Store
from semlens_audit.subject import load_subject, source_digest, subject_digest
from semlens_audit.work import Bench
from tests.unit import index_world

LATENTS = "layer3.sae.latents"


pytestmark = pytest.mark.usefixtures("one_thread")


def values(layers: tuple[str, ...] = ("layer1", LATENTS), **autoencoder: Any) -> dict[str, Any]:
    audit = index_world.audit(layers=list(layers))
    audit["subject"]["autoencoders"] = [{"layer": "layer3", "file": "layer3.safetensors", **autoencoder}]
    audit["measurement"] |= {"attribution": "auto", "selection": "activation"}
    return audit


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world with an autoencoder of layer3, and an audit of its latents."""
    folder = index_world.write_world(tmp_path_factory.mktemp("world"))
    plan = bare(index_world.plan(folder))
    settings = Settings("layer3", latents=10, k=2, epochs=10, batch=16, learning_rate=0.01)
    train(Bench(plan, open_data(plan), execution=Execution(device="cpu")), settings, folder / "layer3.safetensors")
    (folder / "audit.yaml").write_text(json.dumps(values()))
    return folder


@pytest.fixture(scope="module")
def indexed(world: Path) -> AuditPlan:
    plan = index_world.plan(world, values())
    index.build(plan, execution=Execution(device="cpu"))
    return plan


def test_latents_are_indexed_as_any_layer(indexed: AuditPlan, world: Path) -> None:
    data, subject = open_data(indexed), load_subject(indexed)
    with Store.open(world / "store.duckdb", read_only=True) as store:
        evidence = index.load_evidence(indexed, data, store)
        assert evidence is not None
        layer = next(one for one in evidence.layers if one.layer == LATENTS)
        images = torch.stack([subject.transform(index_world.Image.open(data.file(sample)).convert("RGB")) for sample in data.samples])
        with torch.inference_mode(), capture(subject.model, [LATENTS, "layer3"]) as seen:
            logits = subject.model(images)
        model, _ = load_autoencoder(world / "layer3.safetensors")
        by_hand = model.encode(seen["layer3"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        pooled = pool(by_hand, "max").numpy()
        assert layer.components == 10
        np.testing.assert_array_equal(layer.dead, pooled.max(axis=0) <= 0)
        for component in np.flatnonzero(~layer.dead):
            ids = layer.reference_ids[component]
            np.testing.assert_allclose(pooled[ids[ids >= 0], component], np.sort(pooled[:, component])[::-1][: (ids >= 0).sum()], rtol=1e-4)
        expected, _ = relevance(subject, images, [LATENTS], evidence.audited, "activation_x_gradient")
        np.testing.assert_allclose(layer.relevance, expected[LATENTS], rtol=1e-3, atol=1e-5)
        assert layer.chosen is not None
        assert layer.chosen[0] == "activation_x_gradient"
        assert "no rule of relevance propagation" in layer.chosen[1]
        np.testing.assert_allclose(evidence.logits, logits.numpy(), rtol=1e-4, atol=1e-5)


def test_keys_of_audits_without_autoencoders_and_of_other_layers_are_what_they_were(world: Path) -> None:
    without, plan = index_world.audit(layers=["layer1", "layer3"]), index_world.plan(world, values(("layer1", "layer3", LATENTS)))
    without["measurement"] = values()["measurement"]
    plain = index_world.plan(world, without)
    data = open_data(plain)
    before, after = stage_keys(plain, data), stage_keys(plan, data)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {
        f"{kind}:{LATENTS}" for kind in ("references", "relevance", "crops", "attribution", "embeddings", "null")
    }
    inputs = stage_inputs(plain, data)["outputs"]
    assert inputs["subject"] == source_digest(plain, plain.audit.subject.model) == subject_digest(plain)
    assert "autoencoder" not in json.dumps(stage_inputs(plain, data))
    assert subject_digest(plan) != subject_digest(plain)


def test_another_autoencoder_has_other_keys(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "other", ignore=shutil.ignore_patterns("store*", "reports"))
    plan, other = index_world.plan(world, values()), index_world.plan(tmp_path / "other", values())
    data = open_data(plan)
    assert stage_keys(plan, data) == stage_keys(other, data)
    content = bytearray((tmp_path / "other" / "layer3.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "other" / "layer3.safetensors").write_bytes(content)
    one, two = stage_keys(plan, data), stage_keys(other, data)
    assert {name for name in one if one[name] != two[name]} == {name for name in one if name.endswith(LATENTS)}
    assert subject_digest(plan) != subject_digest(other)


def test_an_autoencoder_of_something_else_is_refused(world: Path, tmp_path: Path) -> None:
    def refused(changes: dict[str, Any], folder: Path = world) -> SubjectError:
        with pytest.raises(SubjectError) as caught:
            load_subject(index_world.plan(folder, values(("layer1",)) | changes))
        return caught.value

    own = values()["subject"]
    assert refused({"subject": own | {"autoencoders": [{"layer": "layer1", "file": "layer3.safetensors"}]}}).slug == "other-layer"
    assert refused({"subject": own | {"autoencoders": [{"layer": "layer3", "file": "layer3.safetensors", "k": 3}]}}).slug == "other-k"
    error = refused({"subject": own | {"preprocessing": own["preprocessing"] | {"mean": [0.1, 0.1, 0.1]}}})
    assert error.slug == "other-preprocessing"
    assert "mean (0.5, 0.5, 0.5) instead of (0.1, 0.1, 0.1)" in error.problems[0].message
    shutil.copytree(world, tmp_path / "retrained", ignore=shutil.ignore_patterns("store*", "reports"))
    index_world.write_subject(tmp_path / "retrained" / "small.safetensors", seed=8)
    assert refused({}, tmp_path / "retrained").slug == "other-subject"
    lrp = index_world.plan(world, values() | {"measurement": values()["measurement"] | {"attribution": "lrp"}})
    with pytest.raises(SubjectError) as caught:
        load_subject(lrp)
    assert caught.value.slug == "lrp-not-applicable"


def test_the_audit_file_is_held_to_the_autoencoders_it_names(world: Path, tmp_path: Path) -> None:
    assert spec.read_plan(world / "audit.yaml").audit.subject.autoencoders[0].layer == "layer3"
    bad = values() | {"measurement": values()["measurement"] | {"attribution": "lrp"}}
    path = world / "lrp.yaml"
    path.write_text(json.dumps(bad))
    with pytest.raises(SpecError, match="no rule of relevance propagation") as caught:
        spec.read_plan(path)
    path.unlink()
    assert [problem.slug for problem in caught.value.problems] == ["lrp-not-applicable"]


def test_the_model_is_the_same_with_and_without_its_autoencoders(indexed: AuditPlan, world: Path) -> None:
    one, other = load_subject(indexed), load_subject(index_world.plan(world))
    assert one.sha256 == other.sha256
    assert one.parameters == other.parameters
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.model(images), other.model(images))


def test_the_command_line_trains_shows_and_audits(world: Path, tmp_path: Path) -> None:
    run, out = CliRunner().invoke, tmp_path / "by-hand.safetensors"
    trained = run(
        app,
        ["sae", "train", str(world / "audit.yaml"), "--layer", "layer3", "--latents", "10", "--k", "2", "--epochs", "10", "--batch", "16",
         "--learning-rate", "0.01", "--out", str(out), "--device", "cpu"],
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    assert "explained variance" in trained.output
    assert "autoencoders:" in trained.output
    assert out.read_bytes() == (world / "layer3.safetensors").read_bytes()
    shown = run(app, ["sae", "info", str(out)])
    assert shown.exit_code == 0
    assert "layer3" in shown.output
    told = json.loads(run(app, ["sae", "info", str(out), "--json"]).stdout)
    assert told["latents"] == 10
    found = read_dictionary(out).training
    assert found is not None
    assert told["training"]["explained_variance"] == found.explained_variance
    listed = json.loads(run(app, ["layers", str(world / "audit.yaml"), "--json"]).stdout)
    row = next(row for row in listed["layers"] if row["name"] == LATENTS)
    assert row["components"] == 10
    for arguments, message in (
        (["--layer", "layer3", "--latents", "4"], "--steps or --epochs"),
        (["--layer", "layer9", "--latents", "4", "--steps", "1"], "layer9"),
    ):
        failed = run(app, ["sae", "train", str(world / "audit.yaml"), *arguments, "--out", str(tmp_path / "x.safetensors"), "-q"])
        assert failed.exit_code != 0
        assert message in failed.output


def test_every_part_of_a_run_takes_latents(indexed: AuditPlan, world: Path) -> None:
    ran = CliRunner().invoke(app, ["run", str(world / "audit.yaml"), "--quiet", "--device", "cpu"])
    assert ran.exit_code in (0, 1, 3, 4), ran.output
    record = json.loads(sorted((world / "reports").glob("**/results.json"))[-1].read_text())
    layers = {one["layer"]: one for one in record["layers"]}
    assert set(layers) == {"layer1", LATENTS}
    assert layers[LATENTS]["method"] == "activation_x_gradient"
    assert {one["layer"] for one in record["class_layers"]} == {"layer1", LATENTS}
    assert any(one["layer"] == LATENTS for one in record["interventions"])
    training = read_dictionary(world / "layer3.safetensors").training
    assert training is not None
    said = next(text for text in record["limitations"] if "sparse autoencoder" in text)
    assert f"explains {100 * training.explained_variance:.0f} % of the layer's variance" in said
    assert any(f"atents of a sparse autoencoder in {LATENTS}" in text for text in record["limitations"])
    page = next((world / "reports").glob("**/report.html")).read_text()
    assert LATENTS in page


def clip_audit(layer: str, **autoencoders: Any) -> dict[str, Any]:
    """Zero-shot classification by the small CLIP itself, its classes named by prompts."""
    audit = index_world.audit(layers=[f"{layer}.sae.latents"])
    audit["subject"] |= {
        "model": {"source": "open_clip", "name": "clip", "prompts": {"melanoma": ["a melanoma", "a dark spot"]}},
        "preprocessing": {"size": 24, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    audit["measurement"] |= {"attribution": "activation_x_gradient"}
    audit["store"] = "clip.duckdb"
    audit["subject"] |= autoencoders
    return audit


@pytest.mark.parametrize("places", ["all", "class", "spatial"])
def test_zero_shot_classification_is_audited_through_latents_of_tokens(world: Path, places: str) -> None:
    # What the last block makes of the grid does not reach the output, so that there its latents have no relevance.
    layer = "visual.ln_pre" if places == "spatial" else "visual.transformer.resblocks.0"
    plan = bare(index_world.plan(world, clip_audit(layer)))
    settings = Settings(layer, latents=24, k=3, steps=40, batch=16, learning_rate=0.01, places=places)  # type: ignore[arg-type]
    found = train(Bench(plan, open_data(plan), execution=Execution(device="cpu")), settings, world / f"clip-{places}.safetensors")
    assert found.places == places
    audit = clip_audit(layer, autoencoders=[{"layer": layer, "file": f"clip-{places}.safetensors"}])
    plan = index_world.plan(world, audit)
    index.build(plan, execution=Execution(device="cpu"))
    data, subject = open_data(plan), load_subject(plan)
    name = plan.audit.layers[0]
    with Store.open(world / "clip.duckdb", read_only=True) as store:
        evidence = index.load_evidence(plan, data, store)
        assert evidence is not None
        source = evidence.layers[0]
        assert source.components == 24
        assert (~source.dead).any()
        relevant = source.relevance.copy()
    images = torch.stack([subject.transform(index_world.Image.open(data.file(sample)).convert("RGB")) for sample in data.samples])
    with capture(subject.model, [name], differentiable=True) as seen, torch.enable_grad():
        logits = subject.model(images)
    latents = seen[name]
    assert latents.shape == (22, 10, 24)  # a class token, and nine patches
    covered = {"all": slice(None), "class": slice(0, 1), "spatial": slice(1, None)}[places]
    mask = torch.zeros(10, dtype=torch.bool)
    mask[covered] = True
    assert not latents[:, ~mask].any()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), latents)
    expected = (latents * gradient).sum(dim=1).detach().numpy()
    np.testing.assert_allclose(relevant[:, list(evidence.audited).index(1)], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected).max() > 0
