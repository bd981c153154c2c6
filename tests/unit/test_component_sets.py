"""Control sets: as relevant as the concept's components, none of them inside, different from each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.component_sets import control_sets


def shares(components: int, seed: int = 0, tail: float = 1.2) -> np.ndarray:
    values = np.random.default_rng(seed).pareto(tail, components) + 0.01
    return np.asarray(values / values.sum())


def test_they_hold_the_same_relevance_in_as_many_components() -> None:
    weights = shares(128, tail=3.0)
    members = list(range(0, 128, 16))
    target = weights[members].sum()
    controls = control_sets(weights, members, 20, np.random.default_rng(0))
    assert controls.kind == "matched"
    assert controls.scale == 1.0
    assert len(set(controls.sets)) == 20
    held = [weights[list(one)].sum() for one in controls.sets]
    np.testing.assert_allclose(held, target, rtol=0.02)
    assert controls.share == pytest.approx(np.mean(held))
    assert controls.error == pytest.approx(np.mean(np.abs(np.array(held) - target)) / target)
    assert all(not set(one) & set(members) for one in controls.sets)
    assert all(4 <= len(one) <= 16 for one in controls.sets)


def test_a_single_strong_component_is_matched_by_several_weak_ones() -> None:
    weights = np.array([0.3, *np.full(70, 0.01)])
    controls = control_sets(weights, [0], 10, np.random.default_rng(0))
    assert {len(one) for one in controls.sets} == {30}
    assert controls.error == pytest.approx(0.0, abs=0.02)
    assert len(controls.sets) == 10


def test_more_than_half_of_the_relevance_has_no_equal_and_is_held_against_all_others() -> None:
    weights = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    controls = control_sets(weights, [0, 1], 20, np.random.default_rng(0))
    assert controls.kind == "complement"
    assert controls.sets == ((2, 3),)
    assert controls.scale == pytest.approx(0.7 / 0.3)
    assert controls.share == pytest.approx(0.3)
    assert controls.error == pytest.approx(4 / 7)


@pytest.mark.parametrize(("weights", "members"), [([1.0, 0.0], [0]), ([0.0, 1.0], [0])])
def test_without_relevance_on_either_side_there_is_no_control(weights: list[float], members: list[int]) -> None:
    controls = control_sets(np.array(weights), members, 20, np.random.default_rng(0))
    assert (controls.kind, controls.sets, controls.share, controls.error) == ("none", (), None, None)


def test_fewer_sets_where_there_are_no_more() -> None:
    controls = control_sets(np.array([0.25, 0.25, 0.25, 0.25]), [0], 20, np.random.default_rng(0))
    assert set(controls.sets) == {(1,), (2,), (3,)}


def test_the_seed_decides() -> None:
    weights = shares(64)
    first, again, other = (control_sets(weights, [1, 2], 10, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000), st.data())
def test_whatever_the_shares_controls_are_valid(components: int, seed: int, data: st.DataObject) -> None:
    weights = shares(components, seed)
    members = data.draw(st.lists(st.integers(0, components - 1), min_size=1, max_size=components, unique=True))
    controls = control_sets(weights, members, 5, np.random.default_rng(seed))
    assert len(set(controls.sets)) == len(controls.sets) <= 5
    assert (controls.kind == "none") == (len(members) == components)
    for one in controls.sets:
        assert one
        assert list(one) == sorted(set(one))
        assert not set(one) & set(members)
        assert all(weights[list(one)] > 0)
