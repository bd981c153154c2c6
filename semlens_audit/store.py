"""The store: one DuckDB file that holds everything an index computes, written by one process, read without model or data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from semlens_audit import __version__
from semlens_audit.column_stream import ColumnStream
from semlens_audit.digest import canonical_json, digest
from semlens_audit.errors import StoreError
from semlens_audit.store_errors import store_error
from semlens_audit.store_file_digests import FileDigests
from semlens_audit.store_schema import CONTENT_TABLES, VERSION, statements

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["StageState", "Store"]

_BATCH = 20_000
_ORDERED = re.compile(r"SELECT (?P<columns>.+?) FROM (?P<table>\"?\w+\"?) WHERE (?P<where>.+?) ORDER BY (?P<order>.+)", re.DOTALL)
_LEAST_MEMORY = 64 << 20
_CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
"""A store from elsewhere may hold views; none of them reads another file, attaches a database or fetches an extension."""


@dataclass(frozen=True)
class StageState:
    """How far a stage has come.

    Parameters
    ----------
    key
        Digest of the stage's inputs.
    name
        What it computes, e.g. ``crops:layer3``.
    total, done
        Items.
    complete
        Whether every row is written.
    facts
        What was learned about the inputs while computing.
    checkpoint
        State of an unfinished stream, or ``None``.
    """

    key: str
    name: str
    total: int
    done: int
    complete: bool
    facts: dict[str, Any] = field(default_factory=dict)
    checkpoint: bytes | None = None


class Store:
    """An open store; use `Store.open`.

    Parameters
    ----------
    path
        The file.
    connection
        An open DuckDB connection to it.
    read_only
        Whether writing is refused.
    """

    def __init__(self, path: Path, connection: duckdb.DuckDBPyConnection, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self._connection = connection
        self._depth = 0
        self._files = FileDigests(self.rows, None if read_only else self.execute)

    @classmethod
    def open(cls, path: Path, read_only: bool = False, *, memory_limit: int | None = None) -> Store:
        """Open the store at `path`, creating it and its folder unless `read_only`.

        Parameters
        ----------
        path
            The file.
        read_only
            Whether writing is refused; several processes can read at once, and none while one writes.
        memory_limit
            Bytes that the database may hold in memory; what exceeds them goes to a folder beside the store. ``None``: up to 80 % of
            the machine's.

        Raises
        ------
        StoreError
            ``store-missing`` (read-only only), ``store-locked``, ``store-corrupt``, ``store-newer``, ``store-foreign``,
            ``store-not-writable``, ``store-not-a-file``, ``store-full-disk``.
        """
        path = Path(path)
        if read_only and not path.exists():
            raise StoreError(
                "store-missing", "There is no store yet.", "Run `semlens-audit index` with this audit first.", file=str(path)
            )
        if any("\udc80" <= letter <= "\udcff" for letter in str(path)):  # what the database cannot open
            hint = "Rename the folder, or set `store:` in the audit to another."
            raise StoreError("store-failed", "The store's path holds bytes that are not UTF-8.", hint, file=str(path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (PermissionError, NotADirectoryError, FileExistsError, OSError) as error:
            raise StoreError(
                "store-not-writable",
                f"The store's folder cannot be made: {error.strerror}.",
                "Set `store:` in the audit to a folder you own.",
                file=str(path),
            ) from error
        try:
            connection = duckdb.connect(str(path), read_only=read_only, config=_CLOSED)
        except (duckdb.Error, OSError) as error:
            raise store_error(error, path) from error
        store = cls(path, connection, read_only)
        try:
            if memory_limit is not None:  # not part of the configuration: a process may open the same store twice
                store.execute(f"SET memory_limit = '{max(memory_limit, _LEAST_MEMORY)}B'")
            store._check_version()
        except BaseException:
            connection.close()
            raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Write pending file digests and close; a second call does nothing."""
        with suppress(StoreError):  # only a cache; the digests are computed again
            self._files.flush()
        self._connection.close()

    def _check_version(self) -> None:
        tables = {row[0] for row in self.rows("SELECT table_name FROM duckdb_tables() WHERE NOT internal")}
        if not tables and not self.read_only:
            with self.transaction():
                self._upgrade(0)
            return
        if "store_version" not in tables:
            raise StoreError(
                "store-foreign",
                "The file is a DuckDB database, but not a store of semlens-audit.",
                "Set `store:` in the audit to another path.",
                file=str(self.path),
            )
        versions = self.rows("SELECT version, tool FROM store_version")
        if len(versions) != 1:
            raise StoreError(
                "store-corrupt",
                "The store is damaged: it does not say which version it has.",
                "Restore it from a copy, or delete it and index again: everything in it can be computed anew.",
                file=str(self.path),
            )
        ((found, tool),) = versions
        which = f"version {found}, written by semlens-audit {tool}; this is {__version__}, which reads version {VERSION}"
        if found > VERSION:
            hint = "Upgrade semlens-audit, or set `store:` in the audit to another path."
            raise StoreError("store-newer", f"The store has {which}.", hint, file=str(self.path))
        if found < VERSION:
            if self.read_only:
                hint = "Run `semlens-audit index` with this audit once; that brings the store up to date and keeps its content."
                raise StoreError("store-older", f"The store has {which}.", hint, file=str(self.path))
            with self.transaction():
                self._upgrade(found)
                self.log("store-upgraded", {"from": found, "to": VERSION})

    def _upgrade(self, have: int) -> None:
        for statement in statements(have):
            self.execute(statement)
        self.execute("DELETE FROM store_version")
        self.execute("INSERT INTO store_version VALUES (?, ?)", (VERSION, __version__))

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> duckdb.DuckDBPyConnection:
        """Run one statement and return DuckDB's cursor; its errors become `StoreError`."""
        try:
            return self._connection.execute(sql, parameters) if parameters else self._connection.execute(sql)
        except (duckdb.Error, OSError) as error:
            raise store_error(error, self.path) from error

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query as tuples of Python values."""
        try:
            return self.execute(sql, parameters).fetchall()
        except (duckdb.Error, OSError) as error:
            raise store_error(error, self.path) from error

    def arrays(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        """All rows of a query as one array per column; a FLOAT[] column becomes one (rows, length) float32 array."""
        try:
            columns = self.execute(sql, parameters).fetchnumpy()
        except (duckdb.Error, OSError) as error:
            raise store_error(error, self.path) from error
        return {name: _stacked(values) for name, values in columns.items()}

    def count(self, table: str) -> int:
        """Rows of a table."""
        return int(self.rows(f'SELECT count(*) FROM "{table}"')[0][0])

    def blocks(self, sql: str, parameters: Sequence[object] = (), rows: int = 4096) -> Iterator[dict[str, np.ndarray]]:
        """The rows of a query in order, some at a time, in memory that does not grow with their number.

        The order is found from the columns that it names alone, so that vectors are never sorted. Between two blocks the store may
        be used for anything else but removing the rows.

        Parameters
        ----------
        sql
            ``SELECT columns FROM table WHERE condition ORDER BY columns``, of one table.
        parameters
            Of the condition.
        rows
            Most rows of a block.

        Yields
        ------
        dict
            Column -> array of at most `rows` values, as `arrays` gives them.

        Raises
        ------
        ValueError
            If `sql` has another form, or `rows` is not positive.
        """
        parts = _ORDERED.fullmatch(sql.strip())
        if parts is None or rows < 1:
            raise ValueError(f"not SELECT columns FROM table WHERE condition ORDER BY columns, or no rows: {sql!r}, {rows}")
        table = parts["table"]
        found = self.arrays(f"SELECT rowid FROM {table} WHERE {parts['where']} ORDER BY {parts['order']}", parameters)["rowid"]
        chosen = f"SELECT rowid AS _rowid, {parts['columns']} FROM {table} WHERE rowid"
        for start in range(0, len(found), rows):
            wanted = found[start : start + rows]
            first, last = int(wanted.min()), int(wanted.max())
            if last - first + 1 == len(wanted):  # rows that were written one after the other
                block = self.arrays(f"{chosen} BETWEEN ? AND ?", (first, last))
            else:
                block = self.arrays(f"{chosen} IN (SELECT unnest(?::BIGINT[]))", (wanted.tolist(),))
            came = block.pop("_rowid")
            if not np.array_equal(came, wanted):
                place = np.argsort(came)[np.argsort(np.argsort(wanted))]
                block = {name: values[place] for name, values in block.items()}
            yield block

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is kept together or not at all, whatever ends it: an error, Ctrl-C or a kill."""
        if self._depth:
            yield
            return
        self.execute("BEGIN TRANSACTION")
        self._depth = 1
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with suppress(duckdb.Error, OSError):  # a failed commit has already rolled back
                self._connection.execute("ROLLBACK")
            raise
        finally:
            self._depth = 0

    def append(self, table: str, **columns: Any) -> None:
        """Append rows given column by column, in the order of the table's columns.

        Parameters
        ----------
        table
            Name of a table.
        **columns
            Column -> sequence of n values, or one scalar for all rows. For a FLOAT[] column an (n, d) float32 array.
        """
        count = max((len(value) for value in columns.values() if _many(value)), default=1)
        if count == 0:
            return
        stream = ColumnStream({name: value for name, value in columns.items() if _many(value)} or {"one": [0]})
        fixed = [value for value in columns.values() if not _many(value)]
        values = ", ".join(f'"{name}"' if _many(value) else "?" for name, value in columns.items())
        names = ", ".join(f'"{name}"' for name in columns)
        self._connection.register("appended_rows", stream)
        try:
            self.execute(f'INSERT INTO "{table}" ({names}) SELECT {values} FROM appended_rows', fixed)
        finally:
            with suppress(
                duckdb.Error
            ):  # after a failed insert nothing but a rollback is accepted, which forgets the stream too
                self._connection.unregister("appended_rows")

    def log(self, event: str, detail: Mapping[str, Any]) -> None:
        """Add a row to the run log, with the present time."""
        now = datetime.now(UTC).replace(tzinfo=None)
        self.execute("INSERT INTO run_log VALUES (?, ?, ?)", (now, event, canonical_json(dict(detail))))

    def stage(self, key: str) -> StageState | None:
        """State of the stage with that key, or ``None`` if it was never begun."""
        found = self.rows("SELECT key, name, total, done, complete, facts, checkpoint FROM stage WHERE key = ?", (key,))
        if not found:
            return None
        key, name, total, done, complete, facts, checkpoint = found[0]
        return StageState(key, name, total, done, complete, json.loads(facts), checkpoint)

    def complete(self, keys: Sequence[str]) -> bool:
        """Whether every one of the stages is finished."""
        wanted = sorted(set(keys))
        found = self.rows("SELECT count(*) FROM stage WHERE complete AND key IN (SELECT unnest(?::VARCHAR[]))", (wanted,))
        return bool(found[0][0] == len(wanted))

    def begin(self, name: str, inputs: Mapping[str, Any], total: int) -> StageState:
        """Enter a stage: the one already begun with equal inputs, or a new one."""
        key = digest(inputs)
        state = self.stage(key)
        if state is None:
            with self.transaction():
                self.execute(
                    "INSERT INTO stage VALUES (?, ?, ?, ?, 0, false, '{}', NULL)", (key, name, canonical_json(inputs), total)
                )
                self.log("stage-begun", {"stage": key, "name": name, "total": total})
            state = StageState(key, name, total, 0, False)
        elif not state.complete:
            self.log("stage-resumed", {"stage": key, "name": name, "done": state.done, "total": state.total})
        return state

    def advance(self, key: str, done: int, checkpoint: bytes | None = None) -> None:
        """Record that `done` items of a stage are finished; belongs into the transaction that writes their rows."""
        self.execute("UPDATE stage SET done = ?, checkpoint = ? WHERE key = ?", (done, checkpoint, key))

    def note(self, key: str, facts: Mapping[str, Any]) -> None:
        """Keep what an unfinished stage has settled before its first row; going on with it, it is read from the stage's state."""
        self.execute("UPDATE stage SET facts = ? WHERE key = ?", (canonical_json(dict(facts)), key))

    def finish(self, key: str, facts: Mapping[str, Any] | None = None) -> None:
        """Record that a stage is complete, with what was learned on the way."""
        with self.transaction():
            self.execute(
                "UPDATE stage SET done = total, complete = true, checkpoint = NULL, facts = ? WHERE key = ?",
                (canonical_json(dict(facts or {})), key),
            )
            self.log("stage-finished", {"stage": key})

    def get_measurement(self, key: str) -> str | None:
        """Cached measurement under `key`, or ``None``."""
        found = self.rows("SELECT payload FROM measurement WHERE key = ?", (key,))
        return str(found[0][0]) if found else None

    def put_measurement(self, key: str, payload: str) -> None:
        """Cache a measurement under `key`, replacing one that is there."""
        self.execute("INSERT OR REPLACE INTO measurement VALUES (?, ?)", (key, payload))

    def file_digest(self, path: Path) -> str:
        """SHA-256 of the bytes of a file; read again only if its size, time of change or inode differ from last time."""
        return self._files.of(path)

    def content_digest(self) -> str:
        """SHA-256 over every row of every content table, ordered by the tables' own order; free of times and of history."""
        state = hashlib.sha256()
        for table in CONTENT_TABLES:
            order = ", ".join(f'"{name}"' for name in table.order)
            state.update(f"\0{table.name}\0".encode())
            cursor = self.execute(f'SELECT * FROM "{table.name}" ORDER BY {order}')
            try:
                while batch := cursor.fetchmany(_BATCH):
                    for row in batch:
                        state.update(repr([_plain(value) for value in row]).encode())
            except (duckdb.Error, OSError) as error:
                raise store_error(error, self.path) from error
        return state.hexdigest()


def _plain(value: Any) -> Any:
    return np.asarray(value, dtype=np.float32).tobytes() if isinstance(value, list) else value


def _many(value: Any) -> bool:
    return isinstance(value, (np.ndarray, list, tuple))


def _stacked(values: np.ndarray) -> np.ndarray:
    """One 2-D array from a column of equally long vectors; other columns as they are."""
    if isinstance(values, np.ma.MaskedArray) and values.dtype != object:
        return values
    if values.dtype == object and len(values) and isinstance(values[0], np.ndarray):
        return np.stack([np.asarray(value, dtype=np.float32) for value in values])
    return np.asarray(values)
