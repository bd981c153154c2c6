"""From a plan to a record: look the evidence up (or have it built), measure, decide.

Torch is imported only if the store lacks something, so that a changed criterion is re-decided from the cache at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from semlens_audit import checks, influence, lock, provenance, run_log, verdict
from semlens_audit.catalogues import catalogues_of
from semlens_audit.certificate import read_qualification
from semlens_audit.confirmation import conclude, confirm
from semlens_audit.data import DataSet, open_data
from semlens_audit.data_gallery import picture
from semlens_audit.digest import digest
from semlens_audit.errors import IntegrityError
from semlens_audit.evidence import Evidence
from semlens_audit.execution import Execution
from semlens_audit.flow import Flows
from semlens_audit.gallery import illustrate, prune
from semlens_audit.index import evidence_stages, load_evidence
from semlens_audit.interventions import intervene
from semlens_audit.limitations import limitations
from semlens_audit.measure import Measurements, measure, measurement_key
from semlens_audit.memory import divide
from semlens_audit.paths import store_path
from semlens_audit.picture_budget import within_budget
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress, SilentProgress
from semlens_audit.record_file import read_record, record_digest, write_record
from semlens_audit.records import (
    AuditRecord,
    ClassLayer,
    ConceptRecord,
    DataPresence,
    Finding,
    InterventionRecord,
    Measurement,
    SensitivityRecord,
    State,
)
from semlens_audit.scenarios import Scenario, measure_scenarios, planned
from semlens_audit.sensitivity import compare
from semlens_audit.stages import stage_inputs
from semlens_audit.standing import qualification_file, standing
from semlens_audit.store import Store
from semlens_audit.ties import tied_of

__all__ = ["read_record", "record_digest", "run", "write_record"]


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
    tied: dict[str, tuple[int, int]] | None = None
    """Components whose reference samples tie, see `semlens_audit.ties.tied_of`; None: computed anew in the same way."""

    @property
    def whole(self) -> bool:
        """Whether nothing of it is computed anew."""
        return self.influences is not None and self.influences.version == influence.VERSION and self.tied is not None


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
    execution: Execution | None = None,
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
    execution
        Where and with what the store is completed.

    Raises
    ------
    IntegrityError
        ``not-locked``, ``lock-broken``, ``lock-damaged``; before anything is measured.
    AuditError
        Whatever the user can mend: model, data, store; what was finished stays in the store.
    """
    progress, execution = progress or SilentProgress(), execution or Execution()
    if locked:
        lock.require(plan)
    quantities = checks.quantities(plan)
    qualification = qualification_file(plan)
    if qualification is not None:
        read_qualification(qualification)  # one that cannot be read is told before hours of work, not after them
    with Store.open(store_path(plan), memory_limit=divide(execution.max_memory).database) as store:
        data = data or open_data(plan, store.file_digest)
        held = lock.hold(plan, data, store, required=locked) if counted else None
        stages = evidence_stages(plan, data, store)
        paired = data.pairs.sha256 if data.pairs else None
        key = measurement_key(plan, stages, quantities, data.attributes, pairs=paired, groups=data.groups)
        key = key if comparisons else digest([key, "without comparisons"])
        payload = None if anew else store.get_measurement(key)
        cached = None if payload is None else _Cached.model_validate_json(payload)
        if cached is None or not cached.whole:
            evidence = _evidence(plan, data, store, allow_code=allow_code, progress=progress, execution=execution)
            flows = Flows(plan, evidence)
            cached = cached or _measure(plan, data, evidence, quantities, flows, progress, comparisons=comparisons)
            moved = influence.influences(plan, data, evidence, cached.measurements, quantities, flows=flows)
            payload = cached.model_copy(update={"influences": moved, "tied": tied_of(evidence.layers)}).model_dump_json()
            store.put_measurement(key, payload)
            cached = _Cached.model_validate_json(payload)
        definitions = influence.definitions(plan, stage_inputs(plan, data, store.file_digest)["probes"])
        interventions = intervene(
            plan, data, store, cached.measurements, key, stages, quantities,
            allow_code=allow_code, progress=progress, execution=execution,
        )  # fmt: skip
        record = _record(plan, data, cached, interventions, stages, definitions, command, now or datetime.now(UTC), held)
        run_log.append(store, "audit" if counted else "repeat", _entry(plan, record, key))
    return record


def _evidence(
    plan: AuditPlan, data: DataSet, store: Store, *, allow_code: bool, progress: Progress, execution: Execution
) -> Evidence:
    """What the store holds, built first where it is not there."""
    evidence = load_evidence(plan, data, store)
    if evidence is None:
        from semlens_audit.index import build  # brings torch in

        build(plan, data, store, allow_code=allow_code, progress=progress, execution=execution)
        evidence = load_evidence(plan, data, store)
    if evidence is None:
        raise IntegrityError("index-incomplete", "The store lacks evidence that was just written.", "Run the same command again.")
    return evidence


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
    flows: Flows,
    progress: Progress,
    *,
    comparisons: bool,
) -> _Cached:
    total = len(evidence.layers) * (1 + len(evidence.class_names))
    with progress.stage("measure", total) as advance:
        measured = measure(plan, evidence, quantities, flows=flows, progress=advance)
    scenarios: tuple[Scenario, ...] = ()
    if comparisons:
        with progress.stage("Sensitivity", planned(plan, evidence)) as advance:
            scenarios = measure_scenarios(plan, evidence, quantities, measured, flows=flows, progress=advance)
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
    concepts = provenance.concepts(plan, measured, definitions)
    places, presence, images = _pictured(cached, found)
    subject = provenance.subject(plan, measured, cached.subject)
    foundation = provenance.foundation(plan, cached.foundation)
    stands = standing(
        plan,
        foundation=foundation,
        data_source=audit.data.source,
        samples=len(data.samples),
        architecture=subject.architecture,
        findings=found,
        attributions=[layer.method for layer in measured.layers if layer.method is not None],
    )
    return AuditRecord(
        tool=provenance.tool(),
        created=now.astimezone(UTC).isoformat(timespec="seconds"),
        title=audit.title,
        audit=provenance.audit_identity(plan),
        spec=provenance.spec_identity(plan),
        purpose=plan.spec.purpose,
        responsible=audit.responsible,
        subject=subject,
        data=provenance.test_data(plan, data, measured),
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
                tied=cached.tied,
            )
        ),
        environment=provenance.environment(),
        command=command,
        sensitivity=_sensitivity(plan, cached, concepts),
        qualification=stands,
        stages=stages,
        images=images,
        documents=(*provenance.documents(plan), *((held.document,) if held else ())),
        lock=held.record if held else None,
        influences=cached.influences.records if cached.influences else (),
        catalogues=catalogues_of((name for check in plan.spec.checks for name in check.supports), Path(plan.spec_file)),
    )


def _pictured(
    cached: _Cached, found: Sequence[Finding]
) -> tuple[tuple[ClassLayer, ...], tuple[DataPresence, ...], dict[str, str]]:
    """Layers of classes and concepts in the data with the pictures that a record keeps, and those pictures."""
    measured = cached.measurements
    places, images = prune(measured.class_layers, found, cached.images)
    pictures = {shown.image for entry in measured.presence_in_data for shown in entry.pictures}
    images |= {key: cached.images[key] for key in pictures if key is not None}
    return within_budget(places, measured.presence_in_data, images)


def _sensitivity(plan: AuditPlan, cached: _Cached, concepts: Sequence[ConceptRecord]) -> tuple[SensitivityRecord, ...]:
    """What other settings and criteria would have found."""
    measured = cached.measurements

    def decide(
        asked: AuditPlan, values: Mapping[str, Measurement], missed: Mapping[str, str]
    ) -> tuple[Sequence[Finding], State]:
        held = checks.findings(asked, values, measured.class_layers, missed)
        return held, verdict.decide(held, concepts, measured.class_layers, plan.audit.subject.name).state

    return compare(plan, measured, cached.scenarios, decide)
