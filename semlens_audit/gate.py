"""The gate: findings, waivers and policy in, decision on the release and exit code out. The only place that decides on a release.

What was found is never touched: states and verdict stay as `semlens_audit.verdict` gave them, and a waived finding stays visible.

Rules, the first that applies:

1. A waiver that is expired, exceeded, unmatched or invalid: exit code 5, whatever was found. Exceptions that nobody maintains are how a
   gate stops being one; such a waiver waives nothing, so that the findings it was meant for stop the release by themselves too.
2. A finding that is not satisfied, of severity `Policy.fail_on` or above, and not waived: exit code 1. So is an inconclusive one where
   the policy says ``fail``.
3. A finding that could not be measured, whatever its severity, or no finding at all: exit code 4. This can be neither waived nor
   tolerated: a gate must not let pass what was never checked.
4. An inconclusive finding of severity `Policy.fail_on` or above, not waived, unless the policy says ``pass``: exit code 3.
5. Otherwise exit code 0: ``conditional`` where a finding would stop the release but for a waiver, else ``passed``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date

from semlens_audit.errors import ExitCode, IntegrityError
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_policy import SEVERITIES, Policy
from semlens_audit.release_records import GateOutcome, GateRecord, WaiverRecord, WaiverState
from semlens_audit.waiver_judgement import BAD, judge_waivers, place
from semlens_audit.waivers import Waiver, parse
from semlens_audit.wording import capital, count, format_date, join

__all__ = ["BAD", "Policy", "again", "apply", "judge_waivers"]

_CODES: dict[GateOutcome, ExitCode] = {
    "passed": ExitCode.SATISFIED,
    "conditional": ExitCode.SATISFIED,
    "failed": ExitCode.NOT_SATISFIED,
    "inconclusive": ExitCode.INCONCLUSIVE,
    "incomplete": ExitCode.INCOMPLETE,
    "invalid_waiver": ExitCode.WAIVER,
}
_NAMED = 4
_STATE_WORDS: dict[WaiverState, str] = {
    "expired": "has expired",
    "exceeded": "is exceeded",
    "unmatched": "matches nothing",
    "invalid": "is invalid",
}


def apply(
    record: AuditRecord, waivers: Sequence[Waiver], policy: Policy, today: date, *, lines: Sequence[int | None] = ()
) -> AuditRecord:
    """`record` with its waivers judged and the release decided; `AuditRecord.waivers` and `AuditRecord.gate` are new.

    Parameters
    ----------
    record
        What was found; whatever waivers and gate it has are replaced.
    waivers
        As declared; each is judged by itself.
    policy
        What stops the release.
    today
        Date on which waivers are judged.
    lines
        Line of each waiver in its file, where it has one.

    Returns
    -------
    AuditRecord
        The same for the same arguments: no clock is read.
    """
    judged = judge_waivers(record, waivers, policy, today, lines=lines)
    return record.model_copy(update={"waivers": judged, "gate": _decide(record, judged, policy, today)})


def again(record: AuditRecord) -> AuditRecord:
    """`record` decided anew from its findings, its own waivers file, its policy and its date: what `apply` made of it, unless changed.

    Raises
    ------
    IntegrityError
        ``invalid-gate``: the gate's date is no date.
    WaiverError
        The waivers file in the record cannot be read.
    """
    if record.gate is None:
        return record.model_copy(update={"waivers": ()})
    try:
        today = date.fromisoformat(record.gate.today)
    except ValueError as error:
        raise IntegrityError("invalid-gate", f"The gate's date is no date: {record.gate.today[:40]}.") from error
    policy = Policy(record.gate.fail_on, record.gate.on_inconclusive)
    document = next((document for document in record.documents if document.kind == "waivers"), None)
    if document is None:
        return apply(record, (), policy, today)
    declared = parse(document.text.encode("utf-8"), document.name)
    return apply(record, declared.waivers, policy, today, lines=declared.lines)


@dataclass
class _Heap:
    """Findings by what they make of the release, in the record's order."""

    failed: list[Finding] = field(default_factory=list)
    incomplete: list[Finding] = field(default_factory=list)
    inconclusive: list[Finding] = field(default_factory=list)
    tolerated: list[Finding] = field(default_factory=list)
    waived: list[Finding] = field(default_factory=list)


def _sort(record: AuditRecord, waivers: Sequence[WaiverRecord], policy: Policy) -> _Heap:
    covered = {name for waiver in waivers if waiver.state == "applied" for name in waiver.findings}
    heap = _Heap()
    for finding in record.findings:
        outcome = policy.stopping(finding)
        if finding.state == "satisfied":
            continue
        if outcome is None:
            heap.tolerated.append(finding)
        elif outcome == "incomplete":
            heap.incomplete.append(finding)
        elif finding.id in covered:
            heap.waived.append(finding)
        elif outcome == "failed":
            heap.failed.append(finding)
        else:
            heap.inconclusive.append(finding)
    return heap


def _decide(record: AuditRecord, waivers: Sequence[WaiverRecord], policy: Policy, today: date) -> GateRecord:
    heap = _sort(record, waivers, policy)
    outcome: GateOutcome
    if any(waiver.state in BAD for waiver in waivers):
        outcome = "invalid_waiver"
    elif heap.failed:
        outcome = "failed"
    elif heap.incomplete or not record.findings:
        outcome = "incomplete"
    elif heap.inconclusive:
        outcome = "inconclusive"
    else:
        outcome = "conditional" if heap.waived else "passed"
    stopping = {id(finding) for finding in (*heap.failed, *heap.incomplete, *heap.inconclusive)}
    return GateRecord(
        fail_on=policy.fail_on,
        on_inconclusive=policy.on_inconclusive,
        today=today.isoformat(),
        outcome=outcome,
        exit_code=_CODES[outcome],
        sentence=_sentence(record, waivers, policy, outcome, heap),
        stopped_by=tuple(finding.id for finding in record.findings if id(finding) in stopping),
        tolerated=tuple(finding.id for finding in heap.tolerated),
        waived=tuple(finding.id for finding in heap.waived),
    )


def _sentence(record: AuditRecord, waivers: Sequence[WaiverRecord], policy: Policy, outcome: GateOutcome, heap: _Heap) -> str:
    """What was decided and why, for a reader who sees nothing else."""
    stops = [*_stops(record, heap)]
    bad = [waiver for waiver in waivers if waiver.state in BAD]
    if outcome == "invalid_waiver":
        said = [f"The release is stopped: {_few([f'the waiver of {w.check} {_STATE_WORDS[w.state]}' for w in bad])}."]
        if stops:
            said.append(f"{capital('; '.join(stops))}.")
    elif outcome in ("failed", "inconclusive"):
        said = [f"The release is {'stopped' if outcome == 'failed' else 'not decided'}: {'; '.join(stops)}."]
    elif outcome == "incomplete":
        said = [f"The release cannot be decided: {'; '.join(stops)}. What was never checked does not pass."]
    elif outcome == "conditional":
        said = ["The release may go out on conditions."]
    elif heap.tolerated:
        said = ["Nothing stops the release under this policy."]
    else:
        said = ["Nothing stops the release: every result is satisfied."]
    if heap.waived:
        dates = sorted({w.expires for w in waivers if w.state == "applied"})
        until = _few([format_date(day) for day in dates])
        said.append(f"Waived until {until}: {_few(_named(record, heap.waived))}.")
    if heap.tolerated:
        said.append(
            f"Tolerated by policy: {_few([f'{name} ({words})' for name, words in _tolerated(record, heap.tolerated)])}."
        )
    if spare := [waiver for waiver in waivers if waiver.state == "not_needed"]:
        said.append(f"{count(len(spare), 'waiver is', 'waivers are')} not needed: {_few([waiver.check for waiver in spare])}.")
    if idle := [waiver for waiver in waivers if waiver.state == "not_in_force"]:
        said.append(f"{count(len(idle), 'waiver is', 'waivers are')} not in force: {_few([waiver.check for waiver in idle])}.")
    return " ".join(said)


def _stops(record: AuditRecord, heap: _Heap) -> Iterable[str]:
    """Clauses on what stops the release, the gravest first."""
    if refused := [finding for finding in heap.failed if finding.state == "not_satisfied"]:
        yield f"{_few(_named(record, refused))} not satisfied"
    if counted := [finding for finding in heap.failed if finding.state == "inconclusive"]:
        yield f"{_few(_named(record, counted))} inconclusive, which by policy counts as not satisfied"
    if heap.incomplete:
        yield f"{_few(_named(record, heap.incomplete))} not measured"
    if not record.findings:
        yield "no check was evaluated"
    if heap.inconclusive:
        yield f"{_few(_named(record, heap.inconclusive))} inconclusive"


def _tolerated(record: AuditRecord, findings: Sequence[Finding]) -> Iterable[tuple[str, str]]:
    """Names with state and severity."""
    for state, words in (("not_satisfied", "not satisfied"), ("inconclusive", "inconclusive")):
        for severity in SEVERITIES:
            some = [finding for finding in findings if finding.state == state and finding.severity == severity]
            for name in _named(record, some):
                yield name, f"{words}, {severity}"


def _named(record: AuditRecord, findings: Sequence[Finding]) -> list[str]:
    """Checks, each with the places concerned where it has results elsewhere too."""
    names: dict[str, list[str]] = {}
    for finding in findings:
        names.setdefault(finding.check, []).append(place(finding))
    number = {check: sum(finding.check == check for finding in record.findings) for check in names}
    return [check if number[check] == len(places) else f"{check} ({join(places)})" for check, places in names.items()]


def _few(names: Sequence[str]) -> str:
    if len(names) <= _NAMED:
        return join(list(names))
    return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
