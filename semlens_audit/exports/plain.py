"""Text, identifiers and times of the exports: nothing that a record's text holds can break out of the format it stands in."""

from __future__ import annotations

import re
import unicodedata
import uuid
from datetime import UTC, datetime

from semlens_audit.errors import UsageError
from semlens_audit.plain_text import one_line

__all__ = ["NAMESPACE", "block", "identifier", "line", "moment", "token", "uri"]

NAMESPACE = uuid.UUID("3f0c2f0e-6c1f-5b8a-9b57-6a1d3f5f2c11")
"""Of every identifier made here (RFC 4122, version 5); it never changes, so the same record keeps its identifiers."""

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/")


def line(text: str, most: int | None = None) -> str:
    """`text` on one line of at most `most` (at least 4) characters, see `semlens_audit.plain_text.one_line`; may be empty."""
    return one_line(text, most)


def block(*paragraphs: str | None) -> str:
    """Lines, each as `line` gives it, one below the other; empty ones left out."""
    return "\n".join(text for text in (line(paragraph) for paragraph in paragraphs if paragraph) if text)


def identifier(record_sha256: str, *parts: str) -> str:
    """UUID (RFC 4122, version 5) of a part of a record: the same record gives the same one."""
    return str(uuid.uuid5(NAMESPACE, "\x1f".join((record_sha256, *parts))))


def token(text: str) -> str:
    """`text` as an XML name without colon: ``EU AI Act Art. 10(2)`` becomes ``eu-ai-act-art.-10-2``."""
    words = re.sub(r"[^\w.-]+", "-", line(text).lower()).strip("-.")
    name = "".join(letter for letter in words if letter in "_-." or unicodedata.category(letter)[0] in "LN")
    return name if name and (name[0] == "_" or unicodedata.category(name[0])[0] == "L") else f"_{name}"


def moment(created: str) -> str:
    """A time of a record as ``2026-11-21T05:34:34Z``.

    Raises
    ------
    UsageError
        Slug ``invalid-time``: the text is no time with its offset from UTC (ISO 8601).
    """
    try:
        parsed = datetime.fromisoformat(created)
        if parsed.tzinfo is None:
            raise ValueError("no offset from UTC")
        return parsed.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError) as error:
        raise UsageError(
            "invalid-time",
            f"The record holds “{line(created, 60)}” where a time with its offset from UTC is due.",
            "Take the record as `run` wrote it, or run the audit again.",
        ) from error


def uri(path: str) -> str:
    """A relative path as URI reference (RFC 3986): what is not unreserved is percent-encoded, leading slashes and ``..`` dropped."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    encoded = "/".join(parts).encode("utf-8", "replace")
    return "".join(chr(byte) if chr(byte) in _UNRESERVED else f"%{byte:02X}" for byte in encoded)
