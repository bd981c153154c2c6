"""Text from elsewhere, made safe to look at."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from semlens_audit.plain_text import file_name, find_hidden, json_text, one_line, visible

ORDINARY = [
    "plain, with\na line and\ta tab",
    "Müller, naïve, e\u0301tude, 皮膚病変, جراحة, שלום, हिन्दी क्\u200dष",
    "می\u200cخواهم",
    "👩\u200d🚀 ❤\ufe0f #\ufe0f\u20e3 👍🏽",
    "≤ 0.25 × 10⁻³ – “quotes” … €",
]
HIDDEN = {
    "\x00": "control", "\x07": "control", "\x1b": "control", "\r": "control", "\x7f": "control", "\x85": "control",
    "\x9b": "control", "\u202a": "direction", "\u202e": "direction", "\u2066": "direction", "\u2069": "direction",
    "\u200f": "direction", "\u061c": "direction", "\u200b": "not seen", "\u200d": "not seen", "\u2060": "not seen",
    "\ufeff": "not seen", "\u00ad": "not seen", "\u3164": "not seen", "\ufe0f": "not seen", "\U000e0041": "not seen",
    "\U000e0100": "not seen", "\u2028": "separator", "\u2029": "separator", "\ud800": "half",
    "\uffff": "not seen", "\ufdd0": "not seen", "\U0010ffff": "not seen", "\ue000": "private", "\U00100000": "private",
}


@pytest.mark.parametrize("text", ORDINARY)
def test_text_that_people_write_stays_as_it_is(text: str) -> None:
    assert find_hidden(text) is None
    assert visible(text) is text or visible(text) == text


@pytest.mark.parametrize(("character", "kind"), HIDDEN.items(), ids=[f"U+{ord(one):04X}" for one in HIDDEN])
def test_what_is_not_seen_is_written_out(character: str, kind: str) -> None:
    found = find_hidden(f"ab{character}cd")
    assert found is not None
    assert (found.at, found.code) == (2, f"U+{ord(character):04X}")
    assert kind in found.kind
    assert visible(f"ab{character}cd") == f"ab[U+{ord(character):04X}]cd"


def test_a_pile_of_marks_is_cut_at_the_ninth() -> None:
    assert find_hidden("e" + "\u0301" * 8) is None
    found = find_hidden("e" + "\u0301" * 9)
    assert found is not None
    assert (found.at, found.kind) == (9, "pile of combining marks")


def test_nothing_that_a_terminal_or_xml_minds_comes_out() -> None:
    """All of Unicode, each character between two letters."""
    for start in range(0, sys.maxunicode + 1, 4096):
        text = visible("x".join(map(chr, range(start, min(start + 4096, sys.maxunicode + 1)))))
        text.encode("utf-8")
        assert not {unicodedata.category(one) for one in text if one not in "\n\t"} & {"Cc", "Cs", "Co", "Zl", "Zp"}
        assert not any(unicodedata.bidirectional(one) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"} for one in text)


def test_one_line() -> None:
    assert one_line(" a\n\n b\t\x1b[2J ") == "a b [U+001B][2J"
    assert one_line("abcdefghij", 8) == "abcde..."
    assert one_line("abcdefgh", 8) == "abcdefgh"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\Windows\\x.pdf", "C_Windows_x.pdf"),
        ("nul", "_nul"),
        ("COM1.txt", "_COM1.txt"),
        ("Straße café.json", "Strae_cafe.json"),
        ("-rf", "rf"),
        (".ssh", "ssh"),
        ("\x1b\u202e", "_"),
        ("a" * 300, "a" * 100),
        ("", "_"),
    ],
)
def test_file_names_mean_the_same_everywhere(text: str, name: str) -> None:
    assert file_name(text) == name


def test_json_for_a_terminal_is_the_same_value() -> None:
    value = {"name": "caf\u00e9 \x9b2J \u202e \U000e0041 \x1b]0;x\x07", "n": [1, None]}
    text = json_text(value)
    assert json.loads(text) == value
    assert find_hidden(text) is None
    assert "caf\u00e9" in text
