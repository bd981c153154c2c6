"""Dead Simple Signing Envelope (DSSE 1.0): a payload and its Ed25519 signature as one file of canonical JSON.

An envelope is read in the one form in which it is written: every byte of the file is either signed, or follows from what is. So
no byte can change without being noticed, which the format by itself does not promise (white space, spelling of base64, key ids,
further signatures).
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from semlens_audit.digest import canonical_json
from semlens_audit.errors import IntegrityError
from semlens_audit.trust import TrustList, key_id

__all__ = ["PAYLOAD_TYPE", "open_envelope", "pre_authentication_encoding", "seal"]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""Payload type of in-toto attestations (in-toto Attestation Framework 1.0, envelope layer)."""

_MOST_BYTES = 16 << 20
_HINT = "Take the file as `attest` wrote it."


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What is signed: ``DSSEv1 LENGTH TYPE LENGTH PAYLOAD`` with lengths in bytes as decimal numbers (DSSE 1.0, protocol)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope of `payload` as a file's content; the same for the same payload and key, as Ed25519 draws no random numbers."""
    signature = key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    return _written(payload, key_id(key.public_key()), signature)


def _written(payload: bytes, identifier: str, signature: bytes) -> bytes:
    value = {
        "payload": base64.b64encode(payload).decode("ascii"),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": identifier, "sig": base64.b64encode(signature).decode("ascii")}],
    }
    return canonical_json(value).encode("utf-8") + b"\n"


def open_envelope(data: bytes, trust: TrustList, file: str) -> tuple[bytes, str]:
    """Payload and key id of an envelope that a trusted key has signed.

    Parameters
    ----------
    data
        Content of the file.
    trust
        Whose signature counts.
    file
        Name for the messages of errors.

    Raises
    ------
    IntegrityError
        Slugs ``envelope-damaged`` where the file is not what `seal` writes, ``envelope-untrusted`` where the key is not in
        `trust`, ``envelope-signature`` where the signature does not hold.
    """
    payload, identifier, signature = _parsed(data, file)
    key = trust.key(identifier)
    if key is None:
        raise IntegrityError(
            "envelope-untrusted", f"The envelope is signed with the key {identifier[:16]}…, which is not in the trust list.",
            "Give the public key of those who attest with --trust, if you trust them.", file=file,
        )  # fmt: skip
    try:
        key.verify(signature, pre_authentication_encoding(PAYLOAD_TYPE, payload))
    except InvalidSignature as error:
        raise IntegrityError("envelope-signature", "The signature does not fit the envelope's payload.", _HINT, file=file) from error
    return payload, identifier


def _parsed(data: bytes, file: str) -> tuple[bytes, str, bytes]:
    def damaged(said: str) -> IntegrityError:
        return IntegrityError("envelope-damaged", f"The envelope {said}.", _HINT, file=file)

    if len(data) > _MOST_BYTES:
        raise damaged(f"is larger than {_MOST_BYTES >> 20} MiB")
    try:
        value: Any = json.loads(data.decode("utf-8"))
        only = value["signatures"][0]
        payload = base64.b64decode(value["payload"], validate=True)
        identifier, signature = only["keyid"], base64.b64decode(only["sig"], validate=True)
        same = isinstance(identifier, str) and _written(payload, identifier, signature) == data
    except (ValueError, TypeError, LookupError, RecursionError, binascii.Error) as error:
        raise damaged("cannot be read") from error
    if not same:
        raise damaged("is not in the form in which envelopes are written: one signature, canonical JSON, canonical base64")
    return payload, identifier, signature
