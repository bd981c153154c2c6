"""Looking after a store: what is in it, whether it is whole, and removing what no audit needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semlens_audit import store_check
from semlens_audit.data import open_data
from semlens_audit.errors import IntegrityError, Problem, StoreError, UsageError
from semlens_audit.index import evidence_stages
from semlens_audit.memory import divide
from semlens_audit.paths import store_path
from semlens_audit.plan import AuditPlan
from semlens_audit.run_log import json_object
from semlens_audit.store import Store
from semlens_audit.store_compaction import Removal, compact, fingerprint, removals
from semlens_audit.store_contents import Contents, contents, derived, served

__all__ = ["Collected", "check", "collect", "complaint", "info", "mend"]


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would remove.

    Parameters
    ----------
    path
        The store.
    done
        Whether it was removed.
    removals
        Rows of each table.
    stages
        Names of the stages that go, with how many of each.
    before, after
        Bytes of the file; `after` is ``None`` where nothing was removed.
    left_out
        Audits that the store has served and that were neither kept nor forgotten, now or before.
    lacking
        Id of an audit that is kept -> stages that it needs and the store does not have; those that lack none are left out.
    """

    path: str
    done: bool
    removals: tuple[Removal, ...]
    stages: dict[str, int]
    before: int
    after: int | None
    left_out: tuple[str, ...]
    lacking: dict[str, int]


def info(path: Path, plans: Sequence[AuditPlan] = ()) -> Contents:
    """What a store holds, and which of it audits need; see `semlens_audit.store_contents`.

    Parameters
    ----------
    path
        The store.
    plans
        Audits; none: nothing is said about who needs what.

    Raises
    ------
    UsageError
        ``another-store``: an audit has its index elsewhere.
    StoreError
        No store, or one that cannot be read.
    """
    _require_theirs(path, plans)
    with Store.open(path, read_only=True, memory_limit=divide(None).database) as store:
        return contents(store, _needed(store, plans) if plans else None)


def check(path: Path) -> tuple[store_check.Damage, ...]:
    """Everything in a store that is not what it should be; see `semlens_audit.store_check`.

    Raises
    ------
    StoreError
        No store, or one that is not to be opened here.
    """
    try:
        with Store.open(path, read_only=True, memory_limit=divide(None).database) as store:
            return store_check.check(store)
    except StoreError as error:
        return _unreadable(error)


def mend(path: Path) -> tuple[int, tuple[store_check.Damage, ...]]:
    """Remove what is damaged, so that the next index computes it again.

    Returns
    -------
    int
        Complaints settled.
    tuple of Damage
        Complaints that are left: nothing can compute again what they are about.
    """
    settled = 0
    try:
        with Store.open(path, memory_limit=divide(None).database) as store:
            found = store_check.check(store)
            while any(damage.remedy for damage in found):  # what is removed may be missed by another stage
                settled += store_check.mend(store, found)
                found = store_check.check(store)
            return settled, found
    except StoreError as error:
        return settled, _unreadable(error)


def _unreadable(error: StoreError) -> tuple[store_check.Damage, ...]:
    if error.slug != "store-corrupt":
        raise error
    return (store_check.Damage("file", error.problems[0].message),)


def complaint(path: Path, found: Sequence[store_check.Damage]) -> IntegrityError:
    """The error that tells of damages, and what to do about each."""
    again = "Run `semlens-audit store check --mend`, then `semlens-audit index`: it is computed again."
    never = "It cannot be computed again: restore the store from a copy."
    whole = "Restore the store from a copy, or delete it and index again: all but its run log can be computed anew."
    problems = tuple(
        Problem(
            "store-damaged", f"{one.where}: {one.what}", again if one.remedy else whole if one.where == "file" else never, str(path)
        )
        for one in found
    )  # fmt: skip
    first = problems[0]
    return IntegrityError(first.slug, first.message, first.hint, file=first.file, problems=problems)


def collect(
    path: Path, plans: Sequence[AuditPlan], *, forget: Sequence[str] = (), really: bool = False, max_memory: int | None = None
) -> Collected:
    """Remove what no given audit needs, and compact the file; or only say what would go.

    The rows of kept stages stay as they are, to the bit; the run log stays whole, and is written on. Cached measurements go: the next
    run makes those that it needs again.

    Parameters
    ----------
    path
        The store.
    plans
        Audits whose indexes are kept, whole or begun.
    forget
        Ids of audits that the store has served and whose indexes are not kept. They are remembered as forgotten until one of them
        is indexed or run again.
    really
        Whether it is done.
    max_memory
        Bytes of main memory that may be used, or ``None``.

    Raises
    ------
    UsageError
        ``nothing-to-keep``: no audit is given. ``another-store``: one has its index elsewhere. ``audits-left-out``: the store has
        served others, which were not forgotten.
    StoreError
        ``store-locked``, ``store-full-disk``, ``store-changed``.
    IntegrityError
        ``compaction-differs``; the store stays as it was.
    """
    if not plans:
        raise UsageError("nothing-to-keep", "No audit is given whose index is kept.", "Give audit files: --keep AUDIT.yaml.")
    _require_theirs(path, plans)
    allowed = divide(max_memory).database
    if not path.exists():
        raise StoreError("store-missing", "There is no store yet.", "There is nothing to remove.", file=str(path))
    if really:  # brings an older store up to date, and writes what waits beside it into it
        with Store.open(path, memory_limit=allowed) as store:
            store.put_measurement("", "{}")  # the database puts away what a kill cut short beside it once something is written
            store.execute("DELETE FROM measurement WHERE key = ''")
    with Store.open(path, read_only=True, memory_limit=allowed) as store:
        planned = fingerprint(store)
        every = _needed(store, plans)
        needed = set[str]().union(*every.values())
        inputs = {key: json_object(text) for key, text in store.rows("SELECT key, inputs FROM stage")}
        if not all(inputs.values()):
            raise StoreError(
                "store-damaged", "The store is damaged: a stage's inputs are no JSON object.",
                "Run `semlens-audit store check`; it says how to mend it.", file=str(path),
            )  # fmt: skip
        keep = (needed | derived(inputs, needed)) & set(inputs)
        lacking = {audit: len(keys - set(inputs)) for audit, keys in every.items() if keys - set(inputs)}
        names = store.rows("SELECT key, name FROM stage ORDER BY rowid")
        going: dict[str, int] = {}
        for key, name in names:
            going.update({} if key in keep else {name: going.get(name, 0) + 1})
        others = [audit for audit in served(store) if audit not in {plan.audit.audit for plan in plans}]
        left_out = tuple(audit for audit in others if audit not in forget)
        forgotten = [audit for audit in others if audit in forget]
        found, before = removals(store, keep), path.stat().st_size
    if not really:
        return Collected(str(path), False, found, going, before, None, left_out, lacking)
    if left_out:
        raise UsageError(
            "audits-left-out",
            f"The store has served audits that were not given: {', '.join(left_out)}.",
            "Give the file of each with --keep, or its id with --forget.",
            file=str(path),
        )
    before, after = compact(path, keep, planned, allowed, forgotten=forgotten)
    return Collected(str(path), True, found, going, before, after, (), lacking)


def _needed(store: Store, plans: Sequence[AuditPlan]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for plan in plans:
        keys = evidence_stages(plan, open_data(plan, store.file_digest), store)
        found.setdefault(plan.audit.audit, set()).update(keys.values())
    return found


def _require_theirs(path: Path, plans: Sequence[AuditPlan]) -> None:
    for plan in plans:
        own = store_path(plan)
        if own.resolve() != path.resolve():
            raise UsageError(
                "another-store",
                f"The audit {plan.audit.audit} has its index in {own}, not in {path}.",
                "Give audits of one store only.",
                file=plan.audit_file,
            )
