"""Pre-registration and reproduction: `lock`, `runs`, `reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import AllowCode, AsJson, AuditFile, Quiet, print_json, read_plan, say, show_progress, verb
from semlens_audit.errors import ExitCode

__all__ = ["lock", "reproduce", "runs"]


@verb(rich_help_panel="Evidence", epilog='Example: semlens-audit lock audits/phantom-clean.yaml --note "Release 2.1"')
def lock(
    audit: AuditFile,
    note: Annotated[str | None, typer.Option(help="Why, for a reader; kept in the lock.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Lock nothing: say whether the audit is as it was locked. Exits 0 if so, else 6.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a lock that is there; the new one names it.")] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Lock an audit before it runs (pre-registration).

    Writes [bold]AUDIT.lock.json[/] beside the audit file: what spec and audit ask, with their criteria and settings, and content
    digests of model, test data, example images, foundation model and the code that measures; and how many runs of this audit the
    store has seen already. A later [cyan]run[/] says whether it kept to the lock and which run under it it is; with
    [bold]--locked[/] it refuses to run otherwise. Titles, persons, citations and places of files may change under a lock.
    """
    from semlens_audit import lock as locks
    from semlens_audit import provenance

    plan = read_plan(audit)
    if check:
        return _check(audit, as_json)
    path, made = locks.make(plan, note=note, force=force, revision=provenance.revision())
    if as_json:
        value = {"file": str(path), "sha256": made.sha256} | made.model_dump(mode="json", exclude={"asked", "code"})
        print_json(value)
    else:
        from semlens_audit.wording import count, shorten

        say(f"Locked: {path} (lock {shorten(made.sha256)})")
        seen = count(made.runs_seen, "run")
        say(f"The store had seen {seen} of this audit before." if made.runs_seen else "The store had seen no run of it.")
        if made.history:
            say(f"It replaces {count(len(made.history), 'earlier lock')}, the last one {shorten(made.history[-1].sha256)}.")
    return ExitCode.SATISFIED


def _check(audit: Path, as_json: bool) -> ExitCode:
    from semlens_audit import lock as locks
    from semlens_audit.errors import Problem
    from semlens_audit.failures import print_problems

    plan = read_plan(audit)
    held = locks.check(plan)
    record = held.record
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        from semlens_audit.wording import count, format_date

        found = count(len(record.differences), "difference") if record.differences else "nothing differs from what was locked"
        say(f"Locked on {format_date(record.created)}; {found}.")
        under, before = count(record.earlier_runs, "run"), f"{record.runs_before_lock:,}"
        say(f"As far as the store knows, {under} under the lock and {before} before it.")
    problems = [Problem("lock-broken", f"Not as it was locked: {clause}.", file=held.document.name) for clause in record.differences]
    if not record.log_intact:
        hint = "See `semlens-audit runs`: how often the audit was run cannot be told."
        problems.append(Problem("run-log-broken", "The store's run log is not intact.", hint))
    print_problems(problems)
    return ExitCode.INTEGRITY if problems else ExitCode.SATISFIED


@verb(rich_help_panel="Evidence", epilog="Example: semlens-audit runs audits/phantom-clean.yaml")
def runs(
    audit: AuditFile,
    record: Annotated[
        Path | None, typer.Option("--record", help="A results.json: exits 6 unless the log has it, and what it knew of the log.")
    ] = None,
    as_json: AsJson = False,
) -> ExitCode:
    """List the runs of an audit that its store has seen, and check that no entry was changed or removed.

    Each entry names the digest of the one before it, so that a change inside the log shows; entries that were removed from its end
    show against a record that was written later ([bold]--record[/]). Exits 6 where the chain is broken. The store can be deleted
    whole: the list says what this store knows, not that nothing else was run.
    """
    from semlens_audit import engine, paths, run_log
    from semlens_audit.errors import Problem
    from semlens_audit.failures import print_problems
    from semlens_audit.runs_screen import print_runs, values
    from semlens_audit.store import Store

    plan = read_plan(audit)
    path = paths.store_path(plan)
    with Store.open(path, read_only=True) as store:
        entries = run_log.read(store)
    complaints = list(run_log.complaints(entries))
    if record is not None:
        known = engine.read_record(record)
        lock, log = (known.lock.sha256, known.lock.log_sha256) if known.lock else (None, None)
        complaints += run_log.missing(entries, lock, log, engine.record_digest(known))
    own = run_log.of_audit(entries, plan.audit.audit)
    if as_json:
        print_json(values(own, complaints))
    else:
        print_runs(own, whole=not complaints)
    print_problems([Problem("run-log-broken", said, file=str(path)) for said in complaints])
    return ExitCode.INTEGRITY if complaints else ExitCode.SATISFIED


@verb(reads_audits=True, rich_help_panel="Evidence", epilog="Example: semlens-audit reproduce reports/phantom-clean/results.json")
def reproduce(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A results.json, or the PDF of a report, which carries it.")],
    audit: Annotated[
        Path | None, typer.Option(help="The audit file, the same to the byte; what it names is looked for beside it.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that stands for the one the audit was first run in; default: the current one.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest deviation allowed, as a part of an interval's half-width.")
    ] = 0.05,
    work: Annotated[
        Path | None, typer.Option(help="Folder for the repetition's store, kept; interrupted, it resumes there.")
    ] = None,
    use_store: Annotated[
        bool, typer.Option("--use-store", help="Take the index from the audit's own store, and only measure anew: a weaker test.")
    ] = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Carry out the audit of a record again, and compare every measurement.

    Takes spec and audit from the record itself, checks that model, data and foundation model are those that were audited, builds a
    fresh index, measures and decides. In the same environment everything is expected to be identical to the bit. Exits 0 where every
    value is identical or within the tolerance, and every state and the verdict are the same; 6 where they are not, or where model or
    data are others; 4 where it could not be repeated.
    """
    from semlens_audit import reproduce as repetition
    from semlens_audit.record_source import read_any
    from semlens_audit.reproduce_screen import print_agreement, values

    record = read_any(file)
    with show_progress(quiet) as progress:
        agreement = repetition.reproduce(
            record,
            audit_file=audit,
            root=root,
            work=work,
            use_store=use_store,
            tolerance=tolerance,
            allow_code=allow_code,
            progress=progress,
        )
    if as_json:
        print_json(values(agreement))
    else:
        print_agreement(agreement)
    return agreement.exit_code
