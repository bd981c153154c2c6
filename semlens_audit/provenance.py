"""What exactly was audited, by what, and where: the parts of a record that name things and digest them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from semlens_audit import __version__
from semlens_audit.data import DataSet
from semlens_audit.foundation_statement import statement
from semlens_audit.measure import Measurements
from semlens_audit.plan import AuditPlan
from semlens_audit.records import (
    ConceptRecord,
    DataRecord,
    DocumentRecord,
    Environment,
    FoundationRecord,
    Identity,
    SubjectRecord,
    ToolRecord,
)

__all__ = [
    "audit_identity",
    "concepts",
    "documents",
    "environment",
    "foundation",
    "revision",
    "spec_identity",
    "subject",
    "test_data",
    "tool",
]

_PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "zennit", "zennit-crp", "numpy", "pandas", "duckdb", "pydantic",
    "pillow", "safetensors", "scipy", "jinja2", "weasyprint",
)  # fmt: skip


def tool() -> ToolRecord:
    """The tool, in this version."""
    return ToolRecord(version=__version__, revision=revision())


def audit_identity(plan: AuditPlan) -> Identity:
    """The audit file."""
    return Identity(name=plan.audit.audit, sha256=plan.audit_digest, detail={"file": _shown(plan.audit_file)})


def spec_identity(plan: AuditPlan) -> Identity:
    """The spec."""
    detail = {"file": _shown(plan.spec_file), "title": plan.spec.title, "version": plan.spec.version}
    return Identity(name=plan.spec.spec, sha256=plan.spec_digest, detail=detail)


def concepts(plan: AuditPlan, measured: Measurements, definitions: Mapping[str, str]) -> tuple[ConceptRecord, ...]:
    """The spec's concepts, with how well the foundation model tells them; `definitions`: concept -> digest of what defines it."""
    return tuple(
        ConceptRecord(
            id=concept.id,
            label=concept.label,
            role=concept.role,
            roles=concept.roles,
            descriptions=concept.descriptions,
            examples=len(concept.examples),
            source=concept.source,
            hazard=concept.hazard,
            probe_auroc=measured.probe_auroc.get(concept.id),
            presence_auroc=measured.presence_auroc.get(concept.id),
            definition_sha256=definitions[concept.id],
        )
        for concept in plan.spec.concepts
    )


def subject(plan: AuditPlan, measured: Measurements, facts: Mapping[str, Any]) -> SubjectRecord:
    """The audited model; `facts` are what the index learned of it."""
    asked = plan.audit.subject
    return SubjectRecord(
        name=asked.name,
        version=asked.version,
        intended_purpose=asked.intended_purpose,
        architecture=str(facts["architecture"]),
        source=asked.model.source,
        weights_sha256=str(facts["weights_sha256"]),
        parameters=int(facts["parameters"]),
        preprocessing=asked.preprocessing.model_dump(mode="json"),
        classes=tuple(measured.per_class),
        accuracy=measured.accuracy,
        arithmetic=_arithmetic(facts),
    )


def _arithmetic(facts: Mapping[str, Any]) -> str | None:
    """``single precision, batch norms folded, on cpu``."""
    if "precision" not in facts:
        return None
    words = ["single precision" if facts["precision"] == "fp32" else "bfloat16 with outputs in single precision"]
    words += ["batch norms folded into convolutions"] if facts.get("folded") else []
    return ", ".join([*words, f"on {facts['device']}" if "device" in facts else "on an unrecorded device"])


def foundation(plan: AuditPlan, facts: Mapping[str, Any]) -> FoundationRecord:
    """The foundation model; `facts` are what the index learned of it."""
    asked = plan.audit.foundation_model
    return FoundationRecord(
        name=_named(asked.name),
        source=asked.source,
        sha256=str(facts["sha256"]),
        dimension=int(facts["dimension"]),
        text=bool(facts["text"]),
        statement=asked.statement or statement(bool(facts["text"])),
    )


def _named(name: str) -> str:
    """Name of a foundation model; of a folder given by its whole path, the last part only."""
    return Path(name).name if Path(name).is_absolute() else name


def test_data(plan: AuditPlan, data: DataSet, measured: Measurements) -> DataRecord:
    """The test data."""
    return DataRecord(
        source=plan.audit.data.source,
        description=plan.audit.data.description,
        sha256=data.sha256,
        samples=len(data.samples),
        per_class=measured.per_class,
        skipped=tuple(data.skipped),
        attributes=tuple(sorted(data.attributes or {})),
        pairs=len(data.pairs.pairs) if data.pairs else 0,
        pairs_sha256=data.pairs.sha256 if data.pairs else None,
    )


def documents(plan: AuditPlan) -> tuple[DocumentRecord, ...]:
    """Spec and audit file as they were read; none for a plan that was made otherwise."""
    files: tuple[tuple[Literal["spec", "audit"], str, str, str], ...] = (
        ("spec", plan.spec_file, plan.spec_digest, plan.spec_text),
        ("audit", plan.audit_file, plan.audit_digest, plan.audit_text),
    )
    return tuple(
        DocumentRecord(kind=kind, name=Path(file).name, media_type="application/yaml", sha256=sha256, text=text)
        for kind, file, sha256, text in files
        if text
    )


def _shown(path: str) -> str:
    """Path relative to the working directory where it lies below, else the file's name: a record names no one's folders."""
    absolute = Path(path).resolve()
    try:
        return absolute.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return absolute.name


def environment() -> Environment:
    """Versions, platform and processors of this run."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Environment(
        python=sys.version.split()[0], platform=f"{platform.system()} {platform.machine()}", packages=packages, threads=threads
    )


def revision() -> str | None:
    """Commit of the source checkout the package runs from, or None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+dirty" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
