"""Embeddings by the foundation model: of crops, random crops and whole inputs from one shared pool, and of concepts' probes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from semlens_audit.data import DataSet, read_image
from semlens_audit.devices import describe, require_same
from semlens_audit.digest import digest
from semlens_audit.foundation import BATCH, Foundation, Precision
from semlens_audit.image_parts import image_part
from semlens_audit.paths import examples_root
from semlens_audit.plan import AuditPlan
from semlens_audit.prefetch import cores
from semlens_audit.probe_texts import box_text, prompts
from semlens_audit.progress import Progress
from semlens_audit.store import Store
from semlens_audit.subject import make_view
from semlens_audit.vectors import crop_vectors, null_vectors
from semlens_audit.work import Bench, Engine

__all__ = ["embedding_pass", "null_regions", "probe_pass", "settle_precision"]

_CHECKED = 2 * BATCH
_BOX = ("x0", "y0", "x1", "y1")
_OF_POOL = ("views", "embeddings:", "null:")
_AT_ONCE = 256
"""Components whose embeddings are in memory at a time."""
_SECONDS = 10.0
"""Time that embeddings wait to be written together."""
_MEND = "Mend the box in the spec: x0, y0, x1, y1 in pixels."


def settle_precision(
    plan: AuditPlan, data: DataSet, store: Store, foundation: Foundation, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Choose the arithmetic of the region embeddings once, by comparison on the data itself, and keep to it ever after."""
    state = store.begin("foundation", inputs["foundation"], 1)
    if not state.complete:
        samples = data.samples[:: max(1, len(data.samples) // _CHECKED)][:_CHECKED]
        view = plan.audit.subject.preprocessing
        with progress.stage("Foundation model", 1) as advance:
            agreement = foundation.choose_precision([make_view(read_image(data.file(sample)), view) for sample in samples])
            advance(1)
        facts: dict[str, Any] = {
            "name": foundation.name,
            "sha256": foundation.sha256,
            "dimension": foundation.dimension,
            "text": foundation.has_text,
            "precision": foundation.precision,
            "device": describe(foundation.device),
        }
        if agreement is not None:
            facts["bf16_least_cosine"] = round(agreement, 6)
        store.finish(state.key, facts)
        return
    foundation.precision = state.facts["precision"]


def null_regions(boxes: np.ndarray, samples: int, side: int, count: int, seed: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Random crops with the sizes of real ones: what a component that means nothing in particular would show.

    Parameters
    ----------
    boxes
        (n, 4) integer boxes x0, y0, x1, y1 of the layer's crops, n >= 1.
    samples
        N, number of samples; each is drawn with equal probability.
    side
        S of the view, pixels.
    count
        Crops to draw.
    seed, key
        Seed of the audit and name of the draw, hexadecimal: together they fix it.

    Returns
    -------
    sample
        (count,) int64.
    box
        (count, 4) int64; width and height of one real crop drawn at random, at a position uniform inside the view.
    """
    rng = np.random.default_rng([seed, int(key[:16], 16)])
    shape = boxes[rng.integers(len(boxes), size=count)].astype(np.int64)
    width, height = shape[:, 2] - shape[:, 0], shape[:, 3] - shape[:, 1]
    sample = rng.integers(samples, size=count)
    left, top = rng.integers(0, side - width + 1), rng.integers(0, side - height + 1)
    return sample, np.stack([left, top, left + width, top + height], axis=1)


def embedding_pass(
    plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Embed whole inputs, every layer's crops and its random crops; a region that is in the pool already costs nothing.

    Raises
    ------
    ExecutionError
        ``other-device``: the pool's regions were embedded on another one; ``embedding-not-finite``.
    """
    data, side = engine.bench.data, plan.audit.subject.preprocessing.size
    settled = store.stage(digest(inputs["foundation"]))
    if settled is not None and not store.complete([digest(inputs[name]) for name in inputs if name.startswith(_OF_POOL)]):
        require_same(settled, describe(engine.bench.device))
    pool = _Pool(store, engine, digest(inputs["foundation"]), progress)
    everything = np.array([[sample.id, 0, 0, side, side] for sample in data.samples])
    pool.embed("views", "Embeddings, whole images", inputs["views"], everything)
    for layer in plan.audit.layers:
        name, null = f"embeddings:{layer}", f"null:{layer}"
        found = store.arrays("SELECT sample, rank, x0, y0, x1, y1 FROM crop WHERE stage = ?", (inputs[name]["crops"],))
        regions = np.stack([found[column].astype(np.int64) for column in ("sample", *_BOX)], axis=1)
        declared = regions[found["rank"] < inputs[null]["references"]]
        boxes = declared[np.lexsort(declared.T[::-1]), 1:]
        pool.embed(name, f"Embeddings, {layer}", inputs[name], regions)
        if not store.complete([digest(inputs[null])]):
            regions = _null(plan, data, store, inputs[null], boxes, side)
            pool.embed(
                null, f"Embeddings, random crops for {layer}", inputs[null], regions, partial(_meanings, store, inputs[null])
            )


def _null(plan: AuditPlan, data: DataSet, store: Store, inputs: dict[str, Any], boxes: np.ndarray, side: int) -> np.ndarray:
    """Draw a layer's random crops and write them down, unless an earlier run has; (count, 5) sample and box."""
    if not len(boxes):  # every component is constant: no crop has a size to imitate, and nothing will be calibrated
        return np.zeros((0, 5), dtype=np.int64)
    sample, box = null_regions(boxes, len(data.samples), side, inputs["count"], plan.audit.seed, inputs["draw"])
    with store.transaction():
        key = digest(inputs)
        if not store.rows("SELECT 1 FROM null_region WHERE stage = ? LIMIT 1", (key,)):
            columns = {column: box[:, i] for i, column in enumerate(_BOX)}
            store.append("null_region", stage=key, position=np.arange(len(sample)), sample=sample, **columns)
    return np.concatenate([sample[:, None], box], axis=1)


def _meanings(store: Store, inputs: dict[str, Any]) -> None:
    """Write the concept embeddings of a layer, whose crops and random crops are all in the pool."""
    (last,) = store.rows("SELECT max(component) FROM crop WHERE stage = ?", (inputs["crops"],))[0]
    if last is None:
        return
    centre = null_vectors(store, digest(inputs), inputs["pool"]).astype(np.float64).mean(axis=0)
    for first in range(0, last + 1, _AT_ONCE):
        component, rank, vectors = crop_vectors(store, inputs["crops"], inputs["pool"], range(first, first + _AT_ONCE))
        declared = rank < inputs["references"]
        component, vectors = component[declared], vectors[declared]
        if not len(component):
            continue
        component, starts, counts = np.unique(component, return_index=True, return_counts=True)
        means = np.add.reduceat(vectors.astype(np.float64), starts, axis=0) / counts[:, None]
        store.append(
            "meaning",
            stage=digest(inputs),
            component=component,
            vector=means.astype(np.float32),
            centred=(means - centre).astype(np.float32),
        )


@dataclass(frozen=True)
class _Embed:
    """Embeddings of regions, `BATCH` at a time; an item is (n, 5) sample and box, in ascending order."""

    precision: Precision
    threads: int
    ahead: int

    def prepare(self, bench: Bench, regions: np.ndarray) -> list[torch.Tensor]:
        rows, last, view = [], -1, None
        for sample, *box in regions.tolist():
            if sample != last or view is None:
                last, view = sample, bench.views.picture(sample)
            rows.append(bench.foundation.prepare(view.crop(tuple(box))))
        return rows

    def compute(self, bench: Bench, regions: np.ndarray, ready: list[torch.Tensor]) -> np.ndarray:
        bench.foundation.precision = self.precision
        return bench.foundation.embed_prepared(ready)


def _as_keys(regions: np.ndarray) -> np.ndarray:
    """(n,) one value for each row of (n, 5), equal where the rows are."""
    rows = np.ascontiguousarray(regions, dtype=np.int64)
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]


@dataclass(frozen=True)
class _Pool:
    """The pool of region embeddings of one foundation model on one data set."""

    store: Store
    engine: Engine
    key: str
    progress: Progress

    def embed(
        self, name: str, title: str, inputs: dict[str, Any], regions: np.ndarray, closing: Callable[[], None] | None = None
    ) -> None:
        """Embed those of the (n, 5) regions that the pool lacks, in the order of sample and box; `closing` ends the stage."""
        store, distinct = self.store, np.unique(regions, axis=0)
        state = store.begin(name, inputs, len(distinct))
        if state.complete:
            return
        missing = self._missing(distinct)
        done = len(distinct) - len(missing)
        batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        since = time.monotonic()
        with self.progress.stage(title, len(distinct), done) as advance:
            try:
                for part, vectors in self.engine.run(self._work(), batches):
                    waiting.append((part, vectors))
                    advance(len(part))
                    size = sum(vectors.nbytes for _, vectors in waiting)
                    if size >= self.engine.bench.allowance.waiting or time.monotonic() - since >= _SECONDS:
                        done, since = self._write(state.key, done, waiting), time.monotonic()
            finally:
                self._write(state.key, done, waiting)
        with store.transaction():
            if closing is not None:
                closing()
            store.finish(state.key)

    def _work(self) -> _Embed:
        foundation = self.engine.bench.foundation
        return _Embed(foundation.precision, cores(), self.engine.bench.ahead(BATCH * foundation.prepared_bytes))

    def _write(self, key: str, done: int, waiting: list[tuple[np.ndarray, np.ndarray]]) -> int:
        """Write what waits, which is none any longer; returns how many regions are finished then."""
        found, waiting[:] = list(waiting), []
        if not found:
            return done
        part, vectors = np.concatenate([part for part, _ in found]), np.concatenate([vectors for _, vectors in found])
        columns = {column: part[:, i + 1] for i, column in enumerate(_BOX)}
        with self.store.transaction():
            self.store.append("region", pool=self.key, sample=part[:, 0], **columns, vector=vectors)
            self.store.advance(key, done + len(part))
        return done + len(part)

    def _missing(self, distinct: np.ndarray) -> np.ndarray:
        found = self.store.arrays("SELECT sample, x0, y0, x1, y1 FROM region WHERE pool = ?", (self.key,))
        known = np.stack([found[column].astype(np.int64) for column in ("sample", *_BOX)], axis=1)
        if not len(known) or not len(distinct):
            return distinct
        return distinct[~np.isin(_as_keys(distinct), _as_keys(known))]


def probe_pass(
    plan: AuditPlan, store: Store, foundation: Foundation, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Embed what defines the concepts: descriptions in every template, the empty prompts, and example images."""
    wanted, pool = inputs["probes"], inputs["probes"]["foundation"]
    templates = wanted["templates"] + wanted["alternatives"]
    texts = prompts(templates, [""]) + [
        text for concept in wanted["concepts"].values() for text in prompts(templates, concept["descriptions"])
    ]
    examples = [
        (plan.spec.concept(name).examples[i], sha256, box)
        for name, concept in wanted["concepts"].items()
        for i, (sha256, box) in enumerate(concept["examples"])
    ]
    state = store.begin("probes", wanted, len(texts) + len(examples))
    if state.complete:
        return
    with progress.stage("Embeddings, concepts", state.total) as advance:
        known = {row[0] for row in store.rows("SELECT text FROM prompt WHERE pool = ?", (pool,))}
        new = sorted(set(texts) - known)
        vectors = foundation.embed_texts(new) if new else None
        with store.transaction():
            if vectors is not None:
                store.append("prompt", pool=pool, text=new, vector=vectors)
        advance(len(texts))
        seen = set(store.rows("SELECT sha256, box FROM example WHERE pool = ?", (pool,)))
        images: dict[tuple[str, str], Image.Image] = {}
        for example, sha256, box in examples:
            place = (sha256, box_text(box))
            if place not in seen and place not in images:
                images[place] = image_part(
                    examples_root(plan) / example.image, box, name="the example image", hint=_MEND
                )
        precision, foundation.precision = foundation.precision, "fp32"
        vectors = foundation.embed_images(list(images.values()))
        foundation.precision = precision
        with store.transaction():
            store.append(
                "example", pool=pool, sha256=[place[0] for place in images], box=[place[1] for place in images], vector=vectors
            )
            store.finish(state.key)
        advance(len(examples))
