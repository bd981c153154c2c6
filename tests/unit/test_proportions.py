"""Closed-form intervals against published values, root finding, exact enumeration and another implementation."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from semlens_audit import proportions

LEVELS = st.floats(0.5, 0.999)


class TestWilson:
    @given(st.integers(1, 200), st.data(), LEVELS)
    def test_its_ends_are_where_the_score_test_just_rejects(self, n: int, data: st.DataObject, level: float) -> None:
        share = data.draw(st.integers(0, n)) / n
        z = NormalDist().inv_cdf((1 + level) / 2)

        def score(p: float) -> float:
            return (share - p) ** 2 - z * z * p * (1 - p) / n

        low, high = proportions.wilson(share, n, level)
        # Below and above the share the score changes sign once each; at 0 and 1 the end is the share itself.
        assert low == pytest.approx(optimize.brentq(score, 0, share * (1 - 1e-9), xtol=1e-14) if share > 0 else 0.0, abs=1e-9)
        assert high == pytest.approx(
            optimize.brentq(score, share + 1e-9 * (1 - share), 1, xtol=1e-14) if share < 1 else 1.0, abs=1e-9
        )

    @given(st.floats(0, 1), st.floats(0.5, 1e6), LEVELS)
    def test_it_holds_the_share_and_stays_in_range(self, share: float, n: float, level: float) -> None:
        low, high = proportions.wilson(share, n, level)
        assert 0 <= low <= share <= high <= 1


class TestDifference:
    @pytest.mark.parametrize(
        ("counts", "low", "high"),
        [  # Newcombe 1998, table II, method 10
            ((56, 70, 48, 80), 0.0524, 0.3339),
            ((9, 10, 3, 10), 0.1705, 0.8090),
            ((10, 10, 0, 20), 0.6791, 1.0),
            ((10, 10, 0, 10), 0.6075, 1.0),
        ],
    )
    def test_published_examples(self, counts: tuple[int, int, int, int], low: float, high: float) -> None:
        first, n, second, m = counts
        assert proportions.difference(first / n, n, second / m, m, 0.95) == pytest.approx((low, high), abs=5e-5)

    @pytest.mark.parametrize(("p", "q"), [(0.1, 0.1), (0.5, 0.5), (0.9, 0.6), (0.97, 0.25), (0.05, 0.0)])
    @pytest.mark.parametrize(("n", "m"), [(12, 30), (40, 40), (100, 25)])
    def test_exact_coverage(self, p: float, q: float, n: int, m: int) -> None:
        chance = np.outer(stats.binom.pmf(np.arange(n + 1), n, p), stats.binom.pmf(np.arange(m + 1), m, q))
        covered = sum(
            chance[i, j]
            for i in range(n + 1)
            for j in range(m + 1)
            if chance[i, j] > 1e-9
            and (ends := proportions.difference(i / n, n, j / m, m, 0.95))[0] <= p - q + 1e-12
            and p - q - 1e-12 <= ends[1]
        )
        assert 0.925 <= covered <= 1.0

    @given(st.floats(0, 1), st.floats(1, 1e5), st.floats(0, 1), st.floats(1, 1e5), LEVELS)
    def test_it_holds_the_difference_and_turns_with_it(self, p: float, n: float, q: float, m: float, level: float) -> None:
        low, high = proportions.difference(p, n, q, m, level)
        assert -1 <= low <= p - q <= high <= 1
        other = proportions.difference(q, m, p, n, level)
        assert other == pytest.approx((-high, -low), abs=1e-12)


class TestEffectiveSize:
    @given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(2, 5))
    def test_copies_add_nothing(self, units: list[int], copies: int) -> None:
        once = proportions.effective_size(np.array(units))
        assert 1 <= once <= len(set(units)) + 1e-9
        assert proportions.effective_size(np.tile(units, copies)) == pytest.approx(once)

    def test_samples_that_stand_alone_keep_their_number(self) -> None:
        assert proportions.effective_size(np.arange(17)) == 17
        assert proportions.effective_size(np.array([], dtype=int)) == 0


class TestMean:
    @given(st.lists(st.floats(-50, 50), min_size=2, max_size=40), LEVELS)
    def test_it_is_student_s(self, values: list[float], level: float) -> None:
        array = np.array(values)
        low, high = proportions.mean(array, level)
        assert low <= array.mean() + 1e-12
        assert array.mean() <= high + 1e-12
        if array.std() > 1e-6:
            expected = stats.t.interval(level, len(values) - 1, loc=array.mean(), scale=stats.sem(array))
            assert (low, high) == pytest.approx(expected)
