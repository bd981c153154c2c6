"""From a record to the pages of a report, section by section."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.attachment_pages import attachments_page
from semlens_audit.change_pages import change
from semlens_audit.chapters import glossary, identities, method, reproduction, system, test_data
from semlens_audit.check_pages import Check, Checks, badge
from semlens_audit.crosswalk_pages import crosswalk
from semlens_audit.data_pages import data_show
from semlens_audit.evidence_pages import Gallery
from semlens_audit.figures import Palette
from semlens_audit.filter_pages import filters
from semlens_audit.intervention_pages import interventions
from semlens_audit.pages import CheckView, Page, Section
from semlens_audit.record_file import record_digest
from semlens_audit.records import AuditRecord
from semlens_audit.relevance_pages import coverage, lines
from semlens_audit.sensitivity_pages import sensitivity
from semlens_audit.standing_pages import standing_page
from semlens_audit.summary_pages import gate_words, summary
from semlens_audit.waiver_pages import waivers
from semlens_audit.wording import format_date, join, shorten

__all__ = ["make_page"]

_PICTURED = 3
_PICTURED_PASSED = 2


@dataclass(frozen=True)
class _Chapter:
    """A section as far as it is known before it has a number."""

    anchor: str
    title: str
    body: object
    """None or empty: the record has nothing to show here."""
    absent: str = ""
    """What is said where the record has nothing to show; empty: the section is left out."""


def _attention(checks: Checks, gallery: Gallery) -> tuple[CheckView, ...]:
    """Checks that are not satisfied, the gravest first, each with the pictures of its components."""

    def full(check: Check) -> CheckView:
        return checks.view(check, lambda f: gallery.of(f, _PICTURED) + gallery.meaning(f, _PICTURED))

    return tuple(full(check) for check in checks.ranked() if check.state != "satisfied")


def _sections(record: AuditRecord, palette: Palette, checks: Checks, whole: str) -> tuple[Section, ...]:
    """All sections in order; those that a record has nothing for are left out, or say why they are empty."""
    # A component's pictures stand where it is first shown, so the order of these lines is part of the document.
    gallery = Gallery(record)
    passed = [check for check in checks.checks if check.state == "satisfied"]
    chapters = [
        _Chapter("limitations", "Limitations: what this audit does not show", record.limitations),
        _Chapter("system", "Intended purpose, and what was asked", system(record)),
        _Chapter("identity", "Identity of what was audited", identities(record)),
        _Chapter("results", "Results", checks.tables(), "No check was evaluated: there is no result to show."),
        _Chapter(
            "attention",
            "Failures and open questions, with their evidence",
            _attention(checks, gallery),
            "Every result is satisfied: nothing failed, nothing is inconclusive, nothing was left unmeasured." if record.findings else "",
        ),
        _Chapter("lines", "Two lines of evidence", lines(record, palette) if record.effects else None),
        _Chapter("intervention", "What happens when the components are switched off", interventions(record, palette)),
        _Chapter("sensitivity", "What the verdict hangs on", sensitivity(record)),
        _Chapter(
            "waivers",
            "Waivers",
            waivers(record),
            "No waiver was declared: every result counts as it was found.",
        ),
        _Chapter(
            "change",
            "Change since the last release",
            change(record, palette),
            "No earlier record was given as a baseline, so nothing is said about what is new, fixed or worse than before.",
        ),
        _Chapter("coverage", "Coverage: what the decisions rest on", coverage(record, palette, gallery)),
        _Chapter("method", "Method, validity and calibration", method(record)),
        _Chapter("qualification", "How often this instrument is wrong", standing_page(record)),
        _Chapter(
            "passed",
            "Satisfied checks, with their evidence",
            tuple(checks.view(check, lambda f: gallery.of(f, _PICTURED_PASSED)) for check in passed),
            "No check is satisfied with all its results." if record.findings else "",
        ),
        _Chapter("data", "Test data", test_data(record)),
        _Chapter(
            "presence",
            "What the data show",
            data_show(record, palette) if record.presence_in_data or record.pair_effects else None,
        ),
        _Chapter("crosswalk", "Crosswalk to standards and regulations", crosswalk(record)),
        _Chapter("reproduction", "Environment and reproduction", reproduction(record)),
        _Chapter("glossary", "Glossary", glossary(record)),
        _Chapter("attachments", "Attachments and digests", attachments_page(record, whole, on_paper=not palette.inline)),
    ]
    sections: list[Section] = []
    for chapter in chapters:
        number = len(sections) + 1
        if chapter.body not in (None, ()):
            sections.append(Section(number, chapter.anchor, chapter.title, f"{chapter.anchor}.html.j2", chapter.body))
        elif chapter.absent:
            sections.append(Section(number, chapter.anchor, chapter.title, "absent.html.j2", chapter.absent))
    return tuple(sections)


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
    verdict = badge(record.verdict.state)
    checks = Checks(record, palette)
    return Page(
        title=record.title,
        kicker="Audit of what a vision model has learned",
        created=format_date(record.created),
        created_iso=record.created,
        tool=f"{record.tool.name} {record.tool.version}",
        digest_short=shorten(whole),
        verdict=verdict,
        authors=join([person.name for person in record.responsible]),
        running=" · ".join(part for part in (f"{verdict.glyph} {verdict.word}", gate_words(record.gate)) if part),
        summary=summary(record, checks),
        filters=filters(record) if palette.inline else None,
        sections=_sections(record, palette, checks, whole),
    )
