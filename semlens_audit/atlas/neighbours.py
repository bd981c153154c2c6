"""The most similar component: in the same layer (redundancy) or in another (set similarity).

Pure functions of NumPy arrays. Shapes use K and L components, d dimensions, B draws. SemanticLens stands for Dreyer et al.,
arXiv 2501.05398.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["NEIGHBOURS", "best_match", "drawn_best_match", "redundancy"]

NEIGHBOURS = 32
"""Components that are nearest at the point and among which each draw looks for its nearest."""
_ROWS = 512


def redundancy(directions: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Cosine of each component with the component most similar to it in the same layer (SemanticLens).

    Parameters
    ----------
    directions
        (K, d) unit-length concept embeddings.
    known
        (K,) bool: components that have one.

    Returns
    -------
    numpy.ndarray
        (K,) float64 in [-1, 1]; NaN for a component that is not known, or the only one that is.
    """
    return best_match(directions, directions, known, known, itself=False)[1]


def best_match(
    one: np.ndarray, other: np.ndarray, known: np.ndarray, known_other: np.ndarray, *, itself: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The component of another layer that is most similar to each component.

    Parameters
    ----------
    one, other
        (K, d), (L, d) unit-length embeddings.
    known, known_other
        (K,), (L,) bool: components that have one.
    itself
        False: the component with the same number does not count, as within a layer.

    Returns
    -------
    place : numpy.ndarray
        (K,) int64 which; of equal ones the first; -1 where there is none.
    cosine : numpy.ndarray
        (K,) float64 in [-1, 1]; NaN where there is none.
    """
    place, cosine = np.full(len(one), -1, dtype=np.int64), np.full(len(one), np.nan)
    if not len(other):
        return place, cosine
    for start in range(0, len(one), _ROWS):
        rows = slice(start, start + _ROWS)
        # One row to each component and one to each other: never transposed by an accident of equal sizes.
        table = one[rows].astype(np.float64) @ other.astype(np.float64).T
        _leave_out(table, start, known_other, itself=itself)
        nearest = table.argmax(axis=1)
        best = table[np.arange(len(table)), nearest]
        found = known[rows] & np.isfinite(best)
        place[rows] = np.where(found, nearest, -1)
        cosine[rows] = np.where(found, np.clip(best, -1.0, 1.0), np.nan)
    return place, cosine


def _leave_out(table: np.ndarray, start: int, known_other: np.ndarray, *, itself: bool) -> None:
    table[:, ~known_other] = -np.inf
    if not itself:
        rows = np.arange(min(len(table), table.shape[1] - start))
        table[rows, start + rows] = -np.inf


def drawn_best_match(
    one: np.ndarray,
    other: np.ndarray,
    known: np.ndarray,
    known_other: np.ndarray,
    drawn: Iterator[tuple[np.ndarray, np.ndarray]],
    draws: int,
    *,
    itself: bool = True,
) -> np.ndarray:
    """`best_match` under resampled reference samples, among the `NEIGHBOURS` that are nearest at the point.

    Parameters
    ----------
    one, other, known, known_other, itself
        As for `best_match`.
    drawn
        Gives the draws in their order, some at a time: (b, K, d) and (b, L, d) unit-length embeddings.
    draws
        B.

    Returns
    -------
    numpy.ndarray
        (B, K) float32 cosines; NaN where there is no match.
    """
    out = np.full((draws, len(one)), np.nan, dtype=np.float32)
    candidates, usable = _candidates(one, other, known_other, itself=itself)
    at = 0
    for first, second in drawn:
        for left, right in zip(first, second, strict=True):
            for start in range(0, len(one), _ROWS):
                rows = slice(start, start + _ROWS)
                cosines = np.matmul(right[candidates[rows]], left[rows][..., None])[..., 0]
                best = np.where(usable[rows], cosines, -np.inf).max(axis=1, initial=-np.inf)
                out[at, rows] = np.where(known[rows] & np.isfinite(best), np.clip(best, -1.0, 1.0), np.nan)
            at += 1
    return out


def _candidates(one: np.ndarray, other: np.ndarray, known_other: np.ndarray, *, itself: bool) -> tuple[np.ndarray, np.ndarray]:
    """(K, c) int64 nearest components, and whether each counts."""
    count = min(NEIGHBOURS, len(other))
    places = np.zeros((len(one), count), dtype=np.int64)
    usable = np.zeros((len(one), count), dtype=bool)
    for start in range(0, len(one), _ROWS):
        rows = slice(start, start + _ROWS)
        table = one[rows].astype(np.float64) @ other.astype(np.float64).T
        _leave_out(table, start, known_other, itself=itself)
        places[rows] = np.argpartition(-table, count - 1, axis=1)[:, :count] if count else places[rows]
        usable[rows] = np.isfinite(np.take_along_axis(table, places[rows], axis=1))
    return places, usable
