"""What DuckDB complains about, said in plain words with what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from semlens_audit.errors import StoreError

__all__ = ["store_error"]


def store_error(error: Exception, path: Path) -> StoreError:
    """Say in plain words what DuckDB complains about."""
    text, file = str(error), str(path)
    if "Could not set lock" in text or "different configuration than existing" in text:
        who = re.search(r"PID (\d+)", text)
        process = f" (process {who.group(1)})" if who else ""
        return StoreError(
            "store-locked",
            f"The store is in use by another process{process}.",
            "Wait until it has finished, or end it, then run the same command again.",
            file=file,
        )
    if any(sign in text for sign in ("No space left", "File too large", "Disk quota", "Out of disk", "max_temp_directory_size")):
        return StoreError(
            "store-full-disk",
            "The disk is full; what was finished before is kept.",
            "Free some space, or set `store:` in the audit to a larger disk, then run the same command again.",
            file=file,
        )
    if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory" in text:
        return StoreError(
            "store-out-of-memory",
            "The database needs more memory than it may use; what was finished before is kept.",
            "Give --max-memory a larger size, or close other programs, then run the same command again.",
            file=file,
        )
    if any(sign in text for sign in ("Permission denied", "Read-only file system", "in read-only mode!", "read-only database")):
        return StoreError(
            "store-not-writable",
            "The store cannot be written or read here: permission is denied.",
            "Give yourself access to the folder, or set `store:` in the audit to a folder you own.",
            file=file,
        )
    if "Is a directory" in text:
        return StoreError(
            "store-not-a-file", "The store's path is a folder.", "Set `store:` in the audit to a file.", file=file
        )
    if "does not exist" in text and "read-only mode" in text:
        return StoreError(
            "store-missing", "There is no store yet.", "Run `semlens-audit index` with this audit first.", file=file
        )
    if "version number" in text or "newer version of DuckDB" in text:
        return StoreError(
            "store-newer",
            f"The store was written by a newer DuckDB than the installed {duckdb.__version__}.",
            "Upgrade duckdb, or delete the store and index again.",
            file=file,
        )
    signs = (
        "not a valid DuckDB",
        "Corrupt",
        "corrupt",
        "checksum",
        "Could not read enough bytes",
        "Could not read from file",
        "Failed to deserialize",
        "deserializ",
        "INTERNAL Error",
        "database has been invalidated",
        "Failure while replaying",
    )
    if any(sign in text for sign in signs):
        return StoreError(
            "store-corrupt",
            "The store is damaged or is no store.",
            "Restore it from a copy, or delete it and index again: everything in it can be computed anew.",
            file=file,
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return StoreError(
        "store-failed", f"The store could not be used: {first}", "If it persists, delete the store and index again.", file=file
    )
