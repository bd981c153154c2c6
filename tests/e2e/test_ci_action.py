"""The scripts for build servers with the real command line: a gate as a build server would run it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from semlens_audit.resources import templates_dir
from tests.e2e.conftest import ENVIRONMENT, SmallAudit

RULER = {"id": "ruler", "kind": "behavioural_effect", "class": "melanoma", "concepts": ["ruler"]}


@dataclass
class Job:
    """What one job of a build server left."""

    code: int
    summary: str
    values: dict[str, str]
    log: str

    @property
    def folder(self) -> Path:
        return Path(self.values["folder"])


def ci(name: str) -> list[Any]:
    return list(YAML(typ="safe").load_all((templates_dir() / "ci" / name).read_text(encoding="utf-8")))


def tools(folder: Path) -> Path:
    """A folder for the PATH with the command line in it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "semlens-audit"
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m semlens_audit "$@"\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


def github(place: SmallAudit, temporary: Path, **inputs: str) -> Job:
    """The steps `Audit` and `Gate` of the composite action, in the audit's folder."""
    action = ci("action.yml")[0]
    steps = {step.get("name"): step for step in action["runs"]["steps"]}
    defaults = {name: str(one.get("default", "")) for name, one in action["inputs"].items()}
    given = defaults | {"audit": "audit.yaml", "pdf": "false"} | {name.replace("_", "-"): value for name, value in inputs.items()}
    temporary.mkdir(parents=True)
    files = {"GITHUB_OUTPUT": temporary / "output", "GITHUB_STEP_SUMMARY": temporary / "summary"}
    base = ENVIRONMENT | {name: str(path) for name, path in files.items()} | {"RUNNER_TEMP": str(temporary)}
    base["PATH"] = f"{tools(temporary / 'tools')}:{os.environ['PATH']}"

    def step(name: str, expressions: dict[str, str]) -> subprocess.CompletedProcess[str]:
        environment = dict(base)
        for key, expression in steps[name]["env"].items():
            environment[key] = expressions[expression.removeprefix("${{ ").removesuffix(" }}")]
        script = temporary / f"{name}.sh"
        script.write_text(steps[name]["run"])
        shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
        return subprocess.run(shell, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=280, check=False)

    done = step("Audit", {f"inputs.{name}": value for name, value in given.items()})
    assert done.returncode == 0, done.stderr
    values = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    gate = step("Gate", {"steps.audit.outputs.exit-code": values["exit-code"]})
    return Job(gate.returncode, files["GITHUB_STEP_SUMMARY"].read_text(), values, done.stdout + done.stderr)


def test_a_gate_in_a_job_of_github(indexed: SmallAudit, tmp_path: Path) -> None:
    indexed.ask({**RULER, "criterion": {"at_most": 0.5}, "severity": "major"})
    job = github(indexed, tmp_path / "stops")
    assert job.code == 1, job.log
    assert "exit code 1." in job.summary
    assert "| ✗ Not satisfied | ruler |" in job.summary
    names = {path.name for path in job.folder.iterdir()}
    assert {"results.json", "report.html", "junit.xml", "results.sarif", "oscal.json", "bom.cdx.json", "summary.md"} <= names
    record = json.loads((job.folder / "results.json").read_text())
    assert record["gate"]["exit_code"] == 1
    run = json.loads(Path(job.values["sarif"]).read_text())["runs"][0]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    line = (indexed.folder / place["artifactLocation"]["uri"]).read_text().splitlines()[place["region"]["startLine"] - 1]
    assert line.strip().startswith(("{", '"'))
    assert run["invocations"][0]["exitCode"] == 1
    assert ET.parse(job.folder / "junit.xml").getroot().get("failures") == "1"

    lenient = github(indexed, tmp_path / "passes", fail_on="critical")
    assert lenient.code == 0, lenient.log
    assert "tolerated by policy" in lenient.summary
    assert ET.parse(lenient.folder / "junit.xml").getroot().get("failures") == "0"

    against = github(indexed, tmp_path / "compared", baseline=str(job.folder / "results.json"))
    assert against.code == 1, against.log
    assert "### Change since the baseline" in against.summary
    results = json.loads((against.folder / "results.sarif").read_text())["runs"][0]["results"]
    assert {result["baselineState"] for result in results} == {"unchanged"}


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("fail-on", "$(touch pwned)", 2),
        ("waivers", "`touch pwned`", 5),
        ("audit", '"; touch pwned; "', 2),
        ("audit", "-x", 2),
    ],
)
def test_what_no_run_knows_is_refused_and_does_nothing(
    name: str, text: str, code: int, indexed: SmallAudit, tmp_path: Path
) -> None:
    job = github(indexed, tmp_path / "job", **{name: text})
    assert job.code == code, job.log
    assert f"exit code {code} before there was a result" in job.summary
    assert not list(indexed.folder.rglob("pwned"))


def test_a_gate_in_a_job_of_gitlab(indexed: SmallAudit, tmp_path: Path) -> None:
    indexed.ask({**RULER, "criterion": {"at_most": 0.5}, "severity": "major"})
    job = next(iter(ci("gitlab.yml")[1].values()))
    given = {"FILE": "audit.yaml", "FAIL_ON": "minor", "ON_INCONCLUSIVE": "inconclusive", "ALLOW_CODE": "false"}
    names = {name: given.get(name.removeprefix("SEMLENS_AUDIT_"), "") for name in job["variables"]}
    environment = ENVIRONMENT | names | {"PATH": f"{tools(tmp_path)}:{os.environ['PATH']}"}
    script = "\n".join(job["script"]).replace("--pdf ", "")
    done = subprocess.run(["sh", "-c", script], cwd=indexed.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    [junit] = indexed.folder.glob(job["artifacts"]["reports"]["junit"])
    assert ET.parse(junit).getroot().get("failures") == "1"
