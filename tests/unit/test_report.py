"""The report: complete, offline, accessible, escaped, the same bytes for the same record."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import html.parser
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from semlens_audit import compose, facets, pages, report
from semlens_audit.errors import AuditError, ExitCode
from semlens_audit.evidence_pages import role_of
from semlens_audit.figures import PAPER, SCREEN
from semlens_audit.records import AuditRecord, ClassLayer, ComponentRecord, ContrastiveImage, ReferenceImage, State
from tests.golden.released_record import released
from tests.golden.sample_record import sample

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
KINDS = ("shortcut", "clean", "not_measured")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Tree(html.parser.HTMLParser):
    """Elements with their attributes, text, and a check that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.lines: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and not {"style", "svg", "script"} & set(self.open):
            self.lines.append(" ".join(data.split()))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return {kind: report.render_html(sample(kind)) for kind in KINDS}


def test_the_text_of_the_report_is_the_golden_text(rendered: dict[str, str]) -> None:
    for kind in KINDS:
        actual = "\n".join(Tree(rendered[kind]).lines) + "\n"
        golden = GOLDEN / f"report-{kind}.txt"
        if os.environ.get("SEMLENS_AUDIT_WRITE_GOLDEN"):
            golden.write_text(actual, encoding="utf-8")
        expected = golden.read_text(encoding="utf-8")
        difference = "\n".join(
            difflib.unified_diff(expected.splitlines(), actual.splitlines(), "golden", "actual", lineterm="")
        )
        assert actual == expected, f"write anew with SEMLENS_AUDIT_WRITE_GOLDEN=1 if this is meant:\n{difference[:3000]}"


def test_same_record_same_bytes_in_another_process(rendered: dict[str, str]) -> None:
    code = (
        "import hashlib; from semlens_audit import report; from tests.golden.sample_record import sample;"
        "print(hashlib.sha256(report.render_html(sample('clean')).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    root = GOLDEN.parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(rendered["clean"].encode()).hexdigest()


def test_rendering_imports_neither_torch_nor_matplotlib_nor_weasyprint() -> None:
    code = (
        "import sys; from semlens_audit import report; from tests.golden.sample_record import sample;"
        "report.render_html(sample('clean'));"
        "heavy = ('torch', 'open_clip', 'timm', 'matplotlib', 'weasyprint', 'pandas');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=GOLDEN.parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_asks_for_nothing_outside_itself(rendered: dict[str, str], kind: str) -> None:
    tree = Tree(rendered[kind])
    for tag, attributes in tree.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert tag not in {"iframe", "object", "embed", "link", "base"}
    urls = re.findall(r"url\(([^)]{0,20})", rendered[kind])
    assert urls
    assert all(url.startswith(("data:", '"data:')) for url in urls)
    assert "@import" not in rendered[kind]
    policy = next(a for a in tree.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_can_be_read_without_seeing_it(rendered: dict[str, str], kind: str) -> None:
    tree = Tree(rendered[kind])
    levels = [int(tag[1]) for tag, _ in tree.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    assert all((attributes.get("alt") or "").strip() for attributes in tree.all("img"))
    assert all(attributes.get("aria-label") for attributes in tree.all("svg"))
    assert all(attributes.get("scope") in {"col", "row", "rowgroup"} for attributes in tree.all("th"))
    assert len(tree.all("caption")) == len(tree.all("table"))
    identifiers = [a["id"] for _, a in tree.elements if a.get("id")]
    assert len(identifiers) == len(set(identifiers))
    targets = {str(a["href"])[1:] for a in tree.all("a") if "download" not in a}
    assert targets <= set(identifiers)
    assert next(tag for tag, a in tree.elements if a.get("href") == "#main") == "a"


def test_every_state_is_word_and_glyph(rendered: dict[str, str]) -> None:
    whole = "".join(rendered.values()) + report.render_html(with_all_states())
    for state in get_args(State):
        badge = compose.badge(state)
        assert (
            f'<span class="badge {state}"><span class="glyph" aria-hidden="true">{badge.glyph}</span> {badge.word}</span>'
            in whole
        )


def with_all_states() -> AuditRecord:
    """A record whose overall verdict is inconclusive."""
    record = sample("shortcut")
    verdict = record.verdict.model_copy(update={"state": "inconclusive", "exit_code": ExitCode.INCONCLUSIVE})
    return record.model_copy(update={"verdict": verdict})


@pytest.mark.parametrize("state", get_args(State))
def test_every_overall_verdict_heads_its_report(state: State) -> None:
    record = sample("shortcut")
    record = record.model_copy(update={"verdict": record.verdict.model_copy(update={"state": state})})
    text = report.render_html(record)
    assert f'<div class="verdict {state}">' in text
    assert f"<title>{compose.badge(state).word}: " in text


def test_a_record_without_findings_says_so() -> None:
    record = sample("clean").model_copy(update={"findings": (), "effects": (), "responsible": (), "stages": {}})
    text = report.render_html(record)
    assert "No check was evaluated" in text
    assert "The audit file names no responsible person." in text


MARKUP = '<b id="broken">&\'{{ 7 * 7 }}</b>'
PROTECTED = {
    *get_args(State), "share", "logits", "cosine", "valid", "spurious", "neutral", "mechanistic", "behavioural", "critical",
    "major", "minor", "spurious_reliance", "valid_reliance", "unexplained_relevance", "concept_used", "concept_not_used",
    "behavioural_effect", "clarity", "foundation model", "attributes", "max", "mean", "relevance", "activation", "lrp",
    "template_difference", "both", "spec", "audit", "waivers", "lock",
}  # fmt: skip


def poisoned(value: Any, field: str = "") -> Any:
    """The same values with markup appended to every free text, keys of dictionaries among them."""
    if isinstance(value, dict):
        names = {"alignment", "z", "concepts", "per_class", "present", "absent", "packages", "stages", "roles", "detail"}
        keys = field in names
        return {poisoned(k) if keys and field != "detail" else k: poisoned(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(item) for item in value]
    if isinstance(value, str) and value not in PROTECTED and field not in {"created", "schema_version", "crop", "overlay"}:
        return value + MARKUP
    return value


def test_markup_in_any_text_stays_text() -> None:
    plain = sample("shortcut")
    data = plain.model_dump(mode="json", exclude={"images"})
    record = AuditRecord.model_validate(poisoned(data) | {"images": plain.images})
    text = report.render_html(record)
    Tree(text)
    assert 'id="broken"' not in text
    assert "<b id" not in text
    assert "49" not in Tree(text).lines[0]
    assert text.count("&lt;b id=") > 400


def contrasted(record: AuditRecord) -> AuditRecord:
    """The same record as an audit with contrastive embeddings would have it: every reference sample but the second has a contrastive
    crop."""

    def places(place: ClassLayer) -> ClassLayer:
        return place.model_copy(update={"components": tuple(map(component, place.components))})

    def component(item: ComponentRecord) -> ComponentRecord:
        found = [one if rank == 1 else reference(one) for rank, one in enumerate(item.references)]
        return item.model_copy(update={"references": tuple(found)})

    def reference(item: ReferenceImage) -> ReferenceImage:
        made = ContrastiveImage(sample="images/<other>.png", box=(0, 0, 64, 64), crop=item.crop)
        return item.model_copy(update={"contrastive": made})

    return record.model_copy(update={"class_layers": tuple(map(places, record.class_layers))})


def test_contrastive_crops_stand_below_what_they_are_taken_from() -> None:
    heading = "Contrastive crops, below each: alike, but not what drives it"
    plain, text = (report.render_html(record) for record in (sample("shortcut"), contrasted(sample("shortcut"))))
    assert heading not in plain
    assert text.count(heading) == plain.count('<article class="component"') > 3
    assert "images/&lt;other&gt;.png" in text
    assert "No random crop is contrastive." in text


def test_every_field_of_every_page_value_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [
        c for module in (pages, facets) for c in vars(module).values() if dataclasses.is_dataclass(c) and c.__module__ == module.__name__
    ]
    records = [*(sample(kind) for kind in KINDS), released(sample("shortcut")), contrasted(sample("shortcut"))]
    made = [compose.make_page(record, palette) for record in records for palette in (SCREEN, PAPER)]
    seen: set[tuple[str, str]] = set()

    def watch(cls: type) -> None:
        def read(self: object, name: str) -> Any:
            seen.add((cls.__name__, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", read)

    for cls in classes:
        watch(cls)
    for page in made:
        report.environment().get_template("report.html.j2").render(page=page, style="")
    wanted = {(cls.__name__, field.name) for cls in classes for field in dataclasses.fields(cls)}
    assert len(wanted) > 80
    assert wanted - seen == set()


def test_pictures_stand_once_and_others_point_to_them(rendered: dict[str, str]) -> None:
    pictures = [str(a["src"]) for a in Tree(rendered["shortcut"]).all("img")]
    assert len(pictures) > 50
    assert len(pictures) == len(set(pictures))


def test_role_words_exist_for_every_role() -> None:
    record = sample("shortcut")
    assert {role_of(record, c.id, "melanoma") for c in record.concepts} == {"valid", "spurious", "neutral"}
    assert role_of(record, None, "melanoma") == "unexplained"


def test_write_puts_both_files_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "render_pdf", lambda record: b"%PDF-")
    folder = tmp_path / "new" / "folder"
    assert report.write(sample("clean"), folder) == [folder / "report.html", folder / "report.pdf"]
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.pdf"]
    assert report.write(sample("clean"), folder, pdf=False) == [folder / "report.html"]


def test_without_pango_the_html_is_written_and_the_message_names_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    real = builtins.__import__

    def no_pango(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("weasyprint"):
            raise OSError("cannot load library 'libpango-1.0-0'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pango)
    with pytest.raises(AuditError) as caught:
        report.write(sample("clean"), tmp_path)
    assert caught.value.slug == "pango-missing"
    assert "libpango-1.0-0" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write(sample("clean"), tmp_path, pdf=False)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"
