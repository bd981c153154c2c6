"""What an index holds beyond the declared settings, and that what is measured by those stays what it was."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semlens_audit import checks, headroom, index, reading
from semlens_audit.data import open_data
from semlens_audit.errors import SpecError, SubjectError
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.headroom import FirstReferences, fewer, indexed, slots
from semlens_audit.measure import measure
from semlens_audit.plan import AuditPlan, MeasurementSettings
from semlens_audit.probe_texts import ALTERNATIVE_TEMPLATES, alternatives
from semlens_audit.spec import read_plan
from semlens_audit.store import Store
from tests.unit import index_world as world
from tests.unit import synthetic

OTHER = "layer4"


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    with world.quick():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("headroom"))


def plan_of(folder: Path, store: str) -> AuditPlan:
    return world.plan(folder, world.audit(layers=["layer3"], sensitivity={"layers": [OTHER]}, store=store))


@pytest.fixture(scope="module")
def built(folder: Path) -> Iterator[tuple[AuditPlan, Evidence]]:
    plan = plan_of(folder, "with.duckdb")
    with Store.open(folder / "with.duckdb") as store:
        data = open_data(plan, store.file_digest)
        index.build(plan, data, store)
        evidence = index.load_evidence(plan, data, store)
        assert evidence is not None
        yield plan, evidence


class TestNumbers:
    @given(st.integers(2, 1000))
    def test_two_thirds_and_four_thirds(self, m: int) -> None:
        settings = MeasurementSettings(reference_samples=m)
        assert slots(settings) == math.ceil(4 * m / 3) > m
        assert fewer(settings) == max(2, math.floor(2 * m / 3 + 0.5)) <= m

    def test_thirty_become_twenty_and_forty(self) -> None:
        assert (fewer(MeasurementSettings()), slots(MeasurementSettings())) == (20, 40)

    def test_an_index_is_built_for_more_than_is_declared(self) -> None:
        plan = synthetic.plan()
        audit = plan.audit.model_copy(update={"sensitivity": plan.audit.sensitivity.model_copy(update={"layers": ("layer9",)})})
        made = indexed(plan.model_copy(update={"audit": audit})).audit
        assert made.measurement.reference_samples == 16
        assert made.layers == ("layer1", "layer9")
        assert made.data == plan.audit.data

    def test_other_templates_are_never_the_declared_ones(self) -> None:
        assert alternatives(["{}"]) == list(ALTERNATIVE_TEMPLATES)
        assert alternatives(ALTERNATIVE_TEMPLATES) == []
        assert all(template.count("{}") == 1 for template in ALTERNATIVE_TEMPLATES)


class TestFirstReferences:
    def test_everything_but_the_references_is_the_source(self) -> None:
        source = synthetic.evidence({"ruler": 0.5, None: 0.5}).layers[0]
        cut = FirstReferences(source, 7)
        for field in fields(LayerEvidence):
            whole, part = getattr(source, field.name), getattr(cut, field.name)
            if field.name in ("reference_ids", "activations", "boxes", "embeddings"):
                np.testing.assert_array_equal(part, whole[:, :7])
                assert part.flags.c_contiguous or field.name == "embeddings"
            else:
                assert part is whole

    @pytest.mark.parametrize("m", [0, 13])
    def test_what_is_not_there_cannot_be_kept(self, m: int) -> None:
        with pytest.raises(ValueError, match="of 12 reference samples"):
            FirstReferences(synthetic.evidence({"ruler": 1.0}).layers[0], m)


class TestIndex:
    def test_holds_four_thirds_of_the_reference_samples(self, built: tuple[AuditPlan, Evidence]) -> None:
        _, evidence = built
        (declared,), (stored,), (other,) = evidence.layers, evidence.headroom, evidence.other_layers
        assert declared.reference_ids.shape[1] == other.reference_ids.shape[1] == 5
        assert stored.reference_ids.shape[1] == 7
        np.testing.assert_array_equal(stored.reference_ids[:, :5], declared.reference_ids)
        np.testing.assert_array_equal(stored.embeddings[:, :5], declared.embeddings)
        live = ~stored.dead & (stored.reference_ids >= 0).all(axis=1)
        assert live.any()
        np.testing.assert_allclose(np.linalg.norm(stored.embeddings[live], axis=-1), 1.0, atol=1e-5)
        assert (declared.layer, other.layer) == ("layer3", OTHER)

    def test_holds_other_phrasings_of_every_description(self, built: tuple[AuditPlan, Evidence]) -> None:
        _, evidence = built
        count = len(ALTERNATIVE_TEMPLATES)
        assert evidence.other_probes["ruler"].text.shape[:2] == (3, count)
        assert evidence.other_prompts.shape[0] == count
        assert np.abs(evidence.other_probes["ruler"].text[:, :2] - evidence.probes["ruler"].text).max() > 1e-3
        np.testing.assert_array_equal(evidence.other_probes["border"].examples, evidence.probes["border"].examples)

    def test_what_is_measured_is_what_an_index_without_headroom_gives(
        self, folder: Path, built: tuple[AuditPlan, Evidence], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan, evidence = built
        quantities = checks.quantities(plan)
        whole = measure(plan, evidence, quantities)

        def declared(settings: MeasurementSettings) -> int:
            return settings.reference_samples

        monkeypatch.setattr(headroom, "slots", declared)
        monkeypatch.setattr(reading, "slots", declared)
        bare = plan_of(folder, "without.duckdb")
        with Store.open(folder / "without.duckdb") as store:
            data = open_data(bare, store.file_digest)
            index.build(bare, data, store)
            found = index.load_evidence(bare, data, store)
            assert found is not None
            assert store.rows("SELECT max(rank) FROM reference")[0][0] == 4
            for ours, theirs in zip(evidence.layers, found.layers, strict=True):
                np.testing.assert_array_equal(ours.null_embeddings, theirs.null_embeddings)
                np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            assert measure(bare, found, quantities) == whole
            assert found.thumbnails is not None
            assert evidence.thumbnails is not None
            for rank in range(5):
                assert found.thumbnails("layer3", 0, rank) == evidence.thumbnails("layer3", 0, rank)

    def test_an_unknown_layer_is_placed_where_it_is_named(self, folder: Path) -> None:
        file = folder / "unknown.yaml"
        values = world.audit(layers=["layer3"], sensitivity={"layers": ["layer9"]}, store="unknown.duckdb")
        file.write_text(json.dumps(values, indent=1))
        line = next(i for i, text in enumerate(file.read_text().splitlines(), start=1) if "layer9" in text)
        with pytest.raises(SubjectError, match="layer9") as caught:
            index.build(read_plan(file))
        problem = caught.value.problems[0]
        assert (problem.slug, problem.file, problem.line) == ("unknown-layer", str(file), line)

    @pytest.mark.parametrize("layers", [["layer3"], ["layer4", "layer4"]])
    def test_a_layer_is_not_compared_with_itself(self, folder: Path, layers: list[str]) -> None:
        file = folder / "twice.yaml"
        file.write_text(json.dumps(world.audit(layers=["layer3"], sensitivity={"layers": layers}), indent=1))
        with pytest.raises(SpecError, match="named already") as caught:
            read_plan(file)
        problem = caught.value.problems[0]
        last = max(i for i, text in enumerate(file.read_text().splitlines(), start=1) if layers[-1] in text)
        assert (problem.slug, problem.line) == ("duplicate-layer", last)
