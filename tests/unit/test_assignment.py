"""Intervals of what rests on assigned components."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semlens_audit.assignment import assign_layer
from semlens_audit.draws import COSINE, LOGITS, SHARE, interval
from semlens_audit.scores import unit
from tests.unit import synthetic


def test_a_component_near_the_critical_z_keeps_its_meaning_in_about_half_of_the_draws() -> None:
    """Resampling adds noise to a concept embedding; that alone must not take assignments away."""
    plan, evidence = synthetic.plan(false_discovery_rate=0.999, bootstrap=400), synthetic.evidence({})
    rng = np.random.default_rng(0)
    pool = evidence.layers[0].null_embeddings
    shift = rng.uniform(0.1, 0.6, 300)[:, None, None] * np.eye(synthetic.DIMENSION)[1]
    embeddings = unit(pool[rng.integers(len(pool), size=(300, 12))] + shift).astype(np.float32)
    layer = dataclasses.replace(
        evidence.layers[0],
        embeddings=embeddings,
        reference_ids=np.tile(np.arange(12), (300, 1)),
        dead=np.zeros(300, dtype=bool),
    )
    found = assign_layer(plan, evidence, layer)
    border = np.abs(found.z[:, 1] - 3.0) < 0.3
    assert border.sum() > 10
    assert 0.35 < found.weight_draws[:, border, 1].mean() < 0.65


def test_an_interval_is_the_percentiles_of_the_draws() -> None:
    found = interval(synthetic.plan(), 0.5, np.linspace(0, 1, 1001), "samples", SHARE)
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))


def test_draws_to_one_side_widen_both_sides() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 4000)
    aside = interval(synthetic.plan(), 0.5, 0.4 + noise, "samples", SHARE)
    assert (aside.low, aside.high) == pytest.approx((0.302, 0.598), abs=0.01)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_it_holds_the_estimate_and_stays_in_range(value: float, seed: int) -> None:
    draws = np.random.default_rng(seed).beta(2, 5, 200)
    found = interval(synthetic.plan(), value, draws, "samples", SHARE)
    assert 0 <= found.low <= value <= found.high <= 1


def test_ranges_of_the_other_units() -> None:
    draws = np.linspace(-9, 9, 101)
    assert interval(synthetic.plan(), 0.9, draws, "samples", COSINE).high == 1.0
    assert interval(synthetic.plan(), 0.9, draws, "samples", LOGITS).high > 8
