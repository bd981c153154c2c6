"""Reference samples by relevance: the samples on which a component matters most for an audited class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from semlens_audit.components import TopReferences
from semlens_audit.plan import AuditPlan
from semlens_audit.store import Store

__all__ = ["select_references", "top_by_relevance"]

_ROWS = 4096
"""Relevances of samples for classes that are read together."""


def top_by_relevance(relevance: np.ndarray, m: int, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Relevance maximisation (Achtibat et al., Nature Machine Intelligence 2023), by the size of the relevance.

    The activation says what a component *can* respond to, the relevance what it *is used for*: a unit that an intense artefact
    drives hardest, but that decides by something else, is named after the artefact by the first and not by the second.

    Parameters
    ----------
    relevance
        (N, C, K) signed relevance of K components for C audited classes on N samples, in sample order.
    m
        Reference samples per component.
    layer
        Name of the layer, for errors.

    Returns
    -------
    ids, values
        (K, m) int64 sample ids, largest ``max_c |R|`` first, ties by smaller id, -1 where there are fewer; (K, m) float64 values. A
        component without any relevance has none.
    """
    blocks = (np.abs(relevance[start : start + _ROWS]).max(axis=1) for start in range(0, len(relevance), _ROWS))
    return _top(blocks, relevance.shape[2], m, layer)


def _top(blocks: Iterable[np.ndarray], components: int, m: int, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Largest of the values (r, K) of samples in order, some at a time; see `top_by_relevance`."""
    top, start = TopReferences(components, m, layer), 0
    for values in blocks:
        top.update(np.arange(start, start + len(values)), values)
        start += len(values)
    idle = ~(top.values > 0)
    return np.where(idle, -1, top.ids), np.where(idle, 0.0, top.values)


def _largest(store: Store, key: str) -> Iterator[np.ndarray]:
    """Largest size of the relevance over classes (r, K), of all samples in order, some at a time."""
    samples, classes = store.rows("SELECT max(sample) + 1, count(DISTINCT class) FROM relevance WHERE stage = ?", (key,))[0]
    step = max(1, _ROWS // classes)
    for start in range(0, samples, step):
        found = store.arrays(
            "SELECT sample, relevance FROM relevance WHERE stage = ? AND sample >= ? AND sample < ?", (key, start, start + step)
        )
        relevance = found["relevance"][np.argsort(found["sample"], kind="stable")]
        yield np.abs(relevance).reshape(-1, classes, relevance.shape[1]).max(axis=1)


def select_references(plan: AuditPlan, store: Store, inputs: dict[str, dict[str, Any]]) -> None:
    """Write the reference samples of every layer whose audit chooses them by relevance; the relevance must be complete."""
    for layer in plan.audit.layers:
        name = f"selection:{layer}"
        if name not in inputs or store.begin(name, inputs[name], 1).complete:
            continue
        source = inputs[name]["relevance"]
        components = store.arrays("SELECT relevance FROM relevance WHERE stage = ? LIMIT 1", (source,))["relevance"].shape[1]
        ids, values = _top(_largest(store, source), components, plan.audit.measurement.reference_samples, layer)
        component, rank = np.nonzero(ids >= 0)
        key = store.begin(name, inputs[name], 1).key
        with store.transaction():
            store.append(
                "reference",
                stage=key,
                component=component,
                rank=rank,
                sample=ids[component, rank],
                activation=values[component, rank],
            )
            store.advance(key, 1)
            store.finish(key)
