"""The checks of a record as a report shows them: rows of the results matrix, and each check in full with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from semlens_audit.crosswalk_pages import controls_named
from semlens_audit.facets import Marks
from semlens_audit.figures import Domain, Palette, axis, interval_line
from semlens_audit.pages import Badge, CheckRow, CheckTable, CheckView, EvidenceGroup, Fact, ResultRow
from semlens_audit.plan import Severity
from semlens_audit.records import AuditRecord, Finding, State
from semlens_audit.wording import (
    GLYPHS,
    KINDS,
    NARROW,
    STATES,
    Unit,
    capital,
    format_criterion,
    format_measured,
    join,
)

__all__ = ["SEVERITY_ORDER", "STATE_ORDER", "Check", "Checks", "badge", "clearance", "gap", "release_words"]

STATE_ORDER: dict[State, int] = {"not_satisfied": 0, "not_measured": 1, "inconclusive": 2, "satisfied": 3}
"""What needs attention first, first."""
SEVERITY_ORDER: dict[Severity, int] = {"critical": 0, "major": 1, "minor": 2}
STOPS = "stops the release"
_TABLE_WIDTH = 250
_PARTS: dict[str, str] = {
    "share": "Inside the network: share of the class's relevance in a layer (mechanistic line of evidence)",
    "logits": "From outside: change of the class margin, in logits, when the concept is present (behavioural line of evidence)",
    "pairs": "From outside: change of the class margin, in logits, when the concept is added to the same image (counterfactual pairs)",
    "difference": "In the test data: differences between two shares of images, in percentage points (pp)",
    "clarity": "Clarity: likeness among the reference crops of a component, −1 to 1",
    "polysemanticity": "Polysemanticity: distance of the two groups into which the reference crops of a component fall, 0 to 1",
    "redundancy": "Redundancy: likeness of a component to the most similar other one of its layer, −1 to 1",
}
"""What the results are parted by, a unit or a kind of it -> caption of their table."""


@dataclass(frozen=True)
class Check:
    """All findings of one check of the spec."""

    number: int
    findings: tuple[Finding, ...]
    first: Finding = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", self.findings[0])

    @property
    def anchor(self) -> str:
        """Of the place that shows the check in full."""
        return f"check-{self.number}"

    @property
    def state(self) -> State:
        """State of the result that needs most attention."""
        return min((finding.state for finding in self.findings), key=lambda state: STATE_ORDER[state])

    @property
    def rank(self) -> tuple[int, int, int]:
        """Key that puts first what needs attention most."""
        return STATE_ORDER[self.state], SEVERITY_ORDER[self.first.severity], self.number


def badge(state: State) -> Badge:
    """The badge of a state."""
    return Badge(state, GLYPHS[state], STATES[state])


def gap(finding: Finding) -> float:
    """Distance of the nearest end of the interval from the criterion, in the unit; for ordering satisfied results."""
    interval = finding.measurement.interval
    if interval is None:
        return 0.0
    return min(abs(interval.low - finding.criterion.threshold), abs(interval.high - finding.criterion.threshold))


def clearance(finding: Finding) -> float | None:
    """How clear a result is: distance of the value from the criterion in half widths of the interval, negative beyond it.

    Comparable across units; from -1 to 1 the interval reaches over the criterion. None where nothing was measured.
    """
    value, interval = finding.measurement.value, finding.measurement.interval
    if value is None or interval is None:
        return None
    inside = finding.criterion.threshold - value if finding.criterion.operator == "at_most" else value - finding.criterion.threshold
    half = (interval.high - interval.low) / 2
    if half <= 0:
        return 0.0 if inside == 0 else 1e6 if inside > 0 else -1e6
    return min(max(inside / half, -1e6), 1e6)


def release_words(record: AuditRecord) -> dict[str, str]:
    """`Finding.id` -> what the result means for the release, where it means anything; empty without a gate."""
    gate = record.gate
    if gate is None:
        return {}
    return {
        **dict.fromkeys(gate.tolerated, "tolerated by policy"),
        **dict.fromkeys(gate.waived, "waived"),
        **dict.fromkeys(gate.stopped_by, STOPS),
    }


def _part(finding: Finding) -> str:
    """Key of `_PARTS`."""
    if finding.line == "counterfactual":
        return "pairs"
    return finding.kind if finding.measurement.unit == "cosine" else finding.measurement.unit


class Checks:
    """The record's checks as rows, tables and views."""

    def __init__(self, record: AuditRecord, palette: Palette) -> None:
        self.palette = palette
        self.release = release_words(record)
        self.labels = {concept.id: concept.label for concept in record.concepts}
        self.catalogues = record.catalogues
        self.spec = str(record.spec.detail.get("file", record.spec.name))
        grouped: dict[str, list[Finding]] = {}
        for finding in record.findings:
            grouped.setdefault(finding.check, []).append(finding)
        self.checks = [Check(i, tuple(found)) for i, found in enumerate(grouped.values(), start=1)]
        self.domains: dict[Unit, Domain] = {unit: Domain.over(unit, list(self._extent(record, unit))) for unit in get_args(Unit)}

    @staticmethod
    def _extent(record: AuditRecord, unit: Unit) -> Iterable[float]:
        for finding in record.findings:
            if finding.measurement.unit == unit:
                yield 1.4 * finding.criterion.threshold
                if finding.measurement.interval:
                    yield from (finding.measurement.interval.low, finding.measurement.interval.high)

    def ranked(self) -> list[Check]:
        """Checks, those that need attention first."""
        return sorted(self.checks, key=lambda check: check.rank)

    def stops(self, check: Check) -> bool:
        """Whether a result of the check stops the release."""
        return any(self.release.get(finding.id) == STOPS for finding in check.findings)

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
        return ResultRow(
            badge=badge(finding.state),
            label=self.label(finding),
            measured=measured,
            samples=samples,
            figure=figure,
            explanation=finding.explanation,
            release=self.release.get(finding.id, ""),
            marks=self.marks(finding),
        )

    def marks(self, finding: Finding) -> Marks:
        """What a reader can filter and sort a result by."""
        value, clear = finding.measurement.value, clearance(finding)
        return Marks(
            finding=finding.id,
            state=finding.state,
            class_name=finding.class_name,
            layer=finding.layer or "",
            concepts=" ".join(finding.concepts),
            severity=finding.severity,
            line=finding.line,
            release=self.release.get(finding.id, ""),
            value="" if value is None else f"{value:.9g}",
            clearance="" if clear is None else f"{clear:.6g}",
        )

    def row(self, check: Check, shown: Sequence[Finding], labelled: bool, alike: Check | None = None) -> CheckRow:
        """A check with some of its results; `alike` is an earlier one with the same reason."""
        first, left_out = check.first, len(check.findings) - len(shown)
        others = [finding for finding in check.findings if finding not in shown]
        words = join(
            [
                f"{sum(f.state == s for f in others)}{NARROW}{STATES[s].lower()}"
                for s in STATE_ORDER
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
            rationale="" if alike else first.rationale,
            same_reason=(alike.anchor, alike.first.check) if alike else None,
            results=tuple(self.result(f, labelled and f is shown[-1]) for f in shown),
            hidden=f"Not shown here: {words}." if left_out else "",
        )

    def tables(self) -> tuple[CheckTable, ...]:
        """All checks with all results, one table a unit; counterfactual pairs and each measure of components have one of their own."""
        tables = []
        for part, caption in _PARTS.items():
            chosen = [check for check in self.checks if _part(check.first) == part]
            rows, reasons = [], dict[str, Check]()
            for c in chosen:
                rows.append(self.row(c, c.findings, False, reasons.get(c.first.rationale)))
                reasons.setdefault(c.first.rationale, c)
            if rows:
                domain = self.domains[chosen[0].first.measurement.unit]
                tables.append(CheckTable(caption, axis(domain, self.palette, _TABLE_WIDTH), tuple(rows)))
        return tuple(tables)

    def view(self, check: Check, evidence: Callable[[Sequence[Finding]], tuple[EvidenceGroup, ...]]) -> CheckView:
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
            facts.append(Fact("Supports evidence for", controls_named(first.supports, self.catalogues)))
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
