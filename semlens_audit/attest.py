"""What an audit found as an in-toto statement: test results bound by digests to the record, the report, the model and the spec.

Statement v1 with the predicate Test Result v0.1 (in-toto Attestation Framework), in a DSSE envelope.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from semlens_audit.digest import canonical_json, digest_bytes
from semlens_audit.envelope import seal
from semlens_audit.errors import ExitCode, IntegrityError, UsageError
from semlens_audit.pdf_parts import read_attachments
from semlens_audit.record_file import RESULTS, parse_record, record_bytes
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.report import render_html

__all__ = [
    "ENVELOPE",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "SUBJECTS",
    "attest",
    "new_key",
    "read_key",
    "result_of",
    "statement",
    "statement_bytes",
]

ENVELOPE = "results.intoto.json"
"""Name of the envelope's file, beside the record."""
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
SUBJECTS = (RESULTS, "report.html", "report.pdf", "report.signed.pdf")
"""Files that an attestation speaks of, as far as they lie beside the record."""
WEIGHTS = "model-weights"
"""Name of the subject that is the audited model, not a file: its digest is that of the tensors."""


def result_of(record: AuditRecord) -> str:
    """``PASSED``, ``WARNED`` or ``FAILED``: of the gate, or of the verdict where no gate decided.

    Whatever does not let a release pass is ``FAILED``, what could not be measured too. What passes with a finding waived or
    tolerated by policy is ``WARNED``.
    """
    if record.exit_code != ExitCode.SATISFIED:
        return "FAILED"
    return "WARNED" if any(_rank(finding, record) for finding in record.findings) else "PASSED"


def _rank(finding: Finding, record: AuditRecord) -> int:
    """0 passed, 1 let pass by a waiver or by policy, 2 failed."""
    if finding.state == "satisfied":
        return 0
    gate = record.gate
    return 1 if gate is not None and finding.id in {*gate.waived, *gate.tolerated} - set(gate.stopped_by) else 2


def statement(record: AuditRecord, subjects: Mapping[str, str]) -> dict[str, Any]:
    """The in-toto statement of a record.

    Parameters
    ----------
    record
        What was found.
    subjects
        File name -> SHA-256; the record's own file among them.

    Returns
    -------
    dict
        Statement v1. Names of tests are those of the findings (`Finding.id`), in their order. Fields beside those of the predicate
        type are none, so that any in-toto verifier reads it.
    """
    tests: tuple[list[str], list[str], list[str]] = ([], [], [])
    for finding in record.findings:
        tests[_rank(finding, record)].append(finding.id)
    files = [{"digest": {"sha256": sha256}, "name": name} for name, sha256 in sorted(subjects.items())]
    model = {"digest": {"sha256": record.subject.weights_sha256}, "name": WEIGHTS}
    configuration = [
        {"digest": {"sha256": document.sha256}, "mediaType": document.media_type, "name": document.name}
        for document in record.documents
    ] or [
        {"digest": {"sha256": record.spec.sha256}, "name": record.spec.name},
        {"digest": {"sha256": record.audit.sha256}, "name": record.audit.name},
    ]
    return {
        "_type": STATEMENT_TYPE,
        "predicate": {
            "configuration": configuration,
            "failedTests": tests[2],
            "passedTests": tests[0],
            "result": result_of(record),
            "warnedTests": tests[1],
        },
        "predicateType": PREDICATE_TYPE,
        "subject": [*files, model],
    }


def statement_bytes(record: AuditRecord, subjects: Mapping[str, str]) -> bytes:
    """`statement` as canonical JSON: what is signed."""
    return canonical_json(statement(record, subjects)).encode("utf-8")


def attest(results: Path, key: Ed25519PrivateKey, reports: Sequence[Path] | None = None) -> bytes:
    """The envelope for a record and the reports beside it, as a file's content.

    Parameters
    ----------
    results
        The record, ``results.json``.
    reports
        Reports that are attested too; none given: of `SUBJECTS`, whatever lies beside the record.

    Raises
    ------
    UsageError
        If the record cannot be read.
    IntegrityError
        If it is no valid record, or not in the form in which records are written, or a report is one of another record.
    """
    try:
        data = results.read_bytes()
    except OSError as error:
        hint = "Give the results.json that `run` wrote."
        raise UsageError("no-record", f"The record cannot be read: {error.strerror}.", hint, file=str(results)) from error
    record = parse_record(data, str(results))
    if record_bytes(record) != data:
        raise IntegrityError(
            "record-form", "The record is not in the form in which `run` writes records: the file was edited.",
            "Take the file as `run` wrote it, or run the audit again.", file=str(results),
        )  # fmt: skip
    subjects = {RESULTS: digest_bytes(data)}
    beside = [results.with_name(name) for name in SUBJECTS[1:]]
    for report in [path for path in beside if path.is_file()] if reports is None else reports:
        content = report.read_bytes()
        if not _reports(content, data, record):
            raise IntegrityError(
                "other-record", f"{report.name} is not the report of this record.",
                "Render it again with `semlens-audit report`, and sign it again; or move it away.", file=str(report),
            )  # fmt: skip
        subjects[report.name] = digest_bytes(content)
    return seal(statement_bytes(record, subjects), key)


def _reports(report: bytes, data: bytes, record: AuditRecord) -> bool:
    """Whether a report is that of the record: the HTML rendered from it, or a PDF that carries it."""
    if report.startswith(b"%PDF"):
        return read_attachments(report).get(RESULTS) == data
    return render_html(record).encode("utf-8") == report


def new_key(file: Path, passphrase: bytes | None) -> Path:
    """Make an Ed25519 key pair: `file` (PKCS #8, PEM, readable by its owner only) and beside it the public key, ending in ``.pub``.

    Parameters
    ----------
    passphrase
        Encrypts the private key; none: it is protected by the file's permissions alone.

    Returns
    -------
    Path
        The public key's file.

    Raises
    ------
    UsageError
        Slug ``key-exists``: neither file is ever overwritten.
    """
    public = file.with_name(file.name + ".pub")
    key = Ed25519PrivateKey.generate()
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    shared = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if public.exists():
        raise UsageError("key-exists", "There is a file of that name already.", "Choose another name.", file=str(public))
    for path, content, mode in (
        (file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), 0o600),
        (public, shared, 0o644),
    ):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
        except FileExistsError as error:
            hint = "Choose another name; a key is never overwritten."
            raise UsageError("key-exists", "There is a file of that name already.", hint, file=str(path)) from error
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
    return public


def read_key(file: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    """The Ed25519 private key in a PEM file.

    Raises
    ------
    UsageError
        Slugs ``no-key``, ``bad-key``, ``bad-passphrase``.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        hint = "Make one with `attest --new-key FILE`."
        raise UsageError("no-key", f"The key cannot be read: {error.strerror}.", hint, file=str(file)) from error
    try:
        key = load_pem_private_key(data, passphrase)
    except TypeError as error:
        said = "is encrypted: a passphrase is needed" if passphrase is None else "is not encrypted: no passphrase is needed"
        hint = "Use --passphrase-env or --passphrase-file where it is encrypted, and neither where it is not."
        raise UsageError("bad-passphrase", f"The key {said}.", hint, file=str(file)) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "Check the passphrase and that the file is a private key (PKCS #8, PEM)."
        raise UsageError("bad-key", "The key cannot be read: the passphrase or the file is wrong.", hint, file=str(file)) from error
    if not isinstance(key, Ed25519PrivateKey):
        hint = "Make one with `attest --new-key FILE`; to sign PDFs, use `sign`."
        raise UsageError("bad-key", "The key is no Ed25519 key; attestations are signed with no other.", hint, file=str(file))
    return key
