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
from semlens_audit.search_codes import BLOCK, Codes, CodesDamagedError, estimates, write_codes
from semlens_audit.store import Store

__all__ = ["ComponentSearch", "Hit", "cache_folder", "when_finished"]

_FEW = 20_000
_LEAST, _MOST = 16, 256


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
        estimated = self._estimated(stages, column, directions) if scanned else {}
        found: list[Hit] = []
        for stage in stages:
            if stage not in estimated:
                for names, vectors in self._blocks(stage, column):
                    found = _first([*found, *_hits(stage, names, _cosines(vectors, directions[stage]))], place, count)
        return self._confirmed(found, estimated, directions, column, count, place)

    def _confirmed(
        self, found: list[Hit], estimated: dict[str, tuple[Codes, np.ndarray]], directions: Mapping[str, np.ndarray],
        column: str, count: int, place: dict[str, int],
    ) -> list[Hit]:  # fmt: skip
        """Compare those that can be among the first, the most promising first, until no other can be."""
        if not estimated or count < 1:
            return found[: max(count, 0)]
        bounds = {stage: codes.bound.astype(np.float64) for stage, (codes, _) in estimated.items()}
        lower = np.concatenate([_largest(values - bounds[stage], count) for stage, (_, values) in estimated.items()])
        least = _largest(lower, count).min() if len(lower) >= count else -np.inf
        owners, components, uppers = [], [], []
        for stage, (codes, values) in estimated.items():
            upper = values + bounds[stage]
            rows = np.flatnonzero(upper >= least)
            owners.append(np.full(len(rows), place[stage]))
            components.append(codes.component[rows])
            uppers.append(upper[rows])
        owner, component, upper = np.concatenate(owners), np.concatenate(components), np.concatenate(uppers)
        order = np.argsort(-upper, kind="stable")
        stages = list(directions)
        at, chunk = 0, min(max(2 * count, _LEAST), _MOST)
        while at < len(order) and (len(found) < count or upper[order[at]] >= found[-1].similarity):
            part = order[at : at + chunk]
            wanted = [(stages[i], k) for i, k in zip(owner[part].tolist(), component[part].tolist(), strict=True)]
            for stage, names, vectors in self._chosen(column, wanted):
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

    def _chosen(self, column: str, wanted: list[tuple[str, int]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Components and embeddings of those wanted, for one stage after the other."""
        stages, components = zip(*wanted, strict=True)
        # Found among the short columns first: what is long is then read of their blocks alone.
        named = "SELECT rowid FROM meaning WHERE (stage, component) IN (SELECT unnest(?::VARCHAR[]), unnest(?::INTEGER[]))"
        places = self._store.arrays(named, (list(stages), list(components)))["rowid"]
        chosen = f'SELECT stage, component, "{column}" AS vector FROM meaning WHERE rowid IN (SELECT unnest(?::BIGINT[]))'
        rows = self._store.arrays(chosen, (places.tolist(),))
        if sorted(zip(rows["stage"].tolist(), rows["component"].tolist(), strict=True)) != sorted(wanted):
            raise self._damaged("a concept embedding is missing or twice there")
        if not np.isfinite(rows["vector"]).all():
            raise self._damaged("a concept embedding is not finite")
        for stage in dict.fromkeys(stages):
            own = rows["stage"] == stage
            yield stage, rows["component"][own], rows["vector"][own]

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

    def _estimated(
        self, stages: list[str], column: str, directions: Mapping[str, np.ndarray]
    ) -> dict[str, tuple[Codes, np.ndarray]]:
        """Codes and (K,) estimates of each stage; without those whose codes can be neither read nor written."""
        found: dict[str, tuple[Codes, np.ndarray]] = {}
        waiting = stages
        for anew in (False, True):
            opened = [(stage, codes) for stage in waiting if (codes := self._opened(stage, column, anew)) is not None]
            for (stage, codes), values in zip(opened, estimates([(codes, directions[stage]) for stage, codes in opened]), strict=True):
                if isinstance(values, np.ndarray):
                    found[stage] = (codes, values)
            waiting = [stage for stage, _ in opened if stage not in found]
        return found


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


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest, in any order; all where there are fewer."""
    return values if len(values) <= count else np.partition(values, len(values) - count)[len(values) - count :]


def _hits(stage: str, components: np.ndarray, cosines: np.ndarray) -> list[Hit]:
    return [Hit(stage, component, value) for component, value in zip(components.tolist(), cosines.tolist(), strict=True)]


def _first(hits: list[Hit], place: dict[str, int], count: int) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.similarity, place[hit.stage], hit.component))[: max(count, 0)]
