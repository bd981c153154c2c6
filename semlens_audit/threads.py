"""Threads that an operation is shared among: kept for a stage once it is begun, since last bits of sums depend on their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from semlens_audit.store import StageState
from semlens_audit.thread_count import shared_among
from semlens_audit.work import Bench, Work

__all__ = ["Threaded", "threads_of"]

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")


def threads_of(state: StageState, bench: Bench) -> dict[str, Any]:
    """The fact ``threads`` of a stage: as many as it was begun with, else as many as this process has; none on a GPU.

    Any number can be gone on with: where there are fewer processors, threads take turns.
    """
    if bench.device.type != "cpu":
        return {}
    return {"threads": int(state.facts.get("threads", torch.get_num_threads()))}


@dataclass(frozen=True)
class Threaded(Generic[Item, Ready, Result]):
    """Work whose operations are shared among a fixed number of threads, whoever computes it.

    Parameters
    ----------
    work
        The pass.
    count
        Threads of its operations; ``None``: those of whoever computes.
    """

    work: Work[Item, Ready, Result]
    count: int | None

    @property
    def threads(self) -> int:
        """See `semlens_audit.work.Work`: those that prepare."""
        return self.work.threads

    @property
    def ahead(self) -> int:
        """See `semlens_audit.work.Work`."""
        return self.work.ahead

    def prepare(self, bench: Bench, item: Item) -> Ready:
        """See `semlens_audit.work.Work`."""
        return self.work.prepare(bench, item)

    def compute(self, bench: Bench, item: Item, ready: Ready) -> Result:
        """See `semlens_audit.work.Work`."""
        with shared_among(self.count):
            return self.work.compute(bench, item, ready)
