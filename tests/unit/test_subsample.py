"""Samples drawn for interventions: rare cells are in, and weights put the totals right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.subsample import draw_samples, inclusion


def test_all_samples_where_there_are_few() -> None:
    probability = inclusion(np.array([0, 1, 0]), [], 5, 2)
    np.testing.assert_array_equal(probability, 1.0)
    np.testing.assert_array_equal(draw_samples(probability, np.random.default_rng(0)), [0, 1, 2])


def test_large_cells_are_drawn_evenly() -> None:
    labels, present = np.arange(1000) % 2, (np.arange(1000) // 2 % 4 == 0).astype(np.int8)
    probability = inclusion(labels, [present], 300, 20)
    np.testing.assert_allclose(probability, 0.3, rtol=1e-9)


def test_samples_of_a_rare_concept_are_all_in() -> None:
    labels, present = np.arange(1000) % 2, np.zeros(1000, dtype=np.int8)
    present[:12] = 1
    probability = inclusion(labels, [present], 300, 20)
    assert (probability[:12] == 1).all()
    assert probability.sum() == pytest.approx(300)
    drawn = draw_samples(probability, np.random.default_rng(0))
    assert set(range(12)) <= set(drawn)
    assert len(drawn) in (299, 300, 301)


def test_unknown_presence_asks_for_nothing() -> None:
    present = np.full(1000, -1, dtype=np.int8)
    np.testing.assert_allclose(inclusion(np.zeros(1000), [present], 100, 50), 0.1, rtol=1e-9)


def test_estimates_weighted_by_one_over_the_probability_are_those_of_all_samples() -> None:
    rng = np.random.default_rng(0)
    labels, present = np.arange(800) % 2, np.zeros(800, dtype=np.int8)
    present[rng.choice(800, 16, replace=False)] = 1
    values = 1.0 + 5.0 * present + rng.normal(0, 0.2, 800)
    probability = inclusion(labels, [present], 200, 20)
    means = []
    for seed in range(200):
        drawn = draw_samples(probability, np.random.default_rng(seed))
        means.append(np.average(values[drawn], weights=1 / probability[drawn]))
    assert np.mean(means) == pytest.approx(values.mean(), abs=0.01)
    assert (
        np.mean([values[draw_samples(probability, np.random.default_rng(s))].mean() for s in range(20)]) > values.mean() + 0.1
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 120), st.integers(1, 40), st.integers(0, 4), st.integers(0, 1000))
def test_probabilities_and_draws_are_valid(n: int, size: int, least: int, concepts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    states = [rng.choice([-1, 0, 1], n, p=[0.1, 0.85, 0.05]).astype(np.int8) for _ in range(concepts)]
    probability = inclusion(labels, states, size, least)
    assert (probability > 0).all()
    assert (probability <= 1).all()
    assert probability.sum() <= min(n, size) + 1e-6
    drawn = draw_samples(probability, rng)
    assert len(set(drawn)) == len(drawn)
    assert (np.diff(drawn) > 0).all()
    assert abs(len(drawn) - probability.sum()) <= 1 + 1e-6
    assert (drawn >= 0).all()
    assert (drawn < n).all()
