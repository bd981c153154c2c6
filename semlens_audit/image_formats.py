"""Formats that images are read in: those that cameras, microscopes and data sets use, each decoded without another program.

Pillow knows some fifty formats and tells them by their content, whatever a file is called. One of them (EPS) is handed to
Ghostscript, an interpreter of programs, and others are formats of games and of decades past that nobody audits. A stranger's file
should not choose among their decoders.
"""

from __future__ import annotations

import sys

import PIL

__all__ = ["FORMATS", "restrict"]

FORMATS = frozenset({"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
"""Formats that are read, as Pillow names them."""

_PLUGINS = frozenset({"Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Mpo", "Png", "Ppm", "Tiff", "WebP"})


def restrict() -> None:
    """Let Pillow read `FORMATS` only, in the whole process; what it can write is left as it is where it is loaded already."""
    PIL._plugins[:] = [name for name in PIL._plugins if name.removesuffix("ImagePlugin") in _PLUGINS]
    image = sys.modules.get("PIL.Image")
    if image is not None:
        for name in set(image.OPEN) - FORMATS:
            del image.OPEN[name]
        image.ID[:] = [name for name in image.ID if name in FORMATS]
