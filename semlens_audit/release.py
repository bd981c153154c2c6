"""From what was found to what a release hangs on: waivers, the gate's decision, the change since a baseline.

A pure function of its arguments: files are read by `semlens_audit.results`, and the only date is the one that it is given.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

from semlens_audit import change, gate
from semlens_audit.errors import IntegrityError
from semlens_audit.records import AuditRecord
from semlens_audit.release_policy import Policy
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
        record = record.model_copy(update={"change": change.compare(baseline, record)})
    record = record.model_copy(update={"documents": documents})
    waivers, lines = (declared.waivers, declared.lines) if declared is not None else ((), ())
    return gate.apply(record, waivers, policy, today or day_of(record), lines=lines)
