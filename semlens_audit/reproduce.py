"""An audit repeated from its own record: the documents it carries, the same model and data, a fresh store; then held against it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from semlens_audit import engine
from semlens_audit.agreement import TOLERANCE, Agreement, agree
from semlens_audit.audit_rules import check_audit
from semlens_audit.confinement import confined
from semlens_audit.data import DataSet, open_data
from semlens_audit.digest import digest_bytes, digest_file
from semlens_audit.errors import ExecutionError, IntegrityError, Problem, SpecError, UsageError
from semlens_audit.foundation import foundation_digest
from semlens_audit.pair_rules import check_pair
from semlens_audit.paths import store_path
from semlens_audit.places import placed_in_audit
from semlens_audit.plan import Audit, AuditPlan, Spec
from semlens_audit.progress import Progress
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import DocumentRecord
from semlens_audit.spec_rules import check_spec
from semlens_audit.spec_shape import validate
from semlens_audit.store import Store
from semlens_audit.subject import load_subject
from semlens_audit.wording import shorten
from semlens_audit.yaml_source import Source, TooManyProblems, parse

__all__ = ["reproduce"]


def reproduce(
    record: AuditRecord,
    *,
    audit_file: Path | None = None,
    root: Path | None = None,
    work: Path | None = None,
    use_store: bool = False,
    tolerance: float = TOLERANCE,
    allow_code: bool = False,
    progress: Progress,
) -> Agreement:
    """Carry the audit of a record out again, and compare.

    Spec and audit are those that the record carries. What they name is looked for relative to `audit_file`, or to where below `root`
    the audit file of the same digest lies, or to where it lay below the folder of the first run.

    Parameters
    ----------
    audit_file
        The audit file, the same to the byte as the record's.
    root
        Folder that stands for the one in which the audit was first run; default: the current folder.
    work
        Folder for the store, kept, so that an interrupted repetition goes on where it was; default: a temporary one.
    use_store
        Whether to read the index from the audit's own store instead of building it anew; everything is measured again all the same.
    tolerance
        See `semlens_audit.agreement.agree`.
    allow_code
        Whether a model defined by Python code may be executed.
    progress
        Where long stages report.

    Raises
    ------
    IntegrityError
        ``documents-changed``: a document of the record is not what its digest says; ``other-audit``: `audit_file` is another one;
        ``other-input``: model, data, pairs or foundation model are others than the record's. Before anything is measured.
    ExecutionError
        ``cannot-reproduce``: the record carries no documents, or what they name is not there.
    """
    spec, audit = _documents(record)
    with _folder(work) as folder:
        plan, local = _plan(record, spec, audit, _base(record, audit, audit_file, root or Path()))
        if use_store and not local:
            raise UsageError(
                "no-local-audit",
                "The audit's own store can be used only where its audit file lies, and none of that digest was found.",
                "Name it with --audit, or leave --use-store out.",
            )
        if not use_store:
            fresh = plan.audit.model_copy(update={"store": str(folder.resolve() / "store.duckdb")})
            plan = plan.model_copy(update={"audit": fresh})
        with Store.open(store_path(plan)) as store:
            data = open_data(plan, store.file_digest)
        _same_input(record, plan, data, allow_code)
        again = engine.run(
            plan, allow_code=allow_code, progress=progress, command=record.command, data=data, anew=use_store, counted=False
        )
    return agree(record, again, tolerance)


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="semlens-audit-reproduce-") as folder:
        yield Path(folder)


def _documents(record: AuditRecord) -> tuple[DocumentRecord, DocumentRecord]:
    """Spec and audit of the record, as their digests say."""
    found: dict[str, DocumentRecord] = {document.kind: document for document in record.documents}
    if "spec" not in found or "audit" not in found:
        raise ExecutionError(
            "cannot-reproduce",
            "The record carries no spec and audit file.",
            "Records of versions before 1.1 carry none: run the audit itself again.",
        )
    for kind, digest in (("spec", record.spec.sha256), ("audit", record.audit.sha256)):
        document = found[kind]
        own = digest_bytes(document.text.encode("utf-8"))
        if not own == document.sha256 == digest:
            raise IntegrityError(
                "documents-changed",
                f"The {kind} in the record has the digest {shorten(own)}, not {shorten(digest)} as the record says.",
                "Take the record as `run` wrote it.",
            )
    return found["spec"], found["audit"]


def _base(record: AuditRecord, audit: DocumentRecord, audit_file: Path | None, root: Path) -> Path:
    """Where the audit file lies, or lay: what it names is relative to that."""
    if audit_file is not None:
        try:
            own = digest_file(audit_file)
        except OSError as error:
            raise UsageError("no-audit", f"The audit file cannot be read: {error.strerror}.", file=str(audit_file)) from error
        if own != audit.sha256:
            said = f"The audit file has the digest {shorten(own)}, that of the record {shorten(audit.sha256)}."
            raise IntegrityError("other-audit", said, "Give the file as it was when the audit was run.", file=str(audit_file))
        return audit_file
    shown = PurePosixPath(str(record.audit.detail.get("file", audit.name)))
    name = PurePosixPath(audit.name).name
    # A record may come from a stranger: no path of it leads out of the root.
    inside = shown if not shown.is_absolute() and ".." not in shown.parts and "\\" not in str(shown) else PurePosixPath(name)
    places = list(dict.fromkeys((root / inside, root / "audits" / name, root / name)))
    return next((path for path in places if path.is_file() and digest_file(path) == audit.sha256), places[0])


def _plan(record: AuditRecord, spec: DocumentRecord, audit: DocumentRecord, base: Path) -> tuple[AuditPlan, bool]:
    """The plan that the documents make, as if they lay at `base`; and whether the audit file lies there indeed."""
    asked, wanted = parse(audit.text.encode("utf-8"), str(base)), parse(spec.text.encode("utf-8"), spec.name)
    audit_value, spec_value = None, None
    with suppress(TooManyProblems):  # those found are said below
        audit_value = validate(Audit, asked) if asked.data is not None else None
        if audit_value is not None:
            wanted.places.file = _spec_file(base, audit_value, asked) or spec.name
        spec_value = validate(Spec, wanted) if wanted.data is not None else None
        check_audit(asked, base)
        check_spec(wanted)
        check_pair(asked, base, wanted)
    problems = [*asked.problems, *wanted.problems]
    if problems or audit_value is None or spec_value is None:
        absent = tuple(Problem("cannot-reproduce", one.message, one.hint, one.file, one.line, one.column) for one in problems)
        raise ExecutionError("cannot-reproduce", "", problems=absent)
    plan = AuditPlan(
        spec=spec_value,
        audit=audit_value,
        spec_file=wanted.places.file,
        audit_file=str(base),
        spec_digest=record.spec.sha256,
        audit_digest=record.audit.sha256,
        spec_text=spec.text,
        audit_text=audit.text,
        check_lines={check.id: wanted.places.value(("checks", index))[0] for index, check in enumerate(spec_value.checks)},
    )
    return plan, base.is_file() and digest_file(base) == audit.sha256


def _spec_file(base: Path, audit: Audit, source: Source) -> str | None:
    """Where the spec would lie; a complaint where it may not lie there."""
    try:
        return str(confined(base, audit.spec))
    except SpecError as error:
        source.complain(error.slug, ("spec",), error.problems[0].message, error.problems[0].hint)
        return None


def _same_input(record: AuditRecord, plan: AuditPlan, data: DataSet, allow_code: bool) -> None:
    """Refuse another model, other data or another foundation model, before anything is measured."""
    with placed_in_audit(plan):
        subject = load_subject(plan, allow_code=allow_code)
    rows = (
        ("the weights of the audited model", record.subject.weights_sha256, subject.sha256),
        ("the test data", record.data.sha256, data.sha256),
        ("the counterfactual pairs", record.data.pairs_sha256, data.pairs.sha256 if data.pairs else None),
        ("the foundation model", record.foundation_model.sha256, foundation_digest(plan)),
    )
    hint = "Reproduce with what was audited; a changed input is another audit."
    problems = tuple(
        Problem("other-input", f"Not what was audited: {what} ({_short(now)}, in the record {_short(then)}).", hint)
        for what, then, now in rows
        if then != now
    )
    if problems:
        raise IntegrityError("other-input", "", problems=problems)


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else shorten(sha256)
