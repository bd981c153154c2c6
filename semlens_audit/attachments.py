"""The files that a report carries: the record it was rendered from, and what people wrote for the audit. Bytes come from the record.

Relationships follow ISO 32000-2, table 43 (ISO 19005-3, annex E): the record is the *Source* of the document; a spec, an audit file,
waivers and a lock, which the record holds as text, are attached once more as files of their own, a *Supplement* that is easier to use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from semlens_audit.digest import digest_bytes
from semlens_audit.plain_text import file_name
from semlens_audit.record_file import RESULTS, record_bytes
from semlens_audit.records import AuditRecord

__all__ = ["Attachment", "attachments_of"]

_WHAT = {
    "spec": "Spec: concepts, and what decisions may and must not rest on",
    "audit": "Audit: the model, the test data and the settings that were asked for",
    "waivers": "Waivers: declared exceptions, as they stood",
    "lock": "Lock: what was fixed before the audit ran",
}
_RESULTS_WHAT = "Record: every number, verdict and image of this report, which was rendered from it alone"


@dataclass(frozen=True)
class Attachment:
    """A file inside a report.

    Parameters
    ----------
    name
        Plain file name, unlike every other one's, whatever their case.
    data
        Its bytes.
    media_type
        E.g. ``"application/yaml"`` (RFC 9512).
    relationship
        ``"Source"`` or ``"Supplement"``.
    description
        What it is, for a reader.
    """

    name: str
    data: bytes
    media_type: str
    relationship: str
    description: str

    @property
    def sha256(self) -> str:
        """SHA-256 of its bytes, 64 hexadecimal digits."""
        return digest_bytes(self.data)


def attachments_of(record: AuditRecord) -> tuple[Attachment, ...]:
    """What the report of `record` carries: ``results.json`` first, then each document of the record under its own name.

    Names are such that they mean the same on every system (see `semlens_audit.plain_text.file_name`); those that occur twice, in
    whatever case, get a number before their suffix.
    """
    files = [Attachment(RESULTS, record_bytes(record), "application/json", "Source", _RESULTS_WHAT)]
    taken = {RESULTS}
    for document in record.documents:
        name = _free(file_name(document.name), taken)
        taken.add(name.casefold())
        what = _WHAT[document.kind]
        files.append(Attachment(name, document.text.encode("utf-8"), document.media_type, "Supplement", what))
    return tuple(files)


def _free(name: str, taken: set[str]) -> str:
    path, number, candidate = PurePath(name), 2, name
    while candidate.casefold() in taken:
        candidate, number = f"{path.stem}-{number}{path.suffix}", number + 1
    return candidate
