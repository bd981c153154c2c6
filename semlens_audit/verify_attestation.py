"""Whether an attestation is signed by someone trusted, says what its record says, and speaks of the files that lie beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from semlens_audit.attest import STATEMENT_TYPE, SUBJECTS, statement_bytes
from semlens_audit.digest import digest_bytes
from semlens_audit.envelope import open_envelope
from semlens_audit.errors import IntegrityError
from semlens_audit.record_file import RESULTS, record_bytes
from semlens_audit.records import AuditRecord
from semlens_audit.trust import TrustList
from semlens_audit.verification import CheckedLine, not_checked, proven, refused

__all__ = ["attested_subjects", "envelope_line", "file_lines", "statement_line"]

_HINT = "Take the file as `attest` wrote it."


def envelope_line(data: bytes, trust: TrustList, file: str) -> tuple[CheckedLine, bytes | None]:
    """Whether a trusted key signed the envelope; and its payload, where one did."""
    question = "The attestation is signed by someone in the trust list"
    try:
        payload, key = open_envelope(data, trust, file)
    except IntegrityError as error:
        return refused("envelope", question, error), None
    return proven("envelope", question, f"Ed25519, key {key[:16]}…"), payload


def attested_subjects(payload: bytes) -> dict[str, str]:
    """File name -> SHA-256 of what a statement speaks of, its model left out.

    Raises
    ------
    IntegrityError
        Slug ``statement``: it is no statement of this tool.
    """
    try:
        value: Any = json.loads(payload.decode("utf-8"))
        found = {str(one["name"]): str(one["digest"]["sha256"]) for one in value["subject"][:-1]}
        known = value["_type"] == STATEMENT_TYPE and set(found) <= set(SUBJECTS) and RESULTS in found
    except (ValueError, TypeError, LookupError, RecursionError, AttributeError) as error:
        raise IntegrityError("statement", "The attestation cannot be read.", _HINT) from error
    if not known:
        raise IntegrityError("statement", "The attestation is none of a test result of this tool.", _HINT)
    return found


def statement_line(payload: bytes, subjects: Mapping[str, str], record: AuditRecord) -> CheckedLine:
    """Whether a statement says what follows from the record, byte for byte."""
    question = "The attestation says what the record says"
    if subjects[RESULTS] != digest_bytes(record_bytes(record)):
        return refused("statement", question, f"Another {RESULTS} was attested: its SHA-256 differs.")
    if statement_bytes(record, subjects) != payload:
        said = "Result, tests, model, configuration or files are not those that follow from the record."
        return refused("statement", question, said)
    result = json.loads(payload)["predicate"]["result"]
    return proven("statement", question, f"{result}; {len(record.findings)} tests named; weights, spec and audit file by SHA-256.")


def file_lines(subjects: Mapping[str, str], files: Mapping[str, bytes]) -> list[CheckedLine]:
    """Whether the files beside an attestation are those that it speaks of.

    Parameters
    ----------
    subjects
        Name -> SHA-256, as attested.
    files
        Name -> content of those that lie there.
    """
    lines = []
    for name, stated in sorted(subjects.items()):
        question = f"{name} is the file that was attested"
        if name not in files:
            lines.append(not_checked(f"file-{name}", question, "It does not lie beside the attestation."))
        elif digest_bytes(files[name]) == stated:
            lines.append(proven(f"file-{name}", question, f"SHA-256 {stated[:16]}…"))
        else:
            lines.append(refused(f"file-{name}", question, "It is another file: its SHA-256 differs."))
    return lines
