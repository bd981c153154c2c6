"""Every exit code through the real command line, on the shipped shortcut model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.conftest import ENVIRONMENT, Run, SmallAudit, small_audit

LEFT = {"results.json", "report.html", "junit.xml", "results.sarif", "oscal.json", "bom.cdx.json", "summary.md"}
RULER = {"id": "ruler", "kind": "concept_not_used", "concepts": ["ruler"]}


def asked(at_most: float, **more: Any) -> dict[str, Any]:
    return {**RULER, "criterion": {"at_most": at_most}, **more}


# -- verdicts -----------------------------------------------------------------------------------------------------------------


def test_0_satisfied(indexed: SmallAudit, command: Run) -> None:
    done = command("run", indexed.ask(asked(0.999)).file, code=0)
    assert "satisfied" in done.stdout
    assert indexed.record()["verdict"]["exit_code"] == 0
    assert (indexed.results.parent / "report.html").is_file()


def test_1_not_satisfied_names_the_ruler(indexed: SmallAudit, command: Run) -> None:
    done = command("run", indexed.ask(asked(0.001)).file, code=1)
    assert "ruler" in done.stdout
    assert "not satisfied" in done.stdout
    record = indexed.record()
    assert record["verdict"]["state"] == "not_satisfied"
    assert "ruler" in record["verdict"]["headline"].lower()


def test_2_invalid_spec_names_every_place(tmp_path: Path, command: Run) -> None:
    audit = small_audit(tmp_path).ask(asked(0.2), {**asked(0.2), "concepts": ["rooler"]})
    done = command("run", audit.file, code=2)
    assert re.search(r"spec\.yaml:\d+:\d+: .*\[duplicate", done.stderr)
    assert re.search(r"spec\.yaml:\d+:\d+: .*rooler", done.stderr)
    assert "ruler" in done.stderr.split("rooler")[1], "suggests what was meant"
    assert not audit.store.exists(), "nothing is loaded for an invalid spec"


def test_3_inconclusive_where_the_interval_reaches_over_the_criterion(indexed: SmallAudit, command: Run) -> None:
    command("run", indexed.ask(asked(0.999)).file, code=0)
    interval = indexed.record()["findings"][0]["measurement"]["interval"]
    assert interval["low"] < interval["high"]
    done = command("run", indexed.ask(asked((interval["low"] + interval["high"]) / 2)).file, code=3)
    assert "inconclusive" in done.stdout


def test_4_not_measured_is_no_pass(indexed: SmallAudit, command: Run) -> None:
    settings = indexed.audit["measurement"]
    indexed.audit["measurement"] = {**settings, "minimum_samples": 119}
    try:
        done = command("run", indexed.ask(asked(0.999)).file, code=4)
    finally:
        indexed.audit["measurement"] = settings
    (finding,) = indexed.record()["findings"]
    assert finding["state"] == "not_measured"
    assert finding["measurement"]["value"] is None
    assert "not measured" in done.stdout
    assert "119" in done.stdout, "the reason names the number that is needed"


def test_6_a_record_that_was_tampered_with(indexed: SmallAudit, command: Run, tmp_path: Path) -> None:
    command("run", indexed.ask(asked(0.999)).file)
    record = indexed.record()
    record["findings"][0]["measurement"]["interval"] = None
    forged = tmp_path / "results.json"
    forged.write_text(json.dumps(record))
    done = command("report", forged, "--no-pdf", code=6)
    assert "measured value needs an interval" in done.stderr


def test_2_a_record_of_another_schema(tmp_path: Path, command: Run) -> None:
    other = tmp_path / "results.json"
    other.write_text('{"schema_version": "99.0"}')
    assert "99" in command("report", other, code=2).stderr or "version" in command("report", other, code=2).stderr


def test_130_interrupted_then_resumed(tmp_path: Path, command: Run) -> None:
    audit = small_audit(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "semlens_audit", "index", str(audit.file)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    first = process.stderr.readline()  # a stage is finished, others are not
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + first + err
    assert "resume" in err
    assert "Traceback" not in err
    assert audit.store.exists()
    resumed = command("index", audit.file)
    assert "Index complete" in resumed.stdout


# -- what is kept and what is said --------------------------------------------------------------------------------------------


def test_a_changed_criterion_is_decided_again_without_torch(indexed: SmallAudit, command: Run) -> None:
    command("run", indexed.ask(asked(0.999)).file, code=0)
    indexed.ask(asked(0.001))
    heavy = ["torch", "torchvision", "open_clip", "timm", "zennit", "crp"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.argv = ['semlens-audit', 'run', {str(indexed.file)!r}, '--quiet']\n"
            "from semlens_audit.cli import main\n"
            "try:\n    main()\nexcept SystemExit as leaving:\n    print('CODE', leaving.code)\n"
            f"print('HEAVY', sorted(set({heavy!r}) & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.stdout.splitlines()[-2:] == ["CODE 1", "HEAVY []"]


def test_the_same_audit_twice_gives_the_same_record_but_for_its_date(indexed: SmallAudit, command: Run) -> None:
    indexed.ask(asked(0.001))
    records = []
    for _ in range(2):
        command("run", indexed.file, code=1)
        records.append({**indexed.record(), "created": ""})
    assert records[0] == records[1]


def test_json_is_one_document_and_agrees_with_exit_code_and_record(indexed: SmallAudit, command: Run) -> None:
    done = command("run", indexed.ask(asked(0.001)).file, "--json", code=1)
    text = json.loads(done.stdout)
    verdict = indexed.record()["verdict"]
    assert (text["exit_code"], text["state"], text["headline"]) == (1, verdict["state"], verdict["headline"])
    assert {Path(name).name for name in text["files"]} == LEFT
    assert Path(text["files"][0]).name == "results.json"


def test_out_puts_the_report_elsewhere(indexed: SmallAudit, command: Run, tmp_path: Path) -> None:
    command("run", indexed.ask(asked(0.999)).file, "--out", tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere" / indexed.audit["audit"]
    assert {path.name for path in folder.iterdir()} == LEFT


def test_report_renders_the_record_again_to_the_same_bytes(indexed: SmallAudit, command: Run, tmp_path: Path) -> None:
    command("run", indexed.ask(asked(0.001)).file, code=1)
    command("report", indexed.results, "--no-pdf", "--out", tmp_path, code=0)
    again = (tmp_path / "report.html").read_bytes()
    assert again == (indexed.results.parent / "report.html").read_bytes()


def test_without_pango_the_html_stands_and_the_verdict_too(indexed: SmallAudit, command: Run, tmp_path: Path) -> None:
    blind = tmp_path / "blind"
    blind.mkdir()
    (blind / "weasyprint.py").write_text("raise OSError(\"cannot load library 'libpango-1.0-0'\")\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(blind)}
    report = indexed.results.parent / "report.html"
    for at_most, code in ((0.001, 1), (0.999, 4)):
        report.unlink(missing_ok=True)
        done = command("run", indexed.ask(asked(at_most)).file, "--pdf", code=code, env=environment)
        assert "[pango-missing]" in done.stderr
        assert "apt-get install" in done.stderr
        assert report.is_file()
    done = command("report", indexed.results, "--out", tmp_path, code=4, env=environment)
    assert (tmp_path / "report.html").is_file()
    assert "[pango-missing]" in done.stderr


def test_progress_counts_on_stderr_and_quiet_says_nothing(indexed: SmallAudit, command: Run) -> None:
    assert re.search(r"^.+: 120/120 in \d+\.\d s", indexed.said, re.MULTILINE)
    assert command("index", indexed.file, "--quiet").stderr == ""
    assert command("run", indexed.ask(asked(0.999)).file, "--quiet").stderr == ""


def test_components_and_search_read_the_index(indexed: SmallAudit, command: Run, tmp_path: Path) -> None:
    listed = json.loads(command("components", indexed.file, "--layer", "layer4", "--top", 5, "--json").stdout)
    shares = [row["share"]["melanoma"] for row in listed]
    assert len(listed) == 5
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 1 / 128, "the most relevant of 128 components holds more than an equal share"
    everything = json.loads(command("components", indexed.file, "--top", 1000, "--json").stdout)
    assert sum(row["share"]["melanoma"] for row in everything) == pytest.approx(1, abs=1e-5)

    found = json.loads(command("search", indexed.file, "ruler marks", "--top", 3, "--json").stdout)
    assert found["searched"] == 128
    similarities = [row["similarity"] for row in found["components"]]
    assert similarities == sorted(similarities, reverse=True)
    other = json.loads(command("search", indexed.file, "dark hair", "--top", 3, "--json").stdout)
    assert [row["component"] for row in other["components"]] != [row["component"] for row in found["components"]]
    Image.new("RGB", (64, 64), (200, 160, 140)).save(tmp_path / "skin.png")
    page = tmp_path / "found.html"
    options = ("--image", tmp_path / "skin.png", "--box", "4,4,40,60", "--without", "hair", "--html", page)
    shown = json.loads(command("search", indexed.file, *options, "--top", 3, "--json").stdout)
    assert shown["files"] == [str(page)]
    assert all(f'id="component-layer4-{row["component"]}"' in page.read_text() for row in shown["components"])
    like = f"layer4:{found['components'][0]['component']}"
    assert found["components"][0]["component"] not in {
        row["component"] for row in json.loads(command("search", indexed.file, "--like", like, "--json").stdout)["components"]
    }

    assert "layer4" in command("components", indexed.file, "--layer", "layer9", code=2).stderr
    assert "[no-query]" in command("search", indexed.file, code=2).stderr
    assert "[bad-box]" in command("search", indexed.file, "--image", tmp_path / "skin.png", "--box", "1,2", code=2).stderr
    assert "[page-not-written]" in command("search", indexed.file, "ruler", "--html", tmp_path / "no" / "f.html", code=2).stderr


# -- bad input ----------------------------------------------------------------------------------------------------------------


def broken_layer(audit: SmallAudit) -> None:
    audit.audit["layers"] = ["layer44"]


def broken_class(audit: SmallAudit) -> None:
    audit.audit["subject"]["classes"] = ["nevus", "melanomas"]


def broken_outputs(audit: SmallAudit) -> None:
    audit.audit["subject"]["classes"] = ["nevus", "melanoma", "other"]


def broken_weights(audit: SmallAudit) -> None:
    audit.audit["subject"]["model"]["arguments"] = {"num_classes": 2}


def broken_architecture(audit: SmallAudit) -> None:
    audit.audit["subject"]["model"]["name"] = "resnet81"


def own_code(audit: SmallAudit) -> None:
    (audit.folder / "net.py").write_text("raise SystemExit('executed!')\n")
    audit.audit["subject"]["model"] = {"source": "code", "name": "net.py:make"}


def not_a_store(audit: SmallAudit) -> None:
    audit.store.write_bytes(b"this is no database" * 1000)


def empty_folder(audit: SmallAudit) -> None:
    (audit.folder / "images" / "melanoma").mkdir(parents=True)
    audit.audit["data"] = {"source": "folder", "path": "images"}


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (broken_layer, 4, "layer4"),
        (broken_class, 2, "melanomas"),
        (broken_outputs, 4, "3"),
        (broken_weights, 4, "weights"),
        (broken_architecture, 4, "resnet"),
        (own_code, 2, "--allow-code"),
        (not_a_store, 4, "store.duckdb"),
        (empty_folder, 4, "images"),
    ],
)
def test_bad_input_has_its_own_message(spoil: Any, code: int, says: str, tmp_path: Path, command: Run) -> None:
    audit = small_audit(tmp_path)
    spoil(audit)
    done = command("index", audit.write().file, code=code)
    assert says in done.stderr
    assert re.search(r"\[[a-z0-9-]+\]$", done.stderr, re.MULTILINE), done.stderr
    assert "executed!" not in done.stderr + done.stdout


def test_a_store_in_use_by_another_process_is_refused(indexed: SmallAudit, command: Run) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import duckdb; c = duckdb.connect({str(indexed.store)!r}); print('held', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = command("run", indexed.ask(asked(0.999)).file, code=4)
        assert "store.duckdb" in done.stderr
    finally:
        holder.communicate("\n", timeout=30)
    command("run", indexed.file, code=0)


def test_a_full_disk_is_said_and_survived(tmp_path: Path, command: Run) -> None:
    audit = small_audit(tmp_path)
    limited = f"ulimit -f 600; exec {sys.executable} -m semlens_audit index {audit.file}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=280)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"room|space|full", done.stderr), done.stderr
    assert "[unexpected]" not in done.stderr
    assert "Index complete" in command("index", audit.file).stdout


def test_interrupting_before_anything_began_is_130_too(tmp_path: Path) -> None:
    audit = small_audit(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "semlens_audit", "index", str(audit.file), "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 30
    while not audit.store.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
