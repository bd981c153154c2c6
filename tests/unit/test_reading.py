"""Evidence read from a store some samples at a time is what the store holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semlens_audit import reading
from semlens_audit.errors import IntegrityError
from semlens_audit.headroom import FirstReferences
from semlens_audit.reading import StoredLayer, StoredRows
from semlens_audit.store import Store

N, WIDTH, COMPONENTS, AUDITED = 11, 4, 6, (7, 2, 5)
LOGITS = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)
RELEVANCE = np.random.default_rng(1).normal(size=(N, len(AUDITED), COMPONENTS)).astype(np.float32)
CONSERVATION = np.random.default_rng(2).normal(size=(N, len(AUDITED))).astype(np.float32)
VECTORS = np.random.default_rng(3).normal(size=(2, COMPONENTS, 3, 8)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    order = np.random.default_rng(4).permutation(N)
    rows = np.random.default_rng(5).permutation(N * len(AUDITED))
    with Store.open(tmp_path / "store.duckdb") as opened:
        opened.append("output", stage="o", sample=order, logits=LOGITS[order])
        opened.append("output", stage="other", sample=order, logits=LOGITS[order] + 1)
        for layer in (0, 1):
            opened.append(
                "relevance",
                stage=f"r{layer}",
                sample=np.repeat(np.arange(N), len(AUDITED))[rows],
                **{"class": np.tile(AUDITED, N)[rows]},
                relevance=(RELEVANCE + layer).reshape(-1, COMPONENTS)[rows],
                conservation=CONSERVATION.reshape(-1)[rows],
            )
            component, rank = np.nonzero(np.ones((COMPONENTS, 3), dtype=bool))
            boxes: dict[str, Any] = {"x0": rank, "y0": layer, "x1": 8, "y1": 8}
            opened.append("component", stage=f"c{layer}", component=np.arange(COMPONENTS), dead=np.zeros(COMPONENTS, dtype=bool))
            opened.append("reference", stage=f"c{layer}", component=component, rank=rank, sample=component, activation=1.0 * rank)
            opened.append("crop", stage=f"x{layer}", component=component, rank=rank, sample=component, **boxes)
            opened.append("region", pool="f", sample=component, **boxes, vector=VECTORS[layer].reshape(-1, 8))
        opened.begin("foundation", {"stage": "f"}, 1)
        opened.execute("UPDATE stage SET key = 'f', facts = '{\"dimension\": 8}'")
        yield opened


def layer(store: Store, number: int, latest: reading._Latest | None = None) -> StoredLayer:
    names = {"references": "c", "crops": "x", "relevance": "r", "null": "n"}
    keys = {f"{name}:layer{number}": f"{letter}{number}" for name, letter in names.items()} | {"foundation": "f"}
    return StoredLayer(store, f"layer{number}", keys, AUDITED, 3, latest)


def matrix(store: Store, samples: int = N) -> StoredRows:
    return StoredRows(store, "logits", "output", "stage = ?", ("o",), (samples, WIDTH))


def test_rows_by_slice_by_index_and_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = matrix(store)
    assert (rows.shape, len(rows)) == ((N, WIDTH), N)
    for wanted in (slice(0, 4), slice(3, 3), slice(5, None), slice(None), slice(8, 99), slice(1, 9, 3), slice(6, 2)):
        np.testing.assert_array_equal(rows[wanted], LOGITS[wanted])
    monkeypatch.setattr(reading.in_blocks, "__defaults__", (4,))
    for index in (np.array([10, 0, 3, 3]), np.array([], dtype=int), np.arange(N) % 2 == 0):
        np.testing.assert_array_equal(rows[index], LOGITS[index])
    np.testing.assert_array_equal(np.asarray(rows), LOGITS)
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64


def test_rows_that_are_missing_are_told(store: Store) -> None:
    with pytest.raises(IntegrityError, match=r"Of samples 0 to 11, the store holds 11 rows instead of 12"):
        matrix(store, N + 1)[0 : N + 1]


@pytest.mark.parametrize("together", [1, 3, 4, 1024])
def test_relevance_of_one_class_for_each_sample(store: Store, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SAMPLES", together)
    classes = np.array([2, -1, 0, 1, -1, -1, -1, -1, 2, 2, 0])
    own = np.flatnonzero(classes >= 0)
    for source in (layer(store, 0), FirstReferences(layer(store, 0), 2)):
        blocks = list(source.relevance_blocks(classes))
        assert all(1 <= len(samples) <= together for samples, _ in blocks)
        np.testing.assert_array_equal(np.concatenate([samples for samples, _ in blocks]), own)
        np.testing.assert_array_equal(np.concatenate([values for _, values in blocks]), RELEVANCE[own, classes[own]])
        np.testing.assert_array_equal(source.relevance, RELEVANCE)
        np.testing.assert_array_equal(source.conservation, CONSERVATION)
    assert list(layer(store, 0).relevance_blocks(np.full(N, -1))) == []


def test_relevance_that_is_missing_is_told(store: Store) -> None:
    store.execute("DELETE FROM relevance WHERE stage = 'r0' AND sample = 3 AND class = 2")
    classes = np.ones(N, dtype=np.int64)
    with pytest.raises(IntegrityError, match=r"lacks relevance in layer layer0 of 1 samples"):
        list(layer(store, 0).relevance_blocks(classes))
    classes[3] = 0
    assert sum(len(samples) for samples, _ in layer(store, 0).relevance_blocks(classes)) == N


@pytest.mark.parametrize("together", [1, 7, 4096])
def test_embeddings_of_one_layer_are_held_at_a_time(store: Store, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CROPS", together)
    latest = reading._Latest()
    first, second = layer(store, 0, latest), layer(store, 1, latest)
    np.testing.assert_array_equal(first.embeddings, VECTORS[0])
    held = first.embeddings
    assert first.embeddings is held
    assert np.shares_memory(FirstReferences(first, 2).embeddings, held)
    np.testing.assert_array_equal(second.embeddings, VECTORS[1])
    assert latest._held["embeddings"][1] is second.embeddings
    np.testing.assert_array_equal(first.embeddings, VECTORS[0])
    assert first.embeddings is not held
