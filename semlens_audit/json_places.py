"""Where in a JSON document a value stands, by line and column, so that a complaint about it can say so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

__all__ = ["odd_number", "place_of", "repeated_key"]

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_DEEPEST = 60
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s,:\[\]{}"]+')


def place_of(text: str, path: Sequence[int | str]) -> tuple[int, int]:
    """Line and column, from 1, of the value at `path`, or of the innermost value on the way there that exists.

    Parameters
    ----------
    text
        A valid JSON document.
    path
        Keys and indexes from the outermost value on.
    """
    at = _after_space(text, 0)
    for step in path:
        found = next((start for name, _, start in _members(text, at) if name == step), None)
        if found is None:
            break
        at = found
    return _line_and_column(text, at)


def repeated_key(text: str) -> tuple[str, int, int] | None:
    """The first key that an object has twice, with line and column of its second place; ``None`` where there is none.

    Parameters
    ----------
    text
        A valid JSON document. What is nested deeper than 60 levels is not looked at.
    """
    waiting = [(_after_space(text, 0), 0)]
    while waiting:
        at, depth = waiting.pop()
        seen: set[int | str] = set()
        inner = []
        for name, key, start in _members(text, at):
            if isinstance(name, str) and name in seen:
                return (name, *_line_and_column(text, key))
            seen.add(name)
            if text[start] in "{[" and depth < _DEEPEST:
                inner.append((start, depth + 1))
        waiting += reversed(inner)
    return None


def odd_number(text: str, largest: float) -> tuple[int, int] | None:
    """Line and column of the first number that is none, is larger than `largest`, or is an integer of more than 64 bits.

    Parameters
    ----------
    text
        A document that is JSON but for such numbers.
    largest
        Absolute value that a number may have which is no integer.
    """
    for token in _TOKEN.finditer(text):
        said = token[0]
        if said[0] == '"' or said in ("true", "false", "null"):
            continue
        whole = said.lstrip("-").isdigit()
        if (len(said) > 20 or not -(2**63) <= int(said) < 2**63) if whole else not abs(float(said)) <= largest:
            return _line_and_column(text, token.start())
    return None


def _members(text: str, at: int) -> list[tuple[int | str, int, int]]:
    """Key or index, its own place, and the place of its value, of every member of the array or object at `at`."""
    opening = text[at : at + 1]
    found: list[tuple[int | str, int, int]] = []
    if opening not in ("{", "["):
        return found
    at = _after_space(text, at + 1)
    while text[at] not in "}]":
        name: int | str = len(found)
        key = at
        if opening == "{":
            name, at = _DECODER.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        found.append((name, key, at))
        _, at = _DECODER.raw_decode(text, at)
        at = _after_space(text, at)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return found


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found is not None else at


def _line_and_column(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1
