"""Images that are looked for: read, cut to a box, embedded by themselves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from semlens_audit.digest import digest_bytes
from semlens_audit.errors import DataError, ExecutionError
from semlens_audit.images import read_image
from semlens_audit.scores import unit

if TYPE_CHECKING:
    from semlens_audit.foundation import Foundation

__all__ = ["as_jpeg", "embed_one", "image_key", "part"]

_SIDE = 224


def part(path: Path, box: tuple[int, int, int, int] | None) -> Image.Image:
    """An image file, or a part of it.

    Parameters
    ----------
    path
        The file.
    box
        x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive; ``None``: all of it.

    Raises
    ------
    DataError
        As `semlens_audit.images.read_image`; ``box-outside-image``.
    """
    image = read_image(path)
    if box is None:
        return image
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height):
        raise DataError(
            "box-outside-image",
            f"The box {list(box)} is not inside the image, which has {image.width} x {image.height} pixels.",
            "Write x0,y0,x1,y1 in pixels of the image.",
            file=str(path),
        )
    return image.crop(box)


def embed_one(foundation: Foundation, image: Image.Image) -> np.ndarray:
    """(d,) float64 embedding of one image in single precision, unit length.

    `Foundation.embed_images` fills every batch up to its full size, which lets the many embeddings of an index be the same in any
    company and costs one image as much as sixty-four. A question is always one image by itself.

    Raises
    ------
    ExecutionError
        ``embedding-not-finite``.
    """
    import torch

    from semlens_audit.devices import on_device

    batch = foundation.prepare(image)[None].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = foundation._encode(on_device(batch, foundation.device))[0].double().cpu().numpy()
    if not np.isfinite(found).all() or not found.any():
        raise ExecutionError(
            "embedding-not-finite",
            f"The foundation model {foundation.name} gives a NaN, infinite or zero embedding.",
            "Its weights are damaged or do not belong to its configuration.",
        )
    return np.asarray(unit(found))


def as_jpeg(image: Image.Image) -> bytes:
    """JPEG bytes of an image, `_SIDE` pixels at most on its longer side, to be shown beside what it found."""
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def image_key(image: Image.Image) -> str:
    """Digest of an image's pixels."""
    return digest_bytes(repr(image.size).encode() + image.tobytes())
