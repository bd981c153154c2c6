"""HTML to PDF through WeasyPrint: tagged, made for archives (PDF/A-3a, PDF/UA-1), the same bytes for the same record.

What WeasyPrint 70 leaves to its caller is done here: the identification as PDF/UA beside PDF/A, a refusal of characters that
no typeface has, and the time stamps of fonts that fontTools subsets.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from semlens_audit.errors import AuditError, ExecutionError

__all__ = ["to_pdf"]

_APT = "apt-get install -y libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz0b libharfbuzz-subset0 fonts-dejavu-core"
_VARIANT = "pdf/a-3a"

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


class _Complaints(logging.Handler):
    """Keeps what WeasyPrint complains about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.missing: dict[str, None] = {}
        self.failures: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(".notdef") and isinstance(record.args, tuple):
            character, point = record.args
            self.missing[f"“{character}” (U+{point:04X})"] = None
        elif record.levelno >= logging.ERROR:
            self.failures.append(text)

    def check(self) -> None:
        """Raise what must not pass silently."""
        if self.missing:
            raise AuditError(
                "missing-glyph",
                f"No installed typeface has {', '.join(self.missing)}.",
                "Install a typeface that has them, e.g. fonts-noto-core or fonts-noto-cjk on Debian. The HTML report "
                "does not need it.",
            )
        if self.failures:
            raise ExecutionError("pdf-failed", f"The PDF is incomplete: {'; '.join(self.failures[:3])}.")


@contextmanager
def _listening() -> Iterator[_Complaints]:
    complaints, logger = _Complaints(), logging.getLogger("weasyprint")
    logger.addHandler(complaints)
    try:
        yield complaints
    finally:
        logger.removeHandler(complaints)


@contextmanager
def _source_date(created: str) -> Iterator[None]:
    """Time stamp for fontTools, which subsets fonts where HarfBuzz cannot and reads ``SOURCE_DATE_EPOCH``."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        moment = datetime.fromtimestamp(0, UTC)
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = str(int(moment.timestamp()))
    try:
        yield
    finally:
        del os.environ["SOURCE_DATE_EPOCH"]
        if before is not None:
            os.environ["SOURCE_DATE_EPOCH"] = before


def _declare_accessible(_: Any, pdf: Any) -> None:
    """Add the identification as PDF/UA-1 to the metadata that WeasyPrint wrote for PDF/A."""
    reference = pdf.catalog["Metadata"]
    metadata = next(item for item in pdf.objects if getattr(item, "reference", None) == reference)
    whole = b"".join(part if isinstance(part, bytes) else bytes(part) for part in metadata.stream)
    head, closing, tail = whole.rpartition(b"</rdf:RDF>")
    if not closing:
        raise ExecutionError("pdf-failed", "The PDF's metadata have an unknown form.", "Use the WeasyPrint of constraints.txt.")
    metadata.stream = [head + _UA + closing + tail]


def to_pdf(html: str, identifier: str, created: str) -> bytes:
    """Lay out `html`.

    Parameters
    ----------
    html
        A page whose every image and typeface is a ``data:`` URI.
    identifier
        32 hexadecimal digits or more that identify the document.
    created
        ISO 8601 time the document carries.

    Raises
    ------
    AuditError
        Slug ``pango-missing`` without Pango, ``missing-glyph`` for a character that no typeface has.
    ExecutionError
        Slug ``pdf-failed``: an image could not be drawn, or something outside the page was asked for.
    """
    try:
        import weasyprint
        from weasyprint.urls import URLFetcher
    except OSError as error:
        raise AuditError(
            "pango-missing",
            f"The PDF needs the text layout library Pango, which is not installed ({error}).",
            f"On Debian and Ubuntu: {_APT}. The HTML report does not need it.",
        ) from error
    with _listening() as complaints, _source_date(created):
        page = weasyprint.HTML(string=html, url_fetcher=URLFetcher(allowed_protocols=("data",)))
        data = page.write_pdf(
            finisher=_declare_accessible, pdf_variant=_VARIANT, pdf_tags=True, pdf_identifier=bytes.fromhex(identifier[:32])
        )
    complaints.check()
    return bytes(data)
