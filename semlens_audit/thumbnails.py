"""Pictures of reference samples for reports: the crop, and the whole input with heatmap and box. Drawing only, no torch."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CROP", "OVERLAY", "crop_thumbnail", "overlay_thumbnail"]

CROP = 112
"""Side of the crop's picture, pixels."""

OVERLAY = 144
"""Side of the overlay's picture, pixels."""

_QUALITY = 80
_STRENGTH = 0.75


@cache
def _colours() -> np.ndarray:
    """(256, 3) float32: matplotlib's inferno, which is perceptually uniform and reads the same in grey."""
    import matplotlib

    return np.asarray(matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255.0, dtype=np.float32)


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=False, subsampling=2)
    return stream.getvalue()


def crop_thumbnail(view: Image.Image, box: tuple[int, int, int, int]) -> bytes:
    """JPEG of the crop, `CROP` pixels on its longer side.

    Parameters
    ----------
    view
        What the network sees, RGB.
    box
        x0, y0, x1, y1 in pixels of `view`.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    scale = CROP / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return _jpeg(view.resize(size, Image.Resampling.BICUBIC, box=box))


def overlay_thumbnail(view: Image.Image, heatmap: np.ndarray, box: tuple[int, int, int, int]) -> bytes:
    """JPEG of the whole view, darkened to grey where the heatmap is cold, with the box drawn in; `OVERLAY` pixels a side.

    Parameters
    ----------
    view
        (S, S) RGB.
    heatmap
        (S, S) signed; its absolute value is shown, smoothed over a fortieth of the side.
    box
        x0, y0, x1, y1 in pixels of `view`.
    """
    side = view.size[0]
    heat = np.abs(np.asarray(heatmap, dtype=np.float32))
    top = float(heat.max())
    if top > 0 and np.isfinite(top):
        small = Image.fromarray(np.rint(np.sqrt(heat / top) * 255.0).astype(np.uint8))
        small = small.filter(ImageFilter.GaussianBlur(side / 40.0)).resize((OVERLAY, OVERLAY), Image.Resampling.BILINEAR)
        level = np.asarray(small, dtype=np.float32)
        level *= 255.0 / max(float(level.max()), 1.0)
    else:
        level = np.zeros((OVERLAY, OVERLAY), dtype=np.float32)
    picture = view.resize((OVERLAY, OVERLAY), Image.Resampling.BICUBIC)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[:, :, None]
    share = (_STRENGTH * level / 255.0)[:, :, None]
    base = 0.55 * grey + 0.45 * np.asarray(picture, dtype=np.float32)
    mixed = base * (1.0 - share) + _colours()[level.astype(np.uint8)] * share
    result = Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(result)
    x0, y0, x1, y1 = (value * OVERLAY / side for value in box)
    edges = (int(x0), int(y0), max(int(x0) + 1, int(np.ceil(x1)) - 1), max(int(y0) + 1, int(np.ceil(y1)) - 1))
    draw.rectangle((edges[0] - 1, edges[1] - 1, edges[2] + 1, edges[3] + 1), outline=(0, 0, 0))
    draw.rectangle(edges, outline=(255, 255, 255))
    return _jpeg(result)
