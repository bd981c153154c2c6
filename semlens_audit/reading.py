"""What a store holds, as evidence: large arrays are read when they are asked for, some samples or components at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from semlens_audit.contrast import NONE, left_of
from semlens_audit.data import DataSet, class_names
from semlens_audit.digest import digest
from semlens_audit.errors import IntegrityError
from semlens_audit.evidence import SAMPLES, ConceptProbes, Evidence, LayerEvidence, PairEvidence
from semlens_audit.headroom import FirstReferences, indexed, slots
from semlens_audit.look_alikes import LookAlikes
from semlens_audit.outputs import in_blocks
from semlens_audit.plan import AuditPlan
from semlens_audit.probe_texts import box_text, prompts
from semlens_audit.stages import audited_classes, stage_inputs
from semlens_audit.store import Store
from semlens_audit.vectors import null_vectors

__all__ = ["StoredLayer", "StoredRows", "load_evidence"]

_CROPS = 4096
"""Embeddings of crops that are read together: with 512 dimensions 8 MB."""


class StoredRows:
    """A matrix that a table holds with one row for each sample; see `semlens_audit.outputs.Rows`.

    Parameters
    ----------
    store
        Open store.
    column, table, condition, parameters
        Where the vectors are: ``SELECT sample, column FROM table WHERE condition``.
    shape
        (N, width).
    """

    def __init__(
        self, store: Store, column: str, table: str, condition: str, parameters: Sequence[object], shape: tuple[int, int]
    ) -> None:
        self._store, self._parameters, self._shape = store, tuple(parameters), shape
        self._sql = f"SELECT sample, {column} AS vector FROM {table} WHERE {condition} AND sample >= ? AND sample < ?"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, width)."""
        return self._shape

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            return self._read(start, max(start, stop))
        wanted = np.arange(len(self))[rows]
        out, start = np.empty((*wanted.shape, self._shape[1]), dtype=np.float32), 0
        for block in in_blocks(self):
            inside = (wanted >= start) & (wanted < start + len(block))
            out[inside] = block[wanted[inside] - start]
            start += len(block)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(0, len(self)).astype(dtype or np.float32, copy=False)

    def _read(self, start: int, stop: int) -> np.ndarray:
        found = self._store.arrays(self._sql, (*self._parameters, start, stop))
        order = np.argsort(found["sample"], kind="stable")
        if not np.array_equal(found["sample"][order], np.arange(start, stop)):
            raise IntegrityError(
                "index-incomplete",
                f"Of samples {start} to {stop - 1}, the store holds {len(order)} rows instead of {stop - start}.",
                "Run `semlens-audit store check`; or remove the store and run the audit again.",
                file=str(self._store.path),
            )
        return np.asarray(found["vector"][order], dtype=np.float32).reshape(stop - start, self._shape[1])


class _Latest:
    """The one large array of a kind that is held: asked for another layer's, it forgets the former."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, np.ndarray]] = {}

    def of(self, layer: str, read: Callable[[], np.ndarray], kind: str = "embeddings") -> np.ndarray:
        if self._held.get(kind, ("",))[0] != layer:
            self._held.pop(kind, None)
            self._held[kind] = layer, read()
        return self._held[kind][1]


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
    latest
        Holds the embeddings of one of the layers that share it.
    gamma
        Where the audit asks for it: how much of the contrastive crops is projected out, 0 to 1.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        keys: dict[str, str],
        audited: tuple[int, ...],
        slots: int,
        latest: _Latest | None = None,
        gamma: float | None = None,
    ) -> None:
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
        fixed.update(_store=store, _keys=keys, _audited=audited, _latest=latest or _Latest(), _gamma=gamma)
        for attribute, value in fixed.items():
            object.__setattr__(self, attribute, value)

    @property
    def embeddings(self) -> np.ndarray:  # type: ignore[override]
        """(K, m, d) float32; see `LayerEvidence`. Held until another layer's are asked for."""
        return self._latest.of(self.layer, self._embeddings)  # type: ignore[attr-defined, no-any-return]

    def _embeddings(self) -> np.ndarray:
        store, keys = self._store, self._keys  # type: ignore[attr-defined]
        components, places = self.reference_ids.shape
        result = np.zeros((components, places, _dimension(store, keys)), dtype=np.float32)
        step = max(1, _CROPS // places)
        for start in range(0, components, step):
            found = store.arrays(
                "SELECT component, rank, vector FROM crop JOIN region USING (sample, x0, y0, x1, y1)"
                " WHERE stage = ? AND pool = ? AND component >= ? AND component < ?",
                (keys[f"crops:{self.layer}"], keys["foundation"], start, start + step),
            )
            if len(found["rank"]):
                result[found["component"], found["rank"]] = found["vector"]
        return result

    @cached_property
    def null_embeddings(self) -> np.ndarray:  # type: ignore[override]
        """(M, d) float32; see `LayerEvidence`."""
        store, keys = self._store, self._keys  # type: ignore[attr-defined]
        vectors = null_vectors(store, keys[f"null:{self.layer}"], keys["foundation"])
        return vectors if len(vectors) else np.zeros((0, _dimension(store, keys)), dtype=np.float32)

    @property
    def residuals(self) -> np.ndarray | None:  # type: ignore[override]
        """(K, m, d) float32, or None; see `LayerEvidence`. Held until another layer's are asked for."""
        if self._gamma is None:  # type: ignore[attr-defined]
            return None
        return self._latest.of(self.layer, self._residuals, "residuals")  # type: ignore[attr-defined, no-any-return]

    def _residuals(self) -> np.ndarray:
        store, stage = self._store, self._keys[f"contrast:{self.layer}"]  # type: ignore[attr-defined]
        rows = store.arrays("SELECT component, rank, contrast FROM contrast WHERE stage = ?", (stage,))
        positions = np.full(self.reference_ids.shape, NONE, dtype=np.int64)
        positions[rows["component"], rows["rank"]] = rows["contrast"]
        return left_of(self.embeddings, self.null_embeddings, positions, self._gamma)  # type: ignore[attr-defined]

    @cached_property
    def null_residuals(self) -> np.ndarray | None:  # type: ignore[override]
        """(M, d) float32, or None; see `LayerEvidence`."""
        if self._gamma is None:  # type: ignore[attr-defined]
            return None
        store, stage = self._store, self._keys[f"contrast:{self.layer}"]  # type: ignore[attr-defined]
        rows = store.arrays("SELECT position, contrast FROM null_contrast WHERE stage = ?", (stage,))
        positions = rows["contrast"][np.argsort(rows["position"], kind="stable")].astype(np.int64)
        return left_of(self.null_embeddings, self.null_embeddings, positions, self._gamma)  # type: ignore[attr-defined]

    def relevance_blocks(self, classes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Relevance of one class for each sample, some samples at a time; see `LayerEvidence.relevance_blocks`."""
        store, key = self._store, self._keys[f"relevance:{self.layer}"]  # type: ignore[attr-defined]
        outputs = np.array(self._audited)  # type: ignore[attr-defined]
        for start in range(0, len(classes), SAMPLES):
            samples = start + np.flatnonzero(classes[start : start + SAMPLES] >= 0)
            if not len(samples):
                continue
            found = store.arrays(
                "SELECT held.sample, relevance FROM relevance AS held"
                " JOIN (SELECT unnest(?::INTEGER[]) AS sample, unnest(?::SMALLINT[]) AS class) AS wanted"
                " ON held.sample = wanted.sample AND held.class = wanted.class"
                " WHERE stage = ? AND held.sample >= ? AND held.sample < ?",
                (samples.tolist(), outputs[classes[samples]].tolist(), key, start, start + SAMPLES),
            )
            order = np.argsort(found["sample"], kind="stable")
            if not np.array_equal(found["sample"][order], samples):
                raise IntegrityError(
                    "index-incomplete",
                    f"The store lacks relevance in layer {self.layer} of {len(samples) - len(order)} samples.",
                    "Run `semlens-audit store check`; or remove the store and run the audit again.",
                    file=str(store.path),
                )
            yield samples, found["relevance"][order]

    @property
    def relevance(self) -> np.ndarray:  # type: ignore[override]
        """(N, C, K) float32, all of it at once; see `LayerEvidence`. What is measured from is read by `relevance_blocks`."""
        every = [np.full(len(self.conservation), place) for place in range(len(self._audited))]  # type: ignore[attr-defined]
        parts = [np.concatenate([block for _, block in self.relevance_blocks(classes)]) for classes in every]
        return np.stack(parts, axis=1)

    @cached_property
    def conservation(self) -> np.ndarray:  # type: ignore[override]
        """(N, C) float32, NaN where the output is zero; see `LayerEvidence`."""
        store, keys, audited = self._store, self._keys, self._audited  # type: ignore[attr-defined]
        rows = store.arrays(
            "SELECT sample, class, conservation FROM relevance WHERE stage = ?", (keys[f"relevance:{self.layer}"],)
        )
        ratio = np.ma.filled(np.ma.asarray(rows["conservation"], dtype=np.float32), np.nan)
        ordered = ratio[np.lexsort((rows["class"], rows["sample"]))].reshape(-1, len(audited))
        # Rows of a sample now go by class index; the evidence goes by the spec's order.
        return np.asarray(ordered[:, np.argsort(np.argsort(audited, kind="stable"), kind="stable")])


def _dimension(store: Store, keys: dict[str, str]) -> int:
    state = store.stage(keys["foundation"])
    return int(state.facts["dimension"]) if state else 0


def load_evidence(plan: AuditPlan, data: DataSet, store: Store) -> Evidence | None:
    """Read the plan's evidence, or ``None`` if a stage is missing; large arrays are read when first asked for, and parts of them only.

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
    classes, side = class_names(plan), plan.audit.subject.preprocessing.size
    logits = StoredRows(store, "logits", "output", "stage = ?", (keys["outputs"],), (len(data.samples), len(classes)))
    views = StoredRows(
        store,
        "vector",
        "region",
        "pool = ? AND x0 = 0 AND y0 = 0 AND x1 = ? AND y1 = ?",
        (keys["foundation"], side, side),
        (len(data.samples), int(meaning.facts["dimension"])),
    )
    templates, others = inputs["probes"]["templates"], inputs["probes"]["alternatives"]
    probes, empty = _probes(store, keys, inputs["probes"], templates)
    other_probes, other_prompts = _probes(store, keys, inputs["probes"], others) if others else ({}, empty[:0])
    settings = plan.audit.measurement
    latest = _Latest()
    gamma = settings.gamma if settings.concept_embedding == "contrastive" else None
    stored = [StoredLayer(store, layer, keys, audited, slots(settings), latest, gamma) for layer in indexed(plan).audit.layers]
    declared = [FirstReferences(layer, settings.reference_samples) for layer in stored]
    count = len(plan.audit.layers)
    return Evidence(
        classes=classes,
        audited=audited,
        class_names=tuple(plan.spec.classes),
        paths=tuple(sample.path for sample in data.samples),
        labels=data.labels,
        logits=logits,
        image_embeddings=views,
        attributes=data.attributes or {},
        probes=probes,
        empty_prompts=empty,
        layers=tuple(declared[:count]),
        stages=keys,
        skipped=data.skipped,
        subject=dict(outputs.facts),
        foundation=dict(meaning.facts),
        thumbnails=_thumbnails(store, keys),
        look_alikes=None if gamma is None else _look_alikes(plan, data, store, keys),
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


def _look_alikes(
    plan: AuditPlan, data: DataSet, store: Store, keys: dict[str, str]
) -> Callable[[str, int, int], tuple[str, tuple[int, int, int, int], bytes] | None]:
    known = LookAlikes(store, keys, data, plan.audit.subject.preprocessing)

    def read(layer: str, component: int, rank: int) -> tuple[str, tuple[int, int, int, int], bytes] | None:
        found = known.of(layer, component).get(int(rank))
        return None if found is None else (found.sample, found.box, known.picture(found))

    return read


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
