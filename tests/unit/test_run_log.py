"""The run log: every entry tied to the one before it, and what a change leaves behind."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest

from semlens_audit import run_log
from semlens_audit.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.duckdb")


def fill(store: Store, number: int = 4) -> None:
    for i in range(number):
        store.log("stage-begun", {"stage": str(i)})  # what is not about audits lies between
        run_log.append(store, "audit", {"audit": "a", "verdict": "satisfied", "place": i})


def test_entries_are_numbered_attributed_and_tied_to_the_one_before(store: Store) -> None:
    fill(store)
    entries = run_log.read(store)
    assert [entry.detail["number"] for entry in entries] == [1, 2, 3, 4]
    assert [entry.detail["previous"] for entry in entries[1:]] == [entry.sha256 for entry in entries[:-1]]
    assert entries[0].detail["account"] == run_log.account()
    assert entries[0].at.utcoffset() is not None
    assert run_log.complaints(entries) == ()


def test_the_chain_goes_on_after_the_store_was_closed(tmp_path: Path) -> None:
    for _ in range(3):
        with Store.open(tmp_path / "store.duckdb") as store:
            fill(store, 1)
    with Store.open(tmp_path / "store.duckdb", read_only=True) as store:
        entries = run_log.read(store)
    assert len(entries) == 3
    assert run_log.complaints(entries) == ()


@pytest.mark.parametrize(
    ("sql", "place"),
    [
        ("""UPDATE run_log SET detail = replace(detail, 'satisfied', 'inconclusive') WHERE detail LIKE '%"place":1%'""", 3),
        ("""UPDATE run_log SET "at" = "at" - INTERVAL 1 DAY WHERE detail LIKE '%"place":1%'""", 3),
        ("""UPDATE run_log SET event = 'repeat' WHERE detail LIKE '%"place":1%'""", 3),
        ("""DELETE FROM run_log WHERE detail LIKE '%"place":1%'""", 2),
        ("""DELETE FROM run_log WHERE detail LIKE '%"place":0%'""", 1),
        ("""UPDATE run_log SET event = 'stage-begun' WHERE detail LIKE '%"place":2%'""", 3),
        ("""INSERT INTO run_log SELECT "at", event, detail FROM run_log WHERE detail LIKE '%"place":1%'""", 5),
        ("""INSERT INTO run_log VALUES (now()::TIMESTAMP, 'audit', '{"audit": "a"}')""", 5),
        ("""UPDATE run_log SET detail = 'nothing' WHERE detail LIKE '%"place":1%'""", 2),
    ],
)
def test_a_change_inside_the_log_shows_where_it_was_made(store: Store, sql: str, place: int) -> None:
    fill(store)
    store.execute(sql)
    complaints = run_log.complaints(run_log.read(store))
    assert complaints
    assert complaints[0].startswith(f"Entry {place} ")


def test_a_broken_chain_stays_broken_whatever_is_added(store: Store) -> None:
    fill(store)
    store.execute("""UPDATE run_log SET detail = replace(detail, 'satisfied', 'x') WHERE detail LIKE '%"place":1%'""")
    fill(store)
    assert run_log.complaints(run_log.read(store))


def test_entries_of_older_versions_are_covered_by_the_first_that_is_tied(store: Store) -> None:
    store.log("audit", {"audit": "a", "spec": "1"})
    store.log("audit", {"audit": "a", "spec": "2"})
    assert run_log.complaints(run_log.read(store)) == ()
    fill(store, 2)
    entries = run_log.read(store)
    assert [entry.chained for entry in entries] == [False, False, True, True]
    assert run_log.complaints(entries) == ()
    store.execute("""UPDATE run_log SET detail = replace(detail, '"spec":"1"', '"spec":"3"')""")
    assert run_log.complaints(run_log.read(store))


def test_entries_removed_from_the_end_show_against_a_record_that_knew_them(store: Store) -> None:
    fill(store, 3)
    entries = run_log.read(store)
    run_log.append(store, "record", {"audit": "a", "record": "f" * 64})
    known = run_log.head(entries)
    assert run_log.missing(run_log.read(store), None, known, "f" * 64) == ()
    store.execute("""DELETE FROM run_log WHERE detail LIKE '%"place":2%' OR event = 'record'""")
    left = run_log.read(store)
    assert run_log.complaints(left) == (), "the chain itself cannot know"
    said = run_log.missing(left, "b" * 64, known, "f" * 64)
    assert len(said) == 3


def test_audits_that_share_a_store_are_told_apart(store: Store) -> None:
    fill(store, 2)
    run_log.append(store, "audit", {"audit": "b"})
    assert len(run_log.of_audit(run_log.read(store), "a")) == 2
    assert run_log.complaints(run_log.read(store)) == ()


def test_no_account_is_made_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    fill(store, 1)
    assert run_log.read(store)[0].detail["account"] is None


def test_a_written_record_is_entered_under_its_digest(tmp_path: Path) -> None:
    run_log.written(tmp_path / "store.duckdb", "a", "d" * 64, 3)
    with Store.open(tmp_path / "store.duckdb") as store:
        (entry,) = run_log.read(store)
    assert (entry.event, entry.detail["record"], entry.detail["exit_code"]) == ("record", "d" * 64, 3)
    assert json.loads(entry.text) == entry.detail
