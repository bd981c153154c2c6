"""What a report carries."""

from __future__ import annotations

import pytest

from semlens_audit import report
from semlens_audit.attachments import attachments_of
from semlens_audit.digest import digest_bytes
from semlens_audit.record_file import record_bytes
from semlens_audit.records import AuditRecord, DocumentRecord
from tests.golden.sample_record import sample


def with_documents(*names: str) -> AuditRecord:
    documents = tuple(
        DocumentRecord(kind="spec", name=name, media_type="application/yaml", sha256=digest_bytes(name.encode()), text=name)
        for name in names
    )
    return sample("clean").model_copy(update={"documents": documents})


class TestFiles:
    def test_the_record_comes_first_and_is_the_source(self) -> None:
        first, *others = attachments_of(sample("clean"))
        assert (first.name, first.media_type, first.relationship) == ("results.json", "application/json", "Source")
        assert first.data == record_bytes(sample("clean"))
        assert {file.relationship for file in others} == {"Supplement"}

    def test_documents_are_the_bytes_that_people_wrote(self) -> None:
        record = sample("clean")
        _, *others = attachments_of(record)
        assert [file.name for file in others] == ["melanoma-abcde.yaml", "phantom-shortcut.yaml"]
        assert [file.sha256 for file in others] == [document.sha256 for document in record.documents]

    @pytest.mark.parametrize(
        ("names", "given"),
        [
            (("a.yaml", "a.yaml", "A.yaml"), ["a.yaml", "a-2.yaml", "A-3.yaml"]),
            (("results.json",), ["results-2.json"]),
            (("../../etc/passwd", "a\u202egnp.yaml", "größe.yaml"), ["etc_passwd", "agnp.yaml", "groe.yaml"]),
            (("..", ""), ["_", "_-2"]),
        ],
    )
    def test_names_are_plain_and_differ(self, names: tuple[str, ...], given: list[str]) -> None:
        assert [file.name for file in attachments_of(with_documents(*names))][1:] == given


class TestSection:
    def test_each_file_is_listed_with_its_digest(self) -> None:
        html = report.render_html(sample("clean"))
        for file in attachments_of(sample("clean")):
            assert file.name in html
            assert file.sha256 in html

    def test_on_screen_documents_can_be_saved_and_are_never_rendered(self) -> None:
        record = with_documents("a.yaml", "b.html")
        html = report.render_html(record)
        assert html.count(" download=") == 2
        assert html.count('href="data:') == html.count('href="data:application/octet-stream;base64,') == 2
