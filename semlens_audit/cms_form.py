"""The CMS object of a PDF signature: how it is made, and whether each of its bytes is signed or follows from what is.

A CMS object (RFC 5652) has parts that no signature covers: certificates, lists of algorithms, unsigned attributes. Here, the signed
attributes name every certificate by digest (RFC 5035), and everything else has one permitted form, which is written again and
compared. The signature is checked with the cryptography package, apart from what pyHanko concludes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from asn1crypto import cms, core, tsp, x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pyhanko.sign.attributes import CMSAttributeProvider
from pyhanko.sign.signers.pdf_cms import SignedAttributeProviderSpec

from semlens_audit.errors import IntegrityError
from semlens_audit.pdf_signature import DIGEST

__all__ = ["AttributeSpec", "CmsSignature", "low_s", "read_signature"]

_MOST_BYTES = 1 << 20
_TOKEN = "signature_time_stamp_token"
_HINT = "Take the file as `sign` wrote it."
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, AssertionError, OSError)
"""What asn1crypto and cryptography raise on bytes that are no proper CMS object."""


def _refused(said: str) -> IntegrityError:
    return IntegrityError("signature-form", f"The signature {said}.", _HINT)


def ess_certificates(certificates: Iterable[x509.Certificate]) -> tsp.SigningCertificateV2:
    """Digests of certificates, the signatory's first (ESSCertIDv2, RFC 5035)."""
    return tsp.SigningCertificateV2({"certs": [{"cert_hash": hashlib.sha256(one.dump()).digest()} for one in certificates]})


class _Certificates(CMSAttributeProvider):
    attribute_type = "signing_certificate_v2"

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        self._certificates = certificates

    async def build_attr_value(self, dry_run: bool = False) -> tsp.SigningCertificateV2:
        """The attribute's value."""
        return ess_certificates(self._certificates)


class AttributeSpec(SignedAttributeProviderSpec):  # type: ignore[misc]
    """Signed attributes beside content type and message digest: which certificates belong to the signature.

    Parameters
    ----------
    certificates
        All that are embedded, the signatory's first.
    """

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        self._certificates = certificates

    def signed_attr_providers(self, data_digest: bytes, digest_algorithm: str) -> Iterable[CMSAttributeProvider]:
        """The providers, for pyHanko."""
        yield _Certificates(self._certificates)


_ORDERS = {
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": int("F" * 48 + "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16),
    "secp521r1": int("1FF" + "F" * 63 + "A51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409", 16),
}
"""Order of the base point of each curve (FIPS 186-4, D.1.2)."""


def low_s(signature: bytes, curve: str) -> bytes:
    """The ECDSA signature (DER) with the smaller of both equivalent values s and n - s, so that there is one form of it."""
    r, s = utils.decode_dss_signature(signature)
    return utils.encode_dss_signature(r, min(s, _ORDERS[curve] - s))


class CmsSignature:
    """A signature read from its only permitted form.

    Parameters
    ----------
    der
        The CMS object.
    digest
        SHA-256 of what it signs.

    Raises
    ------
    IntegrityError
        Slugs ``signature-form``, ``signature-digest``, ``signature-invalid``.
    """

    def __init__(self, der: bytes, digest: bytes) -> None:
        if len(der) > _MOST_BYTES:
            raise _refused(f"is larger than {_MOST_BYTES >> 20} MiB")
        try:
            self._read(der, digest)
        except _UNREADABLE as error:
            raise _refused("is no CMS object that can be read") from error

    def _read(self, der: bytes, digest: bytes) -> None:
        content = cms.ContentInfo.load(der, strict=True)
        data = content["content"]
        if content["content_type"].native != "signed_data" or len(data["signer_infos"]) != 1:
            raise _refused("is not of one signatory")
        info = data["signer_infos"][0]
        attributes = {attribute["type"].native: attribute["values"] for attribute in info["signed_attrs"]}
        if set(attributes) != {"content_type", "message_digest", "signing_certificate_v2"} or len(info["signed_attrs"]) != 3:
            raise _refused("does not have exactly the signed attributes content type, message digest and certificates")
        certificates = [choice.chosen for choice in data["certificates"]]
        if not all(isinstance(one, x509.Certificate) for one in certificates):
            raise _refused("holds something else than certificates")
        by_digest = {hashlib.sha256(one.dump()).digest(): one for one in certificates}
        named = [one["cert_hash"].native for one in attributes["signing_certificate_v2"][0]["certs"]]
        if sorted(by_digest) != sorted(named) or len(certificates) != len(named):
            raise _refused("holds other certificates than it names")
        self.certificates = tuple(by_digest[one] for one in named)
        """All embedded certificates, the signatory's first."""
        self.signatory = self.certificates[0]
        self.token = _time_stamp(info)
        """The time stamp token (RFC 3161), where there is one."""
        if self._written(info) != der:
            raise _refused("is not in the form in which signatures are written")
        if attributes["message_digest"][0].native != digest:
            raise IntegrityError("signature-digest", "The document is not the one that was signed.", _HINT)
        self._check(info)

    def _written(self, info: cms.SignerInfo) -> bytes:
        """The object as it has to be, from what is signed: attributes, signature, time stamp."""
        written: dict[str, Any] = {
            "version": "v1",
            "sid": _named(self.signatory),
            "digest_algorithm": {"algorithm": DIGEST},
            "signature_algorithm": _mechanism(self.signatory),
            "signed_attrs": cms.CMSAttributes(list(info["signed_attrs"])),
            "signature": info["signature"].native,
        }
        if self.token is not None:
            written["unsigned_attrs"] = cms.CMSAttributes([{"type": _TOKEN, "values": [self.token]}])
        return _object("v1", {"algorithm": DIGEST}, {"content_type": "data"}, self.certificates, written)

    def _check(self, info: cms.SignerInfo) -> None:
        """The signature over the attributes' own bytes, as a set (RFC 5652, 5.4)."""
        attributes = info["signed_attrs"].untag()
        signed = bytes(attributes.dump())
        if signed[:1] != b"\x31" or attributes.contents != info["signed_attrs"].contents:
            raise _refused("has signed attributes of an unknown form")
        signature = info["signature"].native
        key = load_der_public_key(self.signatory.public_key.dump())
        try:
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
            elif isinstance(key, ec.EllipticCurvePublicKey):
                if key.curve.name not in _ORDERS or low_s(signature, key.curve.name) != signature:
                    raise _refused("is not in the one form of ECDSA signatures that is accepted")
                key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
            else:
                raise _refused("is made with a kind of key other than RSA and ECDSA")
        except InvalidSignature as error:
            raise IntegrityError("signature-invalid", "The signature does not fit its certificate.", _HINT) from error


def _named(certificate: x509.Certificate) -> cms.SignerIdentifier:
    name = {"issuer": certificate.issuer, "serial_number": certificate.serial_number}
    return cms.SignerIdentifier("issuer_and_serial_number", cms.IssuerAndSerialNumber(name))


def _object(
    version: str, algorithm: Any, content: Any, certificates: Sequence[x509.Certificate], info: dict[str, Any]
) -> bytes:
    """A CMS object of one signatory, without anything that it may but need not have."""
    signed = cms.SignedData(
        {
            "version": version,
            "digest_algorithms": [algorithm],
            "encap_content_info": content,
            "certificates": [cms.CertificateChoices("certificate", one) for one in certificates],
            "signer_infos": [info],
        }
    )
    return bytes(cms.ContentInfo({"content_type": "signed_data", "content": signed}).dump())


def _mechanism(certificate: x509.Certificate) -> dict[str, str]:
    return {"algorithm": f"{DIGEST}_{'ecdsa' if certificate.public_key.algorithm == 'ec' else 'rsa'}"}


def _time_stamp(info: cms.SignerInfo) -> cms.ContentInfo | None:
    unsigned = info["unsigned_attrs"]
    if isinstance(unsigned, core.Void):
        return None
    if len(unsigned) != 1 or unsigned[0]["type"].native != _TOKEN or len(unsigned[0]["values"]) != 1:
        raise _refused("has an unsigned attribute other than one time stamp")
    token = unsigned[0]["values"][0]
    _check_token(token)
    return token


def _check_token(token: cms.ContentInfo) -> None:
    """A time stamp token in one form: nothing in it that the authority's signature neither covers nor implies."""
    data = token["content"]
    if token["content_type"].native != "signed_data" or len(data["signer_infos"]) != 1:
        raise _refused("has a time stamp of no or several authorities")
    info = data["signer_infos"][0]
    if not isinstance(info["unsigned_attrs"], core.Void):
        raise _refused("has a time stamp with unsigned attributes, which nothing protects")
    if not isinstance(data["crls"], core.Void):
        raise _refused("has a time stamp with revocation lists, which nothing protects")
    for algorithm in (info["digest_algorithm"], info["signature_algorithm"]):
        if algorithm["parameters"].dump() not in (b"", b"\x05\x00"):
            raise _refused("has a time stamp made with parameters that are not accepted")
    certificates = [choice.chosen for choice in data["certificates"]]
    for one in certificates:
        check_certificate(one)
    owner = next((one for one in certificates if _named(one).dump() == info["sid"].dump()), None)
    if owner is None:
        raise _refused("has a time stamp without its authority's certificate")
    content = {"content_type": "tst_info", "content": cms.ParsableOctetString(bytes(data["encap_content_info"]["content"]))}
    names = ("digest_algorithm", "signature_algorithm", "signed_attrs")
    written = {"version": "v1", "sid": _named(owner), "signature": info["signature"].native} | {name: info[name] for name in names}
    if _object("v3", info["digest_algorithm"], content, certificates, written) != token.dump():
        raise _refused("has a time stamp that is not in canonical form")


def check_certificate(certificate: x509.Certificate) -> None:
    """Refuse a certificate with bytes that its issuer's signature neither covers nor implies."""
    inner = certificate["tbs_certificate"]
    signature = certificate["signature_value"]
    written = core.Sequence(contents=inner.dump() + inner["signature"].dump() + core.OctetBitString(signature.native).dump())
    if written.dump() != certificate.dump():
        raise _refused("holds a certificate that is not in canonical form")


def read_signature(der: bytes, digest: bytes) -> CmsSignature:
    """The signature in `der` over what has the SHA-256 `digest`; raises as `CmsSignature`."""
    return CmsSignature(der, digest)
