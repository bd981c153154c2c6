"""The model's outputs, and other matrices with a row for each sample, some rows at a time.

Shapes use N samples, C classes of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["ROWS", "Decisions", "Rows", "class_margin", "decisions", "in_blocks", "mean_row"]

ROWS = 4096
"""Rows that are read together; fixed, so that no result depends on how much memory there is."""


class Rows(Protocol):
    """A matrix with one row for each sample: a NumPy array, or what a store holds and reads when rows are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, width)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The rows of a slice or of an array of indices, as an array."""


def in_blocks(rows: Rows, size: int = ROWS) -> Iterator[np.ndarray]:
    """The rows in order, at most `size` at a time."""
    for start in range(0, len(rows), size):
        yield np.asarray(rows[start : start + size])


def mean_row(rows: Rows) -> np.ndarray:
    """(width,) float64 mean over all rows; NaN without rows."""
    total = np.zeros(rows.shape[1])
    for block in in_blocks(rows):
        total += block.astype(np.float64).sum(axis=0)
    return total / len(rows) if len(rows) else np.full(rows.shape[1], np.nan)


def class_margin(logits: np.ndarray, index: int) -> np.ndarray:
    """Log-odds of a class: its logit minus the log-sum-exp of all others.

    Parameters
    ----------
    logits
        (N, C), C >= 2.
    index
        Class.

    Returns
    -------
    numpy.ndarray
        (N,) float64, in logits; with two classes the difference of the two logits.
    """
    values = logits.astype(np.float64)
    others = np.delete(values, index, axis=1)
    top = others.max(axis=1, keepdims=True)
    return values[:, index] - (top[:, 0] + np.log(np.exp(others - top).sum(axis=1)))


@dataclass(frozen=True)
class Decisions:
    """What is asked of outputs.

    Parameters
    ----------
    margins
        (N, A) float64 margin of each audited class, see `class_margin`.
    predicted
        (N,) int64 class with the largest output.
    broken
        Outputs that are not finite; margins and predictions are then without meaning.
    """

    margins: np.ndarray
    predicted: np.ndarray
    broken: int


def decisions(logits: Rows, audited: Sequence[int]) -> Decisions:
    """Margins and predictions, in one pass over the outputs.

    Parameters
    ----------
    logits
        (N, C) outputs.
    audited
        Indices of the audited classes.
    """
    margins, predicted = np.zeros((len(logits), len(audited))), np.zeros(len(logits), dtype=np.int64)
    broken = start = 0
    for block in in_blocks(logits):
        part, missing = slice(start, start + len(block)), int((~np.isfinite(block)).sum())
        broken, start = broken + missing, part.stop
        if not missing:
            predicted[part] = block.argmax(axis=1)
            for position, index in enumerate(audited):
                margins[part, position] = class_margin(block, index)
    return Decisions(margins, predicted, broken)
