from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from semlens_audit.scores import unit
from semlens_audit.splitting.division import Comparison, clarity_raised, divided, one_of_each, separation, silhouette
from semlens_audit.splitting.fit import Looked, Settings, judged


def spread(values: np.ndarray) -> float:
    return float(np.square(values - values.mean(axis=0)).sum()) if len(values) else 0.0


@pytest.mark.parametrize("seed", range(8))
def test_circuits_are_divided_as_the_best_of_all_divisions_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    circuits = rng.normal(0, 1e-3, (9, 40)) + (rng.random(9) < 0.4)[:, None] * rng.normal(0, 5e-4, 40)
    circuits /= np.abs(circuits).sum(axis=1, keepdims=True)
    centroids, first = divided(circuits)
    best = min(
        spread(circuits[list(chosen)]) + spread(np.delete(circuits, chosen, axis=0))
        for size in range(1, 5)
        for chosen in combinations(range(9), size)
    )
    assert spread(circuits[first]) + spread(circuits[~first]) == pytest.approx(best, rel=1e-9)
    assert first.sum() > 4, "the larger group comes first"
    np.testing.assert_allclose(centroids, [circuits[first].mean(axis=0), circuits[~first].mean(axis=0)])


def test_a_division_depends_on_the_circuits_and_on_nothing_else() -> None:
    rng = np.random.default_rng(0)
    circuits = np.concatenate([rng.normal(0, 1, (6, 5)), rng.normal(3, 1, (6, 5))])
    centroids, first = divided(circuits)
    assert first.tolist() == [True] * 6 + [False] * 6, "of equal groups, the one with the first sample comes first"
    again, same = divided(circuits * 1e-4)
    assert same.tolist() == first.tolist()
    np.testing.assert_allclose(again, centroids * 1e-4)
    alike, whole = divided(np.ones((4, 3)))
    assert whole.all()
    np.testing.assert_array_equal(alike, np.ones((2, 3)))
    assert divided(np.zeros((3, 2)))[1].all()


def test_clarity_and_its_p_value_are_those_of_every_division_looked_at() -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(8, 4)) + np.repeat([[2.0, 0, 0, 0], [0.5, 1, 0, 0]], [3, 5], axis=0))
    first = np.arange(8) < 3

    def clarity(members: np.ndarray) -> float:
        pairs = [float(vectors[i] @ vectors[j]) for i, j in combinations(np.flatnonzero(members), 2)]
        return float(np.mean(pairs))

    found = clarity_raised(vectors, first, np.random.default_rng(0), draws=4999)
    assert found is not None
    assert found.sizes == (3, 5)
    assert found.before == pytest.approx(clarity(np.ones(8, dtype=bool)))
    assert found.groups == (pytest.approx(clarity(first)), pytest.approx(clarity(~first)))
    assert found.after == pytest.approx((3 * clarity(first) + 5 * clarity(~first)) / 8)
    between = float(np.mean([vectors[i] @ vectors[j] for i in range(3) for j in range(3, 8)]))
    assert found.between == pytest.approx(between)
    within = (1 - clarity(first) + 1 - clarity(~first)) / 2
    assert found.separation == pytest.approx(1 - within / (1 - between))
    every = []
    for chosen in combinations(range(8), 3):
        mask = np.isin(np.arange(8), chosen)
        every.append((3 * clarity(mask) + 5 * clarity(~mask)) / 8)
    assert found.p == pytest.approx(np.mean(np.array(every) >= found.after - 1e-12), abs=0.02)
    assert clarity_raised(vectors, np.arange(8) < 1, np.random.default_rng(0)) is None
    assert clarity_raised(vectors, np.ones(8, dtype=bool), np.random.default_rng(0)) is None
    assert clarity_raised(vectors, first, np.random.default_rng(0), fewest=4) is None
    assert clarity_raised(vectors, first, np.random.default_rng(0), fewest=3, draws=9) is not None


def test_where_groups_have_nothing_to_do_with_the_samples_p_values_are_even() -> None:
    rng, p = np.random.default_rng(1), list[float]()
    for _ in range(300):
        vectors = unit(rng.normal(size=(20, 6)) + 0.7)
        first = rng.permutation(20) < rng.integers(4, 17)
        found = clarity_raised(vectors, first, rng, draws=199)
        assert found is not None
        p.append(found.p)
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.array(p) <= level)
        assert abs(share - level) < 3 * np.sqrt(level * (1 - level) / 300)


def test_separation_of_groups_that_are_one_is_zero_however_small_they_are() -> None:
    rng, found = np.random.default_rng(2), dict[int, float]()
    for small in (2, 20):
        drawn = []
        for _ in range(400):
            vectors = unit(rng.normal(size=(40, 8)) + 0.7)
            compared = clarity_raised(vectors, np.arange(40) < small, rng, draws=1)
            assert compared is not None
            drawn.append(compared.separation)
        found[small] = float(np.mean(drawn))
        assert abs(found[small]) < 4 * np.std(drawn) / np.sqrt(400)
    assert separation((1.0, 1.0), 0.2) == 1.0
    assert separation((1.0, 1.0), 1.0) == 0.0
    assert separation((0.5, 0.9), 0.4) == pytest.approx(0.5)
    assert separation((0.2, 0.2), 0.4) < 0


def test_silhouette_is_that_of_slow_distances() -> None:
    rng = np.random.default_rng(5)
    circuits, first = rng.normal(size=(12, 4)), np.arange(12) % 3 == 0
    circuits[first] += 1.0
    widths = []
    for i in range(12):
        apart = [float(np.linalg.norm(circuits[i] - circuits[j])) for j in range(12)]
        own = np.mean([apart[j] for j in range(12) if first[j] == first[i] and j != i])
        other = np.mean([apart[j] for j in range(12) if first[j] != first[i]])
        widths.append((other - own) / max(own, other))
    assert silhouette(circuits, first) == pytest.approx(np.mean(widths))
    assert silhouette(circuits * 1e-5 + 3.0, first) == pytest.approx(np.mean(widths), rel=1e-4)
    alone = silhouette(circuits, np.arange(12) == 0)
    assert alone < silhouette(circuits, first)
    assert silhouette(circuits, np.ones(12, dtype=bool)) == 0.0
    assert silhouette(np.ones((4, 2)), np.arange(4) < 2) == 0.0
    many = rng.normal(size=(2500, 3)) + (np.arange(2500) % 2)[:, None] * 9.0
    assert silhouette(many, np.arange(2500) % 2 == 0) > 0.8, "as many as do not fit at once"


def test_groups_that_are_one_have_no_silhouette_to_speak_of() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        circuits = rng.normal(size=(100, 16)) * np.array([2.0] * 2 + [1.0] * 14)
        assert silhouette(circuits, divided(circuits)[1]) < 0.25
        circuits[:40, 0] += 20.0
        assert silhouette(circuits, divided(circuits)[1]) > 0.5


@pytest.mark.parametrize(
    ("p_dip", "apart", "p", "reason"),
    [
        (0.001, 0.05, 0.001, ""), (0.3, 0.4, 0.001, ""), (0.001, 0.4, 0.001, ""), (0.3, 0.2, 0.001, "not distinct"),
        (0.04, 0.3, 0.001, "not distinct"), (0.025, 0.3, 0.025, ""), (0.001, 0.4, 0.3, "no clearer"),
    ],
)  # fmt: skip
def test_groups_are_kept_that_are_clearer_and_distinct_by_circuits_or_by_looks(
    p_dip: float, apart: float, p: float, reason: str
) -> None:
    compared = Comparison((15, 15), 0.4, (0.6, 0.6), 0.6, 0.3, apart, p)
    one = Looked(3, 0.5, (60, 40), 0.3, 0.1, p_dip, compared, "", np.zeros((2, 4), dtype=np.float32))
    few = Looked(4, 0.5, (60, 40), 0.9, 0.2, 0.0001, None, "too few shown", np.zeros((2, 4), dtype=np.float32))
    found, other = judged([one, few], Settings("second"))
    assert (found.kept, found.reason, found.adjusted) == (not reason, reason, pytest.approx(min(2 * p, 1.0)))
    assert found.adjusted_dip == pytest.approx(min(2 * p_dip, 1.0)), "those that could not be compared are counted, with 1"
    assert (other.kept, other.reason) == (False, "too few shown")


def test_of_pictures_of_one_unit_one_counts() -> None:
    assert one_of_each(np.array([7, 3, 7, 7, 1, 3])).tolist() == [0, 1, 4]
