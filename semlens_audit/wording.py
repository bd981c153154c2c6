"""Numbers and terms as a reader of a report meets them: the digits an interval earns, units in words, names of states."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Literal

from semlens_audit.plan import CheckKind, Criterion, Role
from semlens_audit.records import Interval, Measurement, State

__all__ = [
    "DASH",
    "GLYPHS",
    "KINDS",
    "MINUS",
    "NARROW",
    "ROLES",
    "ROLE_WORDS",
    "capital",
    "STATES",
    "Unit",
    "count",
    "format_criterion",
    "format_date",
    "format_estimate",
    "format_measured",
    "format_number",
    "format_share",
    "format_value",
    "join",
    "needed_decimals",
    "shorten",
]

Unit = Literal["share", "logits", "cosine", "difference"]
MINUS, DASH = "−", "–"
NARROW = "\u00a0"
"""A space that breaks no line."""

STATES: dict[State, str] = {
    "satisfied": "Satisfied",
    "not_satisfied": "Not satisfied",
    "inconclusive": "Inconclusive",
    "not_measured": "Not measured",
}
GLYPHS: dict[State, str] = {"satisfied": "✓", "not_satisfied": "✗", "inconclusive": "≈", "not_measured": "○"}
ROLES: dict[Role, str] = {"valid": "may be used", "spurious": "must not be used", "neutral": "neutral"}
ROLE_WORDS: dict[str, str] = dict(ROLES.items())
"""The same, by the name of any role."""
KINDS: dict[CheckKind, str] = {
    "spurious_reliance": "Reliance on spurious concepts",
    "valid_reliance": "Reliance on valid concepts",
    "unexplained_relevance": "Relevance that no declared concept explains",
    "concept_used": "Reliance on a concept that must be used",
    "concept_not_used": "Reliance on a concept that must not be used",
    "behavioural_effect": "Effect of a concept's presence on the decision",
    "clarity": "Clarity of the layer's components",
    "polysemanticity": "Polysemanticity of the layer's components",
    "redundancy": "Redundancy of the layer's components",
    "subgroup_gap": "Difference in recall between samples with and without a concept",
    "concept_presence": "Difference in a concept's frequency between the class and all others",
    "pair_effect": "Effect of a concept on the decision in counterfactual pairs",
}
_SCALE: dict[Unit, float] = {"share": 100.0, "logits": 1.0, "cosine": 1.0, "difference": 100.0}
_MOST: dict[Unit, int] = {"share": 2, "logits": 3, "cosine": 3, "difference": 2}
_LEAST: dict[Unit, int] = {"share": 0, "logits": 1, "cosine": 2, "difference": 0}


def needed_decimals(unit: Unit, low: float, high: float, threshold: float | None = None) -> int:
    """Decimals that an interval earns.

    The half-width keeps two significant digits if they are 10 to 35 and one otherwise, the rounding rule of the Particle
    Data Group (Review of Particle Physics, introduction, section 5.3), within limits that suit the unit.

    Parameters
    ----------
    unit
        A share is printed in per cent.
    low, high
        Ends of the interval, in the unit of the measurement.
    threshold
        Criterion held against the interval. Decimals are added until each printed end lies on the side of the printed
        criterion on which it really lies, so that no rounding seems to contradict the decision.

    Returns
    -------
    int
        0 to 4.
    """
    scale = _SCALE[unit]
    half = (high - low) / 2 * scale
    earned = _LEAST[unit]
    if half > 1e-9:
        exponent = math.floor(math.log10(half))
        earned = -exponent + (half / 10.0**exponent < 3.55)
    decimals = min(max(earned, _LEAST[unit]), _MOST[unit])
    if threshold is None:
        return decimals
    while decimals < 4 and not all(
        _sign(round(end * scale, decimals) - round(threshold * scale, decimals)) == _sign(end - threshold)
        for end in (low, high)
    ):
        decimals += 1
    return decimals


def _sign(value: float) -> int:
    return (value > 1e-12) - (value < -1e-12)


def _number(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def format_share(share: float) -> str:
    """``12.3 %``; two decimals below a thousandth, which is much in a layer of a thousand components: ``0.04 %``."""
    return f"{_number(100 * share, 2 if 0 < abs(share) < 0.001 else 1)}{NARROW}%"


def format_number(value: float, decimals: int, sign: bool = False) -> str:
    """`value` with a true minus sign, and a plus sign if asked."""
    plus = "+" if sign and round(value, decimals) > 0 else ""
    return plus + _number(value, decimals)


def _unit(unit: Unit) -> str:
    # pp: percentage points, so that a difference of shares is not read as a relative change.
    return {"share": f"{NARROW}%", "logits": f"{NARROW}logits", "cosine": "", "difference": f"{NARROW}pp"}[unit]


def format_value(unit: Unit, value: float, decimals: int | None = None) -> str:
    """`value` with its unit: ``64 %``, ``6.7 logits``, ``0.52``."""
    digits = _LEAST[unit] if decimals is None else decimals
    return _number(value * _SCALE[unit], digits) + _unit(unit)


def format_measured(measurement: Measurement, criterion: Criterion | None = None) -> str:
    """Value and interval with the digits the interval earns.

    Parameters
    ----------
    measurement
        What was measured, or not.
    criterion
        Held against it; see `needed_decimals`.

    Returns
    -------
    str
        ``64 % (58–70 %)``, ``6.7 logits (6.2–7.3)``, ``−0.18 logits (−0.42 to 0.06)``, or ``not measured``.
    """
    if measurement.value is None or measurement.interval is None:
        return "not measured"
    return format_estimate(measurement.unit, measurement.value, measurement.interval, criterion)


def format_estimate(unit: Unit, value: float, interval: Interval, criterion: Criterion | None = None) -> str:
    """As `format_measured`, from a value and its interval."""
    threshold = criterion.threshold if criterion is not None else None
    digits = needed_decimals(unit, interval.low, interval.high, threshold)
    low, high = (_number(end * _SCALE[unit], digits) for end in (interval.low, interval.high))
    between = f"{NARROW}to{NARROW}" if MINUS in low + high else DASH
    return f"{format_value(unit, value, digits)} ({low}{between}{high}{_unit(unit) if unit == 'share' else ''})"


def format_criterion(criterion: Criterion, unit: Unit) -> str:
    """``at most 25 %``, ``at least 0.40``."""
    scaled = criterion.threshold * _SCALE[unit]
    digits = next((d for d in range(_LEAST[unit], 4) if abs(round(scaled, d) - scaled) < 1e-9), 4)
    return f"{criterion.operator.replace('_', ' ')} {_number(scaled, digits)}{_unit(unit)}"


def format_date(created: str) -> str:
    """``2025-11-20T23:14:05Z`` as ``20 November 2025, 23:14 UTC``, and ``2025-11-20`` without a time; other text stays as it is.

    A time that names no zone is taken for UTC, not for the zone of the machine.
    """
    try:
        moment = datetime.fromisoformat(created)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return created
    months = "January February March April May June July August September October November December".split()  # noqa: SIM905
    day = f"{moment.day} {months[moment.month - 1]} {moment.year}"
    return day if len(created) == len("2025-11-20") else f"{day}, {moment.hour:02d}:{moment.minute:02d} UTC"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """``1 check``, ``12 checks``, ``1,200 checks``."""
    return f"{number:,}{NARROW}{singular if number == 1 else plural or singular + 's'}"


def capital(text: str) -> str:
    """`text` with a capital first letter."""
    return text[:1].upper() + text[1:]


def join(parts: list[str] | tuple[str, ...], word: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else list(parts))


def shorten(sha256: str, digits: int = 12) -> str:
    """First `digits` digits of a digest."""
    return sha256[:digits]
