"""From a heatmap to the crop that shows what drives a component."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

__all__ = ["blurred", "box", "boxes"]

_REFERENCE_SIZE = 224


@lru_cache(maxsize=8)
def _blur_matrix(size: int, blur: int) -> torch.Tensor:
    """(S, S) float32 matrix that blurs a column with a Gaussian kernel of `blur` px at 224 px, mirrored at the border.

    Width and standard deviation are those of torchvision's ``gaussian_blur``, which SemanticLens uses.
    """
    half = min(max(0, round(blur * size / _REFERENCE_SIZE)) // 2, size - 1)
    kernel = 2 * half + 1
    deviation = max(0.3 * ((kernel - 1) * 0.5 - 1) + 0.8, 0.1)
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / deviation) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size, size))
    for row in range(size):
        for offset, weight in zip(range(-half, half + 1), weights, strict=True):
            column = abs(row + offset)
            column = 2 * (size - 1) - column if column >= size else column
            matrix[row, column] += weight
    return torch.from_numpy(matrix.astype(np.float32))


def boxes(heat: np.ndarray, blur: int = 51, threshold: float = 0.01, minimum: int = 32) -> np.ndarray:
    """Square crops around what drives a component (SemanticLens, arXiv 2501.05398).

    The heatmap is blurred, |h| / max|h| above `threshold` is kept, and the smallest square around what is kept is taken, moved
    inside the image where it reaches out. A heatmap without any relevance gives the whole image.

    Parameters
    ----------
    heat
        (B, S, S) finite heatmaps.
    blur
        Side of the Gaussian kernel in pixels at 224 px, scaled with S.
    threshold
        Share of the maximum, between 0 and 1.
    minimum
        Smallest side in pixels.

    Returns
    -------
    np.ndarray
        (B, 4) int32: x0, y0, x1, y1, with x1 and y1 exclusive; always inside the image, square and not empty.
    """
    size = np.asarray(heat).shape[-1]
    height = torch.from_numpy(blurred(heat, blur))
    # A row is kept where its highest place is: no map of what is kept is made.
    rows, columns = height.amax(dim=2), height.amax(dim=1)
    peak = rows.amax(dim=1, keepdim=True)
    kept_rows, kept_columns = ((across > threshold * peak).numpy() for across in (rows, columns))
    left, right = kept_columns.argmax(axis=1), size - kept_columns[:, ::-1].argmax(axis=1)
    top, bottom = kept_rows.argmax(axis=1), size - kept_rows[:, ::-1].argmax(axis=1)
    side = np.minimum(np.maximum(np.maximum(right - left, bottom - top), minimum), size)
    x0 = np.clip((left + right - side) // 2, 0, size - side)
    y0 = np.clip((top + bottom - side) // 2, 0, size - side)
    found = np.stack([x0, y0, x0 + side, y0 + side], axis=1)
    found[~kept_rows.any(axis=1)] = (0, 0, size, size)
    return found.astype(np.int32)


def blurred(heat: np.ndarray, blur: int = 51) -> np.ndarray:
    """Heatmaps as boxes are found in them: blurred, and their absolute value taken.

    Parameters
    ----------
    heat
        (B, S, S) finite heatmaps.
    blur
        See `boxes`.

    Returns
    -------
    np.ndarray
        (B, S, S) float32, not negative, as if the largest absolute value of every heatmap had been 1; zero where it was zero.
    """
    value = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32))
    batch, size = value.shape[0], value.shape[-1]
    matrix = _blur_matrix(size, blur)
    if not value.numel():
        return np.zeros((batch, size, size), dtype=np.float32)
    lowest, highest = torch.aminmax(value.reshape(batch, -1), dim=1)
    largest = torch.maximum(-lowest, highest)
    scaled = value / torch.where(largest > 0, largest, 1.0)[:, None, None]
    # Rows, then columns, each in one product of large matrices.
    across = (scaled.reshape(batch * size, size) @ matrix.T).reshape(batch, size, size)
    return torch.matmul(matrix, across).abs_().numpy()


def box(heat: np.ndarray, blur: int = 51, threshold: float = 0.01, minimum: int = 32) -> tuple[int, int, int, int]:
    """`boxes` of one (S, S) heatmap."""
    x0, y0, x1, y1 = (int(v) for v in boxes(np.asarray(heat)[None], blur, threshold, minimum)[0])
    return x0, y0, x1, y1
