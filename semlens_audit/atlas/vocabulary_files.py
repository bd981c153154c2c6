"""Files of vocabularies: words on lines, and tables of words with example images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from semlens_audit.atlas.vocabulary import (
    PROBLEMS,
    SPEC,
    Gathering,
    Vocabulary,
    VocabularyError,
    WordExample,
    complaint,
    not_empty,
    refuse,
)
from semlens_audit.bounded import LimitError, read_bytes
from semlens_audit.errors import Problem
from semlens_audit.plain_text import find_hidden, one_line
from semlens_audit.resources import specs_dir
from semlens_audit.yaml_source import load

__all__ = ["MOST", "read_vocabulary", "shipped_vocabularies"]

MOST = 1_000_000
"""Words that a vocabulary may hold."""

_BYTES = 128 << 20


def shipped_vocabularies() -> tuple[str, ...]:
    """Names of the vocabularies that come with the tool, sorted."""
    return tuple(sorted(path.stem for path in (specs_dir() / "vocabularies").glob("*.txt")))


def read_vocabulary(name: str) -> Vocabulary:
    """Read a vocabulary file, or one of those that come with the tool.

    - Anything but ``.csv``, ``.yaml`` and ``.yml``: a word or phrase on each line; ``#`` begins a comment, at the beginning of a
      line or after white space; empty lines do not count.
    - ``.csv``: a table with the column ``word`` and, if wanted, ``image`` and ``box`` (``x0 y0 x1 y1`` in pixels). Rows with the
      same word are more examples of it; without an image the word is read.
    - ``.yaml``, ``.yml``: a list of words and of mappings with the keys ``word``, ``image`` and ``box``, up to 256 kB.

    Images are relative to the vocabulary's folder. A word that has images anywhere in the vocabulary is given by them alone.

    An entry that stands there twice, but for case, white space or Unicode form, counts once, which is noted: it could not change any
    label, and lists gathered from elsewhere have some. Hidden characters and those that turn the direction of text are refused, as
    are words longer than `LONGEST`, more than `MOST` words, and bytes that are no UTF-8.

    Parameters
    ----------
    name
        Path of the file; or, where there is no such file, a name among `shipped_vocabularies`.

    Raises
    ------
    VocabularyError
        Naming file, line and column of each of the first problems.
    """
    path = Path(name)
    if not path.exists() and name in shipped_vocabularies():
        return _read(specs_dir() / "vocabularies" / f"{name}.txt", name)
    return _read(path, name)


def _read(path: Path, name: str) -> Vocabulary:
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml"):
        return _read_yaml(path, name)
    text = _decoded(_content(path, name), name)
    gathered, problems = Gathering(), list[Problem]()
    entries = _csv_entries(text, path, name, problems) if kind == ".csv" else _line_entries(text)
    for line, word, example in entries:
        problem = complaint(word, name, line)
        if problem is not None:
            problems.append(problem)
            if len(problems) >= PROBLEMS:
                break
            continue
        gathered.add(word, example, name, line)
        if len(gathered.words) > MOST:
            problems.append(_too_many(name, line))
            break
    refuse(problems)
    return not_empty(gathered.made(name), name)


def _content(path: Path, name: str) -> bytes:
    try:
        return read_bytes(path, _BYTES)
    except OSError as error:
        known = ", ".join((*shipped_vocabularies(), SPEC))
        raise VocabularyError(
            "missing-vocabulary", f"The vocabulary cannot be opened: {error.strerror or error}.",
            f"Name a file, or one of those that come with the tool: {known}.", file=name,
        ) from error  # fmt: skip
    except LimitError as error:
        raise VocabularyError(
            "bad-vocabulary", f"The vocabulary cannot be read: {error}.", "Name a text file with a word on each line.", file=name
        ) from error


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        raise VocabularyError(
            "not-utf-8",
            f"The byte 0x{content[error.start]:02X} is no UTF-8.",
            "Save the file as UTF-8.",
            file=name,
            line=before.count(b"\n") + 1,
            column=len(before[before.rfind(b"\n") + 1 :].decode("utf-8", errors="replace")) + 1,
        ) from error


def _line_entries(text: str) -> Iterator[tuple[int, str, None]]:
    # not splitlines: it would part lines at characters that are refused
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        word = line
        place = line.find("#")
        while place > 0 and not line[place - 1].isspace():
            place = line.find("#", place + 1)
        if place >= 0:
            word = line[:place]
        # only blanks: what else Python strips may be hidden characters
        word = word.strip(" \t\n")
        if word:
            yield number, word, None


def _csv_entries(
    text: str, path: Path, name: str, problems: list[Problem]
) -> Iterator[tuple[int, str, WordExample | None]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    head: list[str] = []
    try:
        for row in reader:
            line = reader.line_num
            if not any(cell.strip() for cell in row) or row[0].lstrip().startswith("#"):
                continue
            if not head:
                head = [cell.strip().lower() for cell in row]
                wrong = [cell for cell in head if cell not in ("word", "image", "box")]
                if "word" not in head or wrong or len(set(head)) < len(head):
                    problems.append(
                        Problem("bad-columns", f"The columns are {', '.join(map(repr, head))}.", "Begin with: word,image,box", name, line)
                    )
                    return
                continue
            if len(row) > len(head):
                text_ = f"The row has {len(row)} cells, the heading {len(head)}."
                problems.append(Problem("bad-row", text_, 'Put a word with a comma between quotes: "a, b".', name, line))
                continue
            cells = dict(zip(head, (cell.strip(" \t") for cell in row), strict=False))
            box = _csv_box(cells.get("box", ""), name, line, problems)
            example = _example(cells.get("image", ""), box, path, name, line, problems)
            yield line, cells["word"], example
    except csv.Error as error:
        problems.append(Problem("bad-csv", f"This is no CSV: {error}.", "Check the quotes.", name, reader.line_num))


def _csv_box(cell: str, name: str, line: int, problems: list[Problem]) -> tuple[int, ...] | None:
    parts = cell.replace(",", " ").strip("[]() ").split()
    if not parts:
        return None
    if all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        return tuple(int(part) for part in parts)
    problems.append(Problem("bad-box", f"{one_line(cell, 60)!r} is no box.", "Write x0 y0 x1 y1 in pixels.", name, line))
    return None


def _example(
    image: str, box: Sequence[int] | None, path: Path, name: str, line: int, problems: list[Problem]
) -> WordExample | None:
    hidden = find_hidden(image)
    if hidden is not None:
        problems.append(
            Problem("hidden-character", f"The image's path holds {hidden.code}, a {hidden.kind}.", "Remove it.", name, line)
        )
        return None
    if not image:
        if box is not None:
            problems.append(Problem("box-without-image", "A box without an image.", "Name the image, or leave out the box.", name, line))
        return None
    if box is not None and (len(box) != 4 or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3])):
        problems.append(
            Problem("bad-box", f"{list(box)} is no box.", "Write x0 y0 x1 y1 in pixels, x0 < x1 and y0 < y1.", name, line)
        )
        return None
    return WordExample(path.parent / image, None if box is None else (box[0], box[1], box[2], box[3]), name, line)


def _read_yaml(path: Path, name: str) -> Vocabulary:
    source = load(path)
    problems, gathered = list(source.problems), Gathering()
    entries = source.data if not problems else []
    if not isinstance(entries, list):
        problems.append(source.places.problem("bad-vocabulary", (), "A vocabulary is a list.", "Begin every word with `- `."))
        entries = []
    for position, entry in enumerate(entries):
        line, column = source.places.value((position,))
        values = {"word": entry} if isinstance(entry, str) else entry
        if not isinstance(values, dict) or not isinstance(values.get("word"), str) or set(values) - {"word", "image", "box"}:
            problems.append(
                Problem("bad-entry", "An entry is a word, or has the keys word, image and box.", "Mend it.", name, line, column)
            )
            continue
        image, box = values.get("image", ""), values.get("box")
        if not isinstance(image, str) or not (box is None or isinstance(box, list) and all(type(one) is int for one in box)):
            problems.append(Problem("bad-entry", "image is a path, box four whole numbers.", "Mend it.", name, line, column))
            continue
        example = _example(image, box, path, name, line, problems)
        problem = complaint(values["word"], name, line)
        if problem is not None:
            problems.append(problem)
        else:
            gathered.add(values["word"], example, name, line)
    refuse(problems)
    return not_empty(gathered.made(name), name)


def _too_many(name: str, line: int) -> Problem:
    return Problem(
        "vocabulary-too-long",
        f"The vocabulary holds more than {MOST:,} words.",
        "Keep the most frequent: every word more makes a label harder to get, since it has to stand out against all of them.",
        name,
        line,
    )
