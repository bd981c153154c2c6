"""Artefacts of the phantom: what lies on the skin or in the optics and says nothing about the lesion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

from semlens_audit.phantom.skin import mix, noise, rgb, smoothstep

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Curves are drawn this many times larger and averaged down, which makes their edges smooth.
OVERSAMPLING = 4


@dataclass(frozen=True)
class Layer:
    """One artefact, to be painted over the image.

    Attributes
    ----------
    colour : (H, W, 3) or (3,) float32 in [0, 1]
    alpha : (H, W) float32 in [0, 1]; opacity
    mask : (H, W) bool; where the artefact is
    opaque : (H, W) bool; where it hides what lies under it
    """

    colour: NDArray[np.float32]
    alpha: Plane
    mask: Mask
    opaque: Mask

    @property
    def extent(self) -> Mask:
        """(H, W) bool; every pixel the artefact may change."""
        return np.asarray(self.alpha > 0)

    def over(self, canvas: NDArray[np.float32]) -> NDArray[np.float32]:
        """The canvas (H, W, 3) with this artefact on it."""
        return mix(canvas, self.colour, self.alpha).astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """Which side of the image each bulky artefact takes (quarter turns), so that none hides another."""

    ruler: int
    plaster: int
    colour_chart: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Layout:
        """Three different sides."""
        sides = rng.permutation(4)
        return cls(int(sides[0]), int(sides[1]), int(sides[2]))


def _turned(x: Plane, y: Plane, side: int) -> tuple[Plane, Plane]:
    """Coordinates (along, inward) of one side: along in [-1, 1], inward 0 at the image edge and 2 at the far one."""
    if side == 0:
        return x, y + 1
    if side == 1:
        return y, 1 - x
    if side == 2:
        return -x, 1 - y
    return -y, x + 1


def _drawn(lines: list[tuple[NDArray[np.float64], float]], size: int) -> Plane:
    """Coverage (size, size) float32 of polylines: points (n, 2) in [-1, 1], width in half image widths."""
    scale = size * OVERSAMPLING
    picture = PILImage.new("L", (scale, scale), 0)
    pen = ImageDraw.Draw(picture)
    for points, width in lines:
        pixels = [(float(px), float(py)) for px, py in (points + 1.0) * (scale / 2)]
        pen.line(pixels, fill=255, width=max(1, round(width * scale / 2)), joint="curve")
    return np.asarray(picture.reduce(OVERSAMPLING), dtype=np.float32) / np.float32(255.0)


def _arc(start: NDArray[np.float64], heading: float, bend: float, length: float, steps: int = 24) -> NDArray[np.float64]:
    """A curve of constant bend (radians over its length) from `start`; (steps, 2)."""
    headings = heading + bend * np.linspace(0, 1, steps)
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / steps)
    return start + np.cumsum(moves, axis=0)


def hair(rng: np.random.Generator, layout: Layout, x: Plane, y: Plane) -> Layer:
    """Dark terminal hairs across the field, mostly in one direction of growth."""
    size = x.shape[0]
    growth = rng.uniform(0, 2 * np.pi)
    lines = []
    for _ in range(int(rng.integers(9, 16))):
        heading = growth + rng.normal(0, 0.35)
        middle = rng.uniform(-0.8, 0.8, 2)
        length = rng.uniform(0.9, 2.0)
        start = middle - 0.5 * length * np.array([np.cos(heading), np.sin(heading)])
        lines.append((_arc(start, heading - 0.4, rng.normal(0.5, 0.5), length), rng.uniform(0.016, 0.03)))
    cover = _drawn(lines, size)
    colour = rgb(38, 26, 20) + np.float32(rng.uniform(0, 0.10)) * rgb(255, 170, 110)
    return Layer(colour, cover * np.float32(0.92), cover > 0.3, np.zeros(x.shape, dtype=bool))


def pen_ink(rng: np.random.Generator, layout: Layout, x: Plane, y: Plane) -> Layer:
    """Surgical marker: a broken purple or blue ring or brackets around the lesion."""
    size = x.shape[0]
    centre, ring = rng.uniform(-0.08, 0.08, 2), rng.uniform(0.74, 0.86)
    lines = []
    start = rng.uniform(0, 2 * np.pi)
    arcs = int(rng.integers(3, 5))
    for index in range(arcs):
        turn = start + index * 2 * np.pi / arcs + rng.uniform(-0.2, 0.2)
        angles = turn + np.linspace(0, rng.uniform(0.7, 1.1), 28)
        wobble = 1.0 + 0.03 * np.sin(3 * angles + rng.uniform(0, 6))
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (ring * wobble)[:, None] + centre
        lines.append((points, rng.uniform(0.075, 0.11)))
    cover = _drawn(lines, size)
    worn = np.clip(np.float32(0.80) + noise(rng, 30, size) * np.float32(0.16), 0.35, 0.95)
    violet, blue = rgb(84, 40, 140), rgb(38, 62, 168)
    colour = violet + np.float32(rng.uniform(0, 1)) * (blue - violet)
    return Layer(colour, cover * worn, cover > 0.5, np.zeros(x.shape, dtype=bool))


def ruler(rng: np.random.Generator, layout: Layout, x: Plane, y: Plane) -> Layer:
    """Millimetre scale along one side: black ticks, on the contact glass or on a white strip."""
    along, inward = _turned(x, y, layout.ruler)
    tilt = rng.uniform(-0.035, 0.035)
    depth = (inward + np.float32(tilt) * along).astype(np.float32)
    pitch, phase = rng.uniform(0.135, 0.165), rng.uniform(0, 1)
    base = rng.uniform(0.05, 0.10)
    paper = bool(rng.uniform() < 0.5)
    count = np.floor((along / np.float32(pitch)) + np.float32(phase) + np.float32(0.5))
    nearest = np.abs((along / np.float32(pitch)) + np.float32(phase) - count) * np.float32(pitch)
    reach = np.where(count % 5 == 0, 0.27, 0.155).astype(np.float32)
    blur = 1.0 / x.shape[0]
    tick = smoothstep(0.019 + blur, 0.019 - blur, nearest) * smoothstep(-blur, blur, (depth - np.float32(base)))
    tick = tick * smoothstep(blur, -blur, depth - np.float32(base) - reach)
    line = smoothstep(0.017 + blur, 0.017 - blur, np.abs(depth - np.float32(base)))
    ink = np.maximum(tick, line) * np.float32(0.95)
    strip = smoothstep(base + 0.33 + blur, base + 0.33 - blur, depth)
    colour = np.broadcast_to(rgb(18, 18, 20), (*x.shape, 3)).astype(np.float32)
    alpha = ink
    if paper:
        card = strip * np.float32(0.9)
        colour = mix(np.broadcast_to(rgb(232, 232, 226), colour.shape).astype(np.float32), colour, ink)
        alpha = np.maximum(card, ink)
    mask = np.asarray((depth < base + 0.29) & (depth > base - 0.03))
    return Layer(colour, alpha, mask, np.asarray((strip > 0.5) & paper))


def plaster(rng: np.random.Generator, layout: Layout, x: Plane, y: Plane) -> Layer:
    """An adhesive strip reaching into the image from one side: skin-coloured or blue, with its air holes and pad."""
    along, inward = _turned(x, y, layout.plaster)
    turn = rng.uniform(-0.35, 0.35)
    offset = rng.choice([-1.0, 1.0]) * rng.uniform(0.25, 0.6)
    reach, half = rng.uniform(0.52, 0.66), rng.uniform(0.28, 0.36)
    u = np.cos(turn) * (along - np.float32(offset)) + np.sin(turn) * (inward - np.float32(reach))
    v = -np.sin(turn) * (along - np.float32(offset)) + np.cos(turn) * (inward - np.float32(reach))
    corner = 0.16
    qx = np.maximum(np.abs(u) - np.float32(half - corner), 0)
    qy = np.maximum(v + np.float32(corner), 0)
    outside = (np.sqrt(qx * qx + qy * qy) - np.float32(corner)).astype(np.float32)
    blur = 1.2 / x.shape[0]
    cover = smoothstep(blur, -blur, outside)
    beige, blue = rgb(222, 178, 132), rgb(72, 136, 206)
    colour = beige if rng.uniform() < 0.5 else blue
    weave = np.float32(1.0) + np.float32(0.05) * np.sin(u * np.float32(70.0)) * np.sin(v * np.float32(70.0))
    rim = np.float32(1.0) - np.float32(0.22) * smoothstep(-0.07, 0.0, outside)
    pitch = np.float32(0.105)
    hu = (u / pitch - np.round(u / pitch)) * pitch
    hv = (v / pitch - np.round(v / pitch)) * pitch
    hole = smoothstep(0.034, 0.018, np.sqrt(hu * hu + hv * hv).astype(np.float32)) * smoothstep(-0.06, -0.09, outside)
    painted = colour * (weave * rim)[..., None]
    painted = mix(painted.astype(np.float32), colour * np.float32(0.45), hole * np.float32(0.8))
    mask = cover > 0.5
    return Layer(painted, cover.astype(np.float32), mask, mask)


def colour_chart(rng: np.random.Generator, layout: Layout, x: Plane, y: Plane) -> Layer:
    """A strip of calibration patches along one side: primaries, secondaries and greys on a black card."""
    along, inward = _turned(x, y, layout.colour_chart)
    patches = [
        rgb(206, 40, 44), rgb(48, 150, 66), rgb(40, 66, 176), rgb(240, 208, 40), rgb(196, 70, 160),
        rgb(52, 172, 196), rgb(242, 242, 242), rgb(128, 128, 128),
    ]  # fmt: skip
    number, side, gap = 6, rng.uniform(0.175, 0.20), 0.035
    start = rng.uniform(-0.85, 0.85 - number * (side + gap))
    top = rng.uniform(0.03, 0.08)
    blur = 1.0 / x.shape[0]
    length = number * (side + gap) + gap
    middle = start + length / 2
    away = np.maximum(np.abs(along - np.float32(middle)) - np.float32(length / 2), np.abs(
        inward - np.float32(top + side / 2 + gap)) - np.float32(side / 2 + gap)).astype(np.float32)
    cover = smoothstep(blur, -blur, away)
    colour = np.broadcast_to(rgb(24, 24, 26), (*x.shape, 3)).astype(np.float32)
    for place, index in enumerate(rng.permutation(len(patches))[:number]):
        centre = start + gap + place * (side + gap) + side / 2
        square = np.maximum(np.abs(along - np.float32(centre)), np.abs(inward - np.float32(top + gap + side / 2)))
        colour = mix(colour, patches[int(index)], smoothstep(side / 2 + blur, side / 2 - blur, square.astype(np.float32)))
    mask = cover > 0.5
    return Layer(colour, cover, mask, mask)


def dark_corners(rng: np.random.Generator, layout: Layout, x: Plane, y: Plane) -> Layer:
    """The black rim of the dermatoscope's round field of view."""
    ax, ay = rng.uniform(-0.05, 0.05, 2)
    field = rng.uniform(1.08, 1.18)
    radius = np.sqrt((x - np.float32(ax)) ** 2 + (y - np.float32(ay)) ** 2)
    shadow = smoothstep(field - 0.04, field + 0.05, radius)
    fall = smoothstep(field - 0.32, field + 0.05, radius) * np.float32(0.35)
    alpha = np.maximum(shadow * np.float32(0.97), fall)
    return Layer(rgb(8, 6, 6), alpha, np.asarray(shadow > 0.5), np.asarray(shadow > 0.7))
