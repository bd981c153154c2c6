"""Exports: valid by the official schemas, equal to the gate's decision, the same bytes for the same record, inert."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from semlens_audit import exports
from semlens_audit.compose import record_digest
from semlens_audit.errors import ExitCode, UsageError
from semlens_audit.exports import markdown, oscal, plain, sarif
from semlens_audit.measured import State
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_records import BaselineRecord, ChangeEntry, ChangeRecord, GateRecord, WaiverRecord
from tests.golden.sample_record import measured, sample, small

SCHEMAS = Path(__file__).resolve().parents[3] / "shared" / "schemas"
KINDS = ("shortcut", "clean", "not_measured")
NASTY = (
    "</testcase><script>alert(1)</script> ]]> \x00\x08\x1b[31m \u202egnp.exe\u2066 ${{ secrets.TOKEN }} $(id) `id`\n"
    "::error file=x::oops\n##[error]x\n| cell | <img src=x onerror=alert(1)> [click](javascript:alert(1)) ![x](http://evil.example/x)\n"
    "# heading\n- item\n1. one\n> quote\nhttps://evil.example www.evil.example a@evil.example :tada: $x$ \ud800 \ufffe \\| *b* _i_ ~~s~~ &amp; &lt;"
)


def schema(name: str) -> Path:
    path = SCHEMAS / name
    if not path.is_file():
        pytest.skip(f"the official schema {name} is not beside the checkout (../shared/schemas)")
    return path


@functools.cache
def sarif_validator() -> Any:
    from jsonschema import Draft7Validator, FormatChecker

    return Draft7Validator(json.loads(schema("sarif-schema-2.1.0.json").read_text()), format_checker=FormatChecker())


@functools.cache
def oscal_validator() -> Any:
    from jsonschema import Draft7Validator, FormatChecker, ValidationError, validators

    def pattern(_: Any, wanted: str, text: Any, __: Any) -> Any:
        # the schema's patterns use Unicode properties (ECMA 262), which `re` does not know
        if isinstance(text, str) and not regex.search(wanted, text):
            yield ValidationError(f"{text!r} does not match {wanted!r}")

    extended = validators.extend(Draft7Validator, {"pattern": pattern})
    return extended(json.loads(schema("oscal_assessment-results_schema.json").read_text()), format_checker=FormatChecker())


def complaints(validator: Any, text: str) -> list[str]:
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in validator.iter_errors(json.loads(text))]


def suites(record: AuditRecord) -> Any:
    return etree.fromstring(exports.render(record, "junit").encode())


def gated(record: AuditRecord, **more: Any) -> AuditRecord:
    """`record` with a gate decision made by hand."""
    fields: dict[str, Any] = {
        "fail_on": "minor",
        "on_inconclusive": "inconclusive",
        "today": "2025-11-21",
        "outcome": "failed",
        "exit_code": ExitCode.NOT_SATISFIED,
        "sentence": "Decided for this test.",
        "stopped_by": tuple(f.id for f in record.findings if f.state != "satisfied"),
    }
    return record.model_copy(update={"gate": GateRecord(**(fields | more))})


def waiver(**more: Any) -> WaiverRecord:
    fields: dict[str, Any] = {
        "check": "no-ruler",
        "where": None,
        "scope": "weights 0123",
        "justification": "The ruler is cropped away before use.",
        "owner": "Ada",
        "approver": "Max",
        "created": "2025-11-01",
        "expires": "2026-02-01",
        "ticket": "QA-1",
        "revalidate_on": "new weights",
        "ceiling": 0.7,
        "state": "applied",
        "sentence": "It holds.",
        "line": 3,
    }
    return WaiverRecord(**(fields | more))


def waived() -> AuditRecord:
    """One waived, one tolerated, the rest satisfied."""
    record = small()
    first = record.findings[0]
    tolerated = first.model_copy(update={"check": "tolerated-one", "state": "inconclusive", "severity": "minor"})
    record = record.model_copy(update={"findings": (first, tolerated), "waivers": (waiver(findings=(first.id,)),)})
    return gated(
        record,
        outcome="conditional",
        exit_code=ExitCode.SATISFIED,
        fail_on="major",
        stopped_by=(),
        waived=(first.id,),
        tolerated=(tolerated.id,),
    )


def changed() -> AuditRecord:
    record = small()
    first, second = record.findings
    baseline = BaselineRecord(
        record_sha256="1" * 64, created="2025-10-01T00:00:00Z", subject="s", version=None, weights_sha256="2" * 64,
        data_sha256="3" * 64, tool="semlens-audit 0.1.0",
    )
    entries = (
        ChangeEntry(finding=first.id, label="new", sentence="It was satisfied."),
        ChangeEntry(finding=second.id, label="within_noise", sentence="Nothing to see."),
        ChangeEntry(finding="old-check/layer3", label="removed", sentence="Not asked any more."),
    )
    return record.model_copy(update={"change": ChangeRecord(baseline=baseline, entries=entries, sentence="One is new.")})


def nasty() -> AuditRecord:
    """Every free text of the record is hostile."""
    record = waived()
    text = NASTY.replace("\ud800", "")  # a record read from UTF-8 holds no lone surrogate

    def hostile(finding: Finding) -> Finding:
        measurement = finding.measurement.model_copy(update={"quantity": text})
        return finding.model_copy(
            update={
                "statement": text, "rationale": text, "explanation": text, "class_name": text, "supports": (text, "1 a", "  "),
                "layer": text, "measurement": measurement,
            }
        )

    findings = tuple(map(hostile, record.findings))
    ids = tuple(one.id for one in findings)
    assert record.gate is not None
    return record.model_copy(
        update={
            "title": text,
            "purpose": text,
            "findings": findings,
            "verdict": record.verdict.model_copy(update={"headline": text}),
            "gate": record.gate.model_copy(update={"sentence": text, "waived": ids[:1], "tolerated": ids[1:]}),
            "waivers": (waiver(justification=text, owner=text, ticket=text, sentence=text, scope=text, findings=ids[:1]),),
            "responsible": tuple(p.model_copy(update={"name": text, "role": text, "organisation": text}) for p in record.responsible),
            "subject": record.subject.model_copy(update={"name": text, "intended_purpose": text, "version": text, "source": text}),
            "data": record.data.model_copy(update={"source": text, "description": text, "per_class": {text: 3}}),
            "limitations": (text,),
            "audit": record.audit.model_copy(update={"name": text, "detail": {"file": f"../../{text}"}}),
            "spec": record.spec.model_copy(update={"name": text, "detail": {"file": f"/etc/{text}", "version": text}}),
            "concepts": tuple(c.model_copy(update={"label": text, "hazard": text}) for c in record.concepts),
            "foundation_model": record.foundation_model.model_copy(update={"name": text, "statement": text}),
            "command": text,
        }
    )


RECORDS = {
    **{kind: functools.partial(sample, kind) for kind in KINDS},
    "waived": waived,
    "changed": changed,
    "nasty": nasty,
    "empty": lambda: small().model_copy(update={"findings": (), "responsible": ()}),
    "refused": lambda: gated(
        small().model_copy(update={"waivers": (waiver(state="expired", sentence="It expired."),)}),
        outcome="invalid_waiver",
        exit_code=ExitCode.WAIVER,
    ),
}


@pytest.fixture(params=RECORDS)
def record(request: pytest.FixtureRequest) -> AuditRecord:
    made: AuditRecord = RECORDS[request.param]()
    return made


def test_junit_is_valid_by_its_schema(record: AuditRecord) -> None:
    xsd = etree.XMLSchema(etree.parse(str(schema("junit-10.xsd"))))
    xsd.assertValid(suites(record))


def test_sarif_is_valid_by_its_schema(record: AuditRecord) -> None:
    for form in ("sarif", "code-scanning"):
        assert complaints(sarif_validator(), exports.render(record, form)) == []


def test_oscal_is_valid_by_its_schema(record: AuditRecord) -> None:
    assert complaints(oscal_validator(), exports.render(record, "oscal")) == []


def test_cyclonedx_is_valid_by_its_strict_schema(record: AuditRecord) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(exports.render(record, "cyclonedx")) is None
