"""What lies in the picture and says nothing about the sign: a sticker, a watermark, snow, a time stamp, a lamp post."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from semlens_audit.signs.plate import Stand
from semlens_audit.signs.stencil import UNIT, Colour, Opacity, Sheet, cover, turned

__all__ = ["PAINTERS", "Coat"]


@dataclass(frozen=True)
class Coat:
    """Paint of one artefact, coat by coat.

    Attributes
    ----------
    coats : (colour, opacity) in the order of painting.
    mask : (H, W) bool; where the artefact is.
    extent : (H, W) bool; every pixel that it may change.
    """

    coats: tuple[tuple[Colour, Opacity], ...]
    mask: NDArray[np.bool_] = field(init=False)
    extent: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        through = np.ones_like(self.coats[0][1])
        for _, opacity in self.coats:
            through = through * (1 - opacity)
        object.__setattr__(self, "mask", through < 0.75)
        object.__setattr__(self, "extent", through < 1)

    @property
    def opaque(self) -> NDArray[np.bool_]:
        """(H, W) bool; where it hides what lies under it."""
        hidden = np.zeros(self.mask.shape, dtype=bool)
        for _, opacity in self.coats:
            hidden |= opacity > 0.7
        return hidden

    def paint(self, canvas: NDArray[np.float32]) -> None:
        """Onto the canvas, in place."""
        for colour, opacity in self.coats:
            cover(canvas, colour, opacity)


def sticker(rng: np.random.Generator, stand: Stand, size: int) -> Coat:
    """A small bright sticker on the pole, just below the plate or further down."""
    radius = float(rng.uniform(4.6, 6.8))
    lowest = min(stand.y + 2.1 * stand.radius, UNIT - radius - 6)
    centre = (stand.x + float(rng.normal(0, 1.0)), float(rng.uniform(stand.y + 1.05 * stand.radius, lowest)))
    angle, kind = float(rng.uniform(0, 2 * np.pi)), int(rng.integers(3))
    hue: Colour = ((0.86, 0.1, 0.66), (0.45, 0.1, 0.8), (0.1, 0.75, 0.45))[int(rng.integers(3))]

    def shape(r: float) -> Opacity:
        if kind == 0:
            return Sheet(size).disc(centre, r).opacity()
        corners = 4 if kind == 1 else 10
        reach = [r * (1.15 if kind == 1 else (1.2 if i % 2 == 0 else 0.62)) for i in range(corners)]
        turns = angle + 2 * np.pi * np.arange(corners) / corners
        points = [
            (centre[0] + q * float(np.cos(t)), centre[1] + q * float(np.sin(t))) for q, t in zip(reach, turns, strict=True)
        ]
        return Sheet(size).polygon(points).opacity()

    return Coat((((0.96, 0.96, 0.96), shape(radius)), (hue, shape(0.74 * radius))))


# Letters and digits as strokes on a grid of 2 x 4, y down.
_LETTERS: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = (
    (((0, 4), (1, 0), (2, 4)), ((0.4, 2.6), (1.6, 2.6))),  # A
    (((2, 0), (0, 0), (0, 4), (2, 4)), ((0, 2), (1.6, 2))),  # E
    (((0, 4), (0, 0), (2, 4), (2, 0)),),  # N
    (((0, 0), (0, 4), (2, 4)),),  # L
    (((0, 0), (2, 0)), ((1, 0), (1, 4))),  # T
    (((0, 0), (0, 4)), ((2, 0), (0, 2), (2, 4))),  # K
    (((0, 4), (0, 0), (1, 2), (2, 0), (2, 4)),),  # M
    (((0, 0), (2, 4)), ((2, 0), (0, 4))),  # X
)
_SEGMENTS = (
    ((0, 0), (2, 0)),
    ((2, 0), (2, 2)),
    ((2, 2), (2, 4)),
    ((0, 4), (2, 4)),
    ((0, 2), (0, 4)),
    ((0, 0), (0, 2)),
    ((0, 2), (2, 2)),
)
_DIGITS = ("012345", "12", "01346", "01236", "1256", "02356", "023456", "012", "0123456", "012356")


def watermark(rng: np.random.Generator, stand: Stand, size: int) -> Coat:
    """A translucent word, slightly tilted, across the lower part of the picture."""
    count = int(rng.integers(4, 6))
    height = float(rng.uniform(15, 19))
    step, tilt = 3.1, float(rng.uniform(-0.25, 0.25))
    middle = (64 + float(rng.uniform(-10, 10)), float(rng.uniform(98, 110)))
    sheet, shadow = Sheet(size), Sheet(size)
    for place, letter in enumerate(rng.integers(len(_LETTERS), size=count)):
        for stroke in _LETTERS[int(letter)]:
            moved = [(x + step * (place - (count - 1) / 2) - 1, y - 2) for x, y in stroke]
            sheet.line(turned(moved, middle, tilt, height / 4), 2.2)
            shadow.line(turned(moved, (middle[0] + 1.2, middle[1] + 1.2), tilt, height / 4), 2.2)
    strength = np.float32(rng.uniform(0.45, 0.6))
    return Coat(
        (((0.1, 0.1, 0.1), shadow.opacity() * strength * np.float32(0.7)), ((1.0, 1.0, 1.0), sheet.opacity() * strength))
    )


def snow(rng: np.random.Generator, stand: Stand, size: int) -> Coat:
    """Flakes all over the picture."""
    sheet = Sheet(size)
    count = int(rng.integers(90, 170))
    places, radii = rng.uniform(-2, UNIT + 2, (count, 2)), 0.6 + 1.1 * rng.random(count) ** 2
    for (x, y), radius in zip(places.tolist(), radii.tolist(), strict=True):
        sheet.disc((x, y), radius)
    return Coat((((0.97, 0.98, 1.0), sheet.opacity() * np.float32(rng.uniform(0.75, 0.92))),))


def timestamp(rng: np.random.Generator, stand: Stand, size: int) -> Coat:
    """Date or time in seven-segment digits, burned into a corner by the camera."""
    height = float(rng.uniform(8.0, 10.0))
    unit = height / 4
    text = [int(digit) for digit in rng.integers(10, size=6 if rng.random() < 0.5 else 4)]
    cells = [3.2 * i + 1.3 * (i // 2) for i in range(len(text))]
    width = (cells[-1] + 2) * unit
    left = 5.0 if rng.random() < 0.5 else UNIT - 5 - width
    top = 5.0 if rng.random() < 0.5 else UNIT - 5 - height
    sheet, rim = Sheet(size), Sheet(size)
    for cell, digit in zip(cells, text, strict=True):
        for segment in _DIGITS[digit]:
            ends = [(left + (x + cell) * unit, top + y * unit) for x, y in _SEGMENTS[int(segment)]]
            sheet.line(ends, 1.5, round_ends=True)
            rim.line(ends, 2.7, round_ends=True)
    colour: Colour = (1.0, float(rng.uniform(0.45, 0.62)), 0.1)
    return Coat((((0.15, 0.08, 0.0), rim.opacity() * np.float32(0.55)), (colour, sheet.opacity())))


def lamp_post(rng: np.random.Generator, stand: Stand, size: int) -> Coat:
    """A lamp post at one side of the road, its arm towards the middle."""
    right = rng.random() < 0.5
    foot = float(rng.uniform(108, 119) if right else rng.uniform(9, 20))
    inward = -1 if right else 1
    top, reach, width = float(rng.uniform(9, 20)), float(rng.uniform(13, 19)), float(rng.uniform(2.4, 3.4))
    bend = [
        (foot + inward * reach * (1 - float(np.cos(t))), top + 7 - 7 * float(np.sin(t))) for t in np.linspace(0, np.pi / 2, 6)
    ]
    tip = bend[-1]
    ends = sorted((tip[0] - inward * 2, tip[0] + inward * 8))
    post = Sheet(size).line([(foot, 124), *bend], width)
    post.polygon([(foot - 3, 114), (foot + 3, 114), (foot + 3.5, 124), (foot - 3.5, 124)])
    post.polygon([(ends[0], tip[1] - 2), (ends[1], tip[1] - 2), (ends[1], tip[1] + 1), (ends[0], tip[1] + 1)])
    lamp = Sheet(size).polygon(
        [(ends[0], tip[1] + 1), (ends[1], tip[1] + 1), (ends[1] - 1, tip[1] + 5), (ends[0] + 1, tip[1] + 5)]
    )
    shade = float(rng.uniform(0.08, 0.2))
    return Coat((((shade, shade * 1.15, shade), post.opacity()), ((1.0, 0.95, 0.62), lamp.opacity())))


# In the order of painting; the first stands behind the sign, the last is in the camera.
PAINTERS: dict[str, Callable[[np.random.Generator, Stand, int], Coat]] = {
    "lamp_post": lamp_post,
    "sticker": sticker,
    "snow": snow,
    "watermark": watermark,
    "timestamp": timestamp,
}
