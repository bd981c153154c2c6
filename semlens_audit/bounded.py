"""Files and JSON from elsewhere, read within limits: no pipe is waited for, no memory is filled, no two readers read two things."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["JsonLimits", "LimitError", "TooLargeError", "read_bytes", "read_json"]

_LARGEST = 2**63


class LimitError(ValueError):
    """What was read is larger than it may be, no file, or ambiguous; the message is a clause that says so."""


class JsonLimits:
    """How large a JSON document may be.

    Parameters
    ----------
    size
        Bytes.
    values
        Values, keys not counted, as far as that can be told from brackets and commas.
    depth
        Nested arrays and objects.
    largest
        Absolute value of a number that is no integer.
    """

    def __init__(self, size: int, values: int, depth: int = 50, largest: float = sys.float_info.max) -> None:
        self.size, self.values, self.depth, self.largest = size, values, depth, largest


class TooLargeError(LimitError):
    """What was read has more bytes than it may have."""


def read_bytes(path: Path, most: int) -> bytes:
    """Content of a regular file.

    Parameters
    ----------
    path
        The file; symbolic links are followed.
    most
        Bytes it may have.

    Raises
    ------
    LimitError
        It is a device, a pipe or a folder, or larger than that.
    OSError
        It cannot be read.
    """
    try:
        with open(path, "rb", opener=_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise LimitError("it is a device, a pipe or a folder, not a file")
            content = stream.read(most + 1)
    except IsADirectoryError as error:
        raise LimitError("it is a folder, not a file") from error
    if len(content) > most:
        raise TooLargeError(f"it is larger than {most:,} bytes")
    return content


def _at_once(name: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to does not keep waiting."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(data: bytes, limits: JsonLimits) -> Any:
    """The value of a JSON document that every reader reads alike (RFC 8259, RFC 7493).

    Raises
    ------
    LimitError
        It is not UTF-8 or not JSON, larger or deeper than `limits`, has a key twice in one object, a number that is not finite or an
        integer that a program may not hold (64 bits).
    """
    if len(data) > limits.size:
        raise TooLargeError(f"it is larger than {limits.size:,} bytes")

    def number(text: str) -> float:
        value = float(text)
        if not abs(value) <= limits.largest:
            raise LimitError(f"it holds a number larger than {limits.largest:g}")
        return value

    # counted before anything is built; signs within texts count too, which real documents have room for
    if data.count(b",") + data.count(b"[") + data.count(b"{") > limits.values:
        raise LimitError(f"it holds more than {limits.values:,} values")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=number
        )
    except UnicodeDecodeError as error:
        raise LimitError("it is not UTF-8") from error
    except RecursionError as error:
        raise LimitError(f"it is nested deeper than {limits.depth} levels") from error
    except json.JSONDecodeError as error:
        raise LimitError(f"it is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    _check_depth(value, limits.depth)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise LimitError(f"the key {json.dumps(key[:50])} is in one object twice")
            seen.add(key)
    return value


def _constant(text: str) -> NoReturn:
    raise LimitError(f"it holds the number {text}, which JSON does not have")


def _integer(text: str) -> int:
    if len(text) > 20 or not -_LARGEST <= int(text) < _LARGEST:
        raise LimitError(f"it holds an integer of {len(text.lstrip('-'))} digits")
    return int(text)


def _check_depth(value: Any, most: int) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(most + 1):
        if not level:
            return
        inner = (part for outer in level for part in (outer.values() if isinstance(outer, dict) else outer))
        level = [part for part in inner if isinstance(part, (dict, list))]
    raise LimitError(f"it is nested deeper than {most} levels")
