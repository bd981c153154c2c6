"""The PDF against the rules of PDF/A-3a and PDF/UA-1 that a program can check; and each rule against a PDF that breaks it."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pikepdf
import pytest
from pikepdf import Array, Dictionary, Name, Pdf, String

from semlens_audit import report
from semlens_audit.compose import make_page
from semlens_audit.digest import digest_bytes
from semlens_audit.figures import PAPER
from semlens_audit.records import AuditRecord
from tests.golden.released_record import released
from tests.golden.sample_record import sample, small
from tests.pdf_rules import ARCHIVE
from tests.pdf_ua_rules import ACCESS, Tagged, complaints
from tests.unit.signing_world import by_both

pytest.importorskip("weasyprint", reason="Pango is not installed", exc_type=OSError)
RULES = ARCHIVE | ACCESS


@pytest.fixture(scope="session")
def everything() -> tuple[AuditRecord, bytes]:
    """A record with every section, and its PDF."""
    record = released(sample("shortcut"))
    return record, report.render_pdf(record)


@pytest.fixture(scope="session")
def little() -> bytes:
    return report.render_pdf(small())


class TestRules:
    def test_a_report_with_every_section_breaks_none(self, everything: tuple[AuditRecord, bytes]) -> None:
        assert complaints(everything[1]) == []

    def test_a_small_one_neither(self, little: bytes) -> None:
        assert complaints(little) == []

    def test_nor_a_signed_one(self) -> None:
        assert complaints(by_both()) == []

    @pytest.mark.slow
    def test_nor_one_whose_measurements_fell_through(self) -> None:
        assert complaints(report.render_pdf(sample("not_measured"))) == []

    @pytest.mark.skipif(shutil.which("verapdf") is None, reason="verapdf is not on the PATH")
    @pytest.mark.parametrize("flavour", ["3a", "ua1"])
    def test_verapdf_agrees(self, everything: tuple[AuditRecord, bytes], tmp_path: Path, flavour: str) -> None:
        path = tmp_path / "report.pdf"
        path.write_bytes(everything[1])
        done = subprocess.run(["verapdf", "--flavour", flavour, "--format", "text", str(path)], capture_output=True, text=True)
        assert done.stdout.startswith("PASS"), done.stdout


class TestTagTree:
    def test_every_element_of_the_page_is_there_once_however_pages_break(self, everything: tuple[AuditRecord, bytes]) -> None:
        record, data = everything
        html = report.render_page(make_page(record, PAPER), report.ON_PAPER)
        wanted = Counter(re.findall(r"<([a-z0-9]+)[ >]", html[html.index("<body") :]))
        found = Counter(element.tag for element in Tagged(data).elements)
        for tag, kind in {
            "table": "Table", "tr": "TR", "th": "TH", "td": "TD", "section": "Sect", "article": "Art", "img": "Figure", "main": "Part",
            "h1": "H1", "h2": "H2", "h3": "H3", "h4": "H4", "caption": "Caption", "thead": "THead", "tbody": "TBody",
        }.items():  # fmt: skip
            assert found[kind] == wanted[tag], (tag, kind)

    def test_tables_that_pages_cut_are_one_table_whose_head_is_read_once(self, everything: tuple[AuditRecord, bytes]) -> None:
        document = Tagged(everything[1])
        pages = []
        for table in document.tagged("Table"):
            pages.append({document.page_numbers[page] for element in table.all() for page, _ in element.marks})
            heads = [kid for kid in table.kids if kid.tag == "THead"]
            assert len({document.page_numbers[page] for head in heads for e in head.all() for page, _ in e.marks}) <= 1
        assert any(len(numbers) > 1 for numbers in pages)

    def test_the_foot_of_a_page_is_an_artifact(self, everything: tuple[AuditRecord, bytes]) -> None:
        for page in Tagged(everything[1]).pieces:
            assert any(piece.artifact and piece.operator in {"Tj", "TJ"} for piece in page)

    def test_reading_order_is_the_order_of_the_pages(self, everything: tuple[AuditRecord, bytes]) -> None:
        document = Tagged(everything[1])
        headings = document.tagged("H1", "H2", "H3")
        order = [document.page_numbers[heading.marks[0][0]] for heading in headings if heading.marks]
        assert order == sorted(order)

    def test_links_say_in_words_where_they_lead(self, everything: tuple[AuditRecord, bytes]) -> None:
        document = Tagged(everything[1])
        said = {str(annotation.Contents) for page in document.pdf.pages for annotation in page.get("/Annots", [])}
        assert all(text.startswith("Go to: ") for text in said)
        assert "Go to: Results" in said

    def test_bookmarks_lead_to_every_section_and_every_check(self, everything: tuple[AuditRecord, bytes]) -> None:
        record, data = everything
        page = make_page(record, PAPER)
        with pikepdf.open(io.BytesIO(data)) as pdf, pdf.open_outline() as outline:
            top = [str(entry.title) for entry in outline.root]
            below = {str(entry.title): [str(child.title) for child in entry.children] for entry in outline.root}
        for section in page.sections:
            assert any(title.endswith(section.title) for title in top), section.title
        attention = next(section for section in page.sections if section.anchor == "attention")
        titles = next(children for title, children in below.items() if title.endswith(attention.title))
        for view in attention.body:  # type: ignore[attr-defined]
            assert any(view.statement in title for title in titles), view.statement


class TestPictures:
    def test_each_is_in_the_file_once_as_the_record_holds_it(self, everything: tuple[AuditRecord, bytes]) -> None:
        record, data = everything
        html = report.render_page(make_page(record, PAPER), report.ON_PAPER)
        shown = {key for key, text in record.images.items() if text in html}
        with pikepdf.open(io.BytesIO(data)) as pdf:
            files = [o.read_raw_bytes() for o in pdf.objects if isinstance(o, pikepdf.Stream) and o.get("/Filter") == Name.DCTDecode]
        assert sorted(digest_bytes(file) for file in files) == sorted(shown)
        assert len(shown) > 100

    def test_crops_are_large_enough_to_be_judged_on_paper(self, everything: tuple[AuditRecord, bytes]) -> None:
        document = Tagged(everything[1])
        crops = [e for e in document.tagged("Figure") if str(e.source.Alt).startswith("Crop of ")]
        assert len(crops) > 50
        for crop in crops:
            x1, y1, x2, y2 = (float(edge) for edge in crop.attribute("/BBox"))
            assert min(x2 - x1, y2 - y1) * 25.4 / 72 >= 15  # mm


def saved(pdf: Pdf) -> bytes:
    out = io.BytesIO()
    pdf.save(out, static_id=True, fix_metadata_version=False)
    return out.getvalue()


def element(pdf: Pdf, tag: str) -> Any:
    """The first structure element of that tag."""

    def find(node: Any) -> Any:
        if isinstance(node, Array):
            return next((found for kid in node if (found := find(kid)) is not None), None)
        if not isinstance(node, Dictionary) or "/S" not in node:
            return None
        return node if Name("/" + tag) == node.S else find(node.get("/K"))

    return find(pdf.Root.StructTreeRoot.K)


def content(change: Callable[[list[Any]], list[Any]]) -> Callable[[Pdf], None]:
    def spoil(pdf: Pdf) -> None:
        page = pdf.pages[0]
        page.Contents = pdf.make_stream(pikepdf.unparse_content_stream(change(list(pikepdf.parse_content_stream(page)))))

    return spoil


def operator(name: str, *operands: Any) -> Any:
    return pikepdf.ContentStreamInstruction(list(operands), pikepdf.Operator(name))


def image(pdf: Pdf) -> Any:
    return next(o for o in pdf.objects if isinstance(o, pikepdf.Stream) and o.get("/Subtype") == Name.Image)


def font(pdf: Pdf) -> Any:
    return next(o for o in pdf.objects if isinstance(o, Dictionary) and o.get("/Subtype") == Name.Type0)


def state(pdf: Pdf) -> Any:
    return next(iter(pdf.pages[0].Resources.ExtGState.values()))


def filespec(pdf: Pdf) -> Any:
    return pdf.Root.Names.EmbeddedFiles.Names[1]


def rewrite(old: bytes, new: bytes) -> Callable[[Pdf], None]:
    def spoil(pdf: Pdf) -> None:
        text = pdf.Root.Metadata.read_bytes()
        assert old in text
        pdf.Root.Metadata.write(text.replace(old, new))

    return spoil


def put(where: Callable[[Pdf], Any], key: str, value: Any) -> Callable[[Pdf], None]:
    def spoil(pdf: Pdf) -> None:
        where(pdf)[key] = value

    return spoil


def drop(where: Callable[[Pdf], Any], key: str) -> Callable[[Pdf], None]:
    def spoil(pdf: Pdf) -> None:
        holder = where(pdf)
        assert key in holder
        del holder[key]

    return spoil


def root(pdf: Pdf) -> Any:
    return pdf.Root


def link(pdf: Pdf) -> Any:
    return next(a for page in pdf.pages for a in page.get("/Annots", []))


def form(pdf: Pdf) -> None:
    stream = pdf.make_stream(b"/Span <</MCID 0>> BDC EMC")
    stream.Type, stream.Subtype, stream.BBox = Name.XObject, Name.Form, Array([0, 0, 1, 1])
    pdf.pages[0].Resources.XObject["/spoiled"] = stream


def widen(pdf: Pdf) -> None:
    font(pdf).DescendantFonts[0].W = Array([0, 65535, 123])


def forget(pdf: Pdf) -> None:
    stream = font(pdf).ToUnicode
    stream.write(re.sub(rb"<[0-9a-f]{4}> <[0-9a-f]+>", b"", stream.read_bytes(), count=3))


def other_foot(pdf: Pdf) -> None:
    tree = pdf.Root.StructTreeRoot.ParentTree
    tree.Nums[1][0], tree.Nums[1][3] = tree.Nums[1][3], tree.Nums[1][0]


def kind(tag: str, other: str) -> Callable[[Pdf], None]:
    return put(lambda pdf: element(pdf, tag), "/S", Name("/" + other))


def twice(pdf: Pdf) -> None:
    pdf.Root.AF.append(pdf.Root.AF[0])


def cyan(pdf: Pdf) -> None:
    image(pdf).ColorSpace = Name.DeviceCMYK


def outside(pdf: Pdf) -> None:
    element(pdf, "Figure").A.BBox = Array([0, 900, 10, 1000])


def cell(pdf: Pdf) -> None:
    element(pdf, "TD").A = Dictionary(O=Name.Table, ColSpan=3)


def swap_pages(data: bytes) -> bytes:
    return data.replace(b"%PDF-1.7\n%", b"%PDF-1.7\n%abcd\n%", 1)


BREAK: dict[str, list[Callable[[Pdf], None] | Callable[[bytes], bytes]]] = {
    "header": [swap_pages],
    "trailer": [lambda data: data + b"more", drop(lambda pdf: pdf.trailer, "/ID")],
    "streams": [put(image, "/F", String("elsewhere"))],
    "permissions": [
        put(root, "/Perms", Dictionary(Spoiled=1)),
        put(root, "/Perms", Dictionary(DocMDP=Dictionary(Reference=[Dictionary(DigestMethod=Name.MD5)]))),
    ],
    "limits": [
        put(root, "/Spoiled", 2**31),
        put(root, "/Spoiled", String("x" * 40000)),
        content(lambda items: [*[operator("q")] * 29, *items, *[operator("Q")] * 29]),
    ],
    "output_intent": [
        drop(root, "/OutputIntents"),
        put(lambda pdf: pdf.Root.OutputIntents[0].DestOutputProfile, "/N", 4),
        lambda pdf: pdf.Root.OutputIntents[0].DestOutputProfile.write(b"no profile" * 20),
    ],
    "device_colours": [
        cyan,
        content(lambda items: [operator("k", 0, 0, 0, 1), *items]),
    ],
    "graphics_states": [put(state, "/TR", Name.Identity)],
    "images": [put(image, "/Interpolate", True), put(image, "/Alternates", Array())],
    "forms": [put(image, "/OPI", Dictionary())],
    "transparency": [put(state, "/BM", Name("/Spoiled"))],
    "embedded_fonts": [drop(lambda pdf: font(pdf).DescendantFonts[0].FontDescriptor, "/FontFile2")],
    "composite_fonts": [put(font, "/Encoding", Name.WinAnsiEncoding), drop(lambda pdf: font(pdf).DescendantFonts[0], "/CIDToGIDMap")],
    "glyph_widths": [widen],
    "unicode_of_glyphs": [forget, drop(font, "/ToUnicode")],
    "no_missing_glyph": [
        content(
            lambda items: [
                operator("Tj", String(b"\0\0")) if str(i.operator) == "TJ" and n == next(
                    k for k, o in enumerate(items) if str(o.operator) == "TJ"
                ) else i
                for n, i in enumerate(items)
            ]
        )
    ],
    "annotations": [put(link, "/F", 0), put(link, "/F", 6), put(link, "/Subtype", Name.Movie)],
    "interactive_forms": [put(root, "/AcroForm", Dictionary(NeedAppearances=True))],
    "actions": [
        put(root, "/OpenAction", Dictionary(Type=Name.Action, S=Name.JavaScript)),
        put(root, "/AA", Dictionary()),
        put(link, "/A", Dictionary(Type=Name.Action, S=Name.URI, URI=String("http://example.org"))),
    ],
    "metadata": [drop(root, "/Metadata"), rewrite(b"</dc:title>", b""), rewrite(b'begin=""', b'begin="" bytes="7"')],
    "identification": [rewrite(b'pdfaid:part="3"', b'pdfaid:part="2"'), rewrite(b'conformance="A"', b'conformance="B"')],
    "extension_schema": [rewrite(b"<pdfaSchema:namespaceURI>", b"<pdfaSchema:namespaceURI>x")],
    "same_facts": [rewrite(b"WeasyPrint", b"Weasyprint"), lambda pdf: pdf.docinfo.__setitem__("/CreationDate", "D:20200101000000Z")],
    "logical_structure": [put(root, "/MarkInfo", Dictionary(Marked=False)), drop(root, "/MarkInfo")],
    "embedded_files": [
        twice,
        drop(root, "/AF"),
        drop(filespec, "/UF"),
        drop(filespec, "/AFRelationship"),
        put(filespec, "/Desc", String("")),
        drop(lambda pdf: filespec(pdf).EF.F, "/Subtype"),
        put(lambda pdf: filespec(pdf).EF.F.Params, "/Size", 7),
        drop(lambda pdf: filespec(pdf).EF.F.Params, "/ModDate"),
    ],
    "nothing_else": [put(root, "/OCProperties", Dictionary()), put(lambda pdf: pdf.pages[0].obj, "/PresSteps", Dictionary())],
    "declared": [rewrite(b'pdfuaid:part="1"', b'pdfuaid:part="2"')],
    "all_content_is_tagged": [
        content(lambda items: [*items, operator("re", 0, 0, 9, 9), operator("f")]),
        content(lambda items: [operator("BMC", Name.Artifact), *items, operator("EMC")]),
        content(lambda items: [*items, operator("EMC")]),
        content(lambda items: [operator("BMC", Name.Span), *items]),
    ],
    "parent_tree": [
        other_foot,
        put(link, "/StructParent", 0),
        content(
            lambda items: [
                operator("BDC", i.operands[0], Dictionary(MCID=9999)) if str(i.operator) == "BDC" and "/MCID" in i.operands[1] else i
                for i in items
            ]
        ),
    ],
    "standard_types": [kind("P", "Paragraph"), put(lambda pdf: pdf.Root.StructTreeRoot, "/RoleMap", Dictionary(P=Name.Span))],
    "title": [
        put(root, "/ViewerPreferences", Dictionary(DisplayDocTitle=False)),
        put(root, "/MarkInfo", Dictionary(Marked=True, Suspects=True)),
        rewrite(b"dc:title>", b"dc:name>"),
    ],
    "language": [drop(root, "/Lang"), put(lambda pdf: element(pdf, "P"), "/Lang", String("no language"))],
    "nesting": [
        kind("LI", "Div"), kind("LBody", "P"), kind("TR", "Div"), kind("Lbl", "P"), kind("TH", "P"), kind("Caption", "TR"),
        put(lambda pdf: element(pdf, "P"), "/K", Array()),
    ],
    "tables": [
        cell,
        drop(lambda pdf: element(pdf, "TH"), "/A"),
        kind("TBody", "THead"),
        lambda pdf: element(pdf, "Table").K.append(element(pdf, "Caption")),
    ],
    "figures": [drop(lambda pdf: element(pdf, "Figure"), "/Alt"), put(lambda pdf: element(pdf, "Figure"), "/Alt", String(" "))],
    "figures_say_where_they_are": [drop(lambda pdf: element(pdf, "Figure"), "/A"), outside],
    "headings": [kind("H1", "P"), kind("H2", "H4"), kind("H2", "H")],
    "identifiers": [put(lambda pdf: element(pdf, "TH"), "/ID", String("a")), kind("P", "Note")],
    "links": [
        drop(lambda pdf: next(page.obj for page in pdf.pages if "/Annots" in page), "/Tabs"),
        drop(link, "/Contents"),
        kind("Link", "Span"),
        put(lambda pdf: element(pdf, "Link"), "/K", Array()),
    ],
    "destinations": [put(link, "/Dest", String("nowhere"))],
    "forms_are_not_tagged_twice": [form],
    "navigation": [
        drop(root, "/PageLabels"),
        drop(lambda pdf: pdf.Root.Outlines, "/First"),
        drop(lambda pdf: pdf.Root.Outlines.First, "/Dest"),
    ],
}  # fmt: skip
CASES = [(name, number) for name, spoils in BREAK.items() for number in range(len(spoils))]


class TestRulesComplain:
    def test_every_rule_is_broken_at_least_once(self) -> None:
        assert set(BREAK) == set(RULES)

    def test_a_pdf_that_was_only_saved_again_breaks_none(self, little: bytes) -> None:
        with pikepdf.open(io.BytesIO(little)) as pdf:
            assert complaints(saved(pdf)) == []

    @pytest.mark.parametrize(("name", "number"), CASES)
    def test_a_pdf_that_breaks_it_is_complained_of(self, little: bytes, name: str, number: int) -> None:
        spoil: Any = BREAK[name][number]
        if name == "header" or (name == "trailer" and number == 0):
            data = spoil(little)
        else:
            with pikepdf.open(io.BytesIO(little)) as pdf:
                spoil(pdf)
                data = saved(pdf)
        if name == "trailer" and number == 1:
            data = re.sub(rb"/ID ?\[.*?\]", b"", data)
        assert complaints(data, {name: RULES[name]})

    def test_complaints_name_clause_and_rule(self, little: bytes) -> None:
        with pikepdf.open(io.BytesIO(little)) as pdf:
            del pdf.Root.MarkInfo
            said = complaints(saved(pdf), ARCHIVE)
        assert said == ["ISO 19005-3, 6.7.2 (logical_structure): not tagged"]
