"""What a record says of its lock: in a sentence, and whether that follows from what the record carries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from semlens_audit.digest import digest_bytes
from semlens_audit.errors import IntegrityError
from semlens_audit.lock_file import Lock, asked, differences, parse
from semlens_audit.plan import AuditPlan
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import LockRecord
from semlens_audit.wording import count, format_date, shorten

__all__ = ["contradictions", "sentence"]

_NAMED = 3
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def sentence(record: LockRecord) -> str:
    """What was kept or not, and which look this is, for a reader."""
    when, number = format_date(record.created), record.earlier_runs
    which = f"the {_ORDINALS[number]} run" if number < len(_ORDINALS) else f"run {number + 1:,}"
    if record.state == "kept":
        said = f"Locked on {when}, before it ran, and nothing differs from what was locked. This is {which} under the lock"
    else:
        named = "; ".join(record.differences[:_NAMED])
        more = len(record.differences) - _NAMED
        rest = f"; and {count(more, 'more difference')}" if more > 0 else ""
        said = f"Locked on {when}, but not carried out as locked: {named}{rest}. This is {which} since"
    said += ", as far as the store knows" if record.log_intact else ", as far as the store knows, whose run log is not intact"
    before = record.runs_before_lock
    said += f"; it had seen {count(before, 'run')} of this audit before it was locked." if before else "; none came before the lock."
    if record.replaced:
        said += f" The lock replaced {count(record.replaced, 'earlier lock')}."
    return said


def contradictions(record: AuditRecord, plan: AuditPlan) -> tuple[str, ...]:
    """What a record says of its lock and its own documents and digests deny, one sentence each; needs no model and no store.

    Held against the lock: what spec and audit ask, test data, pairs, foundation model, and the weights where the lock knew them.
    What a record does not hold cannot be checked: attributes, groups, example images, code, and how many runs the store had seen.

    Parameters
    ----------
    plan
        The plan that the record's own documents make.
    """
    document = next((one for one in record.documents if one.kind == "lock"), None)
    if record.lock is None:
        return () if document is None else ("The record carries a lock and does not speak of it.",)
    if document is None:
        return ("The record speaks of a lock and does not carry it.",)
    content = document.text.encode("utf-8")
    if digest_bytes(content) != document.sha256:
        return ("The lock in the record is not what its digest says.",)
    try:
        lock = parse(content, Path(document.name))
    except IntegrityError as error:
        return tuple(problem.message for problem in error.problems)
    return tuple(_contradictions(record, record.lock, lock, plan))


def _contradictions(record: AuditRecord, said: LockRecord, lock: Lock, plan: AuditPlan) -> Iterator[str]:
    if said.sha256 != lock.sha256:
        yield f"The record names the lock {shorten(said.sha256)} and carries {shorten(lock.sha256)}."
    if said.created != lock.created:
        yield f"The lock was made on {format_date(lock.created)}, the record says {format_date(said.created)}."
    if said.replaced != len(lock.history):
        yield f"The lock replaced {count(len(lock.history), 'earlier lock')}, the record says {said.replaced:,}."
    if said.runs_before_lock < lock.runs_seen:
        yield f"The lock knew of {count(lock.runs_seen, 'run')} before it, the record says {said.runs_before_lock:,}."
    if (said.state == "broken") != bool(said.differences):
        yield f"The record says that the lock was {said.state} and names {count(len(said.differences), 'difference')}."
    if said.sentence != sentence(said):
        yield "What the record says of the lock in words does not follow from its facts."
    known = {
        **lock.identities,
        "data": record.data.sha256,
        "pairs": record.data.pairs_sha256,
        "foundation_model": record.foundation_model.sha256,
    }
    found = list(differences(lock, known, lock.code, asked(plan)))
    for clause in found:
        if clause not in said.differences:
            yield f"The record differs from its lock and does not say so: {clause}."
    model = any(clause.startswith("the audited model") for clause in said.differences)
    if lock.weights_sha256 not in (None, record.subject.weights_sha256) and not model:
        yield "The weights are others than those that were locked, and the record does not say so."
