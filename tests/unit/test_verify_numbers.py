"""Records that follow from numbers which no run could have written, and files that are not those which were attested."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from semlens_audit import checks, gate, verdict
from semlens_audit.attest import ENVELOPE, statement_bytes
from semlens_audit.digest import digest_bytes
from semlens_audit.envelope import seal
from semlens_audit.errors import ExitCode
from semlens_audit.measured import Measurement
from semlens_audit.record_file import RESULTS, record_bytes
from semlens_audit.records import AuditRecord
from semlens_audit.release_policy import Policy
from semlens_audit.report import render_html
from semlens_audit.verification import Verification
from semlens_audit.verify import Request, verify_bytes
from semlens_audit.verify_record import plan_of
from tests.golden.consistent_record import consistent
from tests.unit import signing_world as world


def look(data: bytes, name: str, beside: dict[str, bytes], today: date | None = None) -> Verification:
    request = Request(trust=world.trust(), now=world.NOW, today=today)
    return verify_bytes(name, {**beside, name: data}, request)


def refusals(found: Verification) -> list[str]:
    return [line.id for line in found.lines if line.state == "refused"]


def _decided(record: AuditRecord, first: Measurement, beside: Measurement | None, **changes: Any) -> AuditRecord:
    """The record with another first measurement and another number beside it, everything that follows decided again."""
    plan = plan_of(record)
    place = record.class_layers[0]
    name = record.findings[0].concepts[0]
    concepts = {key: value for key, value in place.concepts.items() if key != name} | ({name: beside} if beside else {})
    record = record.model_copy(update={"class_layers": (place.model_copy(update={"concepts": concepts}),), **changes})
    measured = dict(zip([q.key for q in checks.quantities(plan)], [first, *(f.measurement for f in record.findings[1:])], strict=True))
    findings = tuple(checks.findings(plan, measured, record.class_layers))
    decided = verdict.decide(findings, record.concepts, record.class_layers, record.subject.name)
    record = record.model_copy(update={"findings": findings, "verdict": decided})
    return gate.apply(record, (), Policy(), date(2025, 11, 20))


def _measured(record: AuditRecord, **changes: Any) -> Measurement:
    """The first measurement, far below its criterion."""
    own = record.findings[0].measurement
    assert own.interval is not None
    interval = own.interval.model_copy(update={"low": 0.01, "high": 0.1, **changes.pop("interval", {})})
    return own.model_copy(update={"value": 0.05, "interval": interval, **changes})


class TestWhatAMeasurementHasToBe:
    """Records whose findings follow from numbers that no run could have written; each would let a release pass."""

    def refused(self, record: AuditRecord) -> str:
        assert record.exit_code == ExitCode.SATISFIED, "the edit has to make a difference"
        found = look(record_bytes(record), RESULTS, {ENVELOPE: world.envelope(record)})
        assert found.exit_code == ExitCode.INTEGRITY
        return refusals(found)[0]

    def test_it_may_as_well_be_true(self) -> None:
        low = _measured(consistent())
        record = _decided(consistent(), low, low)
        assert look(record_bytes(record), RESULTS, {ENVELOPE: world.envelope(record)}).exit_code == ExitCode.SATISFIED

    @pytest.mark.parametrize("beside", ["another", "not measured", "gone"])
    def test_the_number_beside_it(self, beside: str) -> None:
        record = consistent()
        own = record.findings[0].measurement
        other = {
            "another": own,
            "not measured": Measurement(quantity=own.quantity, unit=own.unit, n=0, not_measured="no sample"),
            "gone": None,
        }[beside]
        assert self.refused(_decided(record, _measured(record), other)) == "record-measurements"

    @pytest.mark.parametrize(
        "changes",
        [
            {"interval": {"level": 0.001}},
            {"n": 0},
            {"unit": "logits", "quantity": "behavioural effect"},
            {"value": -8.5, "interval": {"low": -9.0, "high": -8.0}},
        ],
        ids=["level", "no sample", "another quantity", "out of range"],
    )
    def test_its_form(self, changes: dict[str, Any]) -> None:
        low = _measured(consistent(), **changes)
        assert self.refused(_decided(consistent(), low, low)) == "record-findings"

    def test_a_concept_that_is_not_recognised(self) -> None:
        record, low = consistent(), _measured(consistent())
        concepts = tuple(one.model_copy(update={"probe_auroc": 0.3, "presence_auroc": 0.3}) for one in record.concepts)
        assert self.refused(_decided(record, low, low, concepts=concepts)) == "record-findings"


def test_a_waiver_that_only_holds_in_the_future() -> None:
    record = consistent(waived=True)
    assert record.gate is not None
    late = gate.again(record.model_copy(update={"gate": record.gate.model_copy(update={"today": "2026-02-20"})}))
    assert late.exit_code == ExitCode.SATISFIED
    found = look(record_bytes(late), RESULTS, {ENVELOPE: world.envelope(late)}, today=date(2025, 11, 25))
    assert refusals(found) == ["waivers"]
    assert found.exit_code == ExitCode.WAIVER


def test_a_record_that_is_not_the_attested_one_beside_a_report_that_is() -> None:
    record = consistent()
    html = render_html(record).encode("utf-8")
    subjects = {RESULTS: digest_bytes(record_bytes(record)), "report.html": digest_bytes(html)}
    files = {RESULTS: record_bytes(record), ENVELOPE: seal(statement_bytes(record, subjects), world.attesting())}
    assert look(html, "report.html", files).exit_code == ExitCode.SATISFIED
    other = record.model_copy(update={"limitations": ("None whatsoever.",)})
    found = look(html, "report.html", {**files, RESULTS: record_bytes(other)})
    assert "statement" in refusals(found)
    assert found.exit_code == ExitCode.INTEGRITY
