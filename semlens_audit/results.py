"""What a run leaves in its folder: the record and its report; and what later verbs read from there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from semlens_audit import engine, paths, report, run_log
from semlens_audit.errors import AuditError, ExitCode, Problem, UsageError
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress
from semlens_audit.records import AuditRecord

__all__ = ["Outcome", "assigned", "carry_out", "folder"]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Parameters
    ----------
    record
        What was found.
    files
        What was written, the record first.
    problems
        Why a PDF that was asked for is missing; empty where nothing is missing.
    """

    record: AuditRecord
    files: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The gate's; 4 where the verdict would let a release pass but a file that was asked for is missing."""
        code = self.record.exit_code
        return ExitCode.INCOMPLETE if self.problems and code == ExitCode.SATISFIED else code


def folder(plan: AuditPlan, out: Path | None = None) -> Path:
    """Folder of the record and report of `plan`: below `out`, else below the reports folder that the audit names."""
    return (out or paths.reports_path(plan)) / plan.audit.audit


def carry_out(
    plan: AuditPlan,
    *,
    progress: Progress,
    pdf: bool,
    out: Path | None = None,
    allow_code: bool = False,
    qualification: Path | None = None,
) -> Outcome:
    """Audit `plan` and write record and report.

    Parameters
    ----------
    plan
        What is asked.
    progress
        Where long stages report.
    pdf
        Whether to write the PDF too. The record and the HTML stand even where it cannot be made.
    out
        See `folder`.
    allow_code
        Whether a model defined by the user's own Python file may be executed.
    qualification
        The ``qualification.json`` to stand on, instead of the one that the audit names.

    Raises
    ------
    AuditError
        Whatever the user can mend, but for a PDF that cannot be made.
    """
    command = ["semlens-audit", "run", plan.audit_file, *(["--allow-code"] if allow_code else [])]
    if qualification is not None:
        command += ["--qualification", str(qualification)]
        named = plan.audit.model_copy(update={"qualification": str(qualification.resolve())})
        plan = plan.model_copy(update={"audit": named})
    record = engine.run(plan, allow_code=allow_code, progress=progress, command=shlex.join(command))
    place = folder(plan, out)
    results = place / "results.json"
    engine.write_record(record, results)
    run_log.written(paths.store_path(plan), plan.audit.audit, engine.record_digest(record), int(record.exit_code))
    html = report.write(record, place, pdf=False)
    if not pdf:
        return Outcome(record, (results, *html))
    try:
        return Outcome(record, (results, *report.write(record, place, pdf=True)))
    except AuditError as error:
        return Outcome(record, (results, *html), (*error.problems, *_without_pdf(record)))


def _without_pdf(record: AuditRecord) -> tuple[Problem, ...]:
    if record.verdict.exit_code != ExitCode.SATISFIED:
        return ()
    said = "Every check is satisfied, but the PDF that was asked for is missing: exit code 4 instead of 0."
    return (Problem("pdf-missing", said, "Mend what is said above, or run without --pdf."),)


def assigned(plan: AuditPlan, class_name: str) -> dict[tuple[str, int], str | None] | None:
    """Concepts that the last run of this very spec and audit assigned components to.

    Parameters
    ----------
    plan
        The audit.
    class_name
        Class of the spec.

    Returns
    -------
    dict or None
        (layer, component) -> concept, or ``None`` for a component without one. ``None`` altogether where there is no run, or
        spec, audit file or tool have changed since.
    """
    results = folder(plan) / "results.json"
    if not results.is_file():
        return None
    try:
        record = engine.read_record(results)
    except UsageError:
        return None  # of another version of the tool
    if (record.spec.sha256, record.audit.sha256) != (plan.spec_digest, plan.audit_digest):
        return None
    return {
        (place.layer, component.component): component.assigned
        for place in record.class_layers
        if place.class_name == class_name
        for component in place.components
    }
