"""The contrastive crop of every reference sample and of every random crop, see `semlens_audit.contrast`.

Candidates are the layer's random crops: parts of images are compared with parts of like size, and whether a sample drives a
component below average is asked of the samples that they were taken from. A component's own reference samples are never contrastive
for it: chosen by relevance, some activate it little, and would take away what it means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from semlens_audit.contrast import below_mean, contrasts
from semlens_audit.devices import on_device
from semlens_audit.digest import digest
from semlens_audit.plan import AuditPlan
from semlens_audit.precision import Arithmetic
from semlens_audit.prefetch import cores
from semlens_audit.progress import Progress
from semlens_audit.store import Store
from semlens_audit.threads import Threaded
from semlens_audit.vectors import crop_vectors, null_vectors
from semlens_audit.work import Bench, Engine

__all__ = ["contrast_pass"]

_AT_ONCE = 64
"""Components whose reference samples are compared with the candidates together."""


@dataclass(frozen=True)
class _Pooled:
    """Pooled activations of some samples in one layer; an item is their ids."""

    batch: int
    layer: str
    pooling: Literal["max", "mean"]
    arithmetic: Arithmetic
    threads: int
    ahead: int

    def prepare(self, bench: Bench, samples: np.ndarray) -> torch.Tensor:
        return bench.images(samples.tolist(), self.batch)

    def compute(self, bench: Bench, samples: np.ndarray, images: torch.Tensor) -> np.ndarray:
        _, pooled = bench.networks.run(self.arithmetic, on_device(images, bench.device), [self.layer], self.pooling)
        return pooled[self.layer][: len(samples)]


def contrast_pass(
    plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Find the contrastive crops of every layer whose audit asks for them; crops and random crops must be embedded.

    A random crop stands for a component that means nothing: each has its own random half of the others to choose from.
    """
    for layer in plan.audit.layers:
        name = f"contrast:{layer}"
        if name not in inputs or store.complete([digest(inputs[name])]):
            continue
        state = store.begin(name, inputs[name], 1)
        drawn = store.arrays("SELECT position, sample FROM null_region WHERE stage = ?", (inputs[name]["null"],))
        samples = drawn["sample"][np.argsort(drawn["position"], kind="stable")].astype(np.int64)
        allowed = below_mean(_activations(plan, store, engine, inputs, layer, samples, progress))
        allowed &= ~_own_references(store, inputs[f"null:{layer}"], samples, allowed.shape[1])
        with progress.stage(f"Contrastive crops, {layer}", 1) as advance, store.transaction():
            _write(store, state.key, inputs[name], samples, allowed)
            store.finish(state.key, {"without": int((~allowed).all(axis=0).sum())})
            advance(1)


def _activations(
    plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], layer: str, samples: np.ndarray,
    progress: Progress,
) -> np.ndarray:  # fmt: skip
    """(n, K) pooled activations of `samples`, each computed once, as the layer's reference samples were found."""
    settings, bench = plan.audit.measurement, engine.bench
    state = store.stage(digest(inputs[f"references:{layer}"]))
    facts = state.facts if state else {}
    distinct, place = np.unique(samples, return_inverse=True)
    batch = min(settings.batch_size, len(bench.data.samples))
    parts = [distinct[start : start + batch] for start in range(0, len(distinct), batch)]
    ahead = bench.ahead(batch * 15 * plan.audit.subject.preprocessing.size ** 2)
    work = _Pooled(batch, layer, settings.pooling, Arithmetic.of(facts), cores(), ahead)
    found = []
    with progress.stage(f"Activations of random crops, {layer}", len(distinct)) as advance:
        for part, pooled in engine.run(Threaded(work, facts.get("threads")), parts):
            found.append(pooled)
            advance(len(part))
    if not found:
        return np.zeros((0, int(facts.get("components", 0))), dtype=np.float32)
    return np.concatenate(found)[place]


def _own_references(store: Store, null: dict[str, Any], samples: np.ndarray, components: int) -> np.ndarray:
    """(n, K) bool: whether a sample is a declared reference sample of a component; `null` are the inputs of the random crops."""
    rows = store.arrays("SELECT component, sample FROM crop WHERE stage = ? AND rank < ?", (null["crops"], null["references"]))
    distinct, place = np.unique(samples, return_inverse=True)
    found = np.zeros((len(distinct), components), dtype=bool)
    known = np.isin(rows["sample"], distinct)
    found[np.searchsorted(distinct, rows["sample"][known]), rows["component"][known]] = True
    return found[place]


def _write(store: Store, key: str, inputs: dict[str, Any], samples: np.ndarray, allowed: np.ndarray) -> None:
    random = null_vectors(store, inputs["null"], inputs["pool"])
    for first in range(0, allowed.shape[1] if len(random) else 0, _AT_ONCE):
        component, rank, vectors = crop_vectors(store, inputs["crops"], inputs["pool"], range(first, first + _AT_ONCE))
        if len(component):
            found = contrasts(vectors, random, allowed[:, component].T)
            store.append("contrast", stage=key, component=component, rank=rank, contrast=found)
    if len(random):
        half = np.random.default_rng([inputs["seed"], int(key[:16], 16)]).random((len(random), len(random))) < 0.5
        half &= samples[:, None] != samples  # no crop is contrasted with its own image
        store.append("null_contrast", stage=key, position=np.arange(len(random)), contrast=contrasts(random, random, half))
