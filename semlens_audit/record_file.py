"""The record as a file: its bytes, its digest, and reading it back. No clock, no torch."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from semlens_audit.bounded import JsonLimits, LimitError, read_bytes, read_json
from semlens_audit.digest import digest
from semlens_audit.errors import IntegrityError, UsageError
from semlens_audit.plain_text import one_line
from semlens_audit.record_images import wrong_image
from semlens_audit.record_references import dangling
from semlens_audit.records import SCHEMA_VERSION, AuditRecord

__all__ = ["LIMITS", "RESULTS", "parse_record", "read_record", "record_bytes", "record_digest", "write_record"]

RESULTS = "results.json"
"""Name of the record's file, in a run's folder and as attachment of its PDF."""

LIMITS = JsonLimits(size=64_000_000, values=1_000_000, largest=1e12)
"""What a record may have at most; that of two thousand images and 1280 components has 4 MB and 71,000 values."""


class _Version(BaseModel):
    """The version of a record, whatever else it holds."""

    schema_version: str


def record_bytes(record: AuditRecord) -> bytes:
    """The content of ``results.json``: JSON, UTF-8, one space of indent, a final line feed; the same for the same record."""
    return (record.model_dump_json(indent=1, by_alias=True) + "\n").encode("utf-8")


def record_digest(record: AuditRecord) -> str:
    """SHA-256 of the record's canonical JSON, 64 hexadecimal digits, as every page of a report carries it."""
    return digest(record.model_dump(mode="json", by_alias=True))


def write_record(record: AuditRecord, path: Path) -> None:
    """Write ``results.json`` so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(record_bytes(record))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_record(path: Path) -> AuditRecord:
    """Read ``results.json``.

    Raises
    ------
    UsageError
        If there is no such file, it is none or too large, or it was written under another schema version.
    IntegrityError
        If it is no valid record.
    """
    try:
        data = read_bytes(path, LIMITS.size)
    except OSError as error:
        raise _unreadable(str(path), str(error.strerror)) from error
    except ValueError as error:  # a limit, or a path that no file system has
        raise _unreadable(str(path), str(error)) from error
    return parse_record(data, str(path))


def parse_record(data: bytes, file: str) -> AuditRecord:
    """The record in `data`.

    Parameters
    ----------
    data
        Content of a ``results.json``.
    file
        Where it is from, for the messages of errors.

    Raises
    ------
    UsageError
        If it is not UTF-8, or was written under another schema version.
    IntegrityError
        If it is no valid record: not of its form, ambiguous or gigantic as JSON, or with an image that is not the one its key names.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(file, "it is not UTF-8") from error
    try:
        read_json(data, LIMITS)
    except LimitError as error:
        raise _damaged(str(error), file) from error
    try:
        version = _Version.model_validate_json(text).schema_version
        if version != SCHEMA_VERSION:
            raise UsageError(
                "record-version",
                f"The record is not of schema version {SCHEMA_VERSION}, but of version {version}.",
                "Use the version of semlens-audit that wrote it, or run the audit again.",
                file=file,
            )
        record = AuditRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(": ".join(part for part in (place, first["msg"]) if part), file) from error
    wrong = wrong_image(record.images) or dangling(record)
    if wrong is not None:
        raise _damaged(wrong, file)
    return record


def _damaged(why: str, file: str) -> IntegrityError:
    said = f"The record is damaged or was changed: {one_line(why, 300)}."
    return IntegrityError("invalid-record", said, "Take the file as `run` wrote it, or run the audit again.", file=file)


def _unreadable(file: str, why: str) -> UsageError:
    return UsageError("no-record", f"The record cannot be read: {why}.", "Give the results.json that `run` wrote.", file=file)
