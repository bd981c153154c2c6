"""How an index is computed: where, with how much memory, by how many; it decides cost, and never which stage is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Execution"]


@dataclass(frozen=True)
class Execution:
    """Where and with what an index is computed.

    Parameters
    ----------
    engine
        ``local``: this process. ``ray``: tasks and actors of a Ray cluster.
    device
        ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: the first CUDA device if there is one, else the CPU.
    max_memory
        Bytes of main memory that the process may use, or ``None``: as much as its batches take.
    address
        Of the Ray cluster; ``None``: one that Ray finds or starts on this machine.
    workers
        Actors of the ``ray`` engine; ``None``: one for each CPU of the cluster.
    """

    engine: Literal["local", "ray"] = "local"
    device: str = "auto"
    max_memory: int | None = None
    address: str | None = None
    workers: int | None = None
