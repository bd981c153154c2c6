"""Text from elsewhere, made safe to look at: what a reader sees is what is there.

Characters that are not seen, or that change how others are seen, let a text say one thing to a person and another to a program:
control characters (a terminal obeys them), bidirectional controls (Boucher and Anderson, "Trojan Source", 2021; Unicode UAX #9),
zero-width and tag characters, line separators, lone surrogates, noncharacters, private use, and piles of combining marks that
cover the lines around them (Unicode TR #36 and UTS #39). The tables here are fixed, so that the result does not hang on the
version of Unicode that an interpreter knows.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, NamedTuple

__all__ = ["Hidden", "escape_json", "file_name", "find_hidden", "json_text", "one_line", "visible"]

_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SEPARATORS = "\u2028\u2029"
_SURROGATES = "\ud800-\udfff"
_NO_CHARACTERS = "\ufdd0-\ufdef" + "".join(
    f"{chr(0x10000 * plane + 0xFFFE)}{chr(0x10000 * plane + 0xFFFF)}" for plane in range(17)
)
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"
_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_MOST_MARKS = 8

_KINDS = (
    (re.compile(f"[{_CONTROL}]"), "control character"),
    (re.compile(f"[{_BIDI}]"), "character that changes the direction of text"),
    (re.compile(f"[{_SEPARATORS}]"), "line separator"),
    (re.compile(f"[{_SURROGATES}]"), "half of a character"),
    (re.compile(f"[{_PRIVATE}]"), "private character"),
    (re.compile(f"[{_MARKS}]"), "pile of combining marks"),
)
# A joiner has its place within scripts that join their letters and within emoji; a variation selector after what it varies.
_HIDDEN = re.compile(
    f"[{_CONTROL}{_BIDI}{_INVISIBLE}{_SEPARATORS}{_SURROGATES}{_NO_CHARACTERS}{_PRIVATE}]"
    f"|(?<![^\x00-\x7f{_INVISIBLE}\u200c\u200d])[\u200c\u200d]|[\u200c\u200d](?=[\x00-\x7f{_INVISIBLE}\u200c\u200d]|\\Z)"
    "|(?:(?<=[\x00-\x22\x24-\x29\x2b-\x2f\x3a-\x7f\ufe00-\ufe0f])|^)[\ufe00-\ufe0f]"
    f"|(?<=[{_MARKS}]{{{_MOST_MARKS}}})[{_MARKS}]"
)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


class Hidden(NamedTuple):
    """A character that a reader would not see, or that would change what is seen.

    Parameters
    ----------
    at
        Position in the text, from 0.
    code
        Its code point as ``U+202E``.
    kind
        What kind of character it is, e.g. ``"control character"``.
    """

    at: int
    code: str
    kind: str


def find_hidden(text: str) -> Hidden | None:
    """The first character of `text` that is not seen or changes how others are seen; line feed and tab are neither."""
    found = _HIDDEN.search(text)
    if found is None:
        return None
    kind = next((name for pattern, name in _KINDS if pattern.fullmatch(found[0])), "character that is not seen")
    return Hidden(found.start(), f"U+{ord(found[0]):04X}", kind)


def visible(text: str) -> str:
    """`text` with every hidden character written out as ``[U+202E]``; line feeds and tabs stay.

    Whatever comes out can be printed on a terminal and written into XML 1.0, Markdown, HTML (after escaping) and PDF: it has no
    control characters but line feed and tab, no surrogates, no noncharacters. Text without hidden characters is returned as it is.
    """
    return _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))


def json_text(value: Any) -> str:
    """JSON of `value`, indented, with hidden characters as escapes of JSON: safe on a terminal, and the same value for a program."""
    return escape_json(json.dumps(value, indent=2, ensure_ascii=False))


def escape_json(text: str) -> str:
    """A JSON document with hidden characters as escapes of JSON: the same value for every program that reads it."""
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def one_line(text: str, length: int | None = None) -> str:
    """`text` as `visible` gives it, in one line: every run of white space is one space.

    Parameters
    ----------
    text
        Any text.
    length
        At most so many characters (at least 4), the last three of them dots where more is cut off; ``None``: all of it.
    """
    line = " ".join(visible(text).split())
    return line if length is None or len(line) <= length else line[: length - 3] + "..."


def file_name(text: str, length: int = 100) -> str:
    """A file name that means the same on every system: ASCII letters, digits, ``.``, ``_`` and ``-`` of `text`, the rest as ``_``.

    It names no folder, does not begin with a dot or a dash, is no reserved name of Windows, and has at most `length` characters.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).lstrip(".-_")[:length].rstrip("._-")
    return f"_{name}"[:length] if _RESERVED.fullmatch(name) else name or "_"
