"""The contrastive samples of every reference sample and of every random crop, see `semlens_audit.contrast`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from semlens_audit.contrast import NONE, below_mean, contrasts
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

__all__ = ["activation_pass", "candidates", "contrast_pass"]

_AT_ONCE = 64
"""Components whose reference samples are compared with the candidates together."""


def candidates(samples: int, most: int, seed: int) -> np.ndarray:
    """Ids of the samples that contrastive ones are looked for among, ascending: all, or `most` of them drawn at random."""
    if samples <= most:
        return np.arange(samples)
    return np.sort(np.random.default_rng([seed, 0xC5B]).choice(samples, most, replace=False))


@dataclass(frozen=True)
class _Pooled:
    """Pooled activations of some samples; an item is their ids."""

    batch: int
    layers: tuple[str, ...]
    pooling: Literal["max", "mean"]
    arithmetic: Arithmetic
    threads: int
    ahead: int

    def prepare(self, bench: Bench, samples: np.ndarray) -> torch.Tensor:
        return bench.images(samples.tolist(), self.batch)

    def compute(self, bench: Bench, samples: np.ndarray, images: torch.Tensor) -> dict[str, np.ndarray]:
        _, pooled = bench.networks.run(self.arithmetic, on_device(images, bench.device), self.layers, self.pooling)
        return {layer: values[: len(samples)] for layer, values in pooled.items()}


def activation_pass(
    plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress
) -> dict[str, np.ndarray]:
    """Which candidates may be contrastive for which component, for every layer that lacks its contrastive samples.

    Returns
    -------
    dict
        layer -> (n, K) bool, see `semlens_audit.contrast.below_mean`.
    """
    lacking = [layer for layer in plan.audit.layers if _lacks(store, inputs, layer)]
    if not lacking:
        return {}
    settings, bench = plan.audit.measurement, engine.bench
    chosen = candidates(len(bench.data.samples), inputs[f"contrast:{lacking[0]}"]["candidates"], plan.audit.seed)
    groups: dict[tuple[Arithmetic, int | None], list[str]] = {}
    for layer in lacking:
        state = store.stage(digest(inputs[f"references:{layer}"]))
        facts = state.facts if state else {}
        groups.setdefault((Arithmetic.of(facts), facts.get("threads")), []).append(layer)
    batch = min(settings.batch_size, len(bench.data.samples))
    parts = [chosen[start : start + batch] for start in range(0, len(chosen), batch)]
    ahead = bench.ahead(batch * 15 * plan.audit.subject.preprocessing.size ** 2)
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in lacking}
    with progress.stage("Contrastive samples", len(chosen) * len(groups)) as advance:
        for (arithmetic, threads), layers in groups.items():
            work = Threaded(_Pooled(batch, tuple(layers), settings.pooling, arithmetic, cores(), ahead), threads)
            for part, pooled in engine.run(work, parts):
                for layer in layers:
                    found[layer].append(pooled[layer])
                advance(len(part))
    return {layer: below_mean(np.concatenate(values)) for layer, values in found.items()}


def contrast_pass(
    plan: AuditPlan,
    store: Store,
    allowed: dict[str, np.ndarray],
    inputs: dict[str, dict[str, Any]],
    samples: int,
    progress: Progress,
) -> None:
    """Find the contrastive samples; all regions must be embedded.

    A random crop stands for a component that means nothing: each has its own random half of the candidates to choose from.

    Parameters
    ----------
    allowed
        Of `activation_pass`.
    samples
        N, number of samples.
    """
    for layer in plan.audit.layers:
        if not _lacks(store, inputs, layer):
            continue
        name = f"contrast:{layer}"
        state = store.begin(name, inputs[name], 1)
        chosen = candidates(samples, inputs[name]["candidates"], plan.audit.seed)
        side, pool = plan.audit.subject.preprocessing.size, inputs[name]["pool"]
        views = _views(store, pool, side, chosen)
        with progress.stage(f"Contrastive samples, {layer}", 1) as advance, store.transaction():
            for component, rank, place in _of_references(store, inputs[name]["crops"], pool, views, allowed[layer]):
                store.append("contrast", stage=state.key, component=component, rank=rank, sample=_named(chosen, place))
            random = null_vectors(store, inputs[name]["null"], pool)
            rng = np.random.default_rng([plan.audit.seed, int(state.key[:16], 16)])
            half = rng.random((len(random), len(chosen))) < 0.5
            place = contrasts(random, views, half)
            position = np.arange(len(random))
            store.append("null_contrast", stage=state.key, position=position, sample=_named(chosen, place))
            store.finish(state.key, {"without": int((~allowed[layer]).all(axis=0).sum())})
            advance(1)


def _lacks(store: Store, inputs: dict[str, dict[str, Any]], layer: str) -> bool:
    return f"contrast:{layer}" in inputs and not store.complete([digest(inputs[f"contrast:{layer}"])])


def _named(chosen: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Sample ids of positions among the candidates; `NONE` stays."""
    return np.where(place == NONE, NONE, chosen[np.maximum(place, 0)])


def _views(store: Store, pool: str, side: int, chosen: np.ndarray) -> np.ndarray:
    """(n, d) embeddings of whole inputs of the candidates."""
    rows = store.arrays(
        "SELECT sample, vector FROM region WHERE pool = ? AND x0 = 0 AND y0 = 0 AND x1 = ? AND y1 = ?"
        " AND sample IN (SELECT unnest(?::INTEGER[]))",
        (pool, side, side, chosen.tolist()),
    )
    return np.asarray(rows["vector"][np.argsort(rows["sample"], kind="stable")])


def _of_references(
    store: Store, crops: str, pool: str, views: np.ndarray, allowed: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Component, rank and position of the contrastive sample of every reference sample, some components at a time."""
    for first in range(0, allowed.shape[1], _AT_ONCE):
        component, rank, vectors = crop_vectors(store, crops, pool, range(first, first + _AT_ONCE))
        if len(component):
            yield component, rank, contrasts(vectors, views, allowed[:, component].T)
