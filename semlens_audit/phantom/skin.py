"""Skin and lesion of the phantom: texture, lighting, outline, pigment, and the valid attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

if TYPE_CHECKING:
    from semlens_audit.phantom.render import Attributes, Lesion

Plane = NDArray[np.float32]
Colour = NDArray[np.float32]
Mask = NDArray[np.bool_]


def rgb(*channels: float) -> Colour:
    """A colour from 0-255 channels, as float32 in [0, 1]."""
    return np.asarray(channels, dtype=np.float32) / np.float32(255.0)


def smoothstep(edge0: float, edge1: float, value: Plane) -> Plane:
    """0 below `edge0`, 1 above `edge1` (either may be the larger), a cubic in between; exact at both ends."""
    t = np.clip((value - np.float32(edge0)) / np.float32(edge1 - edge0), 0.0, 1.0).astype(np.float32)
    return t * t * (np.float32(3.0) - np.float32(2.0) * t)


def mix(base: NDArray[np.float32], over: NDArray[np.float32], alpha: Plane) -> NDArray[np.float32]:
    """`over` painted on `base` (H, W, 3) with opacity `alpha` (H, W); unchanged where alpha is 0."""
    return base + alpha[..., None] * (over - base)


def noise(rng: np.random.Generator, cells: int, size: int) -> Plane:
    """Smooth random field, (size, size) float32 of about unit variance, with `cells` independent cells a side."""
    coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    # The box is the same part of the coarse field at every size, so a lesion keeps its texture when re-rendered larger.
    box = (1.0, 1.0, cells + 1.0, cells + 1.0)
    picture = PILImage.fromarray(coarse).resize((size, size), PILImage.Resampling.BICUBIC, box=box)
    return np.asarray(picture, dtype=np.float32) * np.float32(1.4)


def skin(lesion: Lesion, x: Plane, y: Plane) -> NDArray[np.float32]:
    """Bare skin with tone, blotches, skin lines, pores and lighting; (H, W, 3) float32 in about [0, 1]."""
    rng = lesion.stream("skin")
    size = x.shape[0]
    fair, tan = rgb(236, 196, 180), rgb(205, 152, 122)
    tone = fair + np.float32(rng.uniform(0, 1)) * (tan - fair)
    tone = tone + rng.normal(0, 0.012, 3).astype(np.float32)
    blotch = noise(rng, 5, size) * np.float32(0.016)
    fine = noise(rng, 40, size) * np.float32(0.011)
    # Skin lines: the zero crossings of a stretched noise field read as the fine creases of glabrous skin.
    crease = smoothstep(0.16, 0.0, np.abs(noise(rng, 17, size))) * np.float32(-0.028)
    pore = smoothstep(1.7, 2.3, noise(rng, 30, size)) * np.float32(-0.07)
    shade = blotch + fine + crease + pore
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.float32(rng.uniform(0.0, 0.05))
    light = np.float32(1.0) + slope * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    light = light - np.float32(rng.uniform(0.0, 0.05)) * (x * x + y * y)
    ruddy = noise(rng, 8, size)[..., None] * rgb(2.0, -2.5, -1.5)
    return (tone + ruddy + shade[..., None]) * light[..., None]


def sensor_noise(lesion: Lesion, size: int) -> NDArray[np.float32]:
    """Camera noise, (size, size, 3) float32, the same whatever the attributes are."""
    rng = lesion.stream("sensor")
    luminance = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(0.008)
    return luminance + rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(0.005)


def erythema(lesion: Lesion, x: Plane, y: Plane) -> Plane:
    """Strength of the redness around the lesion, (H, W) float32 in [0, 1], exactly 0 outside it."""
    rng = lesion.stream("red_skin")
    size = x.shape[0]
    ax, ay = rng.uniform(-0.15, 0.15, 2)
    reach = rng.uniform(0.98, 1.25)
    radius = np.sqrt((x - np.float32(ax)) ** 2 + (y - np.float32(ay)) ** 2)
    warp = noise(rng, 5, size) * np.float32(0.13)
    field = smoothstep(reach, reach * 0.66, radius + warp)
    return field * np.clip(np.float32(0.86) + noise(rng, 9, size) * np.float32(0.13), 0.4, 1.0)


def redden(canvas: NDArray[np.float32], strength: Plane) -> NDArray[np.float32]:
    """Skin with the haemoglobin absorption of erythema: green and blue go down, red nearly stays."""
    absorbed = canvas * np.array([0.97, 0.56, 0.58], dtype=np.float32)
    return mix(canvas, absorbed, strength)


@dataclass(frozen=True)
class Outline:
    """Where the lesion is.

    Attributes
    ----------
    alpha : (H, W) float32 in [0, 1]; pigment coverage, exactly 0 outside the soft border.
    depth : (H, W) float32; signed distance-like coordinate, 1 at the centre, 0 on the border, negative outside.
    radius : float; mean radius in half image widths.
    lean : float; direction of the lobe of an asymmetric lesion in radians.
    cx, cy : float; centre of the lesion in half image widths from the image's centre.
    """

    alpha: Plane
    depth: Plane
    radius: float
    lean: float
    cx: float
    cy: float


def outline(lesion: Lesion, attributes: Attributes, x: Plane, y: Plane) -> Outline:
    """The lesion's outline in polar form: an ellipse, with a lobe if asymmetric, with notches if irregular."""
    rng = lesion.stream("outline")
    cx, cy = rng.uniform(-0.09, 0.09, 2)
    small, large = rng.uniform(0.28, 0.36), rng.uniform(0.54, 0.62)
    radius = float(large if attributes.large_diameter else small)
    turn = np.linspace(-np.pi, np.pi, 721)
    tilt, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.08)
    edge = 1.0 + squeeze * np.cos(2 * (turn - tilt))
    lean_rng = lesion.stream("asymmetry")
    lean = float(lean_rng.uniform(0, 2 * np.pi))
    if attributes.asymmetry:
        # A large lobe is shortened so that it stays in the field of view.
        edge = edge * _lobe(lean_rng, turn, lean, longest=0.92 / radius - 1.0)
    softness = 0.075
    if attributes.irregular_border:
        edge = edge * _notches(lesion.stream("irregular_border"), turn)
        softness = 0.024
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    distance = np.sqrt(dx * dx + dy * dy)
    reach = np.interp(np.arctan2(dy, dx), turn, edge * radius)
    depth = (1.0 - distance / reach).astype(np.float32)
    band = softness / radius
    alpha = smoothstep(-band, band, depth)
    return Outline(alpha, depth, radius, lean, float(cx), float(cy))


def _lobe(
    rng: np.random.Generator, turn: NDArray[np.float64], lean: float, longest: float
) -> NDArray[np.float64]:
    bulge, waist, side = rng.uniform(0.6, 0.85), rng.uniform(0.24, 0.34), rng.choice([-1.0, 1.0])
    bulge = min(bulge, longest)
    towards = np.exp(4.5 * (np.cos(turn - lean) - 1.0))
    away = np.exp(1.2 * (np.cos(turn - lean - np.pi) - 1.0))
    bite = np.exp(9.0 * (np.cos(turn - lean - side * 1.25) - 1.0))
    return np.asarray(1.0 + bulge * towards - waist * away - 0.28 * bite)


def _notches(rng: np.random.Generator, turn: NDArray[np.float64]) -> NDArray[np.float64]:
    frequency = np.arange(3, 19)
    phase = rng.uniform(0, 2 * np.pi, frequency.size)
    amplitude = rng.rayleigh(1.0, frequency.size) * frequency**-0.5
    amplitude *= 0.135 / np.sqrt((amplitude**2).sum() / 2)
    edge = (amplitude[:, None] * np.cos(frequency[:, None] * turn + phase[:, None])).sum(axis=0)
    # Pseudopods outward are limited, notches inward may be deep.
    return np.asarray(1.0 + np.clip(edge, -0.36, 0.28))


def _network(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Pigment network, globules or a homogeneous field: (H, W) float32 in about [-1, 1]."""
    size = x.shape[0]
    kind = str(rng.choice(["reticular", "globular", "homogeneous"], p=[0.5, 0.25, 0.25]))
    turn = rng.uniform(0, np.pi)
    wave = 2 * np.pi / rng.uniform(0.105, 0.14)
    wx = x + noise(rng, 9, size) * np.float32(0.026)
    wy = y + noise(rng, 9, size) * np.float32(0.026)
    total = np.zeros_like(x)
    for step in range(3):
        a = turn + step * np.pi / 3
        total += np.cos(np.float32(wave * np.cos(a)) * wx + np.float32(wave * np.sin(a)) * wy)
    # Three plane waves at 60 degrees make the honeycomb; its maxima are globules, its minima the mesh.
    grain = noise(rng, 20, size)
    if kind == "reticular":
        return smoothstep(0.2, -1.3, total) * (0.8 + 0.25 * noise(rng, 6, size)) - np.float32(0.35)
    if kind == "globular":
        return smoothstep(0.3, 2.2, total) * (0.8 + 0.25 * noise(rng, 6, size)) - np.float32(0.3)
    return grain * np.float32(0.35)


def paint_lesion(
    lesion: Lesion, attributes: Attributes, geometry: Outline, canvas: NDArray[np.float32], x: Plane, y: Plane
) -> tuple[NDArray[np.float32], dict[str, Mask]]:
    """Paint the lesion on the skin.

    Returns
    -------
    canvas : (H, W, 3) float32
    masks : valid attribute name -> (H, W) bool, for each one present
    """
    rng = lesion.stream("pigment")
    light, dark = rgb(176, 118, 82), rgb(112, 66, 44)
    pigment = light + np.float32(rng.uniform(0, 1)) * (dark - light) + rng.normal(0, 0.015, 3).astype(np.float32)
    texture = _network(rng, x, y)
    core = smoothstep(-0.1, 0.9, geometry.depth)
    shade = np.float32(1.05) - np.float32(0.16) * core - np.float32(0.20) * texture
    solid = geometry.alpha > 0.5
    masks: dict[str, Mask] = {}
    if attributes.asymmetry:
        along = np.cos(geometry.lean) * (x - geometry.cx) + np.sin(geometry.lean) * (y - geometry.cy)
        split = smoothstep(-0.25, 0.45, (along / np.float32(geometry.radius)).astype(np.float32))
        shade = shade * (np.float32(1.22) - np.float32(0.72) * split)
        masks["asymmetry"] = solid
    body = pigment * shade[..., None]
    if attributes.several_colours:
        body, patches = _colours(lesion.stream("several_colours"), geometry, body, x, y)
        masks["several_colours"] = patches & solid
    if attributes.irregular_border:
        masks["irregular_border"] = np.abs(geometry.depth) * geometry.radius < 0.085
    alpha = geometry.alpha * np.float32(0.94)
    canvas = mix(canvas, body, alpha)
    if attributes.blue_white_veil:
        strength = _veil(lesion.stream("blue_white_veil"), geometry, x, y)
        canvas = mix(canvas, rgb(126, 148, 190) * (1.0 + 0.08 * texture[..., None]), strength)
        masks["blue_white_veil"] = (strength > 0.4) & solid
    if attributes.large_diameter:
        masks["large_diameter"] = solid
    return canvas.astype(np.float32), masks


def _local(rng: np.random.Generator, geometry: Outline, reach: float, turn: float) -> tuple[float, float]:
    """A point inside the lesion's smallest possible outline, `reach` of the radius from the centre."""
    distance = geometry.radius * reach * rng.uniform(0.75, 1.0)
    return geometry.cx + distance * np.cos(turn), geometry.cy + distance * np.sin(turn)


def _colours(
    rng: np.random.Generator, geometry: Outline, body: NDArray[np.float32], x: Plane, y: Plane
) -> tuple[NDArray[np.float32], Mask]:
    size = x.shape[0]
    palette = [rgb(188, 58, 50), rgb(30, 22, 22), rgb(222, 164, 100), rgb(236, 208, 196)]
    order = rng.permutation(4)
    start = rng.uniform(0, 2 * np.pi)
    warp = noise(rng, 12, size) * np.float32(0.20)
    covered = np.zeros(x.shape, dtype=bool)
    for place, index in enumerate(order):
        turn = start + place * np.pi / 2 + rng.uniform(-0.25, 0.25)
        px, py = _local(rng, geometry, 0.56, turn)
        width = geometry.radius * rng.uniform(0.38, 0.50)
        distance = np.sqrt((x - np.float32(px)) ** 2 + (y - np.float32(py)) ** 2) / np.float32(width) + warp
        strength = smoothstep(1.25, 0.6, distance) * np.float32(0.84)
        body = mix(body, palette[int(index)], strength)
        covered |= strength > 0.35
    return body, covered


def _veil(rng: np.random.Generator, geometry: Outline, x: Plane, y: Plane) -> Plane:
    size = x.shape[0]
    px, py = _local(rng, geometry, 0.25, rng.uniform(0, 2 * np.pi))
    width = geometry.radius * rng.uniform(0.6, 0.75)
    warp = noise(rng, 7, size) * np.float32(0.14)
    distance = np.sqrt((x - np.float32(px)) ** 2 + (y - np.float32(py)) ** 2) / np.float32(width) + warp
    cloud = np.clip(np.float32(0.82) + noise(rng, 14, size) * np.float32(0.09), 0.6, 0.95)
    return smoothstep(1.15, 0.6, distance) * cloud * geometry.alpha
