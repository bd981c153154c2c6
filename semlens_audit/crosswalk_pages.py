"""The crosswalk of a report: which clauses of standards and regulations it gives evidence for, and which it gives none for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semlens_audit.pages import Badge, Table
from semlens_audit.records import AuditRecord, State
from semlens_audit.release_records import CatalogueRecord, ClauseRecord
from semlens_audit.wording import GLYPHS, STATES, count

__all__ = ["SECTIONS", "CatalogueView", "CheckGroup", "CheckLink", "ClauseView", "Crosswalk", "SectionLink", "controls_named", "crosswalk"]

_ORDER: tuple[State, ...] = ("not_satisfied", "not_measured", "inconclusive", "satisfied")
_NAMED = 6
_SHORT = re.compile(r",| \(")
"""Where the short form of a title ends."""


def _always(record: AuditRecord) -> bool:
    return True


SECTIONS: dict[str, tuple[str, str, Callable[[AuditRecord], bool]]] = {
    "summary": ("summary", "page one", _always),
    "limitations": ("limitations", "limitations", lambda record: bool(record.limitations)),
    "system": ("system", "intended purpose", _always),
    "identity": ("identity", "identity", _always),
    "results": ("results", "results", lambda record: bool(record.findings)),
    "attention": ("attention", "failures and open questions", lambda record: any(f.state != "satisfied" for f in record.findings)),
    "lines": ("lines", "two lines of evidence", lambda record: bool(record.effects)),
    "intervention": ("intervention", "interventions", lambda record: bool(record.interventions)),
    "waivers": ("waivers", "waivers", lambda record: bool(record.waivers)),
    "change": ("change", "change", lambda record: record.change is not None and record.change.refused is None),
    "coverage": ("coverage", "coverage", lambda record: bool(record.class_layers)),
    "method": ("method", "method", _always),
    "qualification": ("qualification", "how often it is wrong", lambda r: r.qualification is not None and bool(r.qualification.rates)),
    "presence": ("presence", "what the data show", lambda record: bool(record.presence_in_data)),
    "data": ("data", "test data", _always),
    "lock": ("identity", "lock", lambda record: record.lock is not None and record.lock.state == "kept"),
    "reproduction": ("reproduction", "reproduction", _always),
    "glossary": ("glossary", "glossary", _always),
    "attachments": ("attachments", "attachments", _always),
}
"""Name that a catalogue uses -> anchor, title in the crosswalk, and whether a record has what that section would show."""


@dataclass(frozen=True)
class CheckLink:
    """A check, by name."""

    anchor: str
    check: str


@dataclass(frozen=True)
class CheckGroup:
    """Checks of one state that support evidence for a clause."""

    badge: Badge
    number: str
    named: tuple[CheckLink, ...]
    """Those that are named; the satisfied ones only where they are few."""
    more: str


@dataclass(frozen=True)
class SectionLink:
    """A section of the report that is evidence."""

    anchor: str
    title: str


@dataclass(frozen=True)
class ClauseView:
    """One clause with its evidence."""

    title: str
    summary: str
    checks: tuple[CheckGroup, ...]
    sections: tuple[SectionLink, ...]
    missing: str
    """What would be evidence, but this audit does not have; empty if nothing."""
    note: str


@dataclass(frozen=True)
class CatalogueView:
    """One standard or regulation."""

    title: str
    edition: str
    source: str
    covered: str
    clauses: tuple[ClauseView, ...]


@dataclass(frozen=True)
class Crosswalk:
    """All catalogues that the spec's checks refer to."""

    overview: Table
    catalogues: tuple[CatalogueView, ...]


def crosswalk(record: AuditRecord) -> Crosswalk | None:
    """Clauses with the checks and sections that support evidence for them; none where no check names a clause."""
    if not record.catalogues:
        return None
    catalogues = tuple(_catalogue(record, catalogue) for catalogue in record.catalogues)
    return Crosswalk(_overview(catalogues), catalogues)


def controls_named(supports: Sequence[str], catalogues: Sequence[CatalogueRecord]) -> str:
    """Clauses as a reader knows them: ``EU AI Act Art. 9(6), Art. 15(4); ISO 14971 5.5``; what no catalogue has, as it is written."""
    places = {f"{one.id}:{clause.id}": (one, clause) for one in catalogues for clause in one.clauses}
    named: dict[str, list[str]] = {}
    for control in supports:
        catalogue, clause = places.get(control, (None, None))
        if catalogue is None or clause is None:
            named.setdefault(control, [])
        else:
            named.setdefault(_SHORT.split(catalogue.title)[0], []).append(clause.title.partition(":")[0])
    return "; ".join(" ".join(filter(None, [title, ", ".join(clauses)])) for title, clauses in named.items())


def _overview(catalogues: Sequence[CatalogueView]) -> Table:
    rows = []
    for catalogue in catalogues:
        checks = sum(bool(clause.checks) for clause in catalogue.clauses)
        sections = sum(bool(clause.sections) and not clause.checks for clause in catalogue.clauses)
        every = len(catalogue.clauses)
        rows.append((catalogue.title, str(every), str(checks), str(sections), str(every - checks - sections)))
    return Table(
        "Coverage: how many clauses have evidence in this report",
        ("Standard or regulation", "Clauses listed", "With evidence from checks", "From sections only", "Without evidence"),
        tuple(rows),
        numeric=(1, 2, 3, 4),
    )


def _catalogue(record: AuditRecord, catalogue: CatalogueRecord) -> CatalogueView:
    clauses = tuple(_clause(record, catalogue, clause) for clause in catalogue.clauses)
    with_evidence = sum(bool(clause.checks or clause.sections) for clause in clauses)
    by_checks = sum(bool(clause.checks) for clause in clauses)
    return CatalogueView(
        title=catalogue.title,
        edition=catalogue.edition,
        source=catalogue.source,
        covered=(
            f"Evidence for {with_evidence} of the {count(len(clauses), 'clause')} listed, for {by_checks} of them from checks; "
            f"none for {len(clauses) - with_evidence}."
        ),
        clauses=clauses,
    )


def _clause(record: AuditRecord, catalogue: CatalogueRecord, clause: ClauseRecord) -> ClauseView:
    known = [SECTIONS[name] for name in clause.sections if name in SECTIONS]
    return ClauseView(
        title=clause.title,
        summary=clause.summary,
        checks=_checks(record, f"{catalogue.id}:{clause.id}"),
        sections=tuple(SectionLink(anchor, title) for anchor, title, shown in known if shown(record)),
        missing=", ".join(title for _, title, shown in known if not shown(record)),
        note=clause.note or "",
    )


def _checks(record: AuditRecord, name: str) -> tuple[CheckGroup, ...]:
    """The checks that name a clause, by their gravest state."""
    anchors = {check: f"check-{i}" for i, check in enumerate(dict.fromkeys(f.check for f in record.findings), start=1)}
    states: dict[str, State] = {}
    for finding in record.findings:
        if name in finding.supports:
            states[finding.check] = min((finding.state, states.get(finding.check, finding.state)), key=_ORDER.index)
    groups = []
    for state in _ORDER:
        found = [check for check, gravest in states.items() if gravest == state]
        if found:
            named = found[:_NAMED] if state != "satisfied" or len(found) <= 2 else []
            more = f"and {len(found) - len(named)} more" if named and len(found) > len(named) else ""
            links = tuple(CheckLink(anchors[check], check) for check in named)
            groups.append(CheckGroup(Badge(state, GLYPHS[state], STATES[state].lower()), str(len(found)), links, more))
    return tuple(groups)
