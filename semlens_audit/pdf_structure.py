"""The tag tree of a PDF as PDF/UA-1 (ISO 14289-1) wants it, from the one WeasyPrint writes.

WeasyPrint tags every box of every page for itself. Here a section, table or paragraph that a page break cuts becomes one element
again, header rows repeated on a later page and page footers become artifacts, lists and links are nested as ISO 32000-1, 14.8.4
allows, header cells say which way they point, and pictures say where they are in the page's own units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydyf

from semlens_audit.errors import ExecutionError
from semlens_audit.pdf_fragments import Fragments

__all__ = ["finish_structure"]

_HEADINGS = frozenset(f"H{level}" for level in range(1, 7))
_GROUPS = frozenset({"Document", "Part", "Art", "Sect", "Div", "BlockQuote"})
_BLOCKS = _GROUPS | _HEADINGS | {"P", "L", "LI", "Lbl", "LBody", "Table", "THead", "TBody", "TFoot", "TR", "TH", "TD", "Caption"}
_TABLE_PARTS = frozenset({"Caption", "THead", "TBody", "TFoot"})
_PX = 0.75
"""Points a CSS pixel."""


@dataclass(frozen=True)
class _Mark:
    """Marked content of a page."""

    page: int
    mcid: int


@dataclass(frozen=True)
class _Annotation:
    """Reference to the annotation of a link."""

    page: int
    reference: bytes


@dataclass
class _Node:
    """A structure element."""

    tag: str
    kids: list[_Node | _Mark | _Annotation] = field(default_factory=list)
    alt: Any = None
    box: tuple[float, ...] | None = None
    page: int = 0
    spans: dict[str, int] = field(default_factory=dict)
    scope: str | None = None

    def nodes(self) -> list[_Node]:
        """Kids that are elements."""
        return [kid for kid in self.kids if isinstance(kid, _Node)]

    def marks(self) -> Iterator[_Mark]:
        """Marked content of this element and all below."""
        for kid in self.kids:
            if isinstance(kid, _Mark):
                yield kid
            elif isinstance(kid, _Node):
                yield from kid.marks()

    def links(self) -> Iterator[_Annotation]:
        """Annotations of this element and all below."""
        for kid in self.kids:
            if isinstance(kid, _Annotation):
                yield kid
            elif isinstance(kid, _Node):
                yield from kid.links()


def _unknown(what: str) -> ExecutionError:
    return ExecutionError("pdf-failed", f"The PDF's tags have an unknown form: {what}.", "Use the WeasyPrint of constraints.txt.")


class _Reader:
    """WeasyPrint's tag tree as nodes."""

    def __init__(self, pdf: Any) -> None:
        self.pdf = pdf
        self.pages = {reference: number for number, reference in enumerate(pdf.page_references)}
        self.reached: set[int] = set()

    def object(self, reference: bytes) -> Any:
        """The object that `reference` names."""
        return self.pdf.objects[int(reference.split()[0])]

    def node(self, element: Any) -> _Node:
        """An element with all below it."""
        self.reached.add(element.number)
        attributes = element.get("A", {})
        node = _Node(element["S"].removeprefix("/"), alt=element.get("Alt"), page=self.pages.get(element.get("Pg"), 0))
        if "BBox" in attributes:
            node.box = tuple(float(edge) for edge in attributes["BBox"])
        node.spans = {key: int(attributes[key]) for key in ("ColSpan", "RowSpan") if key in attributes}
        for kid in element["K"]:
            if isinstance(kid, int):
                node.kids.append(_Mark(node.page, kid))
                continue
            found = self.object(kid)
            if found.get("Type") == "/OBJR":
                self.reached.add(found.number)
                node.kids.append(_Annotation(self.pages[found["Pg"]], found["Obj"]))
            else:
                node.kids.append(self.node(found))
        return node


def _absorb(kids: Sequence[_Node | _Mark | _Annotation], *tags: str) -> list[_Node | _Mark | _Annotation]:
    """Kids, those of the given tags replaced by their own kids."""
    out: list[_Node | _Mark | _Annotation] = []
    for kid in kids:
        if isinstance(kid, _Node) and kid.tag in tags and kid.alt is None:
            out.extend(_absorb(kid.kids, *tags))
        else:
            out.append(kid)
    return out


def _in_blocks(node: _Node) -> None:
    """In a grouping element, text stands in paragraphs, and what has no meaning of its own is a division or a paragraph."""
    kids: list[_Node | _Mark | _Annotation] = []
    run: _Node | None = None
    for kid in _absorb(node.kids, "Span"):
        if isinstance(kid, _Node) and kid.tag == "NonStruct":
            blocks = any(below.tag in _BLOCKS or below.tag == "Figure" for below in kid.nodes())
            kid.tag = "Div" if blocks else "P"
        if isinstance(kid, _Node) and kid.tag == "Caption":
            kid.tag = "P"
        if isinstance(kid, _Node) and kid.tag != "Link":
            run = None
            kids.append(kid)
            continue
        if run is None:
            run = _Node("P", page=node.page)
            kids.append(run)
        run.kids.append(kid)
    node.kids = kids


def _in_list(node: _Node) -> None:
    """A list holds items, an item a label and a body; a division that holds a term and what it means is one item."""
    kids: list[_Node | _Mark | _Annotation] = []
    for kid in _absorb(node.kids, "NonStruct", "Span"):
        if isinstance(kid, _Node) and kid.tag == "Div":
            kids.append(_term(kid))
        elif isinstance(kid, _Node) and kid.tag in {"LI", "L", "Caption"}:
            kids.append(kid)
        else:
            kids.append(_Node("LI", [_Node("LBody", [kid], page=node.page)], page=node.page))
    nested = [kid for kid in kids if isinstance(kid, _Node) and kid.tag == "L"]
    node.kids = [below for kid in nested for below in kid.kids] if len(nested) == len(kids) else kids


def _term(division: _Node) -> _Node:
    bodies = [_Node("LBody", list(item.kids), page=item.page) for item in division.nodes() if item.tag == "LI"]
    bodies = [_Node("LBody", _absorb(body.kids, "LBody"), page=body.page) for body in bodies]
    if len(bodies) < 2:
        return _Node("LI", [_Node("LBody", _absorb(division.kids, "LI", "LBody"), page=division.page)], page=division.page)
    label = _Node("Lbl", bodies[0].kids, page=division.page)
    rest = bodies[1] if len(bodies) == 2 else _Node("LBody", [_Node("Div", b.kids, page=b.page) for b in bodies[1:]])
    return _Node("LI", [label, rest], page=division.page)


def _in_item(node: _Node) -> None:
    parts = [kid for kid in node.kids if isinstance(kid, _Node) and kid.tag in {"Lbl", "LBody"}]
    other = [kid for kid in node.kids if kid not in parts]
    if other:
        body = next((kid for kid in parts if kid.tag == "LBody"), None)
        if body is None:
            body = _Node("LBody", page=node.page)
            parts.append(body)
        body.kids.extend(other)
    node.kids = list(parts)


def _in_table(node: _Node) -> None:
    """Scope of every header cell: of a column in the head and where it spans a whole row of the body, else of a row."""
    node.kids = [kid for kid in _absorb(node.kids, "NonStruct", "Div", "Span") if isinstance(kid, _Node)]
    strange = [kid.tag for kid in node.nodes() if kid.tag not in _TABLE_PARTS | {"TR"}]
    if strange:
        raise _unknown(f"a table that holds {strange[0]}")
    rows = [(part.tag, row) for part in node.nodes() for row in ([part] if part.tag == "TR" else part.nodes()) if row.tag == "TR"]
    for part, row in rows:
        cells = [cell for cell in row.nodes() if cell.tag in {"TH", "TD"}]
        for cell in cells:
            if cell.tag == "TH":
                cell.scope = "Column" if part == "THead" or len(cells) == 1 else "Row"


def _tidy(node: _Node) -> None:
    """Nest what stands below `node` as ISO 32000-1, 14.8.4 allows."""
    if node.tag in _GROUPS:
        _in_blocks(node)
    elif node.tag == "L":
        _in_list(node)
    elif node.tag == "LI":
        _in_item(node)
    elif node.tag == "Table":
        _in_table(node)
    elif node.tag in {"THead", "TBody", "TFoot", "TR"}:
        node.kids = list(_absorb(node.kids, "NonStruct", "Div", "Span"))
    elif node.tag == "Link":
        node.kids = _absorb(node.kids, "Link", "Span", "NonStruct")
    else:
        # a box without an element of its own carries the tag of the one it stands in
        own = {node.tag, "P"} if node.tag in _HEADINGS | {"P", "Caption", "Lbl"} else set()
        node.kids = _absorb(node.kids, "Span", "NonStruct", *own)
        if node.tag in {"LBody", "TD", "TH"} and any(kid.tag in _BLOCKS for kid in node.nodes()):
            _in_blocks(node)
    for kid in node.nodes():
        _tidy(kid)
    node.kids = [kid for kid in node.kids if not isinstance(kid, _Node) or kid.kids or kid.tag in {"TD", "TH"}]


class _Writer:
    """Nodes as structure elements, in the places of those that WeasyPrint wrote."""

    def __init__(self, pdf: Any, places: list[int]) -> None:
        self.pdf = pdf
        self.places = iter(places)
        self.parents: dict[int, dict[int, bytes]] = {}
        self.annotations: dict[bytes, bytes] = {}
        self.heights = [float(pdf.objects[int(ref.split()[0])]["MediaBox"][3]) for ref in pdf.page_references]

    def place(self, value: Any) -> Any:
        """Put `value` among the PDF's objects."""
        number = next(self.places, None)
        if number is None:
            self.pdf.add_object(value)
        else:
            value.number = number
            self.pdf.objects[number] = value
        return value

    def write(self, node: _Node, parent: bytes) -> bytes:
        """Write an element with all below it; its reference."""
        element = self.place(pydyf.Dictionary({"Type": "/StructElem", "S": f"/{node.tag}", "P": parent}))
        references = self.pdf.page_references
        pages = [kid.page for kid in node.kids if isinstance(kid, _Mark)]
        own = pages[0] if pages else node.page
        if pages or node.tag == "Figure":
            element["Pg"] = references[own]
        if node.alt is not None:
            element["Alt"] = node.alt
        self._attributes(node, element)
        kids = pydyf.Array()
        for kid in node.kids:
            if isinstance(kid, _Node):
                kids.append(self.write(kid, element.reference))
            elif isinstance(kid, _Annotation):
                self.annotations[kid.reference] = element.reference
                kids.append(pydyf.Dictionary({"Type": "/OBJR", "Obj": kid.reference, "Pg": references[kid.page]}))
            else:
                self.parents.setdefault(kid.page, {})[kid.mcid] = element.reference
                elsewhere = pydyf.Dictionary({"Type": "/MCR", "Pg": references[kid.page], "MCID": kid.mcid})
                kids.append(kid.mcid if kid.page == own else elsewhere)
        if kids:
            element["K"] = kids[0] if len(kids) == 1 else kids
        return bytes(element.reference)

    def _attributes(self, node: _Node, element: Any) -> None:
        if node.tag == "Figure" and node.box is not None:
            x1, y1, x2, y2 = (_PX * edge for edge in node.box)
            height = self.heights[node.page]
            corners = [round(edge, 2) for edge in (x1, height - y2, x2, height - y1)]
            element["A"] = pydyf.Dictionary({"O": "/Layout", "BBox": pydyf.Array(corners)})
        if node.spans or node.scope:
            values: dict[str, Any] = {"O": "/Table", **node.spans}
            if node.scope:
                values["Scope"] = f"/{node.scope}"
            element["A"] = pydyf.Dictionary(values)


class _Null(pydyf.Object):  # type: ignore[misc]
    """An object that is no longer used."""

    data = b"null"


def finish_structure(document: Any, pdf: Any) -> None:
    """Replace the tag tree of `pdf`.

    Parameters
    ----------
    document
        WeasyPrint's laid out document; its boxes tell what a page break cut.
    pdf
        The pydyf PDF that it was painted into, before it is written.

    Raises
    ------
    ExecutionError
        Slug ``pdf-failed``: the tags have a form that this WeasyPrint does not write.
    """
    root_reference = pdf.catalog.get("StructTreeRoot")
    if root_reference is None:
        raise _unknown("there are none")
    reader = _Reader(pdf)
    structure_root = reader.object(root_reference)
    mapping = reader.object(structure_root["ParentTree"])
    top = reader.node(reader.object(structure_root["K"][0]))
    places = [n for n, o in enumerate(pdf.objects) if isinstance(o, dict) and o.get("Type") in {"/StructElem", "/OBJR"}]
    repeated = _join_pages(top, Fragments(document))
    _tidy(top)
    kept = {(mark.page, mark.mcid) for mark in top.marks()}
    for number, reference in enumerate(pdf.page_references):
        _mark_artifacts(pdf, reader.object(reference), number, kept)
        _drop_links(reader.object(reference), {link.reference for head in repeated for link in head.links()})
    writer = _Writer(pdf, places)
    structure_root["K"] = pydyf.Array([writer.write(top, root_reference)])
    for number in writer.places:
        unused = _Null()
        unused.number = number
        pdf.objects[number] = unused
    mapping["Nums"] = pydyf.Array(_numbers(pdf, writer, reader))
    structure_root["ParentTreeNextKey"] = max(mapping["Nums"][::2]) + 1


def _join_pages(top: _Node, fragments: Fragments) -> list[_Node]:
    """Join what page breaks cut; the heads of tables that are left out, because they repeat what stands on an earlier page."""
    repeated: list[_Node] = []
    kids, top.kids = top.kids, []
    for kid in kids:
        first = isinstance(kid, _Node) and not any(isinstance(o, _Node) and o.page == kid.page for o in top.kids)
        chain = fragments.chain(kid.page) if isinstance(kid, _Node) and first else ()
        last = top.kids[-1] if top.kids else None
        if chain and isinstance(kid, _Node) and isinstance(last, _Node) and last.tag == kid.tag:
            _join(last, kid, chain[1:], repeated)
        else:
            top.kids.append(kid)
    return repeated


def _join(old: _Node, new: _Node, chain: Sequence[str], repeated: list[_Node]) -> None:
    """Append to `old` what `new`, its continuation on the next page, holds; `chain` are the levels below that go on too."""
    kids = list(new.kids)
    if new.tag == "Table" and kids and chain[:1] == ["THead"]:
        head = kids.pop(0)
        if not isinstance(head, _Node) or head.tag != "THead":
            raise _unknown("a table without its repeated head")
        repeated.append(head)
        chain = chain[1:]
    if new.tag == "TR" and len(old.nodes()) == len(new.nodes()) == len(kids):
        for before, after in zip(old.nodes(), new.nodes(), strict=True):
            before.kids.extend(after.kids)
        return
    first, last = (kids[0] if kids else None), (old.kids[-1] if old.kids else None)
    if chain and isinstance(first, _Node) and isinstance(last, _Node) and first.tag == last.tag:
        _join(last, first, chain[1:], repeated)
        kids.pop(0)
    old.kids.extend(kids)


def _mark_artifacts(pdf: Any, page: Any, number: int, kept: set[tuple[int, int]]) -> None:
    """Content in no element is an artifact of pagination: running feet, and header rows once more (ISO 32000-1, 14.8.2.2)."""
    stream = pdf.objects[int(page["Contents"].split()[0])].stream
    for at, item in enumerate(stream):
        if isinstance(item, dict) and "MCID" in item and (number, item["MCID"]) not in kept:
            stream[at - 1] = "/Artifact"
            stream[at] = pydyf.Dictionary({"Type": "/Pagination"})


def _drop_links(page: Any, links: set[bytes]) -> None:
    """Without the links of header rows that are repeated: the first ones are enough, and an artifact cannot be followed."""
    if links and "Annots" in page:
        page["Annots"] = pydyf.Array(reference for reference in page["Annots"] if reference not in links)


def _numbers(pdf: Any, writer: _Writer, reader: _Reader) -> list[Any]:
    """The parent tree: which element each piece of marked content and each annotation belongs to (ISO 32000-1, 14.7.4.4)."""
    numbers: list[Any] = []
    for page in range(len(pdf.page_references)):
        held = writer.parents.get(page, {})
        numbers += [page, pydyf.Array(held.get(mcid, b"null") for mcid in range(max(held, default=-1) + 1))]
    for reference, owner in sorted(writer.annotations.items(), key=lambda entry: reader.object(entry[0])["StructParent"]):
        numbers += [reader.object(reference)["StructParent"], owner]
    return numbers
