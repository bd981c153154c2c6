"""From a crop of what the network sees back to the pixels of the image file."""

from __future__ import annotations

from math import ceil, floor

from semlens_audit.plan import Preprocessing

__all__ = ["image_box"]


def image_box(
    box: tuple[int, int, int, int], image: tuple[int, int], preprocessing: Preprocessing
) -> tuple[int, int, int, int] | None:
    """The part of an image that a crop of its view shows.

    The inverse of the geometry of `semlens_audit.subject.make_view`: resizing, then the centre crop.

    Parameters
    ----------
    box
        x0, y0, x1, y1 in pixels of the view, x1 and y1 exclusive.
    image
        Width and height of the image, as `semlens_audit.images.read_image` gives it.
    preprocessing
        How the view is made.

    Returns
    -------
    tuple or None
        x0, y0, x1, y1 in pixels of the image, whole pixels that hold all of the crop, inside the image and not empty; ``None`` for
        the whole image.
    """
    width, height = image
    size, short = preprocessing.size, preprocessing.resize
    if short is None:
        scaled, left, top = (size, size), 0, 0
    else:
        if width <= height:
            scaled = (short, max(short, int(short * height / width)))
        else:
            scaled = (max(short, int(short * width / height)), short)
        left, top = round((scaled[0] - size) / 2.0), round((scaled[1] - size) / 2.0)
    x0, x1 = _along(box[0] + left, box[2] + left, scaled[0], width)
    y0, y1 = _along(box[1] + top, box[3] + top, scaled[1], height)
    return None if (x0, y0, x1, y1) == (0, 0, width, height) else (x0, y0, x1, y1)


def _along(start: int, stop: int, scaled: int, side: int) -> tuple[int, int]:
    """Ends along one axis of `side` pixels that was resized to `scaled`."""
    # A whole number of pixels must not become one more by rounding of the ratio.
    low = min(max(floor(start * side / scaled + 1e-9), 0), side - 1)
    return low, min(max(ceil(stop * side / scaled - 1e-9), low + 1), side)
