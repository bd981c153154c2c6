"""Pre-registration and reproduction through the real command line, on the shipped shortcut model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.e2e.conftest import Run, SmallAudit

RULER = {"id": "ruler", "kind": "concept_not_used", "concepts": ["ruler"]}


def asked(at_most: float) -> dict[str, Any]:
    return {**RULER, "criterion": {"at_most": at_most}}


@pytest.fixture
def audit(indexed: SmallAudit, tmp_path: Path) -> SmallAudit:
    """The indexed audit in a folder of its own, not yet run."""
    folder = Path(shutil.copytree(indexed.folder, tmp_path / "audit", ignore=shutil.ignore_patterns("reports")))
    connection = duckdb.connect(str(folder / "store.duckdb"))
    connection.execute("DELETE FROM run_log WHERE event IN ('audit', 'lock', 'record', 'repeat')")
    connection.close()
    return SmallAudit(folder, json.loads(indexed.file.read_text()), json.loads(json.dumps(indexed.spec))).ask(asked(0.999))


def test_a_locked_audit_says_which_run_it_is_and_a_changed_criterion_breaks_the_lock(audit: SmallAudit, command: Run) -> None:
    assert "not-locked" in command("run", audit.file, "--locked", code=6).stderr
    command("run", audit.file, code=0)
    assert audit.record()["lock"] is None
    assert any("not locked" in text for text in audit.record()["limitations"])

    made = json.loads(command("lock", audit.file, "--note", "release 2.1", "--json").stdout)
    assert made["runs_seen"] == 1
    assert made["weights_sha256"] == audit.record()["subject"]["weights_sha256"], "known from the run before"
    assert "already-locked" in command("lock", audit.file, code=2).stderr

    audit.spec["title"] = "Another title"
    audit.write()
    command("run", audit.file, "--locked", code=0)
    lock = audit.record()["lock"]
    assert (lock["state"], lock["earlier_runs"], lock["runs_before_lock"]) == ("kept", 0, 1)
    assert lock["sha256"] == made["sha256"]

    audit.ask(asked(0.99))
    assert "criterion.at_most was 0.999, is 0.99" in command("run", audit.file, "--locked", code=6).stderr
    assert "spec.checks.ruler.criterion.at_most" in command("lock", audit.file, "--check", code=6).stderr
    command("run", audit.file, code=0)
    lock = audit.record()["lock"]
    assert (lock["state"], lock["earlier_runs"]) == ("broken", 1)
    assert "was 0.999, is 0.99" in (audit.results.parent / "report.html").read_text()

    replaced = json.loads(command("lock", audit.file, "--force", "--json").stdout)
    assert [one["sha256"] for one in replaced["history"]] == [made["sha256"]]
    assert replaced["runs_seen"] == 3


def test_the_list_of_runs_and_its_chain(audit: SmallAudit, command: Run) -> None:
    command("lock", audit.file)
    command("run", audit.file, code=0)
    listed = json.loads(command("runs", audit.file, "--json").stdout)
    assert [entry["event"] for entry in listed["entries"]] == ["lock", "audit", "record"]
    assert listed["runs"] == 1
    assert listed["intact"]
    assert listed["entries"][1]["verdict"] == "satisfied"
    command("runs", audit.file, "--record", audit.results, code=0)
    assert "every entry follows" in command("runs", audit.file).stdout

    connection = duckdb.connect(str(audit.store))
    connection.execute("UPDATE run_log SET detail = replace(detail, '\"satisfied\"', '\"not_satisfied\"') WHERE event = 'audit'")
    connection.close()
    done = command("runs", audit.file, code=6)
    assert "run-log-broken" in done.stderr
    command("lock", audit.file, "--check", code=6)
    command("run", audit.file, code=0)
    assert "not intact" in audit.record()["lock"]["sentence"]


def test_a_damaged_lock_stops_the_run(audit: SmallAudit, command: Run) -> None:
    command("lock", audit.file)
    path = audit.folder / "audit.lock.json"
    path.write_text(path.read_text().replace("0.999", "0.998"))
    done = command("run", audit.file, code=6)
    assert "lock-damaged" in done.stderr
    assert not audit.results.exists()


@pytest.mark.slow
def test_a_record_is_reproduced_from_itself_and_from_the_pdf(audit: SmallAudit, command: Run, tmp_path: Path) -> None:
    command("run", audit.file, "--pdf", code=0)
    # from the PDF alone, in a fresh store, in another folder
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = command("reproduce", audit.results.with_name("report.pdf"), "--json", cwd=elsewhere, code=0)
    told = json.loads(done.stdout)
    assert told["reproduced"]
    assert told["identical"] == len(told["compared"]) > 20
    assert told["fields"] == []
    assert not list(elsewhere.iterdir()), "nothing is left behind"

    quick = ("--audit", audit.file, "--use-store")
    told = json.loads(command("reproduce", audit.results, *quick, "--json", code=0).stdout)
    assert told["reproduced"]
    assert [entry["event"] for entry in json.loads(command("runs", audit.file, "--json").stdout)["entries"]] == [
        "audit", "record", "repeat",
    ]  # fmt: skip

    record = audit.record()
    value = record["findings"][0]["measurement"]["value"]
    record["findings"][0]["measurement"]["value"] = value * 0.9
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(record))
    done = command("reproduce", edited, *quick, code=6)
    assert "Not reproduced" in done.stdout
    assert "finding ruler/layer4" in done.stdout
