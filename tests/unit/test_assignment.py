"""Intervals of what rests on assigned components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semlens_audit.assignment import COSINE, LOGITS, SHARE, interval
from tests.unit import synthetic


def test_a_bias_of_the_draws_does_not_move_the_interval() -> None:
    plan, rng = synthetic.plan(), np.random.default_rng(0)
    noise = rng.normal(0, 0.05, 4000)
    fair = interval(plan, 0.5, 0.5 + noise, "samples", SHARE)
    biased = interval(plan, 0.5, 0.4 + noise, "samples", SHARE)
    assert (biased.low, biased.high) == pytest.approx((fair.low, fair.high))
    assert (fair.low, fair.high) == pytest.approx((0.402, 0.598), abs=0.01)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_it_holds_the_estimate_and_stays_in_range(value: float, seed: int) -> None:
    draws = np.random.default_rng(seed).beta(2, 5, 200)
    found = interval(synthetic.plan(), value, draws, "samples", SHARE)
    assert 0 <= found.low <= value <= found.high <= 1


def test_ranges_of_the_other_units() -> None:
    draws = np.linspace(-9, 9, 101)
    assert interval(synthetic.plan(), 0.9, draws, "samples", COSINE).high == 1.0
    assert interval(synthetic.plan(), 0.9, draws, "samples", LOGITS).high > 8
