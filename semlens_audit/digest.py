"""Content digests: canonical JSON and SHA-256, the identity of everything that is cached or reported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["canonical_json", "digest", "digest_array", "digest_bytes", "digest_file"]

_CHUNK = 1 << 20


def canonical_json(value: Any) -> str:
    """Serialise `value` so that equal values give equal text.

    Keys are sorted, separators fixed, text is UTF-8 without escapes, and NaN or infinities are refused.

    Raises
    ------
    ValueError
        If `value` holds NaN or an infinity.
    TypeError
        If `value` holds something JSON cannot express.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_bytes(data: bytes) -> str:
    """SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value).encode("utf-8"))


def digest_file(path: Path) -> str:
    """SHA-256 of the bytes of the file at `path`."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def digest_array(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and C-ordered bytes of `array`."""
    state = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()
