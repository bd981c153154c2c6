"""JSON as exports are written: readable, key order fixed, hidden characters as escapes, NaN refused."""

from __future__ import annotations

import json
from typing import Any

from semlens_audit.plain_text import escape_json

__all__ = ["write"]


def write(document: dict[str, Any]) -> str:
    """The document as UTF-8 text with a final line feed; keys in the order given, which is the order of the format's description.

    Raises
    ------
    ValueError
        If it holds NaN or an infinity.
    """
    return escape_json(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"
