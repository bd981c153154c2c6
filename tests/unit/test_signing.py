"""Signing: who may sign what with which key, and what the signed file is."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pikepdf
import pytest
from asn1crypto import keys, tsp, x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)
from pyhanko.sign.timestamps.dummy_client import DummyTimeStamper

from semlens_audit import signing, signing_keys, verify_pdf
from semlens_audit.cms_form import read_signature
from semlens_audit.errors import AuditError, ExitCode, IntegrityError, UsageError
from semlens_audit.pdf_parts import open_pdf
from semlens_audit.pdf_signed import find_signatures
from semlens_audit.signing import TimeStampAuthority, sign_report
from semlens_audit.verify import Request, verify_bytes
from tests.golden.consistent_record import consistent
from tests.unit import signing_world as world

SOFTHSM = next(
    (path for path in map(Path, ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")) if path.exists()),
    None,
)


@pytest.fixture(autouse=True)
def _rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "render_pdf", world.render_once)
    monkeypatch.setattr(verify_pdf, "render_pdf", world.render_once)


def unsigned() -> bytes:
    return world.render_once(consistent())


def accepted(data: bytes) -> bool:
    found = verify_bytes("r.pdf", {"r.pdf": data}, Request(trust=world.trust(), now=world.NOW + timedelta(days=1)))
    return found.exit_code == ExitCode.SATISFIED


class TestSigned:
    def test_the_same_bytes_but_for_the_signature_itself(self) -> None:
        """RSA draws no random numbers: the same key and time give the same file."""
        first = sign_report(unsigned(), world.signing_key(world.MAX), name=world.MAX, now=world.NOW).data
        assert sign_report(unsigned(), world.signing_key(world.MAX), name=world.MAX, now=world.NOW).data == first

    def test_structure(self) -> None:
        """What PDF/A-3 and PDF/UA-1 ask of the form and its fields, and PAdES of the signature dictionary."""
        data = world.by_both()
        with pikepdf.open(io.BytesIO(data)) as pdf:
            form = pdf.Root.AcroForm
            assert int(form.SigFlags) == 3
            assert "/NeedAppearances" not in form
            assert "/XFA" not in form
            assert len(form.Fields) == 2
            for field in form.Fields:
                assert int(field.F) & 0b111 == 0b100, "printed, neither hidden nor invisible (ISO 19005-3, 6.3.2)"
                box = [float(edge) for edge in field.Rect]
                assert box[0] == box[2] < 0, "outside the page, without extent (ISO 14289-1, 7.18.1; ISO 19005-3, 6.3.3)"
                assert str(field.TU)
                assert "/AP" not in field
                assert str(field.P.Tabs) == "/S"
                assert str(field.V.SubFilter) == "/ETSI.CAdES.detached"
            assert str(form.Fields[0].V.Name) == world.ADA
            assert str(form.Fields[1].V.Reason).startswith("Release engineer; record ")
            assert int(pdf.Root.Perms.DocMDP.Reference[0].TransformParams.P) == 2
            assert int(form.Fields[1].Lock.P) == 1
        with pikepdf.open(io.BytesIO(unsigned())) as before, pikepdf.open(io.BytesIO(data)) as after:
            assert before.Root.Metadata.read_bytes() == after.Root.Metadata.read_bytes()
            assert before.trailer.ID[0] == after.trailer.ID[0]

    def test_one_signatory_allows_no_change(self) -> None:
        with pikepdf.open(io.BytesIO(world.by_one())) as pdf:
            assert int(pdf.Root.Perms.DocMDP.Reference[0].TransformParams.P) == 1
            assert len(pdf.Root.AcroForm.Fields) == 1

    def test_no_signing_time_attribute(self) -> None:
        """PAdES keeps the time in the dictionary (ETSI EN 319 142-1, 5.3); all certificates are named by digest."""
        data = world.by_one()
        (one,) = find_signatures(open_pdf(data), data)
        read = read_signature(one.der, hashlib.sha256(one.covered(data)).digest())
        assert [certificate.subject.native["common_name"] for certificate in read.certificates] == [world.ADA, "Test intermediate"]

    def test_another_reader_sees_the_same_document(self) -> None:
        with pikepdf.open(io.BytesIO(unsigned())) as before, pikepdf.open(io.BytesIO(world.by_both())) as after:
            assert len(before.pages) == len(after.pages)
            for one, other in zip(before.pages, after.pages, strict=True):
                assert one.Contents.read_bytes() == other.Contents.read_bytes()


class TestRefused:
    def refused(self, slug: str, data: bytes, **more: Any) -> None:
        with pytest.raises(AuditError) as caught:
            sign_report(data, world.signing_key(world.ADA), **({"now": world.NOW} | more))
        assert caught.value.slug == slug

    def test_who(self) -> None:
        self.refused("which-responsible", unsigned())
        self.refused("unknown-responsible", unsigned(), name="Nobody")

    def test_twice_or_after_the_end(self) -> None:
        self.refused("signed-already", world.signed(consistent(), world.ADA), name=world.ADA)
        self.refused("document-closed", world.by_both(), name=world.ADA)
        closed = sign_report(unsigned(), world.signing_key(world.ADA), name=world.ADA, now=world.NOW, final=True)
        assert closed.final
        assert closed.missing == (world.MAX,)
        assert accepted(closed.data)
        self.refused("document-closed", closed.data, name=world.MAX)

    def test_final_second_of_three(self) -> None:
        assert sign_report(world.signed(consistent(), world.ADA), world.signing_key(world.MAX), name=world.MAX, now=world.NOW).final

    def test_nobody_responsible(self) -> None:
        with pytest.raises(UsageError) as caught:
            signing.person_of(consistent().model_copy(update={"responsible": ()}), None)
        assert caught.value.slug == "no-responsible"

    def test_not_our_report(self) -> None:
        self.refused("pdf-damaged", b"hello")
        plain = io.BytesIO()
        with pikepdf.new() as pdf:
            pdf.add_blank_page()
            pdf.save(plain)
        self.refused("no-record", plain.getvalue())

    def test_a_page_exchanged(self) -> None:
        out = io.BytesIO()
        with pikepdf.open(io.BytesIO(unsigned())) as pdf:
            pdf.pages[0].contents_add(b"q 1 0 0 rg 0 0 200 200 re f Q")
            pdf.save(out)
        with pytest.raises(IntegrityError):
            sign_report(out.getvalue(), world.signing_key(world.ADA), name=world.ADA, now=world.NOW)

    def test_an_earlier_signature_that_does_not_hold(self) -> None:
        data = world.signed(consistent(), world.ADA)
        (one,) = find_signatures(open_pdf(data), data)
        at = one.start + 2 * len(one.der) - 20
        touched = data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :]
        with pytest.raises(IntegrityError):
            sign_report(touched, world.signing_key(world.MAX), name=world.MAX, now=world.NOW)


class TestKeys:
    def test_pkcs12(self, tmp_path: Path) -> None:
        one, inter = world.holder(world.ADA), world.holder("inter")
        bundle = pkcs12.serialize_key_and_certificates(
            b"ada", one.key, one.certificate, [inter.certificate], BestAvailableEncryption(b"secret")
        )
        (tmp_path / "ada.p12").write_bytes(bundle)
        key = signing_keys.from_pkcs12(tmp_path / "ada.p12", b"secret")
        assert accepted(sign_report(unsigned(), key, name=world.ADA, now=world.NOW).data)
        with pytest.raises(UsageError) as caught:
            signing_keys.from_pkcs12(tmp_path / "ada.p12", b"wrong")
        assert caught.value.slug == "bad-key"

    def test_encrypted_pem(self, tmp_path: Path) -> None:
        one = world.holder(world.ADA)
        (tmp_path / "k.pem").write_bytes(
            one.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        )
        (tmp_path / "c.pem").write_bytes(one.pem + world.holder("inter").pem)
        assert len(signing_keys.from_pem(tmp_path / "k.pem", tmp_path / "c.pem", [], b"secret").certificates) == 2
        for passphrase, slug in ((None, "bad-passphrase"), (b"wrong", "bad-key")):
            with pytest.raises(UsageError) as caught:
                signing_keys.from_pem(tmp_path / "k.pem", tmp_path / "c.pem", [], passphrase)
            assert caught.value.slug == slug

    def test_key_of_another_certificate(self, tmp_path: Path) -> None:
        key, _ = world.files_of(world.holder(world.ADA), "a")
        _, certificate = world.files_of(world.holder(world.MAX), "b")
        with pytest.raises(UsageError) as caught:
            signing_keys.from_pem(key, certificate, [], None)
        assert caught.value.slug == "key-mismatch"

    @pytest.mark.parametrize("kind", ["ed25519", "p224", "rsa1024"])
    def test_unsuitable_keys(self, tmp_path: Path, kind: str) -> None:
        made: Any = {
            "ed25519": ed25519.Ed25519PrivateKey.generate,
            "p224": lambda: ec.generate_private_key(ec.SECP224R1()),
            "rsa1024": lambda: rsa.generate_private_key(65537, 1024),
        }[kind]()
        one = world.issue("X", made, world.holder("root"))
        key, certificate = world.files_of(one, kind)
        with pytest.raises(UsageError) as caught:
            signing_keys.from_pem(key, certificate, [], None)
        assert caught.value.slug == "key-kind"

    def test_p384(self, tmp_path: Path) -> None:
        one = world.issue(world.ADA, ec.generate_private_key(ec.SECP384R1()), world.holder("inter"))
        key, certificate = world.files_of(one, "p384")
        (tmp_path / "chain.pem").write_bytes(world.holder("inter").pem)
        made = signing_keys.from_pem(key, certificate, [tmp_path / "chain.pem"], None)
        assert accepted(sign_report(unsigned(), made, name=world.ADA, now=world.NOW).data)

    @pytest.mark.skipif(SOFTHSM is None or shutil.which("softhsm2-util") is None, reason="SoftHSM 2 is not installed")
    @pytest.mark.parametrize("name", [world.ADA, world.MAX])
    def test_token(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        assert SOFTHSM is not None
        (tmp_path / "tokens").mkdir()
        (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nlog.level = ERROR\n")
        one = world.holder(name)
        (tmp_path / "key.pem").write_bytes(one.key_pem)
        (tmp_path / "cert.pem").write_bytes(one.pem + world.holder("inter").pem)
        # the module reads its configuration once a process, so signing takes a process of its own
        script = tmp_path / "sign.py"
        script.write_text(
            "import sys\nfrom pathlib import Path\nfrom datetime import datetime, UTC\n"
            "from semlens_audit import signing, signing_keys\n"
            "lib, cert, name, source, target = sys.argv[1:]\n"
            "data = Path(source).read_bytes()\n"
            "signing.render_pdf = lambda record: data\n"
            "with signing_keys.from_pkcs11(Path(lib), 'audit', 'mine', Path(cert), None, '1234') as key:\n"
            "    now = datetime(2026, 1, 15, 12, tzinfo=UTC)\n"
            "    Path(target).write_bytes(signing.sign_report(data, key, name=name, now=now).data)\n"
        )
        environment = {**os.environ, "SOFTHSM2_CONF": str(tmp_path / "softhsm2.conf"), "PYTHONPATH": str(Path(signing.__file__).parents[1])}
        tool = ["softhsm2-util", "--token", "audit"]
        for command in (
            ["softhsm2-util", "--init-token", "--free", "--label", "audit", "--pin", "1234", "--so-pin", "1234"],
            [*tool, "--import", str(tmp_path / "key.pem"), "--label", "mine", "--id", "01", "--pin", "1234"],
        ):
            subprocess.run(command, check=True, env=environment, capture_output=True)
        (tmp_path / "in.pdf").write_bytes(unsigned())
        import sys

        command = [sys.executable, script, SOFTHSM, tmp_path / "cert.pem", name, tmp_path / "in.pdf", tmp_path / "out.pdf"]
        done = subprocess.run([str(part) for part in command], check=False, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert accepted((tmp_path / "out.pdf").read_bytes())


def _stamper() -> DummyTimeStamper:
    one = world.holder("tsa")
    private = one.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return DummyTimeStamper(
        x509.Certificate.load(one.der), keys.PrivateKeyInfo.load(private), fixed_dt=world.NOW + timedelta(seconds=3)
    )


@pytest.fixture
def authority() -> Iterator[str]:
    """A time stamp authority on this machine."""
    stamper = _stamper()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = tsp.TimeStampReq.load(self.rfile.read(int(self.headers["Content-Length"])))
            answer = stamper.request_tsa_response(asked).dump()
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


class TestTimeStamp:
    def test_over_http(self, authority: str) -> None:
        data = sign_report(
            unsigned(), world.signing_key(world.ADA), name=world.ADA, now=world.NOW, authority=TimeStampAuthority(authority)
        ).data
        found = verify_bytes("r.pdf", {"r.pdf": data}, Request(trust=world.trust(), now=world.NOW + timedelta(days=1)))
        assert {line.id: line.state for line in found.lines}["signing-time"] == "proven"
        assert found.exit_code == ExitCode.SATISFIED
        other = Request(trust=type(world.trust())((world.holder("inter").der,)), now=world.NOW + timedelta(days=1))
        assert verify_bytes("r.pdf", {"r.pdf": data}, other).exit_code == ExitCode.INTEGRITY, "an authority that is not trusted"
        (one,) = find_signatures(open_pdf(data), data)
        digest = hashlib.sha256(one.covered(data)).digest()
        token = bytes(read_signature(one.der, digest).token.dump())
        at = one.der.index(token)
        held = []
        for index in range(at, at + len(token), len(token) // 50):
            touched = bytearray(one.der)
            touched[index] ^= 0x01
            whole = data[: one.start + 1] + bytes(touched).hex().encode() + data[one.start + 1 + 2 * len(touched) :]
            if verify_bytes("r.pdf", {"r.pdf": whole}, Request(trust=world.trust(), now=world.NOW + timedelta(days=1))).exit_code == 0:
                held.append(index - at)
        assert held == []

    def test_a_token_left_out_is_noticed(self, authority: str) -> None:
        made = sign_report(
            unsigned(), world.signing_key(world.ADA), name=world.ADA, now=world.NOW, authority=TimeStampAuthority(authority)
        ).data
        from asn1crypto import cms

        (one,) = find_signatures(open_pdf(made), made)
        content = cms.ContentInfo.load(one.der)
        del content["content"]["signer_infos"][0]["unsigned_attrs"]
        bare = content.dump(force=True).hex().encode()
        room = one.end - one.start - 2
        whole = made[: one.start + 1] + bare.ljust(room, b"0") + made[one.end - 1 :]
        assert not accepted(whole)

    def test_no_answer(self) -> None:
        with pytest.raises(AuditError) as caught:
            sign_report(
                unsigned(), world.signing_key(world.ADA), name=world.ADA, now=world.NOW, authority=TimeStampAuthority("http://127.0.0.1:9/")
            )
        assert caught.value.slug == "no-timestamp"
        with pytest.raises(UsageError):
            TimeStampAuthority("file:///etc/passwd")


def test_public_key_of_a_certificate_is_its_own() -> None:
    """The check that key and certificate belong together compares what is signed with."""
    one = world.holder(world.MAX)
    der = one.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert x509.Certificate.load(one.der).public_key.dump() == der
