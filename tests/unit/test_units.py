"""Units share their weight, and repeated samples are worth no more than one."""

from __future__ import annotations

import numpy as np
import pytest

from semlens_audit.resampling import resampled_clarity
from semlens_audit.scores import clarity, unit
from semlens_audit.units import UnitWeights, count_units, effective_units, reference_weights, spread_factor, worth


def test_samples_of_a_unit_share_their_weight() -> None:
    groups = np.array([0, 2, 2, 1])
    weights = UnitWeights(50, [0])
    assert weights.of(groups).shape == (4, 50)
    chosen = reference_weights(weights, groups[[[1, 2, 0, 0]]], np.array([[True, True, True, False]]))
    assert chosen.shape == (1, 50, 4)
    assert np.array_equal(chosen[0, :, 0], chosen[0, :, 1])
    assert not chosen[..., 3].any()
    assert chosen.sum(axis=-1) == pytest.approx(np.ones((1, 50)), abs=1e-5)


def test_weights_go_by_the_unit_alone_whatever_is_asked_for_before_and_however_much_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = np.array([[5, 0, 90_000], [7, 5, 2**40]])
    kept = UnitWeights(33, [3, 1]).of(units)
    monkeypatch.setattr("semlens_audit.units._HELD", 40)
    other = UnitWeights(33, [3, 1])
    for one in units.ravel()[::-1]:
        other.of(np.array([one]))
    assert np.array_equal(other.of(units), kept)
    assert np.array_equal(kept[0, 0], kept[1, 1])
    assert len({row.tobytes() for row in kept.reshape(-1, 33)}) == 5
    assert not np.array_equal(UnitWeights(33, [3, 2]).of(units), kept)


def test_weights_are_exponential_and_those_of_different_units_independent() -> None:
    weights = UnitWeights(400, [11]).of(np.arange(500))
    assert weights.mean() == pytest.approx(1.0, abs=0.02)
    assert weights.var() == pytest.approx(1.0, abs=0.05)
    assert np.quantile(weights, 0.9) == pytest.approx(np.log(10), abs=0.05)
    correlation = np.corrcoef(weights)[np.triu_indices(500, 1)]
    assert np.abs(correlation.mean()) < 0.003
    assert correlation.std() == pytest.approx(1 / np.sqrt(400), rel=0.05)
    across = np.corrcoef(weights.T)[np.triu_indices(400, 1)]
    assert across.std() == pytest.approx(1 / np.sqrt(500), rel=0.05)


def test_what_samples_are_worth_is_what_the_pairwise_count_says() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 40):
        units = rng.integers(0, 9, n)
        assert worth(units) == pytest.approx(effective_units(units[None], np.ones((1, n), dtype=bool))[0])
    assert worth(np.empty(0, dtype=np.int64)) == 0.0


def test_empty_places_take_no_weight_and_none_at_all_is_none() -> None:
    weights = UnitWeights(4, [0])
    chosen = reference_weights(weights, np.array([[-1, -2]]), np.zeros((1, 2), dtype=bool))
    assert not chosen.any()


def test_effective_number_is_kish_s() -> None:
    units = np.array([[0, 1, 2, 3], [0, 0, 1, 1], [5, 5, 5, 6], [0, 1, -3, -4]])
    present = np.array([[True] * 4, [True] * 4, [True] * 4, [True, True, False, False]])
    expected = [4**2 / 4, 4**2 / 8, 4**2 / 10, 2**2 / 2]
    assert effective_units(units, present) == pytest.approx(np.array(expected))
    assert effective_units(units[:1], np.zeros((1, 4), dtype=bool))[0] == 0.0
    assert count_units(units[1]) == 2


@pytest.mark.parametrize("count", [5, 20])
def test_spread_factor_makes_the_bootstrap_s_variance_right(count: int) -> None:
    rng = np.random.default_rng(1)
    estimated = []
    for _ in range(300):
        weights = rng.standard_exponential((300, count))
        draws = (weights / weights.sum(axis=1, keepdims=True)) @ rng.normal(size=count)
        estimated.append(draws.var() * float(spread_factor(count)) ** 2)
    assert np.mean(estimated) == pytest.approx(1.0 / count, rel=0.12)


def test_clarity_leaves_pairs_of_one_unit_out() -> None:
    rng = np.random.default_rng(2)
    once = unit(rng.normal(size=(2, 4, 8)))
    twice, units = np.repeat(once, 2, axis=1), np.repeat(np.arange(4), 2)[None].repeat(2, axis=0)
    even = np.full((2, 1, 8), 1 / 8)
    found = resampled_clarity(twice, even, units)[:, 0]
    assert found == pytest.approx(clarity(once, np.ones((2, 4), dtype=bool)))
    assert (resampled_clarity(twice, even)[:, 0] > found).all()
    assert resampled_clarity(twice, even, np.zeros_like(units)) == pytest.approx(np.zeros((2, 1)))
