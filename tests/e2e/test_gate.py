"""The gate in a run like a build server's: every exit code through the real command line, waivers declared, held and void."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semlens_audit import cli, waivers
from tests.e2e.conftest import ENVIRONMENT, Run, SmallAudit, small_audit

WHY = "Rulers are cropped away before the model sees a picture."
LEFT = {"results.json", "report.html", "junit.xml", "results.sarif", "oscal.json", "bom.cdx.json", "summary.md"}


def ask(audit: SmallAudit, at_most: float, severity: str = "critical") -> SmallAudit:
    return audit.ask(
        {"id": "ruler", "kind": "concept_not_used", "concepts": ["ruler"], "criterion": {"at_most": at_most}, "severity": severity}
    )


def waive(audit: SmallAudit, command: Run, *more: object, code: int = 0, today: str = "2026-01-10") -> subprocess.CompletedProcess[str]:
    words = ("--check", "ruler", "--owner", "Max", "--approver", "Ada", "--ticket", "QA-1", "--justification", WHY)
    return command("waiver", "add", audit.file, *words, "--expires", "2026-06-30", "--today", today, *more, code=code)


@pytest.fixture
def audit(indexed: SmallAudit) -> Iterator[SmallAudit]:
    """The small audit, without waivers before and after."""
    waivers.beside(indexed.file).unlink(missing_ok=True)
    yield indexed
    waivers.beside(indexed.file).unlink(missing_ok=True)


def here(*arguments: object, code: int | None = 0, **_: object) -> subprocess.CompletedProcess[str]:
    """As `command`, in this process: for what is neither heavy nor about the process itself."""
    done = CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def gate(audit: SmallAudit) -> dict[str, object]:
    return audit.record()["gate"]


# -- run ----------------------------------------------------------------------------------------------------------------------


def test_0_satisfied_and_1_not_and_policy_between(audit: SmallAudit, command: Run) -> None:
    command("run", ask(audit, 0.999).file, code=0)
    assert gate(audit)["outcome"] == "passed"
    assert {path.name for path in audit.results.parent.iterdir()} >= LEFT
    done = command("run", ask(audit, 0.001, "minor").file, code=1)
    assert "Gate failed (exit code 1). The release is stopped: ruler not satisfied." in done.stdout
    done = command("run", audit.file, "--fail-on", "major", code=0)
    assert "Tolerated by policy: ruler (not satisfied, minor)" in done.stdout
    record = audit.record()
    assert record["verdict"]["state"] == "not_satisfied", "the policy changes nothing of what was found"
    assert record["command"].endswith("--fail-on major")


def test_3_inconclusive_or_what_the_policy_makes_of_it(audit: SmallAudit, command: Run) -> None:
    command("run", ask(audit, 0.999).file, code=0)
    interval = audit.record()["findings"][0]["measurement"]["interval"]
    ask(audit, (interval["low"] + interval["high"]) / 2)
    command("run", audit.file, code=3)
    command("run", audit.file, "--on-inconclusive", "fail", code=1)
    command("run", audit.file, "--on-inconclusive", "pass", code=0)


def test_4_not_measured_passes_under_no_policy_and_no_waiver(audit: SmallAudit, command: Run) -> None:
    command("run", ask(audit, 0.001).file, code=1)
    waive(audit, here)
    settings = audit.audit["measurement"]
    audit.audit["measurement"] = {**settings, "minimum_samples": 119}
    try:
        ask(audit, 0.001)
        lenient = ("--fail-on", "critical", "--on-inconclusive", "pass", "--today", "2026-02-01")
        done = command("run", audit.file, *lenient, code=4)
    finally:
        audit.audit["measurement"] = settings
        audit.write()
    assert "What was never checked does not pass" in done.stdout
    assert "cannot be waived" in done.stdout


def test_5_a_waiver_holds_until_it_expires_and_up_to_its_ceiling(audit: SmallAudit, command: Run) -> None:
    command("run", ask(audit, 0.001).file, code=1)
    said = waive(audit, here).stdout
    assert "waived until 2026-06-30" in said
    ceiling = waivers.read(waivers.beside(audit.file)).waivers[0].ceiling
    value = audit.record()["findings"][0]["measurement"]["value"]
    assert value <= ceiling <= value + 0.001

    done = command("run", audit.file, "--today", "2026-06-30", code=0)
    assert "conditional (exit code 0)" in done.stdout
    record = audit.record()
    assert (record["verdict"]["state"], record["findings"][0]["state"]) == ("not_satisfied", "not_satisfied")
    assert record["gate"]["waived"] == ["ruler/layer4"]
    assert [document["kind"] for document in record["documents"]][-1] == "waivers"
    html = (audit.results.parent / "report.html").read_text()
    assert WHY in html
    assert "Release gate: conditional" in html
    expired = command("run", audit.file, "--today", "2026-07-01", code=5)
    assert "Expired" in expired.stdout

    file = waivers.beside(audit.file)
    file.write_text(file.read_text().replace(f"ceiling: {ceiling}", f"ceiling: {round(ceiling - 0.01, 3)}"))
    done = command("run", audit.file, "--today", "2026-06-30", code=5)
    assert "Exceeded" in done.stdout
    assert "Ruler not satisfied" in done.stdout, "what it was meant for is said too"
    assert "[waiver-exceeded]" in here("waiver", "check", audit.file, "--today", "2026-06-30", code=5).stderr


def test_5_a_waivers_file_that_cannot_be_read_stops_before_anything_is_measured(tmp_path: Path, command: Run) -> None:
    small = ask(small_audit(tmp_path), 0.5)
    waivers.beside(small.file).write_text("waivers:\n  - check: ruler\n    expires: soon\n")
    done = command("run", small.file, code=5)
    assert "audit.waivers.yaml:3:14: `expires` is no date: soon." in done.stderr
    assert not small.store.exists()
    assert not small.results.exists()
    assert "[bad-date]" in here("lint", small.file, waivers.beside(small.file), code=2).stderr


def test_5_a_waiver_that_breaks_a_rule_is_seen_in_the_report(audit: SmallAudit, command: Run) -> None:
    command("run", ask(audit, 0.001).file, code=1)
    waive(audit, here)
    file = waivers.beside(audit.file)
    file.write_text(file.read_text().replace('approver: "Ada"', 'approver: "max"'))
    done = command("run", audit.file, "--today", "2026-02-01", code=5)
    assert "[self-approved]" in done.stderr
    assert audit.record()["waivers"][0]["state"] == "invalid"
    assert "approved by its owner" in (audit.results.parent / "report.html").read_text()


def test_6_without_a_lock_where_one_is_asked_for(audit: SmallAudit, command: Run) -> None:
    assert "[not-locked]" in command("run", ask(audit, 0.999).file, "--locked", code=6).stderr


def test_130_interrupted(tmp_path: Path) -> None:
    small = small_audit(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "semlens_audit", "run", str(small.file)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + first + err
    assert not small.results.exists(), "no record of a run that did not end"


# -- gate on a record ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def failed(audit: SmallAudit, command: Run, tmp_path: Path) -> Path:
    """Record of a run that found the ruler, away from its audit."""
    command("run", ask(audit, 0.001, "major").file, code=1)
    return Path(shutil.copy(audit.results, tmp_path / "results.json"))


def test_gate_decides_a_record_again_without_model_store_or_torch(failed: Path, tmp_path: Path, command: Run) -> None:
    command("gate", failed, code=1)
    command("gate", failed, "--fail-on", "critical", "--out", tmp_path / "out", code=0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == LEFT
    done = json.loads(command("gate", failed, "--json", code=1).stdout)
    assert (done["exit_code"], done["gate"]["stopped_by"]) == (1, ["ruler/layer4"])
    assert failed.read_bytes() != (tmp_path / "out" / "results.json").read_bytes()
    heavy = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.argv = ['semlens-audit', 'gate', {str(failed)!r}]\n"
            "from semlens_audit.cli import main\n"
            "try:\n    main()\nexcept SystemExit as leaving:\n    print('CODE', leaving.code)\n"
            "print('HEAVY', sorted({'torch', 'torchvision', 'open_clip', 'timm', 'zennit', 'crp'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert heavy.stdout.splitlines()[-2:] == ["CODE 1", "HEAVY []"]


def test_gate_refuses_what_is_no_record_no_date_no_severity(failed: Path, tmp_path: Path, command: Run) -> None:
    assert "[bad-date]" in command("gate", failed, "--today", "2026-02-30", code=2).stderr
    command("gate", failed, "--fail-on", "some", code=2)
    assert "[no-record]" in command("gate", tmp_path / "none.json", code=2).stderr
    damaged = tmp_path / "damaged.json"
    record = json.loads(failed.read_text())
    record["findings"][0]["state"] = "fine"
    damaged.write_text(json.dumps(record))
    assert "[invalid-record]" in command("gate", damaged, code=6).stderr


def test_gate_says_what_changed_since_the_last_release(failed: Path, tmp_path: Path, command: Run) -> None:
    done = command("gate", failed, "--baseline", failed, "--out", tmp_path / "out", code=1)
    change = json.loads((tmp_path / "out" / "results.json").read_text())["change"]
    assert {entry["label"] for entry in change["entries"]} == {"within_noise"}
    assert change["sentence"][:20] in done.stdout


# -- waiver verbs -------------------------------------------------------------------------------------------------------------


def test_waiver_add_refuses_what_cannot_hold(audit: SmallAudit, command: Run) -> None:
    command("run", ask(audit, 0.001).file, code=1)
    for more, slug in (
        (("--check", "rulers"), "unknown-check"),
        (("--approver", "MAX"), "self-approved"),
        (("--expires", "2026-12-30"), "expires-late"),
        (("--expires", "30.6.2026"), "bad-date"),
        (("--justification", "because"), "short-justification"),
        (("--where", "layer9"), "unknown-place"),
        (("--versions", ">=17"), "waiver-of-another-model"),
    ):
        assert f"[{slug}]" in waive(audit, here, *more, code=2).stderr
        assert not waivers.beside(audit.file).exists()
    ask(audit, 0.999)
    assert "[no-run]" in waive(audit, here, code=2).stderr, "the last run was of another spec"
    command("run", audit.file, code=0)
    assert "[nothing-to-waive]" in waive(audit, here, code=2).stderr


def test_waivers_are_listed_and_checked_before_they_rot(audit: SmallAudit, command: Run) -> None:
    assert "No waiver is declared" in here("waiver", "check", audit.file, code=0).stdout
    command("run", ask(audit, 0.001).file, code=1)
    waive(audit, here)
    (row,) = json.loads(here("waiver", "list", audit.file, "--today", "2026-06-20", "--json").stdout)["waivers"]
    assert (row["state"], row["days"]) == ("applied", 10)
    soon = here("waiver", "check", audit.file, "--today", "2026-06-20", code=0)
    assert "[waiver-expires-soon]" in soon.stderr
    assert here("waiver", "check", audit.file, "--today", "2026-06-20", "--warn-days", "5", code=0).stderr == ""
    late = here("waiver", "check", audit.file, "--today", "2026-07-01", code=5)
    assert "audit.waivers.yaml:4: Waiver of ruler: Expired" in late.stderr
    command("run", audit.file, "--today", "2026-06-20", code=0)
    assert "all hold" in here("waiver", "check", audit.results, "--today", "2026-06-20", code=0).stdout
    ask(audit, 0.002)
    unheld = here("waiver", "list", audit.file, "--today", "2026-06-20").stdout
    assert "in force" in unheld, "without a run of the audit as it stands, there is nothing to hold it against"
