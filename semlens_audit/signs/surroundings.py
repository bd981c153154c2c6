"""Sky, horizon, verge and road: what is in every picture and means nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semlens_audit.signs.stencil import UNIT, Opacity, Sheet, cover, softened

__all__ = ["landscape", "sensor_noise"]


def landscape(rng: np.random.Generator, size: int) -> tuple[NDArray[np.float32], dict[str, Opacity]]:
    """An empty road.

    Parameters
    ----------
    rng
        Stream of the surroundings.
    size
        Pixels.

    Returns
    -------
    canvas : (size, size, 3) float32
    parts : ``sky`` and ``road`` -> (size, size) float32 opacity.
    """
    horizon = float(rng.uniform(72, 92))
    down = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(UNIT / size))[:, None, None]
    clear, grey = np.array([0.42, 0.61, 0.86]), np.array([0.72, 0.75, 0.78])
    blue = rng.random()
    zenith = (blue * clear + (1 - blue) * grey) * rng.uniform(0.75, 1.05)
    low = 0.35 * zenith + 0.65 * np.array([0.86, 0.86, 0.84]) * rng.uniform(0.85, 1.05)
    share = np.clip(down / horizon, 0, 1).astype(np.float32)
    canvas = (zenith + share * (low - zenith)).astype(np.float32)
    canvas = np.repeat(canvas, size, axis=1)
    far = _colour(rng, (0.36, 0.47, 0.36), 0.09)
    hills = _skyline(rng, size, horizon, rng.uniform(4, 16))
    cover(canvas, tuple(far), hills)
    near = _colour(rng, (0.22, 0.34, 0.17), 0.08)
    cover(canvas, tuple(near), _skyline(rng, size, horizon, rng.uniform(2, 9)))
    verge = _colour(rng, (0.36, 0.44, 0.22), 0.1)
    cover(canvas, tuple(verge), Sheet(size).polygon([(0, horizon), (UNIT, horizon), (UNIT, UNIT), (0, UNIT)]).opacity())
    road = _road(rng, canvas, size, horizon)
    for cells, strength in ((5, 0.05), (16, 0.035), (43, 0.025)):
        canvas += softened(rng.standard_normal((cells, cells), dtype=np.float32) * np.float32(strength), size)[..., None]
    sky = (down[:, 0] < horizon) * (1 - hills)
    return canvas, {"sky": sky.astype(np.float32), "road": road}


def _colour(rng: np.random.Generator, mean: tuple[float, float, float], spread: float) -> NDArray[np.float64]:
    return np.asarray(np.clip(np.array(mean) * rng.uniform(0.75, 1.2) + rng.uniform(-spread, spread, 3) * 0.5, 0, 1))


def _skyline(rng: np.random.Generator, size: int, horizon: float, height: float) -> NDArray[np.float32]:
    """Hills, or blocks of houses."""
    steps = int(rng.integers(5, 14))
    x = np.linspace(0, UNIT, steps)
    y = horizon - height * rng.random(steps)
    if rng.random() < 0.4:
        x, y = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
    points = [(0.0, horizon + 1), *zip(x.tolist(), y.tolist(), strict=True), (UNIT, horizon + 1)]
    return Sheet(size).polygon(points).opacity()


def _road(rng: np.random.Generator, canvas: NDArray[np.float32], size: int, horizon: float) -> Opacity:
    vanishing, foot = rng.uniform(10, 118), rng.uniform(20, 108)
    near, far = rng.uniform(34, 60), rng.uniform(1, 5)
    edges = [(vanishing - far, horizon), (vanishing + far, horizon), (foot + near, UNIT), (foot - near, UNIT)]
    surface = Sheet(size).polygon(edges).opacity()
    cover(canvas, tuple(_colour(rng, (0.36, 0.36, 0.38), 0.05)), surface)
    marking = Sheet(size)
    for start in np.arange(rng.uniform(0, 0.15), 1.0, 0.3):
        a, b = float(start), float(min(1.0, start + 0.14))
        ends = []
        for share in (a, b):
            middle, depth = vanishing + share * (foot - vanishing), horizon + share * (UNIT - horizon)
            ends.append((middle, depth, 0.3 + 1.6 * share))
        (x0, y0, w0), (x1, y1, w1) = ends
        marking.polygon([(x0 - w0, y0), (x0 + w0, y0), (x1 + w1, y1), (x1 - w1, y1)])
    cover(canvas, (0.85, 0.85, 0.82), marking.opacity())
    return surface


def sensor_noise(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """(size, size, 3) float32; noise of the camera."""
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(0.02)
    return grain + rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(0.012)
