"""What a report says of the lock (pre-registration) that an audit ran under: facts and digests of the section on identity."""

from __future__ import annotations

from semlens_audit.pages import Fact
from semlens_audit.records import AuditRecord
from semlens_audit.wording import count, format_date

__all__ = ["lock_digests", "lock_facts"]


def lock_facts(record: AuditRecord) -> tuple[Fact, ...]:
    """Whether concepts, criteria, data and settings were fixed beforehand, and after how many looks."""
    lock = record.lock
    if lock is None:
        return (Fact("Fixed beforehand", "No: the audit was not locked before it ran."),)
    seen = " The store saw it being locked." if lock.witnessed else " The store has no entry of it: the time rests on the lock file alone."
    replaced = f" It replaced {count(lock.replaced, 'earlier lock')}." if lock.replaced else ""
    facts = [Fact("Locked", f"{format_date(lock.created)}.{seen}{replaced}")]
    if lock.state == "kept":
        facts.append(Fact("Differences from the lock", "None."))
    else:
        facts.append(Fact("Differences from the lock", f"{'; '.join(lock.differences)}."))
    intact = "every entry follows the one before it" if lock.log_intact else "its entries do not all follow one another"
    facts.append(
        Fact(
            "Runs that the store had seen",
            f"{lock.runs_before_lock:,} before the audit was locked, {lock.earlier_runs:,} under the lock before this one. The store's "
            f"log of runs can be deleted with the store; as it stands, {intact}.",
        )
    )
    return tuple(facts)


def lock_digests(record: AuditRecord) -> tuple[tuple[str, str, str], ...]:
    """What, name and SHA-256 of the lock and of the run log; none where the audit was not locked."""
    lock = record.lock
    if lock is None:
        return ()
    name = next((document.name for document in record.documents if document.kind == "lock"), "lock")
    rows = [("Lock", name, lock.sha256)]
    if lock.log_sha256 is not None:
        rows.append(("Run log of the store, before this run", "run_log", lock.log_sha256))
    return tuple(rows)
