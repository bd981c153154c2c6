"""What a PDF carries, taken out without trust in it: attached files and metadata, within limits on size, number and depth.

A PDF that comes to be verified may be anyone's. Whatever is wrong with it is one kind of error, `IntegrityError`; nothing is
repaired and nothing is guessed, so that two readers of the same bytes see the same files.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyhanko.pdf_utils import generic
from pyhanko.pdf_utils.decode_limits import (
    DEFAULT_PURPOSE_LIMITS,
    DecodeLimits,
    DecodePurpose,
    DocumentDecodeBudget,
    StreamDecodeLimits,
)
from pyhanko.pdf_utils.misc import PdfDecodeLimitError, PdfError
from pyhanko.pdf_utils.reader import PdfFileReader

from semlens_audit.errors import IntegrityError
from semlens_audit.pdf_bounds import bounded_sections
from semlens_audit.plain_text import file_name, one_line

__all__ = ["AttachedFile", "PdfLimits", "attached_files", "open_pdf", "read_attachments", "read_metadata", "reading"]

_MIB = 1 << 20
_HINT = "Take the file as `run` or `sign` wrote it."
_UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, OSError, PdfError, RecursionError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What pyHanko raises on bytes that are no proper PDF."""


@dataclass(frozen=True)
class PdfLimits:
    """How much a PDF may ask of its reader.

    Parameters
    ----------
    file_bytes
        Largest file, bytes.
    decoded_bytes
        Most bytes that all its streams together may decode to.
    stream_bytes
        Most bytes that one stream may decode to.
    object_bytes
        Most bytes that one stream of objects may decode to; that of a report of 80 pages has 1.2 MB.
    sections
        Most sections of cross-references: one for the file as it was made, and about two for each signature.
    attachments
        Most attached files.
    depth
        Deepest level of the tree that names them.
    name_length
        Longest name of an attached file, characters.
    """

    file_bytes: int = 32 * _MIB
    decoded_bytes: int = 256 * _MIB
    stream_bytes: int = 128 * _MIB
    object_bytes: int = 8 * _MIB
    sections: int = 64
    attachments: int = 32
    depth: int = 8
    name_length: int = 120


@dataclass(frozen=True)
class AttachedFile:
    """A file that a PDF carries.

    Parameters
    ----------
    name
        File name without folders.
    data
        Its content.
    media_type
        As the PDF says, e.g. ``"application/json"``; empty where it does not.
    relationship
        ``AFRelationship`` without the solidus, e.g. ``"Source"``; empty where there is none.
    description
        As the PDF says; may be empty.
    """

    name: str
    data: bytes
    media_type: str
    relationship: str
    description: str


def _error(slug: str, message: str, hint: str = _HINT) -> IntegrityError:
    return IntegrityError(slug, message, hint)


@contextmanager
def reading() -> Iterator[None]:
    """Turn whatever pyHanko raises on a file that is damaged or hostile into `IntegrityError`.

    Raises
    ------
    IntegrityError
        Slug ``pdf-too-large`` where a limit was reached, else ``pdf-damaged``.
    """
    try:
        yield
    except PdfDecodeLimitError as error:
        raise _error("pdf-too-large", f"The PDF asks for more than is read of a stranger's file: {error}") from error
    except _UNREADABLE as error:
        said = one_line(str(error), 200) or type(error).__name__
        raise _error("pdf-damaged", f"The PDF cannot be read: {said}") from error


def open_pdf(data: bytes, limits: PdfLimits = PdfLimits()) -> PdfFileReader:
    """Open a PDF strictly: cross-reference tables are read, damage is not repaired, streams decode within `limits`.

    Raises
    ------
    IntegrityError
        Slugs ``pdf-too-large``, ``pdf-damaged``, ``pdf-encrypted``.
    """
    if len(data) > limits.file_bytes:
        raise _error(
            "pdf-too-large", f"The PDF has {len(data):,} bytes; no more than {limits.file_bytes:,} are read.", "Give another file."
        )
    if not data.startswith(b"%PDF-1."):
        raise _error("pdf-damaged", "The file does not begin as a PDF of version 1.x does.")
    bounds = DecodeLimits(
        per_stream=StreamDecodeLimits(max_output_size=limits.stream_bytes),
        per_purpose={**DEFAULT_PURPOSE_LIMITS, DecodePurpose.OBJECT_STREAM: StreamDecodeLimits(max_output_size=limits.object_bytes)},
        document_budget=DocumentDecodeBudget(base_allowance=limits.decoded_bytes, max_ratio=0),
    )
    with reading(), bounded_sections(limits.sections):
        reader = PdfFileReader(io.BytesIO(data), strict=True, decode_limits=bounds)
        encrypted = reader.encrypted
        if not isinstance(reader.root, generic.DictionaryObject):
            raise _error("pdf-damaged", "The PDF has no catalogue.")
    if encrypted:
        raise _error("pdf-encrypted", "The PDF is encrypted, which archive documents are not (ISO 19005-3, 6.1.3).")
    return reader


def read_attachments(data: bytes, limits: PdfLimits = PdfLimits()) -> dict[str, bytes]:
    """The files that a PDF carries, by name.

    Parameters
    ----------
    data
        The PDF.
    limits
        See `PdfLimits`.

    Returns
    -------
    dict
        Name without folders -> content, in the order of the PDF's name tree. Empty for a PDF without attachments.

    Raises
    ------
    IntegrityError
        Slugs of `open_pdf`, and ``attachment-damaged``, ``attachment-name``, ``attachment-twice``, ``attachment-limit``.
    """
    return {file.name: file.data for file in attached_files(open_pdf(data, limits), limits)}


def attached_files(reader: PdfFileReader, limits: PdfLimits = PdfLimits()) -> tuple[AttachedFile, ...]:
    """The files that the last revision of an opened PDF carries (ISO 32000-1, 7.11.4; ISO 19005-3, 6.8).

    The tree of embedded files and the catalogue's ``/AF`` must name the same ones, so that no file is shown by one reader and
    hidden by another. Raises as `read_attachments`.
    """
    with reading():
        tree = _get(_get(reader.root, "/Names", generic.DictionaryObject()), "/EmbeddedFiles")
        entries = [] if tree is None else list(_entries(tree, limits, set(), 0))
        listed = [_key(item) for item in _raw(_get(reader.root, "/AF", generic.ArrayObject()))]
        if len(entries) > limits.attachments:
            raise _error("attachment-limit", f"The PDF carries {len(entries)} files; no more than {limits.attachments} are read.")
        if sorted(listed, key=repr) != sorted((_key(item) for _, item in entries), key=repr):
            raise _error("attachment-damaged", "The PDF's two lists of attached files, its name tree and /AF, differ.")
        files = [_file(name, item, limits) for name, item in entries]
    seen: set[str] = set()
    for file in files:
        if file.name.casefold() in seen:
            raise _error("attachment-twice", f"The PDF carries more than one file with the name “{file.name}”.")
        seen.add(file.name.casefold())
    return tuple(files)


def _get(dictionary: Any, key: str, default: Any = None) -> Any:
    """Value of `key`, references followed; pyHanko's own ``get`` does not follow them."""
    return dictionary[key] if key in _as(dictionary, generic.DictionaryObject) else default


def _raw(array: Any) -> list[Any]:
    """Items of an array, references left as such."""
    return [array.raw_get(index) for index in range(len(_as(array, generic.ArrayObject)))]


def _key(item: Any) -> object:
    """What tells one object of a PDF from another: number and generation."""
    reference = _as(item, generic.IndirectObject)
    return reference.idnum, reference.generation


def _as(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise _error("attachment-damaged", f"The PDF's list of attached files holds {type(value).__name__} for {kind.__name__}.")
    return value


def _entries(node: Any, limits: PdfLimits, seen: set[object], level: int) -> Iterator[tuple[str, Any]]:
    """Name and reference of every leaf below a node of a name tree (ISO 32000-1, 7.9.6)."""
    _as(node, generic.DictionaryObject)
    if level > limits.depth or len(seen) > limits.attachments:
        raise _error("attachment-limit", "The tree of attached files is deeper or larger than is read of a stranger's file.")
    items = _raw(_get(node, "/Names", generic.ArrayObject()))
    if len(items) % 2 or len(items) > 2 * limits.attachments:
        raise _error("attachment-limit", "The list of attached files is longer than is read, or not made of pairs.")
    for name, item in zip(items[::2], items[1::2], strict=True):
        yield _text(name.get_object() if isinstance(name, generic.IndirectObject) else name), item
    for kid in _raw(_get(node, "/Kids", generic.ArrayObject())):
        if _key(kid) in seen:
            raise _error("attachment-damaged", "The tree of attached files leads back to itself.")
        seen.add(_key(kid))
        yield from _entries(kid.get_object(), limits, seen, level + 1)


def _text(value: Any) -> str:
    if isinstance(value, generic.ByteStringObject):
        return bytes(value).decode("utf-8")
    return str(_as(value, generic.TextStringObject))


def _plain(name: str, limits: PdfLimits) -> str:
    """`name`, if it is one that a report gives its files: no folder, nothing but ASCII, the same file on every system."""
    if file_name(name, limits.name_length) != name:
        raise _error("attachment-name", f"The PDF carries a file with a name that is no plain file name: “{one_line(name, 80)}”.")
    return name


def _file(key: str, item: Any, limits: PdfLimits) -> AttachedFile:
    entry = _as(item.get_object(), generic.DictionaryObject)
    name = _plain(_text(entry["/UF"]), limits)
    if {_text(entry["/F"]), key} != {name}:
        raise _error("attachment-name", f"The file “{name}” has another name for other readers of the PDF.")
    embedded = _as(entry["/EF"], generic.DictionaryObject)
    stream = _as(embedded["/F"], generic.StreamObject)
    if "/UF" in embedded and _key(embedded.raw_get("/UF")) != _key(embedded.raw_get("/F")):
        raise _error("attachment-damaged", f"The file “{name}” has another content for other readers of the PDF.")
    content = bytes(stream.data)
    parameters = _get(stream, "/Params", generic.DictionaryObject())
    if int(_get(parameters, "/Size", len(content))) != len(content):
        raise _error("attachment-damaged", f"The file “{name}” has {len(content):,} bytes, but the PDF says otherwise.")
    checksum = _get(parameters, "/CheckSum")
    if checksum is not None and _bytes(checksum) != hashlib.md5(content, usedforsecurity=False).digest():
        raise _error("attachment-damaged", f"The file “{name}” does not have the checksum that the PDF states.")
    return AttachedFile(
        name=name,
        data=content,
        media_type=str(_get(stream, "/Subtype", "")).removeprefix("/"),
        relationship=str(_get(entry, "/AFRelationship", "")).removeprefix("/"),
        description=_text(entry["/Desc"]) if "/Desc" in entry else "",
    )


def _bytes(value: Any) -> bytes:
    """Bytes of a string object, however pyHanko understood it."""
    return bytes(value) if isinstance(value, bytes) else bytes(value.original_bytes)


def read_metadata(reader: PdfFileReader) -> bytes:
    """The XMP packet of an opened PDF as it stands, undecoded; empty where there is none.

    Raises
    ------
    IntegrityError
        Slugs of `reading`.
    """
    with reading():
        if "/Metadata" not in reader.root:
            return b""
        metadata = reader.root.raw_get("/Metadata").get_object()  # not [...], which parses it
        return bytes(_as(metadata, generic.StreamObject).data)
