"""What the gate makes of each finding and each waiver: the one reading that all exports share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from semlens_audit.errors import ExitCode
from semlens_audit.exports.plain import block, line
from semlens_audit.gate import BAD
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_records import WaiverRecord
from semlens_audit.wording import KINDS, STATES, format_criterion, format_measured, join

__all__ = ["Disposition", "Judged", "decision", "judge", "measured", "particulars", "refused_waivers", "where"]

Disposition = Literal["passed", "failed", "inconclusive", "not_measured", "tolerated", "waived"]
_CODES: dict[int, str] = {
    ExitCode.SATISFIED: "every check was evaluated and nothing stops the release",
    ExitCode.NOT_SATISFIED: "at least one check is not satisfied",
    ExitCode.INCONCLUSIVE: "no check failed, and at least one interval reaches over its criterion",
    ExitCode.INCOMPLETE: "a check could not be measured, or none was evaluated",
    ExitCode.WAIVER: "a waiver is expired or invalid",
}


@dataclass(frozen=True)
class Judged:
    """A finding and what the gate makes of it.

    Parameters
    ----------
    finding
        As measured.
    disposition
        ``passed``: satisfied. ``failed``, ``inconclusive``, ``not_measured``: stops the release. ``tolerated``: not satisfied or
        inconclusive, and does not stop it by policy. ``waived``: would stop it but for a waiver.
    key
        Names it within the document: `Finding.id`, numbered from the second of the same id on.
    waivers
        Those applied to it.
    """

    finding: Finding
    disposition: Disposition
    key: str
    waivers: tuple[WaiverRecord, ...] = ()

    @property
    def stops(self) -> bool:
        """Whether it stops the release."""
        return self.disposition in ("failed", "inconclusive", "not_measured")


def judge(record: AuditRecord) -> tuple[Judged, ...]:
    """All findings, in the record's order, as its gate decided on them.

    A record without a gate is read as under the strictest policy: whatever is not satisfied stops the release. What was not
    measured is never anything but that, whatever the gate lists.
    """
    gate = record.gate
    waived = frozenset(gate.waived) if gate else frozenset()
    tolerated = frozenset(gate.tolerated) if gate else frozenset()
    judged, seen = [], Counter[str]()
    for finding in record.findings:
        seen[finding.id] += 1
        judged.append(
            Judged(
                finding,
                _disposition(finding, waived, tolerated),
                finding.id if seen[finding.id] == 1 else f"{finding.id}#{seen[finding.id]}",
                tuple(waiver for waiver in record.waivers if waiver.state == "applied" and finding.id in waiver.findings),
            )
        )
    return tuple(judged)


def _disposition(finding: Finding, waived: frozenset[str], tolerated: frozenset[str]) -> Disposition:
    if finding.state == "satisfied":
        return "passed"
    if finding.state == "not_measured":
        return "not_measured"
    if finding.id in waived:
        return "waived"
    if finding.id in tolerated:
        return "tolerated"
    return "failed" if finding.state == "not_satisfied" else "inconclusive"


def refused_waivers(record: AuditRecord) -> tuple[WaiverRecord, ...]:
    """Waivers that invalidate the release."""
    return tuple(waiver for waiver in record.waivers if waiver.state in BAD)


def decision(record: AuditRecord) -> str:
    """The decision in one sentence: the gate's own words, or what the exit code of the verdict means."""
    if record.gate is not None:
        return line(record.gate.sentence)
    return line(f"{STATES[record.verdict.state]}: {_CODES.get(record.exit_code, 'see the record')}.")


def measured(finding: Finding) -> str:
    """Value, interval, level and sample size in words, or why there is none."""
    measurement = finding.measurement
    if measurement.value is None or measurement.interval is None:
        return line(f"not measured: {measurement.not_measured} (n = {measurement.n:,})")
    level = f"{100 * measurement.interval.level:g} % interval"
    return line(f"{format_measured(measurement, finding.criterion)}, {level}, n = {measurement.n:,}")


def where(finding: Finding) -> str:
    """Where it was measured: the layer, else the concepts, else nothing."""
    return line(finding.layer or ", ".join(finding.concepts))


def particulars(judged: Judged, record: AuditRecord) -> str:
    """Everything a reader needs to judge one finding, one line for each matter."""
    finding = judged.finding
    labels = [concept.label for concept in record.concepts if concept.id in finding.concepts]
    lines = [
        finding.statement,
        f"State: {STATES[finding.state].lower()}",
        f"Quantity: {KINDS[finding.kind]}, class {finding.class_name}"
        + (f", layer {finding.layer}" if finding.layer else "")
        + (f", {join(labels)}" if labels else ""),
        f"Measured: {measured(finding)}",
        f"Interval: {finding.measurement.interval.method}" if finding.measurement.interval else None,
        f"Criterion: {format_criterion(finding.criterion, finding.measurement.unit)}",
        f"Severity: {finding.severity}",
        f"Why this criterion: {finding.rationale}",
        f"Finding: {finding.explanation}",
        f"Intervention: {finding.confirmation.sentence}" if finding.confirmation else None,
        f"Supports evidence for: {'; '.join(finding.supports)}" if finding.supports else None,
    ]
    if judged.disposition == "tolerated" and record.gate is not None:
        lines.append(
            f"Tolerated: it does not stop the release by policy (fail on {record.gate.fail_on}, "
            f"inconclusive counts as: {record.gate.on_inconclusive})"
        )
    lines += [
        f"Waived until {waiver.expires} by {waiver.approver} for {waiver.owner}, ticket {waiver.ticket}: {waiver.justification}"
        for waiver in judged.waivers
    ]
    return block(*lines)
