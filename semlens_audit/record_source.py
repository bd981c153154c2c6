"""The record in a file that someone hands over: a ``results.json``, or the PDF of a report, which carries it."""

from __future__ import annotations

from pathlib import Path

from semlens_audit.errors import IntegrityError, UsageError
from semlens_audit.record_file import RESULTS, parse_record
from semlens_audit.records import AuditRecord

__all__ = ["read_any"]

_PDF = b"%PDF-"


def read_any(path: Path) -> AuditRecord:
    """The record in a ``results.json``, or attached to the PDF of a report.

    Raises
    ------
    UsageError
        ``no-record``: the file cannot be read, or the PDF carries no record; ``record-version``.
    IntegrityError
        ``record-too-large``, ``invalid-record``, or what is wrong with the PDF.
    """
    from semlens_audit.pdf_parts import PdfLimits, read_attachments  # costs time that most runs have no need of

    limit = PdfLimits().file_bytes
    if path.exists() and not path.is_file():  # a pipe would keep its reader waiting for ever
        raise UsageError("no-record", "That is no file.", "Give a results.json, or the PDF of a report.", file=str(path))
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        hint = "Give a results.json, or the PDF of a report."
        raise UsageError("no-record", f"The file cannot be read: {error.strerror}.", hint, file=str(path)) from error
    if len(data) > limit:
        hint = "Give the results.json that `run` wrote."
        raise IntegrityError("record-too-large", f"The file is larger than {limit:,} bytes.", hint, file=str(path))
    if not data.startswith(_PDF):
        return parse_record(data, str(path))
    attached = read_attachments(data)
    if RESULTS not in attached:
        hint = "Give the results.json itself."
        raise UsageError("no-record", f"The PDF carries no {RESULTS}.", hint, file=str(path))
    return parse_record(attached[RESULTS], f"{path}: {RESULTS}")
