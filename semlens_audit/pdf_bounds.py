"""Bounds on cross-references and numbers of a stranger's PDF, which pyHanko 0.38 reads without any.

A table in a stream states how many entries it has and how wide they are: of entries without width it may state any number, and
pyHanko makes them all. Sections follow each other by ``/Prev``, and pyHanko compares each with all later ones. A number may have
any length, and pyHanko copies what it has of it with every 16 digits more. Each lets a small file keep its reader busy for hours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pyhanko.pdf_utils import generic, xref
from pyhanko.pdf_utils.misc import PdfDecodeLimitError, PdfReadError

__all__ = ["bounded_sections"]

_LONGEST_NUMBER = 256
_DIGITS = frozenset(b"+-.0123456789")
_left: ContextVar[int | None] = ContextVar("sections of cross-references that may still be read", default=None)


@contextmanager
def bounded_sections(number: int) -> Iterator[None]:
    """Let pyHanko read at most `number` sections of cross-references; more raise its ``PdfDecodeLimitError``."""
    token = _left.set(number)
    try:
        yield
    finally:
        _left.reset(token)


def _count() -> None:
    left = _left.get()
    if left is None:
        return
    if left == 0:
        raise PdfDecodeLimitError("there are more sections of cross-references than are read")
    _left.set(left - 1)


def _counted(read: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        _count()
        return read(*arguments, **options)

    return counted


def _with_width(read: Callable[..., Any]) -> Callable[..., Any]:
    def checked(stream: Any, *arguments: Any, **options: Any) -> Any:
        widths = stream.get("/W")
        known = isinstance(widths, generic.ArrayObject) and len(widths) == 3 and all(isinstance(width, int) for width in widths)
        if not known or min(widths) < 0 or sum(widths) == 0:
            raise PdfReadError("a stream of cross-references states no width of its entries")
        return read(stream, *arguments, **options)

    return checked


def _of_bounded_length(read: Callable[..., bytes]) -> Callable[..., bytes]:
    def bounded(stream: Any, *arguments: Any, **options: Any) -> bytes:
        place = stream.tell()
        beginning = stream.read(_LONGEST_NUMBER)
        stream.seek(place)
        if len(beginning) == _LONGEST_NUMBER and not set(beginning) - _DIGITS:
            raise PdfReadError("a number has more digits than any that is used")
        return read(stream, *arguments, **options)

    return bounded


# what it finds is raised, and said once, by whoever asked it to read
logging.getLogger("pyhanko").addHandler(logging.NullHandler())
# pyHanko looks them up by these names whenever it reads a file; there is no other place to say so
xref.parse_xref_stream = _counted(_with_width(xref.parse_xref_stream))
xref.parse_xref_table = _counted(xref.parse_xref_table)
generic.read_until_regex = _of_bounded_length(generic.read_until_regex)  # which reads nothing but numbers there
