"""What a PDF says of itself beside its pages: metadata, attached files, page labels, descriptions of links."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from xml.sax.saxutils import escape

import pydyf

from semlens_audit.attachments import Attachment
from semlens_audit.errors import ExecutionError

__all__ = ["attach", "declare", "describe_links", "label_pages"]

_UA = b"""<rdf:Description rdf:about="" xmlns:pdfuaid="http://www.aiim.org/pdfua/ns/id/" pdfuaid:part="1"/>
<rdf:Description rdf:about="" xmlns:pdfaExtension="http://www.aiim.org/pdfa/ns/extension/"
 xmlns:pdfaSchema="http://www.aiim.org/pdfa/ns/schema#" xmlns:pdfaProperty="http://www.aiim.org/pdfa/ns/property#">
<pdfaExtension:schemas><rdf:Bag><rdf:li rdf:parseType="Resource">
<pdfaSchema:schema>PDF/UA Universal Accessibility Schema</pdfaSchema:schema>
<pdfaSchema:namespaceURI>http://www.aiim.org/pdfua/ns/id/</pdfaSchema:namespaceURI>
<pdfaSchema:prefix>pdfuaid</pdfaSchema:prefix>
<pdfaSchema:property><rdf:Seq><rdf:li rdf:parseType="Resource">
<pdfaProperty:name>part</pdfaProperty:name><pdfaProperty:valueType>Integer</pdfaProperty:valueType>
<pdfaProperty:category>internal</pdfaProperty:category>
<pdfaProperty:description>Part of ISO 14289 the file conforms to</pdfaProperty:description>
</rdf:li></rdf:Seq></pdfaSchema:property></rdf:li></rdf:Bag></pdfaExtension:schemas></rdf:Description>
"""
"""PDF/A allows a property outside its own schemas only with a description of its schema (ISO 19005-3, 6.6.2.3)."""
_PRODUCER = re.compile(rb'(pdf:Producer=")[^"]*(")')


def _unknown(what: str) -> ExecutionError:
    return ExecutionError("pdf-failed", f"The PDF has {what} of an unknown form.", "Use the WeasyPrint of constraints.txt.")


def declare(pdf: Any, producer: str) -> None:
    """Identify the file as PDF/UA-1 beside PDF/A, and name what made it, in the metadata and in the information dictionary.

    Parameters
    ----------
    pdf
        pydyf's PDF.
    producer
        Programs and versions that the bytes depend on.

    Raises
    ------
    ExecutionError
        Slug ``pdf-failed``: the metadata are not those that this WeasyPrint writes.
    """
    reference = pdf.catalog["Metadata"]
    metadata = next(item for item in pdf.objects if getattr(item, "reference", None) == reference)
    whole = b"".join(part if isinstance(part, bytes) else bytes(part) for part in metadata.stream)
    named = escape(producer, {'"': "&quot;"}).encode("utf-8")
    whole, replaced = _PRODUCER.subn(lambda match: match[1] + named + match[2], whole)
    head, closing, tail = whole.rpartition(b"</rdf:RDF>")
    if not closing or replaced != 1:
        raise _unknown("metadata")
    metadata.stream = [head + _UA + closing + tail]
    metadata.compress = False  # so that an archive's tools find it without decoding the file
    pdf.info["Producer"] = pydyf.String(producer)


def _date(moment: datetime) -> pydyf.String:
    return pydyf.String(moment.strftime("D:%Y%m%d%H%M%SZ"))


def attach(pdf: Any, files: Sequence[Attachment], moment: datetime) -> None:
    """Embed `files` and associate them with the document (ISO 19005-3, 6.8; ISO 32000-2, 14.13).

    Parameters
    ----------
    pdf
        pydyf's PDF, without attached files.
    files
        What to embed; names differ.
    moment
        UTC; stated as time of making and changing.
    """
    if not files:
        return
    entries = {file.name: pdf_file(pdf, file, moment).reference for file in files}
    # a name tree is sorted by the bytes of its keys (ISO 32000-1, 7.9.6); F, UF and key are the same text
    names = pydyf.Array()
    for name in sorted(entries, key=_encoded):
        names.extend([pydyf.String(name), entries[name]])
    tree = pydyf.Dictionary({"Names": names})
    pdf.add_object(tree)
    pdf.catalog.setdefault("Names", pydyf.Dictionary())["EmbeddedFiles"] = tree.reference
    pdf.catalog["AF"] = pydyf.Array(entries.values())


def _encoded(name: str) -> bytes:
    try:
        return name.encode("ascii")
    except UnicodeEncodeError:
        return b"\xfe\xff" + name.encode("utf-16-be")


def pdf_file(pdf: Any, file: Attachment, moment: datetime) -> Any:
    """The file specification of `file`, added to `pdf` with its content."""
    subtype = "".join(c if c.isalnum() or c in "-+._" else f"#{ord(c):02x}" for c in file.media_type)
    checksum = hashlib.md5(file.data, usedforsecurity=False).hexdigest()  # what ISO 32000-1, table 46 asks for
    parameters = {"Size": len(file.data), "CheckSum": f"<{checksum}>", "CreationDate": _date(moment), "ModDate": _date(moment)}
    extra = {"Type": "/EmbeddedFile", "Subtype": f"/{subtype}", "Params": pydyf.Dictionary(parameters)}
    stream = pydyf.Stream([file.data], pydyf.Dictionary(extra), compress=True)
    pdf.add_object(stream)
    entry = pydyf.Dictionary(
        {
            "Type": "/Filespec",
            "F": pydyf.String(file.name),
            "UF": pydyf.String(file.name),
            "EF": pydyf.Dictionary({"F": stream.reference, "UF": stream.reference}),
            "AFRelationship": f"/{file.relationship}",
            "Desc": pydyf.String(file.description),
        }
    )
    pdf.add_object(entry)
    return entry


def label_pages(pdf: Any) -> None:
    """Number pages in a reader as on paper, and open the file with its bookmarks."""
    pdf.catalog["PageLabels"] = pydyf.Dictionary({"Nums": pydyf.Array([0, pydyf.Dictionary({"S": "/D"})])})
    pdf.catalog["PageMode"] = "/UseOutlines"


def describe_links(document: Any) -> None:
    """Say where a link leads in words, not by the name of an anchor (ISO 14289-1, 7.18.5)."""
    for page in document.pages:
        for box in page._page_box.descendants():
            annotation = getattr(box, "link_annotation", None)
            if annotation and box.element is not None:
                words = " ".join("".join(box.element.itertext()).split())
                if words:
                    annotation["Contents"] = pydyf.String(f"Go to: {words}")
