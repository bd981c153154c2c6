"""Records from strangers: refused, or shown in every format without a fault and without anything that acts."""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from semlens_audit import exports, screen
from semlens_audit.errors import AuditError, Problem
from semlens_audit.failures import print_problems
from semlens_audit.plain_text import find_hidden
from semlens_audit.record_file import parse_record, record_bytes
from semlens_audit.records import AuditRecord
from semlens_audit.report import render_html
from tests.golden import sample_record
from tests.unit import hostile

GOOD: dict[str, Any] = json.loads(record_bytes(sample_record.small()))
TEXTS = [value for value in hostile.HOSTILE if isinstance(value, str) and len(value) < 3000]
NUMBERS = (0, -1, 1, 2**53, 1e11, -1e11, 1e-320, 0.5, 3)
TRIED = 150


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if path[:1] != ("images",):
            yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def spoilt(rng: random.Random) -> dict[str, Any]:
    record = copy.deepcopy(GOOD)
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(list(places(record)))
        old = holder[key]
        if rng.random() < 0.2:
            del holder[key]
        elif isinstance(old, bool):
            holder[key] = not old
        elif isinstance(old, str):
            holder[key] = rng.choice(TEXTS)
        elif isinstance(old, int | float):
            holder[key] = rng.choice(NUMBERS)
        elif isinstance(old, list):
            holder[key] = rng.choice(([], old[:1], old * 2))
        else:
            holder[key] = copy.deepcopy(rng.choice([{}, old, *TEXTS[:20]]))
    return record


def shown(record: AuditRecord) -> dict[str, Callable[[], str]]:
    """Everything that is made of a record, by name."""

    def on_screen() -> str:
        stream = io.StringIO()
        screen.print_findings(record, [], Console(file=stream, width=200, color_system=None))
        return stream.getvalue()

    formats = {form: (lambda form=form: exports.render(record, form)) for form in exports.FORMATS}
    return {"html": lambda: render_html(record), "screen": on_screen, **formats}


@pytest.mark.slow
def test_whatever_is_changed_is_refused_or_shown() -> None:
    accepted = 0
    for seed in range(TRIED):
        data = json.dumps(spoilt(random.Random(seed))).encode("utf-8", "surrogatepass")
        try:
            record = parse_record(data, "results.json")
        except AuditError:
            continue
        accepted += 1
        for name, make in shown(record).items():
            try:
                text = make()
            except AuditError:
                continue  # said in a sentence
            assert find_hidden(text) is None, (seed, name, find_hidden(text))
    assert TRIED / 10 < accepted < TRIED


PAYLOAD = (
    '<script>alert(1)</script><img src=http://127.0.0.1/x onerror=alert(1)>" onmouseover="alert(1) \' --></style></title>'
    "{{ 7*7 }}{% raw %}[x](javascript:alert(1)) \x1b]0;owned\x07 \x9b2J \u202egnp.exe \u200b \r\n# Heading ]]> &lt;b&gt; `$(id)`"
    " ${{ github.token }}"
)


class _Active(HTMLParser):
    """Collects whatever a browser would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag in ("iframe", "object", "embed", "base", "form", "link", "frame"):
            self.found.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (
                name in ("src", "href", "action", "xlink:href") and not (value or "").startswith(("data:", "#"))
            ):
                self.found.append(f"{tag} {name}={value}")


def flooded() -> AuditRecord:
    """A record with the payload in every text that people write."""
    record = copy.deepcopy(GOOD)
    free = {
        "title", "purpose", "name", "role", "organisation", "version", "intended_purpose", "statement", "description", "label",
        "hazard", "source", "descriptions", "limitations", "rationale", "sample", "sentence", "headline", "agreement", "command", "method",
        "platform", "skipped", "not_measured", "reason", "architecture",
    }  # fmt: skip
    for holder, key in places(record):
        if key in free and isinstance(holder, dict):
            old = holder[key]
            if isinstance(old, str):
                value = PAYLOAD
            elif isinstance(old, list) and all(isinstance(one, str) for one in old):
                value = [PAYLOAD] * len(old)
            else:
                continue
            holder[key] = value
            try:
                parse_record(json.dumps(record).encode(), "x")
            except AuditError:
                holder[key] = old  # one of a few fixed words, or a name that others refer to
    return parse_record(json.dumps(record).encode(), "x")


def test_no_text_of_a_record_acts() -> None:
    record = flooded()
    assert PAYLOAD in (record.title, record.purpose)
    html = render_html(record)
    parser = _Active()
    parser.feed(html)
    plain = _Active()
    plain.feed(render_html(parse_record(json.dumps(GOOD).encode(), "x")))
    assert parser.found == plain.found
    assert set(plain.found) <= {"form"}, "its own filters, whose policy sends nothing anywhere"
    assert parser.scripts == plain.scripts
    assert "49" not in html.split("{{ 7*7 }}")[1][:5]
    for name, make in shown(record).items():
        text = make()
        assert find_hidden(text) is None, name
        if name != "html":
            assert "\x1b" not in text


def test_complaints_show_what_they_complain_of(capsys: pytest.CaptureFixture[str]) -> None:
    print_problems([Problem("x", f"a{PAYLOAD}b", "hint \x1b[2J", "file\x07name.yaml", 1, 2)])
    said = capsys.readouterr().err
    assert find_hidden(said) is None
    assert "[U+001B]" in said
    assert "file[U+0007]name.yaml:1:2" in said
