"""Keys, certificates and signed reports that several test modules share; each is made once."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from semlens_audit import report
from semlens_audit.attest import statement_bytes
from semlens_audit.digest import digest_bytes
from semlens_audit.envelope import seal
from semlens_audit.record_file import RESULTS, record_bytes, record_digest
from semlens_audit.records import AuditRecord
from semlens_audit.signing import sign_report
from semlens_audit.signing_keys import SigningKey, from_pem
from semlens_audit.trust import TrustList, key_id
from tests.golden.consistent_record import consistent

NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
ADA, MAX = "Dr. Ada Example", "Max Müster"
Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_rendered: dict[str, bytes] = {}


def render_once(record: AuditRecord) -> bytes:
    """`render_pdf`, remembered: the tests render few records, and each takes seconds."""
    key = record_digest(record)
    if key not in _rendered:
        _rendered[key] = report.render_pdf(record)
    return _rendered[key]


@dataclass(frozen=True)
class Holder:
    """A key with its certificate and that of who issued it."""

    key: Private
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def issue(
    name: str, key: Private, issuer: Holder | None, *, authority: bool = False, days: int = 365, stamps: bool = False
) -> Holder:
    """A certificate for `name`, valid for `days` from a day before `NOW`."""
    start = NOW - timedelta(days=1)
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by, by_key = (issuer.certificate.subject, issuer.key) if issuer else (named, key)
    flags = (not authority, not authority, False, False, False, authority, authority, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(*flags), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by_key.public_key()), critical=False)
    )
    if stamps:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
    return Holder(key, builder.sign(by_key, hashes.SHA256()))


def curve() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def holder(name: str) -> Holder:
    """``root``, ``inter``, ``other`` (a root that no one trusts), ``tsa``, or a signatory."""
    if name in ("root", "other"):
        return issue(f"Test {name}", curve(), None, authority=True)
    if name == "inter":
        return issue("Test intermediate", curve(), holder("root"), authority=True)
    if name == "tsa":
        return issue("Test time stamps", rsa.generate_private_key(65537, 2048), holder("root"), stamps=True)
    key: Private = rsa.generate_private_key(65537, 2048) if name == MAX else curve()
    return issue(name, key, holder("inter"))


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="semlens-audit-keys-"))


def files_of(one: Holder, stem: str) -> tuple[Path, Path]:
    """Key and certificate as PEM files."""
    key, certificate = folder() / f"{stem}.key", folder() / f"{stem}.pem"
    key.write_bytes(one.key_pem)
    certificate.write_bytes(one.pem)
    return key, certificate


@functools.cache
def signing_key(name: str) -> SigningKey:
    key, certificate = files_of(holder(name), f"key-{len(name)}")
    chain = folder() / "inter.pem"
    chain.write_bytes(holder("inter").pem + holder("root").pem)
    return from_pem(key, certificate, [chain], None)


@functools.cache
def attesting() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@functools.cache
def trust() -> TrustList:
    public = attesting().public_key()
    return TrustList((holder("root").der,), ((key_id(public), public),))


def signed(record: AuditRecord, *names: str) -> bytes:
    """The report of `record`, signed by these one after the other."""
    data = render_once(record)
    for minutes, name in enumerate(names):
        data = sign_report(data, signing_key(name), name=name, now=NOW + timedelta(minutes=minutes)).data
    return data


@functools.cache
def by_both() -> bytes:
    """A report that both responsible persons have signed."""
    return signed(consistent(), ADA, MAX)


@functools.cache
def by_one() -> bytes:
    """A report with one responsible person, who has signed."""
    return signed(consistent(persons=1), ADA)


def envelope(record: AuditRecord) -> bytes:
    """An attestation of the record alone."""
    return seal(statement_bytes(record, {RESULTS: digest_bytes(record_bytes(record))}), attesting())


