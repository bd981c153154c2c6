"""The images in a record: each the JPEG whose digest is its key, of a size that belongs on a page."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from semlens_audit.digest import digest_bytes

__all__ = ["wrong_image"]

_KEY = re.compile(r"[0-9a-f]{64}")
_LONGEST_SIDE = 4096
_MOST_BYTES = 4_000_000
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of the frame headers that viewers read: baseline, extended sequential, progressive (ITU-T T.81, table B.1)."""


def wrong_image(images: Mapping[str, str]) -> str | None:
    """What is wrong with the first image that is not what it should be; ``None`` where all are.

    Parameters
    ----------
    images
        SHA-256 -> JPEG, base64, as `semlens_audit.records.AuditRecord.images`.
    """
    for key, text in images.items():
        if _KEY.fullmatch(key) is None:
            return "the key of an image is no SHA-256"
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return f"the image {key[:12]} is not base64"
        if digest_bytes(data) != key:
            return f"the image {key[:12]} is not the one that its key names"
        size = _jpeg_size(data)
        if size is None or len(data) > _MOST_BYTES or not 1 <= min(size) <= max(size) <= _LONGEST_SIDE:
            return f"the image {key[:12]} is no JPEG of at most {_LONGEST_SIDE} x {_LONGEST_SIDE} pixels"
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the frame header of a JPEG; ``None`` for anything else."""
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if length < 2:
            return None
        at += 2 + length
    return None
