"""Waivers files: what is complained about and where, whom a model belongs to, who a person is, and adding without disturbing."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semlens_audit import waiver_file, waivers
from semlens_audit.errors import ExitCode, UsageError, WaiverError
from semlens_audit.plan import Criterion
from semlens_audit.records import Finding
from semlens_audit.waivers import Scope, Waiver, covers, faults, person
from semlens_audit.yaml_source import load
from tests.golden.sample_record import small

GOOD = """\
# why we have this file
waivers:
  - check: no-ruler   # the ruler
    where: layer3
    scope: {versions: ">=2025,<2026"}
    justification: The archive shows rulers beside suspicious lesions; the next set crops them away.
    owner: Max Muster
    approver: Dr. Ada Example
    created: 2025-11-01
    expires: 2026-02-01
    ticket: QA-1
    revalidate_on: new weights
    ceiling: 0.7
"""


def waiver(**more: object) -> Waiver:
    fields: dict[str, object] = {
        "check": "no-ruler",
        "scope": Scope(versions=">=2025"),
        "justification": "The archive shows rulers beside suspicious lesions.",
        "owner": "Max Muster",
        "approver": "Ada Example",
        "created": date(2025, 11, 1),
        "expires": date(2026, 2, 1),
        "ticket": "QA-1",
        "revalidate_on": "new weights",
        "ceiling": 0.7,
    }
    return Waiver.model_validate(fields | more)


def said(text: str) -> list[tuple[str, int | None, int | None]]:
    """Slug, line and column of everything that is wrong with a file."""
    try:
        problems = waivers.parse(text.encode(), "a.waivers.yaml").problems
    except WaiverError as error:
        problems = error.problems
    return [(problem.slug, problem.line, problem.column) for problem in problems]


# -- reading ------------------------------------------------------------------------------------------------------------------


def test_a_good_file_is_read_with_its_lines_and_its_text(tmp_path: Path) -> None:
    path = tmp_path / "a.waivers.yaml"
    path.write_text(GOOD)
    declared = waivers.read(path)
    (one,) = declared.waivers
    assert (one.check, one.where, one.ceiling, one.expires) == ("no-ruler", "layer3", 0.7, date(2026, 2, 1))
    assert declared.lines == (3,)
    assert declared.problems == ()
    assert declared.document.text == GOOD
    assert declared.document.name == "a.waivers.yaml"
    assert waivers.find(tmp_path / "a.yaml") == declared
    assert waivers.find(tmp_path / "b.yaml") is None
    with pytest.raises(WaiverError, match="missing-file"):
        waivers.find(tmp_path / "b.yaml", tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ticket: QA-1", "tikcet: QA-1", [("missing-key", 3, 5), ("unknown-key", 11, 5)]),
        ("2026-02-01", "2026-02-30", [("bad-date", 10, 14)]),
        ("2026-02-01", "20260201", [("bad-date", 10, 14)]),
        ("2026-02-01", "[1]", [("bad-date", 10, 14)]),
        ("2026-02-01", "'20260201'", [("bad-date", 10, 14)]),
        ("2026-02-01", "soon", [("bad-date", 10, 14)]),
        ("2026-02-01", "2025-10-01", [("expires-early", 10, 14)]),
        ("2026-02-01", "2026-04-30", []),
        ("2026-02-01", "2026-05-01", [("expires-late", 10, 14)]),
        ("Dr. Ada Example", "max  MUSTER", [("self-approved", 8, 15)]),
        ("Dr. Ada Example", "'!?'", [("no-name", 8, 15)]),
        ("Dr. Ada Example", "''", [("empty-value", 8, 15)]),
        ('">=2025,<2026"', "latest", [("bad-versions", 5, 23)]),
        ('">=2025,<2026"', '""', [("bad-versions", 5, 23)]),
        ('{versions: ">=2025,<2026"}', "{}", [("bad-scope", 5, 12)]),
        ('{versions: ">=2025,<2026"}', "{model_sha256: abc}", [("bad-digest", 5, 27)]),
        ('{versions: ">=2025,<2026"}', f'{{model_sha256: {"a" * 64}, versions: ">1"}}', [("bad-scope", 5, 12)]),
        ("The archive shows rulers beside suspicious lesions; the next set crops them away.", "ok", [("short-justification", 6, 20)]),
        ("ceiling: 0.7", "ceiling: high", [("wrong-type", 13, 14)]),
        ("ceiling: 0.7", "ceiling: .nan", [("out-of-range", 13, 14)]),
        ("ceiling: 0.7", "ceiling: .inf", [("out-of-range", 13, 14)]),
        ("check: no-ruler ", "check: No Ruler ", [("bad-id", 3, 12)]),
        ("waivers:\n", "waivers: 3\nx:\n", None),
    ],
)
def test_every_complaint_stands_at_its_place(old: str, new: str, expected: list[tuple[str, int, int]] | None) -> None:
    assert old in GOOD
    found = said(GOOD.replace(old, new))
    assert found == expected if expected is not None else {slug for slug, _, _ in found} >= {"wrong-type", "unknown-key"}


def test_a_waiver_declared_twice_is_one_too_many() -> None:
    again = GOOD + GOOD.split("waivers:\n")[1]
    assert said(again) == [("duplicate-waiver", 14, 5)]
    elsewhere = GOOD + GOOD.split("waivers:\n")[1].replace("layer3", "layer4")
    assert said(elsewhere) == []


def test_all_complaints_at_once_and_in_order() -> None:
    found = said(GOOD.replace("ticket: QA-1", "tikcet: QA-1").replace("2026-02-01", "never").replace("0.7", "x"))
    assert [slug for slug, _, _ in found] == ["missing-key", "bad-date", "unknown-key", "wrong-type"]


def test_the_published_schema_takes_what_is_read_and_refuses_what_is_not(tmp_path: Path) -> None:
    schema = waivers.schema()
    path = tmp_path / "a.yaml"
    for text, valid in ((GOOD, True), (GOOD.replace("ticket", "tikcet"), False), (GOOD.replace('{versions: ">=2025,<2026"}', "{}"), False)):
        path.write_text(text)
        assert jsonschema.Draft202012Validator(schema).is_valid(load(path).data) is valid


def test_a_file_that_cannot_be_read_is_exit_5() -> None:
    assert WaiverError.exit_code is ExitCode.WAIVER
    with pytest.raises(WaiverError, match="yaml-syntax"):
        waivers.parse(b"waivers: [", "a.waivers.yaml")


# -- persons ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ada Example", "ada  example ", True),
        ("Ada Example", "Example, Ada", True),
        ("Ada Example", "Ａｄａ Example", True),  # full width
        ("Ada Exämple", "Ada Exa\u0308mple", True),  # composed or not
        ("Ada Example", "Ada\u200b Exam\u00adple", True),  # nothing to see
        ("STRASSE", "straße", True),
        ("ada@example.org", "Ada@Example.org", True),
        ("Ada Example", "Max Example", False),
        ("Ada", "Ada Example", False),
    ],
)
def test_who_is_the_same_person(one: str, other: str, same: bool) -> None:
    assert (person(one) == person(other)) is same
    slugs = [slug for _, slug, _, _ in faults(waiver(owner=one, approver=other))]
    assert slugs == (["self-approved"] if same else [])


@given(st.text(min_size=1, max_size=30))
def test_nobody_approves_for_themselves_however_they_are_spelt(name: str) -> None:
    for other in (name.upper(), name.lower(), f"  {name}\t", name.replace(" ", "  ")):
        if person(name) and name.upper().casefold() == name.casefold():
            assert person(other) == person(name)


# -- models -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "version", "covered"),
    [
        (Scope(model_sha256="a" * 64), None, True),
        (Scope(model_sha256="b" * 64), "1.0", False),
        (Scope(versions=">=1.0,<2.0"), "1.9.3", True),
        (Scope(versions=">=1.0,<2.0"), "1.5rc1", True),
        (Scope(versions=">=1.0,<2.0"), "2.0", False),
        (Scope(versions=">=1.0,<2.0"), "2.0rc1", False),
        (Scope(versions="==1.*"), "1.4", True),
        (Scope(versions=">=1.0"), None, False),
        (Scope(versions=">=1.0"), "final-v3", False),
        (Scope(versions="nonsense"), "1.0", False),
        (Scope(versions=""), "1.0", False),
        (Scope(), "1.0", False),
    ],
)
def test_which_model_a_waiver_covers(scope: Scope, version: str | None, covered: bool) -> None:
    why = covers(scope, "a" * 64, version)
    assert (why is None) is covered
    if version == "final-v3":
        assert why is not None
        assert "PEP 440" in why


# -- adding -------------------------------------------------------------------------------------------------------------------


def test_adding_keeps_comments_order_and_spelling(tmp_path: Path) -> None:
    audit = tmp_path / "a.yaml"
    first = waiver_file.add(audit, waiver(ticket="0123", owner="no", where="layer3", revalidate_on="2026-01-01"))
    assert first.waivers == (waiver(ticket="0123", owner="no", where="layer3", revalidate_on="2026-01-01"),)
    path = waivers.beside(audit)
    path.write_text(GOOD + "  # at the end\n")
    added = waiver_file.add(audit, waiver(where="layer4"))
    lines = path.read_text().splitlines()
    assert [line for line in GOOD.splitlines() if line not in lines] == []
    assert "  # at the end" in lines
    assert [one.where for one in added.waivers] == ["layer3", "layer4"]
    assert waivers.read(path).waivers == added.waivers


@pytest.mark.parametrize(
    ("more", "slug"),
    [
        ({"approver": "MUSTER, Max"}, "self-approved"),
        ({"expires": date(2026, 6, 1)}, "expires-late"),
        ({"justification": "because"}, "short-justification"),
        ({"scope": Scope(versions="all")}, "bad-versions"),
        ({"scope": Scope(versions=">=2025,<2026"), "where": "layer3"}, "duplicate-waiver"),
    ],
)
def test_what_breaks_a_rule_is_not_written(tmp_path: Path, more: dict[str, object], slug: str) -> None:
    path = waivers.beside(tmp_path / "a.yaml")
    path.write_text(GOOD)
    with pytest.raises(UsageError) as caught:
        waiver_file.add(tmp_path / "a.yaml", waiver(**more))
    assert caught.value.slug == slug
    assert path.read_text() == GOOD
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_file_that_cannot_be_read_is_not_added_to(tmp_path: Path) -> None:
    path = waivers.beside(tmp_path / "a.yaml")
    path.write_text("waivers: [\n")
    with pytest.raises(WaiverError):
        waiver_file.add(tmp_path / "a.yaml", waiver())
    assert path.read_text() == "waivers: [\n"


@given(
    st.dictionaries(
        st.sampled_from(["where", "owner", "approver", "ticket", "revalidate_on"]),
        st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Co", "Cn", "Cf", "Zl", "Zp")), min_size=1, max_size=40),
    )
)
def test_whatever_is_added_is_read_back_as_it_is(words: dict[str, str]) -> None:
    import tempfile

    one = waiver(**words)
    with tempfile.TemporaryDirectory() as folder:
        audit = Path(folder) / "a.yaml"
        try:
            added = waiver_file.add(audit, one)
        except UsageError:
            assert not waivers.beside(audit).exists()
        else:
            assert added.waivers == (one,)
            assert waivers.read(waivers.beside(audit)).waivers == (one,)


def finding(value: float, *, at_most: float | None = None, at_least: float | None = None) -> Finding:
    first = small().findings[0]
    measurement = first.measurement.model_copy(update={"value": value})
    return first.model_copy(update={"measurement": measurement, "criterion": Criterion(at_most=at_most, at_least=at_least)})


@pytest.mark.parametrize(
    ("found", "ceiling"),
    [
        ([finding(0.6401, at_most=0.25)], 0.641),
        ([finding(0.641, at_most=0.25)], 0.641),
        ([finding(0.6401, at_most=0.25), finding(0.7, at_most=0.25)], 0.7),
        ([finding(0.24, at_most=0.25)], 0.25),  # inconclusive: never stricter than the criterion
        ([finding(0.0316, at_least=0.1)], 0.031),
        ([finding(0.12, at_least=0.1)], 0.1),
    ],
)
def test_the_ceiling_is_what_was_measured_rounded_away_from_the_criterion(found: list[Finding], ceiling: float) -> None:
    assert waiver_file.default_ceiling(found) == ceiling


@given(st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_no_result_exceeds_the_ceiling_that_was_made_from_it(value: float, threshold: float, at_most: bool) -> None:
    one = finding(value, at_most=threshold) if at_most else finding(value, at_least=threshold)
    ceiling = waiver_file.default_ceiling([one])
    assert value <= ceiling if at_most else value >= ceiling
    assert threshold <= ceiling if at_most else threshold >= ceiling
    assert abs(ceiling - (max if at_most else min)(value, threshold)) <= 0.001 + 1e-12


def test_the_schema_is_json() -> None:
    assert json.loads(json.dumps(waivers.schema()))["title"] == "WaiversFile"
