"""What becomes of each waiver against what was found, on a given day, under a given policy.

A waiver is held against the *estimate* of each result it names, not against an end of its interval: the ceiling is the value that its
approver saw and accepted, and an interval's end also moves with the size of the test data, which is no fault of the model. Where the
interval reaches beyond the ceiling, the waiver's sentence says so. One result beyond the ceiling voids the waiver for all its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from semlens_audit.plan import AuditPlan, Criterion
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_policy import Policy
from semlens_audit.release_records import WaiverRecord, WaiverState
from semlens_audit.waivers import Waiver, covers, faults, repeated, scope_words
from semlens_audit.wording import Unit, format_criterion, format_date, format_value, join, needed_decimals

__all__ = ["BAD", "judge_declared", "judge_waivers", "matching", "place"]

BAD: tuple[WaiverState, ...] = ("expired", "exceeded", "unmatched", "invalid")
"""States of a waiver that end with exit code 5."""

_RANGES: dict[Unit, tuple[float, float]] = {"share": (0.0, 1.0), "cosine": (-1.0, 1.0), "difference": (-1.0, 1.0)}


def judge_waivers(
    record: AuditRecord, waivers: Sequence[Waiver], policy: Policy, today: date, *, lines: Sequence[int | None] = ()
) -> tuple[WaiverRecord, ...]:
    """What becomes of each waiver; see `semlens_audit.gate.apply`."""
    twins = repeated(waivers)
    judged = []
    for index, waiver in enumerate(waivers):
        standing = _TWICE if index in twins else _judge(record, waiver, policy, today)
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


_TWICE = _Standing("invalid", "Invalid: the same result of the same model is waived twice; keep one of the two.")


def judge_declared(plan: AuditPlan, waivers: Sequence[Waiver], today: date) -> tuple[tuple[WaiverState | None, str], ...]:
    """What can be said of waivers before anything is measured: state and sentence of each; no state where nothing speaks against it."""
    twins = repeated(waivers)
    found: list[tuple[WaiverState | None, str]] = []
    for index, waiver in enumerate(waivers):
        standing = _TWICE if index in twins else _dated(waiver, today) or _asked(plan, waiver) or _expired(waiver, today)
        words = f"In force until {_day(waiver.expires)}; to be held against the next run."
        found.append((standing.state, standing.sentence) if standing else (None, words))
    return tuple(found)


def _asked(plan: AuditPlan, waiver: Waiver) -> _Standing | None:
    """Why a waiver cannot hold in an audit, whatever is measured."""
    check = next((one for one in plan.spec.checks if one.id == waiver.check), None)
    if check is None:
        return _Standing("unmatched", f"Matches nothing: the spec has no check {waiver.check}.")
    concepts = check.concepts or tuple(concept.id for concept in plan.spec.concepts)
    places = {*(check.layers or plan.audit.layers), *concepts, ",".join(concepts), check.for_class}
    if waiver.where is not None and waiver.where not in places:
        return _Standing("unmatched", f"Matches nothing: {waiver.check} looks at no {waiver.where}.")
    subject = plan.audit.subject
    if waiver.scope.versions is not None and (why := covers(waiver.scope, "", subject.version)):
        return _Standing("unmatched", f"Matches another model: {why}.")
    return None


def _dated(waiver: Waiver, today: date) -> _Standing | None:
    """Why a waiver does not hold by itself, or not yet."""
    if broken := faults(waiver):
        return _Standing("invalid", f"Invalid: {'; '.join(said for _, _, said, _ in broken)}.")
    if waiver.created > today:
        said = f"it was granted on {_day(waiver.created)}, after the day of this decision, and waives nothing"
        return _Standing("not_in_force", f"Not in force: {said}.")
    return None


def _expired(waiver: Waiver, today: date) -> _Standing | None:
    if today > waiver.expires:
        return _Standing("expired", f"Expired: {_day(waiver.expires)} was the last day on which it held.")
    return None


def _judge(record: AuditRecord, waiver: Waiver, policy: Policy, today: date) -> _Standing:
    """One waiver by itself; the first reason why it does not hold counts."""
    if standing := _dated(waiver, today):
        return standing
    of_check = [finding for finding in record.findings if finding.check == waiver.check]
    if not of_check:
        return _Standing("unmatched", f"Matches nothing: the audit has no result of a check {waiver.check}.")
    matched = matching(record, waiver.check, waiver.where)
    if not matched:
        places = join(list(dict.fromkeys(place(finding) for finding in of_check)))
        return _Standing("unmatched", f"Matches nothing: {waiver.check} has no result at {waiver.where}, but at {places}.")
    if why := _no_ceiling(waiver.ceiling, matched):
        return _Standing("invalid", f"Invalid: {why}.")
    if why := covers(waiver.scope, record.subject.weights_sha256, record.subject.version):
        return _Standing("unmatched", f"Matches another model: {why}.")
    return _expired(waiver, today) or _hold(waiver, matched, policy)


def _hold(waiver: Waiver, matched: Sequence[Finding], policy: Policy) -> _Standing:
    """A waiver that is in force against the results it matches."""
    needing = [finding for finding in matched if finding.state in ("not_satisfied", "inconclusive")]
    missing = [finding for finding in matched if finding.state == "not_measured"]
    beyond = [finding for finding in needing if _beyond(finding, waiver.ceiling)]
    if beyond:
        said = join([f"{place(finding)} measures {_estimate(finding, waiver.ceiling)}" for finding in beyond])
        return _Standing("exceeded", f"Exceeded: {said}, and it was granted for {_ceiling(waiver.ceiling, beyond[0])}.")
    unmeasured = f" What was not measured ({join([place(f) for f in missing])}) cannot be waived." if missing else ""
    stopping = [finding for finding in needing if policy.stopping(finding) is not None]
    if stopping:
        said = join([f"{place(finding)} measures {_estimate(finding, waiver.ceiling)}" for finding in stopping])
        near = [finding for finding in stopping if _reaches(finding, waiver.ceiling)]
        reach = f" The interval reaches beyond that ({join([place(f) for f in near])})." if near else ""
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


def matching(record: AuditRecord, check: str, where: str | None) -> list[Finding]:
    """Results that a waiver of `check` at `where` (``None``: everywhere) speaks of."""
    return [one for one in record.findings if one.check == check and (where is None or where in _names(one))]


def _names(finding: Finding) -> set[str]:
    """What a waiver may call the place of a result: its layer, its concept (all of them), else the class."""
    return {place(finding), ",".join(finding.concepts)} - {""}


def place(finding: Finding) -> str:
    """Where a result was measured: its layer, else its concepts, else its class."""
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
