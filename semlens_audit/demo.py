"""The demonstration: two small models whose truth is known, and what their audits have to say."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from semlens_audit.errors import ExitCode
from semlens_audit.records import AuditRecord
from semlens_audit.resources import audits_dir, specs_dir
from semlens_audit.yaml_source import load

__all__ = ["EXPECTED", "Expected", "prepare", "surprises"]


@dataclass(frozen=True)
class Expected:
    """What the audit of one model has to say.

    Parameters
    ----------
    audit
        Name of the audit file that comes with the tool.
    description
        The truth about the model, for a reader.
    exit_code
        Exit code that the audit must give.
    concepts
        Concepts that a finding which is not satisfied must name; and no spurious one beside them.
    """

    audit: str
    description: str
    exit_code: ExitCode
    concepts: frozenset[str]


EXPECTED = (
    Expected(
        "phantom-shortcut.yaml",
        "a model trained where a ruler lay beside 95 % of the melanomas and 5 % of the nevi",
        ExitCode.NOT_SATISFIED,
        frozenset({"ruler"}),
    ),
    Expected(
        "phantom-clean.yaml",
        "its twin, trained where every artefact was as common beside melanomas as beside nevi",
        ExitCode.SATISFIED,
        frozenset(),
    ),
)


def prepare(out: Path) -> list[tuple[Expected, Path]]:
    """Lay the demonstration's audits and their specs into `out`, and give what each audit has to say with its path.

    Files that exist are left as they are, so that an edited criterion counts on the next run.

    Parameters
    ----------
    out
        Folder; made where it does not exist. In a source checkout its root may be given: the files are there already.
    """
    prepared = []
    for expected in EXPECTED:
        audit = _lay(audits_dir() / expected.audit, out / "audits")
        named = load(audits_dir() / expected.audit).data["spec"]
        _lay(specs_dir() / Path(named).name, out / "specs")
        prepared.append((expected, audit))
    return prepared


def _lay(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    if not target.exists():
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, part)
        os.replace(part, target)
    return target


def surprises(expected: Expected, record: AuditRecord) -> list[str]:
    """Say in sentences where `record` differs from what is known about the model; empty where it does not."""
    verdict = record.verdict
    found = []
    if verdict.exit_code != expected.exit_code:
        codes = f"exit code {int(verdict.exit_code)} instead of {int(expected.exit_code)}"
        found.append(f"{expected.description}: {codes} ({verdict.headline})")
    named = {
        concept
        for finding in record.findings
        if finding.state == "not_satisfied" and len(finding.concepts) == 1 and finding.criterion.operator == "at_most"
        for concept in finding.concepts
    }
    found += [f"{expected.description}: no finding names {concept}" for concept in sorted(expected.concepts - named)]
    found += [f"{expected.description}: a finding names {concept}" for concept in sorted(named - expected.concepts)]
    return found
