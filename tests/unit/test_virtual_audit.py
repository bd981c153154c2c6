from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from semlens_audit import index, spec
from semlens_audit.atlas.opening import Atlas
from semlens_audit.cli import app
from semlens_audit.data import open_data
from semlens_audit.errors import SpecError, SubjectError, UsageError
from semlens_audit.execution import Execution
from semlens_audit.plan import AuditPlan
from semlens_audit.polysemanticity import polysemanticity
from semlens_audit.progress import SilentProgress
from semlens_audit.splitting.fit import Fit, Settings, bare, fit, write_fit
from semlens_audit.stages import stage_inputs, stage_keys
from semlens_audit.store import Store
from semlens_audit.subject import load_subject, subject_digest
from semlens_audit.virtual.splice import load_splitting
from semlens_audit.work import Bench, LocalEngine
from tests.unit import index_world

UNITS = "second.virtual.units"
CPU = Execution(device="cpu")
COLOURS = {"red": (200, 35, 35), "green": (35, 200, 35), "blue": (35, 35, 200)}
EACH = 12

NETWORK = '''
import torch


class Network(torch.nn.Module):
    """Colours in `first`; in `second` three units for one colour each, and two that stand for two colours."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 3, 1)
        self.second = torch.nn.Conv2d(3, 5, 3, padding=1)
        self.head = torch.nn.Linear(5, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -0.6, -0.6], [-0.6, 1.0, -0.6], [-0.6, -0.6, 1.0]])[..., None, None])
            self.first.bias.zero_()
            mixed = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]])
            self.second.weight.copy_(mixed[..., None, None] / 9 + 0.001 * torch.arange(135.0).reshape(5, 3, 3, 3) / 135)
            self.second.bias.zero_()
            self.head.weight.copy_(torch.tensor([[1.0, -1, 0, 0.5, 0], [-1, 1, 0.5, 0, 1]]))
            self.head.bias.zero_()

    def forward(self, images):
        value = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(value.mean(dim=(2, 3)))


def network():
    return Network()
'''


pytestmark = pytest.mark.usefixtures("one_thread")


def values(layers: tuple[str, ...] = ("second",), *, virtual: bool = False, **changes: Any) -> dict[str, Any]:
    audit = index_world.audit(layers=list(layers), data={"source": "folder", "path": "images"})
    audit["subject"] |= {"model": {"source": "code", "name": "network.py:network"}}
    if virtual:
        audit["subject"]["virtual_neurons"] = [{"layer": "second", "file": "second.safetensors"}]
    audit["measurement"] |= {"attribution": "auto", "selection": "activation", "reference_samples": 9, "intervention_samples": 20}
    return audit | changes


def colour(path: str) -> str:
    return Path(path).stem.split("-")[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each, and a network that has units for one colour and for two."""
    folder = index_world.write_world(tmp_path_factory.mktemp("world"))
    shutil.rmtree(folder / "images")
    rng = np.random.default_rng(1)
    for name, shade in COLOURS.items():
        for i in range(EACH):
            pixels = np.clip(np.array(shade) + rng.normal(0, 12, (40, 40, 3)) + rng.normal(0, 8, 3), 0, 255).astype(np.uint8)
            path = folder / "images" / ("nevus", "melanoma")[i % 2] / f"{name}-{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (folder / "network.py").write_text(NETWORK)
    (folder / "audit.yaml").write_text(json.dumps(values()))
    index.build(index_world.plan(folder, values()), allow_code=True, execution=CPU)
    return folder


def threshold(plan: AuditPlan) -> float:
    """Between the polysemanticity of units for one colour and of those for two, as the small random CLIP sees them."""
    with Atlas(bare(plan, "second")) as atlas:
        source = atlas.layers["second"]
        found = polysemanticity(source.embeddings, source.reference_ids >= 0)
    assert max(found[:3]) < min(found[3:])
    return float((max(found[:3]) + min(found[3:])) / 2)


def fitted(plan: AuditPlan, settings: Settings, out: Path | None = None) -> Fit:
    with Atlas(bare(plan, "second")) as atlas:
        engine = LocalEngine(Bench(atlas.plan, atlas.data, allow_code=True, execution=CPU))
        found = fit(atlas, engine, settings, SilentProgress())
        if out is not None:
            write_fit(atlas, engine, found, out)
    return found


@pytest.fixture(scope="module")
def split(world: Path) -> Fit:
    """The file of virtual neurons, and what came of each component."""
    plan = index_world.plan(world, values())
    settings = Settings("second", polysemanticity=threshold(plan), references=2 * EACH, smallest=4)
    return fitted(plan, settings, world / "second.safetensors")


@pytest.fixture(scope="module")
def audited(world: Path, split: Fit) -> AuditPlan:
    plan = index_world.plan(world, values(("second", UNITS), virtual=True))
    index.build(plan, allow_code=True, execution=CPU)
    (world / "virtual.yaml").write_text(json.dumps(values(("second", UNITS), virtual=True)))
    return plan


def test_units_for_two_colours_are_split_and_others_left_whole(split: Fit) -> None:
    assert [one.component for one in split.kept] == [3, 4]
    assert split.over == 2
    assert split.components == 5
    for one in split.kept:
        assert one.comparison is not None
        assert one.sizes == (EACH, EACH)
        assert one.comparison.after > one.comparison.before
        assert one.adjusted <= 0.05
        assert (one.dip, one.p_dip) == (pytest.approx(0.25, abs=0.05), 1 / 10_000), "as far apart as groups can be"


def test_with_every_component_looked_at_significance_leaves_single_ones_whole(world: Path) -> None:
    found = fitted(index_world.plan(world, values()), Settings("second", polysemanticity=0.0, references=EACH, smallest=3))
    assert len(found.looked) == 5
    whole = {one.component: one for one in found.looked if not one.kept}
    assert set(whole) == {0, 1, 2}
    assert all(one.reason for one in whole.values())
    few = fitted(index_world.plan(world, values()), Settings("second", polysemanticity=0.0, references=EACH, smallest=3, at_most=1))
    assert (few.over, len(few.looked)) == (5, 1)
    assert few.looked[0].polysemanticity == max(one.polysemanticity for one in found.looked)


def test_the_same_fit_writes_the_same_bytes(world: Path, split: Fit, tmp_path: Path) -> None:
    fitted(index_world.plan(world, values()), split.settings, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (world / "second.safetensors").read_bytes()
    components, centroids, said = load_splitting(world / "second.safetensors")
    assert components.tolist() == [3, 4]
    assert said.inputs == centroids.shape[2] == 3
    # A unit for two colours is driven by the two channels that see them, one at a time.
    assert {int(row.argmax()) for row in centroids[0]} == {0, 2}
    assert {int(row.argmax()) for row in centroids[1]} == {1, 2}


def test_samples_beyond_the_index_are_found_by_a_pass(world: Path, split: Fit) -> None:
    plan = index_world.plan(world, values())
    from_store = fitted(plan, Settings("second", split.settings.polysemanticity, references=12, smallest=2))
    by_pass = fitted(plan, Settings("second", split.settings.polysemanticity, references=13, smallest=2))
    assert [sum(one.sizes) for one in from_store.looked] == [12, 12]
    assert [sum(one.sizes) for one in by_pass.looked] == [13, 13]


def test_virtual_neurons_are_indexed_as_any_component(audited: AuditPlan, world: Path) -> None:
    data = open_data(audited)
    with Store.open(world / "store.duckdb", read_only=True) as store:
        evidence = index.load_evidence(audited, data, store)
        assert evidence is not None
        plain, units = (next(one for one in evidence.layers if one.layer == name) for name in ("second", UNITS))
        assert units.components == 9
        assert list(np.flatnonzero(units.dead)) == [3, 4]
        ids = [row[row >= 0] for row in units.reference_ids]
        shades = {component: {colour(evidence.paths[sample]) for sample in row} for component, row in enumerate(ids)}
        assert all(len(shades[component]) == 1 for component in (0, 1, 2, 5, 6, 7, 8))
        assert shades[5] | shades[6] == {"red", "blue"}
        assert shades[7] | shades[8] == {"green", "blue"}
        assert {colour(evidence.paths[sample]) for sample in plain.reference_ids[3]} == {"red", "blue"}
        # The layer itself is attributed by relevance propagation, which comes to the same here but for the biases.
        shares = units.relevance
        np.testing.assert_allclose(shares[..., 5:].reshape(*shares.shape[:2], 2, 2).sum(axis=3), plain.relevance[..., 3:], rtol=1e-3)
        np.testing.assert_allclose(shares[..., :3], plain.relevance[..., :3], rtol=1e-3)
        assert not shares[..., 3:5].any()
        assert (shares[..., 5:].reshape(*shares.shape[:2], 2, 2) == 0).any(axis=3).all()
        assert units.chosen is not None
        assert units.chosen[0] == "activation_x_gradient"
        assert "no rule of relevance propagation" in units.chosen[1]


def test_keys_of_audits_without_virtual_neurons_and_of_other_layers_are_what_they_were(audited: AuditPlan, world: Path) -> None:
    plain = index_world.plan(world, values())
    data = open_data(plain)
    before, after = stage_keys(plain, data), stage_keys(audited, data)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {
        f"{kind}:{UNITS}" for kind in ("references", "relevance", "crops", "attribution", "embeddings", "null")
    }
    assert "virtual" not in json.dumps(stage_inputs(plain, data))
    assert subject_digest(audited) != subject_digest(plain)


def test_another_file_has_other_keys(audited: AuditPlan, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "other", ignore=shutil.ignore_patterns("store*", "reports"))
    other = index_world.plan(tmp_path / "other", values(("second", UNITS), virtual=True))
    data = open_data(audited)
    assert stage_keys(other, data) == stage_keys(audited, data)
    path = tmp_path / "other" / "second.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    one, two = stage_keys(audited, data), stage_keys(other, data)
    assert {name for name in one if one[name] != two[name]} == {name for name in one if name.endswith(UNITS)}
    path.unlink()
    with pytest.raises(SubjectError, match="does not exist"):
        stage_keys(other, data)


def test_a_file_for_something_else_is_refused(audited: AuditPlan, world: Path, tmp_path: Path) -> None:
    def refused(changes: dict[str, Any], folder: Path = world) -> SubjectError:
        with pytest.raises(SubjectError) as caught:
            load_subject(index_world.plan(folder, values(virtual=True) | changes), allow_code=True)
        return caught.value

    own = values(virtual=True)["subject"]
    assert refused({"subject": own | {"virtual_neurons": [{"layer": "first", "file": "second.safetensors"}]}}).slug == "other-layer"
    error = refused({"subject": own | {"preprocessing": own["preprocessing"] | {"mean": [0.1, 0.1, 0.1]}}})
    assert error.slug == "other-preprocessing"
    assert "mean (0.5, 0.5, 0.5) instead of (0.1, 0.1, 0.1)" in error.problems[0].message
    shutil.copytree(world, tmp_path / "other", ignore=shutil.ignore_patterns("store*", "reports"))
    (tmp_path / "other" / "network.py").write_text(NETWORK.replace("0.001 *", "0.002 *"))
    assert refused({}, tmp_path / "other").slug == "other-subject"
    lrp = values((UNITS,), virtual=True)
    lrp["measurement"] |= {"attribution": "lrp"}
    assert refused(lrp).slug == "lrp-not-applicable"
    path = world / "lrp.yaml"
    path.write_text(json.dumps(lrp))
    with pytest.raises(SpecError) as caught:
        spec.read_plan(path)
    path.unlink()
    assert [problem.slug for problem in caught.value.problems] == ["lrp-not-applicable"]
    for layer in (UNITS, "third"):
        with pytest.raises(UsageError):
            bare(audited, layer)


def test_the_command_line_splits_says_why_and_writes(world: Path, split: Fit, tmp_path: Path) -> None:
    run, out = CliRunner().invoke, tmp_path / "by-hand.safetensors"
    arguments = ["split", str(world / "audit.yaml"), "--layer", "second", "--references", "24", "--smallest", "4", "--allow-code", "-q",
                 "--device", "cpu"]  # fmt: skip
    over = ["--polysemanticity", repr(split.settings.polysemanticity)]
    shown = run(app, [*arguments, *over, "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "virtual_neurons:" in shown.output
    assert "12 + 12" in shown.output
    assert out.read_bytes() == (world / "second.safetensors").read_bytes()
    again = run(app, [*arguments, *over, "--out", str(out)])
    assert again.exit_code == 2
    assert "is there already" in again.output
    told = json.loads(run(app, [*arguments, *over, "--json"]).stdout)
    assert told["split"] == [3, 4]
    assert told["file"] is None
    assert [row["split"] for row in told["looked"]] == [True, True]
    assert {row["component"]: row["units"] for row in told["looked"]} == {3: [5, 6], 4: [7, 8]}
    assert "split: 7 + 8" in shown.output
    none = run(app, [*arguments, "--polysemanticity", "1", "--out", str(tmp_path / "none.safetensors")])
    assert none.exit_code == 0
    assert "No component is split" in none.output
    assert not (tmp_path / "none.safetensors").exists()
    for changed, message in ((["--smallest", "20"], "two groups"), (["--out", "x.pt"], ".safetensors"), (["--layer", "third"], "third")):
        failed = run(app, [*arguments, *changed])
        assert failed.exit_code != 0
        assert message in failed.output


def test_every_part_of_a_run_takes_virtual_neurons(audited: AuditPlan, world: Path) -> None:
    ran = CliRunner().invoke(app, ["run", str(world / "virtual.yaml"), "--quiet", "--device", "cpu", "--allow-code"])
    assert ran.exit_code in (0, 1, 3, 4), ran.output
    record = json.loads(sorted((world / "reports").glob("**/results.json"))[-1].read_text())
    assert {one["layer"] for one in record["layers"]} == {"second", UNITS}
    assert {one["layer"] for one in record["class_layers"]} == {"second", UNITS}
    assert any(one["layer"] == UNITS for one in record["interventions"])
    assert any("2\u00a0components of second as two virtual neurons" in text for text in record["limitations"])
    assert any("5 and 6 are component 3; 7 and 8 are component 4." in text for text in record["limitations"])
    listed = json.loads(CliRunner().invoke(app, ["layers", str(world / "virtual.yaml"), "--json", "--allow-code"]).stdout)
    assert next(row for row in listed["layers"] if row["name"] == UNITS)["components"] == 9
