"""The behavioural line of evidence recovers effects that were put in, and says when it is blind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from semlens_audit import behaviour
from semlens_audit.presence import presence_from_attribute


def _world(n: int = 800, seed: int = 0, correlation: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.5).astype(np.int64)
    on = np.where(labels == 1, correlation, 1 - correlation)
    present = np.stack([rng.random(n) < on, rng.random(n) < 0.25], axis=1).astype(np.int8)
    margin = -1 + 2.0 * labels + 1.5 * present[:, 0] + rng.normal(0, 0.5, n)
    return labels, present, margin


def _run(labels: np.ndarray, columns: np.ndarray, margin: np.ndarray, **changes: int) -> list[behaviour.Effect]:
    presences = [presence_from_attribute(column) for column in columns.T]
    options = {"bootstrap": 400, "minimum_cell": 5, "minimum_samples": 30} | changes
    return behaviour.effects(margin, labels, presences, rng=np.random.default_rng(1), **options)  # type: ignore[arg-type]


def test_effects_put_in_are_found_and_absent_ones_are_zero() -> None:
    labels, present, margin = _world(correlation=0.8)
    used, unused = _run(labels, present, margin)
    assert used.value == pytest.approx(1.5, abs=0.15)
    assert unused.value == pytest.approx(0.0, abs=0.15)
    low, high = np.quantile(used.draws, [0.025, 0.975])
    assert low < 1.5 < high
    assert 0.1 < high - low < 0.4


def test_point_estimate_equals_least_squares() -> None:
    labels, present, margin = _world(n=200)
    design = np.column_stack([labels == 0, labels == 1, present])
    expected = np.linalg.lstsq(design.astype(float), margin, rcond=None)[0]
    assert [effect.value for effect in _run(labels, present, margin)] == pytest.approx(list(expected[2:]), abs=1e-6)


def test_without_counterexamples_there_is_no_effect_but_a_reason() -> None:
    labels, present, margin = _world(correlation=1.0)
    used, unused = _run(labels, present, margin)
    assert used.value is None
    assert "no counterexamples" in str(used.reason)
    assert unused.value is not None


def test_a_concept_that_is_never_there_is_not_measured() -> None:
    labels, present, margin = _world()
    present[:, 1] = 0
    assert "present in 0 of" in str(_run(labels, present, margin)[1].reason)


def test_too_few_samples_are_said() -> None:
    labels, present, margin = _world(n=20)
    assert "20 usable samples, 30 needed" in str(_run(labels, present, margin)[0].reason)


def test_unknown_attribute_values_are_left_out() -> None:
    labels, present, margin = _world()
    present[:100, 0] = -1
    used = _run(labels, present, margin)[0]
    assert used.n == 700
    assert used.value == pytest.approx(1.5, abs=0.15)


def test_concepts_that_always_come_together_are_not_measured_and_the_others_are() -> None:
    labels, present, margin = _world()
    first, second, third = _run(labels, present[:, [0, 0, 1]], margin)
    assert first.value is None
    assert "cannot be told apart" in str(first.reason)
    assert second.reason == first.reason
    assert third.value == pytest.approx(0.0, abs=0.15)


def test_unknown_everywhere_is_said_and_costs_the_others_nothing() -> None:
    labels, present, margin = _world()
    present[5:, 1] = -1
    used, rare = _run(labels, present, margin)
    assert used.n == 800
    assert used.value == pytest.approx(1.5, abs=0.15)
    assert "known for 5 samples, 30 needed" in str(rare.reason)


def test_more_coefficients_than_the_samples_bear_are_not_measured() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(40) % 2
    columns = (rng.random((40, 24)) < 0.5).astype(np.int8)
    results = _run(labels, columns, rng.normal(size=40), minimum_cell=1)
    assert all(result.value is None for result in results)
    assert "too few to tell 26 effects" in str(results[0].reason)


def test_a_thousand_classes_cost_no_more_than_two() -> None:
    rng = np.random.default_rng(5)
    labels = np.concatenate([np.arange(1000).repeat(2), np.zeros(400, dtype=np.int64)])
    column = (rng.random(len(labels)) < 0.5).astype(np.int8)
    margin = rng.normal(size=1000)[labels] + 0.7 * column + rng.normal(0, 0.2, len(labels))
    effect = _run(labels, column[:, None], margin, bootstrap=100)[0]
    assert effect.value == pytest.approx(0.7, abs=0.05)
    classes = (labels[:, None] == np.arange(1000)).astype(float)
    expected = np.linalg.lstsq(np.column_stack([classes, column]), margin, rcond=None)[0][-1]
    assert effect.value == pytest.approx(expected, abs=1e-6)


def test_interval_covers_the_true_effect_at_its_nominal_rate() -> None:
    hits = 0
    for seed in range(150):
        labels, present, margin = _world(n=150, seed=seed)
        effect = _run(labels, present, margin, bootstrap=200)[0]
        low, high = np.quantile(effect.draws, [0.025, 0.975])
        hits += low <= 1.5 <= high
    assert 0.89 <= hits / 150 <= 0.99


@pytest.mark.parametrize(("rows", "weights"), [(1, 1), (7, 500), (4096, 1 << 20)])
def test_neither_blocks_of_samples_nor_of_draws_change_the_draws(
    rows: int, weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, present, margin = _world(n=120)
    expected = _run(labels, present, margin)
    monkeypatch.setattr(behaviour, "ROWS", rows)
    monkeypatch.setattr(behaviour, "_WEIGHTS", weights)
    for found, effect in zip(_run(labels, present, margin), expected, strict=True):
        np.testing.assert_allclose(found.draws, effect.draws, rtol=1e-9)


class _Nudges(np.random.Generator):
    """Weights that are 1 but for one unit each, one after the other, where a bootstrap would draw them at random."""

    def __init__(self, step: float) -> None:
        super().__init__(np.random.PCG64(0))
        self._next, self._step = 0, step

    def standard_exponential(self, size: Any = None, *_: Any, **__: Any) -> Any:
        weights = np.ones(size)
        weights[np.arange(size[0]), self._next + np.arange(size[0])] += self._step
        self._next += size[0]
        return weights


def test_influences_are_what_a_little_more_weight_on_each_unit_changes() -> None:
    labels, present, margin = _world(n=150, correlation=0.7)
    present[::9, 1] = -1
    units = np.random.default_rng(3).permutation(np.repeat(np.arange(0, 180, 2), 2))[:150]
    presences = [presence_from_attribute(column) for column in present.T]
    options: dict[str, Any] = {"minimum_cell": 5, "minimum_samples": 30, "units": units}
    found = behaviour.influences(margin, labels, presences, **options)
    assert found is not None
    counted = np.unique(units[present[:, 1] >= 0])
    up, down = (
        behaviour.effects(margin, labels, presences, bootstrap=len(counted), rng=_Nudges(step), **options)
        for step in (1e-4, -1e-4)
    )
    for concept in (0, 1):
        slope = (up[concept].draws - down[concept].draws) / 2e-4
        np.testing.assert_allclose(found[counted, concept], slope, rtol=1e-5, atol=1e-8)
        assert not np.delete(found[:, concept], counted).any()
    few = [one.rows(np.arange(20)) for one in presences]
    assert behaviour.influences(margin[:20], labels[:20], few, **options | {"units": units[:20]}) is None


def test_class_margin_is_the_log_odds() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [800.0, 0.0, -800.0]], dtype=np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert behaviour.class_margin(logits, 1)[0] == pytest.approx(np.log(p[1] / (1 - p[1])))
    assert behaviour.class_margin(logits, 0)[1] == pytest.approx(800.0)
    assert behaviour.class_margin(logits[:1, :2], 0)[0] == pytest.approx(-1.0)
