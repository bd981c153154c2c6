"""The demonstration's last act: its reports signed with test keys that nobody should trust, attested, and verified."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from semlens_audit.attest import ENVELOPE, attest, new_key, read_key
from semlens_audit.plan import Responsible
from semlens_audit.record_file import read_record
from semlens_audit.report import replace
from semlens_audit.signing import sign_report
from semlens_audit.signing_keys import from_pem
from semlens_audit.trust import read_trust
from semlens_audit.verification import Verification
from semlens_audit.verify import Request, verify

__all__ = ["KEYS", "make_signatory", "sign_all"]

KEYS = "demo-keys"
"""Folder of the test keys, beside the reports."""
TEST = "TEST, not for use"
"""Organisation in the subject of every certificate made here."""
_DAYS = 30


def sign_all(audits: Sequence[Sequence[Path]], keys: Path) -> list[tuple[Path, Verification]]:
    """Sign, attest and verify what audits left.

    Parameters
    ----------
    audits
        For each audit what it wrote: the record first, then its reports and exports.
    keys
        Where the test keys are, or are made: private ones, and below ``trust/`` what a verifier needs.

    Returns
    -------
    list of (Path, Verification)
        Every signed PDF and every attestation.

    Raises
    ------
    AuditError
        As `sign_report` and `attest`.
    """
    trust = keys / "trust"
    trust.mkdir(parents=True, exist_ok=True)
    attesting = keys / "attest.pem"
    if not attesting.exists():
        replace(trust / "attest.pub", new_key(attesting, None).read_bytes())
    written = []
    for record, *written_files in audits:
        reports = [path for path in written_files if path.suffix in (".html", ".pdf")]
        persons = read_record(record).responsible
        signed = [_sign(report, persons, keys) for report in reports if report.suffix == ".pdf" and persons]
        envelope = record.with_name(ENVELOPE)
        replace(envelope, attest(record, read_key(attesting, None), [*reports, *signed]))
        written += [*signed, envelope]
    request = Request(trust=read_trust([trust]))
    return [(path, verify(path, request)) for path in written]


def _sign(report: Path, persons: Sequence[Responsible], keys: Path) -> Path:
    """Sign a report in the name of everyone who answers for it."""
    data = report.read_bytes()
    for person in persons:
        stem = "".join(character if character.isalnum() else "-" for character in person.name.lower())[:60]
        key, certificate = keys / f"{stem}.key", keys / f"{stem}.pem"
        if not key.exists() or not _valid(certificate):
            replace(keys / "trust" / f"authority-of-{stem}.pem", make_signatory(person.name, key, certificate))
        data = sign_report(data, from_pem(key, certificate, [], None), name=person.name, file=str(report)).data
    signed = report.with_suffix(".signed.pdf")
    replace(signed, data)
    return signed


def _valid(certificate: Path) -> bool:
    """Whether there is a certificate that can be signed with today."""
    if not certificate.exists():
        return False
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc > datetime.now(UTC)


def make_signatory(name: str, key_file: Path, certificate_file: Path) -> bytes:
    """Make a key and a certificate in someone's name, issued by a test authority whose key is thrown away at once.

    Returns
    -------
    bytes
        The authority's certificate, PEM.
    """
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, own_name = _name("Test authority"), _name(name)
    authority = _certificate(authority_name, authority_key, authority_name, authority_key, authority=True)
    certificate = _certificate(own_name, key, authority_name, authority_key, authority=False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key_file.unlink(missing_ok=True)
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(private)
    replace(certificate_file, certificate.public_bytes(Encoding.PEM))
    return authority.public_bytes(Encoding.PEM)


def _name(common: str) -> x509.Name:
    # 64 characters are the most that a common name may have (RFC 5280, A.1)
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, TEST), x509.NameAttribute(NameOID.COMMON_NAME, common[:64])]
    return x509.Name(parts)


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256())
