"""The sign itself: a plate on a pole, with the attributes that its class follows from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semlens_audit.signs.stencil import Colour, Opacity, Sheet, cover, softened, turned

__all__ = ["SYMBOLS", "Plate", "Stand", "mount", "pole"]

SYMBOLS = ("arrow", "stripes", "cross", "ring")
_BLEACHED = 0.2


@dataclass(frozen=True)
class Stand:
    """Where the sign stands.

    Attributes
    ----------
    x, y : float; centre of the plate, units of the image.
    radius : float; of the round plate; the triangular one has a like area.
    tilt : float; radians.
    pole : float; width.
    """

    x: float
    y: float
    radius: float
    tilt: float
    pole: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Stand:
        """A random one."""
        return cls(
            float(rng.uniform(50, 78)),
            float(rng.uniform(42, 58)),
            float(rng.uniform(19, 27)),
            float(rng.normal(0, 0.1)),
            float(rng.uniform(2.6, 4.2)),
        )

    @property
    def centre(self) -> tuple[float, float]:
        """Of the plate."""
        return self.x, self.y


@dataclass(frozen=True)
class Plate:
    """What a plate shows.

    Attributes
    ----------
    parts : ``plate``, ``rim``, ``ground`` and ``symbol`` -> (size, size) float32 opacity.
    bleached : bool; whether its colours cannot be told.
    symbol : str; ``exclamation_mark`` or one of `SYMBOLS`.
    """

    parts: dict[str, Opacity]
    bleached: bool
    symbol: str


def pole(rng: np.random.Generator, stand: Stand, canvas: NDArray[np.float32], size: int) -> Opacity:
    """Paint the pole, in place, and say where it is."""
    grey = rng.uniform(0.42, 0.66)
    x, w = stand.x, stand.pole / 2
    whole = Sheet(size).polygon([(x - w, stand.y), (x + w, stand.y), (x + w, 140), (x - w, 140)]).opacity()
    cover(canvas, (grey, grey, grey), whole)
    shade = Sheet(size).polygon([(x + w * 0.2, stand.y), (x + w, stand.y), (x + w, 140), (x + w * 0.2, 140)]).opacity()
    cover(canvas, (grey * 0.55,) * 3, shade)
    return whole


def _outline(triangle: bool, stand: Stand, size: int, inset: float) -> Opacity:
    """The plate less a rim of `inset`."""
    if not triangle:
        return Sheet(size).disc(stand.centre, stand.radius - inset).opacity()
    # An inset of the edges takes twice that off the circumradius of an equilateral triangle.
    reach = 1.32 * stand.radius - 2 * inset
    corners = [(reach * np.sin(turn), 0.12 * stand.radius - reach * np.cos(turn)) for turn in np.deg2rad((0, 120, 240))]
    points = turned(corners, stand.centre, stand.tilt)
    blunt = 0.1 * stand.radius
    return Sheet(size).polygon(points).line([*points, points[0]], blunt, round_ends=True).opacity()


def _exclamation_mark(
    sheet: Sheet, at: Callable[[list[tuple[float, float]]], list[tuple[float, float]]], stroke: float
) -> None:
    sheet.polygon(at([(-stroke, -1), (stroke, -1), (0.55 * stroke, 0.38), (-0.55 * stroke, 0.38)]))
    sheet.polygon(at([(-stroke * 0.8, 0.62), (stroke * 0.8, 0.62), (stroke * 0.8, 1), (-stroke * 0.8, 1)]))


def _other_symbol(
    sheet: Sheet, kind: str, at: Callable[[list[tuple[float, float]]], list[tuple[float, float]]], stroke: float
) -> None:
    s = stroke * 0.8
    if kind == "arrow":
        sheet.polygon(at([(-s, 0), (s, 0), (s, 1), (-s, 1)])).polygon(at([(-0.7, 0.05), (0.7, 0.05), (0, -1)]))
    elif kind == "stripes":
        for x in (-0.6, 0.15):
            sheet.polygon(at([(x, -0.85), (x + 1.5 * s, -0.85), (x + 1.5 * s, 0.85), (x, 0.85)]))
    elif kind == "cross":
        for sign in (-1, 1):
            sheet.polygon(at([(-0.8 - s, -0.8 * sign), (-0.8 + s, -0.8 * sign), (0.8 + s, 0.8 * sign), (0.8 - s, 0.8 * sign)]))
    else:
        turns = np.linspace(0, 2 * np.pi, 21)
        outer = [(0.85 * float(np.cos(t)), 0.85 * float(np.sin(t))) for t in turns]
        inner = [(0.85 - 1.6 * s) / 0.85 * np.array(point) for point in reversed(outer)]
        sheet.polygon(at([*outer, *((float(p[0]), float(p[1])) for p in inner)]))


def mount(
    rng: np.random.Generator,
    symbol_rng: np.random.Generator,
    stand: Stand,
    present: frozenset[str],
    canvas: NDArray[np.float32],
    size: int,
) -> Plate:
    """Paint the plate, in place.

    Parameters
    ----------
    rng
        Stream of rim, ground and weathering.
    symbol_rng
        Stream of the symbol.
    stand
        Where.
    present
        Names of the valid attributes present.
    """
    triangle = "triangle" in present
    width = stand.radius * float(rng.uniform(0.15, 0.22))
    reds = (rng.uniform(0.6, 0.85), rng.uniform(0.06, 0.16), rng.uniform(0.08, 0.16))
    dark = rng.uniform(0.05, 0.18)
    others = (dark, dark + rng.uniform(0, 0.16), dark + rng.uniform(0, 0.45))
    yellow = (rng.uniform(0.82, 0.98), rng.uniform(0.66, 0.8), rng.uniform(0.08, 0.28))
    white = (rng.uniform(0.8, 0.97),) * 3
    # Some plates have lost their colours: no network can be right about all of them.
    bleached = bool(rng.random() < _BLEACHED)
    fading = float(rng.uniform(0.9, 0.98) if bleached else rng.uniform(0, 0.45))
    tint = rng.normal(0, 0.025, 3)
    light = float(rng.uniform(0.65, 1.05))
    dirt = softened(rng.standard_normal((9, 9), dtype=np.float32) * np.float32(0.07), size)[..., None]

    def painted(colour: Colour, faded: float = fading) -> NDArray[np.float32]:
        worn = (1 - faded) * np.array(colour) + faded * 0.6 + tint
        return np.asarray(worn * light + dirt, dtype=np.float32)

    plate = _outline(triangle, stand, size, 0.0)
    inner = _outline(triangle, stand, size, width)
    cover(canvas, painted(reds if "red_rim" in present else others), plate)
    cover(canvas, painted(yellow if "yellow_ground" in present else white), inner)

    height = stand.radius * float(symbol_rng.uniform(0.42, 0.54))
    stroke = float(symbol_rng.uniform(0.2, 0.3))
    centre = (stand.x + float(symbol_rng.normal(0, 0.5)), stand.y + 0.1 * stand.radius + float(symbol_rng.normal(0, 0.5)))
    kind = SYMBOLS[int(symbol_rng.integers(len(SYMBOLS)))]
    ink = symbol_rng.uniform(0.04, 0.2)
    sheet = Sheet(size)

    def at(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return turned(points, centre, stand.tilt, height)

    if "exclamation_mark" in present:
        kind = "exclamation_mark"
        _exclamation_mark(sheet, at, stroke)
    else:
        _other_symbol(sheet, kind, at, stroke)
    symbol = sheet.opacity()
    cover(canvas, painted((ink, ink, ink), 0.0), symbol)  # black print does not bleach
    parts = {"plate": plate, "rim": plate * (1 - inner), "ground": inner * (1 - symbol), "symbol": symbol}
    return Plate(parts, bleached, kind)
