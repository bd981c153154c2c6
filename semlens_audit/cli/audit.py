"""Auditing: `index`, `run`, `selftest`, `report`, `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.compute import Address, Device, EngineName, MaxMemory, Workers, execution
from semlens_audit.cli.shell import (
    EXIT_CODES,
    AllowCode,
    AsJson,
    AuditFile,
    Quiet,
    print_json,
    read_plan,
    say,
    show_progress,
    verb,
)
from semlens_audit.cli.terms import Baseline, Components, FailOn, OnInconclusive, Today, WaiversFile, day, terms
from semlens_audit.errors import ExitCode
from semlens_audit.failures import print_problems

__all__ = ["demo", "index", "report", "run", "selftest"]


@verb(rich_help_panel="Audit", epilog="Example: semlens-audit index audits/phantom-clean.yaml")
def index(
    audit: AuditFile,
    allow_code: AllowCode = False,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Build the concept index of an audit: the heavy part, cached.

    Runs the model over the data, finds each component's reference samples, crops and embeds them, and attributes every class
    to components. Writes the store named in the audit (DuckDB). Interrupted or killed, it resumes where it was; finished
    stages are reused as long as weights, data and settings are the same to the byte. [cyan]run[/] does this by itself.
    """
    from semlens_audit import index as concept_index
    from semlens_audit import paths
    from semlens_audit.data import open_data
    from semlens_audit.memory import divide
    from semlens_audit.store import Store

    how = execution(device, max_memory, engine, address, workers)
    plan = read_plan(audit)
    path = paths.store_path(plan)
    with show_progress(quiet) as progress, Store.open(path, memory_limit=divide(how.max_memory).database) as store:
        data = open_data(plan, store.file_digest)
        concept_index.build(plan, data, store, allow_code=allow_code, progress=progress, execution=how)
    size = path.stat().st_size
    if as_json:
        print_json({"audit": plan.audit.audit, "store": str(path), "bytes": size})
    else:
        say(f"Index complete: {path} ({size / 1e6:.1f} MB)")


@verb(rich_help_panel="Audit", epilog=f"Example: semlens-audit run audits/phantom-shortcut.yaml --pdf. {EXIT_CODES}")
def run(
    audit: AuditFile,
    allow_code: AllowCode = False,
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Also render the report as PDF (some seconds).")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for results and report, instead of the one the audit names.")] = None,
    qualification: Annotated[
        Path | None, typer.Option(help="The qualification.json whose error rates the report states, instead of the tool's own.")
    ] = None,
    fail_on: FailOn = "minor",
    on_inconclusive: OnInconclusive = "inconclusive",
    waivers: WaiversFile = None,
    today: Today = None,
    baseline: Baseline = None,
    components: Components = None,
    locked: Annotated[
        bool,
        typer.Option("--locked", help="Refuse to run unless the audit is as it was locked.", rich_help_panel="Release gate"),
    ] = False,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Audit a model, write the report, exit with the gate's decision.

    Builds what is missing of the index, measures, holds each measurement against its acceptance criterion, and writes
    [bold]results.json[/] (the record), [bold]report.html[/] and what build servers read (JUnit, SARIF, OSCAL, CycloneDX, a
    summary) into the audit's reports folder. Changing a criterion and running again re-decides from the cache within seconds.

    Without options, every result must be satisfied, but for those that a waiver beside the audit excepts. What was not measured
    never passes.
    """
    from semlens_audit import results, screen

    how = execution(device, max_memory, engine, address, workers)
    plan = read_plan(audit)
    agreed = terms(fail_on, on_inconclusive, waivers, None if today is None else day(today), baseline, components)
    with show_progress(quiet) as progress:
        outcome = results.carry_out(
            plan,
            allow_code=allow_code,
            pdf=pdf,
            out=out,
            qualification=qualification,
            terms=agreed,
            locked=locked,
            progress=progress,
            execution=how,
        )
    print_problems((*outcome.notices, *outcome.problems))
    if as_json:
        print_json(screen.summary(outcome.record, outcome.files, int(outcome.exit_code)))
    else:
        screen.print_findings(outcome.record, outcome.files)
    return outcome.exit_code


@verb(rich_help_panel="Audit", epilog="Example: semlens-audit selftest audits/phantom-shortcut.yaml --repeats 2")
def selftest(
    audit: AuditFile,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Repeats with other seeds and on halves of the data.")] = 3,
    fast: Annotated[
        bool, typer.Option("--quick", help="Build no index again: seconds instead of minutes, and a weaker test.")
    ] = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Repeat an audit, and report how often its findings turn.

    On identical input, measured again and with its index rebuilt in a temporary store, it must give the same to the bit. With other
    seeds and on random halves of the data, findings may become inconclusive, but none should turn from satisfied to not satisfied
    or back. Exits 0 if so, 6 if identical input gave something else, 1 if a finding or the verdict turned.
    """
    from semlens_audit import selftest as repetition
    from semlens_audit.selftest_screen import print_selftest

    plan = read_plan(audit)
    with show_progress(quiet) as progress:
        test = repetition.selftest(plan, repeats=repeats, quick=fast, allow_code=allow_code, progress=progress)
    if as_json:
        print_json(test.model_dump(mode="json") | {"exit_code": int(test.exit_code)})
    else:
        print_selftest(test)
    return test.exit_code


@verb(rich_help_panel="Audit", epilog="Example: semlens-audit report reports/phantom-clean/results.json --out for-the-board")
def report(
    record_file: Annotated[Path, typer.Argument(metavar="RESULTS.json", help="Record that a run has written.")],
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Render the PDF too.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; default: beside the record.")] = None,
) -> None:
    """Render the report of a record again, as HTML and PDF.

    Needs neither the model nor the data nor the store: everything a reader sees is in the record. The same record gives the
    same bytes. Exits 0 when the report is written, whatever the verdict: the gate is [cyan]run[/].
    """
    from semlens_audit import engine
    from semlens_audit import report as pages

    record = engine.read_record(record_file)
    folder = out or record_file.parent
    for path in pages.write(record, folder, pdf=False):
        say(str(path))
    if pdf:
        say(str(pages.write_pdf(record, folder)))


@verb(rich_help_panel="Audit", epilog="Example: semlens-audit demo --out try-it")
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the two audits, their spec, stores and reports; files that exist there are kept.")
    ] = Path("semlens-audit-demo"),
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Render the reports as PDF too.")] = True,
    quiet: Quiet = False,
) -> ExitCode:
    """Audit two small models that come with the tool, of which one decides by a ruler.

    Both were trained on rendered images of moles; in the first one's training images a ruler lay beside nearly every
    melanoma. Takes some minutes and no network. Exits 0 when the audits came out as the truth demands: the shortcut model
    not satisfied and the ruler named, its clean twin satisfied; else 4. The reports are then signed and attested with test keys
    that are made for it, and verified.
    """
    from semlens_audit import demo as demonstration
    from semlens_audit import results, screen

    surprises, written = [], []
    for expected, audit in demonstration.prepare(out):
        say(f"{audit}: {expected.description}")
        with show_progress(quiet) as progress:
            outcome = results.carry_out(read_plan(audit), pdf=pdf, progress=progress)
        print_problems(outcome.problems)
        screen.print_findings(outcome.record, outcome.files)
        surprises += demonstration.surprises(expected, outcome.record)
        written.append(outcome.files)
    refused = _signed(written)
    for surprise in surprises:
        say(f"Not as the truth demands: {surprise}", err=True)
    if not surprises:
        say("As the truth demands: the shortcut model is not satisfied and its clean twin is.")
    if refused:
        return ExitCode.INTEGRITY
    return ExitCode.INCOMPLETE if surprises else ExitCode.SATISFIED


def _signed(audits: list[tuple[Path, ...]]) -> bool:
    """Sign and attest the demonstration's reports with test keys, verify them, print what came of it; whether any is refused."""
    from semlens_audit import demo_signing

    keys = audits[0][0].parent.parent / demo_signing.KEYS
    found = demo_signing.sign_all(audits, keys)
    say(f"Signed and attested with test keys ({keys}), which nobody should trust, and verified:")
    for path, one in found:
        proven = sum(line.state == "proven" for line in one.lines)
        say(f"  {path}: {'refused' if one.exit_code else 'accepted'}, {proven} of {len(one.lines)} questions proven")
    example = next((path for path, _ in found if path.suffix == ".pdf"), found[0][0])
    say(f"Look closer: semlens-audit verify {example} --trust {keys / 'trust'}")
    return any(one.exit_code for _, one in found)
