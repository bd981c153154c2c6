"""A summary in GitHub-flavoured Markdown for the page of a CI job: decision first, then what needs attention, then the rest.

Text of the record is data: whatever is markup, a link, a mention or a workflow command in it is written so that it shows as typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from semlens_audit.component_words import NO_CHECK, heading
from semlens_audit.exports.dispositions import Disposition, Judged, decision, judge, measured, where
from semlens_audit.exports.plain import line
from semlens_audit.gate import BAD
from semlens_audit.plan import Severity
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import WaiverRecord
from semlens_audit.wording import GLYPHS, STATES, count, format_criterion, format_date, format_measured

__all__ = ["LARGEST", "escape", "render"]

LARGEST = 1024 * 1024
"""Bytes that GitHub accepts as the summary of one step."""
_ROOM = LARGEST - 128 * 1024
_MOST = 300
"""Characters of one text in a table."""
_ENTITIES = {letter: f"&#{ord(letter)};" for letter in "@|`$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_ESCAPED = frozenset("\\*_[]#~!")
_COLON = re.compile(r"(?<![0-9]):(?=\S)|:(?![0-9\s])|(?<=www)\.", re.IGNORECASE)
_ORDER: dict[Disposition, int] = {"failed": 0, "not_measured": 1, "inconclusive": 2, "tolerated": 3, "waived": 4, "passed": 5}
_WEIGHT: dict[Severity, int] = {"critical": 0, "major": 1, "minor": 2}
_WORDS: dict[Disposition, str] = {
    "failed": "stops the release",
    "not_measured": "stops the release",
    "inconclusive": "stops the release",
    "tolerated": "tolerated by policy",
    "waived": "waived",
    "passed": "passed",
}
_HEAD = "| State | Check | Where | Measured | Criterion | Severity | Gate |\n| --- | --- | --- | --- | --- | --- | --- |\n"


def escape(text: str, most: int | None = _MOST) -> str:
    """`text` to stand within a line: Markdown, HTML and the log of a workflow show it as it was typed.

    Parameters
    ----------
    text
        Any text of a record.
    most
        Most characters of the text; none: all of them.

    Returns
    -------
    str
        On one line. Markup is escaped; what makes a link, an emoji, a mention, a formula or a workflow command is written as
        character references, which have no such meaning (GitHub Flavored Markdown, section 6.2).
    """
    parts = []
    flat = line(text, most)
    active = {match.start() for match in _COLON.finditer(flat)}
    for place, letter in enumerate(flat):
        if place in active:
            parts.append(f"&#{ord(letter)};")
        elif letter in _ESCAPED:
            parts.append(f"\\{letter}")
        else:
            parts.append(_ENTITIES.get(letter, letter))
    return "".join(parts)


class _Page:
    """Text up to a size; what does not fit is counted instead."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = 0

    def add(self, text: str) -> None:
        self.parts.append(text)
        self.size += len(text.encode("utf-8"))

    def table(self, head: str, rows: Iterable[str], singular: str) -> None:
        self.add(head)
        left_out = 0
        for row in rows:
            if self.size + len(row.encode("utf-8")) > _ROOM:
                left_out += 1
            else:
                self.add(row)
        self.add("\n")
        if left_out:
            self.add(f"{count(left_out, singular)} more did not fit here; the report has all of them.\n\n")


def render(record: AuditRecord, record_sha256: str) -> str:
    """The record as a summary.

    Parameters
    ----------
    record
        What was found.
    record_sha256
        Its digest.

    Returns
    -------
    str
        The same text for the same record, at most `LARGEST` bytes as UTF-8.
    """
    judged = sorted(judge(record), key=lambda one: (_ORDER[one.disposition], _WEIGHT[one.finding.severity]))
    page = _Page()
    _head(page, record, record_sha256)
    attention = [one for one in judged if one.disposition in ("failed", "not_measured", "inconclusive", "tolerated")]
    if attention:
        page.add("### Needs attention\n\n")
        page.table(_HEAD, map(_row, attention), "finding")
    elif not judged:
        page.add("No check was evaluated.\n\n")
    if waived := [one for one in judged if one.disposition == "waived"]:
        page.add("### Waived\n\n")
        page.table(_HEAD, map(_row, waived), "finding")
    if record.waivers:
        page.add("### Waivers\n\n")
        head = "| State | Check | Why | Owner | Approver | Expires | Ticket |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        ordered = sorted(record.waivers, key=lambda waiver: waiver.state not in BAD)
        page.table(head, map(_waiver, ordered), "waiver")
    _change(page, record)
    if passed := [one for one in judged if one.disposition == "passed"]:
        page.add(f"<details>\n<summary>{count(len(passed), 'finding')} passed</summary>\n\n")
        page.table(_HEAD, map(_row, passed), "finding")
        page.add("</details>\n\n")
    page.add("[Report](report.html), [record](results.json)\n")
    return "".join(page.parts)


def _head(page: _Page, record: AuditRecord, record_sha256: str) -> None:
    verdict = record.verdict
    page.add(f"## {GLYPHS[verdict.state]} {STATES[verdict.state]}: {escape(record.title)}\n\n")
    gate = f"Gate: {record.gate.outcome.replace('_', ' ')}" if record.gate else "No gate"
    page.add(f"**{gate}, exit code {int(record.exit_code)}.** {escape(decision(record), 2000)}\n\n")
    page.add(f"Finding: {escape(verdict.headline, 2000)}\n\n")
    version = f" {record.subject.version}" if record.subject.version else ""
    page.add(
        f"Model {escape(record.subject.name + version)}, weights `{_digest(record.subject.weights_sha256)}`. "
        f"Spec {escape(record.spec.name)}, `{_digest(record.spec.sha256)}`. "
        f"{count(record.data.samples, 'test sample')}, `{_digest(record.data.sha256)}`. "
        f"Record `{_digest(record_sha256)}`, {escape(format_date(record.created))}.\n\n"
    )
    if record.lock is not None:
        page.add(f"Pre-registration: {escape(record.lock.sentence, 1000)}\n\n")


def _digest(sha256: str) -> str:
    return re.sub("[^0-9a-f]", "?", sha256[:12])


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _row(one: Judged) -> str:
    finding = one.finding
    value = format_measured(finding.measurement, finding.criterion) if finding.measurement.value is not None else measured(finding)
    return _cells(
        [
            f"{GLYPHS[finding.state]} {STATES[finding.state]}",
            escape(finding.check),
            escape(", ".join(part for part in (finding.class_name, where(finding)) if part)),
            escape(value),
            escape(format_criterion(finding.criterion, finding.measurement.unit)),
            finding.severity,
            _WORDS[one.disposition],
        ]
    )


def _waiver(waiver: WaiverRecord) -> str:
    mark = "✗" if waiver.state in BAD else "•"
    target = "/".join(part for part in (waiver.check, waiver.where) if part)
    state = f"{mark} {waiver.state.replace('_', ' ')}"
    words = (target, waiver.sentence, waiver.owner, waiver.approver, waiver.expires, waiver.ticket)
    return _cells([state, *map(escape, words)])


def _change(page: _Page, record: AuditRecord) -> None:
    change = record.change
    if change is None:
        return
    page.add(f"### Change since the baseline\n\n{escape(change.refused or change.sentence, 2000)}\n\n")
    changed = [entry for entry in change.entries if entry.label != "within_noise"]
    if changed:
        rows = (_cells([entry.label.replace("_", " "), escape(entry.finding), escape(entry.sentence)]) for entry in changed)
        page.table("| Change | Finding | What |\n| --- | --- | --- |\n", rows, "change")
    if change.components is not None:
        said = [sentence for layer in change.components.layers for sentence in (f"{heading(layer)}.", *layer.sentences)]
        page.add("".join(f"- {escape(sentence, 500)}\n" for sentence in said[:20]) + f"\n{escape(NO_CHECK)}\n\n")
