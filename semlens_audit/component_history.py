"""What became of the components since a baseline, where the store that an audit uses holds the baseline's index as well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from semlens_audit.component_changes import MOST_LAYERS, ComponentChanges
from semlens_audit.component_sheet import Changes, gather
from semlens_audit.digest import digest, digest_file
from semlens_audit.errors import AuditError, Problem
from semlens_audit.frozen import Frozen
from semlens_audit.memory import divide
from semlens_audit.paths import resolve, store_path
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress
from semlens_audit.records import AuditRecord
from semlens_audit.store import Store
from semlens_audit.verify_record import plan_of

if TYPE_CHECKING:
    from semlens_audit.atlas.compared import Comparison

__all__ = ["since"]

_CODE = (
    *(f"atlas/{name}" for name in ("compared", "comparison", "comparison_words", "held", "judged", "matching", "meanings", "random_sets")),
    "atlas/shifts", "atlas/telling", "component_changes", "component_sheet", "meanings", "neighbours",
)  # fmt: skip
"""Modules that a comparison is made by."""


class _Kept(Frozen):
    """What the store keeps of a comparison, so that a run that only decides again is done in seconds."""

    components: ComponentChanges
    images: dict[str, str]


def since(
    baseline: AuditRecord, record: AuditRecord, plan: AuditPlan, progress: Progress, max_memory: int | None = None
) -> tuple[Changes | None, tuple[Problem, ...]]:
    """Compare the components of two records, for each class that both audits are of.

    Parameters
    ----------
    baseline, record
        The earlier record, and that of `plan`, whose index is complete.
    max_memory
        Bytes of main memory that may be used, or ``None``: as much as it takes.

    Returns
    -------
    changes
        ``None`` where the store does not hold the baseline's index, or nothing in it can differ.
    problems
        Why there is none, where the store does hold it.
    """
    if not baseline.stages or baseline.stages == record.stages or baseline.foundation_model.sha256 != record.foundation_model.sha256:
        return None, ()
    with Store.open(store_path(plan), read_only=True, memory_limit=divide(max_memory).database) as store:
        if not store.complete(list(baseline.stages.values())):
            return None, ()
    try:
        return _compared(baseline, plan, record, progress, max_memory), ()
    except AuditError as error:
        said = f"The components are not held against those of the baseline, whose index is in the store. {error.problems[0].message}"
        hint = "Compare both audits with `semlens-audit compare OLD NEW --json --pictures`, and give what it prints with --components."
        return None, (Problem("components-not-compared", said, hint),)


def _compared(
    baseline: AuditRecord, plan: AuditPlan, record: AuditRecord, progress: Progress, max_memory: int | None
) -> Changes | None:
    old = _as_it_was(baseline, plan)
    classes = [name for name in old.spec.classes if name in plan.spec.classes]
    layers = [name for name in old.audit.layers if name in plan.audit.layers]
    classes = classes[: MOST_LAYERS // max(len(layers), 1)]
    if not classes or not layers:
        return None
    key = _key(baseline, record, old, plan, classes)
    allowed = divide(max_memory).database
    with Store.open(store_path(plan), memory_limit=allowed) as store:
        payload = store.get_measurement(key)
    if payload is None:
        found = _measured(old, plan, classes, progress, max_memory)
        changes = gather(found)
        payload = _Kept(components=changes.components, images=changes.images).model_dump_json()
        with Store.open(store_path(plan), memory_limit=allowed) as store:
            store.put_measurement(key, payload)
    kept = _Kept.model_validate_json(payload)
    return Changes(kept.components, kept.images)


def _measured(
    old: AuditPlan, plan: AuditPlan, classes: list[str], progress: Progress, max_memory: int | None
) -> list[Comparison]:
    from semlens_audit.atlas.comparison import compare
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.atlas.telling import with_portraits

    found = []
    with (
        Atlas(old, max_memory) as first,
        Atlas(plan, max_memory) as second,
        progress.stage("Components since the baseline", len(classes)) as advance,
    ):
        for name in classes:
            found.append(with_portraits(first, second, compare(first, second, class_name=name)))
            advance(1)
    return found


def _as_it_was(baseline: AuditRecord, plan: AuditPlan) -> AuditPlan:
    """The baseline's audit, from the files that its record carries, as though they lay beside this one's, in this one's store."""
    held = plan_of(baseline)
    place = Path(plan.audit_file).parent
    audit = held.audit.model_copy(update={"store": plan.audit.store.replace("{audit}", plan.audit.audit)})
    moved = held.model_copy(update={"audit": audit, "audit_file": str(place / held.audit_file)})
    return moved.model_copy(update={"spec_file": str(resolve(moved, audit.spec))})


def _key(baseline: AuditRecord, record: AuditRecord, old: AuditPlan, plan: AuditPlan, classes: list[str]) -> str:
    """Digest of all that a comparison depends on: both indexes, both audits, and what it is made by."""
    folder = Path(__file__).parent
    return digest(
        {
            "stages": [baseline.stages, record.stages],
            "asked": [[one.spec_digest, one.audit_digest] for one in (old, plan)],
            "classes": classes,
            "code": [digest_file(folder / f"{name}.py") for name in _CODE],
        }
    )
