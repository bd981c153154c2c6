"""HTML to PDF through WeasyPrint: tagged, archivable, reproducible."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from semlens_audit.digest import digest
from semlens_audit.errors import AuditError, ExecutionError
from semlens_audit.records import AuditRecord

__all__ = ["to_pdf"]

_APT = "apt-get install -y libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz0b libharfbuzz-subset0 fonts-dejavu-core"


class _Complaints(logging.Handler):
    """Keeps what WeasyPrint complains about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _source_date(moment: datetime) -> Iterator[None]:
    """fontTools, which subsets fonts where HarfBuzz cannot, takes its time stamp from ``SOURCE_DATE_EPOCH``."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = str(int(moment.timestamp()))
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOURCE_DATE_EPOCH"]
        else:
            os.environ["SOURCE_DATE_EPOCH"] = before


def _no_request(url: str, *_: object, **__: object) -> dict[str, object]:
    raise ExecutionError("external-resource", f"The report refers to {url}, which is not part of it.")


def to_pdf(html: str, record: AuditRecord) -> bytes:
    """Lay out `html`.

    Raises
    ------
    AuditError
        Slug ``pango-missing`` without Pango, ``missing-glyph`` for a character that no typeface has.
    """
    try:
        import weasyprint
    except OSError as error:
        raise AuditError(
            "pango-missing", f"The PDF needs the text layout library Pango, which is not installed ({error}).",
            f"On Debian and Ubuntu: {_APT}. The HTML report does not need it.",
        ) from error
    complaints = _Complaints()
    logger = logging.getLogger("weasyprint")
    logger.addHandler(complaints)
    try:
        moment = datetime.fromisoformat(record.created)
    except ValueError:
        moment = datetime.fromtimestamp(0, UTC)
    try:
        with _source_date(moment):
            document = weasyprint.HTML(string=html).render(pdf_variant="pdf/a-3a", pdf_tags=True)
            data = document.write_pdf(pdf_variant="pdf/a-3a", pdf_tags=True, pdf_identifier=bytes.fromhex(digest(record.model_dump(mode="json"))[:32]))
    finally:
        logger.removeHandler(complaints)

    return bytes(data)
