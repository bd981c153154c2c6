"""The signatures of a signed report as they stand in the file, and the file written again from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from pyhanko.pdf_utils import generic
from pyhanko.pdf_utils.reader import PdfFileReader

from semlens_audit.errors import IntegrityError
from semlens_audit.pdf_parts import reading
from semlens_audit.pdf_signature import Entry, prepare, reason
from semlens_audit.plan import Responsible

__all__ = ["FoundSignature", "find_signatures", "rebuild"]

_MOST = 64
"""Most signatures that are read of one file."""
_HINT = "Take the file as `sign` wrote it."


@dataclass(frozen=True)
class FoundSignature:
    """One signature of a file.

    Parameters
    ----------
    entry
        Who signed when, and how.
    field, reason, software
        As the signature says.
    der
        The CMS object.
    start, end
        Offsets of what the signature does not cover: its own hexadecimal digits in their angle brackets.
    length
        Length of the file that it covers.
    embedded
        pyHanko's view of it.
    """

    entry: Entry
    field: str
    reason: str
    software: str
    der: bytes
    start: int
    end: int
    length: int
    embedded: Any

    def covered(self, data: bytes) -> bytes:
        """What it signs."""
        return data[: self.start] + data[self.end : self.length]


def _refused(said: str) -> IntegrityError:
    return IntegrityError("signature-form", f"The signature {said}.", _HINT)


def find_signatures(reader: PdfFileReader, data: bytes) -> tuple[FoundSignature, ...]:
    """All signatures of an opened PDF, the first one first.

    Parameters
    ----------
    reader
        Of `data`, see `semlens_audit.pdf_parts.open_pdf`.

    Raises
    ------
    IntegrityError
        Slugs ``pdf-damaged``, ``pdf-too-large``, and ``signature-form`` where one is not as `sign` writes it.
    """
    with reading():
        embedded = list(reader.embedded_signatures)
        if len(embedded) > _MOST:
            raise _refused(f"is one of {len(embedded)}; no more than {_MOST} are read")
        found = sorted((_found(one, data) for one in embedded), key=lambda one: one.length)
    for one, after in zip(found, found[1:], strict=False):
        if one.length > after.start:
            raise _refused("does not stand in a revision of its own")
    return tuple(found)


def _found(embedded: Any, data: bytes) -> FoundSignature:
    said = embedded.sig_object
    ranges = [int(number) for number in embedded.byte_range]
    if len(ranges) != 4 or ranges[0] != 0 or not 0 < ranges[1] < ranges[2] or ranges[2] + ranges[3] > len(data) or ranges[3] < 1:
        raise _refused("does not cover the file up to its own place")
    start, end = ranges[1], ranges[2]
    gap = data[start:end]
    if gap[:1] != b"<" or gap[-1:] != b">" or len(gap) % 2 or gap[1:-1].strip(b"0123456789abcdef"):
        raise _refused("leaves out more than its own hexadecimal digits")
    octets = bytes.fromhex(gap[1:-1].decode("ascii"))
    der = octets[: _der_length(octets)]
    if octets[len(der) :].strip(b"\0"):
        raise _refused("has something behind it in its place")
    software = str(said["/Prop_Build"]["/App"]["/REx"])
    moment = generic.parse_pdf_date(str(said["/M"]), strict=True)
    if moment.tzinfo is None:
        raise _refused("states its time without a time zone")
    return FoundSignature(
        entry=Entry(
            name=str(said["/Name"]),
            time=moment.astimezone(UTC),
            final=_final(said),
            timestamp=software.endswith(", with time stamp"),
            reserved=len(gap) - 2,
        ),
        field=str(embedded.field_name),
        reason=str(said["/Reason"]),
        software=software,
        der=der,
        start=start,
        end=end,
        length=ranges[2] + ranges[3],
        embedded=embedded,
    )


def _der_length(octets: bytes) -> int:
    """Length of the DER object at the start, header included (X.690, 8.1.3 and 10.1)."""
    if len(octets) < 2 or octets[0] != 0x30:
        raise _refused("holds no CMS object")
    if octets[1] < 0x80:
        return 2 + octets[1]
    count = octets[1] & 0x7F
    length = int.from_bytes(octets[2 : 2 + count], "big")
    if not 1 <= count <= 4 or 2 + count + length > len(octets):
        raise _refused("holds no whole CMS object")
    return 2 + count + length


def _final(said: Any) -> bool:
    """Whether the signature allows no change after it."""
    references = said.get("/Reference", generic.ArrayObject())
    return any(int(one["/TransformParams"].get("/P", 3)) == 1 for one in references)


def rebuild(
    unsigned: bytes, found: Sequence[FoundSignature], responsible: Sequence[Responsible], record_digest: str
) -> tuple[bytes, ...]:
    """The signed file, written again from the unsigned one and its signatures: one element a revision, the last is the file.

    Raises
    ------
    IntegrityError
        Slug ``signature-form`` where a signature does not say what it must: a responsible person, their role, this record.
    """
    if len({one.name for one in responsible}) != len(responsible):
        raise _refused("cannot be told whose it is: two responsible persons have the same name")
    revisions, whole = [], unsigned
    for index, one in enumerate(found):
        person = next((person for person in responsible if person.name == one.entry.name), None)
        if person is None or one.reason != reason(person, record_digest):
            raise _refused("does not name a responsible person, their role and this record")
        with reading():
            prepared = prepare(whole, one.entry, responsible, record_digest, earlier=index, app=one.software)
            whole = prepared.fill(one.der)
        revisions.append(whole)
    return tuple(revisions)
