"""Plots of a qualification as small SVG: reliance against the true effect, ROC curves, estimated against true effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semlens_audit.certificate import Pair
from semlens_audit.figures import Domain, Figure, Palette, caption, drawing, rule
from semlens_audit.qualification.rates import LARGE, MEASURES, SMALL, covered

__all__ = ["agreement", "reliance", "roc"]

_SIZE = 312
_LEFT, _TOP, _RIGHT, _BOTTOM = 46.0, 10.0, 10.0, 42.0
_SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True)
class _Frame:
    """A square of axes."""

    x: Domain
    y: Domain
    palette: Palette

    def across(self, value: float) -> float:
        return self.x.place(value, _LEFT, _SIZE - _LEFT - _RIGHT)

    def down(self, value: float) -> float:
        tall = _SIZE - _TOP - _BOTTOM
        return _TOP + tall - self.y.place(value, 0.0, tall)

    def axes(self, below: str, beside: str) -> str:
        right, floor = _SIZE - _RIGHT, _SIZE - _BOTTOM
        soft, ink = self.palette.soft, self.palette.ink
        body = rule(_LEFT, floor, right, floor, self.palette.line) + rule(_LEFT, _TOP, _LEFT, floor, self.palette.line)
        for tick in self.x.ticks():
            at = self.across(tick)
            body += rule(at, floor, at, floor + 4, soft) + caption(at, floor + 16, self.x.label(tick), soft, 10.5)
        for tick in self.y.ticks():
            at = self.down(tick)
            body += rule(_LEFT - 4, at, _LEFT, at, soft) + caption(_LEFT - 7, at + 4, self.y.label(tick), soft, 10.5, "end")
        middle = (_TOP + floor) / 2
        body += caption((_LEFT + right) / 2, _SIZE - 8, below, ink, 11.5)
        return body + (
            f'<text x="11" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 11 {middle:.1f})" '
            f"style=\"fill:{ink};font-size:11.5px;font-family:'Audit Sans',sans-serif\">{beside}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0, more: str = "") -> str:
        return rule(self.across(x1), self.down(y1), self.across(x2), self.down(y2), colour, width, more)


def colours(architectures: Sequence[str], palette: Palette) -> dict[str, tuple[str, str]]:
    """Architecture -> colour and shape."""
    shades = (palette.valid, palette.spurious, palette.satisfied)
    return {name: (shades[index % 3], _SHAPES[index % 3]) for index, name in enumerate(architectures)}


def _mark(x: float, y: float, colour: str, shape: str, filled: bool, paper: str) -> str:
    style = f"fill:{colour if filled else paper};stroke:{colour};stroke-width:1.3;fill-opacity:.85"
    if shape == "square":
        return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" style="{style}"/>'
    if shape == "triangle":
        return f'<path d="M{x:.1f} {y - 4:.1f}l4 7h-8z" style="{style}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.3" style="{style}"/>'


def _true(pair: Pair) -> float:
    return abs(pair.true_effect.value or 0.0)


def reliance(
    pairs: Sequence[Pair], measure: str, label: str, marks: Mapping[str, tuple[str, str]], palette: Palette, alt: str
) -> Figure:
    """One reliance measure against the size of the true effect, one mark a pair, filled where the verdict flags it.

    Parameters
    ----------
    pairs
        Of one world.
    measure
        Key of `semlens_audit.qualification.rates.MEASURES`.
    label
        Of the vertical axis.
    marks
        See `colours`.
    palette, alt
        The medium, and the sentence that stands in for the plot.
    """
    of = MEASURES[measure]
    rows = [(pair, value) for pair in pairs if (value := of(pair)) is not None]
    y = Domain(0.0, 1.0, "share") if measure == "share" else Domain.over("logits", [value for _, value in rows] + [1.0])
    frame = _Frame(Domain.over("logits", [_true(pair) for pair in pairs] + [1.0]), y, palette)
    body = frame.axes("size of the true effect, logits", label)
    for cut in (SMALL, LARGE):
        body += frame.line(cut, y.low, cut, y.high, palette.soft, 1, "stroke-dasharray:3 4")
    for pair, value in sorted(rows, key=lambda row: row[0].flagged):
        colour, shape = marks[pair.architecture]
        body += _mark(frame.across(_true(pair)), frame.down(value), colour, shape, pair.flagged, palette.paper)
    return drawing(_SIZE, _SIZE, body, alt, palette)


def roc(pairs: Sequence[Pair], palette: Palette, alt: str) -> Figure:
    """ROC curve of each reliance measure at a true effect of at least 1 logit: share solid, behavioural effect dashed."""
    unit = Domain(0.0, 1.0, "share")
    frame = _Frame(unit, unit, palette)
    body = frame.axes("false-positive rate", "true-positive rate") + frame.line(0, 0, 1, 1, palette.line)
    styles = {"share": (palette.valid, ""), "effect": (palette.spurious, "stroke-dasharray:6 3")}
    for place, (measure, (colour, dashes)) in enumerate(styles.items()):
        rows = [(value, _true(pair) >= LARGE) for pair in pairs if (value := MEASURES[measure](pair)) is not None]
        y = _SIZE - _BOTTOM - 30 + 16 * place
        name = "mechanistic share" if measure == "share" else "behavioural effect"
        positive = sum(hit for _, hit in rows)
        if 0 < positive < len(rows):
            x1, y1 = 0.0, 0.0
            for cut in sorted({value for value, _ in rows}, reverse=True):
                y2 = sum(hit and value >= cut for value, hit in rows) / positive
                x2 = sum(not hit and value >= cut for value, hit in rows) / (len(rows) - positive)
                body += frame.line(x1, y1, x2, y2, colour, 2, dashes)
                x1, y1 = x2, y2
        else:
            name += ": no curve"
        body += rule(150, y - 4, 176, y - 4, colour, 2, dashes) + caption(182, y, name, palette.ink, 11, "start")
    return drawing(_SIZE, _SIZE, body, alt, palette)


def agreement(pairs: Sequence[Pair], marks: Mapping[str, tuple[str, str]], palette: Palette, alt: str) -> Figure:
    """Behavioural effect with its interval against the true effect, filled where the interval holds the truth."""
    rows = [pair for pair in pairs if pair.effect.value is not None and pair.true_effect.value is not None]
    values = [1.0, -1.0]
    for pair in rows:
        values += [number for number in (pair.true_effect.value, pair.effect.low, pair.effect.high) if number is not None]
    domain = Domain.over("logits", values)
    frame = _Frame(domain, domain, palette)
    body = frame.axes("true effect, logits", "behavioural effect, logits")
    body += frame.line(domain.low, domain.low, domain.high, domain.high, palette.soft, 1, "stroke-dasharray:3 4")
    for pair in rows:
        colour, shape = marks[pair.architecture]
        true, value, low, high = (
            float(np.float64(number))
            for number in (pair.true_effect.value, pair.effect.value, pair.effect.low, pair.effect.high)
        )
        body += frame.line(true, low, true, high, colour, 1)
        body += _mark(frame.across(true), frame.down(value), colour, shape, bool(covered(pair)), palette.paper)
    return drawing(_SIZE, _SIZE, body, alt, palette)
