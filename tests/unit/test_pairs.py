"""Counterfactual pairs through store and engine, and both twins of the phantom on pairs and subgroups."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from semlens_audit import checks, engine, index, proportions
from semlens_audit.behaviour import class_margin
from semlens_audit.data import DataSet, open_data, read_image
from semlens_audit.data_gallery import picture
from semlens_audit.data_measure import measure_data
from semlens_audit.errors import DataError, ExecutionError
from semlens_audit.evidence import PairEvidence
from semlens_audit.pairs import pair_pass
from semlens_audit.phantom import world as phantom
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import SilentProgress
from semlens_audit.records import AuditRecord
from semlens_audit.spec import read_plan
from semlens_audit.stages import stage_inputs
from semlens_audit.store import Store
from tests.unit import index_world as world
from tests.unit import synthetic

if TYPE_CHECKING:
    import torch

    from semlens_audit.work import LocalEngine

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[2]
PAIRS = 9


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    with world.quick():
        yield


def write_pairs(folder: Path, concept: str = "ruler") -> None:
    """The last image of each pair serves the first as well: seven independent units of nine pairs."""
    rng = np.random.default_rng(4)
    from PIL import Image

    (folder / "images" / "twins").mkdir(exist_ok=True)
    for number in range(2 * PAIRS):
        pixels = rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "twins" / f"{number}.png")
    with (folder / "pairs.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["without", "with", "concept"])
        for number in range(PAIRS):
            first = 0 if number < 3 else number
            rows.writerow([f"twins/{first}.png", f"twins/{PAIRS + number}.png", concept])


def plan_of(folder: Path) -> AuditPlan:
    spec, audit = world.spec(), world.audit()
    spec["checks"].append(spec["checks"][0] | {"id": "ruler-pairs", "kind": "pair_effect", "criterion": {"at_most": 1.0}})
    spec["checks"].append(
        spec["checks"][0] | {"id": "ruler-presence", "kind": "concept_presence", "criterion": {"at_most": 0.5}}
    )
    (folder / "labels.csv").write_text(
        "path,label\n" + "".join(f"{'nevus' if i % 2 == 0 else 'melanoma'}/{i:03d}.png,{'nevus' if i % 2 == 0 else 'melanoma'}\n"
                                 for i in range(world.SAMPLES))
    )  # fmt: skip
    audit["data"] = {
        "source": "csv",
        "path": "images",
        "labels": "labels.csv",
        "attributes": "images/attributes.csv",
        "pairs": "pairs.csv",
    }
    audit["layers"] = ["layer1"]
    audit["measurement"] |= {"minimum_samples": 5, "minimum_counterexamples": 2}
    return world.plan(folder, audit, spec)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> AuditPlan:
    folder = world.write_world(tmp_path_factory.mktemp("pairs"))
    write_pairs(folder)
    return plan_of(folder)


@pytest.fixture(scope="module")
def record(plan: AuditPlan) -> AuditRecord:
    return engine.run(plan, now=NOW, command="semlens-audit run audit.yaml")


def outputs(plan: AuditPlan, paths: list[Path]) -> np.ndarray:
    """Outputs of the audited model."""
    import torch

    from semlens_audit.subject import load_subject

    subject = load_subject(plan)
    with torch.inference_mode():
        rows = torch.stack([subject.transform(read_image(path)) for path in paths])
        return np.concatenate([subject.model(part).numpy() for part in rows.split(32)])


def engine_of(plan: AuditPlan, data: DataSet, model: torch.nn.Module) -> LocalEngine:
    """An engine whose subject is `model`."""
    from semlens_audit.subject import load_subject
    from semlens_audit.work import Bench, LocalEngine

    bench = Bench(plan, data)
    bench.subject = dataclasses.replace(load_subject(plan), model=model)
    return LocalEngine(bench)


class TestEngine:
    def test_the_effect_is_that_of_the_model_on_each_pair(self, plan: AuditPlan, record: AuditRecord) -> None:
        pairs = open_data(plan).pairs
        assert pairs is not None
        without = class_margin(outputs(plan, [pairs.root / pair.without for pair in pairs.pairs]), 1)
        present = class_margin(outputs(plan, [pairs.root / pair.present for pair in pairs.pairs]), 1)
        change = present - without
        units = np.array([change[:3].mean(), *change[3:]])
        entry = next(one for one in record.pair_effects if one.class_name == "melanoma")
        assert (entry.pairs, entry.effect.n) == (PAIRS, 7)
        assert entry.effect.value == pytest.approx(units.mean(), abs=1e-4)
        assert entry.effect.interval is not None
        expected = proportions.mean(units, 0.95)
        assert (entry.effect.interval.low, entry.effect.interval.high) == pytest.approx(expected, abs=1e-3)
        finding = next(one for one in record.findings if one.check == "ruler-pairs")
        assert finding.measurement.value == pytest.approx(abs(units.mean()), abs=1e-4)
        assert (record.data.pairs, record.data.pairs_sha256) == (PAIRS, pairs.sha256)

    def test_the_record_holds_what_the_data_show(self, record: AuditRecord) -> None:
        (ruler,) = record.presence_in_data
        assert ruler.concept == "ruler"
        # Every third sample has a ruler; labels alternate.
        held = {name: (part.hits, part.n) for name, part in ruler.by_class.items()}
        assert held == {"nevus": (4, 11), "melanoma": (4, 11)}
        assert len(ruler.pictures) == 8
        assert all(shown.image in record.images for shown in ruler.pictures)

    def test_a_second_run_needs_neither_model_nor_measurement(
        self, plan: AuditPlan, record: AuditRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object, **__: object) -> None:
            raise AssertionError("computed again")

        monkeypatch.setattr(index, "build", never)
        monkeypatch.setattr(engine, "measure", never)
        monkeypatch.setattr(engine, "picture", never)
        assert engine.run(plan, now=NOW, command="semlens-audit run audit.yaml") == record

    def test_another_meaning_of_the_pairs_is_measured_without_the_model(
        self, plan: AuditPlan, record: AuditRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = Path(plan.audit_file).parent
        kept = (folder / "pairs.csv").read_text()
        (folder / "pairs.csv").write_text(kept.replace(",ruler", ",border"))
        with Store.open(folder / "store.duckdb") as store:
            changed = open_data(plan, store.file_digest)
            evidence = index.load_evidence(plan, changed, store)
            assert evidence is not None
            assert evidence.pairs is not None
            assert set(evidence.pairs.concepts) == {"border"}
        (folder / "pairs.csv").write_text(kept)

    def test_an_interrupted_pass_goes_on_where_it_was(self, plan: AuditPlan, record: AuditRecord, tmp_path: Path) -> None:
        import torch

        from semlens_audit.subject import load_subject

        data, subject = open_data(plan), load_subject(plan)
        assert data.pairs is not None
        inputs = stage_inputs(plan, data)
        seen: list[int] = []

        class Stopping(torch.nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                seen.append(len(images))
                if len(seen) == 2:
                    raise KeyboardInterrupt
                return subject.model(images)

        with Store.open(tmp_path / "store.duckdb") as store:
            with pytest.raises(KeyboardInterrupt):
                pair_pass(plan, data.pairs, store, engine_of(plan, data, Stopping()), inputs, SilentProgress())
            pair_pass(plan, data.pairs, store, engine_of(plan, data, Stopping()), inputs, SilentProgress())
            rows = store.arrays("SELECT sample, logits FROM output ORDER BY sample")
        assert seen == [8, 8, 8]
        assert rows["sample"].tolist() == list(range(len(data.pairs.images)))
        straight = outputs(plan, [data.pairs.root / path for _, path in data.pairs.images])
        assert rows["logits"] == pytest.approx(straight, abs=1e-5)

    def test_outputs_that_are_not_finite_name_the_image(self, plan: AuditPlan, tmp_path: Path) -> None:
        import torch

        class Broken(torch.nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return torch.full((len(images), 2), float("nan"))

        data = open_data(plan)
        assert data.pairs is not None
        with Store.open(tmp_path / "store.duckdb") as store, pytest.raises(ExecutionError, match="twins/") as caught:
            pair_pass(plan, data.pairs, store, engine_of(plan, data, Broken()), stage_inputs(plan, data), SilentProgress())
        assert caught.value.slug == "not-finite"

    def test_an_image_that_went_away_is_named(self, plan: AuditPlan, record: AuditRecord) -> None:
        data = open_data(plan)
        shown = record.presence_in_data[0]
        lost = data.root / shown.pictures[0].sample
        kept = lost.read_bytes()
        lost.unlink()
        try:
            with pytest.raises(DataError, match=r"does not exist"):
                picture(plan, data, [shown])
        finally:
            lost.write_bytes(kept)


LESIONS = 40
SAMPLES = 160


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both twins find the same images."""
    return tmp_path_factory.mktemp("phantom")


@pytest.mark.parametrize(("twin", "relies"), [("shortcut", True), ("clean", False)])
def test_twins_on_pairs_and_subgroups(twin: str, relies: bool, rendered: Path) -> None:
    plan = read_plan(ROOT / "audits" / f"phantom-{twin}.yaml")
    asked = [
        synthetic.check("pairs", "pair_effect", {"at_most": 1.0}, concepts=["ruler"]),
        synthetic.check("gap", "subgroup_gap", {"at_most": 0.3}, concepts=["ruler"]),
        synthetic.check("presence", "concept_presence", {"at_most": 0.3}, concepts=["ruler"]),
    ]
    made_up = synthetic.plan(asked)
    data = plan.audit.data.model_copy(update={"samples": SAMPLES, "rendered_pairs": LESIONS})
    audit = plan.audit.model_copy(update={"data": data, "store": str(rendered / "store.duckdb")})
    plan = plan.model_copy(update={"audit": audit, "spec": plan.spec.model_copy(update={"checks": made_up.spec.checks})})
    opened = open_data(plan)
    assert opened.pairs is not None
    images = [opened.file(sample) for sample in opened.samples] + [opened.pairs.root / path for _, path in opened.pairs.images]
    logits = outputs(plan, images)
    samples, paired = logits[:SAMPLES], logits[SAMPLES:]
    places = opened.pairs.places
    evidence = dataclasses.replace(
        synthetic.evidence({None: 1.0}, samples=SAMPLES),
        labels=opened.labels,
        logits=samples,
        attributes={"ruler": (opened.attributes or {})["ruler"]},
        pairs=PairEvidence(("ruler",) * LESIONS, paired[places[:, 0]], paired[places[:, 1]], opened.pairs.units),
    )
    found = measure_data(made_up, evidence, checks.quantities(made_up), {})
    states = {one.check: one.state for one in checks.findings(made_up, found.values, ())}
    assert states["presence"] == "satisfied"
    assert (states["pairs"], states["gap"]) == (("not_satisfied",) * 2 if relies else ("satisfied",) * 2)

    # The same lesions, toggled in memory: pairs on disk are the truth, rounded by nothing.
    import torch

    from semlens_audit.subject import load_subject

    subject = load_subject(plan)

    def run(batch: np.ndarray) -> np.ndarray:
        from PIL import Image

        with torch.inference_mode():
            return subject.model(torch.stack([subject.transform(Image.fromarray(one)) for one in batch])).numpy()

    truth = phantom.true_effects(run, phantom.Population(), LESIONS, data.seed, ["ruler"])["ruler"]
    assert found.pairs[0].effect.value == pytest.approx(truth.mean, abs=1e-3)
