"""Whether a model's weights and an audit's test data are those that a record speaks of. Brings torch in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from semlens_audit.data import open_data
from semlens_audit.errors import AuditError
from semlens_audit.records import AuditRecord
from semlens_audit.spec import read_plan
from semlens_audit.subject import load_subject
from semlens_audit.verification import CheckedLine, not_checked, proven, refused
from semlens_audit.verify_record import plan_of

__all__ = ["data_question", "model_question"]


def model_question(weights: Path, *, allow_code: bool = False) -> Callable[[AuditRecord], CheckedLine]:
    """Ask whether the tensors in a file of weights, in the network that the record names, are the audited ones.

    Parameters
    ----------
    weights
        As an audit file names them: ``.safetensors``, ``.pt`` or ``.pth``.
    allow_code
        Whether a network that is defined by Python code may be built.
    """

    def look(record: AuditRecord) -> CheckedLine:
        question = f"{weights.name} holds the audited weights"
        try:
            plan = plan_of(record)
            source = plan.audit.subject.model.model_copy(update={"weights": str(weights.resolve())})
            # The weights are the question: neither layers nor what is spliced in are needed for it.
            bare = {"autoencoders": (), "virtual_neurons": ()}
            subject = plan.audit.subject.model_copy(update={"model": source, "classes": record.subject.classes, **bare})
            audit = plan.audit.model_copy(update={"subject": subject, "layers": ()})
            found = load_subject(plan.model_copy(update={"audit": audit}), allow_code=allow_code).sha256
        except AuditError as error:
            if error.slug == "code-not-allowed":
                return not_checked("model", question, " ".join(problem.message for problem in error.problems))
            return refused("model", question, error)
        if found != record.subject.weights_sha256:
            return refused("model", question, f"They are others: SHA-256 of the tensors {found[:16]}…")
        return proven("model", question, f"SHA-256 of the tensors {found[:16]}…")

    return look


def data_question(audit_file: Path) -> Callable[[AuditRecord], CheckedLine]:
    """Ask whether the test data that an audit file names are those that the record speaks of.

    Parameters
    ----------
    audit_file
        On this machine, beside its data.
    """

    def look(record: AuditRecord) -> CheckedLine:
        question = f"The test data of {audit_file.name} are those that were audited"
        try:
            found = open_data(read_plan(audit_file))
        except AuditError as error:
            return refused("data", question, error)
        pairs = found.pairs.sha256 if found.pairs else None
        if (found.sha256, pairs) != (record.data.sha256, record.data.pairs_sha256):
            return refused("data", question, f"They are others: SHA-256 of the manifest {found.sha256[:16]}…")
        return proven("data", question, f"{len(found.samples):,} samples, SHA-256 of the manifest {found.sha256[:16]}…")

    return look
