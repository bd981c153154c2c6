"""Options that say where and with how much memory an index is computed, shared by `index` and `run`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from semlens_audit.errors import UsageError
from semlens_audit.execution import Execution
from semlens_audit.memory import parse_size

__all__ = ["Address", "Device", "EngineName", "MaxMemory", "Workers", "execution"]

_PANEL = "Computation"

Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N",
        help="Where networks run; auto: the first GPU, else the CPU. Recorded with what was computed.",
        rich_help_panel=_PANEL,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Memory that the process may use, such as 4GB or 800MiB; changes no result. What does not fit is refused.",
        rich_help_panel=_PANEL,
    ),
]


EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="Who computes the index: this process, or workers of a Ray cluster (extra `ray`); the store's bytes are the same.",
        rich_help_panel=_PANEL,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|auto",
        help="The Ray cluster; auto: the one on this machine. Left out: $RAY_ADDRESS, else one is started for the run.",
        rich_help_panel=_PANEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Workers of the Ray engine, each with $OMP_NUM_THREADS threads and its own networks. Left out: what CPUs or GPUs allow.",
        rich_help_panel=_PANEL,
    ),
]


def execution(
    device: str = "auto",
    max_memory: str | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
) -> Execution:
    """Settings from the options.

    Raises
    ------
    UsageError
        ``unknown-device``; ``bad-size``, ``memory-too-small``; ``ray-only`` for options that only the Ray engine has.
    """
    from semlens_audit.devices import require_name

    require_name(device)  # also where nothing is left to compute
    if engine != "ray" and (address is not None or workers is not None):
        option = "--address" if address is not None else "--workers"
        raise UsageError("ray-only", f"{option} is for the Ray engine.", "Add --engine ray, or leave it out.")
    size = None if max_memory is None else parse_size(max_memory)
    return Execution(engine=engine, device=device, max_memory=size, address=address, workers=workers)
