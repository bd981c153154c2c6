"""The section on what changed since the last release."""

from __future__ import annotations

import pytest

from semlens_audit import change, report
from semlens_audit.change_pages import Change, ChangeRow
from semlens_audit.change_pages import change as section
from semlens_audit.change_screen import markdown, print_change
from semlens_audit.change_words import CHANGE_GLYPHS, CHANGE_WORDS, GRAVITY, format_difference, ranked
from semlens_audit.figures import PAPER, SCREEN
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import ChangeRecord
from tests.golden.released_record import released
from tests.golden.sample_record import sample


def compared() -> AuditRecord:
    record = released(sample("shortcut"))
    assert record.change is not None
    return record


def rows(page: Change) -> list[ChangeRow]:
    return [row for table in page.tables for row in table.rows]


def test_every_entry_stands_in_one_row_the_gravest_first() -> None:
    record = compared()
    page = section(record, SCREEN)
    assert page is not None
    assert record.change is not None
    assert len(rows(page)) == len(record.change.entries)
    for table in page.tables:
        order = [GRAVITY.index(next(k for k, v in CHANGE_WORDS.items() if v == row.badge.word.lower())) for row in table.rows]
        assert order == sorted(order)
    assert all(row.badge.glyph in CHANGE_GLYPHS.values() for row in rows(page))
    assert set(CHANGE_GLYPHS) == set(CHANGE_WORDS) == set(GRAVITY)


def test_each_difference_is_drawn_around_zero_and_said_in_words() -> None:
    for palette in (SCREEN, PAPER):
        page = section(compared(), palette)
        assert page is not None
        drawn = [row for row in rows(page) if row.figure is not None]
        assert drawn
        for row in drawn:
            assert row.figure is not None
            assert row.difference in row.figure.alt
            assert row.badge.word.lower() in row.figure.alt
        assert all(row.note or row.figure for row in rows(page))


def test_without_a_baseline_the_section_says_so() -> None:
    assert section(sample("shortcut"), SCREEN) is None
    assert "No earlier record was given as a baseline" in report.render_html(sample("shortcut"))


def test_a_refused_comparison_shows_its_reason_and_no_table() -> None:
    record = sample("shortcut")
    other = record.model_copy(update={"spec": record.spec.model_copy(update={"name": "other"})})
    held = record.model_copy(update={"change": change.compare(other, record)})
    page = section(held, SCREEN)
    assert page is not None
    assert not page.compared
    assert not page.tables
    text = report.render_html(held)
    assert "Nothing is compared. The baseline is an audit under another spec" in text
    assert "<em>Not comparable</em>" not in text


def test_the_same_comparison_gives_the_same_bytes() -> None:
    held = compared()
    assert report.render_html(held) == report.render_html(AuditRecord.model_validate_json(held.model_dump_json()))


def test_differences_carry_their_sign() -> None:
    record = compared()
    assert record.change is not None
    said = {entry.label: format_difference(entry.difference) for entry in record.change.entries}
    assert said["worsened"].startswith("+")
    assert said["fixed"].startswith("−")
    assert said["not_comparable"] == "–"


def hostile() -> ChangeRecord:
    found = compared().change
    assert found is not None
    bad = "a|b](http://x) <script> @all\n\x1b[2J`x`\u202e"
    entries = tuple(entry.model_copy(update={"finding": bad, "sentence": bad}) for entry in found.entries)
    return found.model_copy(update={"entries": entries, "sentence": bad})


def test_markdown_and_terminal_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table = markdown(hostile())
    assert "<script>" not in table
    assert "](" not in table.replace("\\]", "")
    assert "@all" not in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(hostile().entries)
    unescaped = lines[2].replace("\\|", "").replace("&#124;", "")
    assert unescaped.count("|") == 6
    print_change(hostile())
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said
    assert "\u202e" not in said + table


def test_ranking_is_stable() -> None:
    found = compared().change
    assert found is not None
    assert [entry.label for entry in ranked(found)] == sorted((entry.label for entry in found.entries), key=GRAVITY.index)


def test_no_entry_is_left_out_whatever_its_unit() -> None:
    record = compared()
    assert record.change is not None
    first = next(entry for entry in record.change.entries if entry.difference is not None and entry.difference.unit == "difference")
    assert first.difference is not None
    odd = first.model_copy(update={"difference": first.difference.model_copy(update={"unit": "share"})})
    entries = tuple(odd if entry is first else entry for entry in record.change.entries)
    page = section(record.model_copy(update={"change": record.change.model_copy(update={"entries": entries})}), SCREEN)
    assert page is not None
    assert len(rows(page)) == len(entries)
