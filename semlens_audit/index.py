"""The concept index: built stage by stage, resumed after any interruption, and read back as evidence.

Only `build` brings in torch; a stage that is complete is never computed again, and reading needs neither model nor images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from semlens_audit.data import DataSet, class_names, open_data
from semlens_audit.digest import digest
from semlens_audit.evidence import ConceptProbes, Evidence, LayerEvidence, PairEvidence
from semlens_audit.execution import Execution
from semlens_audit.headroom import FirstReferences, indexed, slots
from semlens_audit.paths import store_path
from semlens_audit.places import placed_in_audit
from semlens_audit.plan import AuditPlan
from semlens_audit.probe_texts import box_text, prompts
from semlens_audit.progress import Progress, SilentProgress
from semlens_audit.stages import audited_classes, stage_inputs
from semlens_audit.store import Store
from semlens_audit.vectors import crop_vectors, null_vectors

__all__ = ["StoredLayer", "build", "evidence_stages", "is_complete", "load_evidence"]

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
        with Store.open(store_path(plan)) as opened:
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
    if "images" in lacking:
        _verify(data, store, inputs["images"], progress)
    if "pairs" in lacking and data.pairs is not None:
        with progress.stage("Checking pairs", len(data.pairs.images)) as advance:
            data.pairs.verify(progress=advance)
    from semlens_audit.work import Bench, LocalEngine

    engine = LocalEngine(Bench(plan, data, allow_code=allow_code, execution=execution))
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
        engine.bench.forget_subject()
    if any(name.partition(":")[0] in {"foundation", "views", "embeddings", "null", "probes"} for name in lacking):
        from semlens_audit.regions import embedding_pass, probe_pass, settle_precision

        foundation = engine.bench.foundation
        settle_precision(plan, data, store, foundation, inputs, progress)
        probe_pass(plan, store, foundation, inputs, progress)
        embedding_pass(plan, store, engine, inputs, progress)
    store.log("index-complete", {"audit": plan.audit.audit})


def _verify(data: DataSet, store: Store, inputs: dict[str, Any], progress: Progress) -> None:
    state = store.begin("images", inputs, len(data.samples))
    with progress.stage("Checking images", len(data.samples)) as advance:
        data.verify(progress=advance)
    store.finish(state.key)


class StoredLayer(LayerEvidence):
    """A layer's evidence whose large arrays are read when first asked for; the store must be open then.

    Parameters
    ----------
    store
        Open store.
    name
        Name of the layer.
    keys
        Stage -> key.
    audited
        Model's class indices in the order of the evidence.
    slots
        Places for reference samples, all that the store holds.
    """

    def __init__(self, store: Store, name: str, keys: dict[str, str], audited: tuple[int, ...], slots: int) -> None:
        found = store.arrays("SELECT dead FROM component WHERE stage = ? ORDER BY component", (keys[f"references:{name}"],))
        rows = store.arrays(
            "SELECT component, rank, sample, activation FROM reference WHERE stage = ?",
            (keys.get(f"selection:{name}", keys[f"references:{name}"]),),
        )
        boxes = store.arrays("SELECT component, rank, x0, y0, x1, y1 FROM crop WHERE stage = ?", (keys[f"crops:{name}"],))
        shape = (len(found["dead"]), slots)
        place, crop = (rows["component"], rows["rank"]), (boxes["component"], boxes["rank"])
        fixed: dict[str, Any] = {
            "layer": name,
            "dead": found["dead"].astype(bool),
            "reference_ids": np.full(shape, -1, dtype=np.int64),
            "activations": np.zeros(shape),
            "boxes": np.zeros((*shape, 4), dtype=np.int32),
        }
        fixed["reference_ids"][place] = rows["sample"]
        fixed["activations"][place] = rows["activation"]
        fixed["boxes"][crop] = np.stack([boxes[column] for column in ("x0", "y0", "x1", "y1")], axis=1)
        state = store.stage(keys[f"relevance:{name}"])
        fixed["attribution"] = str(state.facts["attribution"]) if state else ""
        if f"attribution:{name}" in keys and (choice := store.stage(keys[f"attribution:{name}"])) is not None:
            fixed["chosen"] = (str(choice.facts["method"]), str(choice.facts["reason"]))
        drawn = store.arrays("SELECT position, sample FROM null_region WHERE stage = ?", (keys[f"null:{name}"],))
        fixed["null_samples"] = drawn["sample"][np.argsort(drawn["position"], kind="stable")].astype(np.int64)
        fixed.update(_store=store, _keys=keys, _audited=audited)
        for attribute, value in fixed.items():
            object.__setattr__(self, attribute, value)

    @functools.cached_property
    def embeddings(self) -> np.ndarray:  # type: ignore[override]
        """(K, m, d) float32; see `LayerEvidence`."""
        store, keys = self._store, self._keys  # type: ignore[attr-defined]
        component, rank, vectors = crop_vectors(store, keys[f"crops:{self.layer}"], keys["foundation"])
        result = np.zeros((*self.reference_ids.shape, _dimension(store, keys)), dtype=np.float32)
        if len(vectors):
            result[component, rank] = vectors
        return result

    @functools.cached_property
    def null_embeddings(self) -> np.ndarray:  # type: ignore[override]
        """(M, d) float32; see `LayerEvidence`."""
        store, keys = self._store, self._keys  # type: ignore[attr-defined]
        vectors = null_vectors(store, keys[f"null:{self.layer}"], keys["foundation"])
        return vectors if len(vectors) else np.zeros((0, _dimension(store, keys)), dtype=np.float32)

    @functools.cached_property
    def _relevance(self) -> tuple[np.ndarray, np.ndarray]:
        store, keys, audited = self._store, self._keys, self._audited  # type: ignore[attr-defined]

        rows = store.arrays(
            "SELECT sample, class, relevance, conservation FROM relevance WHERE stage = ?", (keys[f"relevance:{self.layer}"],)
        )
        order = np.lexsort((rows["class"], rows["sample"]))
        classes = len(audited)
        # Rows of a sample now go by class index; the evidence goes by the spec's order.
        place = np.argsort(np.argsort(audited, kind="stable"), kind="stable")
        relevance = rows["relevance"][order].reshape(-1, classes, rows["relevance"].shape[1])[:, place]
        ratio = np.ma.filled(np.ma.asarray(rows["conservation"], dtype=np.float32), np.nan)[order].reshape(-1, classes)[
            :, place
        ]
        return relevance, ratio

    @property
    def relevance(self) -> np.ndarray:  # type: ignore[override]
        """(N, C, K) float32; see `LayerEvidence`."""
        return self._relevance[0]

    @property
    def conservation(self) -> np.ndarray:  # type: ignore[override]
        """(N, C) float32, NaN where the output is zero; see `LayerEvidence`."""
        return self._relevance[1]


def _dimension(store: Store, keys: dict[str, str]) -> int:
    state = store.stage(keys["foundation"])
    return int(state.facts["dimension"]) if state else 0


def load_evidence(plan: AuditPlan, data: DataSet, store: Store) -> Evidence | None:
    """Read the plan's evidence, or ``None`` if a stage is missing; large arrays of layers are read when first asked for.

    Parameters
    ----------
    plan
        The audit.
    data
        Its test data.
    store
        Open store; it must stay open for as long as layers or thumbnails are read.
    """
    inputs = stage_inputs(plan, data, store.file_digest)
    keys = {name: digest(parts) for name, parts in inputs.items()}
    if not store.complete(list(keys.values())):
        return None
    audited = audited_classes(plan)
    outputs, meaning = store.stage(keys["outputs"]), store.stage(keys["foundation"])
    if outputs is None or meaning is None:
        return None
    rows = store.arrays("SELECT sample, logits FROM output WHERE stage = ?", (keys["outputs"],))
    side = plan.audit.subject.preprocessing.size
    views = store.arrays(
        "SELECT sample, vector FROM region WHERE pool = ? AND x0 = 0 AND y0 = 0 AND x1 = ? AND y1 = ?",
        (keys["foundation"], side, side),
    )
    templates, others = inputs["probes"]["templates"], inputs["probes"]["alternatives"]
    probes, empty = _probes(store, keys, inputs["probes"], templates)
    other_probes, other_prompts = _probes(store, keys, inputs["probes"], others) if others else ({}, empty[:0])
    settings = plan.audit.measurement
    stored = [StoredLayer(store, layer, keys, audited, slots(settings)) for layer in indexed(plan).audit.layers]
    declared = [FirstReferences(layer, settings.reference_samples) for layer in stored]
    count = len(plan.audit.layers)
    return Evidence(
        classes=class_names(plan),
        audited=audited,
        class_names=tuple(plan.spec.classes),
        paths=tuple(sample.path for sample in data.samples),
        labels=data.labels,
        logits=rows["logits"][np.argsort(rows["sample"])],
        image_embeddings=views["vector"][np.argsort(views["sample"])],
        attributes=data.attributes or {},
        probes=probes,
        empty_prompts=empty,
        layers=tuple(declared[:count]),
        stages=keys,
        skipped=data.skipped,
        subject=dict(outputs.facts),
        foundation=dict(meaning.facts),
        thumbnails=_thumbnails(store, keys),
        pairs=_pairs(store, keys, data),
        groups=data.groups,
        headroom=tuple(stored[:count]),
        other_layers=tuple(declared[count:]),
        other_probes=other_probes,
        other_prompts=other_prompts,
    )


def _probes(
    store: Store, keys: dict[str, str], wanted: dict[str, Any], templates: list[str]
) -> tuple[dict[str, ConceptProbes], np.ndarray]:
    width, pool = _dimension(store, keys), wanted["foundation"]
    texts = store.arrays("SELECT text, vector FROM prompt WHERE pool = ?", (pool,))
    prompt = dict(zip(texts["text"].tolist(), texts["vector"], strict=True))
    images = store.arrays("SELECT sha256, box, vector FROM example WHERE pool = ?", (pool,))
    example = {(sha256, box): vector for sha256, box, vector in zip(*images.values(), strict=True)}

    def stack(vectors: list[np.ndarray], *shape: int) -> np.ndarray:
        return np.stack(vectors).reshape(*shape, width) if vectors else np.zeros((*shape, width), dtype=np.float32)

    probes = {}
    for concept, parts in wanted["concepts"].items():
        asked = prompts(templates, parts["descriptions"])
        probes[concept] = ConceptProbes(
            text=stack([prompt[text] for text in asked], len(parts["descriptions"]), len(templates)),
            examples=stack([example[sha256, box_text(box)] for sha256, box in parts["examples"]], len(parts["examples"])),
        )
    return probes, stack([prompt[text] for text in prompts(templates, [""])], len(templates))


def _pairs(store: Store, keys: dict[str, str], data: DataSet) -> PairEvidence | None:
    if data.pairs is None:
        return None
    rows = store.arrays("SELECT sample, logits FROM output WHERE stage = ?", (keys["pairs"],))
    logits = rows["logits"][np.argsort(rows["sample"])]
    places = data.pairs.places
    return PairEvidence(
        concepts=tuple(pair.concept for pair in data.pairs.pairs),
        without=logits[places[:, 0]],
        present=logits[places[:, 1]],
        units=data.pairs.units,
    )


def _thumbnails(store: Store, keys: dict[str, str]) -> Callable[[str, int, int], tuple[bytes, bytes]]:
    def read(layer: str, component: int, rank: int) -> tuple[bytes, bytes]:
        found = store.rows(
            "SELECT crop, overlay FROM thumbnail WHERE stage = ? AND component = ? AND rank = ?",
            (keys[f"crops:{layer}"], int(component), int(rank)),
        )
        if not found:
            raise KeyError(f"no thumbnail of {layer} component {component} rank {rank}")
        return bytes(found[0][0]), bytes(found[0][1])

    return read
