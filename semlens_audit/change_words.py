"""How a change since a baseline is named and written, on every page and screen alike."""

from __future__ import annotations

from semlens_audit.measured import Measurement
from semlens_audit.release_records import ChangeEntry, ChangeLabel, ChangeRecord
from semlens_audit.wording import DASH, MINUS, format_measured, format_value, needed_decimals

__all__ = ["CHANGE_GLYPHS", "CHANGE_WORDS", "GRAVITY", "format_difference", "format_plain", "ranked"]

GRAVITY: tuple[ChangeLabel, ...] = (
    "new", "worsened", "not_comparable", "removed", "fixed", "improved", "within_noise", "added",
)  # fmt: skip
"""Labels, the gravest first."""

CHANGE_WORDS: dict[ChangeLabel, str] = {
    "new": "new",
    "worsened": "worsened",
    "not_comparable": "not comparable",
    "removed": "removed",
    "fixed": "fixed",
    "improved": "improved",
    "within_noise": "within noise",
    "added": "added",
}
CHANGE_GLYPHS: dict[ChangeLabel, str] = {
    "new": "✗",
    "worsened": "↘",
    "not_comparable": "○",
    "removed": "−",
    "fixed": "✓",
    "improved": "↗",
    "within_noise": "≈",
    "added": "+",
}


def ranked(change: ChangeRecord) -> list[ChangeEntry]:
    """Entries, the gravest first, else in their order."""
    return sorted(change.entries, key=lambda entry: GRAVITY.index(entry.label))


def format_difference(measurement: Measurement | None) -> str:
    """A difference with its sign and interval: ``+44 pp (35–50)``; a dash where there is none."""
    if measurement is None or measurement.value is None:
        return DASH
    text = format_measured(measurement)
    shown = text.split("(")[0]
    return f"+{text}" if not shown.startswith(MINUS) and any(digit in shown for digit in "123456789") else text


def format_plain(measurement: Measurement | None) -> str:
    """A value with the digits that its interval earns, without the interval; a dash where there is none."""
    if measurement is None or measurement.value is None or measurement.interval is None:
        return DASH
    digits = needed_decimals(measurement.unit, measurement.interval.low, measurement.interval.high)
    return format_value(measurement.unit, measurement.value, digits)
