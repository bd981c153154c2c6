"""The section of a report on waivers: every one that was declared, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.pages import Badge
from semlens_audit.plan import Criterion
from semlens_audit.records import AuditRecord, State
from semlens_audit.release_records import WaiverRecord, WaiverState
from semlens_audit.waiver_judgement import BAD, matching, place
from semlens_audit.wording import count, format_criterion, format_date, format_measured, join

__all__ = ["MeasuredAt", "WaiverRow", "Waivers", "waivers"]

_BADGES: dict[WaiverState, tuple[State, str, str]] = {
    "applied": ("inconclusive", "!", "Applied"),
    "not_needed": ("satisfied", "✓", "Not needed"),
    "not_in_force": ("not_measured", "○", "Not in force"),
    "expired": ("not_satisfied", "✗", "Expired"),
    "exceeded": ("not_satisfied", "✗", "Exceeded"),
    "unmatched": ("not_satisfied", "✗", "Unmatched"),
    "invalid": ("not_satisfied", "✗", "Invalid"),
}
"""State of a waiver -> state of a result that has the same colour, glyph, word."""
_ORDER: tuple[WaiverState, ...] = ("invalid", "unmatched", "expired", "exceeded", "applied", "not_in_force", "not_needed")


@dataclass(frozen=True)
class MeasuredAt:
    """A result that a waiver speaks of."""

    where: str
    measured: str


@dataclass(frozen=True)
class WaiverRow:
    """One waiver."""

    check: str
    anchor: str
    """Of the place that shows the check in full; empty where the record has none of that name."""
    where: str
    scope: str
    line: str
    badge: Badge
    sentence: str
    justification: str
    revalidate_on: str
    owner: str
    approver: str
    created: str
    expires: str
    ticket: str
    ceiling: str
    results: tuple[MeasuredAt, ...]


@dataclass(frozen=True)
class Waivers:
    """All waivers, those that do not hold first."""

    summary: str
    file: str
    rows: tuple[WaiverRow, ...]


def waivers(record: AuditRecord) -> Waivers | None:
    """The section; ``None`` where no waiver was declared."""
    if not record.waivers:
        return None
    anchors = {check: f"check-{i}" for i, check in enumerate(dict.fromkeys(f.check for f in record.findings), start=1)}
    ranked = sorted(record.waivers, key=lambda one: _ORDER.index(one.state))
    document = next((one for one in record.documents if one.kind == "waivers"), None)
    return Waivers(
        summary=_summary(record),
        file=document.name if document is not None else "",
        rows=tuple(_row(record, one, anchors.get(one.check, "")) for one in ranked),
    )


def _summary(record: AuditRecord) -> str:
    numbers = {state: sum(one.state == state for one in record.waivers) for state in _ORDER}
    parts = [f"{number} {_BADGES[state][2].lower()}" for state, number in numbers.items() if number]
    said = f"{count(len(record.waivers), 'waiver')}: {join(parts)}"
    if record.gate is not None:
        said += f", as of {format_date(record.gate.today)}"
    stopped = any(one.state in BAD for one in record.waivers)
    return f"{said}.{' A waiver that does not hold stops the release by itself (exit code 5).' if stopped else ''}"


def _row(record: AuditRecord, waiver: WaiverRecord, anchor: str) -> WaiverRow:
    state, glyph, word = _BADGES[waiver.state]
    findings = matching(record, waiver.check, waiver.where)
    return WaiverRow(
        check=waiver.check,
        anchor=anchor,
        where=waiver.where or "every result",
        scope=waiver.scope,
        line=f"line {waiver.line}" if waiver.line is not None else "",
        badge=Badge(state, glyph, word),
        sentence=waiver.sentence,
        justification=waiver.justification,
        revalidate_on=waiver.revalidate_on,
        owner=waiver.owner,
        approver=waiver.approver,
        created=format_date(waiver.created),
        expires=format_date(waiver.expires),
        ticket=waiver.ticket,
        ceiling=_ceiling(record, waiver),
        results=tuple(MeasuredAt(place(one), format_measured(one.measurement, one.criterion)) for one in findings),
    )


def _ceiling(record: AuditRecord, waiver: WaiverRecord) -> str:
    """In the unit of the check's results; the bare number where it has none."""
    findings = matching(record, waiver.check, waiver.where) or matching(record, waiver.check, None)
    if not findings:
        return f"{waiver.ceiling:g}"
    first = findings[0]
    at_most = first.criterion.operator == "at_most"
    bound = Criterion(at_most=waiver.ceiling) if at_most else Criterion(at_least=waiver.ceiling)
    return format_criterion(bound, first.measurement.unit)
