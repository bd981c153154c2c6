"""The most similar component: in the same layer (redundancy) or in another (set similarity).

Pure functions of NumPy arrays. Shapes use K and L components, d dimensions, B draws. SemanticLens stands for Dreyer et al.,
arXiv 2501.05398.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from semlens_audit.scores import EPSILON

__all__ = ["DrawnMatches", "best_match", "drawn_matches", "drawn_redundancy", "redundancy"]

_ROWS = 512
_BLOCK = 128


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
        table = one[rows] @ other.T
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


def drawn_redundancy(drawn: Iterator[np.ndarray], known: np.ndarray) -> np.ndarray:
    """`redundancy` in each draw of the bootstrap.

    Parameters
    ----------
    drawn
        Gives (K, d) float32 unit-length embeddings, one draw after the other.
    known
        (K,) bool

    Returns
    -------
    numpy.ndarray
        (B, K) float64; NaN where there is no match.
    """
    return np.stack([_nearest_cosines(one, known) for one in drawn])


def _nearest_cosines(directions: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`redundancy`, every pair's inner product being formed once."""
    rows = directions[known]
    best = np.full(len(rows), -np.inf, dtype=rows.dtype)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        table = rows[block] @ rows[start:].T
        np.fill_diagonal(table, -np.inf)
        np.maximum(best[start:], table.max(axis=0), out=best[start:])
        np.maximum(best[block], table.max(axis=1), out=best[block])
    found = np.full(len(known), np.nan)
    found[known] = np.where(np.isfinite(best), np.clip(best, -1.0, 1.0), np.nan)
    return found


@dataclass(frozen=True)
class DrawnMatches:
    """Similarities of two layers in each draw of the bootstrap, as directions from the origin and from the centres.

    Parameters
    ----------
    forth, back
        (B, K) and (B, L) float32: each component's largest cosine with one of the other layer, directions as they are.
    forth_centred, back_centred
        The same for directions from the centres.
    pairs
        (B, P) float32: cosines of given pairs from the centres.
    """

    forth: np.ndarray
    back: np.ndarray
    forth_centred: np.ndarray
    back_centred: np.ndarray
    pairs: np.ndarray


def drawn_matches(
    drawn: Iterator[tuple[np.ndarray, np.ndarray]], centres: tuple[np.ndarray, np.ndarray], pairs: tuple[np.ndarray, np.ndarray]
) -> DrawnMatches:
    """Best matches between two layers in each draw.

    Parameters
    ----------
    drawn
        Gives (K, d) and (L, d) float32 concept embeddings of the components that have one, one draw after the other; K, L >= 1.
    centres
        (d,) that each layer's embeddings are seen from.
    pairs
        (P,) components of the one layer and their partners in the other.
    """
    found: list[tuple[np.ndarray, ...]] = []
    # Embeddings crowd: products are formed from a point in their midst, so that little is lost to rounding.
    middle = ((centres[0] + centres[1]) / 2.0).astype(np.float32)
    origins = [(np.zeros_like(middle) - middle,) * 2, tuple((centre - middle).astype(np.float32) for centre in centres)]
    for left, right in drawn:
        left, right = left - middle, right - middle
        best, cosines = [], np.empty(0, dtype=np.float32)
        lengths = [[_lengths(side, origin) for side, origin in zip((left, right), both, strict=True)] for both in origins]
        across = [left @ both[1] for both in origins]
        along = [right @ both[0] - both[0] @ both[1] for both in origins]
        columns = [np.full(len(right), -np.inf, dtype=np.float32) for _ in range(2)]
        for start in range(0, len(left), _ROWS):
            rows = slice(start, start + _ROWS)
            # One product of matrices serves both origins: (l - a).(r - b) = l.r - l.b - (r.a - a.b)
            dots = left[rows] @ right.T
            for which, column in enumerate(columns):
                table = dots - across[which][rows, None] - along[which]
                table /= lengths[which][0][rows, None]
                table /= lengths[which][1]
                best.append(table.max(axis=1))
                np.maximum(column, table.max(axis=0), out=column)
            inside = (pairs[0] >= start) & (pairs[0] < start + _ROWS)
            cosines = np.append(cosines, table[pairs[0][inside] - start, pairs[1][inside]])
        order = np.argsort(pairs[0] // _ROWS, kind="stable")
        ordered = np.empty_like(cosines)
        ordered[order] = cosines
        found.append((np.concatenate(best[0::2]), columns[0], np.concatenate(best[1::2]), columns[1], ordered))
    return DrawnMatches(*(np.clip(np.stack(part), -1.0, 1.0) for part in zip(*found, strict=True)))


def _lengths(vectors: np.ndarray, origin: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(vectors - origin, axis=1), EPSILON)
