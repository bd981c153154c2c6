"""Attestations: the statement, its envelope, its key."""

from __future__ import annotations

import base64
import json
import stat
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from semlens_audit import gate, report
from semlens_audit.attest import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    attest,
    new_key,
    read_key,
    result_of,
    statement,
)
from semlens_audit.digest import digest_bytes
from semlens_audit.envelope import PAYLOAD_TYPE, open_envelope, pre_authentication_encoding, seal
from semlens_audit.errors import IntegrityError, UsageError
from semlens_audit.record_file import RESULTS, record_bytes, write_record
from semlens_audit.release_policy import Policy
from semlens_audit.trust import TrustList, key_id, read_trust
from tests.golden.consistent_record import consistent
from tests.golden.sample_record import sample
from tests.unit import signing_world as world

SUBJECTS = {RESULTS: "ab" * 32}


class TestStatement:
    def test_what_the_predicate_type_asks(self) -> None:
        """in-toto Statement v1 and Test Result v0.1, field by field."""
        record = consistent()
        made = statement(record, SUBJECTS)
        assert set(made) == {"_type", "subject", "predicateType", "predicate"}
        assert (made["_type"], made["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
        predicate = made["predicate"]
        assert set(predicate) == {"result", "configuration", "passedTests", "warnedTests", "failedTests"}
        assert predicate["result"] in {"PASSED", "WARNED", "FAILED"}
        for descriptor in (*made["subject"], *predicate["configuration"]):
            assert all(len(value) == 64 for value in descriptor["digest"].values())
        assert {one["digest"]["sha256"] for one in predicate["configuration"]} == {record.spec.sha256, record.audit.sha256}
        assert {"name": "model-weights", "digest": {"sha256": record.subject.weights_sha256}} in made["subject"]

    def test_the_specification_s_own_names(self) -> None:
        page = Path(__file__).parents[3] / "shared" / "schemas" / "in-toto-test-result.md"
        if not page.is_file():
            pytest.skip(f"the specification is not on this machine ({page})")
        text = page.read_text()
        for name in (STATEMENT_TYPE, PREDICATE_TYPE, *statement(consistent(), SUBJECTS)["predicate"]):
            assert name in text

    @pytest.mark.parametrize("kind", ["shortcut", "clean", "not_measured"])
    def test_each_finding_is_one_test(self, kind: str) -> None:
        record = sample(kind)
        predicate = statement(record, SUBJECTS)["predicate"]
        named = [name for key in ("passedTests", "warnedTests", "failedTests") for name in predicate[key]]
        assert sorted(named) == sorted(finding.id for finding in record.findings)
        passed = {finding.id for finding in record.findings if finding.state == "satisfied"}
        assert set(predicate["passedTests"]) == passed
        assert predicate["result"] == {"shortcut": "FAILED", "clean": "PASSED", "not_measured": "FAILED"}[kind]

    def test_waived_is_a_warning_and_never_passed(self) -> None:
        record = consistent(waived=True)
        assert record.gate is not None
        assert record.gate.outcome == "conditional"
        predicate = statement(record, SUBJECTS)["predicate"]
        assert predicate["result"] == result_of(record) == "WARNED"
        assert predicate["warnedTests"] == ["no-ruler/layer3"]

    def test_tolerated_is_a_warning(self) -> None:
        record = gate.apply(consistent(), (), Policy(fail_on="critical"), date(2025, 11, 20))
        assert result_of(record) == "FAILED"
        lighter = record.model_copy(
            update={"findings": tuple(f.model_copy(update={"severity": "minor"}) for f in record.findings)}
        )
        assert result_of(gate.apply(lighter, (), Policy(fail_on="critical"), date(2025, 11, 20))) == "WARNED"


class TestEnvelope:
    def test_pre_authentication_encoding(self) -> None:
        """The example of the DSSE specification."""
        assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == (
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        )

    def test_the_specification_s_way_of_verifying(self) -> None:
        """Read with nothing but JSON, base64 and the public key."""
        value = json.loads(world.envelope(consistent()))
        payload = base64.b64decode(value["payload"])
        assert value["payloadType"] == PAYLOAD_TYPE
        (signature,) = value["signatures"]
        public = world.attesting().public_key()
        public.verify(base64.b64decode(signature["sig"]), pre_authentication_encoding(value["payloadType"], payload))
        assert signature["keyid"] == key_id(public)
        assert json.loads(payload)["_type"] == STATEMENT_TYPE

    def test_the_same_bytes(self) -> None:
        assert world.envelope(consistent()) == world.envelope(consistent())

    @pytest.mark.parametrize(
        "change",
        [
            lambda v: v.update(extra=1),
            lambda v: v["signatures"].append(v["signatures"][0]),
            lambda v: v["signatures"].clear(),
            lambda v: v["signatures"][0].update(keyid=v["signatures"][0]["keyid"].upper()),
            lambda v: v.update(payloadType="application/json"),
            lambda v: v.update(payload=v["payload"] + "\n"),
            lambda v: v["signatures"][0].update(sig=v["signatures"][0]["sig"].rstrip("=")),
        ],
    )
    def test_other_forms(self, change: Any) -> None:
        value = json.loads(world.envelope(consistent()))
        change(value)
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        with pytest.raises(IntegrityError):
            open_envelope(data, world.trust(), "x")

    def test_a_key_written_twice(self) -> None:
        data = world.envelope(consistent())
        doubled = data.replace(b'{"payload":', b'{"payload":"","payload":', 1)
        with pytest.raises(IntegrityError) as caught:
            open_envelope(doubled, world.trust(), "x")
        assert caught.value.slug == "envelope-damaged"

    def test_another_payload_under_the_same_signature(self) -> None:
        first, other = json.loads(world.envelope(consistent())), json.loads(seal(b"{}", world.attesting()))
        first["payload"] = other["payload"]
        data = json.dumps(first, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        with pytest.raises(IntegrityError) as caught:
            open_envelope(data, world.trust(), "x")
        assert caught.value.slug == "envelope-signature"


class TestFiles:
    def test_what_lies_beside_is_attested(self, tmp_path: Path) -> None:
        record = consistent()
        write_record(record, tmp_path / RESULTS)
        report.write(record, tmp_path, pdf=False)
        payload, _ = open_envelope(attest(tmp_path / RESULTS, world.attesting()), world.trust(), "x")
        subjects = {one["name"]: one["digest"]["sha256"] for one in json.loads(payload)["subject"]}
        assert subjects["report.html"] == digest_bytes((tmp_path / "report.html").read_bytes())
        assert subjects[RESULTS] == digest_bytes(record_bytes(record))
        assert set(subjects) == {RESULTS, "report.html", "model-weights"}

    def test_another_record_s_report(self, tmp_path: Path) -> None:
        write_record(consistent(), tmp_path / RESULTS)
        report.write(consistent(waived=True), tmp_path, pdf=False)
        with pytest.raises(IntegrityError) as caught:
            attest(tmp_path / RESULTS, world.attesting())
        assert caught.value.slug == "other-record"

    def test_an_edited_record(self, tmp_path: Path) -> None:
        (tmp_path / RESULTS).write_bytes(record_bytes(consistent()).replace(b"\n ", b"\n  "))
        with pytest.raises(IntegrityError) as caught:
            attest(tmp_path / RESULTS, world.attesting())
        assert caught.value.slug == "record-form"


class TestKeys:
    @pytest.mark.parametrize("passphrase", [None, b"secret"])
    def test_new(self, tmp_path: Path, passphrase: bytes | None) -> None:
        public = new_key(tmp_path / "a.pem", passphrase)
        assert stat.S_IMODE((tmp_path / "a.pem").stat().st_mode) == 0o600
        key = read_key(tmp_path / "a.pem", passphrase)
        assert read_trust([public]).key(key_id(key.public_key())) is not None
        with pytest.raises(UsageError):
            read_key(tmp_path / "a.pem", b"wrong")

    def test_never_overwritten(self, tmp_path: Path) -> None:
        new_key(tmp_path / "a.pem", None)
        before = (tmp_path / "a.pem").read_bytes()
        with pytest.raises(UsageError) as caught:
            new_key(tmp_path / "a.pem", None)
        assert caught.value.slug == "key-exists"
        (tmp_path / "a.pem.pub").unlink()
        with pytest.raises(UsageError):
            new_key(tmp_path / "a.pem", None)
        assert (tmp_path / "a.pem").read_bytes() == before

    def test_other_keys(self, tmp_path: Path) -> None:
        key, certificate = world.files_of(world.holder(world.ADA), "attest")
        for file in (key, certificate, tmp_path / "none.pem"):
            with pytest.raises(UsageError):
                read_key(file, None)


class TestTrust:
    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "root.pem").write_bytes(world.holder("root").pem + world.holder("other").pem)
        new_key(tmp_path / "key", None)
        (tmp_path / "notes.txt").write_text("not read")
        found = read_trust([tmp_path])
        assert (len(found.certificates), len(found.keys)) == (2, 1)

    @pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
    def test_nonsense(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.pem").write_bytes(content)
        with pytest.raises(UsageError) as caught:
            read_trust([tmp_path / "x.pem"])
        assert caught.value.slug == "bad-trust"

    def test_private_keys_are_refused(self, tmp_path: Path) -> None:
        new_key(tmp_path / "a.pem", None)
        with pytest.raises(UsageError) as caught:
            read_trust([tmp_path / "a.pem"])
        assert "private key" in str(caught.value)

    def test_nothing(self, tmp_path: Path) -> None:
        assert TrustList().empty
        for path in (tmp_path, tmp_path / "no.pem"):
            with pytest.raises(UsageError):
                read_trust([path])

    def test_key_id_is_of_the_der(self) -> None:
        key = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
        prefix = bytes.fromhex("302a300506032b6570032100")  # SubjectPublicKeyInfo of Ed25519 (RFC 8410, 10.1)
        assert key_id(key) == digest_bytes(prefix + key.public_bytes_raw())
