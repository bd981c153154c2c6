"""Page one of a report, which stands alone: the verdict, the decision on the release, and what the reader must know of both."""

from __future__ import annotations

from semlens_audit.check_pages import STATE_ORDER, Checks, badge, gap
from semlens_audit.errors import ExitCode
from semlens_audit.pages import CheckRow, Fact, GateBox, Summary, VerdictBox
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import GateOutcome, GateRecord
from semlens_audit.sensitivity import sentence
from semlens_audit.standing_pages import in_brief
from semlens_audit.wording import NARROW, capital, count, format_date, format_value, join

__all__ = ["gate_words", "summary"]

_PAGE = 261.0
"""Height of page one on paper, mm, less a little slack; the heights below are measured on it."""
_TITLE, _HEADLINE, _FACT, _LINE, _TABLE, _MORE, _PERSONS, _PERSON, _GATE = 38.0, 6.0, 1.5, 3.9, 20.0, 7.0, 19.0, 8.5, 7.0
_CHECK, _CHECK_LINE, _RESULT, _LABELLED = 6.5, 4.0, 8.9, 12.4
_SUMMARY_PER_CHECK = 4
_SUMMARY_AGREEMENT = 2
_OUTCOMES: dict[GateOutcome, tuple[str, str]] = {
    "passed": ("✓", "passed"),
    "conditional": ("!", "conditional"),
    "failed": ("✗", "failed"),
    "inconclusive": ("≈", "inconclusive"),
    "incomplete": ("○", "incomplete"),
    "invalid_waiver": ("✗", "invalid waiver"),
}
_EXITS: dict[ExitCode, str] = {
    ExitCode.SATISFIED: "nothing stops the release",
    ExitCode.NOT_SATISFIED: "a result is not satisfied",
    ExitCode.INCONCLUSIVE: "a result is inconclusive",
    ExitCode.INCOMPLETE: "something was not measured",
    ExitCode.WAIVER: "a waiver does not hold",
    ExitCode.INTEGRITY: "something does not match its digest",
}
_INCONCLUSIVE = {
    "inconclusive": "an inconclusive result ends with exit code 3",
    "fail": "an inconclusive result counts as not satisfied",
    "pass": "an inconclusive result does not stop the release",
}
_STOPS = {
    "critical": "Only critical results that are not satisfied stop the release",
    "major": "Critical and major results that are not satisfied stop the release",
    "minor": "Every result that is not satisfied stops the release",
}
_NO_LOCK = (
    "No. The audit did not run under a lock, so nothing here shows that criteria, settings and data were fixed before results were seen."
)
_NO_BASELINE = "Not compared: no earlier record was given as a baseline."
_SIGNATURES = (
    "Signatures are digital and belong to the PDF: a PDF reader lists them, and “semlens-audit verify” checks them. A name in this table "
    "is no signature."
)


def gate_words(gate: GateRecord | None) -> str:
    """``gate conditional``, for the foot of every page; empty without a gate."""
    return "" if gate is None else f"gate {_OUTCOMES[gate.outcome][1]}"


def _gate(gate: GateRecord | None) -> GateBox | None:
    if gate is None:
        return None
    glyph, word = _OUTCOMES[gate.outcome]
    numbers = [
        f"{count(len(names), 'result')} {words}"
        for names, words in (
            (gate.stopped_by, "stopped it"), (gate.waived, "waived"), (gate.tolerated, "tolerated by policy")
        )
        if names
    ]
    policy = f"{_STOPS[gate.fail_on]}; {_INCONCLUSIVE[gate.on_inconclusive]}. Waivers as of {format_date(gate.today)}."
    return GateBox(gate.outcome, glyph, word, gate.sentence, f"{policy} {capital(join(numbers))}." if numbers else policy)


def _lines(text: str, width: int) -> int:
    """Lines that `text` takes, at `width` characters a line."""
    return -(-len(text) // width)


def _summary_checks(checks: Checks, room: float) -> tuple[tuple[CheckRow, ...], str, str]:
    """Rows of page one as far as `room` millimetres hold them, their caption, and what is said of the others."""
    ranked = sorted(checks.ranked(), key=lambda check: not checks.stops(check))
    attention = [check for check in ranked if check.state != "satisfied"]
    rows: list[CheckRow] = []
    for check in attention or ranked:
        worst = sorted(check.findings, key=lambda f: (STATE_ORDER[f.state], gap(f) if f.state == "satisfied" else 0.0))
        wanted = [f for f in worst if f.state != "satisfied"] if attention else worst[:1]
        row = checks.row(check, wanted[:_SUMMARY_PER_CHECK], labelled=True)
        head = f"{row.statement} {row.class_name} {row.severity} {row.criterion} {row.hidden}"
        room -= _CHECK + _CHECK_LINE * (_lines(head, 125) - 1) + _RESULT * (len(row.results) - 1) + _LABELLED
        if room < 0 and rows:
            break
        rows.append(row)
    left = len(attention or ranked) - len(rows)
    caption = "What needs attention" if attention else "Each check's result nearest to its criterion"
    more = f"{count(left, 'more check')} of this kind" if left else ""
    return tuple(rows), caption, more


def _agreement(record: AuditRecord) -> tuple[str, ...]:
    """Sentences on the agreement of both lines that concern a concept some result speaks against, the gravest first."""
    labels = {concept.id: concept.label for concept in record.concepts}
    gravest: dict[str, int] = {}
    for finding in record.findings:
        if finding.state != "satisfied" and len(finding.concepts) == 1:
            name = labels[finding.concepts[0]]
            gravest[name] = min(gravest.get(name, len(STATE_ORDER)), STATE_ORDER[finding.state])
    chosen = [
        line
        for name in sorted(gravest, key=lambda name: gravest[name])
        for line in record.verdict.agreement
        if line.startswith((f"{name}:", f"{name} ("))
    ]
    return tuple(chosen[:_SUMMARY_AGREEMENT])


def summary(record: AuditRecord, checks: Checks) -> Summary:
    """Page one of `record`; rows of results as far as the page holds them."""
    verdict, subject, data = record.verdict, record.subject, record.data
    numbers = {
        "not satisfied": verdict.not_satisfied,
        "not measured": verdict.not_measured,
        "inconclusive": verdict.inconclusive,
        "satisfied": verdict.satisfied,
    }
    parts = [f"{number}{NARROW}{word}" for word, number in numbers.items() if number]
    counts = f"{count(len(checks.checks), 'check')} with {count(len(record.findings), 'result')}: {join(parts)}"
    if not record.findings:
        counts = "No check was evaluated"
    name = f"{subject.name}, version {subject.version}" if subject.version else subject.name
    small = len(data.per_class) <= 8
    held = (
        join([f"{number:,} {label}" for label, number in data.per_class.items()])
        if small
        else count(len(data.per_class), "class", "classes")
    )
    accuracy = (
        ""
        if subject.accuracy is None
        else f" It names the right class for {format_value('share', subject.accuracy, 1)} of them."
    )
    classes = join(list(dict.fromkeys(finding.class_name for finding in record.findings))) or "the declared classes"
    facts = [
        Fact(
            "What was audited",
            f"{name}: {subject.architecture}, {subject.parameters:,} parameters, on {count(data.samples, 'image')} "
            f"({held}).{accuracy}",
        ),
        Fact(
            "What was asked",
            f"{record.spec.detail.get('title', record.spec.name)}: do decisions for {classes} rest on what they may "
            "rest on, and not on "
            "what they must not? The acceptance criteria were set in the spec, each with its reason.",
        ),
        Fact(
            "How it was measured",
            "Inside the network, each component (neuron) was given a meaning by the image regions that drive it most, and the share of "
            "each decision that flows through components of each meaning was measured; from outside, how far the decision moves when a "
            "concept is present.",
        ),
        Fact(
            "How sure it is",
            f"Every number carries a {format_value('share', record.settings.confidence)} confidence interval, and the whole interval must "
            "lie on the accepted side of its criterion. One that reaches over it is inconclusive, which is not a pass.",
        ),
    ]
    if record.qualification is not None:
        facts.append(Fact("How often it is wrong", in_brief(record.qualification)))
    agreement = _agreement(record)
    if agreement:
        facts.append(Fact("Do both ways agree", " ".join(map(capital, agreement))))
    if hangs := sentence(record):
        facts.append(Fact("Does it hang on settings", hangs))
    facts.append(Fact("Fixed beforehand", record.lock.sentence if record.lock is not None else _NO_LOCK))
    facts.append(Fact("Since the last release", record.change.sentence if record.change is not None else _NO_BASELINE))
    gate = _gate(record.gate)
    room = _PAGE - _TITLE - _TABLE - _MORE - _PERSONS - _PERSON * max(1, len(record.responsible))
    room -= _HEADLINE * _lines(verdict.headline, 85) + sum(_FACT + _LINE * _lines(fact.text, 105) for fact in facts)
    if gate is not None:
        room -= _GATE + _LINE * _lines(f"{gate.sentence} {gate.policy}", 105)
    rows, caption, more = _summary_checks(checks, room)
    return Summary(
        verdict=VerdictBox(
            badge(verdict.state), verdict.headline, counts, f"{int(record.exit_code)} ({_EXITS[record.exit_code]})", gate
        ),
        facts=tuple(facts),
        checks=rows,
        caption=caption,
        more=more,
        responsible=tuple((person.name, person.role, person.organisation or "") for person in record.responsible),
        signatures=_SIGNATURES,
    )
