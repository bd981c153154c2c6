"""Operating characteristics against slow oracles and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, spearmanr

from semlens_audit.certificate import Estimate, Pair, Repeat
from semlens_audit.qualification import rates
from semlens_audit.records import State


def estimate(value: float | None, half: float = 0.1) -> Estimate:
    if value is None:
        return Estimate(not_measured="for a reason")
    return Estimate(value=value, low=value - half, high=value + half, n=100)


def pair(
    true: float,
    *,
    share: float | None = 0.1,
    effect: float | None = 0.0,
    states: tuple[State, ...] = ("satisfied", "satisfied"),
    member: str = "m0",
    half: float = 0.1,
    own: float = 0.1,
    world: str = "w",
    architecture: str = "a",
    part: str = "held_back",
) -> Pair:
    return Pair.model_validate(
        {
            "member": member,
            "world": world,
            "architecture": architecture,
            "part": part,
            "artefact": "ruler",
            "true_effect": estimate(true, own),
            "accuracy_change": estimate(0.0),
            "share": estimate(share),
            "effect": estimate(effect, half),
            "findings": {f"check{i}": state for i, state in enumerate(states)},
        }
    )


def by_name(found: tuple[rates.RateRecord, ...]) -> dict[str, rates.RateRecord]:
    return {rate.name: rate for rate in found}


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (12, 12), (3, 40), (1, 1), (39, 40)])
def test_clopper_pearson_inverts_the_binomial_test(hits: int, n: int) -> None:
    low, high = rates.clopper_pearson(hits, n)
    if hits > 0:
        assert binom.sf(hits - 1, n, low) == pytest.approx(0.025)
    else:
        assert low == 0
    if hits < n:
        assert binom.cdf(hits, n, high) == pytest.approx(0.025)
    else:
        assert high == 1


def test_clopper_pearson_refuses_what_is_no_proportion() -> None:
    for hits, n in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="no proportion"):
            rates.clopper_pearson(hits, n)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=25).filter(
        lambda rows: any(hit for _, hit, _ in rows) and not all(hit for _, hit, _ in rows)
    )
)
def test_area_counts_ordered_comparisons(rows: list[tuple[int, bool, int]]) -> None:
    above, below = [v for v, hit, _ in rows if hit], [v for v, hit, _ in rows if not hit]
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below)
    found = rates.area([v for v, _, _ in rows], [hit for _, hit, _ in rows], [f"m{m}" for _, _, m in rows])
    assert found is not None
    value, low, high = found
    assert value == pytest.approx(won / (len(above) * len(below)))
    assert low <= value <= high


def test_area_without_both_sides_is_none_and_perfect_order_is_not_certain() -> None:
    assert rates.area([1.0, 2.0], [True, True], ["a", "b"]) is None
    found = rates.area([1, 2, 3, 4, 5, 6], [False] * 3 + [True] * 3, list("abcabc"))
    assert found is not None
    assert found[0] == found[2] == 1
    assert found[1] == pytest.approx(0.025 ** (1 / 3))  # three of three


def test_area_interval_draws_whole_models() -> None:
    """One model's pairs repeated tenfold hold no more information than once."""
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=24), np.arange(24) % 3 == 0
    scores[truth] += 1
    models = [f"m{i // 3}" for i in range(24)]
    once = rates.area(list(scores), list(truth), models)
    often = rates.area(list(np.tile(scores, 10)), list(np.tile(truth, 10)), models * 10)
    assert once == pytest.approx(often)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=5, max_size=30))
def test_rank_correlation_is_spearmans(rows: list[tuple[int, int]]) -> None:
    x, y = [row[0] for row in rows], [row[1] for row in rows]
    found = rates.rank_correlation(x, y, [str(i) for i in range(len(rows))])
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
        return
    assert found is not None
    assert found[0] == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
    assert found[1] <= found[0] <= found[2]


def test_rank_correlation_bootstrap_is_that_of_the_drawn_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=18)
    y = x + rng.normal(size=18)
    models = [f"m{i // 3}" for i in range(18)]
    weights = rates._draws(6, "seed")
    drawn = []
    for counts in weights:
        rows = [i for i in range(18) for _ in range(int(counts[i // 3]))]
        drawn.append(spearmanr(x[rows], y[rows]).statistic)
    found = rates.rank_correlation(list(x), list(y), models, "seed")
    assert found is not None
    assert found[1:] == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_rates_of_the_verdict_count_what_they_say() -> None:
    pairs = [
        pair(2.0, states=("not_satisfied", "satisfied"), member="a"),
        pair(-1.0, states=("inconclusive", "satisfied"), member="a"),
        pair(1.5, states=("satisfied", "satisfied"), member="b"),
        pair(0.7, states=("not_satisfied", "not_satisfied"), member="b"),
        pair(0.2, states=("satisfied", "not_satisfied"), member="c"),
        pair(0.1, states=("satisfied", "satisfied"), member="c"),
        pair(0.1, states=("not_measured", "satisfied"), member="c"),
        pair(0.0, states=("satisfied", "inconclusive"), member="c"),
    ]
    found = by_name(rates.rates(pairs))
    expected = {
        "true_positive": (1, 3, 2),
        "missed": (1, 3, 2),
        "false_positive_small": (1, 4, 1),
        "false_positive": (2, 5, 2),
        "inconclusive": (2, 8, 3),
        "not_measured": (1, 8, 3),
    }
    for name, (hits, n, models) in expected.items():
        rate = found[name]
        assert rate.value == pytest.approx(hits / n), name
        assert (rate.n, rate.models) == (n, models), name
        assert (rate.low, rate.high) == pytest.approx(rates.clopper_pearson(hits, n)), name


def test_what_has_no_pair_is_not_measured_with_its_reason() -> None:
    found = by_name(rates.rates([pair(0.1)]))
    for name in ("true_positive", "auroc_share", "rank_correlation_effect", "flips"):
        assert found[name].value is None
        assert found[name].not_measured


def test_the_cut_lies_at_one_logit_and_the_gap_is_left_out() -> None:
    pairs = [
        pair(1.0, share=0.5, member="a"),
        pair(0.99, share=0.6, member="b"),  # between: counts against the strict cut, is left out of the other
        pair(0.49, share=0.1, member="c"),
        pair(0.0, share=0.1, member="d"),
        pair(0.1, share=None, member="e"),
    ]
    found = by_name(rates.rates(pairs))
    assert found["auroc_share"].value == pytest.approx(2 / 3)
    assert found["auroc_share"].n == 4
    assert found["auroc_gap_share"].value == 1
    assert found["auroc_gap_share"].n == 3


def test_effects_that_may_be_zero_stay_out_of_the_rank_correlation() -> None:
    moved = [pair(float(i), share=i / 10, member=str(i)) for i in range(1, 7)]
    still = [pair(0.05, share=0.9, member=f"still{i}") for i in range(5)]
    found = by_name(rates.rates(moved + still))
    assert found["rank_correlation_share"].value == pytest.approx(1)
    assert found["rank_correlation_share"].n == 6


def test_size_of_the_behavioural_effect_counts_whatever_its_sign() -> None:
    pairs = [pair(-2.0, effect=-2.0, member="a"), pair(2.0, effect=1.9, member="b"), pair(0.0, effect=0.3, member="c")]
    assert by_name(rates.rates(pairs))["auroc_effect"].value == 1


def test_coverage_widens_by_the_error_of_the_truth() -> None:
    assert rates.covered(pair(1.0, effect=1.13, half=0.1, own=0.1)) is True  # 0.13 <= hypot(0.1, 0.1)
    assert rates.covered(pair(1.0, effect=1.15, half=0.1, own=0.1)) is False
    assert rates.covered(pair(1.0, effect=None)) is None


def test_coverage_of_honest_intervals_is_nominal() -> None:
    rng = np.random.default_rng(5)
    n, own, half = 4000, 0.2, 0.3
    pairs = [
        pair(
            float(truth + rng.normal() * own / 1.96), effect=float(truth + rng.normal() * half / 1.96), half=half, own=own,
            member=str(i),
        )
        for i, truth in enumerate(rng.normal(size=n))
    ]  # fmt: skip
    share = float(np.mean([rates.covered(item) for item in pairs]))
    assert share == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / n))


def test_flips_are_turns_between_the_two_decisions() -> None:
    states: list[tuple[State, State]] = [
        ("satisfied", "satisfied"),
        ("satisfied", "not_satisfied"),
        ("not_satisfied", "satisfied"),
        ("satisfied", "inconclusive"),
        ("not_satisfied", "not_satisfied"),
    ]
    repeats = [
        Repeat(member=f"m{i}", world="w", architecture="a", part="held_back", finding="f", first=one, second=two)
        for i, (one, two) in enumerate(states)
    ]
    found = by_name(rates.rates([pair(0.0)], repeats))
    assert found["flips"].value == pytest.approx(2 / 5)
    assert found["changes"].value == pytest.approx(3 / 5)


def test_groups_divide_the_pairs() -> None:
    pairs = [
        pair(2.0, member="a", world="w", architecture="x", part="held_back"),
        pair(0.0, member="b", world="w", architecture="y", part="development"),
        pair(0.0, member="c", world="v", architecture="x", part="held_back"),
    ]
    found = {(group.part, group.world, group.architecture): group for group in rates.groups(pairs)}
    assert found["all", "all", "all"].pairs == 3
    assert found["held_back", "all", "all"].models == 2
    assert found["held_back", "all", "x"].pairs == 2
    assert ("held_back", "w", "y") not in found
    assert found["development", "w", "all"].rate("false_positive_small").n == 1


def test_the_same_pairs_give_the_same_rates() -> None:
    rng = np.random.default_rng(1)
    pairs = [
        pair(float(t), share=float(abs(t) / 9), effect=float(t), member=f"m{i // 3}") for i, t in enumerate(rng.normal(size=30))
    ]
    assert rates.rates(pairs) == rates.rates(list(pairs))
