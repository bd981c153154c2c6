from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from semlens_audit.splitting.division import divided, silhouette
from semlens_audit.splitting.modes import dip, p_of_dip, places_between, valley

values_of = st.lists(st.integers(0, 400), min_size=2, max_size=9).map(lambda found: np.array(found, dtype=np.float64) / 16)


def least_distance(values: np.ndarray) -> float:
    """The dip as its definition has it: over every mode, the nearest function that is convex before and concave after it.

    Variables of the linear programme are the distance, heights before the mode with the limit at it, and heights from the mode on.
    """
    places, counts = np.unique(values, return_counts=True)
    upper = np.cumsum(counts) / len(values)
    lower, best = upper - counts / len(values), np.inf
    for mode in range(len(places)):
        sides = [(places[: mode + 1], lower, upper, 0, 1.0), (places[mode:], lower, upper, mode, -1.0)]
        found = list[tuple[dict[int, float], float]]()
        for side, (x, low, high, first, curved) in enumerate(sides):
            column = [1 + first + side + i for i in range(len(x))]
            for i in range(len(x)):
                jumps = i == (0 if side else mode)
                ends = [(low, high)[side][first + i]] if jumps else [low[first + i], high[first + i]]
                for end in ends:
                    found += [({column[i]: 1.0, 0: -1.0}, end), ({column[i]: -1.0, 0: -1.0}, -end)]
            found += [({column[i]: 1.0, column[i + 1]: -1.0}, 0.0) for i in range(len(x) - 1)]
            for i in range(1, len(x) - 1):
                before, after = curved / (x[i] - x[i - 1]), curved / (x[i + 1] - x[i])
                found.append(({column[i - 1]: -before, column[i]: before + after, column[i + 1]: -after}, 0.0))
        found.append(({1 + mode: 1.0, 2 + mode: -1.0}, 0.0))
        rows = np.zeros((len(found), len(places) + 2))
        for row, (terms, _) in zip(rows, found, strict=True):
            for column_of, factor in terms.items():
                row[column_of] = factor
        cost = np.arange(rows.shape[1]) == 0
        solved = linprog(cost.astype(np.float64), A_ub=rows, b_ub=[bound for _, bound in found], bounds=(0.0, 1.0))
        assert solved.success
        best = min(best, float(solved.fun))
    return max(best, 1 / (2 * len(values)))


@settings(max_examples=60, deadline=None)
@given(values_of)
def test_the_dip_is_the_least_distance_to_a_function_with_one_mode(values: np.ndarray) -> None:
    assert dip(values) == pytest.approx(least_distance(values), abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(values_of, st.randoms(use_true_random=False))
def test_the_dip_knows_neither_order_nor_place_nor_scale_nor_side(values: np.ndarray, random: object) -> None:
    found, turned = dip(values), values.tolist()
    random.shuffle(turned)  # type: ignore[attr-defined]
    assert dip(np.array(turned)) == found
    assert dip(values * 4.0 - 8.0) == pytest.approx(found, abs=1e-12)
    assert dip(-values) == pytest.approx(found, abs=1e-12)
    assert 1 / (2 * len(values)) <= found <= 0.25


def test_the_dip_of_what_it_is_known_of() -> None:
    assert dip(np.full(10, 2.0)) == 0.05
    assert dip(np.arange(40.0)) == 1 / 80
    assert dip(np.repeat([0.0, 1.0], 20)) == 0.25
    assert dip(np.repeat([0.0, 1.0], [30, 10])) == pytest.approx(0.125)


def test_the_p_of_a_dip_is_the_share_of_uniform_samples_that_dip_as_deep() -> None:
    rng = np.random.default_rng(7)
    drawn = np.array([dip(rng.random(30)) for _ in range(4000)])
    for level in (0.5, 0.2, 0.05):
        assert p_of_dip(float(np.quantile(drawn, 1 - level)), 30) == pytest.approx(level, abs=0.03)
    assert p_of_dip(0.25, 30) == 1 / 10_000
    assert p_of_dip(1 / 60, 30) == 1.0


def test_each_circuit_is_placed_by_the_centres_of_those_of_other_parts() -> None:
    rng = np.random.default_rng(8)
    circuits = rng.normal(size=(23, 6)) + (np.arange(23) % 3 == 0)[:, None] * np.array([4.0, -2.0, 0, 0, 0, 0])
    found, whole = places_between(circuits, 5), np.subtract(*divided(circuits)[0])
    for i in range(23):
        others = [j for j in range(23) if j % 5 != i % 5]
        one, other = divided(circuits[others])[0]
        if (one - other) @ whole < 0:
            one, other = other, one
        nearer, farther = np.sum((circuits[i] - other) ** 2), np.sum((circuits[i] - one) ** 2)
        assert found[i] == pytest.approx((nearer - farther) / np.sum((one - other) ** 2)), "1 at one centre, -1 at the other"
    np.testing.assert_allclose(places_between(circuits * 1e-4 + 2.0, 5), found, rtol=1e-6)
    np.testing.assert_array_equal(places_between(np.ones((6, 3))), np.zeros(6))
    assert valley(circuits[:3]) == (0.0, 1.0)
    assert valley(np.ones((8, 2))) == (1 / 16, 1.0)


@pytest.mark.parametrize("width", [8, 320])
def test_one_group_leaves_no_valley_however_many_components_and_two_do(width: int) -> None:
    rng = np.random.default_rng(width)
    one, two, silhouettes, naive = list[float](), list[float](), list[float](), list[float]()
    for _ in range(12):
        circuits = rng.normal(size=(100, width)) * np.where(np.arange(width) == 0, 3.0, 1.0) / np.sqrt(rng.chisquare(5, (100, 1)))
        one.append(valley(circuits)[1])
        plain = rng.normal(size=(100, width))
        one.append(valley(plain)[1])
        naive.append(p_of_dip(dip(plain @ np.subtract(*divided(plain)[0])), 100))
        groups = rng.normal(size=(100, width))
        groups[:40, 1] += 6.0
        two.append(valley(groups)[1])
        silhouettes.append(silhouette(groups, divided(groups)[1]))
    assert np.mean(np.array(one) <= 0.05) <= 0.1
    assert max(two) <= 0.05
    assert (max(silhouettes) < 0.1) == (width == 320), "of the same two groups, beside many other components"
    if width == 320:
        assert np.mean(np.array(naive) <= 0.05) > 0.3, "of the circuits that made it, the line makes a valley by itself"
