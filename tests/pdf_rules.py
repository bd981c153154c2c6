"""Rules of PDF/A-3a (ISO 19005-3) that a program can check, a rule at a time.

Not a validator: the rules that files of this project could break, each tied to its clause. `tests/pdf_ua_rules.py` has those of
PDF/UA-1. Every rule is broken on purpose in `tests/unit/test_pdf_structure.py`, to see that it complains.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator

import pikepdf
from fontTools.ttLib import TTFont
from pikepdf import Name

from tests.pdf_document import NAMESPACES, Check, Document, Rule, to_unicode

RELATIONSHIPS = {"/Source", "/Data", "/Alternative", "/Supplement", "/Unspecified"}
BLENDS = {
    "/Normal", "/Compatible", "/Multiply", "/Screen", "/Overlay", "/Darken", "/Lighten", "/ColorDodge", "/ColorBurn", "/HardLight",
    "/SoftLight", "/Difference", "/Exclusion", "/Hue", "/Saturation", "/Color", "/Luminosity",
}  # fmt: skip
ACTIONS = {"/GoTo", "/Thread", "/URI", "/Named"}
ARCHIVE: dict[str, Rule] = {}


def rule(clause: str, into: dict[str, Rule] = ARCHIVE) -> Callable[[Check], Check]:
    """Enter a check, under its name."""

    def enter(check: Check) -> Check:
        into[check.__name__] = Rule(clause, check)
        return check

    return enter


def _widths(descendant: pikepdf.Object) -> dict[int, float]:
    widths: dict[int, float] = {}
    items = list(descendant.get("/W", []))
    while items:
        first = int(items.pop(0))
        following = items.pop(0)
        if isinstance(following, pikepdf.Array):
            widths.update({first + i: float(width) for i, width in enumerate(following)})
        else:
            width = float(items.pop(0))
            widths.update(dict.fromkeys(range(first, int(following) + 1), width))
    return widths


@rule("ISO 19005-3, 6.1.2")
def header(document: Document) -> Iterator[str]:
    if not re.match(rb"%PDF-1\.[0-7]\r?\n%[\x80-\xff]{4}", document.data):
        yield "the file does not begin with a version and a comment of four bytes over 127"


@rule("ISO 19005-3, 6.1.3")
def trailer(document: Document) -> Iterator[str]:
    identifiers = [bytes(item) for item in document.pdf.trailer.get("/ID", [])]
    if len(identifiers) != 2 or not all(len(item) >= 16 for item in identifiers):
        yield "no two identifiers"
    if "/Encrypt" in document.pdf.trailer:
        yield "encrypted"
    if not re.search(rb"%%EOF\r?\n?\Z", document.data):
        yield "data after the last end of file"


@rule("ISO 19005-3, 6.1.7")
def streams(document: Document) -> Iterator[str]:
    for stream in document.streams:
        if any(key in stream for key in ("/F", "/FFilter", "/FDecodeParms")):
            yield "a stream outside the file"
        filters = stream.get("/Filter", [])
        for name in [filters] if isinstance(filters, pikepdf.Name) else filters:
            if str(name) in {"/LZWDecode", "/Crypt"}:
                yield f"the filter {name}"


@rule("ISO 19005-3, 6.1.12")
def permissions(document: Document) -> Iterator[str]:
    granted = document.root.get("/Perms", {})
    for key in granted:
        if key not in {"/UR3", "/DocMDP"}:
            yield f"the permission {key}"
    for reference in granted.get("/DocMDP", {}).get("/Reference", []):
        if any(key in reference for key in ("/DigestLocation", "/DigestMethod", "/DigestValue")):
            yield "a digest in the reference of a signature"


@rule("ISO 19005-3, 6.1.13")
def limits(document: Document) -> Iterator[str]:
    for entry in document.dictionaries():
        for key in entry:
            value = entry.get(key)
            if len(key) > 128:
                yield "a name longer than 127 bytes"
            if isinstance(value, int) and not -(2**31) <= value < 2**31:
                yield f"{value} is no 32-bit integer"
            if isinstance(value, pikepdf.String) and len(bytes(value)) > 32767:
                yield f"a string of {len(bytes(value))} bytes"
    for page in document.pdf.pages:
        deep = deepest = 0
        for instruction in pikepdf.parse_content_stream(page, "q Q"):
            deep += 1 if str(instruction.operator) == "q" else -1
            deepest = max(deep, deepest)
        if deepest > 28:
            yield f"graphics states nested {deepest} times"


@rule("ISO 19005-3, 6.2.3")
def output_intent(document: Document) -> Iterator[str]:
    intents = [intent for intent in document.root.get("/OutputIntents", []) if intent.get("/S") == Name.GTS_PDFA1]
    if len(intents) != 1 or "/DestOutputProfile" not in intents[0]:
        yield "not one output intent with a profile"
        return
    profile = intents[0].DestOutputProfile
    data = profile.read_bytes()
    if data[36:40] != b"acsp" or data[16:20] != b"RGB " or data[12:16] not in {b"mntr", b"prtr"} or data[8] > 4:
        yield "the profile is no RGB profile of version 4 or less"
    if int(profile.N) != 3:
        yield "the profile's N is not 3"


@rule("ISO 19005-3, 6.2.4.3")
def device_colours(document: Document) -> Iterator[str]:
    for entry in document.dictionaries():
        spaces = [entry.get(key) for key in ("/ColorSpace", "/CS")]
        if Name.DeviceCMYK in [space for space in spaces if isinstance(space, pikepdf.Name)]:
            yield "DeviceCMYK with an RGB output intent"
    for page in document.pdf.pages:
        if any(str(instruction.operator) in {"k", "K"} for instruction in pikepdf.parse_content_stream(page)):
            yield "a CMYK colour with an RGB output intent"


@rule("ISO 19005-3, 6.2.5")
def graphics_states(document: Document) -> Iterator[str]:
    for entry in document.dictionaries():
        for name, state in (
            (entry.get("/ExtGState") or {}).items() if isinstance(entry.get("/ExtGState"), pikepdf.Dictionary) else ()
        ):
            if "/TR" in state or "/HTO" in state or ("/TR2" in state and Name.Default != state.TR2):
                yield f"a transfer function or half-tone origin in {name}"


@rule("ISO 19005-3, 6.2.8")
def images(document: Document) -> Iterator[str]:
    for stream in document.streams:
        if stream.get("/Subtype") == Name.Image:
            if stream.get("/Interpolate", False):
                yield "an image to be interpolated"
            if "/Alternates" in stream or "/OPI" in stream:
                yield "an image with alternatives"
            if int(stream.get("/BitsPerComponent", 1)) not in {1, 2, 4, 8, 16}:
                yield "an image of an odd depth"


@rule("ISO 19005-3, 6.2.9")
def forms(document: Document) -> Iterator[str]:
    for stream in document.streams:
        if stream.get("/Subtype") == Name.PS or any(key in stream for key in ("/PS", "/OPI", "/Ref", "/Subtype2")):
            yield "a PostScript or reference XObject"


@rule("ISO 19005-3, 6.2.10")
def transparency(document: Document) -> Iterator[str]:
    for entry in document.dictionaries():
        if entry.get("/Type") == Name.ExtGState or "/ca" in entry or "/CA" in entry:
            blend = entry.get("/BM")
            if blend is not None and str(blend) not in BLENDS:
                yield f"the blend mode {blend}"
        group = entry.get("/Group")
        if isinstance(group, pikepdf.Dictionary) and group.get("/CS") == Name.DeviceCMYK:
            yield "a transparency group blended in CMYK"


@rule("ISO 19005-3, 6.2.11.4")
def embedded_fonts(document: Document) -> Iterator[str]:
    if not document.fonts:
        yield "there are no fonts"
    for font in document.fonts.values():
        for descendant in font.get("/DescendantFonts", [font]):
            descriptor = descendant.get("/FontDescriptor", {})
            if not any(key in descriptor for key in ("/FontFile", "/FontFile2", "/FontFile3")):
                yield f"{font.get('/BaseFont')} is not embedded"


@rule("ISO 19005-3, 6.2.11.3")
def composite_fonts(document: Document) -> Iterator[str]:
    for font in document.fonts.values():
        if font.get("/Subtype") != Name.Type0 or font.get("/Encoding") != Name("/Identity-H"):
            yield f"{font.get('/BaseFont')} is no composite font with the encoding Identity-H"
            continue
        system = font.DescendantFonts[0].get("/CIDSystemInfo", {})
        if (str(system.get("/Registry")), str(system.get("/Ordering"))) != ("Adobe", "Identity"):
            yield f"{font.BaseFont} has another character collection than its encoding"
        if (
            font.DescendantFonts[0].get("/Subtype") == Name.CIDFontType2
            and font.DescendantFonts[0].get("/CIDToGIDMap") != Name.Identity
        ):
            yield f"{font.BaseFont} does not map characters to glyphs"


@rule("ISO 19005-3, 6.2.11.5")
def glyph_widths(document: Document) -> Iterator[str]:
    for name, codes in document.shown.items():
        if name not in document.fonts or "/DescendantFonts" not in document.fonts[name]:
            yield f"text is shown with {name}, which is no font of this file"
            continue
        descendant = document.fonts[name].DescendantFonts[0]
        stated, default = _widths(descendant), float(descendant.get("/DW", 1000))
        descriptor = descendant.get("/FontDescriptor", {})
        if "/FontFile2" not in descriptor:
            continue
        program = TTFont(io.BytesIO(descriptor.FontFile2.read_bytes()))
        metrics, order, scale = program["hmtx"], program.getGlyphOrder(), 1000 / program["head"].unitsPerEm
        for code in sorted(codes):
            if code >= len(order):
                yield f"{name} has no glyph {code}, which is shown"
            elif abs(metrics[order[code]][0] * scale - stated.get(code, default)) > 1:
                yield f"glyph {code} of {name} is {metrics[order[code]][0] * scale:.1f} wide, not {stated.get(code, default):.1f}"


@rule("ISO 19005-3, 6.2.11.7")
def unicode_of_glyphs(document: Document) -> Iterator[str]:
    for name, codes in document.shown.items():
        known = to_unicode(document.fonts[name]) if name in document.fonts else {}
        for code in sorted(codes):
            if not known.get(code) or any(character in "\0\ufeff\ufffe" for character in known[code]):
                yield f"glyph {code} of {name} stands for no character"


@rule("ISO 19005-3, 6.2.11.8")
def no_missing_glyph(document: Document) -> Iterator[str]:
    for name, codes in document.shown.items():
        if 0 in codes:
            yield f"the missing glyph of {name} is shown"


@rule("ISO 19005-3, 6.3")
def annotations(document: Document) -> Iterator[str]:
    for page in document.pdf.pages:
        for annotation in page.get("/Annots", []):
            if annotation.Subtype not in {Name.Link, Name.Widget, Name.Text, Name.FreeText}:
                yield f"an annotation {annotation.Subtype}"
            flags = int(annotation.get("/F", 0))
            if not flags & 4 or flags & (1 | 2 | 32 | 256):
                yield f"an annotation that is not printed or hidden (F {flags})"


@rule("ISO 19005-3, 6.4")
def interactive_forms(document: Document) -> Iterator[str]:
    form = document.root.get("/AcroForm", {})
    if form.get("/NeedAppearances", False) or "/XFA" in form:
        yield "a form without appearances, or of XFA"
    if "/NeedsRendering" in document.root:
        yield "a form that must be rendered anew"


@rule("ISO 19005-3, 6.5")
def actions(document: Document) -> Iterator[str]:
    for entry in document.dictionaries():
        if "/AA" in entry or "/JS" in entry or "/JavaScript" in entry:
            yield "an additional action or a script"
        kind = entry.get("/S")
        if entry.get("/Type") == Name.Action and str(kind) not in ACTIONS:
            yield f"an action {kind}"
        if "/URI" in entry:
            yield "a link out of the document"


@rule("ISO 19005-3, 6.6.2")
def metadata(document: Document) -> Iterator[str]:
    if "/Metadata" not in document.root or document.root.Metadata.get("/Subtype") != Name.XML:
        yield "no metadata"
        return
    text = document.root.Metadata.read_bytes()
    if document.xmp is None:
        yield "the metadata are no well-formed XML"
    beginning = re.match(rb"<\?xpacket [^>]*\?>", text)
    if beginning is None or b"bytes=" in beginning[0] or b"encoding=" in beginning[0]:
        yield "the metadata packet has no header, or one with bytes or encoding"


@rule("ISO 19005-3, 6.6.4")
def identification(document: Document) -> Iterator[str]:
    found = (document.property("pdfaid", "part"), document.property("pdfaid", "conformance"))
    if found != ("3", "A"):
        yield f"identified as {found}, not as PDF/A-3a"


@rule("ISO 19005-3, 6.6.2.3")
def extension_schema(document: Document) -> Iterator[str]:
    described = (
        [] if document.xmp is None else [e.text for e in document.xmp.iter(f"{{{NAMESPACES['pdfaSchema']}}}namespaceURI")]
    )
    if NAMESPACES["pdfuaid"] not in described:
        yield "the properties of PDF/UA are used but not described"


@rule("ISO 19005-3, 6.6.3; ISO 32000-1, 14.3")
def same_facts(document: Document) -> Iterator[str]:
    pairs = {
        "/Title": ("dc", "title"), "/Author": ("dc", "creator"), "/Subject": ("dc", "description"),
        "/Producer": ("pdf", "Producer"), "/Creator": ("xmp", "CreatorTool"),
    }  # fmt: skip
    for key, (prefix, name) in pairs.items():
        stated = document.pdf.docinfo.get(key)
        if stated is None or str(stated) != document.property(prefix, name):
            yield f"{key} is {stated!s} in one place and {document.property(prefix, name)} in the other"
    for key, name in {"/CreationDate": "CreateDate", "/ModDate": "ModifyDate"}.items():
        digits = [
            re.sub(r"\D", "", str(text or ""))[:14] for text in (document.pdf.docinfo.get(key), document.property("xmp", name))
        ]
        if len(digits[0]) != 14 or digits[0] != digits[1]:
            yield f"{key} differs from {name}"


@rule("ISO 19005-3, 6.7.2")
def logical_structure(document: Document) -> Iterator[str]:
    if not document.root.get("/MarkInfo", {}).get("/Marked", False) or "/StructTreeRoot" not in document.root:
        yield "not tagged"


@rule("ISO 19005-3, 6.8")
def embedded_files(document: Document) -> Iterator[str]:
    entries = [entry for entry in document.dictionaries() if "/EF" in entry]
    for entry in entries:
        if not str(entry.get("/F", "")) or str(entry.get("/F")) != str(entry.get("/UF", "")):
            yield "an attached file without F and UF"
        if str(entry.get("/AFRelationship")) not in RELATIONSHIPS:
            yield "an attached file without relationship"
        if not str(entry.get("/Desc", "")):
            yield "an attached file without description"
        stream = entry.EF.get("/F", {})
        if not re.fullmatch(r"/[a-z]+/[\w.+-]+", str(stream.get("/Subtype", ""))):
            yield "an attached file without media type"
        parameters = stream.get("/Params", {})
        if "/ModDate" not in parameters or int(parameters.get("/Size", -1)) != len(stream.read_bytes()):
            yield "an attached file without date, or of another size than stated"
    associated = [item.objgen for item in document.root.get("/AF", [])]
    if sorted(associated) != sorted(entry.objgen for entry in entries):
        yield "an attached file is not associated with the document, or more than once"
    names = document.root.get("/Names", {}).get("/EmbeddedFiles", {}).get("/Names", [])
    keys = [bytes(key) for key in list(names)[::2]]
    if sorted(item.objgen for item in list(names)[1::2]) != sorted(associated) or keys != sorted(keys):
        yield "the name tree lists other files, or not in order"


@rule("ISO 19005-3, 6.9 to 6.11")
def nothing_else(document: Document) -> Iterator[str]:
    for key in ("/OCProperties", "/Requirements", "/Collection"):
        if key in document.root:
            yield f"{key} in the catalogue"
    if "/AlternatePresentations" in document.root.get("/Names", {}) or any("/PresSteps" in page for page in document.pdf.pages):
        yield "an alternative presentation"
