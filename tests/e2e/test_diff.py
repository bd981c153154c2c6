"""Two releases through the command line: the clean twin as baseline, the shortcut model as what came after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, SmallAudit, small_audit

CHECKS = (
    {"id": "ruler", "kind": "concept_not_used", "concepts": ["ruler"], "criterion": {"at_most": 0.6}},
    {"id": "ruler-effect", "kind": "behavioural_effect", "concepts": ["ruler"], "criterion": {"at_most": 2.0}},
    {"id": "ruler-gap", "kind": "subgroup_gap", "concepts": ["ruler"], "criterion": {"at_most": 0.9}},
)


@pytest.fixture(scope="module")
def releases(indexed: SmallAudit, tmp_path_factory: pytest.TempPathFactory, command: Run) -> tuple[Path, Path]:
    """Records of the clean twin and of the shortcut model on the same images."""
    folder = tmp_path_factory.mktemp("releases")
    clean = small_audit(folder / "clean", "phantom-clean")
    # the index is shared with other tests: their audit is written back afterwards
    shortcut = SmallAudit(indexed.folder, dict(indexed.audit), dict(indexed.spec))
    found = []
    for audit in (clean, shortcut):
        audit.audit["measurement"] = {**audit.audit["measurement"], "intervention": "none", "minimum_counterexamples": 5}
        command("run", audit.ask(*CHECKS).file, "--out", folder / audit.audit["audit"], code=None)
        found.append(next((folder / audit.audit["audit"]).rglob("results.json")))
    indexed.write()
    return found[0], found[1]


def labels(said: str) -> dict[str, str]:
    return {entry["finding"].split("/")[0]: entry["label"] for entry in json.loads(said)["entries"]}


def test_a_release_that_took_a_shortcut_is_worse(releases: tuple[Path, Path], command: Run) -> None:
    clean, shortcut = releases
    said = command("diff", clean, shortcut, "--json", code=1).stdout
    found = labels(said)
    assert found["ruler-effect"] == "new"
    assert found["ruler"] in ("worsened", "new")
    assert found["ruler-gap"] in ("worsened", "new", "within_noise")
    assert all(entry["paired"] for entry in json.loads(said)["entries"])
    back = labels(command("diff", shortcut, clean, "--json", code=0).stdout)
    assert back["ruler-effect"] == "fixed"
    assert back["ruler"] in ("improved", "fixed")


def test_the_same_release_is_within_noise(releases: tuple[Path, Path], command: Run) -> None:
    _, shortcut = releases
    done = command("diff", shortcut, shortcut, "--json", code=0)
    assert set(labels(done.stdout).values()) == {"within_noise"}


def test_what_people_and_build_servers_read(releases: tuple[Path, Path], command: Run) -> None:
    clean, shortcut = releases
    said = command("diff", clean, shortcut, code=1).stdout
    assert "✗ new" in said
    assert "Since phantom-clean" in said
    table = command("diff", clean, shortcut, "--markdown", code=1).stdout
    assert table.startswith("## Change since the baseline\n")
    assert "| ✗ new | ruler-effect/ruler |" in table


def test_refused_lost_damaged_and_misused(releases: tuple[Path, Path], command: Run, tmp_path: Path) -> None:
    clean, shortcut = releases

    def edited(path: Path, **fields: object) -> Path:
        record = json.loads(path.read_text()) | fields
        out = tmp_path / "edited.json"
        out.write_text(json.dumps(record))
        return out

    spec = json.loads(clean.read_text())["spec"]
    done = command("diff", edited(clean, spec={**spec, "name": "other"}), shortcut, code=2)
    assert "another spec" in done.stdout
    kept = json.loads(shortcut.read_text())["findings"][2:]
    assert "removed" in command("diff", shortcut, edited(shortcut, findings=kept), code=3).stdout
    broken = tmp_path / "broken.json"
    broken.write_bytes(shortcut.read_bytes()[:-3])
    assert "[invalid-record]" in command("diff", clean, broken, code=6).stderr
    assert "[no-record]" in command("diff", clean, tmp_path / "none.json", code=2).stderr
    command("diff", clean, shortcut, "--level", "2", code=2)
    command("diff", clean, shortcut, "--json", "--markdown", code=2)


def test_a_report_is_a_baseline_as_its_record_is(releases: tuple[Path, Path], command: Run, tmp_path: Path) -> None:
    pytest.importorskip("weasyprint")
    clean, shortcut = releases
    folder = tmp_path / "report"
    folder.mkdir()
    shutil.copy(clean, folder / "results.json")
    command("report", folder / "results.json", code=None)
    pdf = folder / "report.pdf"
    if not pdf.is_file():
        pytest.skip("no PDF was written: Pango is missing")
    assert command("diff", pdf, shortcut, "--json", code=1).stdout == command("diff", clean, shortcut, "--json", code=1).stdout
