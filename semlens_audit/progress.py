"""Progress of long work: a protocol that the engine reports to, a bar for people, silence for scripts and tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["LineProgress", "Progress", "RichProgress", "SilentProgress"]


class Progress(Protocol):
    """What long work reports to."""

    def stage(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stage.

        Parameters
        ----------
        name
            What is being done, for a reader, e.g. ``"Relevance, layer4"``.
        total
            Items the stage consists of, at least 0.
        done
            Items already finished by an earlier run, 0 to `total`.

        Returns
        -------
        context manager
            Gives a callable that takes the number of *newly* finished items.
        """
        ...


class SilentProgress:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """See `Progress.stage`."""
        yield lambda _finished: None


class LineProgress:
    """One line when a stage ends: for logs, where a moving bar would only repeat itself.

    Parameters
    ----------
    stream
        Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """See `Progress.stage`."""
        begun, finished = time.monotonic(), 0

        def advance(items: int) -> None:
            nonlocal finished
            finished += items

        yield advance
        kept = f", {done} kept from before" if done else ""
        print(f"{name}: {done + finished}/{total} in {time.monotonic() - begun:.1f} s{kept}", file=self._stream, flush=True)


class RichProgress:
    """A bar for each stage with counts, rate and remaining time; finished stages stay on the screen.

    Use as a context manager, so that the terminal is restored whatever happens inside.

    Parameters
    ----------
    console
        rich console to draw on, normally one on stderr.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/]"),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """See `Progress.stage`."""
        from rich.markup import escape

        task: Any = self._bars.add_task(escape(name), total=total, completed=done, rate="")
        begun, finished = time.monotonic(), 0

        def advance(items: int) -> None:
            nonlocal finished
            finished += items
            seconds = time.monotonic() - begun
            rate = f"{finished / seconds:.0f}/s" if seconds > 0.5 else ""
            self._bars.update(task, advance=items, rate=rate)

        try:
            yield advance
        finally:
            self._bars.stop_task(task)
