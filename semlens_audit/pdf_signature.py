"""A signature in a PDF: the revision that holds it, written the same way each time, and the CMS object inside, byte for byte.

PAdES baseline signatures (ETSI EN 319 142-1) without anything visible on a page, so that the document stays PDF/A-3 (ISO 19005-3)
and PDF/UA-1 (ISO 14289-1). The revision depends only on the bytes before it and on who signs when: a verifier writes it again and
compares.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata

from pyhanko.pdf_utils import generic
from pyhanko.pdf_utils.decode_limits import DecodeLimits
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from pyhanko.pdf_utils.reader import PdfFileReader
from pyhanko.sign.fields import (
    FieldMDPAction,
    FieldMDPSpec,
    InvisSigSettings,
    MDPPerm,
    SigFieldSpec,
    SigSeedSubFilter,
    append_signature_field,
)
from pyhanko.sign.signers.cms_embedder import PdfCMSEmbedder, SigIOSetup, SigMDPSetup, SigObjSetup
from pyhanko.sign.signers.constants import ESIC_EXTENSION_1
from pyhanko.sign.signers.pdf_byterange import BuildProps, SignatureObject

from semlens_audit.plan import Responsible

__all__ = ["DIGEST", "Entry", "Prepared", "field_name", "prepare", "reason", "software"]

DIGEST = "sha256"
_INVISIBLE = InvisSigSettings(set_print_flag=True, set_hidden_flag=False, box_out_of_bounds=True)
"""PDF/A wants the print flag and no hidden flag (ISO 19005-3, 6.3.2); PDF/UA excuses from tagging what lies outside the page
(ISO 14289-1, 7.18.1). A rectangle without extent needs no appearance (ISO 19005-3, 6.3.3)."""


_LOCK = FieldMDPSpec(FieldMDPAction.ALL)


@dataclass(frozen=True)
class Entry:
    """What a signature says of itself.

    Parameters
    ----------
    name
        The signatory: one of the record's responsible persons.
    time
        When it was signed, as the signatory's machine says; to the second, with a time zone.
    final
        Whether the document is closed with it: nothing may change any more, not even by a further signature.
    timestamp
        Whether a time stamp of an authority (RFC 3161) is part of it.
    reserved
        Length of the hexadecimal digits reserved for the CMS object.
    """

    name: str
    time: datetime
    final: bool
    timestamp: bool
    reserved: int


@dataclass(frozen=True)
class Prepared:
    """A document with room for a signature.

    Parameters
    ----------
    data
        The whole file, zeros where the signature goes.
    digest
        SHA-256 of everything else.
    start, end
        Offsets of the ``<`` before and behind the ``>`` after the signature's hexadecimal digits.
    """

    data: bytes
    digest: bytes
    start: int
    end: int

    def fill(self, signature: bytes) -> bytes:
        """The document with a CMS object in its place."""
        digits = signature.hex().encode("ascii")
        room = self.end - self.start - 2
        if len(digits) > room:
            raise ValueError(f"signature of {len(digits)} digits, {room} reserved")
        return self.data[: self.start + 1] + digits.ljust(room, b"0") + self.data[self.end - 1 :]


class _Update(IncrementalPdfFileWriter):
    """An appended revision that depends on nothing but its content: no clock, no random identifier, no change of metadata."""

    @classmethod
    def _handle_id(cls, prev: PdfFileReader) -> generic.ArrayObject:
        stream = prev.stream
        stream.seek(0)
        first, _ = prev.trailer["/ID"]
        original = first.original_bytes if isinstance(first, generic.TextStringObject) else bytes(first)
        return generic.ArrayObject(
            [generic.ByteStringObject(original), generic.ByteStringObject(hashlib.sha256(stream.read()).digest()[:16])]
        )

    def _update_meta(self) -> None:
        """A signature changes no metadata."""


def software(timestamp: bool) -> str:
    """What is written down as the software of a signature: it decides how the revision is laid out."""
    versions = f"pyHanko {metadata.version('pyhanko')}, zlib {zlib.ZLIB_RUNTIME_VERSION}"
    return f"{versions}, {'with' if timestamp else 'without'} time stamp"


def field_name(slot: int) -> str:
    """Name of a signature field."""
    return f"Signature{slot + 1}"


def reason(person: Responsible, record_digest: str) -> str:
    """Why someone signs, as viewers show it."""
    return f"{person.role}; record {record_digest}"


def prepare(
    before: bytes, entry: Entry, responsible: Sequence[Responsible], record_digest: str, *, earlier: int, app: str
) -> Prepared:
    """Append a revision with an empty signature to a document.

    The first signature certifies the document and makes a field for everyone who may follow: certified with permission to fill in
    forms, a document admits no new fields but signatures in those it has (ISO 32000-1, 12.8.2.2). The last of these fields carries
    a lock that forbids every further change (ISO 32000-2, 12.7.5.5), so whoever closes the document signs there.

    Parameters
    ----------
    before
        The document so far.
    responsible
        All responsible persons.
    record_digest
        What the report prints as its record's digest.
    earlier
        How many signatures the document has.
    app
        See `software`.

    Raises
    ------
    ValueError
        If the signatory is not exactly one of the responsible persons.
    """
    (person,) = (one for one in responsible if one.name == entry.name)
    reader = PdfFileReader(io.BytesIO(before), strict=True, decode_limits=DecodeLimits.for_untrusted_input())
    writer = _Update.from_reader(reader)
    lock = None
    if earlier == 0:
        slot, last = 0, len(responsible) - 1
        for number in range(1 if entry.final else last + 1):
            append_signature_field(writer, _field(number, locking=0 < number == last))
        writer.register_extension(ESIC_EXTENSION_1)
    elif entry.final:
        slot, lock = len(responsible) - 1, _LOCK
    else:
        slot = earlier
    steps = PdfCMSEmbedder().write_cms(field_name(slot), writer, existing_fields_only=True)
    next(steps)
    placeholder = SignatureObject(
        timestamp=entry.time,
        subfilter=SigSeedSubFilter.PADES,
        name=person.name,
        reason=reason(person, record_digest),
        app_build_props=BuildProps(name="semlens-audit", revision=app),
        bytes_reserved=entry.reserved,
    )
    permission = (MDPPerm.NO_CHANGES if entry.final else MDPPerm.FILL_FORMS) if earlier == 0 or lock else None
    rules = SigMDPSetup(md_algorithm=DIGEST, certify=earlier == 0, field_lock=lock, docmdp_perms=permission)
    steps.send(SigObjSetup(sig_placeholder=placeholder, mdp_setup=rules))
    prepared, output = steps.send(SigIOSetup(md_algorithm=DIGEST))
    return Prepared(output.getvalue(), prepared.document_digest, prepared.reserved_region_start, prepared.reserved_region_end)


def _field(slot: int, *, locking: bool) -> SigFieldSpec:
    return SigFieldSpec(
        field_name(slot),
        readable_field_name=f"Signature {slot + 1} of those who answer for this audit",
        invis_sig_settings=_INVISIBLE,
        field_mdp_spec=_LOCK if locking else None,
        doc_mdp_update_value=MDPPerm.NO_CHANGES if locking else None,
    )
