"""Images that are looked for: embedded by themselves, shown, told apart."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from semlens_audit.digest import digest_bytes
from semlens_audit.errors import ExecutionError
from semlens_audit.scores import unit

if TYPE_CHECKING:
    from semlens_audit.foundation import Foundation

__all__ = ["as_jpeg", "embed_one", "image_key"]

_SIDE = 224


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
        found = foundation.encode(on_device(batch, foundation.device))[0].double().cpu().numpy()
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
