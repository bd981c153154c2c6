"""Digests of the files that audits read, kept in the store, so that a file is read again only once it has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from semlens_audit.digest import digest_file

__all__ = ["FileDigests"]

_MOST = 1000
"""Digests that wait to be written."""


class FileDigests:
    """What the store knows of files; what it comes to know is written some at a time, and by `flush`.

    Parameters
    ----------
    read
        Gives the rows of a query.
    write
        Runs a statement; ``None``: nothing is written.
    """

    def __init__(
        self, read: Callable[[str], list[tuple[Any, ...]]], write: Callable[[str, Sequence[object]], object] | None
    ) -> None:
        self._read, self._write = read, write
        self._known: dict[str, tuple[int, int, int, str]] | None = None
        self._fresh: set[str] = set()

    def of(self, path: Path) -> str:
        """SHA-256 of the bytes of a file; read again only if its size, time of change or inode differ from last time."""
        if self._known is None:
            found = self._read("SELECT path, size, mtime_ns, inode, sha256 FROM file_digest")
            self._known = {name: (size, changed, inode, sha256) for name, size, changed, inode, sha256 in found}
        name, status = str(path.absolute()), path.stat()
        identity = (status.st_size, status.st_mtime_ns, status.st_ino)
        known = self._known.get(name)
        if known is None or known[:3] != identity:
            known = (*identity, digest_file(path))
            self._known[name] = known
            self._fresh.add(name)
            if len(self._fresh) >= _MOST:
                self.flush()
        return known[3]

    def flush(self) -> None:
        """Write what waits.

        Raises
        ------
        StoreError
            It cannot be written.
        """
        if self._write is None or not self._fresh or self._known is None:
            return
        names = sorted(self._fresh)
        columns = list(zip(*(self._known[name] for name in names), strict=True))
        self._write(
            "INSERT OR REPLACE INTO file_digest SELECT unnest(?::VARCHAR[]), unnest(?::BIGINT[]), unnest(?::BIGINT[]), "
            "unnest(?::UBIGINT[]), unnest(?::VARCHAR[])",
            (names, *(list(column) for column in columns)),
        )
        self._fresh.clear()
