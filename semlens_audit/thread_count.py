"""The number of threads that operations are shared among, changed for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["shared_among"]


@contextmanager
def shared_among(threads: int | None) -> Iterator[None]:
    """Inside, operations that this thread calls are shared among `threads`; ``None``: as before."""
    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
