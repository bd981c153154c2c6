"""Reference samples by relevance, against a slow loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semlens_audit import selection
from semlens_audit.selection import top_by_relevance
from semlens_audit.store import Store
from tests.unit import synthetic


def test_largest_relevance_of_any_audited_class_whatever_its_sign() -> None:
    relevance = np.random.default_rng(0).normal(size=(50, 2, 7)).astype(np.float32)
    relevance[:, :, 3] = 0.0
    relevance[5, 0, 4] = relevance[9, 1, 4] = 40.0
    ids, values = top_by_relevance(relevance, 6, "layer1")
    for k in range(7):
        strength = [(-max(abs(float(relevance[i, c, k])) for c in range(2)), i) for i in range(50)]
        expected = [i if -size > 0 else -1 for size, i in sorted(strength)[:6]]
        assert ids[k].tolist() == expected
    assert not values[3].any()
    assert ids[4, :2].tolist() == [5, 9]


@pytest.mark.parametrize("rows", [1, 6, 7, 4096])
def test_a_store_is_read_some_samples_at_a_time(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_ROWS", rows)
    relevance = np.random.default_rng(1).integers(-3, 4, size=(20, 3, 5)).astype(np.float32)
    plan = synthetic.plan(reference_samples=4)
    inputs = {"selection:layer1": {"stage": "selection", "relevance": "k"}}
    order = np.random.default_rng(2).permutation(60)
    with Store.open(tmp_path / "store.duckdb") as store:
        store.append(
            "relevance",
            stage="k",
            sample=np.repeat(np.arange(20), 3)[order],
            **{"class": np.tile([4, 0, 9], 20)[order]},
            relevance=relevance.reshape(60, 5)[order],
            conservation=np.ones(60, dtype=np.float32),
        )
        selection.select_references(plan, store, inputs)
        key = store.begin("selection:layer1", inputs["selection:layer1"], 1).key
        found = store.arrays("SELECT component, rank, sample, activation FROM reference WHERE stage = ?", (key,))
    ids, values = top_by_relevance(relevance, 4, "layer1")
    assert np.array_equal(ids[found["component"], found["rank"]], found["sample"])
    assert np.array_equal(values[found["component"], found["rank"]], found["activation"])
    assert len(found["rank"]) == (ids >= 0).sum()


def test_fewer_samples_than_asked_for() -> None:
    ids, _ = top_by_relevance(np.ones((2, 1, 3), dtype=np.float32), 4, "layer1")
    assert ids.tolist() == [[0, 1, -1, -1]] * 3
