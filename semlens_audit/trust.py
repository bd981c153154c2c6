"""Whom a verifier trusts: certificates and public keys from files, instead of any list that comes with an operating system."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from semlens_audit.digest import digest_bytes
from semlens_audit.errors import UsageError

__all__ = ["PEM_SUFFIXES", "TrustList", "key_id", "read_certificates", "read_revocation_lists", "read_trust"]

PEM_SUFFIXES = (".pem", ".crt", ".cer", ".pub")
"""Files of a folder that are read as part of a trust list."""

_MOST_BYTES = 4 << 20
_MOST_ENTRIES = 1000
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[^-]{1,200000}-----END \1-----")
_HINT = "Give PEM files: certificates of authorities or signatories, and Ed25519 public keys."


@dataclass(frozen=True)
class TrustList:
    """Certificates and keys that a signature may end at; nothing else is trusted.

    Parameters
    ----------
    certificates
        DER of certificates: of authorities, or of signatories themselves.
    keys
        Key id -> Ed25519 public key of those who attest.
    """

    certificates: tuple[bytes, ...] = ()
    keys: tuple[tuple[str, Ed25519PublicKey], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing and no one is trusted."""
        return not self.certificates and not self.keys

    def key(self, identifier: str) -> Ed25519PublicKey | None:
        """The key with that id."""
        return dict(self.keys).get(identifier)


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's DER (SubjectPublicKeyInfo, RFC 8410), 64 hexadecimal digits: what names it in an envelope."""
    return digest_bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def read_trust(paths: Sequence[Path]) -> TrustList:
    """Read a trust list.

    Parameters
    ----------
    paths
        PEM files, or folders whose files ending in `PEM_SUFFIXES` are read, not below.

    Raises
    ------
    UsageError
        Slugs ``no-trust`` for a file that cannot be read or a folder without any, ``bad-trust`` for one that holds anything else
        than certificates and Ed25519 public keys, a private key above all.
    """
    certificates: dict[bytes, None] = {}
    keys: dict[str, Ed25519PublicKey] = {}
    for file in _files(paths):
        found = 0
        for label, block in _blocks(file):
            found += 1
            if label == "CERTIFICATE":
                certificates[_certificate(block, file)] = None
            elif label == "PUBLIC KEY":
                key = _public_key(block, file)
                keys[key_id(key)] = key
            elif "PRIVATE" in label:
                raise UsageError(
                    "bad-trust", "The file holds a private key, which no verifier should have.",
                    "Give the certificate or the public key only.", file=str(file),
                )  # fmt: skip
            else:
                raise UsageError("bad-trust", f"The file holds a PEM block {label!r}.", _HINT, file=str(file))
        if not found:
            raise UsageError("bad-trust", "The file holds no PEM block.", _HINT, file=str(file))
        if len(certificates) + len(keys) > _MOST_ENTRIES:
            raise UsageError("bad-trust", f"The trust list has more than {_MOST_ENTRIES} entries.", "Give fewer files.")
    return TrustList(tuple(certificates), tuple(sorted(keys.items())))


def read_certificates(file: Path) -> tuple[bytes, ...]:
    """DER of each certificate of a PEM file, in its order; raises as `read_trust`."""
    found = tuple(_certificate(block, file) for label, block in _blocks(file) if label == "CERTIFICATE")
    if not found:
        raise UsageError("no-certificate", "The file holds no certificate.", "Give a PEM file with certificates.", file=str(file))
    return found


def read_revocation_lists(paths: Sequence[Path]) -> tuple[bytes, ...]:
    """DER of each certificate revocation list (RFC 5280), one a file, PEM or DER; raises `UsageError` ``bad-crl``."""
    found = []
    for path in paths:
        try:
            data = path.read_bytes()
            read = x509.load_pem_x509_crl(data) if data.lstrip().startswith(b"-----") else x509.load_der_x509_crl(data)
        except (OSError, ValueError) as error:
            hint = "Give a PEM or DER file with one list."
            raise UsageError("bad-crl", f"The revocation list cannot be read: {error}.", hint, file=str(path)) from error
        found.append(read.public_bytes(Encoding.DER))
    return tuple(found)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        try:
            inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in PEM_SUFFIXES and entry.is_file())
        except NotADirectoryError:
            yield path
            continue
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else "that is no path"
            raise UsageError("no-trust", f"It cannot be read: {said}.", _HINT, file=str(path)[:200]) from error
        if not inside:
            endings = ", ".join(PEM_SUFFIXES)
            raise UsageError("no-trust", f"The folder holds no file ending in {endings}.", _HINT, file=str(path))
        yield from inside


def _blocks(file: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError("no-trust", f"The file cannot be read: {error.strerror}.", _HINT, file=str(file)) from error
    if len(data) > _MOST_BYTES:
        raise UsageError("bad-trust", f"The file is larger than {_MOST_BYTES >> 20} MiB.", _HINT, file=str(file))
    for match in _BLOCK.finditer(data):
        yield match[1].decode("ascii"), match[0]


def _certificate(block: bytes, file: Path) -> bytes:
    try:
        return x509.load_pem_x509_certificate(block).public_bytes(Encoding.DER)
    except ValueError as error:
        raise UsageError("bad-trust", f"A certificate cannot be read: {error}.", _HINT, file=str(file)) from error


def _public_key(block: bytes, file: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(block)
    except (ValueError, TypeError) as error:
        raise UsageError("bad-trust", f"A public key cannot be read: {error}.", _HINT, file=str(file)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            "bad-trust", "The public key is not an Ed25519 key; attestations are signed with no other.",
            "For signatures of PDFs, give the certificate instead.", file=str(file),
        )  # fmt: skip
    return key
