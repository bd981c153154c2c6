"""A PDF opened and read once, for rules to look at: its dictionaries, content, fonts and metadata."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import pikepdf
from pikepdf import Name

Check = Callable[["Document"], Iterator[str]]
TEXT = {"Tj", "TJ", "'", '"'}
PAINT = TEXT | {"S", "s", "f", "F", "f*", "B", "B*", "b", "b*", "sh", "Do", "INLINE IMAGE"}
NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "pdf": "http://ns.adobe.com/pdf/1.3/",
    "pdfaid": "http://www.aiim.org/pdfa/ns/id/",
    "pdfuaid": "http://www.aiim.org/pdfua/ns/id/",
    "pdfaSchema": "http://www.aiim.org/pdfa/ns/schema#",
}


class Piece(NamedTuple):
    """A painting operator of a page, and the marked content it stands in."""

    operator: str
    operands: Any
    artifact: bool
    mcid: int | None
    nested: str
    """What is wrong with the nesting here, if anything."""


class Rule(NamedTuple):
    """One rule with the clause it comes from."""

    clause: str
    check: Check


class Document:
    """A PDF, its content, fonts and metadata read once."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pdf = pikepdf.open(io.BytesIO(data))
        self.root = self.pdf.Root
        self.objects = [entry for entry in self.pdf.objects if isinstance(entry, pikepdf.Object)]

    def dictionaries(self) -> Iterator[pikepdf.Object]:
        """Every dictionary and stream of the file, direct ones too."""
        for entry in self.objects:
            yield from self._below(entry, 0)

    def _below(self, value: Any, depth: int) -> Iterator[pikepdf.Object]:
        if depth > 20 or not isinstance(value, pikepdf.Object):
            return
        if isinstance(value, (pikepdf.Dictionary, pikepdf.Stream)):
            yield value
            children = [value.get(key) for key in value]
        elif isinstance(value, pikepdf.Array):
            children = list(value)
        else:
            return
        for child in children:
            if isinstance(child, pikepdf.Object) and not child.is_indirect:
                yield from self._below(child, depth + 1)

    @cached_property
    def streams(self) -> list[pikepdf.Object]:
        """Every stream."""
        return [entry for entry in self.objects if isinstance(entry, pikepdf.Stream)]

    @cached_property
    def xmp(self) -> ElementTree.Element | None:
        """The root of the metadata."""
        metadata = self.root.get("/Metadata")
        if metadata is None:
            return None
        text = metadata.read_bytes().decode("utf-8")
        try:
            return ElementTree.fromstring(text[text.index("<x:xmpmeta") : text.index("</x:xmpmeta>") + len("</x:xmpmeta>")])
        except (ValueError, ElementTree.ParseError):
            return None

    def property(self, prefix: str, name: str) -> str | None:
        """A property of the metadata, whether written as attribute or element."""
        if self.xmp is None:
            return None
        key = f"{{{NAMESPACES[prefix]}}}{name}"
        for description in self.xmp.iter(f"{{{NAMESPACES['rdf']}}}Description"):
            if key in description.attrib:
                return description.attrib[key]
            found = description.find(key)
            if found is not None:
                return "".join(found.itertext()).strip()
        return None

    @cached_property
    def pieces(self) -> list[list[Piece]]:
        """Painting operators of every page."""
        return [list(self._paint(page)) for page in self.pdf.pages]

    def _paint(self, page: pikepdf.Page) -> Iterator[Piece]:
        stack: list[tuple[bool, int | None]] = []
        wrong = ""
        for instruction in pikepdf.parse_content_stream(page):
            operator, operands = str(instruction.operator), instruction.operands
            if operator in {"BMC", "BDC"}:
                artifact = str(operands[0]) == "/Artifact"
                mcid = None
                if operator == "BDC" and isinstance(operands[1], pikepdf.Dictionary) and "/MCID" in operands[1]:
                    mcid = int(operands[1].MCID)
                if artifact and any(entry[1] is not None for entry in stack):
                    wrong = "an artifact inside tagged content"
                if mcid is not None and any(entry[0] for entry in stack):
                    wrong = "tagged content inside an artifact"
                stack.append((artifact, mcid))
            elif operator == "EMC":
                if not stack:
                    wrong = "EMC without BMC"
                else:
                    stack.pop()
            elif operator in PAINT:
                mcid = next((entry[1] for entry in reversed(stack) if entry[1] is not None), None)
                yield Piece(operator, operands, any(entry[0] for entry in stack), mcid, wrong)
                wrong = ""
        if stack or wrong:
            yield Piece("end", (), True, None, wrong or "BMC without EMC")

    @cached_property
    def fonts(self) -> dict[str, pikepdf.Object]:
        """Fonts by resource name; this project has one resource dictionary for all pages."""
        fonts: dict[str, pikepdf.Object] = {}
        for entry in self.dictionaries():
            for name, font in (entry.get("/Font") or {}).items() if isinstance(entry.get("/Font"), pikepdf.Dictionary) else ():
                fonts[str(name)] = font
        return fonts

    @cached_property
    def shown(self) -> dict[str, set[int]]:
        """Font -> glyph codes that some page or form shows with it."""
        shown: dict[str, set[int]] = {}
        holders: list[Any] = [*self.pdf.pages, *(s for s in self.streams if s.get("/Subtype") == Name.Form)]
        for holder in holders:
            current = ""
            for instruction in pikepdf.parse_content_stream(holder):
                operator = str(instruction.operator)
                if operator == "Tf":
                    current = str(instruction.operands[0])
                elif operator in TEXT:
                    for text in self._strings(instruction.operands):
                        codes = {int.from_bytes(text[i : i + 2], "big") for i in range(0, len(text), 2)}
                        shown.setdefault(current, set()).update(codes)
        return shown

    @staticmethod
    def _strings(operands: Any) -> Iterator[bytes]:
        for operand in operands:
            for item in operand if isinstance(operand, pikepdf.Array) else [operand]:
                if isinstance(item, pikepdf.String):
                    yield bytes(item)


def to_unicode(font: pikepdf.Object) -> dict[int, str]:
    """Glyph code -> text, as a font's ToUnicode says."""
    if "/ToUnicode" not in font:
        return {}
    text = font.ToUnicode.read_bytes().decode("latin-1")
    found = {}
    for block in re.findall(r"beginbfchar(.*?)endbfchar", text, re.DOTALL):
        for code, target in re.findall(r"<([0-9a-fA-F]+)>\s*<([0-9a-fA-F]*)>", block):
            found[int(code, 16)] = bytes.fromhex(target).decode("utf-16-be", "replace")
    return found
