"""The command line without an engine: parsing, help, failures and what is printed."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console
from typer.testing import CliRunner

from semlens_audit import cli, errors, screen
from semlens_audit.demo import EXPECTED, prepare, surprises
from semlens_audit.errors import ExitCode, Problem
from semlens_audit.explore import ComponentRow, Reference
from semlens_audit.failures import guard, print_problems
from semlens_audit.progress import LineProgress, RichProgress, SilentProgress
from semlens_audit.records import AuditRecord
from semlens_audit.wording import STATES
from tests.golden.sample_record import sample

VERBS = (
    "init", "lint", "layers", "schema", "index", "run", "selftest", "report", "demo", "gate", "diff", "export", "mlflow", "ci", "lock",
    "runs", "reproduce", "sign", "attest", "verify", "qualify", "components", "search", "label", "describe", "draft",
    "measures", "compare", "surprising", "split",
)  # fmt: skip
GROUPS = {"waiver": ("add", "check", "list"), "store": ("check", "gc", "info"), "sae": ("info", "train")}
HEAVY = ("torch", "torchvision", "open_clip", "timm", "zennit", "crp", "pandas", "matplotlib", "weasyprint", "numpy", "duckdb")
runner = CliRunner()


def plain(text: str) -> str:
    """`text` without escape sequences, frames and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).replace("│", " ").split())


def in_fresh_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


# -- help ---------------------------------------------------------------------------------------------------------------------


def test_overview_names_every_verb_and_every_exit_code() -> None:
    result = runner.invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    text = plain(result.output)
    assert all(f" {verb} " in text for verb in VERBS)
    codes = text[text.index("Exit codes:") :]
    assert all(re.search(rf"\b{int(code)} \w", codes) for code in ExitCode)


def test_verbs_are_exactly_the_documented_ones() -> None:
    registered = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert registered == set(VERBS)
    groups = {
        group.name: tuple(sorted(command.name or command.callback.__name__ for command in group.typer_instance.registered_commands))
        for group in cli.app.registered_groups
    }
    assert groups == GROUPS


@pytest.mark.parametrize("verb", [*VERBS, *(f"{group} {verb}" for group, verbs in GROUPS.items() for verb in verbs)])
def test_help_of_each_verb_teaches(verb: str) -> None:
    result = runner.invoke(cli.app, [*verb.split(), "--help"])
    assert result.exit_code == 0
    text = plain(result.output)
    assert f"Usage: semlens-audit {verb}" in text
    assert f"Example: semlens-audit {verb} " in text
    body = text.split("╭─")[0]
    assert len(body.split()) > 30, "a help text says what is read, what is written and what for"


def test_help_and_version_import_nothing_heavy() -> None:
    for arguments in (["--help"], ["--version"], ["run", "--help"]):
        done = in_fresh_python(
            "import sys; sys.argv = ['semlens-audit', *" + repr(arguments) + "]\n"
            "from semlens_audit.cli import main\n"
            "try:\n    main()\nexcept SystemExit as leaving:\n    assert not leaving.code, leaving.code\n"
            f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
        )
        assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout[-500:] + done.stderr[-500:]


def test_reading_and_deciding_modules_import_nothing_that_learns() -> None:
    done = in_fresh_python(
        "import sys, semlens_audit.spec, semlens_audit.engine, semlens_audit.report, semlens_audit.screen\n"
        "print(sorted({'torch', 'torchvision', 'open_clip', 'timm', 'zennit', 'crp'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr[-500:]


@pytest.mark.parametrize("arguments", [[], ["nosuchverb"], ["run"], ["run", "--bogus"], ["lint"], ["schema", "specs"]])
def test_a_wrong_command_line_is_exit_2(arguments: list[str]) -> None:
    assert runner.invoke(cli.app, arguments).exit_code == ExitCode.USAGE


# -- failures -----------------------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.SpecError, 2),
        (errors.SubjectError, 4),
        (errors.DataError, 4),
        (errors.StoreError, 4),
        (errors.ExecutionError, 4),
        (errors.IntegrityError, 6),
    ],
)
def test_every_audit_error_has_its_exit_code_and_message(
    kind: type[errors.AuditError],
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = kind("the-slug", "What is wrong.", "What to do.", file="a.yaml", line=3, column=7)
    assert guard(lambda: raising(error), ["semlens-audit"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "a.yaml:3:7: What is wrong. [the-slug]\n    What to do.\n"


def test_every_problem_is_printed_with_its_place_and_none_is_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 60 + "end"
    print_problems([Problem("a", long, file="x.yaml", line=1, column=2), Problem("b", "[bold]not markup[/]")])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"x.yaml:1:2: {long} [a]", "error: [bold]not markup[/] [b]", "2 problems"]


def test_interrupt_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(lambda: raising(KeyboardInterrupt()), ["semlens-audit"]) == ExitCode.INTERRUPTED == 130
    assert "run the same command to resume" in capsys.readouterr().err


def test_an_error_of_a_library_that_answers_an_interrupt_counts_as_the_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def query() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("Query interrupted") from None
        return 0

    before = signal.getsignal(signal.SIGINT)
    assert guard(query, ["semlens-audit"]) == ExitCode.INTERRUPTED
    assert "resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_passed_through_exec_still_ends_with_the_exit_code() -> None:
    source = (
        "import sys\n"
        "from semlens_audit.failures import guard\n"
        "sys.exit(int(guard(lambda: exec('raise KeyboardInterrupt'), ['semlens-audit'])))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 130, "a negative code means that the process ended by the signal"


@pytest.mark.parametrize(
    ("error", "slug"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/store.duckdb"), "disk-full"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/locked"), "no-permission"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/gone"), "no-such-file"),
        (IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "/folder"), "wrong-kind-of-file"),
        (MemoryError(), "out-of-memory"),
        (UnicodeEncodeError("utf-8", "images/by\udcffte.png", 9, 10, "surrogates not allowed"), "name-not-utf8"),
    ],
)
def test_the_machines_failures_are_told_from_defects(
    error: BaseException,
    slug: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guard(lambda: raising(error), ["semlens-audit"]) == ExitCode.INCOMPLETE
    text = capsys.readouterr().err
    assert f"[{slug}]" in text
    assert "traceback" not in text
    if isinstance(error, OSError):
        assert str(error.filename) in text


def test_a_defect_leaves_its_traceback_in_a_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert guard(lambda: raising(ZeroDivisionError("by nought")), ["semlens-audit", "run", "a b.yaml"]) == ExitCode.INCOMPLETE
    (crash,) = tmp_path.glob("semlens-audit-crash-*.txt")
    text = crash.read_text()
    assert "command: semlens-audit run 'a b.yaml'" in text
    assert "ZeroDivisionError: by nought" in text
    assert "in raising" in text
    shown = capsys.readouterr().err
    assert str(crash) in shown
    assert "Traceback" not in shown


def test_a_defect_with_names_of_other_encodings_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert guard(lambda: raising(ZeroDivisionError("in \udcff")), ["semlens-audit", "run", "by\udcffte.yaml"]) == ExitCode.INCOMPLETE
    (crash,) = tmp_path.glob("semlens-audit-crash-*.txt")
    assert "by\\udcffte.yaml" in crash.read_text()
    assert "[unexpected]" in capsys.readouterr().err


def test_a_reader_that_leaves_is_neither_a_verdict_nor_a_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m semlens_audit schema record | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() in ("0", "4")
    assert done.stderr == ""


# -- writing specs ------------------------------------------------------------------------------------------------------------


def test_init_writes_once_and_lint_reads_it(tmp_path: Path) -> None:
    first = runner.invoke(cli.app, ["init", str(tmp_path), "--name", "moles"])
    assert first.exit_code == 0, first.output
    written = [Path(line) for line in first.stdout.splitlines()]
    assert written
    assert all(path.is_file() for path in written)
    before = {path: path.read_bytes() for path in written}
    again = runner.invoke(cli.app, ["init", str(tmp_path), "--name", "moles"])
    assert again.exit_code == ExitCode.USAGE
    assert {path: path.read_bytes() for path in written} == before

    specs = [str(path) for path in written if path.parent.name == "specs"]
    assert specs
    assert runner.invoke(cli.app, ["lint", *specs]).exit_code == 0


def test_lint_gives_every_problem_as_json(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("spec: bad\nconceptz: []\nconcepts: []\n")
    result = runner.invoke(cli.app, ["lint", str(bad), "--json"])
    assert result.exit_code == ExitCode.USAGE
    rows = json.loads(result.stdout)
    assert len(rows) > 1
    unknown = next(row for row in rows if row["slug"] == "unknown-key")
    assert (unknown["line"], unknown["column"], unknown["file"]) == (2, 1, str(bad))
    assert "concepts" in unknown["message"] + unknown["hint"]


def test_lint_gives_every_problem_as_a_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("spec: bad\nconceptz: []\nconcepts: []\n")
    result = runner.invoke(cli.app, ["lint", str(bad)])
    assert result.exit_code == ExitCode.USAGE
    assert f"{bad}:2:1: " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("document", ["spec", "audit", "record"])
def test_schema_is_a_json_schema(document: str) -> None:
    result = runner.invoke(cli.app, ["schema", document])
    assert result.exit_code == 0
    text = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(text)
    assert len(text["properties"]) > 5


def test_schema_of_the_record_accepts_a_record_and_refuses_an_unknown_key() -> None:
    text = json.loads(runner.invoke(cli.app, ["schema", "record"]).stdout)
    record = json.loads(sample("shortcut").model_dump_json())
    jsonschema.validate(record, text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**record, "verdikt": 1}, text)


# -- screen -------------------------------------------------------------------------------------------------------------------


def printed(record: AuditRecord, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    screen.print_findings(record, [Path("reports/a/results.json")], console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["shortcut", "clean", "not_measured"])
def test_screen_shows_every_finding_with_the_verdicts_words(kind: str) -> None:
    record = sample(kind)
    text = printed(record)
    lines = text.splitlines()
    for finding in record.findings:
        assert any(finding.check in line and STATES[finding.state].lower() in line for line in lines), finding.check
    assert f"exit code {int(record.verdict.exit_code)}" in text
    assert record.verdict.headline in " ".join(text.split())
    assert "reports/a/results.json" in text


def test_screen_puts_failures_first() -> None:
    record = sample("shortcut")
    states = [finding.state for finding in record.findings]
    assert len(set(states)) > 1
    lines = printed(record).splitlines()[1 : len(states) + 1]
    failing = [STATES["not_satisfied"].lower() in line for line in lines]
    assert failing == sorted(failing, reverse=True)
    assert sum(failing) == states.count("not_satisfied")


def test_screen_never_hides_a_reason_and_survives_a_narrow_terminal() -> None:
    record = sample("not_measured")
    missing = [finding for finding in record.findings if finding.state == "not_measured"]
    assert missing
    squeezed = "".join(printed(record).split())
    assert all("".join(str(finding.measurement.not_measured).split()) in squeezed for finding in missing)
    assert printed(record, width=40)


def test_summary_is_json_and_holds_what_a_gate_needs() -> None:
    record = sample("shortcut")
    text = json.loads(json.dumps(screen.summary(record, [Path("r.json")], int(record.verdict.exit_code)), allow_nan=False))
    assert text["exit_code"] == int(record.verdict.exit_code)
    assert text["state"] == record.verdict.state
    assert [row["check"] for row in text["findings"]] == [finding.check for finding in record.findings]
    assert all(set(row["criterion"]) <= {"at_most", "at_least"} and len(row["criterion"]) == 1 for row in text["findings"])
    assert text["files"] == ["r.json"]


def test_components_are_listed_with_what_the_last_run_made_of_them() -> None:
    references = tuple(Reference(f"images/{index}.png", 1.0, (0, 0, 8, 8)) for index in range(3))
    rows = [
        ComponentRow("layer4", 7, False, {"melanoma": 0.125}, references, 0.5),
        ComponentRow("layer4", 9, True, {"melanoma": 0.0}, (), -0.25),
    ]
    assigned: dict[tuple[str, int], str | None] = {("layer4", 7): "ruler", ("layer4", 9): None}
    console = Console(file=io.StringIO(), width=80, highlight=False)
    screen.print_components(rows, "melanoma", assigned, console)
    heading, first, second, note = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert heading.split() == ["layer", "component", "similarity", "relevance", "concept", "first", "reference", "samples"]
    assert first.split() == ["layer4", "7", "0.500", "12.5", "%", "ruler", "0.png", "1.png", "2.png"]
    assert second.split() == ["layer4", "9", "−0.250", "0.0", "%", "–", "never", "active"]
    assert "melanoma" in note

    values = json.loads(json.dumps(screen.component_values(rows, assigned)))
    assert [value["assigned"] for value in values] == ["ruler", None]
    assert "assigned" not in screen.component_values(rows, None)[0]
    assert values[0]["references"][2]["sample"] == "images/2.png"


# -- demonstration ------------------------------------------------------------------------------------------------------------


def test_demo_lays_out_audits_and_specs_and_keeps_what_was_edited(tmp_path: Path) -> None:
    prepared = prepare(tmp_path)
    assert [expected for expected, _ in prepared] == list(EXPECTED)
    audits = [path for _, path in prepared]
    assert all(path.parent == tmp_path / "audits" for path in audits)
    (spec,) = (tmp_path / "specs").iterdir()
    spec.write_text(spec.read_text() + "# edited\n")
    prepare(tmp_path)
    assert spec.read_text().endswith("# edited\n")
    assert runner.invoke(cli.app, ["lint", *map(str, audits)]).exit_code == 0


def test_demo_tells_an_audit_that_misses_the_truth() -> None:
    shortcut, clean = EXPECTED
    assert surprises(clean, sample("clean")) == []
    assert any("exit code" in text for text in surprises(shortcut, sample("clean")))
    assert any("no finding names ruler" in text for text in surprises(shortcut, sample("clean")))
    assert any("a finding names ruler" in text for text in surprises(clean, sample("shortcut")))
    assert not any("ruler" in text.split("exit code")[0] for text in surprises(shortcut, sample("shortcut")))


# -- progress -----------------------------------------------------------------------------------------------------------------


def test_line_progress_counts_what_is_new_and_what_was_kept() -> None:
    stream = io.StringIO()
    with LineProgress(stream).stage("Crops", 10, done=4) as advance:
        advance(2)
        advance(4)
    assert re.fullmatch(r"Crops: 10/10 in \d+\.\d s, 4 kept from before\n", stream.getvalue())


def test_line_progress_says_nothing_of_a_stage_that_failed() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), LineProgress(stream).stage("Crops", 10):
        raise ZeroDivisionError
    assert stream.getvalue() == ""


def test_rich_progress_shows_counts_and_leaves_the_terminal_restored() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)

    def interrupted() -> None:
        with RichProgress(console) as bars, bars.stage("Relevance [layer4]", 8, done=2) as advance:
            advance(6)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = stream.getvalue()
    assert "8/8" in text
    assert "Relevance [layer4]" in text
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


def test_silent_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), SilentProgress().stage("x", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
