"""Figures as small SVG: an interval against its criterion, shares as a bar, components as a scatter plot.

Every figure is drawn twice from the same code: for the screen with CSS variables as colours, so that it follows light and
dark, and for paper with fixed ones, because an image in a PDF sees no style sheet of the page.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape as _escape

from semlens_audit.plain_text import visible
from semlens_audit.plan import Criterion
from semlens_audit.records import Measurement, State
from semlens_audit.wording import Unit

__all__ = [
    "PAPER",
    "SCREEN",
    "Domain",
    "Figure",
    "Palette",
    "Point",
    "Segment",
    "axis",
    "caption",
    "drawing",
    "interval_line",
    "rule",
    "scatter",
    "stacked",
]


_STEPS = (0.5, 1, 2, 5, 10, 20, 50, 100, 1e3, 1e6, 1e12)


def escape(text: str, quote: bool = True) -> str:
    """Text within SVG: hidden characters written out, since XML forbids some of them."""
    return _escape(visible(text), quote)


@dataclass(frozen=True)
class Palette:
    """Colours of a medium, by what they mean (Okabe and Ito's colour-blind-safe set, darkened where text needs contrast)."""

    ink: str
    soft: str
    """Axes, labels of lesser weight."""
    line: str
    """Hair lines."""
    paper: str
    accepted: str
    """The accepted side of a criterion."""
    satisfied: str
    not_satisfied: str
    inconclusive: str
    not_measured: str
    valid: str
    spurious: str
    neutral: str
    unexplained: str
    inline: bool
    """Whether the SVG becomes part of the page (screen) or an image of its own (paper)."""

    def state(self, state: State) -> str:
        """Colour of a state."""
        return str(getattr(self, state))

    def role(self, role: str) -> str:
        """Colour of a role, or of what is unexplained."""
        return str(getattr(self, role))


SCREEN = Palette(
    ink="var(--ink)",
    soft="var(--soft)",
    line="var(--line)",
    paper="var(--page)",
    accepted="var(--accepted)",
    satisfied="var(--satisfied)",
    not_satisfied="var(--not-satisfied)",
    inconclusive="var(--inconclusive)",
    not_measured="var(--not-measured)",
    valid="var(--valid)",
    spurious="var(--spurious)",
    neutral="var(--neutral)",
    unexplained="var(--unexplained)",
    inline=True,
)
PAPER = Palette(
    ink="#1b1f24",
    soft="#57606a",
    line="#c9ced4",
    paper="#ffffff",
    accepted="#e2efe9",
    satisfied="#00694d",
    not_satisfied="#b23c00",
    inconclusive="#7d5a00",
    not_measured="#57606a",
    valid="#0072b2",
    spurious="#d55e00",
    neutral="#cc79a7",
    unexplained="#c4c9cf",
    inline=False,
)


@dataclass(frozen=True)
class Figure:
    """A drawn figure with the sentence that stands in for it."""

    svg: str
    alt: str
    width: int
    height: int
    inline: bool

    @property
    def uri(self) -> str:
        """The figure as a ``data:`` URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode("utf-8")).decode("ascii")


@dataclass(frozen=True)
class Domain:
    """What the horizontal axis of a figure covers."""

    low: float
    high: float
    unit: Unit

    def place(self, value: float, left: float, width: float) -> float:
        """Horizontal position of `value`, kept inside the axis."""
        part = (value - self.low) / (self.high - self.low)
        return left + min(max(part, 0.0), 1.0) * width

    @classmethod
    def over(cls, unit: Unit, values: Sequence[float]) -> Domain:
        """Domain that holds `values`: 0 to 1 for a share, 0 or −1 to 1 for a cosine or a difference, whole steps for logits."""
        if unit == "share":
            return cls(0.0, 1.0, unit)
        low, high = min([0.0, *values]), max([0.0, *values])
        if unit == "cosine":
            return cls(-1.0 if low < 0 else 0.0, 1.0, unit)
        if unit == "difference":
            return cls(-1.0 if low < 0 else 0.0, 1.0, unit)
        step = next((step for step in _STEPS if (high - low) / step <= 8), (high - low) / 8)
        return cls(-step * -(low // step) if low < 0 else 0.0, step * -(-high // step) or step, unit)

    def ticks(self) -> tuple[float, ...]:
        """Three to nine labelled places."""
        if self.unit == "share":
            return (0.0, 0.25, 0.5, 0.75, 1.0)
        if self.unit == "cosine":
            return (0.0, 0.5, 1.0) if self.low == 0 else (-1.0, 0.0, 1.0)
        if self.unit == "difference":
            return (0.0, 0.25, 0.5, 0.75, 1.0) if self.low == 0 else (-1.0, -0.5, 0.0, 0.5, 1.0)
        span = self.high - self.low
        step = next((step for step in _STEPS if span / step <= 5), span / 5)
        first = -(-self.low // step) * step
        return tuple(first + step * i for i in range(int((self.high - first) / step + 1e-9) + 1))

    def label(self, value: float) -> str:
        """`value` as a tick label."""
        if self.unit == "share":
            return f"{value * 100:.0f} %"
        if self.unit == "difference":
            return f"{value * 100:.0f}".replace("-", "−")
        return f"{value:g}".replace("-", "−")


_FONT = "font-family:'Audit Sans',sans-serif"


def drawing(width: int, height: int, body: str, alt: str, palette: Palette) -> Figure:
    """A figure of `body`, SVG elements in pixels from the upper left corner."""
    hidden = f' role="img" aria-label="{escape(alt, quote=True)}"' if palette.inline else ' xmlns="http://www.w3.org/2000/svg"'
    text = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}"{hidden}>{body}</svg>'
    return Figure(svg=text, alt=alt, width=width, height=height, inline=palette.inline)


def caption(x: float, y: float, text: str, colour: str, size: float = 11, anchor: str = "middle") -> str:
    """Text at (`x`, `y`) as an SVG element; `anchor` is the end that stands there."""
    style = f"fill:{colour};font-size:{size:g}px;{_FONT}"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, more: str = "") -> str:
    """A line from (`x1`, `y1`) to (`x2`, `y2`) as an SVG element; `more` is style."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{colour};stroke-width:{width:g};{more}"/>'
    )


def _block(x: float, y: float, width: float, height: float, colour: str, more: str = "") -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" style="fill:{colour};{more}"/>'


def axis(domain: Domain, palette: Palette, width: int = 260) -> Figure:
    """The axis that heads a column of `interval_line` figures of the same width."""
    left, span = 14.0, width - 28.0
    body = rule(left, 20, left + span, 20, palette.soft)
    for tick in domain.ticks():
        x = domain.place(tick, left, span)
        body += rule(x, 16, x, 20, palette.soft) + caption(x, 12, domain.label(tick), palette.soft, 10.5)
    ends = f"{domain.label(domain.low)} to {domain.label(domain.high)}"
    return drawing(width, 22, body, f"Axis from {ends}.", palette)


def interval_line(
    measurement: Measurement,
    state: State | None,
    criterion: Criterion | None,
    domain: Domain,
    palette: Palette,
    alt: str,
    width: int = 260,
    labelled: bool = False,
    bar: str | None = None,
) -> Figure:
    """Point and interval on a line, with the accepted side shaded and the criterion as a tick.

    Parameters
    ----------
    measurement
        Drawn as a dot with its interval as a thick line; where there is none, the line is dashed.
    state
        Gives the colour; none draws in ink.
    criterion
        Drawn as a vertical tick; none leaves it out.
    domain
        The axis.
    palette
        The medium.
    alt
        Sentence that stands in for the figure.
    width
        Pixels.
    labelled
        Whether the figure carries its own axis labels.
    bar
        Role whose colour fills a bar from zero to the value.
    """
    height, middle = (41, 13.0) if labelled else (20, 10.0) if bar else (26, 13.0)
    left, span = 14.0, width - 28.0
    colour = palette.state(state) if state else palette.ink
    body = ""
    if criterion is not None:
        at = domain.place(criterion.threshold, left, span)
        start, end = (left, at) if criterion.operator == "at_most" else (at, left + span)
        body += _block(start, middle - 9, end - start, 18, palette.accepted)
    zero = domain.place(0.0, left, span)
    if domain.low < 0:
        body += rule(zero, middle - 9, zero, middle + 9, palette.line)
    dashes = "stroke-dasharray:3 4" if measurement.value is None else ""
    body += rule(left, middle, left + span, middle, palette.line, 1, dashes)
    if measurement.value is not None and measurement.interval is not None:
        low, value, high = (
            domain.place(v, left, span) for v in (measurement.interval.low, measurement.value, measurement.interval.high)
        )
        if bar:
            body += _block(min(zero, value), middle - 6, abs(value - zero), 12, palette.role(bar))
        body += rule(low, middle, high, middle, colour, 2 if bar else 3)
        body += "".join(rule(x, middle - 5, x, middle + 5, colour, 1.5 if bar else 2) for x in (low, high))
        if not bar:
            body += f'<circle cx="{value:.1f}" cy="{middle:g}" r="3.5" style="fill:{colour}"/>'
    if criterion is not None:
        body += rule(at, middle - 11, at, middle + 11, palette.ink, 2)
    if labelled:
        for tick in domain.ticks():
            x = domain.place(tick, left, span)
            body += rule(x, 25, x, 28, palette.soft) + caption(x, 39, domain.label(tick), palette.soft, 10.5)
        body += rule(left, 25, left + span, 25, palette.line)
    return drawing(width, height, body, alt, palette)


@dataclass(frozen=True)
class Segment:
    """One part of a stacked bar."""

    role: str
    share: float
    label: str


def stacked(segments: Sequence[Segment], palette: Palette, alt: str, width: int = 650) -> Figure:
    """Shares of a whole as one bar; parts wide enough carry their label."""
    total = sum(segment.share for segment in segments) or 1.0
    x, body = 0.0, ""
    for segment in segments:
        part = segment.share / total * width
        if part >= 0.5:
            body += _block(x, 0, part - 1.5, 26, palette.role(segment.role))
            if part > 44:
                shade = "#ffffff" if segment.role == "valid" else "#15181c"
                body += caption(x + part / 2 - 0.75, 17.5, segment.label, shade, 13)
        x += part
    return drawing(width, 26, body, alt, palette)


@dataclass(frozen=True)
class Point:
    """One component in a scatter plot."""

    x: float
    y: float
    share: float
    role: str
    label: str


def scatter(
    points: Sequence[Point], threshold: float, palette: Palette, alt: str, labelled: int = 8, size: int = 500
) -> Figure:
    """Valid against spurious alignment, one disc a component, its area proportional to its relevance.

    Parameters
    ----------
    points
        Coordinates are z against random reference sets.
    threshold
        Least significant z, drawn as a dashed line on both axes.
    palette
        The medium.
    alt
        Sentence that stands in for the figure.
    labelled
        How many of the most relevant points carry their label.
    size
        Width in pixels.
    """
    left, top, bottom, right = 52.0, 14.0, 46.0, 16.0
    height = round(size * 0.72)
    wide, tall = size - left - right, height - top - bottom
    values = [v for point in points for v in (point.x, point.y)] + [0.0, threshold + 1]
    pad = 0.05 * (max(values) - min(values))
    domain = Domain.over("logits", [min(values) - pad, max(values) + pad])
    body = _block(left, top, wide, tall, "none", f"stroke:{palette.line}")

    def across(value: float) -> float:
        return domain.place(value, left, wide)

    def down(value: float) -> float:
        return top + tall - (domain.place(value, 0, tall))

    for tick in domain.ticks():
        body += rule(across(tick), top + tall, across(tick), top + tall + 4, palette.soft)
        body += caption(across(tick), top + tall + 17, domain.label(tick), palette.soft)
        body += rule(left - 4, down(tick), left, down(tick), palette.soft)
        body += caption(left - 8, down(tick) + 4, domain.label(tick), palette.soft, anchor="end")
    for x1, y1, x2, y2 in (
        (across(threshold), top, across(threshold), top + tall),
        (left, down(threshold), left + wide, down(threshold)),
    ):
        body += rule(x1, y1, x2, y2, palette.soft, 1, "stroke-dasharray:4 4")
    body += caption(left + wide / 2, height - 8, "best alignment with a valid concept (z)", palette.ink, 12)
    middle = top + tall / 2
    body += (
        f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})" '
        f'style="fill:{palette.ink};font-size:12px;{_FONT}">best alignment with a spurious concept (z)</text>'
    )
    ordered = sorted(points, key=lambda point: -point.share)
    for point in ordered:
        radius = _radius(point)
        body += (
            f'<circle cx="{across(point.x):.1f}" cy="{down(point.y):.1f}" r="{radius:.1f}" '
            f'style="fill:{palette.role(point.role)};fill-opacity:.72;stroke:{palette.paper};stroke-width:.8"/>'
        )
    body += _labels(ordered[:labelled], across, down, palette, left + wide)
    return drawing(size, height, body, alt, palette)


def _haloed(x: float, y: float, text: str, palette: Palette, anchor: str) -> str:
    """Text that stays legible on a disc."""
    halo = f"fill:{palette.paper};stroke:{palette.paper};stroke-width:3;stroke-linejoin:round;font-size:11.5px;{_FONT}"
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} style="{halo}" aria-hidden="true">{escape(text)}</text>' + caption(
        x, y, text, palette.ink, 11.5, anchor
    )


def _radius(point: Point) -> float:
    """Area in proportion to the share, on the same scale in every plot; the smallest stay visible."""
    return min(max(1.3, 45 * point.share**0.5), 30)


def _labels(
    points: Sequence[Point],
    across: Callable[[float], float],
    down: Callable[[float], float],
    palette: Palette,
    edge: float,
) -> str:
    """Labels beside the points, moved up or down until none covers another; one without room is left out."""
    taken: list[tuple[float, float, float]] = []
    body = ""
    for point in points:
        radius, length = _radius(point), 6.0 * len(point.label)
        flip = across(point.x) + radius + length + 6 > edge
        x = across(point.x) - radius - 4 - length if flip else across(point.x) + radius + 4
        for shift in (0, -13, 13, -26, 26):
            y = down(point.y) + 4 + shift
            if all(abs(y - other) >= 12 or x > end or x + length < start for start, end, other in taken):
                taken.append((x, x + length, y))
                start = x + (length if flip else 0)
                body += _haloed(start, y, point.label, palette, "end" if flip else "start")
                break
    return body
