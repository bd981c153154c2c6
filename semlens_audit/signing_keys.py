"""Where the key of a signature is: a PKCS #12 file, PEM files, or a PKCS #11 token such as a smart card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asn1crypto import keys, x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12
from pyhanko.sign.signers.pdf_cms import Signer, SimpleSigner
from pyhanko_certvalidator.registry import SimpleCertificateStore

from semlens_audit.cms_form import AttributeSpec, low_s
from semlens_audit.errors import UsageError
from semlens_audit.trust import read_certificates

__all__ = ["SigningKey", "from_pem", "from_pkcs11", "from_pkcs12"]

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_LEAST_RSA = 2048
_SPKI = PublicFormat.SubjectPublicKeyInfo


@dataclass(frozen=True)
class SigningKey:
    """A key with its certificates.

    Parameters
    ----------
    signer
        What pyHanko signs with.
    certificates
        The signatory's first, then those of authorities up to but not including self-signed ones.
    """

    signer: Signer
    certificates: tuple[x509.Certificate, ...]

    @property
    def subject(self) -> str:
        """Whom the certificate is for."""
        return str(self.certificates[0].subject.human_friendly)


class _FileSigner(SimpleSigner):  # type: ignore[misc]
    """A key in memory; ECDSA signatures in their one accepted form."""

    async def async_sign_raw(self, data: bytes, digest_algorithm: str, dry_run: bool = False) -> bytes:
        """Sign `data`."""
        signature: bytes = await super().async_sign_raw(data, digest_algorithm, dry_run)
        return _one_form(signature, self.signing_cert, dry_run)


def _one_form(signature: bytes, certificate: x509.Certificate, dry_run: bool) -> bytes:
    if dry_run or certificate.public_key.algorithm != "ec":
        return signature
    return low_s(signature, str(certificate.public_key.curve[1]))


def from_pem(key: Path, certificate: Path, chain: Sequence[Path], passphrase: bytes | None) -> SigningKey:
    """A private key in a PEM file with its certificate.

    Parameters
    ----------
    certificate
        PEM; what follows the first certificate in it counts as chain.
    chain
        PEM files with certificates of authorities.

    Raises
    ------
    UsageError
        Slugs ``no-key``, ``bad-key``, ``bad-passphrase``, ``key-mismatch``, ``no-certificate``, ``key-kind``.
    """
    try:
        private = load_pem_private_key(_read(key), passphrase)
    except TypeError as error:
        said = "is encrypted: a passphrase is needed" if passphrase is None else "is not encrypted: no passphrase is needed"
        hint = "Use --passphrase-env or --passphrase-file, or type it when asked, where the key is encrypted."
        raise UsageError("bad-passphrase", f"The key {said}.", hint, file=str(key)) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "Check the passphrase, and that the file is a private key in PEM."
        raise UsageError("bad-key", "The key cannot be read: the passphrase or the file is wrong.", hint, file=str(key)) from error
    own, *further = read_certificates(certificate)
    further += [der for file in chain for der in read_certificates(file)]
    return _in_memory(private, own, further, str(key))


def from_pkcs12(file: Path, passphrase: bytes | None) -> SigningKey:
    """Key and certificates in a PKCS #12 file (``.p12``, ``.pfx``); raises as `from_pem`."""
    try:
        bundle = load_pkcs12(_read(file), passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = "Check the passphrase, and that it is a PKCS #12 file (.p12 or .pfx)."
        raise UsageError("bad-key", "The file cannot be read: the passphrase or the file is wrong.", hint, file=str(file)) from error
    if bundle.key is None or bundle.cert is None:
        hint = "Export the key together with its certificate."
        raise UsageError("bad-key", "The file holds no key with a certificate.", hint, file=str(file))
    further = [one.certificate.public_bytes(Encoding.DER) for one in bundle.additional_certs]
    return _in_memory(bundle.key, bundle.cert.certificate.public_bytes(Encoding.DER), further, str(file))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError("no-key", f"The key cannot be read: {error.strerror}.", "Check the path.", file=str(file)) from error


def _in_memory(private: Any, own: bytes, further: Sequence[bytes], file: str) -> SigningKey:
    certificates = _chain(own, further, file)
    if not isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise _kind(file)
    public = private.public_key().public_bytes(Encoding.DER, _SPKI)
    if public != certificates[0].public_key.dump():
        hint = "Give the certificate that was issued for this key."
        raise UsageError("key-mismatch", "Key and certificate do not belong together.", hint, file=file)
    der = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    signer = _FileSigner(
        signing_cert=certificates[0],
        signing_key=keys.PrivateKeyInfo.load(der),
        cert_registry=_store(certificates[1:]),
        embed_roots=False,
    )
    signer.signed_attr_prov_spec = AttributeSpec(certificates)
    return SigningKey(signer, certificates)


def _kind(file: str | None) -> UsageError:
    return UsageError(
        "key-kind", f"PDFs are signed with RSA keys of {_LEAST_RSA} bits or more, or with ECDSA keys on P-256, P-384 or P-521.",
        "Use such a key; Ed25519 is for `attest`: PDF/A-3 readers do not know it.", file=file,
    )  # fmt: skip


def _chain(own: bytes, further: Sequence[bytes], file: str | None) -> tuple[x509.Certificate, ...]:
    """The signatory's certificate and those of its authorities, in order, without self-signed ones and without any other."""
    first = x509.Certificate.load(own)
    kind = first.public_key.algorithm
    if kind == "ec":
        suitable = first.public_key.curve[1] in _CURVES
    else:
        suitable = kind == "rsa" and first.public_key.bit_size >= _LEAST_RSA
    if not suitable:
        raise _kind(file)
    found, known = [first], [x509.Certificate.load(der) for der in further]
    while found[-1].self_issued is False:
        issuer = next((one for one in known if one.subject == found[-1].issuer and one not in found), None)
        if issuer is None or issuer.self_issued:
            break
        found.append(issuer)
    return tuple(found)


def _store(certificates: Sequence[x509.Certificate]) -> SimpleCertificateStore:
    store = SimpleCertificateStore()
    store.register_multiple(certificates)
    return store


@contextlib.contextmanager
def from_pkcs11(
    library: Path, token: str, key_label: str, certificate: Path | None, certificate_label: str | None, pin: str | None
) -> Iterator[SigningKey]:
    """A key on a token that never leaves it.

    Parameters
    ----------
    library
        PKCS #11 module of the token's maker, e.g. ``libsofthsm2.so``.
    token
        Label of the token.
    key_label
        Label of the private key.
    certificate
        PEM file with the certificate and, after it, those of authorities; none: it is read from the token.
    certificate_label
        Label of the certificate on the token; none: that of the key.
    pin
        User PIN; none: the token asks for it itself, or needs none.

    Raises
    ------
    UsageError
        Slugs ``no-pkcs11`` without the extra ``pkcs11``, ``token`` for whatever the token refuses, and those of `from_pem`.
    """
    try:
        import pkcs11
        from pyhanko.config.pkcs11 import TokenCriteria
        from pyhanko.sign.pkcs11 import PKCS11Signer, open_pkcs11_session
    except ImportError as error:
        hint = "Install it: pip install 'semlens-audit[pkcs11]'."
        raise UsageError("no-pkcs11", "Tokens need the extra package python-pkcs11.", hint) from error

    class TokenSigner(PKCS11Signer):  # type: ignore[misc]
        """A key on a token; ECDSA signatures in their one accepted form."""

        @property
        def cert_registry(self) -> SimpleCertificateStore:
            """Certificates to embed beside the signatory's own."""
            return _store(certificates[1:])

        async def async_sign_raw(self, data: bytes, digest_algorithm: str, dry_run: bool = False) -> bytes:
            signature: bytes = await super().async_sign_raw(data, digest_algorithm, dry_run)
            return _one_form(signature, self.signing_cert, dry_run)

    try:
        session = open_pkcs11_session(str(library), token_criteria=TokenCriteria(label=token), user_pin=pin)
        with session:
            if certificate is not None:
                own, *further = read_certificates(certificate)
            else:
                label = certificate_label or key_label
                stored = list(
                    session.get_objects(
                        {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.CERTIFICATE, pkcs11.Attribute.LABEL: label}
                    )
                )
                if len(stored) != 1:
                    said = f"The token holds {len(stored) or 'no'} certificates with the label {label!r}."
                    raise UsageError("token", said, "Give --cert, or --cert-label with the label of one certificate.")
                own, further = stored[0][pkcs11.Attribute.VALUE], []
            certificates = _chain(own, further, str(certificate) if certificate else None)
            # many tokens sign a digest with ECDSA, but do not make it themselves
            raw = certificates[0].public_key.algorithm == "ec"
            signer = TokenSigner(
                session, signing_cert=certificates[0], key_label=key_label, embed_roots=False, use_raw_mechanism=raw
            )
            signer.signed_attr_prov_spec = AttributeSpec(certificates)
            yield SigningKey(signer, certificates)
    except (pkcs11.PKCS11Error, pkcs11.exceptions.PKCS11Error) as error:
        said = " ".join(part for part in (type(error).__name__, str(error)) if part)
        hint = "Check the module, the token's and the key's label, and the PIN."
        raise UsageError("token", f"The token refuses: {said}.", hint, file=str(library)) from error
