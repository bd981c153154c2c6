"""From what was found to what a release hangs on: waivers, the gate's decision, the change since a baseline.

A pure function of its arguments: files are read by `semlens_audit.results`, and the only date is the one that it is given.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

from semlens_audit import change, gate
from semlens_audit.component_sheet import Changes
from semlens_audit.errors import IntegrityError
from semlens_audit.record_references import images_shown
from semlens_audit.records import AuditRecord
from semlens_audit.release_policy import Policy
from semlens_audit.release_records import ChangeRecord
from semlens_audit.waivers import Declared

__all__ = ["complete", "day_of"]


def day_of(record: AuditRecord) -> date:
    """Day on which an audit ran, by UTC.

    Raises
    ------
    IntegrityError
        ``invalid-time``: the record states no time.
    """
    try:
        moment = datetime.fromisoformat(record.created)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        said = f"The record's time is none: {record.created[:40]}."
        raise IntegrityError("invalid-time", said, "Take the file as `run` wrote it.") from error
    return moment.date()


def complete(
    record: AuditRecord,
    *,
    policy: Policy,
    declared: Declared | None = None,
    baseline: AuditRecord | None = None,
    components: Changes | None = None,
    today: date | None = None,
) -> AuditRecord:
    """`record` with the release decided.

    Parameters
    ----------
    record
        What was found. Waivers, gate and the waivers file that it may have are replaced.
    policy
        What stops the release.
    declared
        Waivers; their file becomes part of the record. ``None``: none are declared.
    baseline
        Earlier record to compare with; ``None``: what the record says of a change stays as it is. No change stops a release by
        itself: what is worse beyond its criterion is not satisfied.
    components
        What became of the components since that baseline; ``None``: what the record says of it since the same baseline stays as it is.
    today
        Date on which waivers are judged; default: the day on which the audit ran.

    Raises
    ------
    IntegrityError
        ``invalid-time``, see `day_of`; what `semlens_audit.change.compare` raises.
    """
    documents = tuple(document for document in record.documents if document.kind != "waivers")
    if declared is not None:
        documents = (*documents, declared.document)
    if baseline is not None:
        record = _changed(record, change.compare(baseline, record), components)
    record = record.model_copy(update={"documents": documents})
    waivers, lines = (declared.waivers, declared.lines) if declared is not None else ((), ())
    return gate.apply(record, waivers, policy, today or day_of(record), lines=lines)


def _changed(record: AuditRecord, found: ChangeRecord, components: Changes | None) -> AuditRecord:
    """`record` with another change, and with the pictures that it shows in place of those of the change that it had."""
    before = record.change
    if components is None and before is not None and before.baseline.record_sha256 == found.baseline.record_sha256:
        return record.model_copy(update={"change": found.model_copy(update={"components": before.components})})
    bare = record.model_copy(update={"change": None})
    images = record.images
    if before is not None and before.components is not None:
        own = images_shown(record) - images_shown(bare)
        images = {key: text for key, text in images.items() if key not in own}
    if components is not None:
        found = found.model_copy(update={"components": components.components})
        images = dict(sorted((images | components.images).items()))
    return bare.model_copy(update={"change": found, "images": images})
