"""The components whose concept embedding is nearest to a direction, exactly, among as many as a store holds.

Few are compared one by one. Of many, a byte a number is scanned (`semlens_audit.search_codes`), which bounds each cosine from above
and below; only those that can be among the nearest are then read from the store and compared in float64. The answer is that of
comparing all of them, ties included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from semlens_audit.digest import canonical_json
from semlens_audit.errors import StoreError
from semlens_audit.search_codes import BLOCK, Codes, CodesDamagedError, write_codes
from semlens_audit.store import Store

__all__ = ["ComponentSearch", "Hit", "cache_folder", "when_finished"]

_FEW = 20_000
_CHUNK = 256


@dataclass(frozen=True)
class Hit:
    """One component found.

    Parameters
    ----------
    stage
        Key of the stage that holds its concept embedding.
    component
        Which.
    similarity
        Cosine with the direction, -1 to 1; 0 for an embedding of length zero.
    """

    stage: str
    component: int
    similarity: float


def cache_folder(store: Path) -> Path:
    """Folder beside a store for what can be made from it again: it may be deleted at any time."""
    return store.with_name(f"{store.name}.cache")


def when_finished(store: Store, stage: str) -> str:
    """When a stage was last finished, so that what was kept of rows that were computed anew since is told apart; empty if unknown."""
    detail = canonical_json({"stage": stage})
    found = store.rows("SELECT max(\"at\") FROM run_log WHERE event = 'stage-finished' AND detail = ?", (detail,))
    return "" if found[0][0] is None else str(found[0][0].isoformat(timespec="microseconds"))


class ComponentSearch:
    """Searches in an open store; keeps what it has read about its layers for the next query.

    Parameters
    ----------
    store
        Open store.
    few
        Embeddings that are compared one by one; more of them are scanned in a file beside the store, which is made where it is
        missing. Where it cannot be written they are compared one by one too: the same answer takes longer.
    """

    def __init__(self, store: Store, few: int = _FEW) -> None:
        self._store, self._few = store, few
        self._sizes: dict[tuple[str, str], tuple[int, int]] = {}
        self._codes: dict[tuple[str, str], Codes | None] = {}

    def nearest(self, directions: Mapping[str, np.ndarray], column: Literal["vector", "centred"], count: int) -> list[Hit]:
        """The `count` components with the highest cosines, highest first.

        Parameters
        ----------
        directions
            Key of a stage of concept embeddings -> (d,) direction to compare its rows with, not zero. Of equal cosines the one
            whose stage comes first here goes first, then the lower component.
        column
            Column of the table ``meaning``.
        count
            How many.

        Raises
        ------
        StoreError
            ``store-damaged``: an embedding is not finite or has another length than the direction.
        """
        stages = [stage for stage in directions if self._size(stage, column)[0]]
        place = {stage: i for i, stage in enumerate(directions)}
        for stage in stages:
            if self._size(stage, column)[1] != len(directions[stage]):
                raise self._damaged(f"its concept embeddings have {self._size(stage, column)[1]} numbers, not {len(directions[stage])}")
        scanned = sum(self._size(stage, column)[0] for stage in stages) > self._few
        codes = {stage: self._opened(stage, column) if scanned else None for stage in stages}
        found: list[Hit] = []
        estimates: list[tuple[str, np.ndarray, np.ndarray]] = []
        for stage in stages:
            one = self._estimated(stage, column, directions[stage]) if codes[stage] is not None else None
            if one is not None:
                estimates.append((stage, *one))
                continue
            for names, vectors in self._blocks(stage, column):
                found += _hits(stage, names, _cosines(vectors, directions[stage]))
                found = _first(found, place, count)
        return self._confirmed(found, estimates, directions, column, count, place)

    def _confirmed(
        self, found: list[Hit], estimates: list[tuple[str, np.ndarray, np.ndarray]], directions: Mapping[str, np.ndarray],
        column: str, count: int, place: dict[str, int],
    ) -> list[Hit]:  # fmt: skip
        """Compare those that can be among the first, the most promising first, until no other can be."""
        if not estimates or count < 1:
            return found[: max(count, 0)]
        upper = np.concatenate([estimate + bound for _, estimate, bound in estimates])
        lower = np.concatenate([estimate - bound for _, estimate, bound in estimates])
        least = np.partition(lower, len(lower) - count)[len(lower) - count] if len(lower) > count else -np.inf
        del lower
        candidates = np.flatnonzero(upper >= least)
        candidates = candidates[np.argsort(-upper[candidates], kind="stable")]
        starts = np.cumsum([0, *(len(estimate) for _, estimate, _ in estimates)])
        at, chunk = 0, _CHUNK
        while at < len(candidates) and (len(found) < count or upper[candidates[at]] >= found[-1].similarity):
            part = candidates[at : at + chunk]
            owner = np.searchsorted(starts, part, side="right") - 1
            for i in np.unique(owner).tolist():
                stage, rows = estimates[i][0], part[owner == i] - starts[i]
                known = self._codes[stage, column]
                assert known is not None
                names, vectors = self._chosen(stage, column, known.component[rows])
                found += _hits(stage, names, _cosines(vectors, directions[stage]))
            found = _first(found, place, count)
            at, chunk = at + chunk, 2 * chunk
        return found

    def _size(self, stage: str, column: str) -> tuple[int, int]:
        """Rows and dimension of a stage's embeddings."""
        if (stage, column) not in self._sizes:
            ((rows, least, most),) = self._store.rows(
                f'SELECT count(*), min(len("{column}")), max(len("{column}")) FROM meaning WHERE stage = ?', (stage,)
            )
            if rows and least != most:
                raise self._damaged("its concept embeddings are not equally long")
            self._sizes[stage, column] = (int(rows), int(most or 0))
        return self._sizes[stage, column]

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            "store-damaged",
            f"The store is damaged: {what}.",
            "Run `semlens-audit store check`; it says how to mend it.",
            file=str(self._store.path),
        )

    def _blocks(self, stage: str, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        sql = f'SELECT component, "{column}" AS vector FROM meaning WHERE stage = ? ORDER BY component'
        for block in self._store.blocks(sql, (stage,), BLOCK):
            if not np.isfinite(block["vector"]).all():
                raise self._damaged("a concept embedding is not finite")
            yield block["component"], block["vector"]

    def _chosen(self, stage: str, column: str, components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sql = f'SELECT component, "{column}" AS vector FROM meaning WHERE stage = ? AND component IN (SELECT unnest(?::INTEGER[]))'
        rows = self._store.arrays(sql, (stage, components.tolist()))
        if len(rows["component"]) != len(components):
            raise self._damaged("a concept embedding is missing or twice there")
        if not np.isfinite(rows["vector"]).all():
            raise self._damaged("a concept embedding is not finite")
        return rows["component"], rows["vector"]

    def _opened(self, stage: str, column: str, anew: bool = False) -> Codes | None:
        """The codes of a stage, made where they are missing or damaged; ``None`` where they cannot be written."""
        if (stage, column) in self._codes and not anew:
            return self._codes[stage, column]
        path = cache_folder(self._store.path) / f"{stage}.{column}.codes"
        rows, dimension = self._size(stage, column)
        owner, codes = f"{stage} {when_finished(self._store, stage)}", None
        try:
            codes = None if anew else _usable(path, owner, column, rows)
            if codes is None:
                path.parent.mkdir(exist_ok=True)
                write_codes(path, owner, column, rows, dimension, lambda: self._blocks(stage, column))
                codes = Codes.open(path, owner, column)
        except OSError:  # a folder that cannot be written, or a full disk: without codes the answer only takes longer
            codes = None
        self._codes[stage, column] = codes
        return codes

    def _estimated(self, stage: str, column: str, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """(K,) estimates and bounds; ``None`` where the codes cannot be read or written."""
        codes = self._opened(stage, column)
        for _ in range(2):
            if codes is None:
                return None
            try:
                return codes.estimate(direction), codes.bound.astype(np.float64)
            except (CodesDamagedError, OSError):
                codes = self._opened(stage, column, anew=True)
        return None


def _usable(path: Path, owner: str, column: str, rows: int) -> Codes | None:
    """The codes in a file, or ``None`` where there is none that can be trusted."""
    try:
        codes = Codes.open(path, owner, column)
    except (CodesDamagedError, FileNotFoundError):
        return None
    return codes if len(codes.component) == rows else None


def _cosines(vectors: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(n,) float64 cosines; each depends on its own row only."""
    values, wanted = vectors.astype(np.float64), np.asarray(direction, dtype=np.float64)
    length = np.sqrt((values * values).sum(axis=1)) * np.sqrt((wanted * wanted).sum())
    return np.divide((values * wanted).sum(axis=1), length, out=np.zeros(len(values)), where=length > 0)


def _hits(stage: str, components: np.ndarray, cosines: np.ndarray) -> list[Hit]:
    return [Hit(stage, component, value) for component, value in zip(components.tolist(), cosines.tolist(), strict=True)]


def _first(hits: list[Hit], place: dict[str, int], count: int) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.similarity, place[hit.stage], hit.component))[: max(count, 0)]
