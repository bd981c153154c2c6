"""Interventions through store and engine: run once, resumed, read back without torch, concluded anew for another criterion."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semlens_audit import engine, interventions
from semlens_audit.checks import quantities
from semlens_audit.confirmation import conclude
from semlens_audit.intervention import ablate
from semlens_audit.intervention_measure import concept_contrast, measure_ablation
from semlens_audit.paths import store_path
from semlens_audit.plan import AuditPlan, Preprocessing
from semlens_audit.records import AuditRecord, InterventionRecord
from semlens_audit.store import Store
from semlens_audit.subject import LoadedSubject
from tests.unit import index_world as world
from tests.unit import synthetic
from tests.unit.test_intervention_measure import RULER, drawn

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LOOSE = {
    "minimum_samples": 4, "minimum_counterexamples": 2, "minimum_recognition": 0.5, "significance": 0.01,
    "false_discovery_rate": 0.99, "control_sets": 5, "intervention_samples": 20,
}  # fmt: skip


def plan(folder: Path, **measurement: Any) -> AuditPlan:
    values = world.audit()
    return world.plan(folder, values | {"measurement": values["measurement"] | LOOSE | measurement})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("interventions"))


@pytest.fixture(scope="module")
def record(folder: Path) -> AuditRecord:
    return engine.run(plan(folder), now=NOW, command="x")


def never(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


class TestEngine:
    def test_every_named_concept_is_there_in_every_layer(self, record: AuditRecord) -> None:
        named = {(one.class_name, one.layer, one.concept) for one in record.interventions}
        assert named == {("melanoma", layer, "ruler") for layer in world.LAYERS}
        tested = [one for one in record.interventions if one.ablations]
        assert tested
        for one in tested:
            assert [ablation.method for ablation in one.ablations] == ["mean", "resampling"]
            assert one.samples in (19, 20, 21)
            assert one.components
            assert one.source == "attributes"
            assert one.sentence
        finding = record.findings[0]
        assert finding.confirmation is not None

    def test_reading_it_back_needs_no_torch_and_gives_the_same(self, folder: Path, record: AuditRecord) -> None:
        code = (
            "import sys\n"
            "from datetime import UTC, datetime\n"
            "from pathlib import Path\n"
            "from semlens_audit import engine\n"
            "from tests.unit import test_interventions as here\n"
            "for name in [n for n in sys.modules if n.partition('.')[0] in ('torch', 'timm', 'open_clip')]:\n"
            "    del sys.modules[name]\n"
            "sys.modules['torch'] = None\n"
            f"folder = Path({str(folder)!r})\n"
            "record = engine.run(here.plan(folder, smallest_effect=5.0), now=here.NOW, command='x')\n"
            "print([one.state for one in record.interventions])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        assert "not_used" in done.stdout

    def test_a_second_run_is_the_same_record(self, folder: Path, record: AuditRecord, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(interventions, "_run", never)
        assert engine.run(plan(folder), now=NOW, command="x") == record

    def test_more_draws_measure_again_from_the_kept_outputs(self, folder: Path, record: AuditRecord) -> None:
        with Store.open(store_path(plan(folder))) as store:
            before = store.rows("SELECT key FROM stage WHERE name LIKE 'ablation:%' ORDER BY key")
            store.execute("DELETE FROM measurement")
        again = engine.run(plan(folder), now=NOW, command="x")
        with Store.open(store_path(plan(folder))) as store:
            assert store.rows("SELECT key FROM stage WHERE name LIKE 'ablation:%' ORDER BY key") == before
        assert again.interventions == record.interventions

    def test_an_interrupted_pass_goes_on_where_it_was(
        self, folder: Path, record: AuditRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from semlens_audit import ablation_pass
        from semlens_audit.intervention import Ablation

        monkeypatch.setattr(ablation_pass, "_BATCH", 6)
        with Store.open(store_path(plan(folder))) as store:
            for statement in ("measurement", "ablation"):
                store.execute(f"DELETE FROM {statement}")
            store.execute("DELETE FROM stage WHERE name LIKE 'ablation:%'")
        calls = 0
        whole = Ablation.__call__

        def breaking(self: Ablation, *arguments: Any) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return whole(self, *arguments)

        monkeypatch.setattr(Ablation, "__call__", breaking)
        with pytest.raises(KeyboardInterrupt):
            engine.run(plan(folder), now=NOW, command="x")
        with Store.open(store_path(plan(folder))) as store:
            assert store.rows("SELECT done FROM stage WHERE name LIKE 'ablation:%' ORDER BY done") == [(0,), (12,)]
        again = engine.run(plan(folder), now=NOW, command="x")
        for one, other in zip(again.interventions, record.interventions, strict=True):
            for a, b in zip(one.ablations, other.ablations, strict=True):
                assert a.margin.value == pytest.approx(b.margin.value, abs=1e-5)

    def test_none_switches_nothing_off(self, folder: Path, record: AuditRecord) -> None:
        bare = engine.run(plan(folder, intervention="none"), now=NOW, command="x")
        assert bare.interventions == ()
        assert bare.findings[0].confirmation is None
        assert [f.state for f in bare.findings] == [f.state for f in record.findings]

    def test_one_method(self, folder: Path, record: AuditRecord) -> None:
        only = engine.run(plan(folder, intervention="mean"), now=NOW, command="x")
        assert {a.method for one in only.interventions for a in one.ablations} == {"mean"}
        for one, other in zip(only.interventions, record.interventions, strict=True):
            for a, b in zip(one.ablations, other.ablations[:1], strict=True):  # the store's may come from batches of six
                assert a.margin.value == pytest.approx(b.margin.value, abs=1e-5)
                assert a.mediated.value == pytest.approx(b.mediated.value, abs=1e-5)


def test_asked_are_the_concepts_that_checks_name() -> None:
    made = synthetic.plan()
    assert interventions.asked(made, quantities(made)) == {"melanoma": ("border", "ruler", "hair")}


class Small(torch.nn.Module):
    """Two components see the ruler; only the first is used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]))
            self.body.bias.zero_()
            self.head.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [3.0, 0, 1.0, 0.5]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize(("component", "state"), [(0, "confirmed"), (1, "not_used")])
def test_an_aligned_component_counts_only_if_it_is_used(component: int, state: str) -> None:
    part = drawn(240)
    rng = np.random.default_rng(0)
    x = np.stack([part.presences[RULER].present, part.labels, rng.normal(size=240)], axis=1).astype(np.float32)
    model = Small().eval()
    subject = LoadedSubject(model, ("a", "b"), "0" * 64, 1, "made up", Preprocessing())
    values = torch.from_numpy(model.body(torch.from_numpy(x)).detach().numpy().mean(axis=0))
    outputs = ablate(subject, torch.from_numpy(x), "body", [[], [component], [2], [3]], values)
    contrast = concept_contrast(part, RULER, minimum_cell=10, minimum_samples=30)
    measured = measure_ablation(
        synthetic.plan(), part, contrast, RULER, outputs,
        method="mean", index=1, scale=1.0, names=("melanoma", "body", "ruler"),
    )  # fmt: skip
    found = InterventionRecord(
        class_name="melanoma", layer="body", concept="ruler", components=(component,), share=0.3, samples=240, holding=120,
        ablations=(measured,),
    )  # fmt: skip
    assert conclude(found, [], {"ruler": "ruler"}, 0.1).state == state
    if state == "confirmed":
        assert measured.mediated.value == pytest.approx(3.0, abs=1e-4)
