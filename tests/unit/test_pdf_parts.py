"""Files taken out of a PDF that may be hostile."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable

import pikepdf
import pytest

from semlens_audit.errors import IntegrityError
from semlens_audit.pdf_parts import PdfLimits, attached_files, open_pdf, read_attachments, read_metadata

FILES = {"results.json": b'{"schema_version": "1.1"}\n', "spec.yaml": "spec: Größe\n".encode()}


def carrying(files: dict[str, bytes] = FILES, spoil: Callable[[pikepdf.Pdf], None] | None = None, **options: object) -> bytes:
    """A PDF of one empty page with attached files."""
    pdf = pikepdf.new()
    pdf.add_blank_page(page_size=(200, 200))
    names = pikepdf.Array()
    associated = pikepdf.Array()
    for name, data in sorted(files.items()):
        stream = pdf.make_stream(data)
        stream.Type, stream.Subtype = pikepdf.Name("/EmbeddedFile"), pikepdf.Name("/application/json")
        stream.Params = pikepdf.Dictionary(Size=len(data), CheckSum=pikepdf.String(hashlib.md5(data).digest()))
        entry = pikepdf.Dictionary(
            Type=pikepdf.Name.Filespec, F=name, UF=name, EF=pikepdf.Dictionary(F=stream),
            Desc="What it is", AFRelationship=pikepdf.Name.Source,
        )  # fmt: skip
        reference = pdf.make_indirect(entry)
        names.extend([pikepdf.String(name), reference])
        associated.append(reference)
    pdf.Root.Names = pikepdf.Dictionary(EmbeddedFiles=pikepdf.Dictionary(Names=names))
    pdf.Root.AF = associated
    if spoil:
        spoil(pdf)
    out = io.BytesIO()
    pdf.save(out, static_id=True, **options)  # type: ignore[arg-type]
    return out.getvalue()


def first(pdf: pikepdf.Pdf) -> pikepdf.Object:
    return pdf.Root.Names.EmbeddedFiles.Names[1]


class TestReading:
    def test_the_files_come_out_as_they_went_in(self) -> None:
        assert read_attachments(carrying()) == FILES

    def test_from_compressed_object_streams_as_well(self) -> None:
        data = carrying(object_stream_mode=pikepdf.ObjectStreamMode.generate, compress_streams=True)
        assert b"/ObjStm" in data
        assert read_attachments(data) == FILES

    def test_what_the_pdf_says_of_them(self) -> None:
        results = attached_files(open_pdf(carrying()))[0]
        assert (results.name, results.media_type, results.relationship) == ("results.json", "application/json", "Source")
        assert results.description == "What it is"

    def test_a_pdf_without_attachments_has_none(self) -> None:
        def without(pdf: pikepdf.Pdf) -> None:
            del pdf.Root.Names, pdf.Root.AF

        assert read_attachments(carrying(spoil=without)) == {}

    def test_a_tree_with_levels_is_followed(self) -> None:
        def deeper(pdf: pikepdf.Pdf) -> None:
            leaf = pdf.make_indirect(pikepdf.Dictionary(Names=pdf.Root.Names.EmbeddedFiles.Names))
            pdf.Root.Names.EmbeddedFiles = pikepdf.Dictionary(Kids=pikepdf.Array([leaf]))

        assert read_attachments(carrying(spoil=deeper)) == FILES

    def test_no_metadata_is_empty(self) -> None:
        assert read_metadata(open_pdf(carrying())) == b""


def _twice(pdf: pikepdf.Pdf) -> None:
    names = pdf.Root.Names.EmbeddedFiles.Names
    pdf.Root.Names.EmbeddedFiles.Names = pikepdf.Array([*list(names), *list(names)])
    pdf.Root.AF = pikepdf.Array([*list(pdf.Root.AF), *list(pdf.Root.AF)])


def _hidden(pdf: pikepdf.Pdf) -> None:
    pdf.Root.AF = pikepdf.Array([pdf.Root.AF[0]])


def _cycle(pdf: pikepdf.Pdf) -> None:
    node = pdf.make_indirect(pikepdf.Dictionary())
    node.Kids = pikepdf.Array([node])
    pdf.Root.Names.EmbeddedFiles = node


def _deep(pdf: pikepdf.Pdf) -> None:
    node = pdf.Root.Names.EmbeddedFiles
    for _ in range(20):
        node = pikepdf.Dictionary(Kids=pikepdf.Array([pdf.make_indirect(node)]))
    pdf.Root.Names.EmbeddedFiles = node


def _named(name: str) -> Callable[[pikepdf.Pdf], None]:
    def spoil(pdf: pikepdf.Pdf) -> None:
        entry = first(pdf)
        entry.F = entry.UF = pikepdf.String(name)
        pdf.Root.Names.EmbeddedFiles.Names[0] = pikepdf.String(name)

    return spoil


def _two_names(pdf: pikepdf.Pdf) -> None:
    first(pdf).F = pikepdf.String("other.json")


def _two_contents(pdf: pikepdf.Pdf) -> None:
    first(pdf).EF.UF = pdf.make_stream(b"another")


def _size(pdf: pikepdf.Pdf) -> None:
    first(pdf).EF.F.Params.Size = 1


def _checksum(pdf: pikepdf.Pdf) -> None:
    first(pdf).EF.F.Params.CheckSum = pikepdf.String(b"0" * 16)


def _wrong_kind(pdf: pikepdf.Pdf) -> None:
    pdf.Root.Names.EmbeddedFiles = pikepdf.Array([1, 2])


def _no_stream(pdf: pikepdf.Pdf) -> None:
    first(pdf).EF = pikepdf.Dictionary(F=3)


class TestRefusing:
    @pytest.mark.parametrize(
        ("spoil", "slug"),
        [
            (_twice, "attachment-twice"),
            (_hidden, "attachment-damaged"),
            (_cycle, "attachment-damaged"),
            (_deep, "attachment-limit"),
            (_named("../results.json"), "attachment-name"),
            (_named("/etc/passwd"), "attachment-name"),
            (_named("a\\b"), "attachment-name"),
            (_named("results\u202egnp.json"), "attachment-name"),
            (_named("a\nb"), "attachment-name"),
            (_named(".."), "attachment-name"),
            (_named("x" * 201), "attachment-name"),
            (_two_names, "attachment-name"),
            (_two_contents, "attachment-damaged"),
            (_size, "attachment-damaged"),
            (_checksum, "attachment-damaged"),
            (_wrong_kind, "attachment-damaged"),
            (_no_stream, "attachment-damaged"),
        ],
    )
    def test_what_could_mislead_is_refused(self, spoil: Callable[[pikepdf.Pdf], None], slug: str) -> None:
        with pytest.raises(IntegrityError) as caught:
            read_attachments(carrying(spoil=spoil))
        assert caught.value.slug == slug

    def test_names_that_differ_only_in_case_are_one_file_on_some_systems(self) -> None:
        with pytest.raises(IntegrityError, match="more than one") as caught:
            read_attachments(carrying({"Spec.yaml": b"a", "spec.yaml": b"b"}))
        assert caught.value.slug == "attachment-twice"

    def test_too_many_files(self) -> None:
        with pytest.raises(IntegrityError) as caught:
            read_attachments(carrying({f"{i:03}": b"x" for i in range(33)}))
        assert caught.value.slug == "attachment-limit"

    def test_a_decompression_bomb(self) -> None:
        def bomb(pdf: pikepdf.Pdf) -> None:
            stream = first(pdf).EF.F
            stream.write(zlib.compress(bytes(8 << 20), 9), filter=pikepdf.Name.FlateDecode)

        data = carrying(spoil=bomb)
        assert len(data) < 20_000
        with pytest.raises(IntegrityError) as caught:
            read_attachments(data, PdfLimits(stream_bytes=1 << 20))
        assert caught.value.slug == "pdf-too-large"
        with pytest.raises(IntegrityError) as caught:
            read_attachments(data, PdfLimits(decoded_bytes=1 << 20))
        assert caught.value.slug == "pdf-too-large"

    def test_a_bomb_inside_a_bomb(self) -> None:
        def bomb(pdf: pikepdf.Pdf) -> None:
            stream = first(pdf).EF.F
            packed = zlib.compress(zlib.compress(bytes(200 << 20), 9), 9)
            stream.write(packed, filter=pikepdf.Array([pikepdf.Name.FlateDecode] * 2))

        with pytest.raises(IntegrityError) as caught:
            read_attachments(carrying(spoil=bomb))
        assert caught.value.slug == "pdf-too-large"

    def test_too_large_a_file(self) -> None:
        with pytest.raises(IntegrityError) as caught:
            open_pdf(carrying(), PdfLimits(file_bytes=100))
        assert caught.value.slug == "pdf-too-large"

    def test_an_encrypted_file(self) -> None:
        data = carrying(encryption=pikepdf.Encryption(owner="a", user=""))
        with pytest.raises(IntegrityError) as caught:
            read_attachments(data)
        assert caught.value.slug == "pdf-encrypted"

    @pytest.mark.parametrize(
        "data",
        [b"", b"%PDF-1.7\n", b"<html>", b"%PDF-1.7\n" + b"[" * 200_000, b"PK\x03\x04" + bytes(100), b"%PDF-1.7\nstartxref\n0\n%%EOF"],
    )
    def test_what_is_no_pdf(self, data: bytes) -> None:
        with pytest.raises(IntegrityError) as caught:
            read_attachments(data)
        assert caught.value.slug == "pdf-damaged"

    def test_nesting_without_end(self) -> None:
        data = carrying().replace(b"/Desc (What it is)", b"/Desc " + b"[" * 100_000, 1)
        with pytest.raises(IntegrityError):
            read_attachments(data)

    def test_an_object_that_is_itself(self) -> None:
        whole = b"%PDF-1.7\n1 0 obj\n1 0 R\nendobj\nxref\n0 2\n0000000000 65535 f \n0000000009 00000 n \n"
        at = whole.index(b"xref")
        data = whole + b"trailer\n<</Size 2/Root 1 0 R>>\nstartxref\n" + str(at).encode() + b"\n%%EOF\n"
        with pytest.raises(IntegrityError):
            read_attachments(data)

    @pytest.mark.parametrize("widths", [b"[0 0 0]", b"[-1 -1 -1]", b"[1 2]", b"7", b"[/a 1 1]"])
    def test_three_hundred_million_entries_of_no_width(self, widths: bytes) -> None:
        head = b"%PDF-1.7\n"
        stream = b"1 0 obj\n<</Type/XRef/Size 10/Root 2 0 R/Index [0 300000000]/W " + widths + b"/Length 0>>\nstream\n\nendstream\n"
        with pytest.raises(IntegrityError, match="width") as caught:
            open_pdf(head + stream + b"endobj\nstartxref\n" + str(len(head)).encode() + b"\n%%EOF\n")
        assert caught.value.slug == "pdf-damaged"

    def test_a_chain_of_cross_references_without_end(self) -> None:
        data, before = b"%PDF-1.7\n", b""
        for _ in range(30_000):
            at = str(len(data)).encode()
            data += b"xref\n0 1\n0000000000 65535 f \ntrailer\n<</Size 2/Root 1 0 R" + before + b">>\n"
            before = b"/Prev " + at
        with pytest.raises(IntegrityError, match="more sections") as caught:
            open_pdf(data + b"startxref\n" + at + b"\n%%EOF\n")
        assert caught.value.slug == "pdf-too-large"

    def test_a_number_without_end(self) -> None:
        whole = b"%PDF-1.7\n1 0 obj\n" + b"1" * 8_000_000 + b"\nendobj\n"
        table = b"xref\n0 2\n0000000000 65535 f \n0000000009 00000 n \ntrailer\n<</Size 2/Root 1 0 R>>\n"
        data = whole + table + b"startxref\n" + str(len(whole)).encode() + b"\n%%EOF\n"
        with pytest.raises(IntegrityError, match="digits"):
            read_attachments(data)

    def test_what_is_wrong_is_raised_and_not_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        data = carrying(object_stream_mode=pikepdf.ObjectStreamMode.generate, compress_streams=False)
        with pytest.raises(IntegrityError):
            read_attachments(data.replace(b"/Desc", b"(Des", 1))
        assert capfd.readouterr() == ("", "")

    def test_cut_anywhere(self) -> None:
        data = carrying()
        for length in range(0, len(data) - 6, 37):
            with pytest.raises(IntegrityError):
                read_attachments(data[:length])

    def test_a_changed_byte_never_raises_anything_else(self) -> None:
        data = carrying()
        for at in range(len(data)):
            spoiled = bytearray(data)
            spoiled[at] ^= 0x15
            try:
                read_attachments(bytes(spoiled))
            except IntegrityError:
                continue
