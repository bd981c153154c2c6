"""Options that say where and with how much memory an index is computed, shared by `index` and `run`."""

from __future__ import annotations

from typing import Annotated

import typer

from semlens_audit.execution import Execution
from semlens_audit.memory import parse_size

__all__ = ["Device", "MaxMemory", "execution"]

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


def execution(device: str = "auto", max_memory: str | None = None) -> Execution:
    """Settings from the options.

    Raises
    ------
    UsageError
        ``bad-size``, ``memory-too-small``.
    """
    return Execution(device=device, max_memory=None if max_memory is None else parse_size(max_memory))
