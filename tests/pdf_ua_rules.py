"""Rules of PDF/UA-1 (ISO 14289-1) that a program can check, with the numbers of their conditions in the Matterhorn Protocol 1.1."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pikepdf
from pikepdf import Name

from tests.pdf_document import Document, Rule
from tests.pdf_rules import ARCHIVE, rule

ACCESS: dict[str, Rule] = {}
HEADINGS = {f"H{level}" for level in range(1, 7)}
STANDARD = HEADINGS | {
    "Document", "Part", "Art", "Sect", "Div", "BlockQuote", "Caption", "TOC", "TOCI", "Index", "NonStruct", "Private", "P", "H", "L",
    "LI", "Lbl", "LBody", "Table", "TR", "TH", "TD", "THead", "TBody", "TFoot", "Span", "Quote", "Note", "Reference", "BibEntry", "Code",
    "Link", "Annot", "Ruby", "RB", "RT", "RP", "Warichu", "WT", "WP", "Figure", "Formula", "Form",
}  # fmt: skip
KIDS = {
    "L": {"LI", "L", "Caption"},
    "LI": {"Lbl", "LBody"},
    "Table": {"TR", "THead", "TBody", "TFoot", "Caption"},
    "THead": {"TR"},
    "TBody": {"TR"},
    "TFoot": {"TR"},
    "TR": {"TH", "TD"},
}
PARENTS = {
    "LI": {"L"}, "Lbl": {"LI", "Note"}, "LBody": {"LI"}, "TR": {"Table", "THead", "TBody", "TFoot"}, "TH": {"TR"}, "TD": {"TR"},
    "THead": {"Table"}, "TBody": {"Table"}, "TFoot": {"Table"}, "Caption": {"Table", "L", "Figure", "Formula"}, "TOCI": {"TOC"},
}  # fmt: skip


class Element:
    """A structure element."""

    def __init__(self, source: pikepdf.Object, parent: Element | None) -> None:
        self.source = source
        self.parent = parent
        self.tag = str(source.S)[1:]
        self.kids: list[Element] = []
        self.marks: list[tuple[tuple[int, int], int]] = []
        self.annotations: list[pikepdf.Object] = []
        kids = source.get("/K")
        for kid in kids if isinstance(kids, pikepdf.Array) else [] if kids is None else [kids]:
            self._add(kid)

    def _add(self, kid: Any) -> None:
        if isinstance(kid, int):
            self.marks.append((self.source.Pg.objgen, kid))
        elif kid.get("/Type") == Name.MCR:
            self.marks.append((kid.get("/Pg", self.source.get("/Pg")).objgen, int(kid.MCID)))
        elif kid.get("/Type") == Name.OBJR:
            self.annotations.append(kid.Obj)
        else:
            self.kids.append(Element(kid, self))

    def all(self) -> Iterator[Element]:
        """This element and all below, in reading order."""
        yield self
        for kid in self.kids:
            yield from kid.all()

    def attribute(self, name: str) -> Any:
        """A layout or table attribute."""
        attributes = self.source.get("/A", [])
        for entry in attributes if isinstance(attributes, pikepdf.Array) else [attributes]:
            if isinstance(entry, pikepdf.Dictionary) and name in entry:
                return entry[name]
        return None


class Tagged(Document):
    """A PDF with its tag tree."""

    @cached_property
    def elements(self) -> list[Element]:
        """All elements in reading order."""
        top = self.root.get("/StructTreeRoot", {}).get("/K", [])
        tops = top if isinstance(top, pikepdf.Array) else [top]
        return [element for entry in tops for element in Element(entry, None).all()]

    def tagged(self, *tags: str) -> list[Element]:
        """Elements of the given tags."""
        return [element for element in self.elements if element.tag in tags]

    @cached_property
    def page_numbers(self) -> dict[tuple[int, int], int]:
        """Object of a page -> its number from 0."""
        return {page.obj.objgen: number for number, page in enumerate(self.pdf.pages)}


def reachable(page: pikepdf.Page) -> list[Any]:
    """Annotations of a page but those outside of it, as an invisible signature has (ISO 14289-1, 7.18.1)."""
    left, bottom, right, top = (float(edge) for edge in page.cropbox)
    found = []
    for annotation in page.get("/Annots", []):
        x1, y1, x2, y2 = (float(edge) for edge in annotation.Rect)
        if x2 > left and x1 < right and y2 > bottom and y1 < top:
            found.append(annotation)
    return found


def complaints(data: bytes, rules: dict[str, Rule] | None = None) -> list[str]:
    """What is wrong with a PDF by some rules, or by those of both standards, each with its clause."""
    document = Tagged(data)
    chosen = ARCHIVE | ACCESS if rules is None else rules
    return [f"{clause} ({name}): {said}" for name, (clause, check) in chosen.items() for said in check(document)]


def language_tag(text: str) -> bool:
    """Whether `text` is a language tag as RFC 5646 writes them."""
    return re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", text) is not None


@rule("ISO 14289-1, 5 (06-002)", ACCESS)
def declared(document: Tagged) -> Iterator[str]:
    if document.property("pdfuaid", "part") != "1":
        yield "not identified as PDF/UA-1"


@rule("ISO 14289-1, 7.1 (01-003, 01-004, 01-005)", ACCESS)
def all_content_is_tagged(document: Tagged) -> Iterator[str]:
    for number, pieces in enumerate(document.pieces, start=1):
        for piece in pieces:
            if piece.nested:
                yield f"page {number}: {piece.nested}"
            if not piece.artifact and piece.mcid is None:
                yield f"page {number}: {piece.operator} is neither tagged nor an artifact"


@rule("ISO 14289-1, 7.1 (01-005); ISO 32000-1, 14.7.4.4", ACCESS)
def parent_tree(document: Tagged) -> Iterator[str]:
    numbers = list(document.root.StructTreeRoot.ParentTree.get("/Nums", []))
    table = dict(zip([int(number) for number in numbers[::2]], numbers[1::2], strict=True))
    owner = {mark: element.source.objgen for element in document.elements for mark in element.marks}
    for page, pieces in zip(document.pdf.pages, document.pieces, strict=True):
        held = table.get(int(page.obj.get("/StructParents", -1)), [])
        for mcid in {piece.mcid for piece in pieces if piece.mcid is not None and not piece.artifact}:
            entry = held[mcid] if mcid < len(held) else None
            if entry is None or owner.get((page.obj.objgen, mcid)) != entry.objgen:
                yield f"content {mcid} of a page belongs to no element, or to another than the parent tree says"
    holder = {a.objgen: element.source.objgen for element in document.elements for a in element.annotations}
    for page in document.pdf.pages:
        for annotation in reachable(page):
            entry = table.get(int(annotation.get("/StructParent", -1)))
            if entry is None or holder.get(annotation.objgen) != entry.objgen:
                yield "an annotation belongs to no element, or to another than the parent tree says"


@rule("ISO 14289-1, 7.1 (02-001, 02-003, 02-004)", ACCESS)
def standard_types(document: Tagged) -> Iterator[str]:
    roles = document.root.get("/StructTreeRoot", {}).get("/RoleMap", {})
    if any(str(key)[1:] in STANDARD for key in roles):
        yield "a standard type is mapped to another"
    for element in document.elements:
        if element.tag not in STANDARD:
            yield f"{element.tag} is no standard type"


@rule("ISO 14289-1, 7.1 (01-007, 07-001, 07-002, 06-001, 06-003)", ACCESS)
def title(document: Tagged) -> Iterator[str]:
    if document.root.get("/MarkInfo", {}).get("/Suspects", False):
        yield "tags that are suspect"
    if not document.root.get("/ViewerPreferences", {}).get("/DisplayDocTitle", False):
        yield "a reader shows the file's name, not its title"
    if not document.property("dc", "title"):
        yield "no title"


@rule("ISO 14289-1, 7.2 (11-001 to 11-006)", ACCESS)
def language(document: Tagged) -> Iterator[str]:
    if not language_tag(str(document.root.get("/Lang", ""))):
        yield "no language"
    for element in document.elements:
        if "/Lang" in element.source and not language_tag(str(element.source.Lang)):
            yield f"“{element.source.Lang}” is no language"


@rule("ISO 14289-1, 7.2 (09-004 to 09-008); ISO 32000-1, 14.8.4.3", ACCESS)
def nesting(document: Tagged) -> Iterator[str]:
    wrong_in_text = HEADINGS | {"P", "Div", "Sect", "Part", "Art", "L", "Table", "Caption"}
    for element in document.elements:
        wrong = {kid.tag for kid in element.kids} - KIDS.get(element.tag, {kid.tag for kid in element.kids})
        if wrong:
            yield f"{element.tag} holds {', '.join(sorted(wrong))}"
        if element.tag in HEADINGS | {"P"} and wrong_in_text & {kid.tag for kid in element.all() if kid is not element}:
            yield f"{element.tag} holds a block"
        if element.marks and element.tag in KIDS:
            yield f"{element.tag} holds content itself"
        parent = element.parent.tag if element.parent else ""
        if element.tag in PARENTS and parent not in PARENTS[element.tag]:
            yield f"{element.tag} stands in {parent or 'nothing'}"
        if element.tag == "Link" and any(kid.tag == "Link" for kid in element.all() if kid is not element):
            yield "a link within a link"
        if not element.kids and not element.marks and not element.annotations and element.tag not in {"TD", "TH"}:
            yield f"an empty {element.tag}"


@rule("ISO 14289-1, 7.5 (15-003); ISO 14289-1, 7.2", ACCESS)
def tables(document: Tagged) -> Iterator[str]:
    for table in document.tagged("Table"):
        counts = {tag: sum(kid.tag == tag for kid in table.kids) for tag in ("THead", "TFoot", "TBody", "Caption")}
        if counts["THead"] > 1 or counts["TFoot"] > 1 or counts["Caption"] > 1:
            yield f"a table with several heads, feet or captions: {counts}"
        if (counts["THead"] or counts["TFoot"]) and not counts["TBody"]:
            yield "a table with a head and no body"
        if counts["Caption"] and "Caption" not in {table.kids[0].tag, table.kids[-1].tag}:
            yield "a caption in the midst of a table"
        rows = [row for kid in table.kids for row in ([kid] if kid.tag == "TR" else kid.kids) if row.tag == "TR"]
        widths = _row_widths(rows)
        if len(set(widths)) > 1:
            yield f"a table whose rows have {sorted(set(widths))} columns"
        for cell in (cell for row in rows for cell in row.kids if cell.tag == "TH"):
            if str(cell.attribute("/Scope")) not in {"/Row", "/Column", "/Both"}:
                yield "a header cell without scope"


def _row_widths(rows: list[Element]) -> list[int]:
    widths = [0] * len(rows)
    for index, row in enumerate(rows):
        for cell in row.kids:
            across, down = int(cell.attribute("/ColSpan") or 1), int(cell.attribute("/RowSpan") or 1)
            for below in range(index, min(index + down, len(rows))):
                widths[below] += across
    return widths


@rule("ISO 14289-1, 7.3 (13-004)", ACCESS)
def figures(document: Tagged) -> Iterator[str]:
    for figure in document.tagged("Figure", "Formula"):
        if not str(figure.source.get("/Alt", "")).strip() and not str(figure.source.get("/ActualText", "")).strip():
            yield "a figure without alternate description"


@rule("ISO 32000-1, 14.8.5.4.3", ACCESS)
def figures_say_where_they_are(document: Tagged) -> Iterator[str]:
    for figure in document.tagged("Figure"):
        box = figure.attribute("/BBox")
        number = document.page_numbers.get(figure.source.get("/Pg").objgen)
        if box is None or number is None:
            yield "a figure without bounding box"
            continue
        x1, y1, x2, y2 = (float(edge) for edge in box)
        page = [float(edge) for edge in document.pdf.pages[number].mediabox]
        if not (page[0] - 1 <= x1 < x2 <= page[2] + 1 and page[1] - 1 <= y1 < y2 <= page[3] + 1):
            yield f"a figure at {x1, y1, x2, y2} outside its page"


@rule("ISO 14289-1, 7.4 (14-002, 14-003, 14-006, 14-007)", ACCESS)
def headings(document: Tagged) -> Iterator[str]:
    levels = [int(element.tag[1]) for element in document.elements if element.tag in HEADINGS]
    if not levels or levels[0] != 1:
        yield "the first heading is not H1"
    if any(after - before > 1 for before, after in itertools.pairwise(levels)):
        yield "a heading level is skipped"
    if document.tagged("H"):
        yield "H beside numbered headings"


@rule("ISO 14289-1, 7.9 (19-003, 19-004); ISO 32000-1, table 322", ACCESS)
def identifiers(document: Tagged) -> Iterator[str]:
    identifiers = [bytes(element.source.ID) for element in document.elements if "/ID" in element.source]
    if identifiers and "/IDTree" not in document.root.StructTreeRoot:
        yield "elements with identifiers, but no tree of them"
    if len(identifiers) != len(set(identifiers)):
        yield "identifiers that occur twice"
    if any("/ID" not in note.source for note in document.tagged("Note")):
        yield "a note without identifier"


@rule("ISO 14289-1, 7.18.1, 7.18.3, 7.18.5 (28-002, 28-008, 28-011, 28-012)", ACCESS)
def links(document: Tagged) -> Iterator[str]:
    holder = {a.objgen: element.tag for element in document.elements for a in element.annotations}
    for page in document.pdf.pages:
        annotations = reachable(page)
        if annotations and page.obj.get("/Tabs") != Name.S:
            yield "a page whose annotations are not visited in the order of the structure"
        for annotation in annotations:
            if annotation.Subtype == Name.Link and holder.get(annotation.objgen) != "Link":
                yield "a link annotation outside a Link"
            if not str(annotation.get("/Contents", "")).strip():
                yield "an annotation without description"
    for link in document.tagged("Link"):
        if not link.annotations:
            yield "a Link that leads nowhere"


@rule("ISO 32000-1, 12.3.2", ACCESS)
def destinations(document: Tagged) -> Iterator[str]:
    names = list(document.root.get("/Names", {}).get("/Dests", {}).get("/Names", []))
    known = {str(key) for key in names[::2]}
    for page in document.pdf.pages:
        for annotation in page.get("/Annots", []):
            if "/Dest" in annotation and str(annotation.Dest) not in known:
                yield f"a link to {annotation.Dest}, which is nowhere"


@rule("ISO 14289-1, 7.20 (30-002)", ACCESS)
def forms_are_not_tagged_twice(document: Tagged) -> Iterator[str]:
    for stream in document.streams:
        if stream.get("/Subtype") == Name.Form:
            for instruction in pikepdf.parse_content_stream(stream):
                if str(instruction.operator) == "BDC" and "/MCID" in instruction.operands[1]:
                    yield "tagged content inside a form XObject"


@rule("ISO 14289-1, 7.17 (27-001); ISO 32000-1, 12.3.3, 12.4.2", ACCESS)
def navigation(document: Tagged) -> Iterator[str]:
    if "/PageLabels" not in document.root:
        yield "no page labels"
    titles: list[str] = []

    def walk(entry: Any, level: int) -> None:
        while entry is not None:
            titles.append(f"{level} {entry.Title}")
            if "/Dest" not in entry:
                titles.append("")
            walk(entry.get("/First"), level + 1)
            entry = entry.get("/Next")

    walk(document.root.get("/Outlines", {}).get("/First"), 1)
    sections = document.tagged("H2")
    if len([entry for entry in titles if entry.startswith("1 ")]) < len(sections):
        yield f"{len(sections)} sections, but only {titles}"
    if "" in titles:
        yield "a bookmark that leads nowhere"
