"""Image files as people see them: whatever is on the disk becomes 8-bit RGB, or an error that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from semlens_audit.errors import DataError

__all__ = ["read_image"]


def read_image(path: Path, *, at_least: int | None = None) -> Image.Image:
    """Decode an image file into 8-bit RGB as a person sees it.

    EXIF orientation is applied; greyscale (8 and 16 bit), palette, CMYK and alpha (composed on white) are converted.

    Parameters
    ----------
    path
        Any file that Pillow reads; of an animation, the first frame.
    at_least
        Let a JPEG decode at a half, a quarter or an eighth of its size as long as both sides keep that many pixels; saves
        time and memory on huge photographs. ``None``: full size, so that pixel coordinates hold.

    Raises
    ------
    DataError
        ``missing-image``, ``empty-image``, ``truncated-image``, ``image-too-large`` (more than twice
        ``PIL.Image.MAX_IMAGE_PIXELS``) or ``unreadable-image``, naming the file.
    """
    # WeasyPrint switches this on for the whole process when it is imported; half an image must not pass as evidence
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        if path.stat().st_size == 0:
            raise DataError(
                "empty-image", "The image file has zero bytes.", "Restore the file or remove it.", file=str(path)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if at_least is not None:
                    image.draft("RGB", (at_least, at_least))
                image.load()
                return _as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise DataError(
            "missing-image", "The image does not exist.", "Restore the file or remove its row.", file=str(path)
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            "image-too-large",
            f"The image is too large to decode safely: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels.",
            "Scale it down.",
            file=str(path),
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            "unreadable-image",
            "The file is no image of a known format, or its header is damaged.",
            "Restore the file or remove it.",
            file=str(path),
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        slug = "truncated-image" if "truncated" in str(error).lower() else "unreadable-image"
        raise DataError(
            slug, f"The image cannot be decoded: {error}.", "Restore the file or remove it.", file=str(path)
        ) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = 65535.0 if values.max(initial=0.0) > 255.0 or image.mode.startswith("I;16") else 255.0
        if image.mode == "F" and values.max(initial=0.0) <= 1.0:
            scale = 1.0
        return Image.fromarray(np.clip(np.rint(values / scale * 255.0), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")
