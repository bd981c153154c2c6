"""Vocabularies: what a file may hold, what is said where it holds something else, and what does not depend on how it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.atlas import vocabulary as words
from semlens_audit.atlas import vocabulary_files as files
from semlens_audit.atlas.vocabulary import VocabularyError
from semlens_audit.errors import ExitCode
from semlens_audit.plain_text import find_hidden
from semlens_audit.resources import specs_dir
from tests.unit import index_world


def written(tmp_path: Path, content: str | bytes, name: str = "words.txt") -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def refused(name: str) -> list[tuple[str, int | None, int | None]]:
    with pytest.raises(VocabularyError) as caught:
        files.read_vocabulary(name)
    assert caught.value.exit_code == ExitCode.USAGE
    assert all(problem.file == name and problem.hint for problem in caught.value.problems)
    return [(problem.slug, problem.line, problem.column) for problem in caught.value.problems]


# -- words on lines -----------------------------------------------------------------------------------------------------------


def test_words_come_without_comments_and_blank_lines_in_an_order_of_their_own(tmp_path: Path) -> None:
    name = written(tmp_path, "\ufeff# animals\n\n  zebra \nA  Dog # the pet\r\nC# major\n\t\nßtrasse\nслон\n縞馬\nحمار\n")
    found = files.read_vocabulary(name)
    assert found.words == ("A Dog", "C# major", "ßtrasse", "zebra", "слон", "حمار", "縞馬")
    assert found.read == 7
    assert not found.examples
    assert not found.notes
    turned = files.read_vocabulary(written(tmp_path, "縞馬\nслон\nحمار\nzebra\nßtrasse\nC# major\nA Dog\n", "other.txt"))
    assert (turned.words, turned.sha256) == (found.words, found.sha256)
    assert files.read_vocabulary(written(tmp_path, "zebra\n", "less.txt")).sha256 != found.sha256


def test_what_stands_there_twice_counts_once_and_is_noted(tmp_path: Path) -> None:
    name = written(tmp_path, "Ruler\nhair\nruler\n RULER \nﬁlm\nfilm\n")
    found = files.read_vocabulary(name)
    assert found.words == ("ﬁlm", "hair", "Ruler")
    assert found.notes == (
        f"{name}: 3 entries stand there already, but for case, white space or Unicode form, and count once ({name}:3, {name}:4, {name}:6).",
    )


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (b"", [("empty-vocabulary", None, None)]),
        (b"# nothing\n\n", [("empty-vocabulary", None, None)]),
        (b"dog\ncat\xff\n", [("not-utf-8", 2, 4)]),
        (b"\xff\xfed\x00o\x00g\x00", [("not-utf-8", 1, 1)]),
        ("dog\nd\u202eog\nca\u200bt\n".encode(), [("hidden-character", 2, None), ("hidden-character", 3, None)]),
        (b"dog\x00\n", [("hidden-character", 1, None)]),
        (b"dog\n\x0b\n", [("hidden-character", 2, None)]),
        (b"x" * 201 + b"\n", [("word-too-long", 1, None)]),
        ("two\u2028lines\n".encode(), [("hidden-character", 1, None)]),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, content: bytes, problems: list[tuple[str, int, int]]) -> None:
    assert refused(written(tmp_path, content)) == problems


def test_a_missing_file_a_folder_and_too_many_problems(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "none.txt")) == [("missing-vocabulary", None, None)]
    with pytest.raises(VocabularyError, match="dermoscopy, general, spec"):
        files.read_vocabulary("no-such-name")
    assert refused(str(tmp_path)) == [("bad-vocabulary", None, None)]
    assert len(refused(written(tmp_path, "a\u200bb\n" * 50))) == words.PROBLEMS


def test_a_million_words_are_read_and_one_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the bound itself, with a smaller number, and that nothing grows faster than the file
    monkeypatch.setattr(files, "MOST", 20_000)
    lines = [f"word {i}" for i in range(20_000)]
    assert len(files.read_vocabulary(written(tmp_path, "\n".join(lines))).words) == 20_000
    assert refused(written(tmp_path, "\n".join([*lines, *lines[:5], "more"]), "more.txt")) == [("vocabulary-too-long", 20_006, None)]


SEEN = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8).filter(lambda text: find_hidden(text) is None)
"""Letters and digits; U+115F, a letter, is not seen."""


@settings(max_examples=50, deadline=None)
@given(st.lists(SEEN, min_size=1, max_size=12))
def test_order_and_repetition_change_nothing(texts: list[str]) -> None:
    once = words.of_words(list({words.fold(text): text for text in texts if words.fold(text)}.values()) or ["a"])
    assert words.joined([once, once]).words == once.words
    assert words.of_words(once.words[::-1]).sha256 == once.sha256
    assert list(once.words) == sorted(once.words, key=words.fold)
    with pytest.raises(VocabularyError, match="twice"):
        words.of_words([*once.words, f"  {once.words[0]}"])


# -- words with images --------------------------------------------------------------------------------------------------------


def test_a_table_gives_words_their_images(tmp_path: Path) -> None:
    rows = ["ruler,a.png,1 2 30 40", '"hair, dark",b/c.png,', 'Ruler,d.png,"[0,0,5,5]"', "plain,,", "ruler,a.png,1 2 30 40"]
    table = "\n".join(["# mine", "word,image,box", *rows])
    name = written(tmp_path, table, "words.csv")
    found = files.read_vocabulary(name)
    assert found.words == ("plain", "hair, dark", "ruler")
    assert found.read == 1
    assert [(one.image, one.box, one.line) for one in found.examples["ruler"]] == [
        (tmp_path / "a.png", (1, 2, 30, 40), 3),
        (tmp_path / "d.png", (0, 0, 5, 5), 5),
    ]
    assert found.examples["hair, dark"][0].box is None
    assert "1 entry stands there already" in found.notes[0]
    assert f"{name}:7" in found.notes[0]


@pytest.mark.parametrize(
    ("table", "problems"),
    [
        ("name,image\nruler,a.png\n", [("bad-columns", 1, None)]),
        ("word,word\nruler,a.png\n", [("bad-columns", 1, None)]),
        ("word,image\na, b, c.png\n", [("bad-row", 2, None)]),
        ("word,image,box\nr,a.png,1 2 3\nr,a.png,4 4 4 9\nr,a.png,x\n", [("bad-box", n, None) for n in (2, 3, 4)]),
        ("word,image,box\nr,,1 2 3 4\n", [("box-without-image", 2, None)]),
        ('word,image\n"r,a.png\n', [("bad-csv", 2, None)]),
        ("word,image\nr,a\u202e.png\n", [("hidden-character", 2, None)]),
        ("word,image\n,a.png\n", [("empty-word", 2, None)]),
        ("word,image\n", [("empty-vocabulary", None, None)]),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, table: str, problems: list[tuple[str, int, None]]) -> None:
    assert refused(written(tmp_path, table, "words.csv")) == problems


def test_a_list_in_yaml(tmp_path: Path) -> None:
    name = written(tmp_path, "- plain\n- {word: ruler, image: a.png, box: [1, 2, 3, 4]}\n- {word: ruler, image: b.png}\n", "w.yaml")
    found = files.read_vocabulary(name)
    assert found.words == ("plain", "ruler")
    assert [one.box for one in found.examples["ruler"]] == [(1, 2, 3, 4), None]
    bad = written(tmp_path, "- 3\n- {word: a, picture: b}\n- {word: a, image: b, box: [1, x, 3, 4]}\n", "bad.yaml")
    assert refused(bad) == [("bad-entry", 1, 3), ("bad-entry", 2, 3), ("bad-entry", 3, 3)]
    assert refused(written(tmp_path, "word: a\n", "map.yaml")) == [("bad-vocabulary", 1, 1)]


def test_the_spec_as_a_vocabulary(tmp_path: Path) -> None:
    plan = index_world.plan(tmp_path)
    assert words.of_spec(plan, text=True).words == ("a ruler", "a scale", "an irregular border", "ruler marks")
    pictured = words.of_spec(plan, text=False)
    assert pictured.words == ("border",)
    assert [one.image for one in pictured.examples["border"]] == [tmp_path / "examples/a.png"] * 2


# -- those that come with the tool ----------------------------------------------------------------------------------------------


def test_shipped_vocabularies_are_clean_and_licensed() -> None:
    assert files.shipped_vocabularies() == ("dermoscopy", "general")
    general, dermoscopy = files.read_vocabulary("general"), files.read_vocabulary("dermoscopy")
    assert len(general.words) == 20_000
    assert 50 < len(dermoscopy.words) < 200
    assert not general.notes
    assert not dermoscopy.notes
    assert {"zebra", "round", "spotted", "ruler", "red", "snow"} <= set(general.words)
    assert "ruler marks" in dermoscopy.words
    licence = (specs_dir() / "vocabularies" / "WORDNET-LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
