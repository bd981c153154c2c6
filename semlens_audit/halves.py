"""Halves of the test data, whole units kept together: what an audit is repeated on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np

from semlens_audit.data import DataSet
from semlens_audit.digest import digest
from semlens_audit.evidence import Evidence, LayerEvidence

__all__ = ["halves", "part", "restricted"]


def halves(labels: np.ndarray, units: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples at random into two halves with equally many of each class, as far as whole units allow.

    Parameters
    ----------
    labels
        (N,) class of each sample.
    units
        (N,) independent unit of each sample; a unit is never divided, and counts for the class of its first sample.

    Returns
    -------
    first, second
        Sample ids, ascending; together each sample once.
    """
    names, first, where, sizes = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    of_class, chosen = labels[first], np.zeros(len(names), dtype=bool)
    for label in np.unique(of_class):
        order = rng.permutation(np.flatnonzero(of_class == label))
        before = np.cumsum(sizes[order]) - sizes[order] / 2
        chosen[order] = before <= sizes[order].sum() / 2
    inside = chosen[where.reshape(-1)]
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def part(data: DataSet, rows: np.ndarray) -> DataSet:
    """Some of the samples as a data set of its own, numbered anew.

    Parameters
    ----------
    rows
        Ids of the samples, ascending.
    """
    samples = tuple(replace(data.samples[int(row)], id=place) for place, row in enumerate(rows))
    attributes = {name: column[rows] for name, column in data.attributes.items()} if data.attributes is not None else None
    manifest = digest([[sample.path, sample.sha256, sample.label] for sample in samples])
    return replace(data, **_columns(data, rows), samples=samples, attributes=attributes, sha256=manifest)


def restricted(evidence: Evidence, rows: np.ndarray, m: int) -> Evidence:
    """The evidence of some samples, without looking at the images again: the reference samples are those among them.

    Of each component, the first `m` stored reference samples that are among `rows` are kept, so that most components have fewer
    than an index of these samples would give them; of the random crops, those of these samples are kept.

    Parameters
    ----------
    rows
        Ids of the samples, ascending.
    m
        Places for reference samples.
    """
    position = np.full(len(evidence.paths) + 1, -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    columns = _columns(evidence, rows)
    return replace(
        evidence,
        **columns,
        paths=tuple(evidence.paths[int(row)] for row in rows),
        attributes={name: column[rows] for name, column in evidence.attributes.items()},
        layers=tuple(_layer(layer, rows, position, m) for layer in evidence.headroom or evidence.layers),
        headroom=(),
        other_layers=(),
        thumbnails=None,
        look_alikes=None,
    )


def _columns(value: Any, rows: np.ndarray) -> dict[str, Any]:
    """Every array of a value that has one row for each sample, cut to `rows`."""
    named = [field.name for field in fields(value) if field.name in ("labels", "logits", "image_embeddings", "groups")]
    found = {name: getattr(value, name)[rows] for name in named if getattr(value, name) is not None}
    if "groups" in found:
        found["groups"] = np.unique(found["groups"], return_inverse=True)[1].reshape(-1).astype(np.int64)
    return found


def _layer(layer: LayerEvidence, rows: np.ndarray, position: np.ndarray, m: int) -> LayerEvidence:
    ids = position[layer.reference_ids]
    # Those that stay move to the front and keep their order.
    order = np.argsort(ids < 0, axis=1, kind="stable")[:, :m]
    kept = np.take_along_axis(ids, order, axis=1)
    present = kept >= 0

    def moved(values: np.ndarray) -> np.ndarray:
        index = order.reshape(*order.shape, *[1] * (values.ndim - 2))
        taken = np.take_along_axis(values, index, axis=1)
        taken[~present] = 0
        return taken

    values: dict[str, Any] = {
        field.name: getattr(layer, field.name) for field in fields(LayerEvidence) if field.name not in ("relevance", "conservation")
    }
    if layer.null_samples is not None:
        drawn = position[layer.null_samples]
        inside = drawn >= 0
        values |= {"null_samples": drawn[inside], "null_embeddings": layer.null_embeddings[inside]}
        if layer.null_residuals is not None:
            values["null_residuals"] = layer.null_residuals[inside]
    values |= {
        "reference_ids": kept,
        "activations": moved(layer.activations),
        "embeddings": moved(layer.embeddings),
        "residuals": None if layer.residuals is None else moved(layer.residuals),
        "boxes": moved(layer.boxes),
        "conservation": layer.conservation[rows],
    }
    return _PartOfLayer(layer, rows, values)


class _PartOfLayer(LayerEvidence):
    """A layer's evidence of some samples, whose relevance is read from that of all.

    Parameters
    ----------
    source
        The layer with all samples.
    rows
        Ids of the samples, ascending.
    values
        Everything but the relevance.
    """

    def __init__(self, source: LayerEvidence, rows: np.ndarray, values: dict[str, Any]) -> None:
        for name, value in {**values, "_source": source, "_rows": rows}.items():
            object.__setattr__(self, name, value)

    @property
    def relevance(self) -> np.ndarray:  # type: ignore[override]
        """(N, C, K) float32; see `LayerEvidence`."""
        return self._source.relevance[self._rows]  # type: ignore[attr-defined, no-any-return]

    def relevance_blocks(self, classes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Relevance of one class for each sample; see `LayerEvidence.relevance_blocks`."""
        source, rows = self._source, self._rows  # type: ignore[attr-defined]
        whole = np.full(len(source.conservation), -1, dtype=np.int64)
        whole[rows] = classes
        for samples, relevance in source.relevance_blocks(whole):
            yield np.searchsorted(rows, samples), relevance
