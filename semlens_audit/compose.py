"""From a record to the pages: checks with their results, components with their pictures, where the relevance goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from semlens_audit.chapters import attachments, glossary, identities, method, reproduction, system, test_data
from semlens_audit.crosswalk_pages import crosswalk
from semlens_audit.data_pages import data_show
from semlens_audit.evidence_pages import Gallery
from semlens_audit.figures import Domain, Palette, axis, interval_line
from semlens_audit.intervention_pages import interventions
from semlens_audit.pages import (
    Badge,
    CheckRow,
    CheckTable,
    CheckView,
    EvidenceGroup,
    Fact,
    Page,
    ResultRow,
    Section,
    Summary,
    VerdictBox,
)
from semlens_audit.plan import Severity
from semlens_audit.record_file import record_digest
from semlens_audit.records import AuditRecord, Finding, State
from semlens_audit.relevance_pages import coverage, lines
from semlens_audit.sensitivity import sentence
from semlens_audit.sensitivity_pages import sensitivity
from semlens_audit.standing_pages import in_brief, standing_page
from semlens_audit.wording import (
    GLYPHS,
    KINDS,
    NARROW,
    STATES,
    Unit,
    capital,
    count,
    format_criterion,
    format_date,
    format_measured,
    format_value,
    join,
    shorten,
)

__all__ = ["make_page"]

_ORDER: dict[State, int] = {"not_satisfied": 0, "not_measured": 1, "inconclusive": 2, "satisfied": 3}
_WEIGHT: dict[Severity, int] = {"critical": 0, "major": 1, "minor": 2}
_PAGE = 257.0
"""Height of page one on paper, mm, less a little slack; the heights below are measured on it."""
_TITLE, _HEADLINE, _FACT, _LINE, _TABLE, _MORE, _PERSONS, _PERSON = 38.0, 6.0, 1.5, 3.9, 20.0, 7.0, 15.0, 8.5
_CHECK, _CHECK_LINE, _RESULT, _LABELLED = 6.5, 4.0, 8.9, 12.4
_SUMMARY_PER_CHECK = 4
_SUMMARY_AGREEMENT = 2
_PICTURED = 3
_PICTURED_PASSED = 2
_TABLE_WIDTH = 250
_CAPTIONS: dict[Unit, str] = {
    "share": "Mechanistic line of evidence: share of the class's relevance in a layer",
    "logits": "Behavioural line of evidence: change of the class margin, in logits, when the concept is present",
    "difference": "The data's line of evidence: differences between two shares of images, in percentage points (pp)",
    "cosine": "Clarity: likeness among the reference crops of a component, −1 to 1",
}
_PAIRS = "Counterfactual pairs: change of the class margin, in logits, when the concept is added to the same image"


@dataclass(frozen=True)
class _Check:
    """All findings of one check of the spec."""

    number: int
    findings: tuple[Finding, ...]
    first: Finding = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", self.findings[0])

    @property
    def anchor(self) -> str:
        return f"check-{self.number}"

    @property
    def state(self) -> State:
        """State of the result that needs most attention."""
        return min((finding.state for finding in self.findings), key=lambda state: _ORDER[state])

    @property
    def rank(self) -> tuple[int, int, int]:
        """Key that puts first what needs attention most."""
        return _ORDER[self.state], _WEIGHT[self.first.severity], self.number


def badge(state: State) -> Badge:
    """The badge of a state."""
    return Badge(state, GLYPHS[state], STATES[state])


class _Checks:
    """The record's checks as rows, tables and views."""

    def __init__(self, record: AuditRecord, palette: Palette) -> None:
        self.palette = palette
        self.labels = {concept.id: concept.label for concept in record.concepts}
        self.spec = str(record.spec.detail.get("file", record.spec.name))
        grouped: dict[str, list[Finding]] = {}
        for finding in record.findings:
            grouped.setdefault(finding.check, []).append(finding)
        self.checks = [_Check(i, tuple(found)) for i, found in enumerate(grouped.values(), start=1)]
        self.domains: dict[Unit, Domain] = {unit: Domain.over(unit, list(self._extent(record, unit))) for unit in _CAPTIONS}

    @staticmethod
    def _extent(record: AuditRecord, unit: Unit) -> Iterable[float]:
        for finding in record.findings:
            if finding.measurement.unit == unit:
                yield 1.4 * finding.criterion.threshold
                if finding.measurement.interval:
                    yield from (finding.measurement.interval.low, finding.measurement.interval.high)

    def ranked(self) -> list[_Check]:
        """Checks, those that need attention first."""
        return sorted(self.checks, key=lambda check: check.rank)

    def label(self, finding: Finding) -> str:
        """What tells a result from the others of its check."""
        return finding.layer or capital(join([self.labels[name] for name in finding.concepts])) or finding.class_name

    def result(self, finding: Finding, labelled: bool = False, width: int = _TABLE_WIDTH) -> ResultRow:
        """One result with its figure."""
        unit = finding.measurement.unit
        measured = format_measured(finding.measurement, finding.criterion)
        alt = f"{STATES[finding.state]}: {measured}; criterion {format_criterion(finding.criterion, unit)}."
        figure = interval_line(
            finding.measurement, finding.state, finding.criterion, self.domains[unit], self.palette, alt, width, labelled
        )
        samples = f"n = {finding.measurement.n:,}".replace(" ", NARROW)
        return ResultRow(badge(finding.state), self.label(finding), measured, samples, figure, finding.explanation)

    def row(self, check: _Check, shown: Sequence[Finding], labelled: bool) -> CheckRow:
        """A check with some of its results."""
        first, left_out = check.first, len(check.findings) - len(shown)
        others = [finding for finding in check.findings if finding not in shown]
        words = join(
            [
                f"{sum(f.state == s for f in others)}{NARROW}{STATES[s].lower()}"
                for s in _ORDER
                if any(f.state == s for f in others)
            ]
        )
        return CheckRow(
            anchor=check.anchor,
            check=first.check,
            statement=first.statement,
            criterion=format_criterion(first.criterion, first.measurement.unit),
            severity=first.severity,
            class_name=first.class_name,
            rationale=first.rationale,
            results=tuple(self.result(f, labelled and f is shown[-1]) for f in shown),
            hidden=f"Not shown here: {words}." if left_out else "",
        )

    def tables(self) -> tuple[CheckTable, ...]:
        """All checks with all results, one table a unit; counterfactual pairs have one of their own."""
        tables = []
        parts: list[tuple[Unit, bool, str]] = [(unit, False, caption) for unit, caption in _CAPTIONS.items()]
        parts.insert(2, ("logits", True, _PAIRS))
        for unit, paired, caption in parts:
            chosen = [
                c for c in self.checks if c.first.measurement.unit == unit and (c.first.line == "counterfactual") == paired
            ]
            rows = tuple(self.row(c, c.findings, False) for c in chosen)
            if rows:
                tables.append(CheckTable(caption, axis(self.domains[unit], self.palette, _TABLE_WIDTH), rows))
        return tuple(tables)

    def view(self, check: _Check, evidence: Callable[[Sequence[Finding]], tuple[EvidenceGroup, ...]]) -> CheckView:
        """A check in full; its evidence is that of the results which decide its state."""
        first = check.first
        unit = first.measurement.unit
        facts = [
            Fact("Criterion", format_criterion(first.criterion, unit)),
            Fact("Why this criterion", first.rationale),
            Fact("Quantity", f"{KINDS[first.kind]}, for {first.class_name}"),
        ]
        named = list(dict.fromkeys(self.labels[name] for finding in check.findings for name in finding.concepts))
        if named:
            facts.append(Fact("Concepts", capital(join(named))))
        facts.append(Fact("Severity", first.severity))
        if first.supports:
            facts.append(Fact("Supports evidence for", "; ".join(first.supports)))
        if first.spec_line is not None:
            facts.append(Fact("Asked for in", f"{self.spec}, line {first.spec_line}"))
        deciding = [finding for finding in check.findings if finding.state == check.state]
        return CheckView(
            anchor=check.anchor,
            badge=badge(check.state),
            check=first.check,
            statement=first.statement,
            axis=axis(self.domains[unit], self.palette, _TABLE_WIDTH),
            results=tuple(self.result(finding) for finding in check.findings),
            facts=tuple(facts),
            evidence=evidence(deciding),
        )


def _gap(finding: Finding) -> float:
    """Distance of the nearest end of the interval from the criterion, in the unit; for ordering satisfied results."""
    interval = finding.measurement.interval
    if interval is None:
        return 0.0
    return min(abs(interval.low - finding.criterion.threshold), abs(interval.high - finding.criterion.threshold))


def _lines(text: str, width: int) -> int:
    """Lines that `text` takes, at `width` characters a line."""
    return -(-len(text) // width)


def _summary_checks(checks: _Checks, room: float) -> tuple[tuple[CheckRow, ...], str, str]:
    """Rows of page one as far as `room` millimetres hold them, their caption, and what is said of the others."""
    ranked = checks.ranked()
    attention = [check for check in ranked if check.state != "satisfied"]
    rows: list[CheckRow] = []
    for check in attention or ranked:
        worst = sorted(check.findings, key=lambda f: (_ORDER[f.state], _gap(f) if f.state == "satisfied" else 0.0))
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
            gravest[name] = min(gravest.get(name, len(_ORDER)), _ORDER[finding.state])
    chosen = [
        line
        for name in sorted(gravest, key=lambda name: gravest[name])
        for line in record.verdict.agreement
        if line.startswith((f"{name}:", f"{name} ("))
    ]
    return tuple(chosen[:_SUMMARY_AGREEMENT])


def _summary(record: AuditRecord, checks: _Checks) -> Summary:
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
            "Inside the network, each component (neuron) was given a meaning by the image regions that drive it "
            "most; then the "
            "share of each decision that flows through components of each meaning was measured. From outside, it was "
            "measured how far the "
            "decision moves when a concept is present.",
        ),
        Fact(
            "How sure it is",
            f"Every number carries a {format_value('share', record.settings.confidence)} confidence interval. A "
            "result is satisfied only if the "
            "whole interval lies on the accepted side of its criterion, not satisfied only if it lies wholly beyond, "
            "and otherwise inconclusive.",
        ),
    ]
    if record.qualification is not None:
        facts.append(Fact("How often it is wrong", in_brief(record.qualification)))
    agreement = _agreement(record)
    if agreement:
        facts.append(Fact("Do both ways agree", " ".join(map(capital, agreement))))
    if hangs := sentence(record):
        facts.append(Fact("Does it hang on settings", hangs))
    room = _PAGE - _TITLE - _TABLE - _MORE - _PERSONS - _PERSON * max(1, len(record.responsible))
    room -= _HEADLINE * _lines(verdict.headline, 85) + sum(_FACT + _LINE * _lines(fact.text, 105) for fact in facts)
    rows, caption, more = _summary_checks(checks, room)
    return Summary(
        verdict=VerdictBox(badge(verdict.state), verdict.headline, counts, str(int(record.exit_code))),
        facts=tuple(facts),
        checks=rows,
        caption=caption,
        more=more,
        responsible=tuple((person.name, person.role, person.organisation or "") for person in record.responsible),
    )


def _sections(record: AuditRecord, palette: Palette, checks: _Checks, whole: str) -> tuple[Section, ...]:
    """All sections that have content, in order."""
    gallery = Gallery(record)
    attention = [check for check in checks.ranked() if check.state != "satisfied"]
    passed = [check for check in checks.checks if check.state == "satisfied"]
    bodies: list[tuple[str, str, object]] = [
        ("limitations", "Limitations: what this audit does not show", record.limitations),
        ("system", "Intended purpose, and what was asked", system(record)),
        ("identity", "Identity of what was audited", identities(record)),
        ("results", "Results", checks.tables()),
        (
            "attention",
            "What needs attention, with evidence",
            tuple(checks.view(c, lambda f: gallery.of(f, _PICTURED) + gallery.meaning(f, _PICTURED)) for c in attention),
        ),
        ("lines", "Two lines of evidence", lines(record, palette) if record.effects else None),
        (
            "presence",
            "What the data show",
            data_show(record, palette) if record.presence_in_data or record.pair_effects else None,
        ),
        ("intervention", "What happens when the components are switched off", interventions(record, palette)),
        ("coverage", "Coverage: what the decisions rest on", coverage(record, palette, gallery)),
        ("sensitivity", "What the verdict hangs on", sensitivity(record)),
        ("qualification", "How often this instrument is wrong", standing_page(record)),
        ("method", "Method, validity and calibration", method(record)),
        (
            "passed",
            "Satisfied checks, with evidence",
            tuple(checks.view(c, lambda f: gallery.of(f, _PICTURED_PASSED)) for c in passed),
        ),
        ("data", "Test data", test_data(record)),
        ("crosswalk", "Crosswalk to standards and regulations", crosswalk(record)),
        ("reproduction", "Environment and reproduction", reproduction(record)),
        ("glossary", "Glossary", glossary()),
        ("attachments", "Record and digests", attachments(record, whole)),
    ]
    present = [entry for entry in bodies if entry[2] not in (None, ())]
    return tuple(Section(i, name, title, f"{name}.html.j2", body) for i, (name, title, body) in enumerate(present, start=1))


def make_page(record: AuditRecord, palette: Palette) -> Page:
    """Everything a report of `record` shows.

    Parameters
    ----------
    record
        What was found.
    palette
        Colours of the medium the report is for.
    """
    whole = record_digest(record)
    checks = _Checks(record, palette)
    return Page(
        title=record.title,
        kicker="Audit of what a vision model has learned",
        created=format_date(record.created),
        created_iso=record.created,
        tool=f"{record.tool.name} {record.tool.version}",
        digest_short=shorten(whole),
        verdict=badge(record.verdict.state),
        authors=join([person.name for person in record.responsible]),
        summary=_summary(record, checks),
        sections=_sections(record, palette, checks, whole),
    )
