"""The concept index: built stage by stage, resumed after any interruption, and read back as evidence.

Only `build` brings in torch; a stage that is complete is never computed again, and reading needs neither model nor images.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from semlens_audit.data import DataSet, open_data
from semlens_audit.digest import digest
from semlens_audit.execution import Execution
from semlens_audit.headroom import indexed
from semlens_audit.memory import divide
from semlens_audit.paths import store_path
from semlens_audit.places import placed_in_audit
from semlens_audit.plan import AuditPlan
from semlens_audit.prefetch import cores
from semlens_audit.progress import Progress, SilentProgress
from semlens_audit.reading import load_evidence
from semlens_audit.stages import stage_inputs
from semlens_audit.store import Store
from semlens_audit.work import Bench, Engine, LocalEngine

__all__ = ["build", "evidence_stages", "is_complete", "load_evidence"]

_OF_MODEL = {"outputs", "pairs", "attribution", "references", "relevance", "selection", "crops"}
"""Stages that the audited model is needed for."""


def evidence_stages(plan: AuditPlan, data: DataSet, store: Store) -> dict[str, str]:
    """Key of every stage that the plan's evidence is read from, whether or not the store holds it."""
    return {name: digest(inputs) for name, inputs in stage_inputs(plan, data, store.file_digest).items()}


def is_complete(plan: AuditPlan, data: DataSet, store: Store) -> bool:
    """Whether the store holds everything the plan's evidence is read from."""
    return store.complete(list(evidence_stages(plan, data, store).values()))


def build(
    plan: AuditPlan,
    data: DataSet | None = None,
    store: Store | None = None,
    *,
    allow_code: bool = False,
    progress: Progress | None = None,
    execution: Execution | None = None,
) -> None:
    """Compute what the store lacks; interrupted or killed at any moment, the next call goes on where it was.

    Parameters
    ----------
    plan
        The audit.
    data, store
        Its opened test data and store; opened (and the store closed again) here if left out.
    allow_code
        Whether a model defined by the user's own Python file may be imported.
    progress
        Where stages report.
    execution
        Where and with what it is computed.

    Raises
    ------
    AuditError
        Whatever the user can mend: model, data, foundation model, store.
    """
    if store is None:
        allowed = divide(execution.max_memory if execution else None)
        with Store.open(store_path(plan), memory_limit=allowed.database) as opened:
            build(plan, data, opened, allow_code=allow_code, progress=progress, execution=execution)
        return
    data = data or open_data(plan, store.file_digest)
    progress = progress or SilentProgress()
    inputs = stage_inputs(plan, data, store.file_digest)
    lacking = {name for name, parts in inputs.items() if not store.complete([digest(parts)])}
    if not lacking:
        return
    plan = indexed(asked := plan)
    store.log("index", {"audit": plan.audit.audit, "stages": sorted(lacking)})
    with _engine(Bench(plan, data, allow_code=allow_code, execution=execution)) as engine:
        _compute(asked, store, engine, inputs, lacking, progress)
    store.log("index-complete", {"audit": plan.audit.audit})


def _engine(bench: Bench) -> AbstractContextManager[Engine]:
    if bench.execution.engine == "ray":
        from semlens_audit.ray_engine import RayEngine

        return RayEngine(bench)
    return nullcontext(LocalEngine(bench))


def _compute(
    asked: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], lacking: set[str], progress: Progress
) -> None:
    """Compute the lacking stages, each after those that it is made from."""
    plan, data = engine.bench.plan, engine.bench.data
    if "images" in lacking:
        _verify(engine.bench, store, inputs["images"], progress)
    if "pairs" in lacking and data.pairs is not None:
        with progress.stage("Checking pairs", len(data.pairs.images)) as advance:
            data.pairs.verify(progress=advance)
    engine.start(progress)
    if any(name.partition(":")[0] in _OF_MODEL for name in lacking):
        from semlens_audit.attribution_pass import settle_attribution
        from semlens_audit.crops import crop_pass
        from semlens_audit.pairs import pair_pass
        from semlens_audit.passes import forward_pass, relevance_pass
        from semlens_audit.selection import select_references

        with placed_in_audit(asked):
            _ = engine.bench.subject  # a model that does not load is complained about before any data is read
            forward_pass(plan, store, engine, inputs, progress)
            if data.pairs is not None:
                pair_pass(plan, data.pairs, store, engine, inputs, progress)
            settled = settle_attribution(plan, store, engine, inputs, progress)
            for part in settled:
                relevance_pass(part, store, engine, inputs, progress)
            select_references(plan, store, inputs)
            for part in settled:
                crop_pass(part, store, engine, inputs, progress)
        engine.forget_subject()
    if any(name.partition(":")[0] in {"foundation", "views", "embeddings", "null", "contrast", "probes"} for name in lacking):
        from semlens_audit.contrast_pass import contrast_pass
        from semlens_audit.regions import embedding_pass, probe_pass, settle_precision

        foundation = engine.bench.foundation
        settle_precision(plan, data, store, foundation, inputs, progress)
        probe_pass(plan, store, foundation, inputs, progress)
        embedding_pass(plan, store, engine, inputs, progress)
        with placed_in_audit(asked):
            contrast_pass(plan, store, engine, inputs, progress)


def _verify(bench: Bench, store: Store, inputs: dict[str, Any], progress: Progress) -> None:
    state = store.begin("images", inputs, len(bench.data.samples))
    with progress.stage("Checking images", len(bench.data.samples)) as advance:
        bench.data.verify(cores(), progress=advance, keep=bench.views.keep)
    store.finish(state.key)
