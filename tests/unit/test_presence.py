"""Presence of concepts on whole images: two groups, freed of each other, or not told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import scores
from semlens_audit.behaviour import effects
from semlens_audit.presence import SEPARATION, presence_from_attribute, presences_from_embeddings, two_groups


def _probes(directions: np.ndarray) -> scores.ProbeSet:
    zero = np.zeros_like(directions)
    return scores.ProbeSet(directions, zero, zero, np.arange(len(directions)))


def test_two_groups_are_found_with_their_distance() -> None:
    rng = np.random.default_rng(0)
    upper = rng.random(4000) < 0.25
    values = rng.normal(size=4000) + 6.0 * upper
    probability, separation = two_groups(values)
    assert separation == pytest.approx(6.0, abs=0.3)
    assert ((probability > 0.5) == upper).mean() > 0.995
    assert probability.mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(size=1000),
        lambda rng: rng.uniform(size=1000),
        lambda rng: rng.exponential(size=1000),
        lambda rng: np.exp(0.5 * rng.normal(size=1000)),
        lambda rng: rng.standard_t(3, size=1000),
        lambda rng: rng.normal(size=1000) + 2.0 * (rng.random(1000) < 0.5),
    ],
    ids=["normal", "uniform", "exponential", "lognormal", "t3", "overlapping"],
)
def test_one_group_is_never_taken_for_two(draw) -> None:
    for seed in range(5):
        assert two_groups(draw(np.random.default_rng(seed)))[1] < SEPARATION


def test_constant_scores_and_few_samples_tell_nothing() -> None:
    assert two_groups(np.full(50, 0.3))[1] == 0.0
    assert two_groups(np.array([0.0, 1.0]))[1] == 0.0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 4.0), st.floats(-10, 10))
def test_two_groups_do_not_depend_on_scale_or_origin_and_never_fall(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=200) * rng.uniform(0.5, 2) + 5.0 * (rng.random(200) < 0.3)
    first, distance = two_groups(values)
    second, again = two_groups(scale * values + shift)
    assert again == pytest.approx(distance, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert ((first >= 0) & (first <= 1)).all()


def test_presence_from_embeddings_separates_two_groups() -> None:
    rng = np.random.default_rng(3)
    direction = scores.unit(rng.normal(size=(1, 12)))
    present = np.arange(200) % 4 == 0
    images = scores.unit(rng.normal(size=(200, 12)) * 0.2 + np.where(present[:, None], direction, -direction))
    (got,) = presences_from_embeddings(images, _probes(direction))
    assert (got.present == present).mean() > 0.98
    assert got.told
    assert got.separation is not None
    assert got.separation > SEPARATION


def test_a_concept_that_lies_over_another_is_taken_out_of_its_score() -> None:
    """Hair hides a border: without the correction, the border's effect leaks into the hair's."""
    rng = np.random.default_rng(5)
    border, hair = rng.random(3000) < 0.5, rng.random(3000) < 0.3
    label = (border ^ (rng.random(3000) < 0.2)).astype(int)
    directions = np.eye(8)[:2]
    images = np.full((3000, 8), 0.5) + 0.12 * rng.normal(size=(3000, 8))
    images[:, 0] += 0.6 * border + 0.35 * hair
    images[:, 1] += 0.8 * hair
    got = presences_from_embeddings(images, _probes(directions))
    margin = 2.0 * label + 2.0 * border + 0.3 * rng.normal(size=3000)
    plain = scores.alignment(images, _probes(directions))[:, 0]
    assert ((got[0].probability > 0.5) == border).mean() > ((two_groups(plain)[0] > 0.5) == border).mean()
    found = effects(margin, label, got, bootstrap=100, minimum_cell=10, minimum_samples=30, rng=rng)
    assert found[0].value == pytest.approx(2.0, abs=0.15)
    assert found[1].value == pytest.approx(0.0, abs=0.15)


def test_a_score_without_two_groups_is_neither_measured_nor_a_covariate() -> None:
    rng = np.random.default_rng(6)
    label, present = rng.integers(0, 2, 800), rng.random(800) < 0.4
    images = np.full((800, 6), 0.5) + 0.05 * rng.normal(size=(800, 6))
    images[:, 0] += 0.8 * present
    images[:, 1] += 0.2 * rng.normal(size=800) + 0.1 * label
    got = presences_from_embeddings(images, _probes(np.eye(6)[:2]))
    assert got[0].told
    assert not got[1].told
    margin = label + 1.5 * present + 0.2 * rng.normal(size=800)
    found = effects(margin, label, got, bootstrap=100, minimum_cell=10, minimum_samples=30, rng=rng)
    assert found[0].value == pytest.approx(1.5, abs=0.1)
    assert found[1].value is None
    assert "do not divide the samples" in str(found[1].reason)
    alone = effects(margin, label, got[:1], bootstrap=100, minimum_cell=10, minimum_samples=30, rng=np.random.default_rng(0))
    assert alone[0].value == pytest.approx(found[0].value, abs=1e-12)


def test_presence_from_attribute_keeps_what_is_unknown_apart() -> None:
    got = presence_from_attribute(np.array([1, 0, -1], dtype=np.int8))
    assert got.present.tolist() == [True, False, False]
    assert got.known.tolist() == [True, True, False]
    assert np.isnan(got.probability[2])
    assert got.told
    assert got.rows(np.array([0])).present.tolist() == [True]
