"""Signing a report: PAdES signatures of the responsible persons, each in a revision of its own behind the unsigned bytes."""

from __future__ import annotations

import asyncio
import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from asn1crypto import tsp
from pyhanko.pdf_utils.misc import PdfError
from pyhanko.sign.general import SigningError
from pyhanko.sign.timestamps.api import TimeStamper

from semlens_audit.cms_form import read_signature
from semlens_audit.errors import AuditError, ExecutionError, IntegrityError, UsageError
from semlens_audit.pdf_parts import open_pdf, read_attachments
from semlens_audit.pdf_signature import DIGEST, Entry, prepare, software
from semlens_audit.pdf_signed import FoundSignature, find_signatures, rebuild
from semlens_audit.plan import Responsible
from semlens_audit.record_file import RESULTS, parse_record, record_digest
from semlens_audit.records import AuditRecord
from semlens_audit.report import render_pdf
from semlens_audit.signing_keys import SigningKey

__all__ = ["Signed", "TimeStampAuthority", "person_of", "sign_report"]

_MARGIN = 512
_TOKEN = 16384
"""Octets kept free for a time stamp: tokens with the authority's certificates take 2 to 8 thousand."""
_MOST_REPLY = 1 << 20


@dataclass(frozen=True)
class Signed:
    """A report with one more signature.

    Parameters
    ----------
    data
        The file: the unsigned report, then a revision for each signature.
    person
        Who signed.
    missing
        Responsible persons who have not signed; they still can unless `final`.
    final
        Whether the document is closed.
    """

    data: bytes
    person: Responsible
    missing: tuple[str, ...]
    final: bool


def person_of(record: AuditRecord, name: str | None) -> Responsible:
    """Which of the record's responsible persons signs.

    Parameters
    ----------
    name
        As the audit file writes it; none: the only one there is.

    Raises
    ------
    UsageError
        Slugs ``no-responsible``, ``which-responsible``, ``unknown-responsible``.
    """
    persons = record.responsible
    known = "; ".join(f"{one.name} ({one.role})" for one in persons)
    if not persons:
        hint = "Name who answers for the audit under `responsible` in the audit file, and run it again."
        raise UsageError("no-responsible", "The audit names no responsible person, so nobody can sign its report.", hint)
    if name is None and len(persons) > 1:
        raise UsageError("which-responsible", f"The audit names several responsible persons: {known}.", "Say who signs with --as NAME.")
    matching = [one for one in persons if name is None or one.name == name]
    if len(matching) != 1:
        said = f"{name!r} is {'no one' if not matching else 'more than one'} of the audit's responsible persons: {known}."
        raise UsageError("unknown-responsible", said, "Write the name as the audit file does.")
    return matching[0]


def sign_report(
    data: bytes,
    key: SigningKey,
    *,
    name: str | None = None,
    now: datetime | None = None,
    final: bool = False,
    authority: TimeStamper | None = None,
    file: str | None = None,
) -> Signed:
    """Sign a report.

    The first signature certifies the document (ISO 32000-1, 12.8.2.2), further ones approve it, and the last one closes it: the
    signature after which all responsible persons have signed, or the one made with `final`. Nothing becomes visible on any page.

    Parameters
    ----------
    data
        The report, signed already by others or not.
    name
        Who signs, see `person_of`.
    now
        Signing time, with a time zone; default: the present.
    final
        Close the document although others have not signed.
    authority
        Gives the signature a time stamp (RFC 3161).
    file
        Name for the messages of errors.

    Raises
    ------
    IntegrityError
        If the PDF is not what this version renders from the record that it carries, or an earlier signature does not hold.
    UsageError
        If the person has signed already, the document is closed, or `person_of` finds no one.
    """
    record = parse_record(_attached(data, file), f"{file or 'PDF'}: {RESULTS}")
    person = person_of(record, name)
    earlier = _earlier(data, record, file)
    done = {one.entry.name for one in earlier}
    if any(one.entry.final for one in earlier):
        raise UsageError("document-closed", "The document is closed: the last signature allows no further one.", file=file)
    if person.name in done:
        raise UsageError("signed-already", f"{person.name} has signed this document already.", file=file)
    missing = tuple(one.name for one in record.responsible if one.name not in done | {person.name})
    final = final or not missing
    moment = (now or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
    octets = sum(len(one.dump()) for one in key.certificates) + 4 * _MARGIN + (_TOKEN if authority else 0)
    entry = Entry(person.name, moment, final, authority is not None, 2 * (-(-octets // 256) * 256))
    try:
        prepared = prepare(
            data, entry, record.responsible, record_digest(record), earlier=len(earlier), app=software(authority is not None)
        )
        made = asyncio.run(
            key.signer.async_sign(prepared.digest, DIGEST, use_pades=True, timestamper=authority)
        )
        signed = prepared.fill(made.dump())
    except (PdfError, SigningError, ValueError) as error:
        raise ExecutionError("not-signed", f"The report could not be signed: {error}", "Nothing was written.", file=file) from error
    read_signature(made.dump(), prepared.digest)  # what no one could verify is not handed out
    return Signed(signed, person, missing, final)


def _attached(data: bytes, file: str | None) -> bytes:
    attached = read_attachments(data).get(RESULTS)
    if attached is None:
        hint = "Give the report.pdf that `run` or `report` wrote."
        raise IntegrityError("no-record", f"The PDF carries no {RESULTS}: it is no report of this tool.", hint, file=file)
    return attached


def _earlier(data: bytes, record: AuditRecord, file: str | None) -> tuple[FoundSignature, ...]:
    """Signatures that the document has, once it is clear that it is the report of its record and nothing else."""
    found = find_signatures(open_pdf(data), data)
    unsigned = render_pdf(record)
    revisions = (unsigned, *rebuild(unsigned, found, record.responsible, record_digest(record)))
    if revisions[-1] != data:
        said = "The PDF is not what this version renders from the record that it carries, so it is not signed."
        hint = f"Render it again with `semlens-audit report {RESULTS}` and sign that."
        raise IntegrityError("not-our-report", said, hint, file=file)
    for one in found:
        read_signature(one.der, hashlib.sha256(one.covered(data)).digest())
    return found


class TimeStampAuthority(TimeStamper):  # type: ignore[misc]
    """A time stamp authority asked over HTTP (RFC 3161, 3.4).

    Parameters
    ----------
    url
        ``http:`` or ``https:``.
    seconds
        How long to wait.

    Raises
    ------
    UsageError
        Slug ``bad-url``.
    """

    def __init__(self, url: str, seconds: float = 20.0) -> None:
        super().__init__()
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UsageError("bad-url", f"{url!r} is no address of a time stamp authority.", "Write http://… or https://….")
        self._url, self._seconds = url, seconds

    async def async_request_tsa_response(self, req: tsp.TimeStampReq) -> tsp.TimeStampResp:
        """Ask for a time stamp; raises `AuditError` ``no-timestamp`` where there is no answer."""
        kind = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
        request = urllib.request.Request(self._url, data=req.dump(), headers=kind, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self._seconds) as reply:
                answer = reply.read(_MOST_REPLY)
            return tsp.TimeStampResp.load(answer, strict=True)
        except (OSError, ValueError, urllib.error.URLError) as error:
            hint = "Check the address and the network, or sign without --timestamp-url."
            raise AuditError("no-timestamp", f"The time stamp authority gave no time stamp: {error}", hint) from error
