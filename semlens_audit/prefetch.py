"""Preparing the next work items in threads while the present one is computed, in order and with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["cores", "prefetched"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def prefetched(
    prepare: Callable[[_Item], _Result], items: Iterable[_Item], workers: int = 2, ahead: int = 3
) -> Iterator[tuple[_Item, _Result]]:
    """Yield ``(item, prepare(item))`` in the order of `items`.

    Parameters
    ----------
    prepare
        Called in a thread; an error it raises is raised here when its item's turn comes.
    items
        What to prepare.
    workers
        Threads.
    ahead
        Items prepared before they are asked for, at least 1.
    """
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="prepare") as pool:
        waiting: deque[tuple[_Item, Future[_Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(prepare, item)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def cores() -> int:
    """Processors that this process may use, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
