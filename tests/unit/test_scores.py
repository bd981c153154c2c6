"""Every score against a slow loop that re-implements its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import scores
from semlens_audit.calibration import calibrate, concept_z, critical_z, divide
from semlens_audit.resampling import resampled_alignment, resampled_clarity
from semlens_audit.statistics import auroc, benjamini_hochberg, normal_tail, otsu


def _embeddings(seed: int, k: int = 4, m: int = 6, d: int = 5) -> np.ndarray:
    return scores.unit(np.random.default_rng(seed).normal(size=(k, m, d)) + 0.3)


def _probes(seed: int, d: int = 5, baselines: bool = False) -> scores.ProbeSet:
    rng = np.random.default_rng(seed)
    origins = np.zeros((4, d))
    origins[2:] = rng.normal(size=d) * 0.1
    base = rng.normal(size=(4, d)) if baselines else np.zeros((4, d))
    return scores.ProbeSet(rng.normal(size=(4, d)), origins, base, np.array([0, 0, 1, 2]))


def _cos(a: np.ndarray, b: np.ndarray) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0


@pytest.mark.parametrize("baselines", [False, True])
def test_alignment_is_the_cosine_from_the_origin_less_the_baseline(baselines: bool) -> None:
    vectors, probes = np.random.default_rng(1).normal(size=(7, 5)), _probes(2, baselines=baselines)
    got = scores.alignment(vectors, probes)
    for i, vector in enumerate(vectors):
        for p in range(4):
            expected = _cos(vector - probes.origins[p], probes.directions[p]) - _cos(vector, probes.baselines[p])
            assert got[i, p] == pytest.approx(expected)


def test_clarity_is_the_mean_pairwise_cosine() -> None:
    embeddings = _embeddings(3)
    present = np.ones(embeddings.shape[:2], dtype=bool)
    present[1, 3:] = False
    present[2, 1:] = False
    got = scores.clarity(embeddings, present)
    for k in range(len(embeddings)):
        rows = embeddings[k][present[k]]
        pairs = [_cos(rows[i], rows[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        if pairs:
            assert got[k] == pytest.approx(np.mean(pairs))
        else:
            assert np.isnan(got[k])


def test_a_dead_unit_has_no_clarity_instead_of_clarity_one() -> None:
    """semlens 0.2.1 gives a unit that never fires the last image m times, hence clarity 1."""
    got = scores.clarity(np.zeros((1, 6, 5)), np.zeros((1, 6), dtype=bool))
    assert np.isnan(got[0])


def test_concept_embedding_averages_only_what_is_there() -> None:
    embeddings = _embeddings(4)
    present = np.ones(embeddings.shape[:2], dtype=bool)
    present[0, 2:] = False
    present[3] = False
    got = scores.concept_embedding(embeddings, present)
    assert got[0] == pytest.approx(embeddings[0, :2].mean(axis=0))
    assert not got[3].any()


def test_several_queries_and_templates_keep_their_order() -> None:
    """semanticlens 0.2.1 reshapes (templates x queries) in the wrong order: query 2 gets query 1's templates."""
    text = np.arange(2 * 3 * 5, dtype=float).reshape(2, 3, 5)
    empty = np.ones((3, 5))
    got = scores.template_probes(text, empty)
    for query in range(2):
        expected = np.mean([text[query, t] - empty[t] for t in range(3)], axis=0)
        assert got[query] == pytest.approx(expected)


def test_as_many_components_as_dimensions_is_no_special_case() -> None:
    """semanticlens 0.2.1 multiplies untransposed when the embedding dimension equals the number of components."""
    vectors = np.random.default_rng(5).normal(size=(5, 5))
    probes = _probes(6)
    got = scores.alignment(vectors, probes)
    assert got[3, 1] == pytest.approx(_cos(vectors[3], probes.directions[1]))


def test_alignment_does_not_depend_on_the_other_concepts() -> None:
    """CLIP-Dissect's scores change with the size of the concept set."""
    vectors, probes = np.random.default_rng(1).normal(size=(7, 5)), _probes(2)
    first = scores.ProbeSet(probes.directions[:1], probes.origins[:1], probes.baselines[:1], probes.concepts[:1])
    assert scores.alignment(vectors, first)[:, 0] == pytest.approx(scores.alignment(vectors, probes)[:, 0])


def test_relevance_shares_add_up_to_one_or_are_nothing() -> None:
    relevance = np.array([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    got = scores.relevance_shares(relevance)
    assert got.tolist() == [[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("baselines", [False, True])
def test_resampled_scores_equal_scores_of_resampled_samples(baselines: bool) -> None:
    embeddings, probes = _embeddings(7), _probes(8, baselines=baselines)
    rng = np.random.default_rng(9)
    counts = rng.multinomial(6, np.full(6, 1 / 6), size=(4, 3))
    weights = counts / 6.0
    aligned = resampled_alignment(embeddings, weights, probes)
    clear = resampled_clarity(embeddings, weights)
    for k in range(4):
        for b in range(3):
            theta = np.repeat(embeddings[k], counts[k, b], axis=0).mean(axis=0)
            assert aligned[k, b] == pytest.approx(scores.alignment(theta[None], probes)[0])
            total = weight = 0.0
            for i in range(6):
                for j in range(6):
                    if i != j:
                        w = weights[k, b, i] * weights[k, b, j]
                        total, weight = total + w * _cos(embeddings[k, i], embeddings[k, j]), weight + w
            assert clear[k, b] == pytest.approx(total / weight)


def test_uniform_weights_give_the_plain_scores() -> None:
    embeddings, probes = _embeddings(7), _probes(8)
    weights = np.full((4, 1, 6), 1 / 6)
    present = np.ones((4, 6), dtype=bool)
    plain = scores.alignment(scores.concept_embedding(embeddings, present), probes)
    assert resampled_alignment(embeddings, weights, probes)[:, 0] == pytest.approx(plain)
    assert resampled_clarity(embeddings, weights)[:, 0] == pytest.approx(scores.clarity(embeddings, present))


def test_random_reference_sets_are_not_significant_and_a_planted_one_is() -> None:
    rng = np.random.default_rng(10)
    pool = scores.unit(rng.normal(size=(400, 16)) + 0.5)
    direction = scores.unit(rng.normal(size=(1, 16)))
    probes = scores.ProbeSet(direction, np.zeros((1, 16)), np.zeros((1, 16)), np.array([0]))
    null = calibrate(pool, 10, 500, probes, np.random.default_rng(11))
    sets = np.array([pool[rng.choice(400, 10, replace=False)].mean(axis=0) for _ in range(300)])
    z = concept_z(scores.alignment(sets, probes), null, probes)[:, 0]
    assert abs(z.mean()) < 0.3
    assert 0.8 < z.std() < 1.25
    assert (z > 3).mean() < 0.02
    planted = scores.unit(pool[:10] + 4 * direction).mean(axis=0)
    assert concept_z(scores.alignment(planted[None], probes), null, probes)[0, 0] > 5


def test_a_dominant_shortcut_is_not_normalised_away() -> None:
    """Standardising over a layer's components hides a concept that most of them hold; random reference sets do not."""
    rng = np.random.default_rng(12)
    pool = scores.unit(rng.normal(size=(400, 16)))
    direction = scores.unit(rng.normal(size=(1, 16)))
    probes = scores.ProbeSet(direction, np.zeros((1, 16)), np.zeros((1, 16)), np.array([0]))
    null = calibrate(pool, 10, 500, probes, np.random.default_rng(13))
    layer = scores.unit(rng.normal(size=(50, 10, 16)) * 0.2 + direction).mean(axis=1)
    aligned = scores.alignment(layer, probes)
    assert (concept_z(aligned, null, probes) > 3).all()
    over_components = (aligned - aligned.mean()) / aligned.std()
    assert (over_components > 3).mean() < 0.05


def test_many_descriptions_gain_no_advantage() -> None:
    rng = np.random.default_rng(14)
    pool = scores.unit(rng.normal(size=(400, 16)))
    directions = rng.normal(size=(21, 16))
    probes = scores.ProbeSet(directions, np.zeros((21, 16)), np.zeros((21, 16)), np.array([0] + [1] * 20))
    null = calibrate(pool, 10, 800, probes, np.random.default_rng(15))
    sets = np.array([pool[rng.choice(400, 10, replace=False)].mean(axis=0) for _ in range(400)])
    z = concept_z(scores.alignment(sets, probes), null, probes)
    assert abs(z[:, 1].mean() - z[:, 0].mean()) < 0.25
    raw = (scores.alignment(sets, probes) - null.mean) / null.deviation
    assert raw[:, 1:].max(axis=1).mean() > 1.0, "without calibrating the maximum the many descriptions would win"


def test_too_small_a_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        calibrate(np.ones((5, 3)), 6, 100, _probes(1, d=3), np.random.default_rng(0))


def test_normal_tail_matches_known_values() -> None:
    assert normal_tail(np.array([0.0, 1.959963985, 3.0])) == pytest.approx([0.5, 0.025, 0.001349898], rel=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_against_the_step_up_rule(values: list[float]) -> None:
    p, rate = np.array(values), 0.1
    order = sorted(range(len(p)), key=lambda i: p[i])
    largest = max((rank for rank, i in enumerate(order, 1) if p[i] <= rate * rank / len(p) * (1 - 1e-12)), default=0)
    rejected = {order[rank] for rank in range(largest)}
    got = {int(i) for i in np.flatnonzero(benjamini_hochberg(p) <= rate * (1 - 1e-12))}
    assert got == rejected


def significant(z: np.ndarray, eligible: np.ndarray, *, least: float, rate: float) -> np.ndarray:
    return eligible[:, None] & (z >= critical_z(z, eligible, least=least, rate=rate))


def test_false_discovery_control_leaves_out_components_without_references() -> None:
    z = np.full((3, 2), 6.0)
    mask = significant(z, np.array([True, False, True]), least=3.0, rate=0.05)
    assert mask.tolist() == [[True, True], [False, False], [True, True]]
    assert not significant(np.full((3, 2), 2.9), np.ones(3, dtype=bool), least=3.0, rate=1.0 - 1e-9).any()


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_critical_z_parts_significant_from_insignificant(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(20, 3)) + np.where(rng.random((20, 3)) < 0.3, 5.0, 0.0)
    eligible = rng.random(20) < 0.9
    mask = significant(z, eligible, least=2.0, rate=0.05)
    cut = critical_z(z, eligible, least=2.0, rate=0.05)
    if mask.any():
        assert z[mask].min() >= cut - 1e-6
    open_pairs = z[eligible][~mask[eligible]]
    if open_pairs.size:
        assert open_pairs.max() < cut + 1e-6


def test_critical_z_is_that_of_false_discovery_control_alone() -> None:
    """Pairs below the least z count as rejections too: what is cut off by `least` must not raise the bar."""
    z = np.concatenate([np.full(10, 4.0), np.full(90, 2.5)])[:, None]
    everyone = np.ones(100, dtype=bool)
    assert critical_z(z, everyone, least=3.0, rate=0.05) == 3.0
    assert critical_z(np.zeros((100, 1)), everyone, least=3.0, rate=1e-20) > 9
    assert critical_z(np.zeros((0, 1)), np.zeros(0, dtype=bool), least=3.0, rate=0.05) == 3.0


def test_large_random_sets_scatter_as_sets_of_the_data_do() -> None:
    rng = np.random.default_rng(16)
    population = scores.unit(rng.normal(size=(20_000, 8)))
    probes = scores.ProbeSet(rng.normal(size=(1, 8)), np.zeros((1, 8)), np.zeros((1, 8)), np.array([0]))
    null = calibrate(population[:100], 100, 400, probes, np.random.default_rng(17))
    means = np.array([population[rng.integers(20_000, size=100)].mean(axis=0) for _ in range(400)])
    spread = scores.alignment(means, probes).std()
    assert null.deviation[0] == pytest.approx(spread, rel=0.3)


def test_a_component_divides_among_what_it_significantly_means() -> None:
    z = np.array([[6.0, 8.0, 9.0], [5.0, 7.0, 9.0], [4.0, 4.0, 1.0], [20.0, 4.0, 9.0]])
    above = np.array([[0.4, 0.3, 0.9], [0.1, 0.2, 0.3], [0.2, 0.1, 0.5], [0.5, 0.05, 0.9]])
    significant = np.array([[True, True, False], [False] * 3, [True, True, False], [True, True, False]])
    firm = np.zeros(3, dtype=bool)
    got = divide(z, above, significant, firm)
    for row in range(4):
        worth = [(z[row, j] * above[row, j]) ** 2 if significant[row, j] else 0.0 for j in range(3)]
        expected = [value / sum(worth) for value in worth] if any(significant[row]) else [0.0] * 3
        np.testing.assert_allclose(got[row], expected)
    assert got[3, 0] > 0.99
    doubted = divide(z, above, significant, np.array([True, False, False]))
    np.testing.assert_allclose(doubted[[0, 2, 3], 1], 1.0)
    only = divide(z, above, significant & np.array([True, False, False]), np.array([True, False, False]))
    np.testing.assert_allclose(only[[0, 2, 3], 0], 1.0)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_auroc_counts_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, positive = rng.integers(0, 6, size=14).astype(float), rng.random(14) < 0.5
    if positive.all() or not positive.any():
        assert auroc(values, positive) is None
        return
    wins = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert auroc(values, positive) == pytest.approx(float(np.mean(wins)))


def test_otsu_finds_the_gap_and_its_strength() -> None:
    rng = np.random.default_rng(16)
    values = np.concatenate([rng.normal(0, 0.2, 150), rng.normal(3, 0.2, 50)])
    threshold, separability = otsu(values)
    assert 0.6 < threshold < 2.4
    assert separability > 0.95
    best = max(
        (
            (values > t).mean()
            * (values <= t).mean()
            * (values[values > t].mean() - values[values <= t].mean()) ** 2
            / values.var(),
            t,
        )
        for t in np.sort(values)[:-1]
    )
    assert separability == pytest.approx(best[0])
    assert otsu(np.ones(5)) == (1.0, 0.0)
    assert otsu(rng.normal(size=5000))[1] == pytest.approx(0.64, abs=0.03)
