"""Verifying: what holds is accepted, whatever was touched is refused, and what cannot be told is not claimed."""

from __future__ import annotations

import hashlib
import io
import json
import random
import time
import zlib
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pikepdf
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from semlens_audit import signing, verify, verify_pdf
from semlens_audit.attest import ENVELOPE, statement_bytes
from semlens_audit.cms_form import read_signature
from semlens_audit.digest import canonical_json, digest_bytes
from semlens_audit.envelope import seal
from semlens_audit.errors import ExitCode, IntegrityError
from semlens_audit.pdf_parts import open_pdf
from semlens_audit.pdf_signed import find_signatures
from semlens_audit.record_file import RESULTS, record_bytes
from semlens_audit.records import AuditRecord
from semlens_audit.report import render_html
from semlens_audit.trust import TrustList
from semlens_audit.verification import Verification
from semlens_audit.verify import Request, verify_bytes
from tests.golden.consistent_record import consistent
from tests.unit import signing_world as world

LATER = world.NOW + timedelta(days=3)


@pytest.fixture(autouse=True)
def _rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "render_pdf", world.render_once)
    monkeypatch.setattr(verify_pdf, "render_pdf", world.render_once)


def request(**changes: Any) -> Request:
    return Request(**({"trust": world.trust(), "now": LATER} | changes))


def look(data: bytes, name: str = "report.signed.pdf", beside: dict[str, bytes] | None = None, **changes: Any) -> Verification:
    return verify_bytes(name, {**(beside or {}), name: data}, request(**changes))


def states(found: Verification) -> dict[str, str]:
    return {line.id: line.state for line in found.lines}


def refusals(found: Verification) -> list[str]:
    return [line.id for line in found.lines if line.state == "refused"]


def why(found: Verification) -> str:
    return " ".join(line.detail for line in found.lines if line.state == "refused")


def edited(record: AuditRecord, change: Callable[[dict[str, Any]], None]) -> AuditRecord:
    """The record with its JSON changed."""
    value = json.loads(record.model_dump_json(by_alias=True))
    change(value)
    return AuditRecord.model_validate(value)


class TestSignedReport:
    def test_signed_by_all(self) -> None:
        found = look(world.by_both())
        assert found.exit_code == ExitCode.SATISFIED, why(found)
        assert states(found) == {
            "signature-1": "proven", "person-1": "proven", "signature-2": "proven", "person-2": "proven",
            "revocation": "not_checked", "signing-time": "not_checked", "record-form": "proven", "attachments": "proven",
            "revisions": "proven", "record-documents": "proven", "record-asked": "proven", "record-findings": "proven",
            "record-measurements": "proven", "record-verdict": "proven", "record-gate": "proven", "record-lock": "proven",
            "record-images": "proven",
            "rendering": "proven",
        }  # fmt: skip
        text = " ".join(line.detail for line in found.lines)
        assert "Dermatologist" in text
        assert "Release engineer" in text
        assert "All responsible persons have signed" in text

    def test_signed_by_one_of_two_says_who_is_missing(self) -> None:
        found = look(world.signed(consistent(), world.ADA))
        assert found.exit_code == ExitCode.SATISFIED
        assert "Not signed: Max Müster" in " ".join(line.detail for line in found.lines)

    def test_the_signed_file_begins_with_the_unsigned_one(self) -> None:
        assert world.by_both().startswith(world.render_once(consistent()))

    def test_another_root(self) -> None:
        found = look(world.by_one(), trust=TrustList((world.holder("other").der,)))
        assert refusals(found) == ["signature-1"]
        assert "trust list" in why(found)

    def test_no_trust_list(self) -> None:
        assert refusals(look(world.by_one(), trust=TrustList())) == ["signature-1"]

    def test_a_signatory_trusted_directly(self) -> None:
        assert look(world.by_one(), trust=TrustList((world.holder(world.ADA).der,))).exit_code == ExitCode.SATISFIED

    def test_signed_before_the_certificate_was_valid_or_in_the_future(self) -> None:
        record = consistent(persons=1)
        key = world.signing_key(world.ADA)
        early = signing.sign_report(world.render_once(record), key, now=world.NOW - timedelta(days=30)).data
        assert "not valid then" in why(look(early))
        late = signing.sign_report(world.render_once(record), key, now=LATER + timedelta(days=1)).data
        assert "in the future" in why(look(late))

    def test_expired_since_is_still_accepted(self) -> None:
        assert look(world.by_one(), now=world.NOW + timedelta(days=4000)).exit_code == ExitCode.SATISFIED

    def test_certificate_of_someone_else_is_told(self) -> None:
        data = signing.sign_report(
            world.render_once(consistent(persons=1)), world.signing_key(world.MAX), name=world.ADA, now=world.NOW
        ).data
        found = look(data)
        assert states(found)["person-1"] == "not_checked"
        assert "Max Müster; nothing here says that this is Dr. Ada Example" in " ".join(line.detail for line in found.lines)

    def test_a_pdf_that_is_not_signed(self) -> None:
        data = world.render_once(consistent())
        assert refusals(look(data, "report.pdf")) == ["unsigned"]
        found = look(data, "report.pdf", allow_unsigned=True)
        assert found.exit_code == ExitCode.SATISFIED
        assert states(found)["rendering"] == "proven"

    def test_another_renderer_is_said_and_proves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verify_pdf, "renderer", lambda: "another one")
        monkeypatch.setattr(verify_pdf, "render_pdf", lambda record: b"%PDF-other")
        found = look(world.by_one())
        assert states(found)["rendering"] == "not_checked"
        assert found.exit_code == ExitCode.SATISFIED
        unsigned = look(world.render_once(consistent()), "report.pdf", allow_unsigned=True)
        assert refusals(unsigned) == ["rendering"]

    def test_expired_waiver(self) -> None:
        data = world.signed(consistent(waived=True), world.ADA)
        assert states(look(data))["waivers"] == "proven"
        found = look(data, today=date(2026, 3, 2))
        assert refusals(found) == ["waivers"]
        assert found.exit_code == ExitCode.WAIVER
        assert "no-ruler" in why(found)


def _appended(data: bytes) -> bytes:
    """Another revision, as an editor appends one."""
    from pyhanko.pdf_utils.generic import DictionaryObject, TextStringObject, pdf_name
    from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter

    writer = IncrementalPdfFileWriter(io.BytesIO(data))
    writer.root["/Note"] = writer.add_object(DictionaryObject({pdf_name("/X"): TextStringObject("more")}))
    writer.update_root()
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def _swapped(data: bytes) -> bytes:
    """Another spec attached, in a file written anew."""
    with pikepdf.open(io.BytesIO(data)) as pdf:
        pdf.attachments["small-melanoma.yaml"] = pikepdf.AttachedFileSpec(pdf, b"spec: other\n", filename="small-melanoma.yaml")
        out = io.BytesIO()
        pdf.save(out)
    return out.getvalue()


class TestTouchedReport:
    @pytest.mark.parametrize("tail", [b"\n", b"%", b"\0" * 10, b"%%EOF\n"])
    def test_appended_bytes(self, tail: bytes) -> None:
        assert look(world.by_both() + tail).exit_code == ExitCode.INTEGRITY

    def test_appended_revision(self) -> None:
        found = look(_appended(world.by_one()))
        assert found.exit_code == ExitCode.INTEGRITY
        assert "appended" in why(found)

    def test_swapped_attachment(self) -> None:
        assert look(_swapped(world.by_one())).exit_code == ExitCode.INTEGRITY

    def test_last_signature_cut_off_leaves_what_the_first_one_signed(self) -> None:
        data = world.by_both()
        first = find_signatures(open_pdf(data), data)[0]
        assert look(data[: first.length]).exit_code == ExitCode.SATISFIED
        assert "Not signed: Max" in " ".join(line.detail for line in look(data[: first.length]).lines)

    def test_a_report_of_another_record_signed_by_someone_trusted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A signatory who signs around the tool: the document shows something else than the record that it carries."""
        record = consistent(persons=1)
        other = _swapped(world.render_once(record))
        monkeypatch.setattr(signing, "_earlier", lambda *_: ())
        try:
            data = signing.sign_report(other, world.signing_key(world.ADA), now=world.NOW).data
        except IntegrityError:
            return  # pikepdf's file is refused even earlier
        assert look(data).exit_code == ExitCode.INTEGRITY

    def test_every_byte_of_the_signature(self) -> None:
        """No byte of the CMS object may change, whatever it is: certificates, versions and lists of algorithms too."""
        data = world.by_one()
        (one,) = find_signatures(open_pdf(data), data)
        digest = hashlib.sha256(one.covered(data)).digest()
        read_signature(one.der, digest)
        accepted = []
        for index in range(len(one.der)):
            for flip in (0x01, 0x20):
                touched = bytearray(one.der)
                touched[index] ^= flip
                try:
                    read_signature(bytes(touched), digest)
                    accepted.append((index, flip))
                except IntegrityError:
                    pass
        assert accepted == [], "the form of a signature must be unique"

    def test_what_surrounds_the_signature(self) -> None:
        """Upper-case digits, something in the padding, white space: none of it is covered, and none is accepted."""
        data = world.by_one()
        (one,) = find_signatures(open_pdf(data), data)
        letter = next(i for i in range(one.start, one.end) if chr(data[i]) in "abcdef")
        cases = [(letter, data[letter : letter + 1].upper()), (one.end - 2, b"1"), (one.end - 3, b"f"), (one.end - 2, b" ")]
        for at, byte in cases:
            assert look(data[:at] + byte + data[at + 1 :]).exit_code == ExitCode.INTEGRITY

    def test_a_zip_bomb(self) -> None:
        bomb = zlib.compress(b"\0" * (400 << 20), 9)
        body = b"%PDF-1.7\n1 0 obj\n<</Type/Catalog/Names<</EmbeddedFiles<</Names[(results.json) 2 0 R]>>>>/AF[2 0 R]>>\nendobj\n"
        second = len(body)
        body += b"2 0 obj\n<</Type/Filespec/F(results.json)/UF(results.json)/EF<</F 3 0 R>>>>\nendobj\n"
        third = len(body)
        body += b"3 0 obj\n<</Type/EmbeddedFile/Filter/FlateDecode/Length %d>>\nstream\n" % len(bomb) + bomb + b"\nendstream\nendobj\n"
        at = len(body)
        body += b"xref\n0 4\n0000000000 65535 f \n%010d 00000 n \n%010d 00000 n \n%010d 00000 n \n" % (9, second, third)
        body += b"trailer\n<</Size 4/Root 1 0 R/ID[<00><00>]>>\nstartxref\n%d\n%%%%EOF\n" % at
        found = look(body, "report.pdf", allow_unsigned=True)
        assert found.exit_code == ExitCode.INTEGRITY

    @pytest.mark.parametrize("data", [b"", b"%PDF-1.7", b"%PDF-1.7\n" + b"[" * 100_000, b"{" * 100_000, b"<html>", b'{"payloadType": 1}'])
    def test_nonsense(self, data: bytes) -> None:
        assert look(data, "x", allow_unsigned=True).exit_code == ExitCode.INTEGRITY


def _list(issuer: world.Holder, *revoked: world.Holder, after: timedelta = timedelta(hours=-2)) -> bytes:
    """A revocation list of `issuer`, made `after` signing."""
    when = world.NOW + after
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
    builder = builder.last_update(when).next_update(when + timedelta(days=30))
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number).revocation_date(when)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


class TestRevocation:
    def test_lists_of_every_authority(self) -> None:
        lists = (_list(world.holder("root")), _list(world.holder("inter"), world.holder(world.MAX)))
        found = look(world.by_one(), revocation_lists=lists)
        assert found.exit_code == ExitCode.SATISFIED, why(found)
        assert states(found)["revocation"] == "proven"

    def test_revoked(self) -> None:
        lists = (_list(world.holder("root")), _list(world.holder("inter"), world.holder(world.ADA)))
        assert refusals(look(world.by_one(), revocation_lists=lists)) == ["signature-1"]

    def test_revoked_after_the_time_that_only_the_signatory_states(self) -> None:
        """Whoever holds a stolen key can set the clock back."""
        later = {"after": timedelta(days=10)}
        lists = (_list(world.holder("root"), **later), _list(world.holder("inter"), world.holder(world.ADA), **later))
        found = look(world.by_one(), now=world.NOW + timedelta(days=20), revocation_lists=lists)
        assert refusals(found) == ["signature-1"]

    def test_expired_since(self) -> None:
        found = look(world.by_one(), now=world.NOW + timedelta(days=4000))
        assert "has expired since" in next(line.detail for line in found.lines if line.id == "signing-time")

    def test_a_list_is_missing(self) -> None:
        assert look(world.by_one(), revocation_lists=(_list(world.holder("root")),)).exit_code == ExitCode.INTEGRITY


def test_a_file_that_keeps_its_reader_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(*_: object) -> bytes:
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # noqa: BLE001 - a parser that swallows everything
                continue

    monkeypatch.setattr(verify, "_SECONDS", 1)
    monkeypatch.setattr(verify, "open_pdf", forever)
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.7")
    found = verify.verify(tmp_path / "x.pdf", request())
    assert found.exit_code == ExitCode.INTEGRITY
    assert "1 seconds" in why(found)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One random change: a byte, a few bytes, something inserted, deleted, doubled, cut off or appended."""
    at = rng.randrange(len(data))
    kind = rng.randrange(7)
    if kind <= 1:
        return data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    if kind == 3:
        return data[:at] + data[at + rng.randrange(1, 9) :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        return data + rng.choice([b"\n", b"%%EOF\n", rng.randbytes(5), data[at:][:50]])
    return data[:at] + data[max(0, at - 20) : at] + data[at:]


class TestMutations:
    @pytest.mark.slow
    @pytest.mark.parametrize("batch", range(4))
    def test_of_a_signed_report(self, batch: int) -> None:
        rng = random.Random(batch)
        whole = world.by_both() if batch % 2 else world.by_one()
        first = find_signatures(open_pdf(whole), whole)[0]
        accepted = []
        for number in range(150):
            if number % 3 == 0:  # within what no signature covers
                at = rng.randrange(first.start, first.end)
                touched = whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :]
            elif number % 3 == 1:  # behind the unsigned report
                at = rng.randrange(first.start - 5000, len(whole))
                touched = whole[:at] + mutate(rng, whole[at:])
            else:
                touched = mutate(rng, whole)
            if touched != whole and look(touched).exit_code != ExitCode.INTEGRITY:
                accepted.append((batch, number))
        # a file cut off behind an earlier signature is what that signature signed; nothing else may be accepted
        assert accepted == []

    @pytest.mark.slow
    def test_of_an_envelope_and_of_the_record_beside_it(self) -> None:
        record = consistent()
        data, envelope = record_bytes(record), world.envelope(record)
        assert look(data, RESULTS, {ENVELOPE: envelope}).exit_code == ExitCode.SATISFIED
        rng = random.Random(9)
        accepted = []
        for number in range(200):
            touched = mutate(rng, envelope)
            for name, files in ((ENVELOPE, {RESULTS: data}), (RESULTS, {ENVELOPE: touched})):
                own = touched if name == ENVELOPE else data
                if touched != envelope and look(own, name, files).exit_code != ExitCode.INTEGRITY:
                    accepted.append((name, number))
        for number in range(200):
            touched = mutate(rng, data)
            for name, own, files in ((RESULTS, touched, {ENVELOPE: envelope}), (ENVELOPE, envelope, {RESULTS: touched})):
                if touched != data and look(own, name, files).exit_code != ExitCode.INTEGRITY:
                    accepted.append((name, number))
        assert accepted == []

    def test_every_byte_of_an_envelope(self) -> None:
        record = consistent()
        envelope = world.envelope(record)
        for index in range(len(envelope)):
            touched = bytearray(envelope)
            touched[index] ^= 0x01
            assert look(bytes(touched), ENVELOPE).exit_code == ExitCode.INTEGRITY


class TestRecord:
    """Numbers and sentences edited, digests made anew, signed again by a key that is trusted: still refused."""

    def accepted(self, record: AuditRecord) -> Verification:
        return look(record_bytes(record), RESULTS, {ENVELOPE: world.envelope(record)})

    def test_as_it_is(self) -> None:
        found = self.accepted(consistent(waived=True))
        assert found.exit_code == ExitCode.SATISFIED, why(found)

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda r: r["findings"][0].update(state="satisfied"), "record-findings"),
            (lambda r: r["findings"][0]["criterion"].update(at_most=0.99), "record-findings"),
            (lambda r: r["findings"][0].update(severity="minor"), "record-findings"),
            (lambda r: r["findings"][0].update(rationale="Another."), "record-findings"),
            (lambda r: r["findings"][0].update(explanation="All is well."), "record-findings"),
            (lambda r: r["findings"][0].update(p_value=0.5), "record-findings"),
            (lambda r: r["findings"][0]["measurement"].update(value=0.61), "record-findings"),
            (lambda r: r["findings"].pop(), "record-findings"),
            (lambda r: r["class_layers"][0]["concepts"]["ruler"].update(value=0.011, interval={
                "low": 0.01, "high": 0.02, "level": 0.95, "method": "b"}), "record-measurements"),
            (lambda r: r["verdict"].update(headline="All is well."), "record-verdict"),
            (lambda r: r["verdict"].update(state="satisfied", exit_code=0), "record-verdict"),
            (lambda r: r["gate"].update(outcome="passed"), "record-gate"),
            (lambda r: r["waivers"][0].update(expires="2027-01-01"), "record-gate"),
            (lambda r: r["subject"].update(version="2026.1"), "record-asked"),
            (lambda r: r.update(seed=8), "record-asked"),
            (lambda r: r["responsible"].pop(), "record-asked"),
            (lambda r: r["documents"][0].update(text=r["documents"][0]["text"] + "# more\n"), "record-documents"),
            (lambda r: r["documents"].pop(0), "record-documents"),
            (lambda r: r["images"].update({min(r["images"]): r["images"][max(r["images"])]}), "record-images"),
        ],
    )  # fmt: skip
    def test_edited(self, change: Callable[[dict[str, Any]], None], line: str) -> None:
        found = self.accepted(edited(consistent(waived=True), change))
        assert {line, "file"} & set(refusals(found)), states(found)  # an image that is not its own is refused on reading
        assert found.exit_code == ExitCode.INTEGRITY

    def test_edited_spec_with_its_digest(self) -> None:
        def change(value: dict[str, Any]) -> None:
            document = value["documents"][0]
            document["text"] = document["text"].replace("at_most: 0.15", "at_most: 0.95")
            document["sha256"] = value["spec"]["sha256"] = digest_bytes(document["text"].encode())

        assert refusals(self.accepted(edited(consistent(), change))) == ["record-findings"]

    def test_not_as_it_is_written(self) -> None:
        value = json.loads(record_bytes(consistent()))
        data = json.dumps(value, indent=2).encode()
        assert "not in the form" in why(look(data, RESULTS, {}, allow_unsigned=True))

    def test_unsigned(self) -> None:
        data = record_bytes(consistent())
        assert refusals(look(data, RESULTS)) == ["unsigned"]
        assert look(data, RESULTS, allow_unsigned=True).exit_code == ExitCode.SATISFIED

    def test_attested_by_another_key(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        record = consistent()
        payload = statement_bytes(record, {RESULTS: digest_bytes(record_bytes(record))})
        found = look(record_bytes(record), RESULTS, {ENVELOPE: seal(payload, Ed25519PrivateKey.generate())})
        assert "not in the trust list" in why(found)

    def test_attested_with_another_result(self) -> None:
        record = consistent()
        payload = json.loads(statement_bytes(record, {RESULTS: digest_bytes(record_bytes(record))}))
        payload["predicate"]["result"] = "PASSED"
        envelope = seal(canonical_json(payload).encode(), world.attesting())
        assert "statement" in refusals(look(record_bytes(record), RESULTS, {ENVELOPE: envelope}))


class TestHtml:
    def test_with_its_record(self) -> None:
        record = consistent()
        html = render_html(record).encode()
        subjects = {RESULTS: digest_bytes(record_bytes(record)), "report.html": digest_bytes(html)}
        files = {RESULTS: record_bytes(record), ENVELOPE: seal(statement_bytes(record, subjects), world.attesting())}
        found = look(html, "report.html", files)
        assert found.exit_code == ExitCode.SATISFIED, why(found)
        assert states(found)["rendering"] == "proven"
        other = look(html.replace(b"not satisfied", b"satisfied", 1), "report.html", files)
        assert {"file-report.html", "rendering"} <= set(refusals(other))

    def test_without_record(self) -> None:
        assert refusals(look(b"<!doctype html>", "report.html")) == ["record-form"]
