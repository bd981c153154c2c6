"""What the command line says when something goes wrong, and the exit code that goes with it."""

from __future__ import annotations

import errno
import os
import platform
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from semlens_audit import __version__
from semlens_audit.errors import AuditError, ExitCode, Problem

__all__ = ["answer", "guard", "print_problems"]

_RESUME = "Interrupted. What was finished is kept; run the same command to resume."


def guard(work: Callable[[], int | None], command: Sequence[str]) -> ExitCode:
    """Run `work` and turn whatever it raises into a message on stderr and an exit code.

    Parameters
    ----------
    work
        Returns an exit code; ``None`` stands for 0.
    command
        Command line, for the crash file.

    Returns
    -------
    ExitCode
        Of `work`, or of the failure.
    """
    with _noticing_interrupts() as interrupted:
        try:
            code = ExitCode(work() or 0)
            sys.stdout.flush()
        except BrokenPipeError:
            # the reader of the output has left; its absence must not look like a verdict
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.INCOMPLETE
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - the last resort: each becomes a message
            return answer(KeyboardInterrupt() if interrupted else error, command)
    return code


@contextmanager
def _noticing_interrupts() -> Iterator[list[int]]:
    """Give a list that holds the signal once Ctrl-C was pressed.

    Libraries answer an interrupt within native code with errors of their own (DuckDB: ``RuntimeError: Query interrupted``), so
    whatever is raised after one counts as the interrupt.
    """
    seen: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, notice)
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def answer(error: BaseException, command: Sequence[str]) -> ExitCode:
    """Print what `error` means to the user and give the exit code for it."""
    if isinstance(error, KeyboardInterrupt):
        print(_RESUME, file=sys.stderr)
        # An interrupt that passed through `exec` (as in torch's import) leaves a mark in CPython, by which it would end
        # with the signal instead of the exit code; the next `exec` wipes it.
        exec("pass")
        return ExitCode.INTERRUPTED
    if isinstance(error, AuditError):
        print_problems(error.problems)
        return error.exit_code
    problem = _of_the_machine(error)
    if problem is None:
        problem = Problem(
            "unexpected",
            f"Something unforeseen happened: {type(error).__name__}: {_first_line(error)}",
            f"The traceback is in {_crash_file(error, command)}; please send it with the command to the authors.",
        )
    print_problems((problem,))
    return ExitCode.INCOMPLETE


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:300]


def _of_the_machine(error: BaseException) -> Problem | None:
    """Failures that no code can mend but the user may."""
    if isinstance(error, MemoryError):
        return Problem(
            "out-of-memory",
            "The machine has too little free memory for this run.",
            "Lower measurement.batch_size in the audit file, or close other programs; finished stages are kept.",
        )
    if isinstance(error, UnicodeEncodeError) and any("\udc80" <= letter <= "\udcff" for letter in error.object[error.start : error.end]):
        name = error.object[max(0, error.start - 40) : error.end + 40]
        return Problem("name-not-utf8", f"The name of a file or folder is not UTF-8: {name}", "Rename it, then run the same command.")
    if not isinstance(error, OSError):
        return None
    file = error.filename if isinstance(error.filename, str) else None
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        room = f"The disk has no room left to write {file}." if file else "The disk is full."
        return Problem("disk-full", room, "Free some space, then run the same command; what was finished is kept.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Problem("no-permission", f"{file or 'A file'} may not be read or written: {error.strerror}.", "Check its permissions.")
    if error.errno == errno.ENOENT and file:
        return Problem("no-such-file", f"{file} does not exist.", "Check the path; it is relative to the current folder.")
    if error.errno in (errno.EISDIR, errno.ENOTDIR) and file:
        return Problem("wrong-kind-of-file", f"{file}: {error.strerror}.", "Check the path.")
    return None


def print_problems(problems: Sequence[Problem]) -> None:
    """Print each problem on stderr as ``file:line:column: message [slug]`` with its hint below."""
    from rich.console import Console

    from semlens_audit.terminal import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for problem in problems:
        line = Text()
        if problem.where:
            line.append(f"{problem.where}: ", style="bold")
        else:
            line.append("error: ", style="bold red")
        line.append(problem.message)
        line.append(f" [{problem.slug}]", style="dim")
        console.print(line)
        if problem.hint:
            console.print(Text(f"    {problem.hint}", style="cyan"))
    if len(problems) > 1:
        console.print(Text(f"{len(problems)} problems", style="bold"))


def _crash_file(error: BaseException, command: Sequence[str]) -> Path:
    handle, name = tempfile.mkstemp(prefix="semlens-audit-crash-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(f"semlens-audit {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        stream.write(f"command: {shlex.join(command)}\nfolder: {Path.cwd()}\n\n")
        stream.writelines(traceback.format_exception(error))
    return Path(name)
