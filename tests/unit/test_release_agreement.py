"""Every output of one record names the same decision and the exit code that the process ends with, for every outcome there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from semlens_audit import cli, record_file, waivers
from semlens_audit.measured import Measurement
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import GateOutcome
from semlens_audit.report import render_html
from semlens_audit.verdict import decide
from semlens_audit.waiver_file import add
from semlens_audit.waiver_pages import waivers as waiver_section
from semlens_audit.waivers import Scope, Waiver
from tests.golden.sample_record import small

runner = CliRunner()
EXITS: dict[GateOutcome, int] = {
    "passed": 0, "conditional": 0, "failed": 1, "inconclusive": 3, "incomplete": 4, "invalid_waiver": 5
}  # fmt: skip


def of(state: str, **more: Any) -> AuditRecord:
    """A record with one finding of that state, and the verdict that belongs to it."""
    record = small()
    first = record.findings[0]
    measurement = first.measurement
    assert measurement.interval is not None
    bound = first.criterion.threshold
    ends = {"satisfied": (0.0, bound), "inconclusive": (bound - 0.1, bound + 0.1)}.get(state)
    if ends is not None:
        interval = measurement.interval.model_copy(update={"low": ends[0], "high": ends[1]})
        measurement = measurement.model_copy(update={"value": sum(ends) / 2, "interval": interval})
    if state == "not_measured":
        measurement = Measurement(quantity="reliance", unit="share", n=3, not_measured="3 samples; at least 30 are needed")
    findings = () if state == "none" else (first.model_copy(update={"state": state, "measurement": measurement, **more}),)
    record = record.model_copy(update={"findings": findings})
    return record.model_copy(update={"verdict": decide(findings, record.concepts, record.class_layers, record.subject.name)})


def waiver_file(folder: Path, expires: str = "2026-02-01") -> Path:
    one = Waiver.model_validate(
        {
            "check": "no-ruler",
            "scope": Scope(model_sha256=small().subject.weights_sha256),
            "justification": "The archive shows rulers beside suspicious lesions.",
            "owner": "Max",
            "approver": "Ada",
            "created": "2025-11-01",
            "expires": expires,
            "ticket": "QA-1",
            "revalidate_on": "new weights",
            "ceiling": 0.7,
        }
    )
    add(folder / "a.yaml", one)
    return waivers.beside(folder / "a.yaml")


CASES: list[tuple[GateOutcome, str, tuple[str, ...], str | None]] = [
    ("passed", "satisfied", (), None),
    ("passed", "inconclusive", ("--on-inconclusive", "pass"), None),
    ("passed", "satisfied", (), "2026-02-01"),
    ("conditional", "not_satisfied", (), "2026-02-01"),
    ("conditional", "inconclusive", (), "2026-02-01"),
    ("failed", "not_satisfied", (), None),
    ("failed", "inconclusive", ("--on-inconclusive", "fail"), None),
    ("inconclusive", "inconclusive", (), None),
    ("incomplete", "not_measured", (), None),
    ("incomplete", "not_measured", ("--fail-on", "critical"), "2026-02-01"),
    ("incomplete", "none", (), None),
    ("invalid_waiver", "satisfied", (), "2025-11-30"),
    ("invalid_waiver", "not_satisfied", (), "2025-11-30"),
    ("invalid_waiver", "not_measured", (), "2025-11-30"),
]


def test_every_outcome_is_looked_at() -> None:
    assert {outcome for outcome, *_ in CASES} == set(get_args(GateOutcome))


@pytest.mark.parametrize(("outcome", "state", "options", "expires"), CASES)
def test_all_outputs_agree_with_the_process(
    outcome: GateOutcome, state: str, options: tuple[str, ...], expires: str | None, tmp_path: Path
) -> None:
    code = EXITS[outcome]
    given = tmp_path / "given.json"
    record_file.write_record(of(state), given)
    arguments = ["gate", str(given), "--today", "2025-12-01", "--out", str(tmp_path / "out"), *options]
    if expires is not None:
        arguments += ["--waivers", str(waiver_file(tmp_path, expires))]

    shown = runner.invoke(cli.app, arguments, env={"COLUMNS": "400"})
    assert shown.exit_code == code, shown.output
    told = runner.invoke(cli.app, [*arguments, "--json"])
    assert told.exit_code == code

    record = record_file.read_record(tmp_path / "out" / "results.json")
    assert record.gate is not None
    assert (record.exit_code, record.gate.outcome) == (code, outcome)
    sentence = record.gate.sentence
    assert set(re.findall(r"exit code (\d)", shown.stdout)) == {str(code)}
    assert sentence in " ".join(shown.stdout.split("\n"))
    value = json.loads(told.stdout)
    assert (value["exit_code"], value["gate"]["exit_code"], value["gate"]["outcome"]) == (code, code, outcome)

    html = (tmp_path / "out" / "report.html").read_text()
    assert set(re.findall(r"Exit code (\d) \(", html)) == {str(code)}
    assert f'class="gate {outcome}"' in html

    suites = ElementTree.fromstring((tmp_path / "out" / "junit.xml").read_text())
    stopped = int(suites.get("failures", "")) + int(suites.get("errors", ""))
    assert (stopped > 0) == (code != 0)
    codes = {one.get("value") for one in suites.iter("property") if one.get("name") == "semlens_audit.exit_code"}
    assert codes == {str(code)}

    (run,) = json.loads((tmp_path / "out" / "results.sarif").read_text())["runs"]
    assert [one["exitCode"] for one in run["invocations"]] == [code]
    assert run["properties"]["exit_code"] == code

    oscal = json.loads((tmp_path / "out" / "oscal.json").read_text())["assessment-results"]
    assert {one["name"]: one["value"] for one in oscal["metadata"]["props"]}["exit-code"] == str(code)

    bom = json.loads((tmp_path / "out" / "bom.cdx.json").read_text())
    assert {one["name"]: one["value"] for one in bom["properties"]}["semlens-audit:exit_code"] == str(code)

    summary = (tmp_path / "out" / "summary.md").read_text()
    assert set(re.findall(r"exit code (\d)", summary)) == {str(code)}

    again = runner.invoke(cli.app, ["gate", str(tmp_path / "out" / "results.json"), "--today", "2025-12-01", *options])
    assert again.exit_code == code, "the record carries its own waivers"


def test_the_findings_verdict_is_never_the_gates() -> None:
    record = of("not_satisfied")
    assert int(record.verdict.exit_code) == 1
    assert record.exit_code == record.verdict.exit_code


# -- the section of the report ------------------------------------------------------------------------------------------------


def test_the_report_shows_every_waiver_and_what_became_of_it(tmp_path: Path) -> None:
    record_file.write_record(of("not_satisfied"), tmp_path / "r.json")
    file = waiver_file(tmp_path)
    text = file.read_text()
    entry = text.split("waivers:\n")[1]
    file.write_text(text + entry.replace("no-ruler", "no-such-check") + entry.replace("no-ruler", "no-ruler\n    where: layer3"))
    done = runner.invoke(
        cli.app, ["gate", str(tmp_path / "r.json"), "--waivers", str(file), "--today", "2025-12-01", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 5
    record = record_file.read_record(tmp_path / "out" / "results.json")
    page = waiver_section(record)
    assert page is not None
    assert [row.badge.word for row in page.rows] == ["Unmatched", "Applied", "Applied"], "those that do not hold first"
    assert [row.where for row in page.rows] == ["every result", "every result", "layer3"]
    assert page.rows[0].anchor == ""
    assert page.rows[1].anchor == "check-1"
    assert "stops the release by itself" in page.summary
    html = (tmp_path / "out" / "report.html").read_text()
    section = html.split('<section id="waivers"')[1].split("</section>")[0]
    for words in ("no-such-check", "Unmatched", "Applied", "Max", "Ada", "QA-1", "1 November 2025", "new weights", "at most 70", "64"):
        assert words in section.replace("\u00a0", " "), words
    assert render_html(record) == html


def test_no_waiver_is_said_to_be_none() -> None:
    assert waiver_section(of("satisfied")) is None
    assert "No waiver was declared" in render_html(of("satisfied"))


def test_free_text_of_a_waiver_stays_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> {{ 7 * 7 }} [bold]x[/] and some more words"
    record_file.write_record(of("not_satisfied"), tmp_path / "r.json")
    file = waiver_file(tmp_path)
    entry = file.read_text().replace('"Max"', json.dumps(hostile)).replace('"QA-1"', json.dumps(hostile))
    file.write_text(entry)
    done = runner.invoke(
        cli.app, ["gate", str(tmp_path / "r.json"), "--waivers", str(file), "--today", "2025-12-01", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in html
    assert "{{ 7 * 7 }}" in html
    asked = ["waiver", "list", str(tmp_path / "out" / "results.json"), "--today", "2025-12-01"]
    listed = runner.invoke(cli.app, asked, env={"COLUMNS": "400"})
    assert hostile in listed.output
