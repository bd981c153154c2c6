"""Vocabularies: the words, or the words with example images, that components are labelled with."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from semlens_audit.bounded import LimitError, read_bytes
from semlens_audit.digest import digest
from semlens_audit.errors import AuditError, ExitCode, Problem
from semlens_audit.paths import examples_root
from semlens_audit.plain_text import find_hidden, one_line
from semlens_audit.plan import AuditPlan
from semlens_audit.resources import specs_dir
from semlens_audit.yaml_source import load

__all__ = [
    "LONGEST",
    "MOST",
    "SPEC",
    "Vocabulary",
    "VocabularyError",
    "WordExample",
    "fold",
    "joined",
    "of_spec",
    "of_words",
    "read_vocabulary",
    "shipped_vocabularies",
]

MOST = 1_000_000
"""Words that a vocabulary may hold."""

LONGEST = 200
"""Characters that a word or phrase may have."""

SPEC = "spec"
"""Name of the vocabulary that is made of the concepts of the audit's own spec."""

_BYTES = 128 << 20
_PROBLEMS = 20
_TOLD = 5


class VocabularyError(AuditError):
    """A vocabulary is invalid; carries the first problems found, in file order."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class WordExample:
    """One image that shows what a word means.

    Parameters
    ----------
    image
        The file.
    box
        Region that shows it: x0, y0, x1, y1 in pixels, x1 and y1 exclusive; ``None``: the whole image.
    file, line
        Where the vocabulary says so; line 0 where it is no file of lines.
    """

    image: Path
    box: tuple[int, int, int, int] | None
    file: str = field(compare=False, default="")
    line: int = field(compare=False, default=0)


@dataclass(frozen=True)
class Vocabulary:
    """Words to choose labels from, in an order that does not depend on how they were written down.

    Parameters
    ----------
    name
        What to call it: names of files, or of what comes with the tool.
    words
        No two alike under `fold`. Those that are read come first, then those that are given by images, each in the order of their
        folded forms.
    examples
        Word -> its images; words that are not here are read by the foundation model.
    notes
        What was done about words that stand there more than once, for the reader; empty where there are none.
    """

    name: str
    words: tuple[str, ...]
    examples: Mapping[str, tuple[WordExample, ...]]
    notes: tuple[str, ...] = ()

    @property
    def read(self) -> int:
        """How many words, the first ones, the foundation model has to read."""
        return len(self.words) - len(self.examples)

    @property
    def sha256(self) -> str:
        """Digest of the words and of where their images lie; not of the order in which they were written."""
        pictured = [[word, [[str(one.image), one.box] for one in self.examples[word]]] for word in self.words[self.read :]]
        return digest([list(self.words[: self.read]), pictured])


def fold(word: str) -> str:
    """What two spellings of the same word share: Unicode NFKC, case-folded, every run of white space one space."""
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())


@dataclass
class _Gathering:
    """Words as they are read; the first spelling stands."""

    words: dict[str, str] = field(default_factory=dict)
    examples: dict[str, dict[WordExample, None]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    repeats: int = 0

    def add(self, word: str, example: WordExample | None, file: str, line: int) -> None:
        key = fold(word)
        known = self.examples.setdefault(key, {}) if example is not None else self.words
        if (example if example is not None else key) in known:
            self.repeats += 1
            if len(self.repeated) < _TOLD:
                self.repeated.append(f"{file}:{line}" if line else one_line(word, 60))
        self.words.setdefault(key, " ".join(word.split()))
        if example is not None:
            self.examples[key].setdefault(example)

    def made(self, name: str, notes: Iterable[str] = ()) -> Vocabulary:
        order = sorted(self.words, key=lambda key: (key in self.examples, key))
        told = list(notes)
        if self.repeats:
            places = ", ".join(self.repeated) + (", ..." if self.repeats > len(self.repeated) else "")
            told.append(
                f"{name}: {self.repeats:,} {'entry stands' if self.repeats == 1 else 'entries stand'} there already, but for case, "
                f"white space or Unicode form, and {'counts' if self.repeats == 1 else 'count'} once ({places})."
            )
        examples = {self.words[key]: tuple(found) for key, found in self.examples.items()}
        return Vocabulary(name, tuple(self.words[key] for key in order), examples, tuple(told))


def of_words(words: Sequence[str], name: str = "words") -> Vocabulary:
    """A vocabulary of words given one by one.

    Raises
    ------
    VocabularyError
        ``repeated-word``, ``empty-vocabulary``, or a word that no file could hold, see `read_vocabulary`.
    """
    gathered, problems = _Gathering(), list[Problem]()
    for word in words:
        problem = _complaint(word, name, None)
        if problem is None and fold(word) in gathered.words:
            problem = Problem("repeated-word", f"{one_line(word, 60)!r} is given twice.", "Give every word once.", name)
        if problem is not None:
            problems.append(problem)
        else:
            gathered.add(word, None, name, 0)
    _refuse(problems)
    return _not_empty(gathered.made(name), name)


def of_spec(plan: AuditPlan, *, text: bool) -> Vocabulary:
    """The concepts of an audit's spec as a vocabulary.

    Parameters
    ----------
    plan
        The audit.
    text
        Whether the foundation model reads: then the words are the concepts' descriptions; else their titles, with their example
        images.

    Raises
    ------
    VocabularyError
        ``empty-vocabulary``.
    """
    gathered, root = _Gathering(), examples_root(plan)
    for concept in plan.spec.concepts:
        for description in concept.descriptions if text else ():
            gathered.add(description, None, plan.spec_file, 0)
        for one in () if text else concept.examples:
            gathered.add(concept.label, WordExample(root / one.image, one.box, plan.spec_file), plan.spec_file, 0)
    return _not_empty(gathered.made(f"concepts of {plan.spec.spec}"), plan.spec_file)


def joined(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """Several vocabularies as one; what stands in more than one of them counts once, with all its images."""
    if len(vocabularies) == 1:
        return vocabularies[0]
    gathered = _Gathering()
    for one in vocabularies:
        for word in one.words:
            for example in one.examples.get(word, (None,)):
                gathered.add(word, example, one.name, 0)
    gathered.repeats = 0  # that lists overlap is no mistake in any of them
    return gathered.made(", ".join(one.name for one in vocabularies), (note for one in vocabularies for note in one.notes))


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
    gathered, problems = _Gathering(), list[Problem]()
    entries = _csv_entries(text, path, name, problems) if kind == ".csv" else _line_entries(text)
    for line, word, example in entries:
        problem = _complaint(word, name, line)
        if problem is not None:
            problems.append(problem)
            if len(problems) >= _PROBLEMS:
                break
            continue
        gathered.add(word, example, name, line)
        if len(gathered.words) > MOST:
            problems.append(_too_many(name, line))
            break
    _refuse(problems)
    return _not_empty(gathered.made(name), name)


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
    problems, gathered = list(source.problems), _Gathering()
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
        problem = _complaint(values["word"], name, line)
        if problem is not None:
            problems.append(problem)
        else:
            gathered.add(values["word"], example, name, line)
    _refuse(problems)
    return _not_empty(gathered.made(name), name)


def _complaint(word: str, file: str, line: int | None) -> Problem | None:
    hidden = find_hidden(word)
    if hidden is not None:
        return Problem(
            "hidden-character", f"{one_line(word, 60)!r} holds {hidden.code}, a {hidden.kind}.", "Remove it.", file, line
        )
    if not word.split():
        return Problem("empty-word", "The word is empty.", "Write one, or remove the entry.", file, line)
    if len(word) > LONGEST:
        return Problem(
            "word-too-long",
            f"{one_line(word, 40)!r} has {len(word):,} characters; a word or phrase has at most {LONGEST}.",
            "Shorten it: a foundation model reads a phrase, not a text.",
            file,
            line,
        )
    return None


def _too_many(name: str, line: int) -> Problem:
    return Problem(
        "vocabulary-too-long",
        f"The vocabulary holds more than {MOST:,} words.",
        "Keep the most frequent: every word more makes a label harder to get, since it has to stand out against all of them.",
        name,
        line,
    )


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        first = problems[0]
        raise VocabularyError(first.slug, first.message, first.hint, problems=tuple(problems[:_PROBLEMS]))


def _not_empty(vocabulary: Vocabulary, file: str) -> Vocabulary:
    if not vocabulary.words:
        raise VocabularyError("empty-vocabulary", "The vocabulary holds no word.", "Write at least one.", file=file)
    return vocabulary
