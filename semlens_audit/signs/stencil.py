"""Stencils: anti-aliased shapes as opacities, drawn with Pillow on a larger sheet and averaged down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

__all__ = ["UNIT", "Colour", "Opacity", "Sheet", "cover", "softened", "turned"]

Opacity = NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]

UNIT = 128.0
"""Coordinates run from 0 to 128 over the image, whatever its size in pixels; x to the right, y down."""

_FINER = 3


class Sheet:
    """A sheet that shapes are cut out of.

    Parameters
    ----------
    size : int
        Height and width of the finished image, pixels.
    """

    def __init__(self, size: int) -> None:
        self._sheet = PILImage.new("L", (size * _FINER, size * _FINER), 0)
        self._pen = ImageDraw.Draw(self._sheet)
        self._scale = size * _FINER / UNIT

    def _at(self, points: Iterable[Point]) -> list[Point]:
        return [(x * self._scale, y * self._scale) for x, y in points]

    def polygon(self, points: Iterable[Point], value: int = 255) -> Sheet:
        """Fill a polygon."""
        self._pen.polygon(self._at(points), fill=value)
        return self

    def disc(self, centre: Point, radius: float, value: int = 255) -> Sheet:
        """Fill a circle."""
        (x, y), r = centre, radius
        self._pen.ellipse(self._at([(x - r, y - r), (x + r, y + r)]), fill=value)
        return self

    def line(self, points: Sequence[Point], width: float, value: int = 255, round_ends: bool = False) -> Sheet:
        """Draw a polyline."""
        self._pen.line(self._at(points), fill=value, width=max(1, round(width * self._scale)), joint="curve")
        if round_ends:
            for point in (points[0], points[-1]):
                self.disc(point, width / 2, value)
        return self

    def opacity(self) -> Opacity:
        """(size, size) float32 in [0, 1]; share of each pixel that is covered."""
        return np.asarray(self._sheet.reduce(_FINER), dtype=np.float32) / np.float32(255)


def turned(points: Iterable[Point], centre: Point, angle: float, scale: float = 1.0) -> list[Point]:
    """Points around the origin, scaled, turned by `angle` (radians, clockwise as seen) and moved to `centre`."""
    c, s = scale * float(np.cos(angle)), scale * float(np.sin(angle))
    return [(centre[0] + c * x - s * y, centre[1] + s * x + c * y) for x, y in points]


def cover(canvas: NDArray[np.float32], colour: Colour | NDArray[np.float32], opacity: Opacity) -> None:
    """Lay a colour over the canvas in place: (H, W, 3), (3,) or (H, W, 3), (H, W), all float32 in [0, 1]."""
    rows, columns = np.flatnonzero(opacity.any(axis=1)), np.flatnonzero(opacity.any(axis=0))
    if not rows.size:
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    paint = np.asarray(colour, dtype=np.float32)
    part = canvas[window]
    part += opacity[window][..., None] * ((paint[window] if paint.ndim == 3 else paint) - part)


def softened(coarse: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """A coarse (n, n) field blown up smoothly (bicubic) to (size, size) float32."""
    return np.asarray(PILImage.fromarray(coarse.astype(np.float32), mode="F").resize((size, size), PILImage.Resampling.BICUBIC))
