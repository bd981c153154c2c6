"""What a run leaves in its folder: the record, its report and its exports; and what later verbs read from there."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from semlens_audit import component_history, component_sheet, engine, exports, paths, release, report, run_log, waivers
from semlens_audit.errors import AuditError, ExitCode, IntegrityError, Problem, UsageError
from semlens_audit.execution import Execution
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress
from semlens_audit.record_file import RESULTS
from semlens_audit.record_source import read_any
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_policy import Policy

__all__ = ["Outcome", "Terms", "assigned", "carry_out", "decide", "folder", "last", "leave"]


@dataclass(frozen=True)
class Terms:
    """What a release is decided by.

    Parameters
    ----------
    policy
        What stops it.
    waivers
        File of the waivers; ``None``: the one beside the audit, or in the record, if there is one.
    today
        Date on which waivers are judged; ``None``: the day on which the audit ran.
    baseline
        Earlier record (``results.json`` or the PDF of a report) to compare with.
    components
        What `compare --json` wrote of the baseline's audit and this one, for the report's section on the change.
    """

    policy: Policy = field(default_factory=Policy)
    waivers: Path | None = None
    today: date | None = None
    baseline: Path | None = None
    components: tuple[Path, ...] = ()

    def options(self) -> list[str]:
        """The command line's options that mean the same."""
        given = []
        if self.policy.fail_on != Policy().fail_on:
            given += ["--fail-on", self.policy.fail_on]
        if self.policy.on_inconclusive != Policy().on_inconclusive:
            given += ["--on-inconclusive", self.policy.on_inconclusive]
        if self.waivers is not None:
            given += ["--waivers", str(self.waivers)]
        if self.today is not None:
            given += ["--today", self.today.isoformat()]
        if self.baseline is not None:
            given += ["--baseline", str(self.baseline)]
        for path in self.components:
            given += ["--components", str(path)]
        return given


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
    notices
        Waivers that break a rule, each with its place; what follows from it, the gate has decided. And PDFs in the folder that are of
        an earlier record.
    """

    record: AuditRecord
    files: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The gate's; 4 where it would let a release pass but a file that was asked for is missing."""
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
    terms: Terms | None = None,
    locked: bool = False,
    execution: Execution | None = None,
) -> Outcome:
    """Audit `plan`, decide on the release, and write record, report and exports.

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
    terms
        What the release is decided by; default: no finding may be unsatisfied, but for the waivers beside the audit.
    locked
        Whether to refuse an audit without a lock, or other than it was locked.
    execution
        Where and with what the index is computed.

    Raises
    ------
    AuditError
        Whatever the user can mend, but for a PDF that cannot be made. A waivers file that cannot be read raises before anything is
        measured.
    """
    terms = terms or Terms()
    declared = waivers.find(plan.audit_file, terms.waivers)
    baseline, sheets = _earlier(terms)
    command = ["semlens-audit", "run", plan.audit_file, *(["--allow-code"] if allow_code else [])]
    if qualification is not None:
        command += ["--qualification", str(qualification)]
        named = plan.audit.model_copy(update={"qualification": str(qualification.resolve())})
        plan = plan.model_copy(update={"audit": named})
    command += [*terms.options(), *(["--locked"] if locked else [])]
    found = engine.run(
        plan, allow_code=allow_code, progress=progress, command=shlex.join(command), locked=locked, execution=execution
    )
    changes, notices = _components(baseline, found, sheets, plan, progress, execution)
    record = release.complete(
        found, policy=terms.policy, declared=declared, baseline=baseline, components=changes, today=terms.today
    )

    def written() -> None:
        run_log.written(paths.store_path(plan), plan.audit.audit, engine.record_digest(record), int(record.exit_code))

    notices = (*(declared.problems if declared else ()), *notices)
    return leave(record, folder(plan, out), pdf=pdf, notices=notices, written=written)


def _earlier(terms: Terms) -> tuple[AuditRecord | None, tuple[component_sheet.Sheet, ...]]:
    """The baseline and what was handed over with it, read before anything is measured."""
    if terms.baseline is None and terms.components:
        raise UsageError(
            "no-baseline", "A comparison of components belongs to a baseline.", "Name its record too: --baseline RESULTS.json."
        )
    baseline = read_any(terms.baseline) if terms.baseline is not None else None
    return baseline, tuple(map(component_sheet.read_sheet, terms.components))


def _components(
    baseline: AuditRecord | None,
    record: AuditRecord,
    sheets: Sequence[component_sheet.Sheet],
    plan: AuditPlan,
    progress: Progress,
    execution: Execution | None,
) -> tuple[component_sheet.Changes | None, tuple[Problem, ...]]:
    """What became of the components: as it was handed over, else from the store where that holds the baseline's index too."""
    if baseline is None:
        return None, ()
    if sheets:
        return _handed_over(baseline, record, sheets), ()
    return component_history.since(baseline, record, plan, progress, execution.max_memory if execution else None)


def _handed_over(
    baseline: AuditRecord, record: AuditRecord, sheets: Sequence[component_sheet.Sheet]
) -> component_sheet.Changes | None:
    for sheet in sheets:
        component_sheet.held_against(sheet, baseline, record)
    return component_sheet.condense(sheets) if sheets else None


def decide(record: AuditRecord, terms: Terms) -> tuple[AuditRecord, tuple[Problem, ...]]:
    """`record` with its release decided anew, and the waivers that break a rule.

    Parameters
    ----------
    record
        What was found.
    terms
        What the release is decided by; without a waivers file, the one in the record.

    Raises
    ------
    WaiverError
        The waivers file cannot be read.
    UsageError
        The baseline or a comparison of components cannot be read, or the comparison is not of these records.
    IntegrityError
        The record or the baseline was damaged, or the record contradicts itself.
    """
    _require_consistent(record)
    document = next((document for document in record.documents if document.kind == "waivers"), None)
    declared = None
    if terms.waivers is not None:
        declared = waivers.read(terms.waivers)
    elif document is not None:
        declared = waivers.parse(document.text.encode("utf-8"), document.name)
    baseline, sheets = _earlier(terms)
    changes = _handed_over(baseline, record, sheets) if baseline is not None else None
    decided = release.complete(
        record, policy=terms.policy, declared=declared, baseline=baseline, components=changes, today=terms.today
    )
    return decided, declared.problems if declared else ()


def _require_consistent(record: AuditRecord) -> None:
    """Refuse a record with a state that cannot come of its measurement; all else is for `verify` to tell."""
    hint = "Take the file as `run` wrote it, or run the audit again."
    for finding in record.findings:
        if not _follows(finding):
            said = f"The state of {finding.id}, {finding.state}, does not follow from its measurement."
            raise IntegrityError("contradiction", said, hint)


def _follows(finding: Finding) -> bool:
    """Whether a state can come of the interval and the criterion; control for multiplicity turns violations into open results only."""
    interval, bound = finding.measurement.interval, finding.criterion.threshold
    if finding.measurement.value is None or interval is None:
        return finding.state == "not_measured"
    below = finding.criterion.operator == "at_most"
    met = interval.high <= bound if below else interval.low >= bound
    violated = interval.low > bound if below else interval.high < bound
    if met:
        return finding.state == "satisfied"
    return finding.state == "inconclusive" or (violated and finding.state == "not_satisfied")


def leave(
    record: AuditRecord,
    place: Path,
    *,
    pdf: bool,
    notices: tuple[Problem, ...] = (),
    written: Callable[[], None] | None = None,
) -> Outcome:
    """Write record, report and exports into the folder `place`.

    Parameters
    ----------
    pdf
        Whether to write the PDF too; where it cannot be made, `Outcome.problems` says why.
    notices
        See `Outcome`.
    written
        Called when the record is written, before anything else is.
    """
    results = place / RESULTS
    engine.write_record(record, results)
    if written is not None:
        written()
    files = (results, *report.write(record, place, pdf=False), *exports.write_all(record, place))
    if not pdf:
        return Outcome(record, files, notices=(*notices, *_older(place)))
    try:
        return Outcome(record, (*files, report.write_pdf(record, place)), notices=notices)
    except AuditError as error:
        return Outcome(record, files, (*error.problems, *_without_pdf(record)), notices)


def _older(place: Path) -> tuple[Problem, ...]:
    """What is said of PDFs that lie in the folder and are not of this record."""
    older = sorted(path.name for path in place.glob("report*.pdf"))
    if not older:
        return ()
    are = "is of an earlier record" if len(older) == 1 else "are of an earlier record"
    said = f"{' and '.join(older)} in {place} {are}; this run was not asked for a PDF."
    return (Problem("older-pdf", said, "Run with --pdf to replace report.pdf, then sign it again; or move what is to be kept."),)


def _without_pdf(record: AuditRecord) -> tuple[Problem, ...]:
    if record.exit_code != ExitCode.SATISFIED:
        return ()
    said = "Nothing stops the release, but the PDF that was asked for is missing: exit code 4 instead of 0."
    return (Problem("pdf-missing", said, "Mend what is said above, or run without --pdf."),)


def last(plan: AuditPlan) -> AuditRecord | None:
    """Record of the last run of this very spec and audit; ``None`` where there is none, or spec, audit file or tool have changed."""
    results = folder(plan) / RESULTS
    if not results.is_file():
        return None
    try:
        record = engine.read_record(results)
    except UsageError:
        return None  # of another version of the tool
    return record if (record.spec.sha256, record.audit.sha256) == (plan.spec_digest, plan.audit_digest) else None


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
    record = last(plan)
    if record is None:
        return None
    return {
        (place.layer, component.component): component.assigned
        for place in record.class_layers
        if place.class_name == class_name
        for component in place.components
    }
