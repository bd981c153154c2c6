"""YAML as plain values that remember where they stand.

Only what YAML and JSON share is read: mappings with text keys, sequences, text, numbers, true/false, nothing. Scalars follow
the YAML 1.2 core schema, so ``no`` and ``2026-01-01`` are text. The values are built from the parser's events, without
recursion and without running any constructor, so a file can neither execute code nor exhaust memory.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from semlens_audit.bounded import LimitError, TooLargeError, read_bytes
from semlens_audit.digest import digest_bytes
from semlens_audit.errors import Problem, SpecError
from semlens_audit.plain_text import Hidden, find_hidden, visible

__all__ = ["KeyPath", "Source", "SourceMap", "load", "parse"]

KeyPath = tuple[str | int, ...]
"""Keys and indices from the top of the file to a value."""

MAX_BYTES = 256_000
MAX_DEPTH = 50
MAX_ALIASES = 20
MAX_VALUES = 10_000
MAX_KEY = 500
MAX_PROBLEMS = 100

_INT = re.compile(r"[-+]?[0-9]{1,300}|0x[0-9a-fA-F]{1,200}|0o[0-7]{1,200}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


class TooManyProblems(SpecError):  # noqa: N818 - many, each an error of its own
    """A file has so many problems that looking for more helps nobody; those found stand in `Source.problems`."""


@dataclass
class SourceMap:
    """Line and column of every key and value of one file.

    Parameters
    ----------
    file
        Path as the user wrote it.
    keys, values
        Key path -> 1-based (line, column).
    """

    file: str
    keys: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)
    values: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)

    def value(self, path: KeyPath) -> tuple[int, int]:
        """1-based (line, column) of the value at `path`, or of the nearest value around it."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, (1, 1))

    def key(self, path: KeyPath) -> tuple[int, int]:
        """1-based (line, column) of the key that holds the value at `path`, or of the value where it has none."""
        return self.keys[path] if path in self.keys else self.value(path)

    def problem(self, slug: str, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A `Problem` standing at the value (or the key) at `path`."""
        line, column = self.key(path) if at_key else self.value(path)
        return Problem(slug, message, hint, self.file, line, column)


@dataclass
class Source:
    """One file, read.

    Parameters
    ----------
    places
        Where everything stands.
    data
        Plain value of the document: dict, list, str, int, float, bool or None; ``None`` also where it could not be read.
    problems
        What is wrong with it as YAML.
    sha256
        Digest of the file's bytes; empty where the file could not be read.
    text
        The file's content as it stands, a byte order mark included; empty where it could not be read.
    """

    places: SourceMap
    data: Any = None
    problems: list[Problem] = field(default_factory=list)
    sha256: str = ""
    text: str = ""

    def complain(self, slug: str, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> None:
        """Add a `Problem` standing at the value (or the key) at `path`; see `add`."""
        self.add(self.places.problem(slug, path, message, hint, at_key=at_key))

    def add(self, problem: Problem) -> None:
        """Add a problem.

        Raises
        ------
        TooManyProblems
            It is one more than `MAX_PROBLEMS`; `problems` then ends with saying so.
        """
        if len(self.problems) >= MAX_PROBLEMS:
            if len(self.problems) == MAX_PROBLEMS:
                said = f"there are more than {MAX_PROBLEMS} problems; the others are not looked for."
                self.problems.append(Problem("too-many-problems", said, "Mend these first.", self.places.file))
            last = self.problems[-1]
            raise TooManyProblems(last.slug, last.message, last.hint, problems=tuple(self.problems))
        self.problems.append(problem)


class _Stop(Exception):  # noqa: N818 - a way out of the event loop, not an error that anyone meets
    def __init__(self, slug: str, message: str, hint: str, line: int, column: int) -> None:
        super().__init__(message)
        self.parts = (slug, message, hint, line, column)


@dataclass
class _Frame:
    """A mapping or sequence under construction."""

    value: dict[str, Any] | list[Any]
    path: KeyPath
    anchor: str | None
    key: str | None = None
    discard: bool = False
    """The value to come stands under a key that was there before."""


def load(path: Path) -> Source:
    """Read one YAML file.

    Parameters
    ----------
    path
        The file; problems name it as it is written here.

    Returns
    -------
    Source
        Never raises for a bad file: `Source.problems` says what is wrong, and duplicate keys do not hide what follows them.
    """
    file = str(path)

    def missing(message: str, hint: str = "") -> Source:
        return Source(SourceMap(file), problems=[Problem("missing-file", message, hint, file)])

    try:
        content = read_bytes(path, MAX_BYTES)
    except OSError as error:
        return missing(f"cannot be opened: {error.strerror or error}.", "Check the path and its permissions.")
    except TooLargeError:
        return _too_large(file)
    except LimitError as error:
        return missing(f"cannot be read: {error}.", "Check the path.")
    except ValueError:
        return missing("cannot be opened: the path is not a valid file name.")
    return parse(content, file)


def _too_large(file: str) -> Source:
    said, hint = f"is larger than {MAX_BYTES // 1000} kB.", "A spec or audit file is a few kilobytes."
    return Source(SourceMap(file), problems=[Problem("file-too-large", said, hint, file)])


def parse(content: bytes, file: str) -> Source:
    """Read the bytes of one YAML file, as `load` does.

    Parameters
    ----------
    content
        The file's bytes.
    file
        Name that problems give it.
    """
    places = SourceMap(file)
    source = Source(places)

    def failed(slug: str, message: str, hint: str = "", line: int | None = None, column: int | None = None) -> Source:
        source.data = None
        source.problems.append(Problem(slug, message, hint, places.file, line, column))
        return source

    if len(content) > MAX_BYTES:
        return _too_large(file)
    source.sha256 = digest_bytes(content)
    try:
        source.text = content.decode("utf-8")
        text = source.text.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        return failed("not-utf8", f"byte 0x{content[error.start]:02x} is not UTF-8.", "Save the file as UTF-8.", line, column)
    try:
        if _hidden(source, text):
            return source
        source.data = _Builder(source).build(text)
    except TooManyProblems:
        source.data = None
        return source
    except _Stop as stop:
        return failed(*stop.parts)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(" ".join(str(part) for part in (error.problem, error.context) if part).split())
        tab = "'\\t'" in said
        return failed(
            "yaml-syntax",
            f"the YAML cannot be read: {said}.",
            "Indent with spaces, not tabs." if tab else "Check indentation, colons and quotes here and on the line before.",
            mark.line + 1 if mark else None,
            mark.column + 1 if mark else None,
        )
    except (YAMLError, ValueError, KeyError, IndexError, AssertionError, AttributeError, TypeError) as error:
        # The parser's own slips on malformed input are malformed input to the user.
        position = getattr(error, "position", None)
        at = text.count("\n", 0, position) + 1 if isinstance(position, int) else None
        said = " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__
        return failed(
            "yaml-syntax",
            f"the YAML cannot be read: {said}.",
            "Remove control characters and unfinished quotes.",
            at,
        )
    if source.data is None and not source.problems:
        return failed("empty-file", "is empty.", "Start from `semlens-audit init`.", 1, 1)
    return source


def _hidden(source: Source, text: str) -> bool:
    """Complain of every hidden character of a file, those in its comments too; whether there is any."""
    text = text.replace("\r\n", "\n")
    start, line = 0, 1
    while (found := find_hidden(text[start:])) is not None:
        at = start + found.at
        line += text.count("\n", start, at)
        source.add(_complaint(found, source.places.file, line, at - (text.rfind("\n", 0, at) + 1) + 1))
        start = at + 1
    return start > 0


def _complaint(found: Hidden, file: str, line: int, column: int) -> Problem:
    said = f"a {found.kind} ({found.code}) is here: people would not see what programs read."
    return Problem("hidden-character", said, "Remove it.", file, line, column)


class _Builder:
    """Builds plain values and their places from parser events."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.places = source.places
        self.frames: list[_Frame] = []
        self.anchors: dict[str, Any] = {}
        self.aliases = 0
        self.count = 0
        self.documents = 0
        self.result: Any = None

    def build(self, text: str) -> Any:
        """Value of the only document in `text`."""
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self._stop(
                        event,
                        "several-documents",
                        "a second YAML document begins here (`---`).",
                        "Keep one document a file.",
                    )
            elif isinstance(event, NodeEvent):
                self._node(event)
            elif isinstance(event, MappingEndEvent | SequenceEndEvent):
                frame = self.frames.pop()
                if frame.anchor is not None:
                    self.anchors[frame.anchor] = frame.value
        return self.result

    def _stop(self, event: Any, slug: str, message: str, hint: str) -> None:
        raise _Stop(slug, message, hint, event.start_mark.line + 1, event.start_mark.column + 1)

    def _node(self, event: NodeEvent) -> None:
        self.count += 1
        if self.count > MAX_VALUES:
            self._stop(
                event,
                "file-too-large",
                f"holds more than {MAX_VALUES} values.",
                "A spec or audit file holds a few hundred.",
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._stop(
                event,
                "yaml-tag",
                f"the YAML tag {tag} is not allowed.",
                "Write plain text, numbers, lists and mappings.",
            )
        frame = self.frames[-1] if self.frames else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            self._key(event, frame)
            return
        if isinstance(event, AliasEvent):
            self._place(event, self._alias(event))
        elif isinstance(event, ScalarEvent):
            value = self._scalar(event)
            if event.anchor is not None:
                self.anchors[event.anchor] = value
            self._place(event, value)
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            if len(self.frames) >= MAX_DEPTH:
                self._stop(event, "too-deep", f"is nested deeper than {MAX_DEPTH} levels.", "A spec needs four.")
            value = {} if isinstance(event, MappingStartEvent) else []
            path = self._place(event, value)
            self.frames.append(_Frame(value, path, event.anchor))

    def _key(self, event: NodeEvent, frame: _Frame) -> None:
        """Take `event` as the next key of a mapping."""
        if not isinstance(event, ScalarEvent):
            self._stop(event, "bad-key", "a key must be plain text here.", "Write `key: value`.")
            return
        if event.value == "<<":
            self._stop(event, "bad-key", "merge keys (`<<`) are not supported.", "Write the keys out.")
        if len(event.value) > MAX_KEY:
            self._stop(event, "bad-key", f"a key has {len(event.value)} characters.", f"Keys have at most {MAX_KEY}.")
        frame.key = self._text(event)
        path = (*frame.path, frame.key)
        assert isinstance(frame.value, dict)
        frame.discard = frame.key in frame.value
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if frame.discard:
            first = self.places.keys[path][0]
            self.source.add(
                Problem(
                    "duplicate-key",
                    f"the key `{frame.key}` is here twice (first on line {first}).",
                    "Keep one of them.",
                    self.places.file,
                    line,
                    column,
                )
            )
        else:
            self.places.keys[path] = (line, column)

    def _place(self, event: NodeEvent, value: Any) -> KeyPath:
        """Put `value` where it belongs and remember its place."""
        path: KeyPath = ()
        if not self.frames:
            self.result = value
        else:
            frame = self.frames[-1]
            if isinstance(frame.value, list):
                path = (*frame.path, len(frame.value))
                frame.value.append(value)
            else:
                key = frame.key
                assert key is not None
                frame.key = None
                if frame.discard:
                    return (*frame.path, f"{key} (again)")
                path = (*frame.path, key)
                frame.value[key] = value
        self.places.values[path] = (event.start_mark.line + 1, event.start_mark.column + 1)
        return path

    def _alias(self, event: AliasEvent) -> Any:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            self._stop(event, "yaml-alias", f"has more than {MAX_ALIASES} aliases (`*name`).", "Write the values out.")
        if event.anchor not in self.anchors:
            self._stop(
                event,
                "yaml-alias",
                f"the alias `*{event.anchor}` refers to nothing finished before it.",
                "Write the value out.",
            )
        value = self.anchors[event.anchor]
        self.count += _size(value)
        if self.count > MAX_VALUES:
            self._stop(
                event,
                "yaml-alias",
                f"aliases make the file hold more than {MAX_VALUES} values.",
                "Write the values out.",
            )
        if len(self.frames) + _depth(value) > MAX_DEPTH:
            self._stop(event, "too-deep", f"is nested deeper than {MAX_DEPTH} levels.", "A spec needs four.")
        return copy.deepcopy(value)

    def _text(self, event: ScalarEvent) -> str:
        text = str(event.value)
        found = find_hidden(text)
        if found is not None and found.kind == "half of a character":
            self._stop(event, "not-utf8", "an escape here is half a character.", "Write the character itself.")
        if found is not None:  # written as an escape, else it would have been seen in the file
            mark = event.start_mark
            self.source.add(_complaint(found, self.places.file, mark.line + 1, mark.column + 1))
            return visible(text)
        return text

    def _scalar(self, event: ScalarEvent) -> Any:
        """Value of a scalar under the YAML 1.2 core schema; quoted and block scalars are always text."""
        text = self._text(event)
        if event.style is not None:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        return text


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _size(value: Any) -> int:
    """Number of values in `value`, itself included."""
    return 1 + sum(_size(child) for child in _children(value))


def _depth(value: Any) -> int:
    """Nesting levels of `value`: 0 for a scalar."""
    children = _children(value)
    return 1 + max((_depth(child) for child in children), default=0) if isinstance(value, dict | list) else 0
