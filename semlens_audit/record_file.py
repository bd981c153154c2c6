"""The record as a file: its bytes, its digest, and reading it back. No clock, no torch."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from semlens_audit.digest import digest
from semlens_audit.errors import IntegrityError, UsageError
from semlens_audit.records import SCHEMA_VERSION, AuditRecord

__all__ = ["RESULTS", "parse_record", "read_record", "record_bytes", "record_digest", "write_record"]

RESULTS = "results.json"
"""Name of the record's file, in a run's folder and as attachment of its PDF."""


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
        If there is no such file, or it was written under another schema version.
    IntegrityError
        If it is no valid record.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), str(error.strerror)) from error
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
        If it is no valid record.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(file, "it is not UTF-8") from error
    try:
        version = _Version.model_validate_json(text).schema_version
        if version != SCHEMA_VERSION:
            raise UsageError(
                "record-version",
                f"The record is not of schema version {SCHEMA_VERSION}, but of version {version}.",
                "Use the version of semlens-audit that wrote it, or run the audit again.",
                file=file,
            )
        return AuditRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = ": ".join(part for part in ("The record is damaged or was changed", place, first["msg"]) if part)
        hint = "Take the file as `run` wrote it, or run the audit again."
        raise IntegrityError("invalid-record", f"{said}.", hint, file=file) from error


def _unreadable(file: str, why: str) -> UsageError:
    return UsageError("no-record", f"The record cannot be read: {why}.", "Give the results.json that `run` wrote.", file=file)
