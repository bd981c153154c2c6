"""A record with everything that a release adds to it: a lock, waivers in several states, a gate, a change since a baseline."""

from __future__ import annotations

from semlens_audit.digest import digest
from semlens_audit.errors import ExitCode
from semlens_audit.measured import Interval
from semlens_audit.records import AuditRecord, Finding, Measurement
from semlens_audit.release_records import (
    BaselineRecord,
    ChangeEntry,
    ChangeLabel,
    ChangeRecord,
    GateRecord,
    LockRecord,
    WaiverRecord,
    WaiverState,
)

_WHY = (
    "The archive shows rulers beside suspicious lesions; the next training set crops them away. Until then the application warns where "
    "it sees a ruler."
)


def released(record: AuditRecord) -> AuditRecord:
    """`record` as a release conditional on one waiver, with one result tolerated by policy where there is one."""
    failed = [f for f in record.findings if f.state == "not_satisfied"]
    open_ = [f for f in record.findings if f.state == "inconclusive"]
    unmeasured = [f for f in record.findings if f.state == "not_measured"]
    waived, more = failed[: max(len(failed) - 1, 1)], failed[1:][-1:]
    code = ExitCode.NOT_SATISFIED if more else ExitCode.INCOMPLETE if unmeasured else ExitCode.SATISFIED
    gate = GateRecord(
        fail_on="minor",
        on_inconclusive="pass",
        today="2025-11-21",
        outcome="failed" if more else "incomplete" if unmeasured else "conditional" if waived else "passed",
        exit_code=code,
        sentence=f"The release is stopped by {more[0].check}; {len(waived)} further results are waived until 1 March 2026."
        if more
        else f"The audit is incomplete: {unmeasured[0].check} and {len(unmeasured) - 1} other results were not measured."
        if unmeasured
        else "The release may go out on conditions: what is not satisfied is waived."
        if waived
        else "Nothing stops the release.",
        stopped_by=tuple(f.id for f in more),
        tolerated=tuple(f.id for f in open_),
        waived=tuple(f.id for f in waived),
    )
    waivers = [_waiver(f, "applied", "Applied: measured below the ceiling that it was granted for.") for f in waived[:2]]
    if record.findings:
        waivers.append(_waiver(record.findings[-1], "not_needed", "Not needed: the result is satisfied."))
    return record.model_copy(
        update={
            "gate": gate,
            "waivers": tuple(waivers),
            "change": _change(record),
            "lock": LockRecord(
                state="kept",
                sha256=digest("lock"),
                created="2025-11-18T09:00:00Z",
                earlier_runs=2,
                runs_before_lock=1,
                sentence="Locked on 18 November 2025 before this run; the store saw 2 earlier runs under this lock and 1 before it.",
            ),
        }
    )


def _waiver(finding: Finding, state: WaiverState, sentence: str) -> WaiverRecord:
    return WaiverRecord(
        check=finding.check,
        where=finding.layer,
        scope="weights 5f1c0a9d3b7e",
        justification=_WHY,
        owner="Max Muster",
        approver="Dr. Ada Example",
        created="2025-11-19",
        expires="2026-03-01",
        ticket="MED-142",
        revalidate_on="new weights, or a share above the ceiling",
        ceiling=0.7,
        state=state,
        findings=(finding.id,) if state == "applied" else (),
        sentence=sentence,
        line=4,
    )


def _change(record: AuditRecord) -> ChangeRecord:
    labels: tuple[ChangeLabel, ...] = ("worsened", "within_noise", "new", "fixed", "improved", "not_comparable")
    entries = []
    for label, finding in zip(labels, record.findings, strict=False):
        new = finding.measurement
        old = difference = None
        if new.value is not None and new.interval is not None and label != "not_comparable":
            shift = 0.001 if label == "within_noise" else -0.05 if label in ("improved", "fixed") else 0.05
            old = _moved(new, -shift)
            difference = _moved(new, shift - new.value)
            if new.unit == "share":
                difference = difference.model_copy(update={"unit": "difference"})
        entries.append(
            ChangeEntry(
                finding=finding.id,
                label=label,
                before="satisfied" if label == "new" else finding.state,
                after=finding.state,
                old=old,
                new=new,
                difference=difference,
                paired=label != "not_comparable",
                sentence=f"{finding.check}: {label.replace('_', ' ')}.",
            )
        )
    return ChangeRecord(
        baseline=BaselineRecord(
            record_sha256=digest("baseline"),
            created="2025-08-02T08:30:00Z",
            subject=record.subject.name,
            version="2025.08",
            weights_sha256=digest("older weights"),
            data_sha256=record.data.sha256,
            tool="semlens-audit 0.1.0",
        ),
        entries=tuple(entries),
        sentence="Against version 2025.08: 1 result worsened, 1 is new, 1 fixed, 1 improved, the others lie within noise.",
    )


def _moved(measurement: Measurement, shift: float) -> Measurement:
    value, interval = measurement.value, measurement.interval
    assert value is not None
    assert interval is not None
    moved = Interval(low=interval.low + shift, high=interval.high + shift, level=interval.level, method=interval.method)
    return measurement.model_copy(update={"value": value + shift, "interval": moved})
