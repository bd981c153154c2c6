"""Files for build servers: what they say is YAML that is sound, and their scripts, run for real, carry values and exit codes."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from semlens_audit.cli import app
from semlens_audit.resources import checkout, templates_dir

CI = templates_dir() / "ci"
NASTY = (
    '"; touch pwned; echo "',
    "$(touch pwned)",
    "`touch pwned`",
    "' ; touch pwned #",
    "--allow-code",
    "-x\n--out=/tmp/elsewhere",
    "a b\tc*",
    "${HOME}",
    "|| touch pwned",
)
FAKE = """#!/bin/bash
# stands for the command line: notes its arguments, and leaves what a run leaves
{ printf '%s\\0' "$@"; printf '\\n\\0'; } >> "$CALLS"
echo "::error::text of a stranger"
printf 'no line feed at the end ::set-output'
if [ "$1" = run ] && [ "$LEAVES" = yes ]; then
  for option in "$@"; do
    case "$option" in --out=*) folder="${option#--out=}/an-audit" ;; esac
  done
  mkdir -p "$folder"
  echo '{}' > "$folder/results.json"
  echo '## Not satisfied' > "$folder/summary.md"
fi
if [ "$1" = export ]; then
  echo '{}' > "$(dirname "${@: -1}")/code-scanning.sarif"
  exit "${EXPORT_CODE:-0}"
fi
exit "$CODE_WANTED"
"""


def load(name: str) -> list[Any]:
    return list(YAML(typ="safe").load_all((CI / name).read_text(encoding="utf-8")))


def scripts(value: Any) -> list[str]:
    """Every text that a shell runs."""
    if isinstance(value, list):
        return [text for part in value for text in scripts(part)]
    if not isinstance(value, dict):
        return []
    found = []
    for key, part in value.items():
        if key in ("run", "script", "before_script", "after_script"):
            found += [part] if isinstance(part, str) else list(part)
        else:
            found += scripts(part)
    return found


def step(name: str) -> dict[str, Any]:
    return next(one for one in load("action.yml")[0]["runs"]["steps"] if one.get("name") == name)


@dataclass
class Ran:
    code: int
    calls: list[list[str]]
    output: str
    values: dict[str, str]
    summary: str
    folder: Path


def run(script: str, shell: list[str], folder: Path, values: dict[str, str], code: int, leaves: bool = True, **more: str) -> Ran:
    """Run `script` in an empty folder, with a stand-in for the command line on the PATH."""
    tools, work = folder / "tools", folder / "work"
    for path in (tools, work, folder / "temp"):
        path.mkdir(parents=True)
    fake = tools / "semlens-audit"
    fake.write_text(FAKE)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RUNNER_TEMP": str(folder / "temp"),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "CALLS": str(folder / "calls"),
        "CODE_WANTED": str(code),
        "LEAVES": "yes" if leaves else "no",
        **values,
        **more,
    }
    (folder / "script").write_text(script)
    done = subprocess.run(
        [*shell, str(folder / "script")], cwd=work, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    calls_file = folder / "calls"
    words = calls_file.read_bytes().decode().split("\0")[:-1] if calls_file.is_file() else []
    calls: list[list[str]] = [[]]
    for word in words:
        if word == "\n":
            calls.append([])
        else:
            calls[-1].append(word)
    output = (folder / "output").read_text() if (folder / "output").is_file() else ""
    summary = (folder / "summary").read_text() if (folder / "summary").is_file() else ""
    pairs = dict(line.split("=", 1) for line in output.splitlines())
    assert [path.name for path in work.iterdir() if path.name != "semlens-audit-reports"] == []
    return Ran(done.returncode, calls[:-1], done.stdout + done.stderr, pairs, summary, folder)


GITHUB = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"]
PLAIN = {
    "AUDIT": "audits/a.yaml",
    "FAIL_ON": "major",
    "ON_INCONCLUSIVE": "fail",
    "WAIVERS": "",
    "BASELINE": "",
    "LOCKED": "false",
    "ALLOW_CODE": "false",
    "PDF": "true",
}


def audit_step(folder: Path, values: dict[str, str] | None = None, code: int = 0, **more: Any) -> Ran:
    return run(step("Audit")["run"], GITHUB, folder, PLAIN | (values or {}), code, **more)


# what is written


@pytest.mark.parametrize("name", sorted(path.name for path in CI.iterdir()))
def test_no_expression_stands_in_a_script(name: str) -> None:
    found = [text for document in load(name) for text in scripts(document)]
    assert found
    for text in found:
        assert "${{" not in text
        assert "$[[" not in text


def test_the_action_of_this_repository_is_the_one_that_ships() -> None:
    root = checkout()
    if root is None:
        pytest.skip("no checkout, but an installed package")
    shipped = (CI / "action.yml").read_bytes()
    assert (root / ".github" / "actions" / "semlens-audit" / "action.yml").read_bytes() == shipped


def test_the_action_refers_only_to_what_it_has() -> None:
    action = load("action.yml")[0]
    text = (CI / "action.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])
    steps = action["runs"]["steps"]
    written = set(re.findall(r'echo "([\w-]+)=', step("Audit")["run"]))
    assert set(re.findall(r"steps\.audit\.outputs\.([\w-]+)", text)) == written == {"exit-code", "folder", "sarif"}
    assert all(one["shell"] == "bash" for one in steps if "run" in one)
    for one in steps:
        if "run" in one:
            used = set(re.findall(r"\$\{?([A-Z_]+)", one["run"])) - {"RUNNER_TEMP", "RUNNER_OS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"}
            assert used == set(one["env"])
    # nothing after the audit may be skipped because of what it found, and the last word is the gate's
    assert (steps[-1]["name"], steps[-1]["if"]) == ("Gate", "always()")


def test_the_release_gate_gives_inputs_that_the_action_has() -> None:
    workflow, action = load("release-gate.github.yml")[0], load("action.yml")[0]
    given = next(one["with"] for one in workflow["jobs"]["audit"]["steps"] if "semlens-audit" in one["uses"])
    assert set(given) <= set(action["inputs"])
    assert workflow["jobs"]["publish"]["needs"] == "audit"
    assert workflow["permissions"] == {"contents": "read"}


def test_the_component_refers_only_to_its_inputs() -> None:
    header, body = load("gitlab.yml")
    used = set(re.findall(r"\$\[\[ inputs\.([\w-]+) \]\]", (CI / "gitlab.yml").read_text(encoding="utf-8")))
    assert used == set(header["spec"]["inputs"])
    job = next(iter(body.values()))
    assert all(value["expand"] is False for value in job["variables"].values())
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"]["junit"].endswith("junit.xml")
    assert {name for text in job["script"] + job["before_script"] for name in re.findall(r"\$(SEMLENS\w+)", text)} == set(
        job["variables"]
    )


@pytest.mark.parametrize(
    ("word", "name"), [("github", "action.yml"), ("release-gate", "release-gate.github.yml"), ("gitlab", "gitlab.yml")]
)
def test_the_verb_prints_them(word: str, name: str) -> None:
    done = CliRunner().invoke(app, ["ci", word])
    assert done.exit_code == 0
    assert done.output == (CI / name).read_text(encoding="utf-8")


# what happens


def test_the_step_asks_for_what_its_inputs_say(tmp_path: Path) -> None:
    ran = audit_step(tmp_path, {"WAIVERS": "w.yaml", "BASELINE": "b.json", "ALLOW_CODE": "true", "LOCKED": "true"})
    asked, exported = ran.calls
    assert asked[0] == "run"
    assert asked[-2:] == ["--", "audits/a.yaml"]
    options = [option for option in asked[1:-2] if not option.startswith("--out=")]
    flags = ["--fail-on=major", "--on-inconclusive=fail", "--pdf", "--locked", "--allow-code"]
    assert options == [*flags, "--waivers=w.yaml", "--baseline=b.json"]
    assert exported == ["export", "--format=code-scanning", "--", f"{ran.values['folder']}/results.json"]
    assert ran.summary == "## Not satisfied\n"
    assert ran.values["sarif"] == f"{ran.values['folder']}/code-scanning.sarif"


@pytest.mark.parametrize("text", NASTY)
def test_no_input_becomes_a_command_or_an_option(text: str, tmp_path: Path) -> None:
    names = ("AUDIT", "FAIL_ON", "ON_INCONCLUSIVE", "WAIVERS", "BASELINE", "LOCKED", "ALLOW_CODE", "PDF")
    ran = audit_step(tmp_path, dict.fromkeys(names, text))
    asked = ran.calls[0]
    assert asked[-2:] == ["--", text]
    assert [f"--fail-on={text}", f"--on-inconclusive={text}", f"--waivers={text}", f"--baseline={text}"] == asked[2:-2]
    assert ran.values["exit-code"] == "0"
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 130])
@pytest.mark.parametrize("leaves", [True, False])
def test_exit_codes_pass_through_the_gate(code: int, leaves: bool, tmp_path: Path) -> None:
    ran = audit_step(tmp_path / "audit", code=code, leaves=leaves)
    assert ran.code == 0  # so that what follows is still done
    expected = 4 if code == 0 and not leaves else code
    assert ran.values["exit-code"] == str(expected)
    if not leaves:
        assert f"exit code {expected} before there was a result" in ran.summary
        assert ran.values["folder"] == ""
        assert "sarif" not in ran.values
    gate = run(step("Gate")["run"], GITHUB, tmp_path / "gate", {"CODE": ran.values["exit-code"]}, 0)
    assert gate.code == expected


@pytest.mark.parametrize("value", ["", "256", "-1", "0x0", "0 ", "zero", "$(true)"])
def test_a_gate_without_a_code_does_not_pass(value: str, tmp_path: Path) -> None:
    assert run(step("Gate")["run"], GITHUB, tmp_path, {"CODE": value}, 0).code == 4


def test_an_export_that_fails_is_no_pass(tmp_path: Path) -> None:
    assert audit_step(tmp_path / "a", EXPORT_CODE="4").values["exit-code"] == "4"
    assert audit_step(tmp_path / "b", code=1, EXPORT_CODE="4").values["exit-code"] == "1"


def test_what_the_audit_prints_is_no_workflow_command(tmp_path: Path) -> None:
    lines = audit_step(tmp_path).output.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("::stop-commands::"))
    token = lines[start].removeprefix("::stop-commands::")
    assert re.fullmatch("[0-9a-f]{64}", token)
    end = lines.index(f"::{token}::")
    assert start < lines.index("::error::text of a stranger") < end
    assert not [line for line in lines[:start] + lines[end + 1 :] if line.startswith("::")]


def gitlab(folder: Path, values: dict[str, str], code: int = 0) -> Ran:
    job = next(iter(load("gitlab.yml")[1].values()))
    names = {name: str(values.get(name.removeprefix("SEMLENS_AUDIT_"), "")) for name in job["variables"]}
    return run("\n".join(job["script"]), ["sh"], folder, names, code)


@pytest.mark.parametrize("text", NASTY)
def test_no_input_of_the_component_becomes_a_command(text: str, tmp_path: Path) -> None:
    names = ("FILE", "FAIL_ON", "ON_INCONCLUSIVE", "WAIVERS", "BASELINE", "LOCKED", "ALLOW_CODE")
    asked = gitlab(tmp_path, dict.fromkeys(names, text)).calls[0]
    start = ["run", "--pdf", "--out=semlens-audit-reports", f"--fail-on={text}", f"--on-inconclusive={text}"]
    assert asked == [*start, f"--waivers={text}", f"--baseline={text}", "--", text]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("code", [0, 1, 3, 5, 130])
def test_the_component_ends_with_the_audit_s_code(code: int, tmp_path: Path) -> None:
    ran = gitlab(tmp_path, {"FILE": "audits/a.yaml", "FAIL_ON": "major", "ON_INCONCLUSIVE": "pass", "ALLOW_CODE": "true"}, code)
    assert ran.code == code
    assert "--allow-code" in ran.calls[0]
    assert (tmp_path / "work" / "semlens-audit-reports" / "an-audit" / "results.json").is_file()


def test_scripts_are_sound_for_their_shell() -> None:
    for name, shell in (("action.yml", "bash"), ("release-gate.github.yml", "bash"), ("gitlab.yml", "sh")):
        for text in (one for document in load(name) for one in scripts(document)):
            done = subprocess.run([shell, "-n", "-c", text], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{shlex.quote(text)}: {done.stderr}"
