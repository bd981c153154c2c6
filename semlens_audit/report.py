"""From a record to a report: one offline HTML file and one PDF. Reads no clock and no environment."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import tempfile
from pathlib import Path

import jinja2
from markupsafe import Markup

from semlens_audit.attachments import attachments_of
from semlens_audit.compose import make_page
from semlens_audit.figures import PAPER, SCREEN
from semlens_audit.pages import Page
from semlens_audit.plain_text import visible
from semlens_audit.record_file import record_digest
from semlens_audit.records import AuditRecord
from semlens_audit.resources import templates_dir

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

ON_SCREEN = ("style.css", "screen.css")
_SCRIPT = "report.js"
ON_PAPER = ("style.css", "paper.css")
_FACES = (
    ("Audit Sans", 400, "normal", "audit-sans-regular.woff2"),
    ("Audit Sans", 400, "italic", "audit-sans-italic.woff2"),
    ("Audit Sans", 600, "normal", "audit-sans-semibold.woff2"),
    ("Audit Mono", 400, "normal", "audit-mono-regular.woff2"),
)


@functools.cache
def _folder() -> Path:
    return templates_dir() / "report"


def _shown(value: object) -> object:
    """What a template prints: plain text with hidden characters written out; markup made here stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def environment() -> jinja2.Environment:
    """Templates: everything escaped, hidden characters written out, an unknown name an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_folder()),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@functools.cache
def _fonts() -> str:
    faces = []
    for family, weight, style, name in _FACES:
        data = base64.b64encode((_folder() / "fonts" / name).read_bytes()).decode("ascii")
        faces.append(
            f'@font-face{{font-family:"{family}";font-weight:{weight};font-style:{style};'
            f'src:url(data:font/woff2;base64,{data}) format("woff2")}}'
        )
    return "\n".join(faces)


def render_page(page: Page, sheets: tuple[str, ...]) -> str:
    """A page with its style sheets and typefaces inside it."""
    return render_template("report.html.j2", page, sheets, script() if sheets == ON_SCREEN else "")


def script() -> str:
    """What filters and sorts a report on screen; a report is complete without it."""
    return (_folder() / _SCRIPT).read_text(encoding="utf-8")


def script_hash(text: str) -> str:
    """The source that lets a page's policy run this script and no other (Content Security Policy Level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def render_template(template: str, page: object, sheets: tuple[str, ...], script: str = "") -> str:
    """Any page through the template of that name, with its style sheets, typefaces and script inside it."""
    style = "\n".join([_fonts(), *((_folder() / sheet).read_text(encoding="utf-8") for sheet in sheets)])
    return environment().get_template(template).render(page=page, style=style, script=script, script_hash=script_hash(script))


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


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader sees the old bytes or the new ones."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
