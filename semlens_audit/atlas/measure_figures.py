"""Figures of measures and comparisons: dots with intervals under one axis, drawn for the screen or for paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from semlens_audit.figures import Domain, Figure, Palette, caption, drawing, rule
from semlens_audit.measured import Interval, Measurement
from semlens_audit.plain_text import visible
from semlens_audit.wording import Unit

__all__ = ["Dot", "DotRow", "PairPoint", "Span", "dots", "pair_plot"]

_ROW = 19.0
_GAP = 11.0
_LABEL = 190.0
_RIGHT = 16.0


@dataclass(frozen=True)
class Span(Domain):
    """An axis over the values that are there, not from zero: dots, unlike bars, do not stand for their distance from it."""

    @classmethod
    def holding(cls, unit: Unit, values: Sequence[float], low: float | None = None) -> Span:
        """An axis in whole steps.

        Parameters
        ----------
        values
            What it has to hold.
        low
            Where it begins; left out: at the lowest value's step.
        """
        ends = [*values, *([low] if low is not None else [])] or [0.0, 1.0]
        step = _step(max(ends) - min(ends))
        first = floor(min(ends) / step + 1e-9) * step
        return cls(first, max(ceil(max(ends) / step - 1e-9) * step, first + step), unit)

    def ticks(self) -> tuple[float, ...]:
        """Whole steps."""
        step = _step(self.high - self.low)
        first = ceil(self.low / step - 1e-9)
        return tuple(round((first + i) * step, 6) for i in range(floor((self.high - first * step) / step + 1e-9) + 1))


def _step(span: float) -> float:
    return next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if span / step <= 6), 0.5)


@dataclass(frozen=True)
class Dot:
    """A value with its interval in a row of dots.

    Parameters
    ----------
    measurement
        Where it is not measured, its reason stands in its place.
    wide
        A wider interval, drawn thin; None draws none.
    filled
        A full disc, or a ring.
    colour
        Of a palette, by name: ``ink``, ``valid``, ``soft``, ...
    """

    measurement: Measurement
    wide: Interval | None = None
    filled: bool = True
    colour: str = "ink"


@dataclass(frozen=True)
class DotRow:
    """One row: a label, its dots one below the other, and what chance reaches."""

    label: str
    dots: tuple[Dot, ...]
    chance: float | None = None


def dots(rows: Sequence[DotRow], domain: Domain, palette: Palette, alt: str, width: int = 760) -> Figure:
    """Rows of dots with intervals under one axis.

    Parameters
    ----------
    rows
        From top to bottom.
    domain
        The axis.
    palette
        The medium.
    alt
        Sentence that stands in for the figure.
    """
    left, span = _LABEL, width - _LABEL - _RIGHT
    height = 24.0 + sum(_ROW * max(len(row.dots), 1) + _GAP for row in rows)
    body = rule(left, 20, left + span, 20, palette.soft)
    for tick in domain.ticks():
        x = domain.place(tick, left, span)
        body += rule(x, 16, x, height - 4, palette.line) + caption(x, 12, domain.label(tick), palette.soft, 10.5)
    y = 26.0
    for row in rows:
        tall = _ROW * max(len(row.dots), 1)
        body += caption(left - 10, y + tall / 2 + 4, _short(row.label), palette.ink, 11.5, "end")
        if row.chance is not None:
            x = domain.place(row.chance, left, span)
            body += rule(x, y, x, y + tall, palette.soft, 1.5, "stroke-dasharray:2 3")
        for place, dot in enumerate(row.dots):
            body += _dot(dot, y + _ROW * (place + 0.5), domain, palette, left, span)
        y += tall + _GAP
    return drawing(width, round(height), body, alt, palette)


def _short(label: str, most: int = 30) -> str:
    text = visible(label)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _dot(dot: Dot, y: float, domain: Domain, palette: Palette, left: float, span: float) -> str:
    colour, found = str(getattr(palette, dot.colour)), dot.measurement
    if found.value is None or found.interval is None:
        return caption(left + 6, y + 4, f"not measured: {found.not_measured}", palette.soft, 10.5, "start")
    body = ""
    if dot.wide is not None:
        body += rule(domain.place(dot.wide.low, left, span), y, domain.place(dot.wide.high, left, span), y, colour, 1)
    low, value, high = (domain.place(one, left, span) for one in (found.interval.low, found.value, found.interval.high))
    body += rule(low, y, high, y, colour, 4)
    inside = colour if dot.filled else palette.paper
    return body + f'<circle cx="{value:.1f}" cy="{y:.1f}" r="4.5" style="fill:{inside};stroke:{colour};stroke-width:2"/>'


@dataclass(frozen=True)
class PairPoint:
    """A pair of components: shares of relevance on either side, the role of what the second is counted for, whether it shifted."""

    first: float
    second: float
    role: str
    shifted: bool


def pair_plot(
    points: Sequence[PairPoint], names: tuple[str, str], palette: Palette, alt: str, size: int = 460
) -> Figure:
    """Relevance of paired components on either side; on the diagonal nothing changed.

    Parameters
    ----------
    points
        Pairs.
    names
        Of the two sides.
    palette
        The medium.
    alt
        Sentence that stands in for the figure.
    size
        Pixels.
    """
    left, top, bottom, right = 62.0, 10.0, 48.0, 14.0
    wide, tall = size - left - right, size * 0.8 - top - bottom
    most = max([one for point in points for one in (point.first, point.second)], default=0.0) * 1.05 or 1.0
    step = next(step for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if most / step <= 6)
    body = rule(left, top, left, top + tall, palette.line) + rule(left, top + tall, left + wide, top + tall, palette.line)
    body += rule(left, top + tall, left + wide, top, palette.soft, 1, "stroke-dasharray:4 4")
    for i in range(int(most / step) + 1):
        at, text = i * step / most, f"{100 * i * step:g} %"
        body += caption(left + at * wide, top + tall + 17, text, palette.soft)
        body += caption(left - 8, top + tall - at * tall + 4, text, palette.soft, anchor="end")
    body += caption(left + wide / 2, size * 0.8 - 8, _short(names[0], 60), palette.ink, 12)
    middle = top + tall / 2
    body += (
        f'<g transform="rotate(-90 12 {middle:.1f})">' + caption(12, middle, _short(names[1], 50), palette.ink, 12) + "</g>"
    )
    for point in sorted(points, key=lambda one: -one.second):
        x, y = left + point.first / most * wide, top + tall - point.second / most * tall
        ring = palette.ink if point.shifted else palette.paper
        body += (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" '
            f'style="fill:{palette.role(point.role)};fill-opacity:.8;stroke:{ring};stroke-width:{1.6 if point.shifted else 0.8}"/>'
        )
    return drawing(size, round(size * 0.8), body, alt, palette)
