"""The documents against the program: every command runs or names what exists, and nothing the program has is left out."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from semlens_audit.cli import app
from semlens_audit.errors import ExitCode
from semlens_audit.plan import CheckKind
from semlens_audit.resources import checkout
from tests.documentation import PAGES, steps

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "tests/benchmarks/README.md", *(str(page.relative_to(ROOT)) for page in PAGES))
STEPS = [step for page in PAGES for step in steps(page.read_text(encoding="utf-8"))]
WRITTEN = {step.file for step in STEPS} | {file for step in STEPS for word, file in pairwise(step.words) if word == "--out"}
"""Files that the pages have their reader write."""
README = (ROOT / "README.md").read_text()
CHEAP = ("init", "lint", "schema", "--help", "--version")
runner = CliRunner()


def commands(document: str) -> list[str]:
    """Lines after ``$`` in the console blocks, and indented command lines, without trailing comments."""
    text = (ROOT / document).read_text()
    lines = [
        line[2:]
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line[:2] == "$ "
    ]
    lines += [line.strip() for line in text.splitlines() if re.match(r" {4}(make|semlens-audit|\.venv/bin/)", line)]
    return [line.split("  #")[0].strip() for line in lines]


ALL = [(document, line) for document in DOCUMENTS for line in commands(document)]


def test_documents_hold_the_commands_that_a_reader_starts_with() -> None:
    lines = commands("README.md")
    assert {"make demo", "make test"} <= set(lines)
    assert len([line for line in lines if line.startswith("semlens-audit")]) >= 5


@pytest.mark.parametrize("line", [line for _, line in ALL if line.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


@pytest.mark.parametrize("line", [line for _, line in ALL if line.startswith("semlens-audit")])
def test_documented_commands_parse_and_cheap_ones_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = shlex.split(line)[1:]
    if arguments[0] == "init":
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.chdir(ROOT)
        for name in arguments[1:]:
            if name.startswith(("specs/", "audits/", "tests/")):
                assert name in WRITTEN or (ROOT / name).is_file(), f"{line}: there is no {name}"
    if arguments[0] in CHEAP:
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.output
    else:
        # raises on an unknown verb, option or a missing argument
        verb = typer.main.get_command(app)
        while hasattr(verb, "commands"):
            name = arguments.pop(0)
            verb = verb.commands[name]
        context = verb.make_context(name, arguments)
        assert context.params


@pytest.mark.parametrize("line", [line for _, line in ALL if line.startswith(".venv/bin/")])
def test_documented_scripts_exist(line: str) -> None:
    words = line.split()
    if "-m" in words:
        module = words[words.index("-m") + 1]
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    else:
        assert words[0].endswith(("/pytest", "/semlens-audit"))
        assert all((ROOT / word).exists() for word in words[1:] if "/" in word)


def test_readme_names_every_verb() -> None:
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    section = README.split("## A tour")[1].split("\n## ")[0]
    table = set(re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE))
    assert table == verbs


def test_readme_explains_every_exit_code() -> None:
    section = README.split("## Exit codes")[1].split("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == {int(code) for code in ExitCode}


def test_readme_explains_every_kind_of_check() -> None:
    section = README.split("| check |")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", section)) == set(
        get_args(CheckKind.__value__ if hasattr(CheckKind, "__value__") else CheckKind)
    )


def test_the_spec_in_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    spec = tmp_path / "lesion-ruler.yaml"
    spec.write_text(text)
    result = runner.invoke(app, ["lint", str(spec)])
    assert result.exit_code == 0, result.output


def test_every_shipped_spec_and_phantom_audit_is_valid() -> None:
    files = [*(ROOT / "specs").glob("*.yaml"), *(ROOT / "audits").glob("phantom-*.yaml")]
    assert len(files) >= 3
    result = runner.invoke(app, ["lint", *map(str, files)])
    assert result.exit_code == 0, result.output


def test_contributing_fits_a_screen() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40


def test_constraints_pin_every_dependency_exactly() -> None:
    names = re.findall(
        r'^    "([A-Za-z0-9_.-]+)[><=~"]', (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0], re.MULTILINE
    )
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    assert len(names) > 20
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in names} <= pinned


def test_no_document_names_a_path_of_this_machine() -> None:
    assert checkout() == ROOT
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
        ROOT / "Makefile",
        *(ROOT / "specs").rglob("*.yaml"),
        *(ROOT / "templates").rglob("*.yaml"),
    ]:
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/", path.read_text()), path
