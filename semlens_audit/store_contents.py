"""What a store holds: stages with their rows, tables with what they take on the disk, audits that it has served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semlens_audit.run_log import json_object
from semlens_audit.store import Store
from semlens_audit.store_schema import TABLES

__all__ = ["Contents", "Stage", "Table", "contents", "derived", "served"]


@dataclass(frozen=True)
class Stage:
    """A stage in the store.

    Parameters
    ----------
    key, name
        Its key, and what it computes.
    complete
        Whether it is finished.
    done, total
        Items.
    rows
        Table -> rows that the stage has written.
    audits
        Ids of the audits asked about that need it; ``None`` where none were asked about.
    begun
        When it was first begun, UTC, ISO 8601; empty where the log does not tell.
    """

    key: str
    name: str
    complete: bool
    done: int
    total: int
    rows: dict[str, int]
    audits: tuple[str, ...] | None
    begun: str


@dataclass(frozen=True)
class Table:
    """A table of the store.

    Parameters
    ----------
    name
        Its name.
    rows
        Rows.
    bytes
        Bytes of the file's blocks that hold it; a block that two tables share counts for both.
    """

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Contents:
    """What a store holds.

    Parameters
    ----------
    path
        The store.
    version, tool
        Version of its schema, and version of semlens-audit that wrote it.
    bytes, free
        Size of the file, and what of it holds nothing any more.
    stages, tables
        Stages in the order they were begun; tables by size, largest first.
    audits
        Id of each audit that the store has served and not forgotten since -> when it was last indexed or run, UTC, ISO 8601.
    """

    path: str
    version: int
    tool: str
    bytes: int
    free: int
    stages: tuple[Stage, ...]
    tables: tuple[Table, ...]
    audits: dict[str, str]


def contents(store: Store, needed: Mapping[str, set[str]] | None = None) -> Contents:
    """What a store holds.

    Parameters
    ----------
    store
        Open store.
    needed
        Id of an audit -> keys of the stages that it needs; ``None``: not asked about.
    """
    rows: dict[str, dict[str, int]] = {}
    tables = []
    size = int(store.rows("SELECT block_size FROM pragma_database_size()")[0][0])
    free = int(store.rows("SELECT free_blocks FROM pragma_database_size()")[0][0]) * size
    for table in TABLES:
        tables.append(Table(table.name, store.count(table.name), _blocks(store, table.name) * size))
        if "stage" in table.columns:
            for key, count in store.rows(f'SELECT stage, count(*) FROM "{table.name}" GROUP BY stage'):
                rows.setdefault(key, {})[table.name] = count
    begun: dict[str, str] = {}
    for at, detail in store.rows("SELECT \"at\", detail FROM run_log WHERE event = 'stage-begun' ORDER BY rowid"):
        begun.setdefault(str(json_object(detail).get("stage")), at.isoformat(timespec="seconds"))
    found = store.rows("SELECT key, name, complete, done, total, inputs FROM stage ORDER BY rowid")
    inputs = {key: json_object(text) for key, *_, text in found}
    users = None if needed is None else {audit: keys | derived(inputs, keys) for audit, keys in needed.items()}
    stages = tuple(
        Stage(
            key, name, complete, done, total, rows.get(key, {}),
            None if users is None else tuple(audit for audit, keys in users.items() if key in keys), begun.get(key, ""),
        )
        for key, name, complete, done, total, _ in found
    )  # fmt: skip
    version, tool = store.rows("SELECT version, tool FROM store_version")[0]
    ordered = tuple(sorted(tables, key=lambda table: (-table.bytes, table.name)))
    return Contents(str(store.path), version, tool, store.path.stat().st_size, free, stages, ordered, served(store))


def derived(inputs: Mapping[str, Mapping[str, Any]], keys: set[str]) -> set[str]:
    """Keys of the stages that were made from the outputs of one of `keys`: components switched off.

    Parameters
    ----------
    inputs
        Key of each stage in the store -> its inputs.
    keys
        Keys of stages.
    """
    return {key for key, parts in inputs.items() if parts.get("stage") == "ablation" and parts.get("outputs") in keys}


def served(store: Store) -> dict[str, str]:
    """Id of each audit that the store has served, in order -> when it was last indexed or run, UTC, ISO 8601.

    One whose index was given up in a collection, and that nobody has indexed or run since, is none of them.
    """
    found: dict[str, str] = {}
    events = "('index', 'audit', 'store-compacted')"
    for at, event, text in store.rows(f'SELECT "at", event, detail FROM run_log WHERE event IN {events} ORDER BY rowid'):
        detail = json_object(text)
        if event == "store-compacted":
            forgotten = detail.get("forgotten")
            for name in forgotten if isinstance(forgotten, list) else ():
                found.pop(str(name), None)
        elif isinstance(detail.get("audit"), str):
            found[detail["audit"]] = at.isoformat(timespec="seconds")
    return found


def _blocks(store: Store, table: str) -> int:
    """Blocks of the file that a table has rows in."""
    segments = "SELECT block_id, additional_block_ids FROM pragma_storage_info(?) WHERE persistent AND block_id >= 0"
    return int(
        store.rows(
            f"WITH segment AS ({segments}) SELECT count(DISTINCT block_id) FROM "
            "(SELECT block_id FROM segment UNION ALL SELECT unnest(additional_block_ids) FROM segment)",
            (table,),
        )[0][0]
    )
