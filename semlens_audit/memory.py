"""Main memory: sizes as people write them, what this process holds, and a limit divided among those who take some. Imports no torch."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from semlens_audit.errors import ExecutionError, UsageError

__all__ = ["DATABASE", "LEAST_DATABASE", "Allowance", "Limit", "divide", "parse_size", "release", "resident", "reuse", "show_size"]

DATABASE = 256 << 20
"""Bytes that the database may hold where no limit is given: caching more of an index makes nothing quicker."""

LEAST_DATABASE = 64 << 20
"""Least that the database works with."""

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-zA-Z]*)\s*")
_LEAST = 128 << 20
"""Less than the interpreter with its libraries takes anywhere."""
_MOST = 1 << 62
"""More than there is anywhere."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
_REUSED, _REUSED_BEFORE_2_36 = 1 << 30, 32 << 20
"""Size of a block up to which it is used again; older versions allow no more than the second."""


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: ``4GB`` (powers of 1,000), ``800MiB`` (powers of 1,024), ``2.5g``, ``1073741824``.

    Raises
    ------
    UsageError
        ``bad-size``: no number with a known unit. ``memory-too-small``: less than any process takes.
    """
    match = _SIZE.fullmatch(text)
    unit = match["unit"].lower() if match else None
    if match is None or unit not in _UNITS:
        raise UsageError("bad-size", f"{text!r} is no size of memory.", "Write a number and a unit, such as 4GB or 800MiB.")
    value = float(match["number"]) * _UNITS[unit]
    size = int(min(value, _MOST))
    if size < _LEAST:
        raise UsageError(
            "memory-too-small",
            f"{text!r} is {show_size(size)}; the libraries alone take more than {show_size(_LEAST)}.",
            "Give --max-memory a larger size, such as 4GB.",
        )
    return size


def show_size(size: int) -> str:
    """``3.2 GB``, ``810 MB`` or ``12 kB``: powers of 1,000, at most one decimal."""
    for power, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= power:
            value = f"{size / power:.1f}" if size < 10 * power else f"{size / power:.0f}"
            return f"{value.removesuffix('.0')} {unit}"
    return f"{size} bytes"


def resident() -> int | None:
    """Bytes of main memory that this process holds now; ``None`` where the system does not tell."""
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith(f"{field}:")), None)
    return int(found[1]) << 10 if found and len(found) == 3 and found[2] == "kB" else None


def release() -> None:
    """Give memory that is free, but kept by the C library for later, back to the system; where that is not glibc, nothing is done.

    Tensors and query results of changing sizes leave gaps in its heap, so that what a process holds grows with the length of a pass
    though what it uses does not.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reuse() -> None:
    """Keep large blocks that are freed for whoever asks next, until `release`; where the C library is not glibc, nothing is done.

    A network's intermediate results are tens of megabytes each. Left alone, glibc asks the system for every one of them anew, which
    clears its pages: half of the processor time of a narrow network.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        for size in (_REUSED, _REUSED_BEFORE_2_36):
            if adjust(_MMAP_THRESHOLD, size):
                break
        adjust(_TRIM_THRESHOLD, _REUSED)


@dataclass(frozen=True)
class Allowance:
    """What those who can do with less may take.

    Parameters
    ----------
    database
        Bytes that the database holds.
    waiting
        Bytes of results that wait to be written together.
    ahead
        Bytes of inputs prepared before they are asked for.
    """

    database: int = DATABASE
    waiting: int = 8 << 20
    ahead: int = 256 << 20


def divide(limit: int | None) -> Allowance:
    """Divide a limit: an eighth to the database, a sixteenth each to waiting results and to inputs prepared ahead, the rest to networks.

    Batches are not divided: their size decides the last bits of results, and no limit on memory may.
    """
    if limit is None:
        return Allowance()
    return Allowance(
        database=min(DATABASE, max(LEAST_DATABASE, limit // 8)),
        waiting=min(8 << 20, limit // 16),
        ahead=min(256 << 20, limit // 16),
    )


class Limit:
    """Holds a process to the memory that it may use.

    Parameters
    ----------
    limit
        Bytes; ``None``: as much as it takes.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        before = _status("VmHWM")
        # What was held before does not count; where it was more than the limit, only what is held at the moment can be told.
        self._field = "VmHWM" if limit is None or before is None or before <= limit else "VmRSS"

    def require(self, doing: str) -> None:
        """Stop if more is, or was since the beginning, held than allowed.

        Parameters
        ----------
        doing
            What takes the memory, for the message.

        Raises
        ------
        ExecutionError
            ``memory-exceeded``, with how much is held.
        """
        held = None if self._limit is None else _status(self._field)
        if self._limit is not None and held is not None and held > self._limit:
            raise ExecutionError(
                "memory-exceeded",
                f"{doing} takes {show_size(held)} of memory, more than the {show_size(self._limit)} that --max-memory allows.",
                f"Allow more than {show_size(held)}, or lower `measurement.batch_size` in the audit; what was finished is kept.",
            )
