"""From a plan to a record, the record on disk, and what the gallery and the limitations make of it."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from semlens_audit import checks, engine, gallery, provenance
from semlens_audit.digest import digest_bytes
from semlens_audit.errors import IntegrityError, UsageError
from semlens_audit.evidence import Evidence
from semlens_audit.limitations import limitations
from semlens_audit.measure import Measurements, measure
from semlens_audit.plan import AuditPlan
from semlens_audit.records import AuditRecord
from semlens_audit.store import Store
from tests.golden.sample_record import small
from tests.unit import index_world as world
from tests.unit import synthetic

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SHARES: dict[str | None, float] = {"border": 0.1, "ruler": 0.3, "hair": 0.0, None: 0.6}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> AuditPlan:
    return world.plan(world.write_world(tmp_path_factory.mktemp("engine")))


@pytest.fixture(scope="module")
def record(plan: AuditPlan) -> AuditRecord:
    return engine.run(plan, now=NOW, command="semlens-audit run audit.yaml")


class TestRun:
    def test_the_record_says_what_was_run_and_when(self, plan: AuditPlan, record: AuditRecord) -> None:
        assert record.created == "2026-01-02T03:04:05+00:00"
        assert record.command == "semlens-audit run audit.yaml"
        assert {finding.check for finding in record.findings} == {check.id for check in plan.spec.checks}
        assert record.stages
        assert record.data.samples == sum(record.data.per_class.values())

    def test_a_second_run_reads_the_cache_and_gives_the_same_record(
        self, plan: AuditPlan, record: AuditRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object, **__: object) -> None:
            raise AssertionError("measured again")

        monkeypatch.setattr(engine, "measure", never)
        again = engine.run(plan, now=NOW, command="semlens-audit run audit.yaml")
        assert again == record
        assert engine.record_digest(again) == engine.record_digest(record)

    def test_reference_samples_that_tie_are_a_limitation_and_found_anew_where_a_cache_lacks_them(
        self, plan: AuditPlan, record: AuditRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored: list[str] = []
        kept = Store.get_measurement

        def older(store: Store, key: str) -> str | None:
            payload = kept(store, key)
            if payload is None or stored:
                return payload
            stored.append(payload)
            return json.dumps({name: value for name, value in json.loads(payload).items() if name != "tied"})

        monkeypatch.setattr(Store, "get_measurement", older)
        monkeypatch.setattr(engine, "tied_of", lambda layers: {layer.layer: (2, layer.components) for layer in layers})
        again = engine.run(plan, now=NOW, command="semlens-audit run audit.yaml")
        assert stored
        assert json.loads(stored[0])["tied"] == {}
        (said,) = set(again.limitations) - set(record.limitations)
        assert said.startswith("The reference samples of 2 of ")
        assert again.findings == record.findings

    def test_it_names_no_folder_of_this_machine(self, plan: AuditPlan, record: AuditRecord) -> None:
        assert str(Path(plan.audit_file).parent) not in record.model_dump_json()

    def test_every_image_is_under_its_digest(self, record: AuditRecord) -> None:
        for key, text in record.images.items():
            assert digest_bytes(base64.b64decode(text)) == key


class TestRecordFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        record, path = small(), tmp_path / "deep" / "results.json"
        engine.write_record(record, path)
        assert engine.read_record(path) == record
        assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]

    def test_compact_json_is_read_as_well(self, tmp_path: Path) -> None:
        record, path = small(), tmp_path / "results.json"
        path.write_text(json.dumps(json.loads(record.model_dump_json()), separators=(",", ":")), encoding="utf-8")
        assert engine.read_record(path) == record

    @pytest.mark.parametrize("version", ["0.9", "2.0"])
    def test_another_schema_version_is_refused_even_where_it_would_fit(self, tmp_path: Path, version: str) -> None:
        path = tmp_path / "results.json"
        engine.write_record(small().model_copy(update={"schema_version": version}), path)
        with pytest.raises(UsageError, match=f"but of version {version}") as caught:
            engine.read_record(path)
        assert caught.value.slug == "record-version"

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda text: text[: len(text) // 2], "JSON"),
            (lambda text: text.replace('"schema_version"', '"version"', 1), "schema_version"),
            (lambda text: text.replace('"headline"', '"headlin"', 1), "verdict.headline"),
            (lambda text: "[]", "object"),
        ],
    )
    def test_an_invalid_record_is_refused(self, tmp_path: Path, spoil, said: str) -> None:  # type: ignore[no-untyped-def]
        path = tmp_path / "results.json"
        engine.write_record(small(), path)
        path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
        with pytest.raises(IntegrityError, match=said) as caught:
            engine.read_record(path)
        assert caught.value.slug == "invalid-record"

    def test_a_missing_record_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read"):
            engine.read_record(tmp_path / "none.json")


class TestShown:
    def test_below_the_working_directory_it_is_relative(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert provenance._shown("audits/a.yaml") == "audits/a.yaml"
        assert provenance._shown(str(tmp_path / "audits" / "a.yaml")) == "audits/a.yaml"

    def test_elsewhere_only_the_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert provenance._shown(str(tmp_path / "private" / "a.yaml")) == "a.yaml"
        assert provenance._shown("../a.yaml") == "a.yaml"

    def test_a_foundation_model_in_a_folder(self) -> None:
        assert provenance._named("/home/someone/models/clip") == "clip"
        assert provenance._named("phantom:clip") == "phantom:clip"


def _illustrated(**changes: object) -> tuple[Evidence, Measurements]:
    evidence = dataclasses.replace(
        synthetic.evidence(SHARES), thumbnails=lambda layer, k, rank: (f"crop{k}.{rank}".encode(), f"over{k}.{rank}".encode())
    )
    evidence = dataclasses.replace(evidence, **changes)  # type: ignore[arg-type]
    plan = synthetic.plan()
    return evidence, measure(plan, evidence, checks.quantities(plan))


class TestGallery:
    def test_candidates_carry_pictures_and_idle_components_none(self) -> None:
        evidence, measured = _illustrated()
        places, images = gallery.illustrate(evidence, measured.class_layers)
        shown = {item.component for item in places[0].components if item.references}
        assert shown == {0, 1, 2, 3, 4, 5, 9, 10, 11}, "the components of hair carry no relevance"
        first = next(item for item in places[0].components if item.component == 3).references[0]
        assert base64.b64decode(images[first.crop]) == b"crop3.0"
        assert base64.b64decode(images[first.overlay]) == b"over3.0"
        assert first.sample == "0000.png"

    def test_pruning_keeps_what_findings_name_and_the_unexplained(self) -> None:
        evidence, measured = _illustrated()
        places, images = gallery.illustrate(evidence, measured.class_layers)
        plan = synthetic.plan([synthetic.check("no-ruler", "concept_not_used", {"at_most": 0.2}, concepts=["ruler"])])
        named = measure(plan, evidence, checks.quantities(plan))
        found = checks.findings(plan, named.quantities, places)
        kept, used = gallery.prune(places, found, images)
        assert {item.component for item in kept[0].components if item.references} == {3, 4, 5, 9, 10, 11}
        assert set(used) < set(images)
        wanted = {key for item in kept[0].components for r in item.references for key in (r.crop, r.overlay)}
        assert set(used) == wanted

    def test_every_component_of_a_finding_has_pictures(self) -> None:
        evidence, measured = _illustrated()
        places, images = gallery.illustrate(evidence, measured.class_layers)
        found = checks.findings(synthetic.plan(), measured.quantities, places)
        kept, _ = gallery.prune(places, found, images)
        pictured = {item.component for item in kept[0].components if item.references}
        assert {number for finding in found for number in finding.components} <= pictured

    def test_without_pictures_in_the_store_there_are_none(self) -> None:
        evidence, measured = _illustrated(thumbnails=None)
        places, images = gallery.illustrate(evidence, measured.class_layers)
        assert (places, images) == (measured.class_layers, {})


class TestLimitations:
    def _text(self, plan: AuditPlan, measured: Measurements, text: bool = True) -> str:
        return "\n".join(limitations(plan, measured, text=text))

    def test_large_unexplained_relevance_is_said(self) -> None:
        _, measured = _illustrated()
        assert "hold 60" in self._text(synthetic.plan(), measured) or "match no declared concept hold" in self._text(
            synthetic.plan(), measured
        )

    def test_recognition_that_could_not_be_checked_is_said_by_title(self) -> None:
        _, measured = _illustrated()
        said = self._text(synthetic.plan(), measured)
        assert "Whether the foundation model recognises border and hair could not be checked" in said
        _, blind = _illustrated(attributes={})
        assert "no column that says" in self._text(synthetic.plan(), blind)
        assert "border, ruler and hair could not be checked" in self._text(synthetic.plan(), blind)

    def test_what_is_not_recognised_is_said_once(self) -> None:
        _, measured = _illustrated()
        poor = measured.model_copy(update={"unrecognised": {"ruler": "a reason"}, "presence_auroc": {"ruler": 0.6}})
        said = self._text(synthetic.plan(), poor)
        assert "does not recognise ruler" in said
        assert "poorly" not in said
        weak = measured.model_copy(update={"presence_auroc": {"ruler": 0.85}})
        assert "recognises ruler poorly" in self._text(synthetic.plan(), weak)

    def test_lost_relevance_and_image_only_models_are_said(self) -> None:
        evidence, _ = _illustrated()
        layer = dataclasses.replace(evidence.layers[0], conservation=np.full((200, 1), 0.5, dtype=np.float32))
        _, measured = _illustrated(layers=(layer,))
        said = self._text(synthetic.plan(), measured, text=False)
        assert "adds up to 0.50 times the output" in said
        assert "image-only" in said

    def test_the_audit_s_own_come_last(self) -> None:
        plan, (_, measured) = synthetic.plan(), _illustrated()
        own = plan.model_copy(update={"audit": plan.audit.model_copy(update={"limitations": ("Only twins.",)})})
        assert list(limitations(own, measured, text=True))[-1] == "Only twins."
