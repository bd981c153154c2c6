"""The PDF: archival, tagged, reproducible, laid out as promised."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semlens_audit import report
from semlens_audit.compose import make_page
from semlens_audit.errors import AuditError, ExecutionError
from semlens_audit.figures import PAPER
from semlens_audit.pdf import to_pdf
from semlens_audit.plan import Responsible
from semlens_audit.records import AuditRecord
from tests.golden.sample_record import sample


def pango() -> bool:
    try:
        import weasyprint  # noqa: F401
    except OSError:
        return False
    return True


pytestmark = [pytest.mark.skipif(not pango(), reason="Pango is not installed")]
needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not installed")


@pytest.fixture(scope="module")
def warnings() -> list[str]:
    return []


@pytest.fixture(scope="module")
def pdf(warnings: list[str]) -> Iterator[bytes]:
    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logging.getLogger("weasyprint").addHandler(handler)
    yield report.render_pdf(sample("shortcut"))
    logging.getLogger("weasyprint").removeHandler(handler)


@pytest.fixture(scope="module")
def text(pdf: bytes, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("pdf") / "report.pdf"
    path.write_bytes(pdf)
    done = subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True)
    return done.stdout.split("\f")[:-1]


def test_the_layout_engine_understands_the_whole_style_sheet(pdf: bytes, warnings: list[str]) -> None:
    assert pdf.startswith(b"%PDF-1.7")
    assert warnings == []


@needs_poppler
def test_page_one_stands_alone(text: list[str]) -> None:
    first = " ".join(text[0].split())
    for part in (
        "Phantom dermoscopy classifier", "Not satisfied", "ruler beside the lesion", "What was audited", "What was asked",
        "How it was measured", "How sure it is", "64 % (60–68 %)", "at most 15 %", "Responsible persons",
        "Dr. Ada Example", "Max Muster",
    ):  # fmt: skip
        assert part in first, part
    assert text[1].strip().startswith("Contents")


def crowded() -> AuditRecord:
    """Page one with more to say than fits."""
    record = sample("shortcut")
    verdict = record.verdict.model_copy(update={"headline": "A headline that goes on and on, as headlines may. " * 5})
    people = tuple(Responsible(name=f"Person {i}", role="Max Muster") for i in range(5))
    return record.model_copy(update={"verdict": verdict, "responsible": people, "title": "A long title of an audit " * 3})


@needs_poppler
@pytest.mark.parametrize("make", [lambda: sample("clean"), lambda: sample("not_measured"), crowded])
def test_page_one_is_one_page_for_every_verdict(tmp_path: Path, make: Callable[[], AuditRecord]) -> None:
    page = dataclasses.replace(make_page(make(), PAPER), sections=())
    html = re.sub(r' href="#[^"]*"', "", report.render_page(page, report.ON_PAPER))
    path = tmp_path / "report.pdf"
    path.write_bytes(to_pdf(html, "0" * 64, page.created_iso))
    done = subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True)
    first, second = done.stdout.split("\f")[:2]
    assert "Max Muster" in first
    assert len(page.summary.checks) >= 1
    assert second.strip().startswith("Contents")


@needs_poppler
def test_every_page_carries_verdict_digest_and_number(text: list[str]) -> None:
    assert 15 <= len(text) <= 40
    for number, page in enumerate(text, start=1):
        footer = page.rstrip().splitlines()[-1]
        assert re.search(rf"✗ Not satisfied\s+·\s+record [0-9a-f]{{12}}\s+page {number} of {len(text)}$", footer), footer


@needs_poppler
def test_no_heading_stands_alone_at_the_foot_of_a_page(text: list[str]) -> None:
    for page in text:
        body = [line.strip() for line in page.rstrip().splitlines()[:-1] if line.strip()]
        assert not re.match(
            r"(\d+ )?(Results|Glossary|Method, validity|Test data|Coverage|Foundation model|Layers|Settings)$", body[-1]
        )
        assert not body[-1].startswith("Component ")


def test_metadata_declare_archive_and_accessibility(pdf: bytes) -> None:
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    metadata = next(data for data in map(inflated, streams) if b"xpacket" in data).decode()
    assert 'pdfaid:part="3"' in metadata
    assert 'pdfaid:conformance="A"' in metadata
    assert 'pdfuaid:part="1"' in metadata
    assert "pdfaSchema:namespaceURI" in metadata
    assert metadata.count("<rdf:RDF") == metadata.count("</rdf:RDF>") == 1
    import xml.etree.ElementTree as ElementTree

    ElementTree.fromstring(metadata[metadata.index("<x:xmpmeta") : metadata.index("</x:xmpmeta>") + len("</x:xmpmeta>")])
    assert "2025-11-20" in metadata


def inflated(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error:
        return data


def test_a_character_no_typeface_has_is_an_error() -> None:
    page = '<html lang="en"><title>t</title><p>Private \U0010fffd use</p></html>'
    with pytest.raises(AuditError) as caught:
        to_pdf(page, "0" * 64, "2025-11-20T00:00:00Z")
    assert caught.value.slug == "missing-glyph"
    assert "U+10FFFD" in str(caught.value)


def test_nothing_is_fetched() -> None:
    page = '<html lang="en"><title>t</title><img alt="a" src="http://127.0.0.1:9/x.png"></html>'
    with pytest.raises(ExecutionError) as caught:
        to_pdf(page, "0" * 64, "2025-11-20T00:00:00Z")
    assert caught.value.slug == "pdf-failed"
    assert "127.0.0.1" in str(caught.value)
