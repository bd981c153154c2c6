"""The gate: `gate`, `waiver add|list|check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import EXIT_CODES, AsJson, verb
from semlens_audit.cli.terms import FailOn, OnInconclusive, Today, WaiversFile, day, terms
from semlens_audit.errors import ExitCode
from semlens_audit.failures import print_problems

__all__ = ["gate"]


@verb(
    rich_help_panel="Release",
    epilog=f"Example: semlens-audit gate reports/phantom-shortcut/results.json --fail-on major. {EXIT_CODES}",
)
def gate(
    record_file: Annotated[Path, typer.Argument(metavar="RESULTS.json", help="Record that a run has written.")],
    fail_on: FailOn = "minor",
    on_inconclusive: OnInconclusive = "inconclusive",
    waivers: WaiversFile = None,
    today: Today = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the record so decided, its report and exports into.")] = None,
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="With --out: render the PDF too.")] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Decide on a release again, from a record, and exit with the decision.

    Needs neither the model nor the data nor the store. Findings and verdict stay as they are; policy, waivers and date decide what
    they mean for the release. Waivers are judged as of today (UTC), unless [bold]--today[/] says otherwise.
    """
    from semlens_audit import engine, results, screen

    agreed = terms(fail_on, on_inconclusive, waivers, day(today))
    record, notices = results.decide(engine.read_record(record_file), agreed)
    outcome = results.Outcome(record, (), notices=notices)
    if out is not None:
        outcome = results.leave(record, out, pdf=pdf, notices=notices)
    print_problems((*outcome.notices, *outcome.problems))
    if as_json:
        value = screen.summary(outcome.record, outcome.files, int(outcome.exit_code))
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        screen.print_findings(outcome.record, outcome.files)
    return outcome.exit_code
