"""The section of a report on what changed since the last release."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.change_words import CHANGE_GLYPHS, CHANGE_WORDS, format_difference, ranked
from semlens_audit.component_pages import ChangedComponents, changed_components
from semlens_audit.figures import Domain, Figure, Palette, axis, interval_line
from semlens_audit.measured import Measurement
from semlens_audit.pages import Badge, Fact
from semlens_audit.records import AuditRecord, State
from semlens_audit.release_records import ChangeEntry, ChangeLabel, ChangeRecord
from semlens_audit.wording import DASH, GLYPHS, STATES, Unit, capital, format_date, format_measured, join, shorten

__all__ = ["Change", "ChangeRow", "ChangeTable", "Side", "change"]

_STATES: dict[ChangeLabel, State] = {
    "new": "not_satisfied",
    "worsened": "not_satisfied",
    "not_comparable": "inconclusive",
    "removed": "inconclusive",
    "fixed": "satisfied",
    "improved": "satisfied",
    "within_noise": "not_measured",
    "added": "not_measured",
}
"""Label -> state of a result that has the same colour."""
_CAPTIONS: dict[Unit, str] = {
    "difference": "Shares: difference in percentage points (pp)",
    "logits": "Effects on the class margin: difference in logits",
    "cosine": "{}: difference of cosines",
}
_WIDTH = 220


@dataclass(frozen=True)
class Side:
    """What one record says."""

    measured: str
    badge: Badge | None
    """None where the record has no such result."""


@dataclass(frozen=True)
class ChangeRow:
    """One result then and now."""

    badge: Badge
    check: str
    anchor: str
    """Of the place that shows the check in full; empty where this record has none of that name."""
    where: str
    then: Side
    now: Side
    difference: str
    figure: Figure | None
    note: str
    """What the label rests on; empty where nothing needs to be said."""


@dataclass(frozen=True)
class ChangeTable:
    """Results whose differences are in one unit."""

    caption: str
    axis: Figure | None
    rows: tuple[ChangeRow, ...]


@dataclass(frozen=True)
class Change:
    """The section."""

    summary: str
    baseline: tuple[Fact, ...]
    compared: bool
    level: str
    family: int
    """How many results the p-values are adjusted for."""
    tables: tuple[ChangeTable, ...]
    components: ChangedComponents | None
    """What became of the components; None where that was not compared."""


def change(record: AuditRecord, palette: Palette) -> Change | None:
    """The section; None where no earlier record was given.

    Parameters
    ----------
    record
        What was found.
    palette
        Colours of the medium.
    """
    found = record.change
    if found is None:
        return None
    baseline = found.baseline
    facts = (
        Fact("Baseline", " ".join(part for part in (baseline.subject, baseline.version) if part)),
        Fact("Audited", format_date(baseline.created)),
        Fact("Record, SHA-256", shorten(baseline.record_sha256)),
        Fact("Weights, SHA-256", shorten(baseline.weights_sha256)),
        Fact("Test data, SHA-256", shorten(baseline.data_sha256)),
        Fact("Tool", baseline.tool),
    )
    return Change(
        summary=found.sentence,
        baseline=facts,
        compared=found.refused is None,
        level=f"{100 * found.level:g} %",
        family=sum(entry.adjusted_p is not None for entry in found.entries),
        tables=_tables(record, found, palette),
        components=changed_components(record, palette),
    )


def _tables(record: AuditRecord, found: ChangeRecord, palette: Palette) -> tuple[ChangeTable, ...]:
    """One table per unit of the difference, then what has none."""
    entries = ranked(found)
    anchors = {check: f"check-{i}" for i, check in enumerate(dict.fromkeys(f.check for f in record.findings), start=1)}
    tables = []
    for unit, caption in _CAPTIONS.items():
        held = [entry for entry in entries if _unit(entry) == unit]
        if not held:
            continue
        ends = [
            end
            for entry in held
            if entry.difference is not None and entry.difference.interval is not None
            for end in (entry.difference.interval.low, entry.difference.interval.high)
        ]
        # Zero belongs inside the axis: what is compared may lie on either side of it.
        most = max(abs(end) for end in ends)
        domain = Domain.over(unit, [-most, most])
        rows = tuple(_row(record, entry, anchors, domain, palette, found.level) for entry in held)
        kinds = sorted({entry.new.quantity for entry in held if entry.new is not None})
        tables.append(ChangeTable(caption.format(capital(join(kinds))), axis(domain, palette, _WIDTH), rows))
    rest = tuple(_row(record, entry, anchors, None, palette, found.level) for entry in entries if _unit(entry) is None)
    if rest:
        tables.append(ChangeTable("Without a difference", None, rest))
    return tuple(tables)


def _unit(entry: ChangeEntry) -> Unit | None:
    """Unit of the difference; ``None`` where there is none to draw. Differences of shares are drawn in percentage points."""
    if entry.difference is None or entry.difference.interval is None:
        return None
    return "difference" if entry.difference.unit == "share" else entry.difference.unit


def _row(
    record: AuditRecord, entry: ChangeEntry, anchors: dict[str, str], domain: Domain | None, palette: Palette, level: float
) -> ChangeRow:
    check, _, place = entry.finding.partition("/")
    label = CHANGE_WORDS[entry.label]
    figure = None
    if domain is not None and entry.difference is not None:
        alt = f"{entry.finding}: {label}, difference {format_difference(entry.difference)}."
        figure = interval_line(entry.difference, _STATES[entry.label], None, domain, palette, alt, _WIDTH)
    return ChangeRow(
        badge=Badge(_STATES[entry.label], CHANGE_GLYPHS[entry.label], capital(label)),
        check=check,
        anchor=anchors.get(check, ""),
        where=_place(record, place),
        then=_side(entry.before, entry.old),
        now=_side(entry.after, entry.new),
        difference=format_difference(entry.difference),
        figure=figure,
        note=_note(entry, level),
    )


def _note(entry: ChangeEntry, level: float) -> str:
    """What the label rests on, beyond what the row shows."""
    if entry.adjusted_p is None or entry.p_value is None:
        return entry.sentence
    allowed = 1.0 - level + 1e-12
    if entry.p_value <= allowed < entry.adjusted_p:
        return entry.sentence
    shown = "p < 0.001" if entry.adjusted_p < 0.001 else f"p = {entry.adjusted_p:.2g}"
    quiet = entry.label == "within_noise" and entry.adjusted_p > allowed
    return "; ".join(([] if quiet else [shown]) + ([] if entry.paired else ["taken as independent"]))


def _place(record: AuditRecord, place: str) -> str:
    """Where a result is: the titles of its concepts, or its layer."""
    labels = {concept.id: concept.label for concept in record.concepts}
    parts = place.split(",")
    return ", ".join(labels[part] for part in parts) if all(part in labels for part in parts) else place


def _side(state: State | None, measurement: Measurement | None) -> Side:
    if state is None or measurement is None:
        return Side(DASH, None)
    return Side(format_measured(measurement), Badge(state, GLYPHS[state], STATES[state]))
