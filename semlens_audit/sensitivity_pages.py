"""What the verdict hangs on, as a page of the report: settings tried, the verdict under each, and results that would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semlens_audit.pages import Badge
from semlens_audit.records import AuditRecord, SensitivityChange, SensitivityRecord, State
from semlens_audit.sensitivity import sentence
from semlens_audit.wording import DASH, GLYPHS, STATES, capital, join

__all__ = ["Change", "Sensitivity", "Tried", "sensitivity"]


@dataclass(frozen=True)
class Change:
    """Results of one check that go from one state to another under a setting."""

    check: str
    where: str
    """Class, and what tells the results from the check's others."""
    before: Badge
    after: Badge


@dataclass(frozen=True)
class Tried:
    """One setting."""

    knob: str
    setting: str
    verdict: Badge | None
    """None where it was not tried."""
    other: bool
    """Whether the verdict is another one than the report's."""
    changes: tuple[Change, ...]
    reason: str
    """Why it was not tried."""


@dataclass(frozen=True)
class Sensitivity:
    """The section."""

    summary: str
    rows: tuple[Tried, ...]


def sensitivity(record: AuditRecord) -> Sensitivity | None:
    """The section of `record`, or none where no setting was varied."""
    if not record.sensitivity:
        return None
    return Sensitivity(sentence(record), tuple(_row(record, tried) for tried in record.sensitivity))


def _row(record: AuditRecord, tried: SensitivityRecord) -> Tried:
    reason = f"Not tried: {tried.not_tried}." if tried.not_tried is not None else ""
    verdict = _badge(tried.verdict) if tried.verdict is not None else None
    return Tried(
        knob=capital(tried.knob),
        setting=capital(tried.setting),
        verdict=verdict,
        other=tried.verdict not in (None, record.verdict.state),
        changes=_changes(record, tried.changes),
        reason=reason,
    )


def _changes(record: AuditRecord, changes: Sequence[SensitivityChange]) -> tuple[Change, ...]:
    """Changes of one check between the same two states in one line."""
    grouped: dict[tuple[str, str, State, State], list[str]] = {}
    for change in changes:
        labels = [record.concept(name).label for name in change.concepts]
        where = change.layer or join(labels) or DASH
        grouped.setdefault((change.check, change.class_name, change.before, change.after), []).append(where)
    return tuple(
        Change(check, f"{name}, {join(list(dict.fromkeys(places)))}", _badge(before), _badge(after))
        for (check, name, before, after), places in grouped.items()
    )


def _badge(state: State) -> Badge:
    return Badge(state, GLYPHS[state], STATES[state])
