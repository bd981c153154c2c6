"""Catalogues of controls, how a spec refers to them, and the crosswalk of a report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from semlens_audit import spec
from semlens_audit.catalogues import catalogues_of, read_catalogue
from semlens_audit.compose import make_page
from semlens_audit.crosswalk_pages import SECTIONS, controls_named, crosswalk
from semlens_audit.errors import SpecError
from semlens_audit.figures import SCREEN
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import BaselineRecord, CatalogueRecord, ChangeRecord, ClauseRecord, LockRecord
from semlens_audit.report import render_html
from semlens_audit.resources import specs_dir
from semlens_audit.wording import NARROW
from semlens_audit.yaml_source import load
from tests.golden.sample_record import sample

SHIPPED = sorted((specs_dir() / "controls").glob("*.yaml"))
CHECKED = {
    control
    for path in specs_dir().glob("*.yaml")
    for check in load(path).data["checks"]
    for control in check.get("supports", [])
}
CATALOGUE = """\
catalogue: house
title: House rules
edition: "3"
source: the quality manual
clauses:
  - {id: qm-7, title: "QM-7: no rulers", summary: No ruler., sections: [results]}
"""


def written(folder: Path, supports: list[str], name: str = "melanoma-abcde.yaml") -> Path:
    """A shipped spec with other controls in its first check."""
    data = load(specs_dir() / name).data
    for check in data["checks"]:
        check.pop("supports", None)
    data["checks"][0]["supports"] = supports
    path = folder / "spec.yaml"
    path.write_text(json.dumps(data, indent=1))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_catalogues_are_valid_and_name_known_sections(path: Path) -> None:
    source, catalogue = read_catalogue(path)
    assert source.problems == []
    assert catalogue is not None
    assert catalogue.catalogue == path.stem
    assert {section for clause in catalogue.clauses for section in clause.sections} <= set(SECTIONS)
    for clause in catalogue.clauses:
        named = f"{catalogue.catalogue}:{clause.id}" in CHECKED
        assert clause.sections or clause.note or named, f"{clause.id}: neither evidence nor a reason why there is none"
        words = f"{clause.title} {clause.summary} {clause.note}".lower()
        assert not re.search(r"\bcompl(y|ies|iant)\b|\bconform(s|ing)?\b|\bcertif", words), clause.id
    assert spec.lint([path]) == []


def test_the_six_catalogues_of_the_field_are_there() -> None:
    assert [path.stem for path in SHIPPED] == ["bsi-aic4", "eu-ai-act", "fda-gmlp", "iec-62304", "iso-14971", "iso-42001"]


def test_every_shipped_check_names_clauses_that_exist() -> None:
    for path in specs_dir().glob("*.yaml"):
        assert [problem for problem in spec.lint([path]) if problem.slug == "unknown-control"] == []


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ("EU AI Act Art. 10", "catalogue:clause"),
        ("eu-ai-axt:art-10-2-f", "no catalogue `eu-ai-axt`"),
        ("eu-ai-act:art-10-2-ff", "Did you mean `art-10-2-f`?"),
        ("eu-ai-act:", "no clause"),
        (":art-1", "no catalogue"),
    ],
)
def test_an_unknown_control_is_told_at_its_line(tmp_path: Path, control: str, said: str) -> None:
    path = written(tmp_path, ["iso-14971:7.2", control])
    (problem,) = spec.lint([path])
    assert problem.slug == "unknown-control"
    assert said in f"{problem.message} {problem.hint}"
    assert path.read_text().splitlines()[problem.line - 1].strip().strip(",") == json.dumps(control)


def test_a_catalogue_beside_the_spec_is_known_to_it_and_may_replace_a_shipped_one(tmp_path: Path) -> None:
    path = written(tmp_path, ["house:qm-7"])
    assert [problem.slug for problem in spec.lint([path])] == ["unknown-control"]
    (tmp_path / "controls").mkdir()
    (tmp_path / "controls" / "house.yaml").write_text(CATALOGUE)
    assert spec.lint([path]) == []
    (found,) = catalogues_of(["house:qm-7"], path)
    assert (found.title, found.clauses[0].sections) == ("House rules", ("results",))
    (tmp_path / "controls" / "act.yaml").write_text(CATALOGUE.replace("house", "eu-ai-act"))
    (replaced,) = catalogues_of(["eu-ai-act:qm-7"], path)
    assert replaced.title == "House rules"


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        (CATALOGUE + '  - {id: qm-7, title: "again", summary: Twice.}\n', "duplicate-id"),
        (CATALOGUE.replace("summary", "sumary"), "unknown-key"),
        (CATALOGUE.replace("qm-7,", "QM 7,"), "bad-id"),
        ("catalogue: house\ntitle: x\nedition: y\nsource: z\nclauses: []\n", "too-short"),
    ],
)
def test_a_bad_catalogue_is_told_whether_linted_or_used(tmp_path: Path, text: str, slug: str) -> None:
    (tmp_path / "controls").mkdir()
    catalogue = tmp_path / "controls" / "house.yaml"
    catalogue.write_text(text)
    found = {problem.slug for problem in spec.lint([catalogue])}
    assert slug in found or (slug == "too-short" and found), found
    path = written(tmp_path, ["iso-14971:7.2"])
    assert {problem.file for problem in spec.lint([path])} == {str(catalogue)}
    with pytest.raises(SpecError) as caught:
        catalogues_of(["iso-14971:7.2"], path)
    assert caught.value.problems[0].file == str(catalogue)


def catalogue(*clauses: ClauseRecord) -> tuple[CatalogueRecord, ...]:
    return (CatalogueRecord(id="act", title="The Act", edition="1", source="here", clauses=clauses),)


def with_clauses(record: AuditRecord, *clauses: ClauseRecord, **update: object) -> AuditRecord:
    return record.model_copy(update={"catalogues": catalogue(*clauses), **update})


def test_every_clause_stands_in_the_matrix_with_its_evidence_or_none() -> None:
    record = sample("shortcut")
    failing = next(f.check for f in record.findings if f.state == "not_satisfied")
    findings = tuple(f.model_copy(update={"supports": ("act:1",) if f.check == failing else ()}) for f in record.findings)
    page = crosswalk(
        with_clauses(
            record,
            ClauseRecord(id="1", title="One", summary="First."),
            ClauseRecord(id="2", title="Two", summary="Second.", sections=("results", "change")),
            ClauseRecord(id="3", title="Three", summary="Third.", note="Nothing here."),
            findings=findings,
        )
    )
    assert page is not None
    one, two, three = page.catalogues[0].clauses
    assert [(group.badge.state, group.number, [link.check for link in group.named]) for group in one.checks] == [
        ("not_satisfied", "1", [failing])
    ]
    assert not two.checks
    assert [link.title for link in two.sections] == ["results"]
    assert two.missing == "change"
    assert not three.checks
    assert not three.sections
    assert page.overview.rows == (("The Act", "3", "1", "1", "1"),)
    assert page.catalogues[0].covered.replace(NARROW, " ") == (
        "Evidence for 2 of the 3 clauses listed, for 1 of them from checks; none for 1."
    )


def test_a_check_counts_by_its_gravest_state() -> None:
    record = sample("shortcut")
    by_check: dict[str, set[str]] = {}
    for finding in record.findings:
        by_check.setdefault(finding.check, set()).add(finding.state)
    findings = tuple(f.model_copy(update={"supports": ("act:1",)}) for f in record.findings)
    page = crosswalk(with_clauses(record, ClauseRecord(id="1", title="One", summary="First."), findings=findings))
    assert page is not None
    groups = page.catalogues[0].clauses[0].checks
    assert sum(int(group.number) for group in groups) == len(by_check)
    failed = sum("not_satisfied" in states for states in by_check.values())
    assert groups[0].badge.state == "not_satisfied"
    assert int(groups[0].number) == failed


def test_links_of_the_crosswalk_lead_somewhere() -> None:
    baseline = BaselineRecord(
        record_sha256="0" * 64, created="2025-01-01T00:00:00Z", subject="s", version=None, weights_sha256="0" * 64,
        data_sha256="0" * 64, tool="semlens-audit 0.1.0",
    )  # fmt: skip
    record = with_clauses(
        sample("shortcut"),
        ClauseRecord(id="1", title="One", summary="First.", sections=tuple(SECTIONS)),
        change=ChangeRecord(baseline=baseline, sentence="Nothing changed."),
        lock=LockRecord(
            state="kept", sha256="0" * 64, created="2025-01-01T00:00:00Z", earlier_runs=0, runs_before_lock=0, sentence="Kept."
        ),
    )
    page = crosswalk(record)
    assert page is not None
    anchors = {link.anchor for link in page.catalogues[0].clauses[0].sections}
    composed = {section.anchor for section in make_page(record, SCREEN).sections}
    assert anchors - {"summary"} <= composed
    html = render_html(record)
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    start = html.index('id="crosswalk"')
    links = set(re.findall(r'href="#([^"]+)"', html[start : html.index("</section>", start)]))
    assert links <= ids, links - ids
    assert links


def test_the_report_never_claims_compliance() -> None:
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", render_html(sample("shortcut")), flags=re.S).lower()
    assert "makes no statement of compliance" in text
    for claim in ("complies with", "is compliant", "conforms to", "certified"):
        assert claim not in text


def test_without_controls_there_is_no_crosswalk() -> None:
    assert crosswalk(sample("clean").model_copy(update={"catalogues": ()})) is None


def test_controls_are_named_as_readers_know_them() -> None:
    supports = ["eu-ai-act:art-9-6", "eu-ai-act:art-15-4", "iso-14971:5.5", "fda-gmlp:6", "house:7"]
    known = catalogues_of([name for name in supports if not name.startswith("house")], specs_dir() / "melanoma-abcde.yaml")
    assert controls_named(supports, known) == "EU AI Act Art. 9(6), Art. 15(4); ISO 14971 5.5; FDA GMLP Principle 6; house:7"
