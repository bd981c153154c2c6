"""Image files, or the part of one that a box marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from semlens_audit.errors import DataError
from semlens_audit.images import read_image

__all__ = ["image_part"]


def image_part(
    path: Path,
    box: Sequence[int] | None,
    *,
    name: str = "the image",
    hint: str = "Write x0,y0,x1,y1 in pixels of the image.",
    file: str | None = None,
    line: int | None = None,
) -> Image.Image:
    """An image file, or a part of it.

    Parameters
    ----------
    path
        The file.
    box
        x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive; ``None``: all of it.
    name, hint
        What the image is called, and what to do, where the box lies outside.
    file, line
        Where the box is written; the image itself where ``None``.

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
            f"The box {list(box)} is not inside {name}, which has {image.width} x {image.height} pixels.",
            hint,
            file=file or str(path),
            line=line,
        )
    return image.crop((x0, y0, x1, y1))
