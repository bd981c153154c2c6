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

A waiver is held against the *estimate* of each result it names, not against an end of its interval: the ceiling is the value that its
approver saw and accepted, and an interval's end also moves with the size of the test data, which is no fault of the model. Where the
interval reaches beyond the ceiling, the waiver's sentence says so. One result beyond the ceiling voids the waiver for all its results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date

from semlens_audit.errors import ExitCode, IntegrityError
from semlens_audit.plan import Criterion, Severity
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_records import GateOutcome, GateRecord, OnInconclusive, WaiverRecord, WaiverState
from semlens_audit.waivers import Waiver, covers, faults, parse, repeated, scope_words
from semlens_audit.wording import Unit, capital, count, format_criterion, format_date, format_value, join, needed_decimals

__all__ = ["BAD", "Policy", "again", "apply", "judge_waivers"]

BAD: tuple[WaiverState, ...] = ("expired", "exceeded", "unmatched", "invalid")
"""States of a waiver that end with exit code 5."""

_SEVERITIES: dict[Severity, int] = {"minor": 0, "major": 1, "critical": 2}
_CODES: dict[GateOutcome, ExitCode] = {
    "passed": ExitCode.SATISFIED,
    "conditional": ExitCode.SATISFIED,
    "failed": ExitCode.NOT_SATISFIED,
    "inconclusive": ExitCode.INCONCLUSIVE,
    "incomplete": ExitCode.INCOMPLETE,
    "invalid_waiver": ExitCode.WAIVER,
}
_RANGES: dict[Unit, tuple[float, float]] = {"share": (0.0, 1.0), "cosine": (-1.0, 1.0), "difference": (-1.0, 1.0)}
_NAMED = 4
_STATE_WORDS: dict[WaiverState, str] = {
    "expired": "has expired",
    "exceeded": "is exceeded",
    "unmatched": "matches nothing",
    "invalid": "is invalid",
}


@dataclass(frozen=True)
class Policy:
    """What stops a release.

    Parameters
    ----------
    fail_on
        Least severity of a finding that stops it.
    on_inconclusive
        inconclusive: exit code 3. fail: like a finding that is not satisfied. pass: does not stop it.
    """

    fail_on: Severity = "minor"
    on_inconclusive: OnInconclusive = "inconclusive"

    def stopping(self, finding: Finding) -> GateOutcome | None:
        """What `finding` would make of the release if nothing were waived; ``None`` where it does not stop it."""
        if finding.state == "satisfied":
            return None
        if finding.state == "not_measured":
            return "incomplete"
        if _SEVERITIES[finding.severity] < _SEVERITIES[self.fail_on]:
            return None
        if finding.state == "not_satisfied":
            return "failed"
        by_policy: dict[OnInconclusive, GateOutcome | None] = {"inconclusive": "inconclusive", "fail": "failed", "pass": None}
        return by_policy[self.on_inconclusive]


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


def judge_waivers(
    record: AuditRecord, waivers: Sequence[Waiver], policy: Policy, today: date, *, lines: Sequence[int | None] = ()
) -> tuple[WaiverRecord, ...]:
    """What becomes of each waiver; see `apply`."""
    twins = repeated(waivers)
    judged = []
    for index, waiver in enumerate(waivers):
        if index in twins:
            said = "The same result of the same model is waived twice; keep one of the two."
            standing = _Standing("invalid", said)
        else:
            standing = _judge(record, waiver, policy, today)
        judged.append(
            WaiverRecord(
                check=waiver.check,
                where=waiver.where,
                scope=scope_words(waiver.scope),
                justification=waiver.justification,
                owner=waiver.owner,
                approver=waiver.approver,
                created=waiver.created.isoformat(),
                expires=waiver.expires.isoformat(),
                ticket=waiver.ticket,
                revalidate_on=waiver.revalidate_on,
                ceiling=waiver.ceiling,
                state=standing.state,
                findings=standing.findings,
                sentence=standing.sentence,
                line=lines[index] if index < len(lines) else None,
            )
        )
    return tuple(judged)


@dataclass(frozen=True)
class _Standing:
    state: WaiverState
    sentence: str
    findings: tuple[str, ...] = ()


def _judge(record: AuditRecord, waiver: Waiver, policy: Policy, today: date) -> _Standing:
    """One waiver by itself; the first reason why it does not hold counts."""
    if broken := faults(waiver):
        return _Standing("invalid", f"Invalid: {'; '.join(said for _, _, said, _ in broken)}.")
    if waiver.created > today:
        return _Standing(
            "not_in_force",
            f"Not in force: it was granted on {_day(waiver.created)}, after the day of this decision, and waives nothing.",
        )
    of_check = [finding for finding in record.findings if finding.check == waiver.check]
    if not of_check:
        return _Standing("unmatched", f"Matches nothing: the audit has no result of a check {waiver.check}.")
    matched = [finding for finding in of_check if waiver.where is None or waiver.where in _places(finding)]
    if not matched:
        places = join(list(dict.fromkeys(_place(finding) for finding in of_check)))
        return _Standing("unmatched", f"Matches nothing: {waiver.check} has no result at {waiver.where}, but at {places}.")
    if why := _no_ceiling(waiver.ceiling, matched):
        return _Standing("invalid", f"Invalid: {why}.")
    if why := covers(waiver.scope, record.subject.weights_sha256, record.subject.version):
        return _Standing("unmatched", f"Matches another model: {why}.")
    if today > waiver.expires:
        return _Standing("expired", f"Expired: {_day(waiver.expires)} was the last day on which it held.")
    return _hold(waiver, matched, policy)


def _hold(waiver: Waiver, matched: Sequence[Finding], policy: Policy) -> _Standing:
    """A waiver that is in force against the results it matches."""
    needing = [finding for finding in matched if finding.state in ("not_satisfied", "inconclusive")]
    missing = [finding for finding in matched if finding.state == "not_measured"]
    beyond = [finding for finding in needing if _beyond(finding, waiver.ceiling)]
    if beyond:
        said = join([f"{_place(finding)} measures {_estimate(finding, waiver.ceiling)}" for finding in beyond])
        return _Standing("exceeded", f"Exceeded: {said}, and it was granted for {_ceiling(waiver.ceiling, beyond[0])}.")
    unmeasured = f" What was not measured ({join([_place(f) for f in missing])}) cannot be waived." if missing else ""
    stopping = [finding for finding in needing if policy.stopping(finding) is not None]
    if stopping:
        said = join([f"{_place(finding)} measures {_estimate(finding, waiver.ceiling)}" for finding in stopping])
        near = [finding for finding in stopping if _reaches(finding, waiver.ceiling)]
        reach = f" The interval reaches beyond that ({join([_place(f) for f in near])})." if near else ""
        return _Standing(
            "applied",
            f"Applied until {_day(waiver.expires)}: {said}; it was granted for {_ceiling(waiver.ceiling, stopping[0])}.{reach}{unmeasured}",
            tuple(finding.id for finding in stopping),
        )
    if needing:
        return _Standing("not_needed", f"Not needed: the policy lets the release pass with this result.{unmeasured}")
    if missing:
        return _Standing("not_in_force", f"Not in force: there is nothing to hold it against.{unmeasured}")
    return _Standing("not_needed", f"Not needed: {'every result it names' if len(matched) > 1 else 'the result'} is satisfied.")


def _places(finding: Finding) -> set[str]:
    """What a waiver may call the place of a result: its layer, its concept (all of them), else the class."""
    return {_place(finding), ",".join(finding.concepts)} - {""}


def _place(finding: Finding) -> str:
    return finding.layer or ",".join(finding.concepts) or finding.class_name


def _no_ceiling(ceiling: float, matched: Sequence[Finding]) -> str | None:
    """Why `ceiling` is none for these results."""
    for finding in matched:
        criterion, unit = finding.criterion, finding.measurement.unit
        if criterion.at_most is None and criterion.at_least is None:
            return "the result that it names has no criterion"
        low, high = _RANGES.get(unit, (float("-inf"), float("inf")))
        if not low <= ceiling <= high:
            return f"a ceiling of {ceiling:g} is no {unit}, which lies between {low:g} and {high:g}"
        inside = ceiling < criterion.threshold if criterion.operator == "at_most" else ceiling > criterion.threshold
        if inside:
            return f"its ceiling, {_ceiling(ceiling, finding)}, is stricter than the criterion, {format_criterion(criterion, unit)}"
    return None


def _beyond(finding: Finding, ceiling: float) -> bool:
    value = finding.measurement.value
    # a result without a value is not measured, and cannot come here unless the record is damaged: then nothing is waived
    if value is None:
        return True
    return value > ceiling if finding.criterion.operator == "at_most" else value < ceiling


def _reaches(finding: Finding, ceiling: float) -> bool:
    interval = finding.measurement.interval
    if interval is None:
        return False
    return interval.high > ceiling if finding.criterion.operator == "at_most" else interval.low < ceiling


def _ceiling(ceiling: float, finding: Finding) -> str:
    at_most = finding.criterion.operator == "at_most"
    bound = Criterion(at_most=ceiling) if at_most else Criterion(at_least=ceiling)
    return format_criterion(bound, finding.measurement.unit)


def _estimate(finding: Finding, ceiling: float) -> str:
    """The estimate, with digits that put it on the side of the ceiling where it lies."""
    measurement = finding.measurement
    if measurement.value is None or measurement.interval is None:
        return "nothing"
    value, unit, interval = measurement.value, measurement.unit, measurement.interval
    earned = needed_decimals(unit, interval.low, interval.high, finding.criterion.threshold)
    return format_value(unit, value, max(earned, needed_decimals(unit, value, value, ceiling)))


def _day(day: date) -> str:
    return format_date(day.isoformat())


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
        for severity in _SEVERITIES:
            some = [finding for finding in findings if finding.state == state and finding.severity == severity]
            for name in _named(record, some):
                yield name, f"{words}, {severity}"


def _named(record: AuditRecord, findings: Sequence[Finding]) -> list[str]:
    """Checks, each with the places concerned where it has results elsewhere too."""
    names: dict[str, list[str]] = {}
    for finding in findings:
        names.setdefault(finding.check, []).append(_place(finding))
    number = {check: sum(finding.check == check for finding in record.findings) for check in names}
    return [check if number[check] == len(places) else f"{check} ({join(places)})" for check, places in names.items()]


def _few(names: Sequence[str]) -> str:
    if len(names) <= _NAMED:
        return join(list(names))
    return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
