"""Outputs some rows at a time: against slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import outputs
from semlens_audit.outputs import decisions, in_blocks, mean_row


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 17), st.integers(2, 5), st.integers(1, 9), st.integers(0, 1000))
def test_decisions_are_the_loop_s_whatever_the_blocks(samples: int, classes: int, rows: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(samples, classes)).astype(np.float32)
    audited = (classes - 1, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_blocks, "__defaults__", (rows,))
        found = decisions(logits, audited)
        if samples:
            np.testing.assert_allclose(mean_row(logits), [sum(map(float, column)) / samples for column in logits.T])
    assert found.broken == 0
    assert found.margins.shape == (samples, 2)
    for i in range(samples):
        assert found.predicted[i] == max(range(classes), key=lambda c: (logits[i, c], -c))
        for position, index in enumerate(audited):
            others = sum(math.exp(float(logits[i, c])) for c in range(classes) if c != index)
            assert found.margins[i, position] == pytest.approx(float(logits[i, index]) - math.log(others), abs=1e-9)


def test_what_is_not_finite_is_counted() -> None:
    logits = np.zeros((outputs.ROWS + 3, 2), dtype=np.float32)
    logits[1, 0], logits[-1] = np.nan, np.inf
    assert decisions(logits, (0,)).broken == 3


def test_no_rows_have_no_mean() -> None:
    assert np.isnan(mean_row(np.zeros((0, 3)))).all()
    assert list(in_blocks(np.zeros((0, 3)))) == []
