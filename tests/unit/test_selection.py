"""Reference samples by relevance, against a slow loop."""

from __future__ import annotations

import numpy as np

from semlens_audit.selection import top_by_relevance


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


def test_fewer_samples_than_asked_for() -> None:
    ids, _ = top_by_relevance(np.ones((2, 1, 3), dtype=np.float32), 4, "layer1")
    assert ids.tolist() == [[0, 1, -1, -1]] * 3
