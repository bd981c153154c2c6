"""Pre-registration: an audit locked before it runs, and held against its lock when it does; see `semlens_audit.lock_file`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from semlens_audit import __version__, run_log
from semlens_audit.data import DataSet, class_names, open_data
from semlens_audit.digest import digest, digest_array, digest_bytes
from semlens_audit.errors import IntegrityError, Problem, UsageError
from semlens_audit.foundation import foundation_digest
from semlens_audit.index import evidence_stages
from semlens_audit.lock_file import Earlier, Lock, asked, differences, load, lock_file, parse, read, write
from semlens_audit.lock_statement import sentence
from semlens_audit.paths import examples_root, store_path
from semlens_audit.plan import AuditPlan
from semlens_audit.release_records import DocumentRecord, LockRecord
from semlens_audit.standing import code_digests
from semlens_audit.store import Store
from semlens_audit.subject import subject_digest
from semlens_audit.wording import format_date, shorten

__all__ = ["Held", "check", "compare", "describe", "hold", "make", "require"]

@dataclass(frozen=True)
class Held:
    """A lock held against the audit that is about to run.

    Parameters
    ----------
    record
        Whether it was kept, and which run this is.
    document
        The lock's file.
    """

    record: LockRecord
    document: DocumentRecord


def describe(plan: AuditPlan, data: DataSet) -> tuple[dict[str, str | None], dict[str, str], dict[str, Any]]:
    """What a lock of `plan` freezes, as it is now: `Lock.identities`, `Lock.code`, `Lock.asked`; reads files, runs nothing.

    Parameters
    ----------
    data
        The plan's test data, opened.

    Raises
    ------
    AuditError
        A file that the audit names cannot be read.
    """
    root = examples_root(plan)
    examples = {
        concept.id: [[digest_bytes((root / one.image).read_bytes()), one.box] for one in concept.examples]
        for concept in plan.spec.concepts
        if concept.examples
    }
    attributes = {name: digest_array(column) for name, column in (data.attributes or {}).items()}
    identities = {
        "model": subject_digest(plan),
        "classes": digest(list(class_names(plan))),
        "data": data.sha256,
        "attributes": digest(attributes) if attributes else None,
        "groups": None if data.groups is None else digest_array(data.groups),
        "pairs": data.pairs.sha256 if data.pairs else None,
        "examples": digest(examples) if examples else None,
        "foundation_model": foundation_digest(plan),
    }
    return identities, code_digests(), asked(plan)


def make(
    plan: AuditPlan, *, note: str | None = None, force: bool = False, now: datetime | None = None, revision: str | None = None
) -> tuple[Path, Lock]:
    """Lock an audit: write its lock file, and enter it into the store's run log.

    Parameters
    ----------
    plan
        The audit as it is now.
    note
        Why, for a reader.
    force
        Whether to replace a lock that is there; the new one names it.
    now
        Time that the lock carries; default: the present.
    revision
        Of the tool, where it runs from a source checkout.

    Raises
    ------
    UsageError
        ``already-locked``, without `force`.
    IntegrityError
        ``lock-damaged``: the lock that is there is none.
    AuditError
        Model, data or store cannot be read.
    """
    path = lock_file(plan.audit_file)
    old = read(path) if path.exists() else None
    if old is not None and not force:
        raise UsageError(
            "already-locked",
            f"The audit was locked on {format_date(old.created)} (lock {shorten(old.sha256)}).",
            "Check it with `semlens-audit lock --check`, or replace it with --force: the new lock will name the one it replaced.",
            file=str(path),
        )
    with Store.open(store_path(plan)) as store:
        data = open_data(plan, store.file_digest)
        identities, code, questions = describe(plan, data)
        entries = run_log.of_audit(run_log.read(store), plan.audit.audit)
        lock = Lock(
            audit=plan.audit.audit,
            created=(now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
            note=note,
            tool=f"semlens-audit {__version__}" + (f", revision {revision}" if revision else ""),
            files={"spec": plan.spec_digest, "audit": plan.audit_digest},
            identities=identities,
            weights_sha256=_weights(plan, data, store),
            code=code,
            asked=questions,
            runs_seen=sum(entry.event == "audit" for entry in entries),
            history=_history(old, entries),
        )
        replaced = {"replaces": old.sha256} if old is not None else {}
        with store.transaction():  # no entry without its file
            run_log.append(store, "lock", {"audit": plan.audit.audit, "lock": lock.sha256, "file": path.name, **replaced})
            write(lock, path)
    return path, lock


def _history(old: Lock | None, entries: Sequence[run_log.Entry]) -> tuple[Earlier, ...]:
    if old is None:
        return ()
    return (*old.history, Earlier(sha256=old.sha256, created=old.created, runs=_looks(entries, old)[1]))


def _weights(plan: AuditPlan, data: DataSet, store: Store) -> str | None:
    """Digest of the model's tensors, where the store holds its outputs on these very data."""
    stage = store.stage(evidence_stages(plan, data, store)["outputs"])
    known = stage.facts.get("weights_sha256") if stage is not None else None
    return str(known) if known is not None else None


def compare(lock: Lock, plan: AuditPlan, data: DataSet) -> tuple[str, ...]:
    """What differs between an audit and its lock, one clause each; empty where nothing does."""
    other = () if lock.audit == plan.audit.audit else (f"the lock is of another audit ({lock.audit})",)
    return (*other, *differences(lock, *describe(plan, data)))


def require(plan: AuditPlan) -> None:
    """Refuse an audit without a lock, before anything of it is opened.

    Raises
    ------
    IntegrityError
        ``not-locked``.
    """
    path = lock_file(plan.audit_file)
    if not path.exists():
        raise IntegrityError(
            "not-locked",
            "The audit is to run under a lock only, and there is none.",
            f"Lock it first: `semlens-audit lock {plan.audit_file}`.",
            file=str(path),
        )


def hold(plan: AuditPlan, data: DataSet, store: Store, *, required: bool = False) -> Held | None:
    """Hold an audit against the lock beside it, before anything is measured.

    Parameters
    ----------
    data, store
        Its test data and store, opened.
    required
        Whether it must be there and kept.

    Returns
    -------
    Held or None
        ``None`` where there is no lock.

    Raises
    ------
    IntegrityError
        ``lock-damaged``, whether or not it is required; ``not-locked`` or ``lock-broken`` where it is.
    """
    path = lock_file(plan.audit_file)
    if required:
        require(plan)
    if not path.exists():
        return None
    content = load(path)
    lock = parse(content, path)
    found = compare(lock, plan, data)
    if found and required:
        hint = "Restore what was locked, or lock the audit anew with --force: the new lock will name the one it replaced."
        problems = tuple(Problem("lock-broken", f"Not as it was locked: {clause}.", file=str(path)) for clause in found)
        raise IntegrityError("lock-broken", "", problems=(*problems[:-1], Problem("lock-broken", problems[-1].message, hint, str(path))))
    entries = run_log.read(store)
    own = run_log.of_audit(entries, plan.audit.audit)
    before, since = _looks(own, lock)
    record = LockRecord(
        state="broken" if found else "kept",
        sha256=lock.sha256,
        created=lock.created,
        differences=found,
        earlier_runs=since,
        runs_before_lock=max(lock.runs_seen, before),
        replaced=len(lock.history),
        witnessed=any(entry.event == "lock" and entry.detail.get("lock") == lock.sha256 for entry in own),
        log_sha256=run_log.head(entries),
        log_intact=not run_log.complaints(entries),
        sentence="",
    )
    text = content.decode("utf-8")
    document = DocumentRecord(
        kind="lock", name=path.name, media_type="application/json", sha256=digest_bytes(content), text=text
    )
    return Held(record.model_copy(update={"sentence": sentence(record)}), document)


def check(plan: AuditPlan) -> Held:
    """Hold an audit against its lock without running it.

    Raises
    ------
    IntegrityError
        ``not-locked`` or ``lock-damaged``.
    AuditError
        Model, data or store cannot be read.
    """
    require(plan)
    with Store.open(store_path(plan)) as store:
        held = hold(plan, open_data(plan, store.file_digest), store)
    if held is None:
        raise IntegrityError("not-locked", "The lock was removed while it was read.", file=str(lock_file(plan.audit_file)))
    return held


def _looks(entries: Sequence[run_log.Entry], lock: Lock) -> tuple[int, int]:
    """Runs that the log has before the lock and since, whether or not the lock file lay there then.

    The lock's own entry parts them; where the log has none, the time that the lock states.
    """
    places = [at for at, entry in enumerate(entries) if entry.event == "lock" and entry.detail.get("lock") == lock.sha256]
    if places:
        before = sum(entry.event == "audit" for entry in entries[: places[0]])
    else:
        made = datetime.fromisoformat(lock.created)
        before = sum(entry.event == "audit" and entry.at < made for entry in entries)
    return before, sum(entry.event == "audit" for entry in entries) - before
