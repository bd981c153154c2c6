"""The record for machines: JUnit, SARIF, OSCAL, CycloneDX, and a summary in Markdown.

Each is a pure function of the record: no clock, no environment; identifiers derive from the record's digest, times are the record's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from semlens_audit.exports import cyclonedx, junit, markdown, oscal, sarif
from semlens_audit.record_file import record_digest
from semlens_audit.records import AuditRecord
from semlens_audit.report import replace

__all__ = ["FILES", "FORMATS", "render", "write_all", "write_format"]

FORMATS: dict[str, tuple[str, Callable[[AuditRecord, str], str]]] = {
    "junit": ("junit.xml", junit.render),
    "sarif": ("results.sarif", sarif.render),
    "oscal": ("oscal.json", oscal.render),
    "cyclonedx": ("bom.cdx.json", cyclonedx.render),
    "summary": ("summary.md", markdown.render),
    "code-scanning": ("code-scanning.sarif", sarif.render_alerts),
}
"""Name of the format -> file name, and what renders it from record and record digest."""

FILES = ("junit", "sarif", "oscal", "cyclonedx", "summary")
"""Formats that every run leaves; ``code-scanning`` is written where it is asked for."""


def render(record: AuditRecord, form: str, record_sha256: str | None = None) -> str:
    """`record` in one format.

    Parameters
    ----------
    record
        What was found.
    form
        One of `FORMATS`.
    record_sha256
        Its digest where the caller has it; else it is computed.

    Returns
    -------
    str
        The same text for the same record.

    Raises
    ------
    UsageError
        Slug ``invalid-time``: the record was not made by this tool.
    """
    return FORMATS[form][1](record, record_sha256 or record_digest(record))


def write_format(record: AuditRecord, form: str, folder: Path, record_sha256: str | None = None) -> Path:
    """Write `record` in one format into `folder`, in one step; raises as `render`."""
    text = render(record, form, record_sha256)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FORMATS[form][0]
    replace(path, text.encode("utf-8"))
    return path


def write_all(record: AuditRecord, folder: Path) -> list[Path]:
    """Write every one of `FILES` into `folder`, each in one step.

    Returns
    -------
    list of Path
        ``junit.xml``, ``results.sarif``, ``oscal.json``, ``bom.cdx.json``, ``summary.md``.

    Raises
    ------
    UsageError
        As `render`.
    """
    sha256 = record_digest(record)
    return [write_format(record, form, folder, sha256) for form in FILES]
