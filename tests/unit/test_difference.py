"""Intervals of differences: where they are known in closed form, and what sizes may claim."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semlens_audit import proportions
from semlens_audit.difference import correlation, difference, difference_of_sizes, negative
from semlens_audit.measured import Interval, Measurement
from semlens_audit.multiplicity import p_value
from semlens_audit.statistics import nested_levels


def measured(value: float, ends: tuple[float, float], unit: str = "logits", n: int = 10, nested: bool = False) -> Measurement:
    """A measurement whose nested intervals scale like those of a normal distribution."""
    scale = {at: NormalDist().inv_cdf((1 + at) / 2) / NormalDist().inv_cdf(0.975) for at in nested_levels(0.95, 1000)}
    rungs = tuple((at, value - (value - ends[0]) * by, value + (ends[1] - value) * by) for at, by in scale.items())
    interval = Interval(low=ends[0], high=ends[1], level=0.95, method="made up", nested=rungs if nested else ())
    return Measurement(quantity="effect", unit=unit, value=value, interval=interval, n=n)  # type: ignore[arg-type]


def normal(value: float, deviation: float, nested: bool = False) -> Measurement:
    reach = NormalDist().inv_cdf(0.975) * deviation
    return measured(value, (value - reach, value + reach), nested=nested)


def ends_of(measurement: Measurement) -> tuple[float, float]:
    assert measurement.interval is not None
    return measurement.interval.low, measurement.interval.high


def test_paired_means_give_students_interval_of_the_mean_difference() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=12)
    old, new = common + 0.3 * rng.normal(size=12), 0.4 + common + 0.3 * rng.normal(size=12)
    both = [measured(float(values.mean()), proportions.mean(values, 0.95)) for values in (old, new)]
    rho = correlation(old - old.mean(), new - new.mean())
    assert rho > 0.7
    np.testing.assert_allclose(ends_of(difference(both[0], both[1], rho, 0.95)), proportions.mean(new - old, 0.95))


def test_independent_shares_give_newcombes_interval() -> None:
    old, new = (measured(share, proportions.wilson(share, n, 0.95), "share") for share, n in ((0.1, 40), (0.3, 60)))
    found = difference(old, new, 0.0, 0.95)
    np.testing.assert_allclose(ends_of(found), proportions.difference(0.3, 60, 0.1, 40, 0.95))
    assert found.unit == "difference"


def test_another_level_is_reached_in_proportion_to_normal_quantiles() -> None:
    old, new = normal(0.0, 1.0), normal(1.0, 1.0)
    low, high = ends_of(difference(old, new, 0.0, 0.99))
    reach = NormalDist().inv_cdf(0.995) * math.sqrt(2)
    assert (low, high) == pytest.approx((1 - reach, 1 + reach))


def test_nested_levels_carry_over_and_give_p_values() -> None:
    found = difference(normal(0.0, 1.0, nested=True), normal(2.0, 1.0, nested=True), 0.5, 0.95)
    assert found.interval is not None
    assert len(found.interval.nested) > 10
    assert p_value(found, 0.0) == pytest.approx(2 * NormalDist().cdf(-2.0), rel=0.05)


def test_equal_models_do_not_differ() -> None:
    one = normal(0.7, 0.2)
    found = difference(one, one, 1.0, 0.95)
    assert (found.value, *ends_of(found)) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)


def test_a_value_that_cannot_vary_is_taken_as_independent() -> None:
    assert correlation(np.zeros(5), np.arange(5.0)) == 0.0
    assert correlation(np.arange(5.0), 2 * np.arange(5.0)) == 1.0
    assert correlation(np.arange(5.0), -np.arange(5.0)) == -1.0


def test_a_turned_sign_of_equal_size_is_no_growth() -> None:
    found = difference_of_sizes(normal(-2.0, 0.1), normal(2.0, 0.1), 0.0, 0.95)
    assert found.value == 0.0
    low, high = ends_of(found)
    assert low < 0 < high
    assert high == pytest.approx(NormalDist().inv_cdf(0.975) * 0.1 * math.sqrt(2))


@pytest.mark.parametrize(
    ("old", "new", "grown"), [(1.0, 2.0, 1.0), (-1.0, -2.0, 1.0), (-1.0, 2.0, 1.0), (2.0, 1.0, -1.0), (-2.0, 1.0, -1.0)]
)
def test_sizes_far_from_zero_differ_as_values_do(old: float, new: float, grown: float) -> None:
    found = difference_of_sizes(normal(old, 0.01), normal(new, 0.01), 0.0, 0.95)
    assert found.value == pytest.approx(grown)
    reach = NormalDist().inv_cdf(0.975) * 0.01 * math.sqrt(2)
    assert ends_of(found) == pytest.approx((grown - reach, grown + reach))


@pytest.mark.slow
@pytest.mark.parametrize("truth", [(0.0, 0.0), (0.1, 0.1), (0.1, -0.1), (0.4, 0.4), (1.0, -1.0)])
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_sizes_that_are_equal_are_seldom_called_different(truth: tuple[float, float], rho: float) -> None:
    rng = np.random.default_rng([abs(int(100 * one)) for one in (*truth, rho)])
    deviation, trials = 0.2, 600
    errors = deviation * rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=trials)
    wrong = 0
    for error in errors:
        found = difference_of_sizes(normal(truth[0] + error[0], deviation), normal(truth[1] + error[1], deviation), rho, 0.95)
        low, high = ends_of(found)
        wrong += low > 0 or high < 0
    # at most 5 % in truth; 8 % of 600 would come up once in a thousand times
    assert wrong / trials < 0.08


@given(
    st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3), st.floats(0, 3), st.floats(0, 3), st.floats(-1, 1),
    st.floats(0.5, 0.999),
)  # fmt: skip
def test_intervals_hold_their_estimate_and_widen_with_the_level(
    old: float, new: float, a: float, b: float, c: float, d: float, rho: float, level: float
) -> None:
    one, other = measured(old, (old - a, old + b), nested=True), measured(new, (new - c, new + d), nested=True)
    for form in (difference, difference_of_sizes):
        found = form(one, other, rho, level)
        assert found.value is not None
        assert found.interval is not None
        rungs = found.interval.nested or ((level, *ends_of(found)),)
        for wide, narrow in zip(rungs, rungs[1:], strict=False):
            assert wide[0] > narrow[0]
            assert wide[1] <= narrow[1] <= found.value <= narrow[2] <= wide[2]
        assert any(rung == (level, *ends_of(found)) for rung in rungs)
    assert difference_of_sizes(one, other, rho, level).value == pytest.approx(abs(new) - abs(old))
    assert ends_of(difference(one, other, 0.0, level)) == pytest.approx(
        tuple(-end for end in reversed(ends_of(difference(other, one, 0.0, level))))
    )
    assert negative(negative(one)) == one
