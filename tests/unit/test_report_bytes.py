"""Same record, same bytes: whatever the folder, time zone, locale, hash seed and what was rendered before."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pikepdf
import pytest

from semlens_audit import pdf, report
from semlens_audit.record_file import record_digest
from semlens_audit.records import AuditRecord
from tests.golden.released_record import released
from tests.golden.sample_record import sample, small

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("weasyprint", reason="Pango is not installed", exc_type=OSError)

CODE = """
import hashlib, sys
from semlens_audit import report
from tests.unit.test_report_bytes import other, subject
if sys.argv[1] == "after another":
    report.render_pdf(other())
for data in (report.render_pdf(subject()), report.render_html(subject()).encode()):
    print(hashlib.sha256(data).hexdigest())
"""


def subject() -> AuditRecord:
    return released(small())


def other() -> AuditRecord:
    """Another record in other letters, with other pictures."""
    record = sample("not_measured")
    return record.model_copy(update={"findings": record.findings[:2], "class_layers": (), "title": "Ανοξείδωτος – другое"})


@pytest.fixture(scope="module")
def rendered() -> bytes:
    return report.render_pdf(subject())


@pytest.fixture(scope="module")
def expected(rendered: bytes) -> list[str]:
    return [hashlib.sha256(item).hexdigest() for item in (rendered, report.render_html(subject()).encode())]


@pytest.mark.parametrize(
    ("environment", "before"),
    [
        ({"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "1"}, "nothing"),
        ({"TZ": "America/St_Johns", "LC_ALL": "de_DE.UTF-8", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "4242"}, "after another"),
    ],
)
def test_elsewhere_the_bytes_are_the_same(tmp_path: Path, expected: list[str], environment: dict[str, str], before: str) -> None:
    elsewhere = os.environ | environment | {"PYTHONPATH": str(ROOT), "PWD": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, before], cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
    assert list(tmp_path.iterdir()) == []
    assert "SOURCE_DATE_EPOCH" not in os.environ, "what the renderer is told stays its own"


def test_the_file_is_identified_by_its_record(rendered: bytes) -> None:
    with pikepdf.open(io.BytesIO(rendered)) as document:
        assert bytes(document.trailer.ID[0]).decode() == record_digest(subject())[:32]


class TestRenderer:
    def test_a_pdf_says_what_made_it(self, rendered: bytes) -> None:
        assert pdf.read_renderer(rendered) == pdf.renderer()

    def test_it_names_every_program_that_the_bytes_depend_on(self) -> None:
        named = dict(part.rsplit(" ", 1) for part in pdf.renderer().split(", "))
        assert {"semlens-audit", "WeasyPrint", "pydyf", "Pango", "HarfBuzz", "zlib"} <= set(named)
        assert all(version[0].isdigit() for name, version in named.items() if name != "fonts cut by")

    def test_versions_are_found_by_asking_whether_they_are_reached(self) -> None:
        for version in [(6, 0, 0), (13, 2, 1), (1, 0, 12), (2, 11, 0)]:
            assert pdf._newest(lambda *asked, version=version: asked <= version) == ".".join(map(str, version))

    def test_a_pdf_that_says_nothing(self) -> None:
        out = io.BytesIO()
        with pikepdf.new() as empty:
            empty.add_blank_page()
            empty.save(out)
        assert pdf.read_renderer(out.getvalue()) is None
