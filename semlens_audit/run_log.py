"""The run log of a store: what was asked of it, when and by whom, each entry tied to the one before it.

The store's table ``run_log`` is only ever added to. Entries about audits (`EVENTS`) carry a number and the digest of the entry
before them, so that one that was changed, removed or put in between shows. Entries that were removed from the end do not show in
the log itself; a record that carries a lock names the digest of the last entry before it. This is the audit trail that 21 CFR
11.10(e) and EU GMP Annex 11, clause 9, ask of records kept on a computer: time-stamped by the machine, attributed to the account
that ran the tool, never overwritten. The store is a file of its owner's and can be deleted whole; what is counted here holds as far
as this store knows.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from semlens_audit.digest import digest
from semlens_audit.store import Store

__all__ = ["EVENTS", "Entry", "Event", "account", "append", "complaints", "head", "json_object", "missing", "of_audit", "read", "written"]

Event = Literal["audit", "lock", "record", "repeat"]
EVENTS: tuple[Event, ...] = ("audit", "lock", "record", "repeat")
"""audit: one was carried out and decided. lock: one was locked. record: a record was written. repeat: an audit was repeated to test
the instrument or a record, which counts as no run."""


@dataclass(frozen=True)
class Entry:
    """One entry of the log.

    Parameters
    ----------
    at
        When it was written, UTC.
    event
        What happened, see `EVENTS`.
    text
        Detail as it stands in the store: a JSON object, where nobody changed it.
    """

    at: datetime
    event: str
    text: str

    @cached_property
    def detail(self) -> dict[str, Any]:
        """The detail as plain values; empty where it is no JSON object."""
        return json_object(self.text)

    @property
    def chained(self) -> bool:
        """Whether it is tied to the entry before it; those of older versions are not."""
        return "previous" in self.detail

    @property
    def sha256(self) -> str:
        """SHA-256 over time, event and detail."""
        return digest([self.at.isoformat(timespec="microseconds"), self.event, self.text])


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in a field of the store; empty where it is damaged, which `store check` tells."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read(store: Store) -> tuple[Entry, ...]:
    """Every entry about audits, in the order they were written."""
    marks = ", ".join("?" for _ in EVENTS)
    rows = store.rows(f'SELECT "at", event, detail FROM run_log WHERE event IN ({marks}) ORDER BY rowid', EVENTS)
    return tuple(Entry(at.replace(tzinfo=UTC), event, text) for at, event, text in rows)


def _expected(before: Sequence[Entry]) -> str:
    """Digest that the entry after `before` has to name: of the last one, or of all where none of them is tied yet."""
    if before and before[-1].chained:
        return before[-1].sha256
    return digest([entry.sha256 for entry in before])


def head(entries: Sequence[Entry]) -> str:
    """Digest that the next entry will name: it stands for the whole log as it is."""
    return _expected(entries)


def append(store: Store, event: Event, detail: Mapping[str, Any]) -> None:
    """Add an entry with the present time, the account that runs the tool, and the digest of the entry before it."""
    with store.transaction():
        before = read(store)
        store.log(event, {**detail, "account": account(), "number": len(before) + 1, "previous": _expected(before)})


def written(path: Path, audit: str, record_sha256: str, exit_code: int) -> None:
    """Enter into the log of the store at `path` that a record was written, under its digest."""
    with Store.open(path) as store:
        append(store, "record", {"audit": audit, "record": record_sha256, "exit_code": exit_code})


def account() -> str | None:
    """Name of the account that runs the tool, or ``None`` where the system gives none (a container without users)."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None


def complaints(entries: Sequence[Entry]) -> tuple[str, ...]:
    """What is wrong with the chain, one sentence each; empty where it is intact."""
    found: list[str] = []
    for place, entry in enumerate(entries):
        before = entries[:place]
        said = f"Entry {place + 1} ({entry.event}, {entry.at:%Y-%m-%d %H:%M:%S} UTC)"
        if not entry.detail:
            found.append(f"{said} is no JSON object.")
        elif not entry.chained:
            if any(other.chained for other in before):
                found.append(f"{said} is not tied to the entry before it.")
        elif entry.detail["previous"] != _expected(before):
            found.append(f"{said} does not follow the entry before it: one of the two was changed, or one between them is missing.")
        elif entry.detail.get("number") != place + 1:
            found.append(f"{said} bears the number {entry.detail.get('number')}.")
    return tuple(found)


def missing(entries: Sequence[Entry], lock_sha256: str | None, log_sha256: str | None, record_sha256: str) -> tuple[str, ...]:
    """What a record says of the log, or the log should say of it, and is not there; one sentence each.

    Parameters
    ----------
    lock_sha256, log_sha256
        Lock that the record names, and digest of the log as it was then; none: it ran under no lock.
    record_sha256
        Digest of the record.
    """
    found = []
    heads = [head(entries[:place]) for place in range(len(entries) + 1)]
    if log_sha256 is not None and log_sha256 not in heads:
        found.append("The record names a state of the log that this log never had: entries are missing, or it is another store's.")
    if not any(entry.event == "record" and entry.detail.get("record") == record_sha256 for entry in entries):
        found.append("The log has no entry of that record being written.")
    if lock_sha256 is not None and not any(entry.detail.get("lock") == lock_sha256 for entry in entries):
        found.append("The log has no entry of the lock that the record names.")
    return tuple(found)


def of_audit(entries: Sequence[Entry], audit: str) -> tuple[Entry, ...]:
    """Entries of the audit with that id; a store may serve several."""
    return tuple(entry for entry in entries if entry.detail.get("audit") == audit)
