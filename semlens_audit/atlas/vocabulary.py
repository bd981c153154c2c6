"""Vocabularies: the words, or the words with example images, that components are labelled with."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from semlens_audit.digest import digest
from semlens_audit.errors import AuditError, ExitCode, Problem
from semlens_audit.paths import examples_root
from semlens_audit.plain_text import find_hidden, one_line
from semlens_audit.plan import AuditPlan

__all__ = [
    "LONGEST",
    "PROBLEMS",
    "SPEC",
    "Gathering",
    "Vocabulary",
    "VocabularyError",
    "WordExample",
    "complaint",
    "fold",
    "joined",
    "not_empty",
    "of_spec",
    "of_words",
    "refuse",
]

PROBLEMS = 20
"""Problems of a vocabulary that are told."""

LONGEST = 200
"""Characters that a word or phrase may have."""

SPEC = "spec"
"""Name of the vocabulary that is made of the concepts of the audit's own spec."""

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
class Gathering:
    """Words as they are read; the first spelling stands, and what repeats it counts once."""

    words: dict[str, str] = field(default_factory=dict)
    examples: dict[str, dict[WordExample, None]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    repeats: int = 0

    def add(self, word: str, example: WordExample | None, file: str, line: int) -> None:
        """Add a word that `complaint` has nothing to say of; line 0 where there are no lines."""
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
        """The vocabulary of all that was added."""
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
    gathered, problems = Gathering(), list[Problem]()
    for word in words:
        problem = complaint(word, name, None)
        if problem is None and fold(word) in gathered.words:
            problem = Problem("repeated-word", f"{one_line(word, 60)!r} is given twice.", "Give every word once.", name)
        if problem is not None:
            problems.append(problem)
        else:
            gathered.add(word, None, name, 0)
    refuse(problems)
    return not_empty(gathered.made(name), name)


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
    gathered, root = Gathering(), examples_root(plan)
    for concept in plan.spec.concepts:
        for description in concept.descriptions if text else ():
            gathered.add(description, None, plan.spec_file, 0)
        for one in () if text else concept.examples:
            gathered.add(concept.label, WordExample(root / one.image, one.box, plan.spec_file), plan.spec_file, 0)
    return not_empty(gathered.made(f"concepts of {plan.spec.spec}"), plan.spec_file)


def joined(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """Several vocabularies as one; what stands in more than one of them counts once, with all its images."""
    if len(vocabularies) == 1:
        return vocabularies[0]
    gathered = Gathering()
    for one in vocabularies:
        for word in one.words:
            for example in one.examples.get(word, (None,)):
                gathered.add(word, example, one.name, 0)
    gathered.repeats = 0  # that lists overlap is no mistake in any of them
    return gathered.made(", ".join(one.name for one in vocabularies), (note for one in vocabularies for note in one.notes))


def complaint(word: str, file: str, line: int | None) -> Problem | None:
    """What is wrong with a word: hidden characters, none at all, too many."""
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


def refuse(problems: Sequence[Problem]) -> None:
    """Raise the first problems as one error, if there is any."""
    if problems:
        first = problems[0]
        raise VocabularyError(first.slug, first.message, first.hint, problems=tuple(problems[:PROBLEMS]))


def not_empty(vocabulary: Vocabulary, file: str) -> Vocabulary:
    """The vocabulary, refused without words."""
    if not vocabulary.words:
        raise VocabularyError("empty-vocabulary", "The vocabulary holds no word.", "Write at least one.", file=file)
    return vocabulary
