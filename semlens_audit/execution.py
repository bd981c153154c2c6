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
        Of the Ray cluster: ``HOST:PORT``, or ``auto`` for the one that runs on this machine; ``None``: what the environment variable
        ``RAY_ADDRESS`` says, else one that is started on this machine and ends with the index.
    workers
        Of the ``ray`` engine, each with as many threads as this process uses; ``None``: as many as the cluster's CPUs, or GPUs, suffice
        for.
    """

    engine: Literal["local", "ray"] = "local"
    device: str = "auto"
    max_memory: int | None = None
    address: str | None = None
    workers: int | None = None
