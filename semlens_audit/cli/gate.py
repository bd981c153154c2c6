"""The gate: `gate`, `waiver add|list|check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semlens_audit.cli.shell import EXIT_CODES, AsJson, AuditFile, app, print_json, read_plan, say, verb
from semlens_audit.cli.terms import Baseline, Components, FailOn, OnInconclusive, Today, WaiversFile, day, terms
from semlens_audit.errors import ExitCode
from semlens_audit.failures import print_problems

if TYPE_CHECKING:
    from semlens_audit import waiver_screen
    from semlens_audit.plan import AuditPlan
    from semlens_audit.records import AuditRecord

__all__ = ["add", "check", "gate", "list_", "waiver"]

LastRun = Annotated[
    Path | None,
    typer.Option("--record", metavar="RESULTS.json", help="Record to hold them against, instead of the last run's."),
]
AuditOrRecord = Annotated[
    Path, typer.Argument(metavar="AUDIT.yaml|RESULTS.json", help="An audit, or a record that a run has written.")
]


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
    baseline: Baseline = None,
    components: Components = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the record so decided, its report and exports into.")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="With --out: render the PDF too.")] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Decide on a release again, from a record, and exit with the decision.

    Needs neither the model nor the data nor the store. Findings and verdict stay as they are; policy, waivers and date decide what
    they mean for the release. Waivers are judged as of today (UTC), unless [bold]--today[/] says otherwise.
    """
    from semlens_audit import engine, results, screen

    agreed = terms(fail_on, on_inconclusive, waivers, day(today), baseline, components)
    record, notices = results.decide(engine.read_record(record_file), agreed)
    outcome = results.Outcome(record, (), notices=notices)
    if out is not None:
        outcome = results.leave(record, out, pdf=pdf, notices=notices)
    print_problems((*outcome.notices, *outcome.problems))
    if as_json:
        value = screen.summary(outcome.record, outcome.files, int(outcome.exit_code))
        print_json(value)
    else:
        screen.print_findings(outcome.record, outcome.files)
    return outcome.exit_code


waiver = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Declare, list and check waivers: approved, dated exceptions."
)
app.add_typer(waiver, name="waiver", rich_help_panel="Release")


@verb(
    waiver,
    name="add",
    epilog='Example: semlens-audit waiver add audits/phantom-shortcut.yaml --check ruler-effect --owner "Max Muster" --approver '
    '"Dr. Ada Example" --ticket QA-12 --expires 2026-06-30 --justification "Rulers are cropped away before the model sees a picture."',
)
def add(
    audit: AuditFile,
    check: Annotated[str, typer.Option(help="Id of the check.")],
    owner: Annotated[str, typer.Option(help="Who answers for it.")],
    approver: Annotated[str, typer.Option(help="Who approved it; someone else.")],
    ticket: Annotated[str, typer.Option(help="Where the matter is followed up.")],
    justification: Annotated[str, typer.Option(help="Why the release may go out all the same.")],
    expires: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="Last day on which it holds, at most 180 days from now.")],
    where: Annotated[
        str | None, typer.Option(help="Layer or concept of the result; default: every result of the check.")
    ] = None,
    ceiling: Annotated[
        float | None,
        typer.Option(help="Worst value it is granted for; default: what the last run measured, rounded up (or down)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="Digest of the weights it is granted for; default: those of the last run."),
    ] = None,
    versions: Annotated[
        str | None, typer.Option(help="Range of versions it is granted for instead, e.g. '>=1.0,<2.0'.")
    ] = None,
    revalidate_on: Annotated[
        str, typer.Option("--revalidate-on", help="What asks for a new decision before it expires.")
    ] = "new weights, new test data, or another criterion of the check",
    record: LastRun = None,
    waivers: WaiversFile = None,
    today: Today = None,
) -> None:
    """Add a waiver to the file beside the audit.

    Whatever a waiver is granted for, it never changes what was found: the report shows the result as it is, and the release is
    [bold]conditional[/]. It is void once the result is worse than its ceiling. Comments in the file stay.
    """
    from semlens_audit import waiver_file
    from semlens_audit.waivers import Scope, beside

    plan = read_plan(audit)
    words = {
        "justification": justification,
        "owner": owner,
        "approver": approver,
        "ticket": ticket,
        "revalidate_on": revalidate_on,
    }
    drafted = waiver_file.draft(
        plan,
        _last(plan, record),
        check=check,
        where=where,
        scope=Scope(model_sha256=model, versions=versions),
        ceiling=ceiling,
        created=day(today),
        expires=day(expires),
        words=words,
    )
    added = waiver_file.add(audit, drafted, waivers)
    say(f"{waivers or beside(audit)}:{added.lines[-1]}: {check} waived until {expires}, up to {drafted.ceiling:g}.")


def _last(plan: AuditPlan, given: Path | None) -> AuditRecord | None:
    """The record given, or that of the last run of this very spec and audit, if there is one."""
    from semlens_audit import engine, results

    return engine.read_record(given) if given is not None else results.last(plan)


def _rows(
    file: Path, record: Path | None, waivers: Path | None, today: str | None
) -> tuple[str, tuple[waiver_screen.Row, ...], str]:
    """Name of the waivers file, each waiver, and what they were held against, in words."""
    from semlens_audit import engine, waiver_screen
    from semlens_audit import waivers as declarations

    subject: AuditPlan | AuditRecord
    if file.suffix == ".json":
        subject = engine.read_record(file)
        document = next((one for one in subject.documents if one.kind == "waivers"), None)
        declared = declarations.read(waivers) if waivers is not None else None
        if declared is None and document is not None:
            declared = declarations.parse(document.text.encode("utf-8"), document.name)
        name, against = str(waivers or (document.name if document else "the record")), f"the record {file}"
    else:
        plan = read_plan(file)
        declared = declarations.find(file, waivers)
        last = _last(plan, record)
        subject = plan if last is None else last
        name = str(waivers or declarations.beside(file))
        against = "what the audit asks; it has not been run as it stands" if last is None else f"the run of {last.created}"
    if declared is None:
        return name, (), against
    return name, waiver_screen.rows(declared, subject, day(today)), against


@verb(waiver, reads_audits=True, name="list", epilog="Example: semlens-audit waiver list audits/phantom-shortcut.yaml")
def list_(
    file: AuditOrRecord, record: LastRun = None, waivers: WaiversFile = None, today: Today = None, as_json: AsJson = False
) -> None:
    """List the waivers of an audit, and what becomes of each.

    They are held against the last run of the audit, if there is one. Exits 0 whatever their state.
    """
    from semlens_audit import waiver_screen

    name, listed, against = _rows(file, record, waivers, today)
    if as_json:
        print_json({"file": name, "waivers": waiver_screen.values(listed)})
    elif listed:
        waiver_screen.print_rows(listed)
        say(f"Held against {against}.")
    else:
        say(f"No waiver is declared ({name}).")


@verb(
    waiver,
    reads_audits=True,
    name="check",
    epilog="Example: semlens-audit waiver check audits/phantom-shortcut.yaml --warn-days 30",
)
def check(
    file: AuditOrRecord,
    warn_days: Annotated[int, typer.Option("--warn-days", min=0, help="Warn of waivers that expire within so many days.")] = 14,
    record: LastRun = None,
    waivers: WaiversFile = None,
    today: Today = None,
    as_json: AsJson = False,
) -> ExitCode:
    """Say whether every waiver of an audit holds.

    Exits 5 if one has expired, is exceeded, matches nothing or breaks a rule, else 0; for a nightly job, so that nobody learns of it
    on the day of the release.
    """
    from semlens_audit import waiver_screen
    from semlens_audit.wording import count

    name, listed, against = _rows(file, record, waivers, today)
    bad = waiver_screen.complaints(listed, name)
    soon = waiver_screen.warnings(listed, name, warn_days)
    code = ExitCode.WAIVER if bad else ExitCode.SATISFIED
    print_problems((*bad, *soon))
    if as_json:
        value = {"file": name, "exit_code": int(code), "waivers": waiver_screen.values(listed)}
        print_json(value)
    elif not listed:
        say(f"No waiver is declared ({name}).")
    else:
        verdict = f"{count(len(bad), 'of them does', 'of them do')} not hold" if bad else "all hold"
        say(f"{count(len(listed), 'waiver')}, {verdict}; held against {against}.")
    return code
