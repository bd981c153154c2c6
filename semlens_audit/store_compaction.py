"""A store without what nothing needs any more, in a file of its own size.

DuckDB never returns space to the disk. What is kept is copied into a new file, row by row in the order of the old one, compared with
it, and put in its place in one step: interrupted at any moment, the store is either the old one or the new one, and whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from semlens_audit import __version__
from semlens_audit.component_search import cache_folder
from semlens_audit.digest import canonical_json
from semlens_audit.errors import IntegrityError, StoreError
from semlens_audit.store import Store
from semlens_audit.store_errors import store_error
from semlens_audit.store_schema import TABLES, VERSION, statements

__all__ = ["Removal", "compact", "fingerprint", "removals"]

_WIDE = {"FLOAT[]", "BLOB"}
_REGION = ("pool", "sample", "x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Removal:
    """Rows of a table that nothing kept needs.

    Parameters
    ----------
    table
        Name of the table.
    rows, of
        Rows that would go, and rows that there are.
    """

    table: str
    rows: int
    of: int


def fingerprint(store: Store) -> str:
    """State of a store, so that a compaction does not remove what was written after it was planned."""
    return str(store.rows(_FINGERPRINT.format(at=""))[0])


_FINGERPRINT = (
    "SELECT (SELECT count(*) FROM {at}run_log), (SELECT max(\"at\") FROM {at}run_log), (SELECT count(*) FROM {at}stage), "
    "(SELECT sum(done) FROM {at}stage), (SELECT count(*) FROM {at}region)"
)


def removals(store: Store, keep: set[str]) -> tuple[Removal, ...]:
    """What `compact` would remove, for tables that lose something.

    Parameters
    ----------
    store
        Open store.
    keep
        Keys of the stages that are kept.
    """
    _prepare(store.execute, "", keep)
    found = []
    for table in TABLES:
        every, kept = store.count(table.name), store.rows(f"SELECT count(*) FROM {_kept(table.name, '')}")[0][0]
        if table.name != "store_version" and every > kept:
            found.append(Removal(table.name, every - kept, every))
    return tuple(found)


def compact(
    path: Path, keep: set[str], planned: str, memory_limit: int | None = None, *, forgotten: Sequence[str] = ()
) -> tuple[int, int]:
    """Replace a store by one that holds what is kept only; its log goes on, with an entry of what was done.

    Parameters
    ----------
    path
        The store, closed.
    keep
        Keys of the stages that are kept.
    planned
        `fingerprint` of the store when `keep` was decided.
    memory_limit
        Bytes that the database may hold in memory.
    forgotten
        Ids of audits whose indexes are given up: the entry names them, so that nobody is asked about them again.

    Returns
    -------
    before, after
        Bytes of the file.

    Raises
    ------
    StoreError
        ``store-locked``, ``store-full-disk``, ``store-changed`` since it was planned.
    IntegrityError
        ``compaction-differs``: the copy is not what was to be kept; the store stays as it was.
    """
    path = path.resolve()
    copy = path.with_name(f".{path.name}.compacting")
    before = path.stat().st_size
    try:
        with _alone(path), duckdb.connect(":memory:") as connection:
            _remove(copy)
            try:
                _copy(connection, path, copy, keep, planned, memory_limit, forgotten)
                shutil.copymode(path, copy)
                _flush(copy)
                after = copy.stat().st_size
                os.replace(copy, path)  # while the old file is still open, so that nobody else has begun to write to it
                _flush(path.parent)
            finally:
                _remove(copy)
    except (duckdb.Error, OSError) as error:
        raise store_error(error, path) from error
    with suppress(OSError):  # only a cache
        for file in cache_folder(path).iterdir():
            if file.name.partition(".")[0] not in keep:
                file.unlink()
    return before, after


def _copy(
    connection: duckdb.DuckDBPyConnection, path: Path, copy: Path, keep: set[str], planned: str, memory_limit: int | None,
    forgotten: Sequence[str],
) -> None:  # fmt: skip
    connection.execute(f"SET temp_directory = {_quoted(f'{copy}.tmp')}")
    if memory_limit is not None:
        connection.execute(f"SET memory_limit = '{memory_limit}B'")
    connection.execute(f"ATTACH {_quoted(str(path))} AS old (READ_ONLY)")
    connection.execute(f"ATTACH {_quoted(str(copy))} AS new")
    base = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'old'").fetchall()}
    version = connection.execute("SELECT version FROM old.store_version").fetchall()
    if str(connection.execute(_FINGERPRINT.format(at="old.")).fetchall()[0]) != planned or version != [(VERSION,)]:
        raise StoreError(
            "store-changed", "The store was written to while its compaction was planned.", "Run the same command again.", file=str(path)
        )
    if missing := sorted({table.name for table in TABLES} - base):
        raise IntegrityError(
            "store-damaged", f"The store lacks the table {missing[0]}.", "Restore it from a copy, or index again.", file=str(path)
        )
    _prepare(connection.execute, "old.", keep)
    connection.execute("USE new")
    for statement in statements():
        connection.execute(statement)
    connection.execute("INSERT INTO new.store_version VALUES (?, ?)", (VERSION, __version__))
    removed = {}
    for table in TABLES:
        if table.name == "store_version":
            continue
        columns = ", ".join(f'"{name}"' for name in table.columns)
        into = f'INSERT INTO new."{table.name}" ({columns}) SELECT {columns} FROM '
        if not _WIDE & {kind.removesuffix(" NOT NULL") for kind, _ in table.columns.values()}:
            connection.execute(f"{into} {_kept(table.name, 'old.')} ORDER BY rowid")
        elif "stage" in table.columns:  # a scan keeps the order of its rows, and never sorts what is long
            for key in sorted(keep):
                connection.execute(f'{into} old."{table.name}" WHERE stage = ?', (key,))
        else:
            connection.execute(into + _kept(table.name, "old."))
        state = f"SELECT count(*), coalesce(bit_xor(hash({columns})), 0) FROM "
        there = connection.execute(state + _kept(table.name, "old.")).fetchall()
        if connection.execute(f'{state} new."{table.name}"').fetchall() != there:
            raise IntegrityError(
                "compaction-differs",
                f"The copied rows of the table {table.name} are not those of the store; it stays as it was.",
                "Run `semlens-audit store check`, and look after the disk.",
                file=str(path),
            )
        gone = connection.execute(f'SELECT count(*) FROM old."{table.name}"').fetchall()[0][0] - there[0][0]
        removed.update({table.name: gone} if gone else {})
    now = datetime.now(UTC).replace(tzinfo=None)
    given_up = {"forgotten": sorted(forgotten)} if forgotten else {}
    detail = canonical_json({"removed": removed, "stages": sorted(keep), **given_up})
    connection.execute("INSERT INTO new.run_log VALUES (?, ?, ?)", (now, "store-compacted", detail))
    connection.execute("USE memory")
    connection.execute("CHECKPOINT new")
    connection.execute("DETACH new")


def _prepare(execute: duckdb.DuckDBPyConnection.execute, at: str, keep: set[str]) -> None:  # type: ignore[valid-type]
    """Make the temporary tables that `_kept` refers to: stages, pools and regions that are kept, and files that are still there."""
    for name in ("stages", "pools", "regions", "files"):
        execute(f"DROP TABLE IF EXISTS temp.kept_{name}")
    execute("CREATE TEMP TABLE kept_stages AS SELECT unnest(?::VARCHAR[]) AS key", (sorted(keep),))
    pool = "json_extract_string(inputs, '$.{}')"
    execute(
        f"CREATE TEMP TABLE kept_pools AS SELECT DISTINCT {pool.format('foundation')} AS pool FROM {at}stage "
        f"SEMI JOIN temp.kept_stages USING (key) WHERE {pool.format('stage')} = 'probes'"
    )
    side = "CAST(json_extract(f.inputs, '$.geometry.size') AS SMALLINT)"
    crops, own = "json_extract_string(e.inputs, '$.crops')", "json_extract_string(e.inputs, '$.pool')"
    kind = "json_extract_string(e.inputs, '$.stage')"
    execute(
        "CREATE TEMP TABLE kept_regions AS "
        f"SELECT {own} AS pool, c.sample, c.x0, c.y0, c.x1, c.y1 FROM {at}stage e SEMI JOIN temp.kept_stages USING (key) "
        f"JOIN {at}crop c ON c.stage = {crops} WHERE {kind} = 'embeddings' "
        f"UNION SELECT {own}, n.sample, n.x0, n.y0, n.x1, n.y1 FROM {at}stage e SEMI JOIN temp.kept_stages USING (key) "
        f"JOIN {at}null_region n ON n.stage = e.key WHERE {kind} = 'null' "
        f"UNION SELECT r.pool, r.sample, r.x0, r.y0, r.x1, r.y1 FROM {at}stage e SEMI JOIN temp.kept_stages USING (key) "
        f"JOIN {at}stage f ON f.key = {own} JOIN {at}region r ON r.pool = f.key AND r.x0 = 0 AND r.y0 = 0 AND r.x1 = {side} "
        f"AND r.y1 = {side} WHERE {kind} = 'views'"
    )
    files = [name for (name,) in execute(f"SELECT path FROM {at}file_digest").fetchall() if os.path.exists(name)]  # noqa: PTH110
    execute("CREATE TEMP TABLE kept_files AS SELECT unnest(?::VARCHAR[]) AS path", (files,))


def _kept(table: str, at: str) -> str:
    """The rows of a table that are kept, as what follows FROM."""
    name = f'{at}"{table}"'
    columns = next(one.columns for one in TABLES if one.name == table)
    if table == "stage":
        return f"{name} SEMI JOIN temp.kept_stages USING (key)"
    if "stage" in columns:
        return f"{name} SEMI JOIN temp.kept_stages ON kept_stages.key = stage"
    if table == "region":
        return f"{name} SEMI JOIN temp.kept_regions USING ({', '.join(_REGION)})"
    if "pool" in columns:
        return f"{name} SEMI JOIN temp.kept_pools USING (pool)"
    if table == "measurement":
        return f"{name} WHERE false"
    return f"{name} SEMI JOIN temp.kept_files USING (path)" if table == "file_digest" else name


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep a second compaction from beginning; a lock on the folder, which ends with the process however it ends."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                "store-locked",
                "Another compaction is at work in the store's folder.",
                "Wait until it has finished, then run the same command again.",
                file=str(path),
            ) from error
        waiting = path.with_name(f"{path.name}.wal")
        if waiting.exists() and waiting.stat().st_size:
            raise StoreError(
                "store-changed", "The store was written to while its compaction was planned.", "Run the same command again.",
                file=str(path),
            )  # fmt: skip
        yield
    finally:
        os.close(folder)


def _flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(copy: Path) -> None:
    """Remove the copy that an interrupted compaction left behind."""
    for file in (copy, copy.with_name(f"{copy.name}.wal")):
        file.unlink(missing_ok=True)
    shutil.rmtree(f"{copy}.tmp", ignore_errors=True)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
