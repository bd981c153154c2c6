"""Exports: valid by the official schemas, equal to the gate's decision, the same bytes for the same record, inert."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree
from typer.testing import CliRunner

from semlens_audit import engine, exports, gate
from semlens_audit.cli import app
from semlens_audit.errors import ExitCode, UsageError
from semlens_audit.exports import markdown, plain
from semlens_audit.measured import State
from semlens_audit.plan import Severity
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_records import BaselineRecord, ChangeEntry, ChangeRecord, GateRecord, WaiverRecord
from semlens_audit.waivers import Scope, Waiver
from tests.golden.sample_record import measured, sample, small

SCHEMAS = Path(__file__).resolve().parents[3] / "shared" / "schemas"
KINDS = ("shortcut", "clean", "not_measured")
NASTY = (
    "</testcase><script>alert(1)</script> ]]> \x00\x08\x1b[31m \u202egnp.exe\u2066 ${{ secrets.TOKEN }} $(id) `id`\n"
    "::error file=x::oops\n##[error]x\n| cell | <img src=x onerror=alert(1)> [click](javascript:alert(1))\n"
    "![x](http://evil.example/x)\n# heading\n- item\n1. one\n> quote\nhttps://evil.example www.evil.example a@evil.example\n"
    ":tada: $x$ \ufffe \\| *b* _i_ ~~s~~ &amp; &lt;"
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
        record_sha256="1" * 64,
        created="2025-10-01T00:00:00Z",
        subject="s",
        version=None,
        weights_sha256="2" * 64,
        data_sha256="3" * 64,
        tool="semlens-audit 0.1.0",
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
    text = NASTY

    def hostile(finding: Finding) -> Finding:
        measurement = finding.measurement.model_copy(update={"quantity": text})
        return finding.model_copy(
            update={
                **dict.fromkeys(("check", "statement", "rationale", "explanation", "class_name", "layer"), text),
                "supports": (text, "1 a", "  "),
                "measurement": measurement,
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


# what they say


def test_junit_fails_exactly_where_the_gate_stops() -> None:
    root = suites(waived())
    cases = {case.get("name"): case for case in root.iter("testcase")}
    first, second = waived().findings
    assert [child.tag for child in cases[first.id]] == ["skipped", "system-out"]
    assert "QA-1: The ruler is cropped away" in cases[first.id].find("skipped").get("message")
    assert [child.tag for child in cases[second.id]] == ["system-out"]
    assert "Tolerated: it does not stop the release by policy" in cases[second.id].findtext("system-out")
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "0", "0")
    assert {p.get("value") for p in root.iter("property") if p.get("name") == "semlens_audit.exit_code"} == {"0"}


def test_junit_tells_failures_errors_and_refused_waivers_apart() -> None:
    record = sample("not_measured")
    root = suites(record)
    assert root.get("failures") == "0"
    assert int(root.get("errors")) == record.verdict.not_measured > 0
    refused = suites(RECORDS["refused"]())
    gate = next(suite for suite in refused if suite.get("name") == "release gate")
    assert gate.find("testcase/error").get("type") == "waiver expired"
    assert next(iter(suites(RECORDS["empty"]()).iter("error"))).get("message") == "No check was evaluated."


def test_a_gate_that_stops_for_another_reason_stops_junit_too() -> None:
    record = gated(sample("clean"), stopped_by=(), sentence="The lock is broken.")
    assert [error.get("message") for error in suites(record).iter("error")] == ["The lock is broken."]


STATES: tuple[State, ...] = ("satisfied", "not_satisfied", "inconclusive", "not_measured")


@st.composite
def decided(draw: st.DrawFn) -> AuditRecord:
    """Made-up findings and waivers, decided by the gate itself."""
    base = small()
    kinds = {
        "satisfied": measured("reliance", "share", 0.1, 0.02),
        "not_satisfied": measured("reliance", "share", 0.6, 0.02),
        "inconclusive": measured("reliance", "share", 0.15, 0.02),
        "not_measured": base.findings[1].measurement,
    }
    severities: tuple[Severity, ...] = ("minor", "major", "critical")
    findings, waivers = [], []
    for number, state in enumerate(draw(st.lists(st.sampled_from(STATES), max_size=6))):
        more = {"check": f"c{number}", "state": state, "severity": draw(st.sampled_from(severities)), "measurement": kinds[state]}
        findings.append(base.findings[0].model_copy(update=more))
    day = date(2025, 11, 1)
    sound = draw(st.booleans())  # else waivers may match nothing, be doubled, expired, exceeded or approved by their owner
    open_ones = [number for number, one in enumerate(findings) if one.state != "satisfied"]
    numbers = st.sampled_from([open_ones, open_ones, []]) if sound else st.lists(st.integers(0, 6), max_size=4)
    for number in draw(numbers):
        waivers.append(
            Waiver(
                check=f"c{number}",
                scope=Scope(model_sha256=base.subject.weights_sha256),
                justification="The ruler is cropped away before the model sees the picture.",
                owner="Ada",
                approver="Max" if sound else draw(st.sampled_from(["Max", "Max", "Max", "Ada"])),
                created=day,
                expires=day + timedelta(days=100 if sound else draw(st.sampled_from([10, 100]))),
                ticket="QA-1",
                revalidate_on="new weights",
                ceiling=0.7 if sound else draw(st.sampled_from([0.5, 0.7])),
            )
        )
    policy = gate.Policy(draw(st.sampled_from(severities)), draw(st.sampled_from(["inconclusive", "fail", "pass"])))
    made = base.model_copy(update={"findings": tuple(findings), "images": {}, "class_layers": ()})
    return gate.apply(made, waivers, policy, day + timedelta(days=draw(st.sampled_from([0, 20]))))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(decided())
def test_counts_and_exit_code_agree_in_every_format(record: AuditRecord) -> None:
    code = int(record.exit_code)
    decision = record.gate
    assert decision is not None
    root = suites(record)
    by_name = {case.get("name"): case for case in root.iter("testcase")}
    for finding in record.findings:
        tags = {child.tag for child in by_name[finding.id]} - {"system-out"}
        expected = (
            set()
            if finding.state == "satisfied" or finding.id in decision.tolerated
            else {"skipped"}
            if finding.id in decision.waived
            else {"error"}
            if finding.state == "not_measured"
            else {"failure"}
        )
        assert tags == expected
    stops = int(root.get("failures")) + int(root.get("errors"))
    assert (stops > 0) == (code != 0)
    waivers = sum(one.state in gate.BAD for one in record.waivers)
    assert stops == len(decision.stopped_by) + waivers + (not record.findings)
    assert int(root.get("tests")) == len(record.findings) + len(record.waivers) + (not record.findings)
    run = json.loads(exports.render(record, "sarif"))["runs"][0]
    assert run["invocations"][0]["exitCode"] == code
    suppressed = [result["ruleId"] for result in run["results"] if result["suppressions"]]
    assert suppressed == [finding.check for finding in record.findings if finding.id in decision.waived]
    alerts = json.loads(exports.render(record, "code-scanning"))["runs"][0]["results"]
    assert {alert["properties"]["finding"] for alert in alerts} == {f.id for f in record.findings if f.state != "satisfied"}
    stopping = ("failed", "inconclusive", "not_measured")
    graver = {alert["properties"]["finding"] for alert in alerts if alert["properties"]["disposition"] in stopping}
    assert graver == set(decision.stopped_by)
    results = json.loads(exports.render(record, "oscal"))["assessment-results"]["results"][0]
    assert {p["value"] for p in results["props"] if p["name"] == "exit-code"} == {str(code)}
    assert sum(r["status"] == "deviation-approved" for r in results.get("risks", ())) == len(decision.waived)
    bom = json.loads(exports.render(record, "cyclonedx"))
    assert {"name": "semlens-audit:exit_code", "value": str(code)} in bom["properties"]
    summary = exports.render(record, "summary")
    assert f"exit code {code}." in summary
    assert summary.count("| stops the release |") == len(decision.stopped_by)


def test_sarif_says_states_in_its_own_terms() -> None:
    record = sample("shortcut")
    run = json.loads(exports.render(record, "sarif"))["runs"][0]
    kinds = {"satisfied": "pass", "not_satisfied": "fail", "inconclusive": "open", "not_measured": "review"}
    assert [result["kind"] for result in run["results"]] == [kinds[finding.state] for finding in record.findings]
    assert {result["level"] for result in run["results"] if result["kind"] != "fail"} == {"none"}
    levels = {result["properties"]["severity"]: result["level"] for result in run["results"] if result["kind"] == "fail"}
    assert levels == {"critical": "error", "major": "warning"}
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert sorted(rules) == sorted({finding.check for finding in record.findings})
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "specs/melanoma-abcde.yaml"
        assert place["region"] == {"startLine": 100}
    assert all(rule["help"]["text"] and rule["shortDescription"]["text"] for rule in run["tool"]["driver"]["rules"])
    assert "security-severity" not in json.dumps(run)


def test_code_scanning_gets_problems_only_and_all_rules() -> None:
    whole, alerts = (json.loads(exports.render(sample("shortcut"), form))["runs"][0] for form in ("sarif", "code-scanning"))
    assert alerts["tool"] == whole["tool"]
    assert {result["properties"]["state"] for result in alerts["results"]} == {"not_satisfied", "inconclusive", "not_measured"}
    assert {result["level"] for result in alerts["results"]} <= {"error", "warning", "note"}
    assert not any("kind" in result or "suppressions" in result for result in alerts["results"])
    assert json.loads(exports.render(sample("clean"), "code-scanning"))["runs"][0]["results"] == []
    notes = json.loads(exports.render(waived(), "code-scanning"))["runs"][0]["results"]
    assert [result["level"] for result in notes] == ["note", "note"]


def test_fingerprints_hang_on_check_and_subject_only() -> None:
    def prints(record: AuditRecord) -> list[str]:
        run = json.loads(exports.render(record, "sarif"))["runs"][0]
        return [json.dumps(result["partialFingerprints"]) for result in run["results"]]

    record = sample("shortcut")
    found = prints(record)
    assert len(set(found)) == len(found)
    moved = tuple(
        finding.model_copy(update={"spec_line": 7, "measurement": measured("reliance", "share", 0.5, 0.1), "statement": "Other."})
        for finding in record.findings
    )
    weights = record.subject.model_copy(update={"weights_sha256": "0" * 64, "version": "9"})
    assert prints(record.model_copy(update={"findings": moved, "subject": weights})) == found
    other = record.subject.model_copy(update={"name": "another"})
    assert not set(prints(record.model_copy(update={"subject": other}))) & set(found)


def test_sarif_states_of_the_baseline() -> None:
    run = json.loads(exports.render(changed(), "sarif"))["runs"][0]
    assert [result["baselineState"] for result in run["results"]] == ["new", "unchanged", "absent"]
    assert run["results"][2]["kind"] == "notApplicable"
    assert run["baselineGuid"] == plain.identifier("1" * 64, "sarif")
    assert "baselineState" not in exports.render(small(), "sarif")
    refused = changed()
    assert refused.change is not None
    refused = refused.model_copy(update={"change": refused.change.model_copy(update={"refused": "Another spec."})})
    assert "baselineState" not in exports.render(refused, "sarif")


def test_oscal_refers_only_to_what_it_defines() -> None:
    twice = small()
    twice = twice.model_copy(update={"findings": twice.findings * 2})
    for made in [twice, *(make() for make in RECORDS.values())]:
        document = json.loads(exports.render(made, "oscal"))["assessment-results"]
        defined, used = set(), set()

        def walk(value: Any, key: str = "", defined: set[str] = defined, used: set[str] = used) -> None:
            if isinstance(value, dict):
                for name, part in value.items():
                    walk(part, name)
            elif isinstance(value, list):
                for part in value:
                    walk(part, key)
            elif key == "uuid":
                assert value not in defined
                defined.add(value)
            elif key.endswith(("-uuid", "-uuids")) or key == "member-of-organizations":
                used.add(value)
            elif key == "href" and value.startswith("#"):
                used.add(value[1:])

        walk(document)
        assert used <= defined


def test_oscal_waiver_is_an_approved_deviation_with_its_end() -> None:
    result = json.loads(exports.render(waived(), "oscal"))["assessment-results"]["results"][0]
    approved, tolerated = result["risks"]
    assert (approved["status"], approved["deadline"]) == ("deviation-approved", "2026-02-01T23:59:59Z")
    assert tolerated["status"] == "open"
    assert [finding["target"]["status"]["state"] for finding in result["findings"]] == ["not-satisfied"] * 2
    assert {observation["methods"][0] for observation in result["observations"]} == {"TEST"}
    selections = result["reviewed-controls"]["control-selections"]
    named = {one["control-id"] for selection in selections for one in selection["include-controls"]}
    supports = {support for finding in waived().findings for support in finding.supports}
    assert named == {plain.token(support) for support in supports}
    assert plain.token("eu-ai-act:art-10-2-f") == "eu-ai-act-art-10-2-f"


def test_the_bom_names_model_data_and_foundation_model_by_digest() -> None:
    record = sample("shortcut")
    bom = json.loads(exports.render(record, "cyclonedx"))
    model = bom["metadata"]["component"]
    digests = {one["bom-ref"]: one["hashes"][0]["content"] for one in [model, *bom["components"]]}
    assert digests == {
        "audited-model": record.subject.weights_sha256,
        "foundation-model": record.foundation_model.sha256,
        "test-data": record.data.sha256,
    }
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert len(metrics) == 1 + sum(finding.measurement.value is not None for finding in record.findings)
    assert float(metrics[1]["confidenceInterval"]["lowerBound"]) <= float(metrics[1]["value"])
    assert model["modelCard"]["considerations"]["technicalLimitations"] == list(record.limitations)


# the same bytes, whatever the place


def test_the_same_record_gives_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    program = (
        "import json, sys; from semlens_audit import exports; from tests.unit.test_exports import waived;"
        "sys.stdout.write(json.dumps({form: exports.render(waived(), form) for form in exports.FORMATS}))"
    )
    root = str(Path(__file__).resolve().parents[2])
    here = {form: exports.render(waived(), form) for form in exports.FORMATS}
    for number, zone in enumerate(("UTC", "Pacific/Chatham")):
        more = {"PYTHONHASHSEED": str(number), "TZ": zone, "LC_ALL": ["C", "C.UTF-8"][number], "PYTHONPATH": root}
        folder = tmp_path / str(number)
        folder.mkdir()
        done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=os.environ | more, capture_output=True, check=True)
        assert json.loads(done.stdout) == here


def test_all_are_written_with_the_names_that_others_rely_on(tmp_path: Path) -> None:
    paths = exports.write_all(small(), tmp_path / "new")
    assert [path.name for path in paths] == ["junit.xml", "results.sarif", "oscal.json", "bom.cdx.json", "summary.md"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    assert paths[1].read_text(encoding="utf-8") == exports.render(small(), "sarif")


@pytest.mark.parametrize("created", ["yesterday", "2025-11-20T23:14:05", "9999-12-31T23:59:59-14:00", ""])
def test_a_time_that_is_none_is_refused(created: str) -> None:
    record = small().model_copy(update={"created": created})
    for form in ("junit", "sarif", "oscal", "cyclonedx"):
        with pytest.raises(UsageError, match="offset from UTC"):
            exports.render(record, form)


# what a stranger's text can do: nothing


def test_hostile_text_stays_text_in_the_summary() -> None:
    summary = exports.render(nasty(), "summary")
    allowed = re.sub(r"</?(details|summary)>", "", summary)
    assert "<" not in allowed
    assert "::" not in summary
    assert "##[" not in summary
    assert "://" not in summary
    assert "@" not in summary
    assert "www." not in summary
    assert "$" not in summary
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", summary)
    assert links == ["report.html", "results.json"]
    assert "\u202e" not in summary
    rows = [row for row in summary.splitlines() if row.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
    for start in ("- ", "# heading", "1. ", "> "):
        assert not any(row.startswith(start) for row in summary.splitlines())


def test_a_renderer_of_markdown_makes_no_more_of_it_than_tables() -> None:
    renderer = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed").MarkdownIt("commonmark", {"html": True})
    page = etree.HTML(renderer.enable(["table", "strikethrough"]).render(exports.render(nasty(), "summary")))
    tags = {element.tag for element in page.iter()}
    blocks = {"html", "body", "h2", "h3", "p", "strong", "code", "a", "table", "thead", "tbody", "tr", "th", "td"}
    assert tags <= blocks | {"details", "summary"}
    assert [link.get("href") for link in page.iter("a")] == ["report.html", "results.json"]
    assert plain.line(NASTY) in " ".join("".join(page.itertext()).split())


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_escaped_text_shows_as_typed(text: str) -> None:
    """Undoing references and backslashes gives the text back, and nothing active is left."""
    shown = markdown.escape(text, None)
    assert html.unescape(re.sub(r"\\([\\*_\[\]#~!])", r"\1", shown)) == plain.line(text)
    bare = re.sub(r"&#?\w+;", "", re.sub(r"\\.", "", shown))
    assert not set(bare) & set("<>|`@$*_[]~!\\")
    assert "\n" not in shown
    assert "::" not in shown


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.integers(4, 60))
def test_a_line_is_one_line_that_xml_can_hold(text: str, most: int) -> None:
    said = plain.line(text, most)
    assert len(said) <= most
    assert len(said.splitlines()) <= 1
    etree.fromstring(f"<a>{html.escape(said)}</a>")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_tokens_and_paths_fit_their_grammar(text: str) -> None:
    assert regex.fullmatch(r"(\p{L}|_)(\p{L}|\p{N}|[.\-_])*", plain.token(text))
    reference = plain.uri(text)
    assert re.fullmatch(r"[A-Za-z0-9._~%/-]*", reference)
    assert not reference.startswith("/")
    assert ".." not in reference.split("/")


def test_a_summary_never_outgrows_a_step() -> None:
    record = small()
    text = "<|@" * 400
    many = tuple(
        record.findings[0].model_copy(update={"check": f"c{number}", "class_name": text, "layer": f"{text}{number}"})
        for number in range(1500)
    )
    summary = exports.render(record.model_copy(update={"findings": many, "images": {}}), "summary")
    assert len(summary.encode()) <= markdown.LARGEST
    assert "more did not fit here; the report has all of them." in summary


# the verb


def test_export_writes_prints_and_refuses(tmp_path: Path) -> None:
    engine.write_record(small(), tmp_path / "results.json")
    run = CliRunner().invoke
    done = run(app, ["export", str(tmp_path / "results.json"), "--format", "junit", "--out", "-"])
    assert done.exit_code == 0
    assert done.output == exports.render(small(), "junit")
    done = run(app, ["export", str(tmp_path / "results.json"), "--out", str(tmp_path / "there")])
    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(name for name, _ in exports.FORMATS.values())
    assert run(app, ["export", str(tmp_path / "results.json"), "--out", "-"]).exit_code == 2
    (tmp_path / "results.json").write_text('{"schema_version": "1.1"}')
    assert run(app, ["export", str(tmp_path / "results.json")]).exit_code == 6
