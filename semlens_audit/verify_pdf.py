"""Whether the signatures of a PDF hold, whose they are, and whether the document is the report of the record that it carries."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from asn1crypto import x509
from asn1crypto.crl import CertificateList
from pyhanko.pdf_utils.reader import PdfFileReader
from pyhanko.sign.diff_analysis import ModificationLevel
from pyhanko.sign.validation import validate_pdf_signature
from pyhanko.sign.validation.settings import KeyUsageConstraints
from pyhanko.sign.validation.status import SignatureCoverageLevel
from pyhanko_certvalidator.context import ValidationContext

from semlens_audit.attachments import attachments_of
from semlens_audit.cms_form import CmsSignature, read_signature
from semlens_audit.errors import AuditError, IntegrityError
from semlens_audit.pdf import read_renderer, renderer
from semlens_audit.pdf_parts import attached_files
from semlens_audit.pdf_signature import software
from semlens_audit.pdf_signed import FoundSignature, rebuild
from semlens_audit.record_file import record_digest
from semlens_audit.records import AuditRecord
from semlens_audit.report import render_pdf
from semlens_audit.trust import TrustList
from semlens_audit.verification import CheckedLine, not_checked, proven, refused
from semlens_audit.wording import count

__all__ = ["Moment", "attachment_line", "rendering_line", "revision_line", "signature_lines", "unsigned_part"]

_SKEW = timedelta(minutes=5)
"""How far clocks may differ."""
_DELAY = timedelta(days=1)
"""How long after signing a time stamp may be made."""
_USAGE = KeyUsageConstraints(key_usage={"digital_signature", "non_repudiation"}, match_all_key_usages=False)


@dataclass(frozen=True)
class Moment:
    """When a document is verified, and what is known then.

    Parameters
    ----------
    now
        With a time zone.
    revocation_lists
        DER of certificate revocation lists (RFC 5280); empty: revocation is not looked at.
    """

    now: datetime
    revocation_lists: tuple[bytes, ...] = ()


def signature_lines(
    found: Sequence[FoundSignature], data: bytes, trust: TrustList, moment: Moment
) -> Iterator[CheckedLine]:
    """One line for each signature, then whether certificates were revoked, and when the signatures were made."""
    stamped = 0
    looks: list[CmsSignature] = []
    for index, one in enumerate(found):  # all signatures first: pyHanko's analysis of revisions takes its time
        identifier, question = _asked(index, found)
        try:
            looks.append(_read(one, data, last=index + 1 == len(found)))
        except IntegrityError as error:
            yield refused(identifier, question, error)
            return
    for index, (one, read) in enumerate(zip(found, looks, strict=True)):
        identifier, question = _asked(index, found)
        try:
            detail = _signature(one, read, trust, moment, last=index + 1 == len(found))
        except IntegrityError as error:
            yield refused(identifier, question, error)
            return
        except Exception as error:  # noqa: BLE001 - a stranger's bytes: whatever a parser raises on them is a refusal
            yield refused(identifier, question, f"It cannot be read: {type(error).__name__}.")
            return
        stamped += read.token is not None
        yield proven(identifier, question, detail)
        yield _person(index + 1, one, read)
    question = "No certificate was revoked when it was used"
    if moment.revocation_lists:
        yield proven("revocation", question, "By the revocation lists that were given.")
    else:
        yield not_checked("revocation", question, "No revocation list was given, and the network is not asked.")
    question = "The signatures were made when they say"
    if stamped == len(found):
        yield proven("signing-time", question, "Time stamps of an authority in the trust list.")
    else:
        said = "The signatory's own clock says so; there is no time stamp of an authority."
        expired = [one.signatory.subject.human_friendly for one in looks if one.signatory.not_valid_after < moment.now]
        if expired:
            said += f" The certificate of {expired[0]} has expired since, and could have been used after that."
        yield not_checked("signing-time", question, said)


def _asked(index: int, found: Sequence[FoundSignature]) -> tuple[str, str]:
    return f"signature-{index + 1}", f"Signature {index + 1} of {len(found)} holds and is trusted"


def _wrong(said: str) -> IntegrityError:
    return IntegrityError("signature-refused", said)


def _read(one: FoundSignature, data: bytes, *, last: bool) -> CmsSignature:
    """A signature in its one form, over the bytes that it says."""
    if last and one.length != len(data):
        raise _wrong("Something was appended after the last signature.")
    read = read_signature(one.der, hashlib.sha256(one.covered(data)).digest())
    if (read.token is not None) != one.entry.timestamp:
        raise _wrong("A time stamp is missing that the signature speaks of, or there is one that it does not.")
    return read


def _signature(one: FoundSignature, read: CmsSignature, trust: TrustList, moment: Moment, *, last: bool) -> str:
    """What to say of a signature that is trusted and whose document was changed in no way that it forbids."""
    when = _when(one, read, moment)
    roots = [x509.Certificate.load(der) for der in trust.certificates]
    if not roots:
        raise _wrong("The trust list holds no certificate. Give those that you trust with --trust.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = ValidationContext(
            trust_roots=roots,
            moment=when,
            allow_fetching=False,
            crls=list(moment.revocation_lists),
            revocation_mode="require" if moment.revocation_lists else "soft-fail",
            retroactive_revinfo=True,
        )
        status = validate_pdf_signature(one.embedded, context, key_usage_settings=_USAGE)
    subject, issuer = read.signatory.subject.human_friendly, read.signatory.issuer.human_friendly
    if not (status.intact and status.valid):
        raise _wrong("The document is not the one that was signed, or the signature does not fit its certificate.")
    if not status.trusted:
        raise _wrong(f"The certificate of {subject}, issued by {issuer}, leads to none in the trust list, or was not valid then.")
    if status.coverage != (SignatureCoverageLevel.ENTIRE_FILE if last else SignatureCoverageLevel.ENTIRE_REVISION):
        raise _wrong("The signature does not cover the whole file.")
    level = status.modification_level
    if not status.docmdp_ok or level is None or level > (ModificationLevel.NONE if last else ModificationLevel.FORM_FILLING):
        raise _wrong("The document was changed after it was signed in a way that the signature does not permit.")
    if not status.bottom_line:
        raise _wrong("The signature, its certificate or its time stamp is not acceptable.")
    if read.token is None and _revoked(read, moment):
        raise _wrong(
            f"A certificate of {subject} has been revoked. That the signature was made before, only the signatory's own clock says."
        )
    how = "a time stamp says" if read.token is not None else "the signatory's clock says"
    signed = f"{one.entry.name} signed as: {one.reason.rsplit('; record ', 1)[0]}"
    return f"{signed}. Certificate of {subject}, issued by {issuer}, valid on {when:%Y-%m-%d %H:%M:%S} UTC, as {how}."


def _revoked(read: CmsSignature, moment: Moment) -> bool:
    """Whether a list that was given revokes a certificate of the signature, at whatever time."""
    for der in moment.revocation_lists:
        listed = CertificateList.load(der)["tbs_cert_list"]
        serials = {entry["user_certificate"].native for entry in listed["revoked_certificates"] or ()}
        if any(one.serial_number in serials and one.issuer == listed["issuer"] for one in read.certificates):
            return True
    return False


def _person(number: int, one: FoundSignature, read: CmsSignature) -> CheckedLine:
    """Whether the certificate is in the name of the person who signed."""
    question = f"The certificate of signature {number} is in the signatory's name"
    name = read.signatory.subject.native.get("common_name")
    if name == one.entry.name:
        return proven(f"person-{number}", question, one.entry.name)
    said = f"It is in the name of {name or 'no one'}; nothing here says that this is {one.entry.name}."
    return not_checked(f"person-{number}", question, said)


def _when(one: FoundSignature, read: CmsSignature, moment: Moment) -> datetime:
    """When a signature was made, as far as it is known."""
    said = one.entry.time
    if said > moment.now + _SKEW:
        raise IntegrityError("signature-time", f"The signature says that it was made at {said:%Y-%m-%d %H:%M} UTC, in the future.")
    if read.token is None:
        return said
    stamped: datetime = read.token["content"]["encap_content_info"]["content"].parsed["gen_time"].native
    stamped = stamped.astimezone(UTC)
    if not said - _SKEW <= stamped <= said + _DELAY or stamped > moment.now + _SKEW:
        raise IntegrityError("signature-time", "The signature's time and that of its time stamp do not fit each other.")
    return stamped


def attachment_line(reader: PdfFileReader, record: AuditRecord) -> CheckedLine:
    """Whether the PDF carries exactly the files that the report of its record carries."""
    question = "The attached files are those of the record, and no other"
    expected = {one.name: one for one in attachments_of(record)}
    try:
        files = attached_files(reader)
    except AuditError as error:
        return refused("attachments", question, error)
    given = {one.name: one for one in files}
    for name in expected.keys() | given.keys():
        if name not in given:
            return refused("attachments", question, f"{name} is missing.")
        if name not in expected:
            return refused("attachments", question, f"{name} is attached, and belongs to no part of the record.")
        one, other = given[name], expected[name]
        if (one.data, one.media_type, one.relationship) != (other.data, other.media_type, other.relationship):
            return refused("attachments", question, f"{name} is not the file that belongs to the record.")
    return proven("attachments", question, f"{', '.join(expected)}: SHA-256 as stated.")


def unsigned_part(found: Sequence[FoundSignature], data: bytes) -> bytes:
    """The file before the first signature."""
    if not found:
        return data
    end = data.rfind(b"%%EOF", 0, found[0].start)
    return data[: end + 6] if end >= 0 else b""


def revision_line(found: Sequence[FoundSignature], data: bytes, record: AuditRecord) -> CheckedLine:
    """Whether signatures are all that was added to the report: each revision is written again and compared."""
    question = "Nothing but the signatures was added to the report"
    own = {software(one.entry.timestamp) for one in found}
    try:
        revisions = rebuild(unsigned_part(found, data), found, record.responsible, record_digest(record))
    except IntegrityError as error:
        return refused("revisions", question, error)
    if revisions[-1] == data:
        names = [one.entry.name for one in found]
        missing = [person.name for person in record.responsible if person.name not in names]
        if len(set(names)) != len(names):
            return refused("revisions", question, "One person has signed twice.")
        yet = f" Not signed: {', '.join(missing)}." if missing else " All responsible persons have signed."
        return proven("revisions", question, f"Written again byte by byte: {count(len(found), 'signature')}.{yet}")
    others = sorted({one.software for one in found} - own)
    if others:
        return not_checked("revisions", question, f"It was signed with {others[0]}; here is {sorted(own)[0]}.")
    return refused("revisions", question, "What was added is not what `sign` writes for these signatures.")


def rendering_line(record: AuditRecord, unsigned: bytes) -> CheckedLine:
    """Whether the document is, byte for byte, what this version renders from the record."""
    question = "The document is what the record says, rendered again and compared"
    try:
        made, here = read_renderer(unsigned), renderer()
        if render_pdf(record) == unsigned:
            return proven("rendering", question, f"The same {len(unsigned):,} bytes.")
    except AuditError as error:
        said = " ".join(problem.message for problem in error.problems)
        return not_checked("rendering", question, said)
    if made != here:
        return not_checked("rendering", question, f"It was rendered with {made or 'an unnamed program'}; here is {here}.")
    return refused("rendering", question, "The document shows something else than what follows from the record.")
