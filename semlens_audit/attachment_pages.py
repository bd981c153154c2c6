"""The section that lists what a report carries: each file with its digest, and how to take it out."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from semlens_audit.attachments import Attachment, attachments_of
from semlens_audit.record_file import RESULTS
from semlens_audit.records import AuditRecord
from semlens_audit.wording import count

__all__ = ["AttachmentsPage", "FileRow", "attachments_page"]


@dataclass(frozen=True)
class FileRow:
    """One file, as the section lists it."""

    name: str
    what: str
    size: str
    sha256: str
    href: str | None
    """``data:`` URI of its content, for the report on screen; none where the file is attached or lies beside the report."""


@dataclass(frozen=True)
class AttachmentsPage:
    """What was rendered, and from what."""

    record_digest: str
    images: str
    schema_version: str
    files: tuple[FileRow, ...]
    record_name: str
    on_paper: bool


def attachments_page(record: AuditRecord, whole: str, *, on_paper: bool) -> AttachmentsPage:
    """The record and the documents that the audit rests on.

    Parameters
    ----------
    record
        What was found.
    whole
        Digest of `record`, as every page carries it.
    on_paper
        Whether the report is the PDF, which has every file attached. On screen, documents can be saved from the page, and the
        record, which is as large as the report itself, lies beside it.
    """
    files = tuple(_row(file, None if on_paper or file.name == RESULTS else _uri(file)) for file in attachments_of(record))
    return AttachmentsPage(whole, count(len(record.images), "image"), record.schema_version, files, RESULTS, on_paper)


def _row(file: Attachment, href: str | None) -> FileRow:
    return FileRow(file.name, file.description, count(len(file.data), "byte"), file.sha256, href)


def _uri(file: Attachment) -> str:
    # never a type that a browser would render: the content is a stranger's
    return f"data:application/octet-stream;base64,{base64.b64encode(file.data).decode('ascii')}"
