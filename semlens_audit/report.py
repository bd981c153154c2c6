"""From a record to a report: one offline HTML file and one PDF. Reads no clock and no environment."""

from __future__ import annotations

from pathlib import Path

from semlens_audit.attachments import attachments_of
from semlens_audit.compose import make_page
from semlens_audit.figures import PAPER, SCREEN
from semlens_audit.pages import Page
from semlens_audit.record_file import record_digest
from semlens_audit.records import AuditRecord
from semlens_audit.rendering import ON_SCREEN, environment, render, replace, report_file, script_hash

__all__ = [
    "ON_PAPER",
    "ON_SCREEN",
    "environment",
    "render_html",
    "render_page",
    "render_pdf",
    "render_template",
    "replace",
    "script",
    "script_hash",
    "write",
    "write_pdf",
]

_SCRIPT = "report.js"
ON_PAPER = ("style.css", "paper.css")


def render_page(page: Page, sheets: tuple[str, ...]) -> str:
    """A page with its style sheets and typefaces inside it."""
    return render_template("report.html.j2", page, sheets, script() if sheets == ON_SCREEN else "")


def script() -> str:
    """What filters and sorts a report on screen; a report is complete without it."""
    return report_file(_SCRIPT).read_text(encoding="utf-8")


def render_template(template: str, page: object, sheets: tuple[str, ...], script: str = "") -> str:
    """Any page through the template of that name, with its style sheets, typefaces and script inside it."""
    return render(template, sheets, script, page=page)


def render_html(record: AuditRecord) -> str:
    """The report as one HTML file that needs no other file and makes no request.

    Parameters
    ----------
    record
        What was found.

    Returns
    -------
    str
        The same text for the same record, on every machine.
    """
    return render_page(make_page(record, SCREEN), ON_SCREEN)


def render_pdf(record: AuditRecord) -> bytes:
    """The report as PDF, the same bytes for the same record under the same versions of WeasyPrint and Pango.

    Raises
    ------
    AuditError
        Slug ``pango-missing`` where the text layout library is not installed; ``missing-glyph`` where no installed
        typeface has a character of the record.
    """
    from semlens_audit.pdf import to_pdf

    html = render_page(make_page(record, PAPER), ON_PAPER)
    return to_pdf(html, record_digest(record), record.created, attachments_of(record))


def write(record: AuditRecord, directory: Path, pdf: bool = True) -> list[Path]:
    """Write ``report.html`` and, if asked, ``report.pdf`` into `directory`, each in one step.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    AuditError
        As `render_pdf`; the HTML file is written by then.
    """
    directory.mkdir(parents=True, exist_ok=True)
    html = directory / "report.html"
    replace(html, render_html(record).encode("utf-8"))
    written = [html]
    if pdf:
        written.append(write_pdf(record, directory))
    return written


def write_pdf(record: AuditRecord, directory: Path) -> Path:
    """Write ``report.pdf`` into `directory` in one step; raises as `render_pdf`."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / "report.pdf"
    replace(target, render_pdf(record))
    return target
