"""The report of a release: order of sections, what is absent said, one decision everywhere, script and policy, page one."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from typing import get_args

import pytest

from semlens_audit import report, wording
from semlens_audit.check_pages import Checks, clearance
from semlens_audit.compose import make_page
from semlens_audit.errors import ExitCode
from semlens_audit.figures import PAPER, SCREEN
from semlens_audit.filter_pages import filters
from semlens_audit.pages import Page
from semlens_audit.records import AuditRecord, Finding, Interval
from semlens_audit.release_records import GateOutcome
from tests.golden.released_record import released
from tests.golden.sample_record import sample

ORDER = (
    "limitations", "system", "identity", "results", "attention", "lines", "intervention", "sensitivity", "waivers", "change",
    "coverage", "method", "qualification", "passed", "data", "presence", "crosswalk", "reproduction", "glossary", "attachments",
)  # fmt: skip


def anchors(page: Page) -> list[str]:
    return [section.anchor for section in page.sections]


@pytest.mark.parametrize("kind", ["shortcut", "clean", "not_measured"])
@pytest.mark.parametrize("palette", [SCREEN, PAPER], ids=["screen", "paper"])
def test_sections_stand_in_order_whatever_was_found(kind: str, palette: type[object]) -> None:
    for record in (sample(kind), released(sample(kind))):
        page = make_page(record, palette)  # type: ignore[arg-type]
        found = anchors(page)
        assert found == [name for name in ORDER if name in found]
        assert {"results", "attention", "waivers", "change", "passed", "attachments"} <= set(found)
        assert [section.number for section in page.sections] == list(range(1, len(found) + 1))


def test_screen_and_paper_have_the_same_sections() -> None:
    record = released(sample("shortcut"))
    assert anchors(make_page(record, SCREEN)) == anchors(make_page(record, PAPER))


def test_what_is_absent_is_said_and_not_said_where_it_is_there() -> None:
    bare, full = report.render_html(sample("clean")), report.render_html(released(sample("clean")))
    for sentence in (
        "No waiver was declared", "No earlier record was given as a baseline", "did not run under a lock",
        "Every result is satisfied: nothing failed",
    ):  # fmt: skip
        assert sentence in bare, sentence
    for sentence in ("No waiver was declared", "No earlier record was given", "did not run under a lock"):
        assert sentence not in full, sentence
    nothing = report.render_html(sample("clean").model_copy(update={"findings": ()}))
    assert "there is no result to show" in nothing
    assert "Every result is satisfied" not in nothing


@pytest.mark.parametrize("outcome", get_args(GateOutcome))
@pytest.mark.parametrize("code", [ExitCode.SATISFIED, ExitCode.NOT_SATISFIED, ExitCode.INCONCLUSIVE, ExitCode.INCOMPLETE, ExitCode.WAIVER])
def test_box_footer_and_exit_code_are_the_records(outcome: GateOutcome, code: ExitCode) -> None:
    record = released(sample("shortcut"))
    assert record.gate is not None
    record = record.model_copy(update={"gate": record.gate.model_copy(update={"outcome": outcome, "exit_code": code})})
    page = make_page(record, PAPER)
    box = page.summary.verdict
    assert record.exit_code == code
    assert box.exit_code.startswith(f"{int(code)} (")
    assert box.gate is not None
    assert box.gate.outcome == outcome
    assert page.running == f"✗ Not satisfied · gate {outcome.replace('_', ' ')}"
    text = report.render_page(page, report.ON_PAPER)
    assert f'<div class="gate {outcome}">' in text
    assert f'data-verdict="{page.running}"' in text
    # The gate says what happens to the release; the verdict says what was found, whatever was waived.
    assert '<div class="verdict not_satisfied">' in text


def test_without_a_gate_the_verdict_decides() -> None:
    page = make_page(sample("not_measured"), SCREEN)
    assert page.summary.verdict.gate is None
    assert page.summary.verdict.exit_code.startswith("4 (")
    assert page.running == "○ Not measured"


def test_results_say_what_they_mean_for_the_release() -> None:
    record = released(sample("shortcut"))
    assert record.gate is not None
    text = report.render_html(record)
    matrix = text[text.index('<section id="results"') : text.index('<section id="attention"')]
    for words, names in (
        ("waived", record.gate.waived),
        ("stops the release", record.gate.stopped_by),
        ("tolerated by policy", record.gate.tolerated),
    ):
        assert matrix.count(f'<span class="release">{words}</span>') == len(names) > 0
    assert 'class="release"' not in report.render_html(sample("shortcut"))
    first = make_page(record, PAPER).summary.checks[0]
    assert first.check in {name.split("/")[0] for name in record.gate.stopped_by}


def test_the_policy_admits_exactly_the_script_that_is_there() -> None:
    text = report.render_html(sample("clean"))
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert scripts == [report.script()]
    expected = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{expected}'" in text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert "unsafe-inline" not in policy[1].split("script-src")[1]
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"\son[a-z]+=", text)


def test_paper_has_neither_script_nor_controls() -> None:
    page = make_page(released(sample("shortcut")), PAPER)
    assert page.filters is None
    text = report.render_page(page, report.ON_PAPER)
    assert "<script" not in text
    assert "script-src" not in text
    assert "<form" not in text
    assert "<button" not in text


def test_filters_offer_what_occurs() -> None:
    record = released(sample("shortcut"))
    offered = filters(record)
    assert offered is not None
    assert sum(int(option.number) for option in offered.states.options) == len(record.findings)
    named = {facet.name: {option.value for option in facet.options} for facet in offered.facets}
    assert named["layer"] == {f.layer for f in record.findings if f.layer}
    assert named["concepts"] == {name for f in record.findings for name in f.concepts}
    assert named["release"] == {"stops the release", "waived", "tolerated by policy"}
    assert "class" not in named  # one class only: nothing to choose
    assert filters(record.model_copy(update={"findings": record.findings[:1]})) is None


def of(value: float, low: float, high: float, finding: Finding) -> float | None:
    interval = Interval(low=low, high=high, level=0.95, method="made up")
    measurement = finding.measurement.model_copy(update={"value": value, "interval": interval})
    return clearance(finding.model_copy(update={"measurement": measurement}))


def test_clearance_counts_half_widths_from_the_criterion() -> None:
    finding = next(f for f in sample("shortcut").findings if f.criterion.operator == "at_most")
    at = finding.criterion.threshold
    assert of(at - 0.04, at - 0.06, at - 0.02, finding) == pytest.approx(2)
    assert of(at + 0.01, at - 0.01, at + 0.03, finding) == pytest.approx(-0.5)
    assert of(at, at, at, finding) == 0
    assert of(at + 0.1, at + 0.1, at + 0.1, finding) == -1e6
    unmeasured = next(f for f in sample("not_measured").findings if f.measurement.value is None)
    assert clearance(unmeasured) is None


def test_a_reason_is_printed_once_a_table() -> None:
    for table in Checks(sample("shortcut"), PAPER).tables():
        reasons = [check.rationale for check in table.checks if check.rationale]
        assert len(reasons) == len(set(reasons))
        known = {check.check for check in table.checks if check.rationale}
        assert all(check.same_reason is None or check.same_reason[1] in known for check in table.checks)
        assert all(bool(check.rationale) != bool(check.same_reason) for check in table.checks)


def test_no_signature_is_claimed() -> None:
    text = report.render_html(released(sample("shortcut")))
    assert "A name in this table is no signature." in text
    assert not re.search(r"\b(digitally signed by|electronically signed by)\b", text, re.IGNORECASE)


def test_dates_are_those_of_no_machine() -> None:
    dates = ("2025-11-20T23:14:05", "2025-11-20", "2025-11-20T23:14:05+02:00")
    code = f"from semlens_audit.wording import format_date; print(*map(format_date, {dates!r}))"
    said = set()
    for zone in ("Asia/Tokyo", "America/Los_Angeles"):
        environment = os.environ | {"TZ": zone}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        said.add(done.stdout.strip())
    assert said == {"20 November 2025, 23:14 UTC 20 November 2025 20 November 2025, 21:14 UTC"}
    assert wording.format_date("soon") == "soon"


def test_the_html_of_a_whole_report_stays_small() -> None:
    assert len(report.render_html(released(sample("shortcut"))).encode()) < 3_000_000


def crowded() -> AuditRecord:
    """Page one with everything on it, at length."""
    record = released(sample("shortcut"))
    assert record.gate is not None
    assert record.lock is not None
    assert record.change is not None
    return record.model_copy(
        update={
            "gate": record.gate.model_copy(update={"sentence": "The release is stopped by a check of a long name. " * 6}),
            "lock": record.lock.model_copy(update={"sentence": "Locked, and said at some length how and when. " * 5}),
            "change": record.change.model_copy(update={"sentence": "Something worsened, something else did not. " * 5}),
        }
    )


@pytest.mark.parametrize("make", [crowded, lambda: released(sample("clean")), lambda: released(sample("not_measured"))])
def test_page_one_of_a_release_is_one_page(make: object) -> None:
    weasyprint = pytest.importorskip("weasyprint", reason="Pango is not installed", exc_type=OSError)
    page = dataclasses.replace(make_page(make(), PAPER), sections=())  # type: ignore[operator]
    html = re.sub(r' href="#[^"]*"', "", report.render_page(page, report.ON_PAPER))
    document = weasyprint.HTML(string=html).render()
    assert len(document.pages) == 2  # page one, and the contents
    assert len(page.summary.checks) >= 1
