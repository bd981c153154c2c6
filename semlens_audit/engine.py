"""From a plan to a record: look the evidence up (or have it built), measure, decide.

Torch is imported only if the store lacks something, so that a changed criterion is re-decided from the cache at once.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from semlens_audit import __version__, checks, influence, lock, run_log, verdict
from semlens_audit.catalogues import catalogues_of
from semlens_audit.certificate import read_qualification
from semlens_audit.confirmation import conclude, confirm
from semlens_audit.data import DataSet, open_data
from semlens_audit.data_gallery import picture
from semlens_audit.digest import digest
from semlens_audit.errors import IntegrityError
from semlens_audit.evidence import Evidence
from semlens_audit.foundation_statement import statement
from semlens_audit.gallery import illustrate, prune
from semlens_audit.index import evidence_stages, load_evidence
from semlens_audit.interventions import intervene
from semlens_audit.limitations import limitations
from semlens_audit.measure import Measurements, measure, measurement_key
from semlens_audit.paths import store_path
from semlens_audit.picture_budget import within_budget
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress, SilentProgress
from semlens_audit.record_file import read_record, record_digest, write_record
from semlens_audit.records import (
    AuditRecord,
    ConceptRecord,
    DataRecord,
    DocumentRecord,
    Environment,
    Finding,
    FoundationRecord,
    Identity,
    InterventionRecord,
    Measurement,
    State,
    SubjectRecord,
    ToolRecord,
)
from semlens_audit.scenarios import Scenario, measure_scenarios, planned
from semlens_audit.sensitivity import compare
from semlens_audit.stages import stage_inputs
from semlens_audit.standing import qualification_file, standing
from semlens_audit.store import Store

__all__ = ["environment", "read_record", "record_digest", "revision", "run", "write_record"]

_PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "zennit", "zennit-crp", "numpy", "pandas", "duckdb", "pydantic",
    "pillow", "safetensors", "scipy", "jinja2", "weasyprint",
)  # fmt: skip


class _Cached(BaseModel):
    """What the store keeps for one measurement key: numbers, images and facts about model and foundation model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    measurements: Measurements
    images: dict[str, str]
    subject: dict[str, Any]
    foundation: dict[str, Any]
    scenarios: tuple[Scenario, ...] = ()
    influences: influence.Influences | None = None
    """None, or of another version: computed anew from the evidence, nothing else being measured again."""


def run(
    plan: AuditPlan,
    *,
    allow_code: bool = False,
    progress: Progress | None = None,
    now: datetime | None = None,
    command: str,
    data: DataSet | None = None,
    anew: bool = False,
    comparisons: bool = True,
    counted: bool = True,
    locked: bool = False,
) -> AuditRecord:
    """Carry out an audit.

    Parameters
    ----------
    allow_code
        Whether a model defined by the user's own Python file may be imported.
    progress
        Where long stages report.
    now
        Time that the record carries; default: the present.
    command
        Command line that reproduces the run.
    data
        Test data to take instead of what the plan names, as a part of them.
    anew
        Whether to measure again what the store holds measured already.
    comparisons
        Whether to measure again under other settings; without, only other criteria are tried.
    counted
        Whether this is a run of the audit, held against the lock beside it and counted under it, or a repetition that tests the
        instrument or a record.
    locked
        Whether to refuse an audit without a lock, or other than it was locked.

    Raises
    ------
    IntegrityError
        ``not-locked``, ``lock-broken``, ``lock-damaged``; before anything is measured.
    AuditError
        Whatever the user can mend: model, data, store; what was finished stays in the store.
    """
    progress = progress or SilentProgress()
    if locked:
        lock.require(plan)
    quantities = checks.quantities(plan)
    qualification = qualification_file(plan)
    if qualification is not None:
        read_qualification(qualification)  # one that cannot be read is told before hours of work, not after them
    with Store.open(store_path(plan)) as store:
        data = data or open_data(plan, store.file_digest)
        held = lock.hold(plan, data, store, required=locked) if counted else None
        stages = evidence_stages(plan, data, store)
        paired = data.pairs.sha256 if data.pairs else None
        key = measurement_key(plan, stages, quantities, data.attributes, pairs=paired, groups=data.groups)
        key = key if comparisons else digest([key, "without comparisons"])
        payload = None if anew else store.get_measurement(key)
        cached = None if payload is None else _Cached.model_validate_json(payload)
        if cached is None or cached.influences is None or cached.influences.version != influence.VERSION:
            evidence = load_evidence(plan, data, store)
            if evidence is None:
                from semlens_audit.index import build  # brings torch in

                build(plan, data, store, allow_code=allow_code, progress=progress)
                evidence = load_evidence(plan, data, store)
            if evidence is None:
                raise IntegrityError(
                    "index-incomplete", "The store lacks evidence that was just written.", "Run the same command again."
                )
            cached = cached or _measure(plan, data, evidence, quantities, progress, comparisons=comparisons)
            moved = influence.influences(plan, data, evidence, cached.measurements, quantities)
            payload = cached.model_copy(update={"influences": moved}).model_dump_json()
            store.put_measurement(key, payload)
            cached = _Cached.model_validate_json(payload)
        definitions = influence.definitions(plan, stage_inputs(plan, data, store.file_digest)["probes"])
        interventions = intervene(
            plan, data, store, cached.measurements, key, stages, quantities, allow_code=allow_code, progress=progress
        )
        record = _record(plan, data, cached, interventions, stages, definitions, command, now or datetime.now(UTC), held)
        run_log.append(store, "audit" if counted else "repeat", _entry(plan, record, key))
    return record


def _entry(plan: AuditPlan, record: AuditRecord, key: str) -> dict[str, Any]:
    """What the run log keeps of a run."""
    return {
        "audit": plan.audit.audit,
        "spec": plan.spec_digest,
        "audit_file": plan.audit_digest,
        "measurement": key,
        "weights": record.subject.weights_sha256,
        "data": record.data.sha256,
        "lock": record.lock.sha256 if record.lock else None,
        "lock_state": record.lock.state if record.lock else None,
        "verdict": record.verdict.state,
        "exit_code": int(record.verdict.exit_code),
        "responsible": [person.name for person in plan.audit.responsible],
        "tool": f"{record.tool.version} {record.tool.revision or ''}".strip(),
    }


def _measure(
    plan: AuditPlan,
    data: DataSet,
    evidence: Evidence,
    quantities: Sequence[checks.Quantity],
    progress: Progress,
    *,
    comparisons: bool,
) -> _Cached:
    total = len(evidence.layers) * (1 + len(evidence.class_names))
    with progress.stage("measure", total) as advance:
        measured = measure(plan, evidence, quantities, progress=advance)
    scenarios: tuple[Scenario, ...] = ()
    if comparisons:
        with progress.stage("Sensitivity", planned(plan, evidence)) as advance:
            scenarios = measure_scenarios(plan, evidence, quantities, measured, progress=advance)
    places, images = illustrate(evidence, measured.class_layers)
    shown, pictures = picture(plan, data, measured.presence_in_data)
    return _Cached(
        measurements=measured.model_copy(update={"class_layers": places, "presence_in_data": shown}),
        images=images | pictures,
        subject=evidence.subject,
        foundation=evidence.foundation,
        scenarios=scenarios,
    )


def _record(
    plan: AuditPlan,
    data: DataSet,
    cached: _Cached,
    ablated: Sequence[InterventionRecord],
    stages: dict[str, str],
    definitions: Mapping[str, str],
    command: str,
    now: datetime,
    held: lock.Held | None = None,
) -> AuditRecord:
    measured, audit = cached.measurements, plan.audit
    labels = {concept.id: concept.label for concept in plan.spec.concepts}
    interventions = tuple(conclude(one, measured.effects, labels, audit.measurement.smallest_effect) for one in ablated)
    found = checks.findings(plan, measured.quantities, measured.class_layers, measured.unrecognised, remarks=measured.remarks)
    found = confirm(found, interventions, labels)
    concepts = tuple(
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

    def decide(
        asked: AuditPlan, values: Mapping[str, Measurement], missed: Mapping[str, str]
    ) -> tuple[Sequence[Finding], State]:
        held = checks.findings(asked, values, measured.class_layers, missed)
        return held, verdict.decide(held, concepts, measured.class_layers, audit.subject.name).state

    places, images = prune(measured.class_layers, found, cached.images)
    pictures = {shown.image for entry in measured.presence_in_data for shown in entry.pictures}
    images |= {key: cached.images[key] for key in pictures if key is not None}
    places, presence, images = within_budget(places, measured.presence_in_data, images)
    subject = SubjectRecord(
        name=audit.subject.name,
        version=audit.subject.version,
        intended_purpose=audit.subject.intended_purpose,
        architecture=str(cached.subject["architecture"]),
        source=audit.subject.model.source,
        weights_sha256=str(cached.subject["weights_sha256"]),
        parameters=int(cached.subject["parameters"]),
        preprocessing=audit.subject.preprocessing.model_dump(mode="json"),
        classes=tuple(measured.per_class),
        accuracy=measured.accuracy,
    )
    foundation = FoundationRecord(
        name=_named(audit.foundation_model.name),
        source=audit.foundation_model.source,
        sha256=str(cached.foundation["sha256"]),
        dimension=int(cached.foundation["dimension"]),
        text=bool(cached.foundation["text"]),
        statement=audit.foundation_model.statement or statement(bool(cached.foundation["text"])),
    )
    stands = standing(
        plan,
        foundation=foundation,
        data_source=audit.data.source,
        samples=len(data.samples),
        architecture=subject.architecture,
        findings=found,
    )
    return AuditRecord(
        tool=ToolRecord(version=__version__, revision=revision()),
        created=now.astimezone(UTC).isoformat(timespec="seconds"),
        title=audit.title,
        audit=Identity(name=audit.audit, sha256=plan.audit_digest, detail={"file": _shown(plan.audit_file)}),
        spec=Identity(
            name=plan.spec.spec,
            sha256=plan.spec_digest,
            detail={"file": _shown(plan.spec_file), "title": plan.spec.title, "version": plan.spec.version},
        ),
        purpose=plan.spec.purpose,
        responsible=audit.responsible,
        subject=subject,
        data=DataRecord(
            source=audit.data.source,
            description=audit.data.description,
            sha256=data.sha256,
            samples=len(data.samples),
            per_class=measured.per_class,
            skipped=tuple(data.skipped),
            attributes=tuple(sorted(data.attributes or {})),
            pairs=len(data.pairs.pairs) if data.pairs else 0,
            pairs_sha256=data.pairs.sha256 if data.pairs else None,
        ),
        foundation_model=foundation,
        settings=audit.measurement,
        seed=audit.seed,
        concepts=concepts,
        layers=measured.layers,
        class_layers=places,
        effects=measured.effects,
        presence_in_data=presence,
        pair_effects=measured.pair_effects,
        interventions=interventions,
        findings=tuple(found),
        verdict=verdict.decide(found, concepts, places, audit.subject.name, interventions=interventions),
        limitations=tuple(
            limitations(
                plan,
                measured,
                text=foundation.text,
                interventions=interventions,
                qualified=stands.statement,
                lock=held.record if held else None,
            )
        ),
        environment=environment(),
        command=command,
        sensitivity=compare(plan, measured, cached.scenarios, decide),
        qualification=stands,
        stages=stages,
        images=images,
        documents=(*_documents(plan), *((held.document,) if held else ())),
        lock=held.record if held else None,
        influences=cached.influences.records if cached.influences else (),
        catalogues=catalogues_of((name for check in plan.spec.checks for name in check.supports), Path(plan.spec_file)),
    )


def _documents(plan: AuditPlan) -> tuple[DocumentRecord, ...]:
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


def _named(name: str) -> str:
    """Name of a foundation model; of a folder given by its whole path, the last part only."""
    return Path(name).name if Path(name).is_absolute() else name


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
