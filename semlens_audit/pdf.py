"""HTML to PDF through WeasyPrint: tagged, made for archives (PDF/A-3a, PDF/UA-1), the same bytes for the same record.

What WeasyPrint 70 leaves to its caller is done here: a refusal of characters that no typeface has, and the time stamps of fonts
that fontTools subsets; and in `pdf_structure` and `pdf_catalog`: the tag tree, metadata, attached files.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pydyf

from semlens_audit import __version__
from semlens_audit.attachments import Attachment
from semlens_audit.errors import AuditError, ExecutionError
from semlens_audit.pdf_catalog import attach, declare, describe_links, label_pages
from semlens_audit.pdf_parts import open_pdf, reading
from semlens_audit.pdf_structure import finish_structure

__all__ = ["read_renderer", "renderer", "to_pdf"]

_APT = "apt-get install -y libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz0b libharfbuzz-subset0 fonts-dejavu-core"
_VARIANT = "pdf/a-3a"

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
def _source_date(moment: datetime) -> Iterator[None]:
    """Time stamp for fontTools, which subsets fonts where HarfBuzz cannot and reads ``SOURCE_DATE_EPOCH``."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = str(int(moment.timestamp()))
    try:
        yield
    finally:
        del os.environ["SOURCE_DATE_EPOCH"]
        if before is not None:
            os.environ["SOURCE_DATE_EPOCH"] = before


def renderer() -> str:
    """Programs and versions that the bytes of a PDF depend on, beside the record: the ``Producer`` of every PDF made here.

    Raises
    ------
    AuditError
        Slug ``pango-missing`` without Pango.
    """
    with _needing_pango():
        import weasyprint
        from weasyprint.text.ffi import harfbuzz, harfbuzz_subset, pango
    number = pango.pango_version()
    parts = {
        "semlens-audit": __version__,
        "WeasyPrint": weasyprint.__version__,
        "pydyf": pydyf.__version__,
        "Pango": f"{number // 10000}.{number // 100 % 100}.{number % 100}",
        "HarfBuzz": _newest(harfbuzz.hb_version_atleast),
        "fonts cut by": "harfbuzz-subset" if harfbuzz_subset else f"fontTools {metadata.version('fonttools')}",
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }
    return ", ".join(f"{name} {version}" for name, version in parts.items())


def _newest(at_least: Callable[[int, int, int], int]) -> str:
    """The version of a library that tells no more than whether it is at least a given one."""
    found: list[int] = []
    for _ in range(3):
        number = 0
        while at_least(*[*found, number + 1, 0, 0][:3]):
            number += 1
        found.append(number)
    return ".".join(map(str, found))


def read_renderer(data: bytes) -> str | None:
    """What a PDF names as its producer, for telling another renderer from another document; ``None`` where it names none.

    Raises
    ------
    IntegrityError
        Where `data` is no PDF that can be read; see `semlens_audit.pdf_parts.open_pdf`.
    """
    reader = open_pdf(data)
    with reading():
        information = reader.trailer["/Info"] if "/Info" in reader.trailer else {}  # noqa: SIM401 – a trailer has no `get`
        return str(information["/Producer"]) if "/Producer" in information else None


def _moment(created: str) -> datetime:
    """Time that a document carries, UTC; the epoch where it carries none that can be read."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


@contextmanager
def _needing_pango() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AuditError(
            "pango-missing",
            f"The PDF needs the text layout library Pango, which is not installed ({error}).",
            f"On Debian and Ubuntu: {_APT}. The HTML report does not need it.",
        ) from error


def to_pdf(html: str, identifier: str, created: str, attachments: Sequence[Attachment] = ()) -> bytes:
    """Lay out `html`.

    Parameters
    ----------
    html
        A page whose every image and typeface is a ``data:`` URI.
    identifier
        32 hexadecimal digits or more that identify the document.
    created
        ISO 8601 time the document carries.
    attachments
        Files to embed.

    Raises
    ------
    AuditError
        Slug ``pango-missing`` without Pango, ``missing-glyph`` for a character that no typeface has.
    ExecutionError
        Slug ``pdf-failed``: an image could not be drawn, or something outside the page was asked for.
    """
    with _needing_pango():
        import weasyprint
        from weasyprint.urls import URLFetcher
    producer, moment = renderer(), _moment(created)

    def finish(document: Any, pdf: Any) -> None:
        describe_links(document)
        finish_structure(document, pdf)
        label_pages(pdf)
        attach(pdf, attachments, moment)
        declare(pdf, producer)

    with _listening() as complaints, _source_date(moment):
        page = weasyprint.HTML(string=html, url_fetcher=URLFetcher(allowed_protocols=("data",)))
        # as digits, because a carriage return among raw bytes would be read as a line feed (ISO 32000-1, 7.3.4.2)
        data = page.write_pdf(finisher=finish, pdf_variant=_VARIANT, pdf_tags=True, pdf_identifier=identifier[:32].encode("ascii"))
    complaints.check()
    return bytes(data)
