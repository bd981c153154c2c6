"""A program that proposes words for what it is shown, such as an image-captioning model, talked to in lines of JSON.

The program runs beside the audit and not in it: with its own interpreter and libraries, without a shell, once for any number of
components. It first writes one line ``{"name": "...", "version": "..."}``; then, for every line that it reads, one line::

    {"layer": "layer3", "component": 7, "positive": "/tmp/.../positive.png", "contrastive": "/tmp/.../contrastive.png"}
    {"words": ["dark hair", "a ruler"]}

``positive`` and ``contrastive`` are PNG files (see `semlens_audit.atlas.candidate_grids`), the latter null where there are no
contrastive crops; both are gone with the next line. The program ends when its input does. What it writes to its standard error is
shown only if it fails.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from PIL import Image

from semlens_audit.errors import ExecutionError, UsageError
from semlens_audit.plain_text import find_hidden, one_line

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LONGEST_LINE", "MOST_WORDS", "CandidateProgram"]

LONGEST_LINE = 65_536
"""Bytes of one answer."""

MOST_WORDS = 100
"""Words of one answer."""

_NAME = 100
"""Characters of a generator's name or version."""

_CHUNK = 16_384
_KEPT = 2000
"""Bytes of the standard error that are kept, the last ones."""
_ENDING = 5.0


class CandidateProgram:
    """A running program that proposes words, see `semlens_audit.atlas.candidates.CandidateGenerator`; to be used in a ``with`` block.

    Parameters
    ----------
    command
        Program and arguments, divided as a POSIX shell divides words; nothing is expanded.
    seconds
        Longest wait for a line, above 0; the first one comes when the program has loaded its model.

    Attributes
    ----------
    name, version
        What the program calls itself.

    Raises
    ------
    UsageError
        ``bad-candidates``: no program, or one that cannot be started.
    ExecutionError
        ``candidates-failed``: it ends, says nothing in time, or says something else than it should.
    """

    def __init__(self, command: str, seconds: float) -> None:
        self._command, self._seconds = command, seconds
        self._rest, self._errors, self._broken = b"", b"", False
        try:
            parts = shlex.split(command)
        except ValueError as error:
            raise _unusable(f"The command {one_line(command, 80)!r} cannot be read: {error}.") from error
        if not parts:
            raise _unusable("The command is empty.")
        try:
            self._process = subprocess.Popen(
                parts, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise _unusable(f"{one_line(parts[0], 80)} cannot be started: {why}.") from error
        self.program = Path(parts[0]).name
        self._folder = tempfile.TemporaryDirectory(prefix="semlens-audit-")
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=1)
        self._closing = threading.Event()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = (
            threading.Thread(target=self._read_answers, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True),
        )
        for reader in self._readers:
            reader.start()
        try:
            greeting = self._answer(("name", "version"))
            self.name, self.version = (self._called(greeting, key) for key in ("name", "version"))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def candidates(
        self, positive: Image.Image, contrastive: Image.Image | None, *, layer: str, component: int
    ) -> Sequence[str]:
        """See `semlens_audit.atlas.candidates.CandidateGenerator.candidates`.

        Raises
        ------
        ExecutionError
            ``candidates-failed``.
        """
        with suppress(queue.Empty):
            waiting = self._rest or self._chunks.get_nowait()
            raise self._failed("It answers without being asked." if waiting else "It has ended.")
        question: dict[str, Any] = {"layer": layer, "component": component}
        for name, image in (("positive", positive), ("contrastive", contrastive)):
            path = Path(self._folder.name) / f"{name}.png"
            if image is not None:
                image.save(path, "PNG")
            question[name] = None if image is None else str(path)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(question) + "\n").encode("ascii"))
        except OSError as error:
            raise self._failed("It has ended.") from error
        words = self._answer(("words",))["words"]
        if not isinstance(words, list) or len(words) > MOST_WORDS or not all(isinstance(word, str) for word in words):
            raise self._failed(f"`words` is no list of at most {MOST_WORDS} texts.")
        return tuple(words)

    def close(self) -> None:
        """End the program, and whatever it has started."""
        process = self._process
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        self._closing.set()
        with suppress(subprocess.TimeoutExpired):
            # Asked to end by the end of its input; one that has failed is not waited for.
            process.wait(timeout=0.0 if self._broken else _ENDING)
        _kill(process)
        process.wait()
        with suppress(queue.Empty):
            while True:
                self._chunks.get_nowait()
        for reader in self._readers:
            reader.join(timeout=_ENDING)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def _answer(self, keys: Sequence[str]) -> dict[str, Any]:
        """The next line, which has to be an object with these keys."""
        line = self._line()
        try:
            found = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._failed(f"{one_line(line[:200].decode('utf-8', errors='replace'), 60)!r} is no JSON in UTF-8.") from error
        if not isinstance(found, dict) or any(key not in found for key in keys):
            wanted = ", ".join(f'"{key}": ...' for key in keys)
            raise self._failed(f"{one_line(json.dumps(found), 60)!r} is not {{{wanted}}}.")
        return found

    def _line(self) -> bytes:
        until = time.monotonic() + self._seconds
        while b"\n" not in self._rest:
            if len(self._rest) > LONGEST_LINE:
                break
            try:
                chunk = self._chunks.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise self._failed(f"It has said nothing for {self._seconds:g} s.", "Give it more time: --candidate-seconds.") from None
            if not chunk:
                raise self._failed("It has ended.")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        if len(line) > LONGEST_LINE:
            raise self._failed(f"A line has more than {LONGEST_LINE:,} bytes.")
        return line

    def _called(self, greeting: dict[str, Any], key: str) -> str:
        value = greeting[key]
        if not isinstance(value, str) or not value.strip() or len(value) > _NAME or find_hidden(value) is not None:
            raise self._failed(f"`{key}` is no text of 1 to {_NAME} characters that can all be seen.")
        return " ".join(value.split())

    def _failed(self, what: str, hint: str = "") -> ExecutionError:
        self._broken = True
        with suppress(subprocess.TimeoutExpired):  # whoever has closed its output is about to end, and to say why
            self._process.wait(timeout=0.2)
            self._readers[1].join(timeout=1.0)
        said = one_line(self._errors.decode("utf-8", errors="replace"))[-400:]
        code = self._process.poll()
        ended = "" if code is None else f" Exit status {code}."
        return ExecutionError(
            "candidates-failed",
            f"The generator of candidates, {one_line(self.program, 60)}, cannot be used. {what}{ended}{said and f' It said: {said}'}",
            hint or "Mend the program: it writes a line with its name and version, then one line for every line that it reads.",
        )

    def _read_answers(self, stream: IO[bytes]) -> None:
        chunk = b"begun"
        while chunk and not self._closing.is_set():
            try:
                chunk = stream.read(_CHUNK)
            except (OSError, ValueError):
                chunk = b""
            while not self._closing.is_set():
                with suppress(queue.Full):
                    self._chunks.put(chunk, timeout=0.1)
                    break

    def _read_errors(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            while chunk := stream.read(_CHUNK):
                self._errors = (self._errors + chunk)[-_KEPT:]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that has a session of its own, with all in it."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _unusable(what: str) -> UsageError:
    return UsageError("bad-candidates", what, 'Write the program and its arguments, e.g. --candidates "python caption.py".')
