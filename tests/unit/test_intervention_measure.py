"""Mediated effects from made-up outputs whose truth is known, their intervals, and the comparison with control sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from semlens_audit.intervention_measure import Contrast, Drawn, concept_contrast, draw_weights, measure_ablation
from semlens_audit.presence import Presence, presence_from_attribute
from semlens_audit.records import AblationRecord
from tests.unit import synthetic

RULER = 1
"""Position of the ruler among the concepts of the synthetic plan."""


def drawn(n: int = 240, seed: int = 0, tied: float = 0.5, bootstrap: int = 300, units: np.ndarray | None = None) -> Drawn:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 2).astype(np.int64)
    columns = [rng.random(n) < 0.4, rng.random(n) < np.where(labels == 1, tied, 1 - tied), rng.random(n) < 0.3]
    presences = tuple(presence_from_attribute(column.astype(np.int8)) for column in columns)
    weights = draw_weights(np.ones(n), np.arange(n) if units is None else units, bootstrap, rng)
    return Drawn(np.arange(n), labels, weights, presences)


def outputs(part: Drawn, through: list[float], rest: float = 1.0, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """(1 + len(through), n, 2): the ruler moves the margin by `rest` plus the first of `through`; each set takes its own away."""
    rng = np.random.default_rng(seed)
    ruler = part.presences[RULER].present
    whole = 2.0 * part.labels - 1 + (rest + through[0]) * ruler + rng.normal(0, 0.5, len(part.labels))
    margins = [whole, *(whole - value * ruler - rng.normal(0, noise, len(ruler)) for value in through)]
    return np.stack([np.stack([-margin / 2, margin / 2], axis=1) for margin in margins]).astype(np.float32)


def measured(part: Drawn, values: np.ndarray, scale: float = 1.0, **settings: Any) -> AblationRecord:
    contrast = concept_contrast(part, RULER, minimum_cell=10, minimum_samples=30)
    return measure_ablation(
        synthetic.plan(**settings), part, contrast, RULER, values,
        method="mean", index=1, scale=scale, names=("melanoma", "layer1", "ruler"),
    )  # fmt: skip


class TestWeights:
    def test_the_first_row_counts_one_over_the_probability(self) -> None:
        weights = draw_weights(np.array([1.0, 0.5, 0.25]), np.arange(3), 5, np.random.default_rng(0))
        np.testing.assert_allclose(weights[0], np.array([1, 2, 4]) / 7)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0)

    def test_samples_of_one_unit_share_a_weight(self) -> None:
        weights = draw_weights(np.ones(4), np.array([7, 7, 3, 9]), 5, np.random.default_rng(0))
        np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
        assert (weights[1:, 2] != weights[1:, 3]).all()


class TestContrast:
    def test_it_is_least_squares_on_label_and_presence(self) -> None:
        part = drawn(tied=0.7)
        contrast = concept_contrast(part, RULER, minimum_cell=10, minimum_samples=30)
        y = np.random.default_rng(1).normal(size=240)
        columns = [part.labels == 0, part.labels == 1, *(presence.present for presence in part.presences)]
        wanted = np.linalg.lstsq(np.stack(columns, axis=1).astype(float), y, rcond=None)[0][2 + RULER]
        assert contrast.rows is not None
        assert float(contrast.rows[0] @ y) == pytest.approx(wanted, abs=1e-6)

    def test_effects_of_whole_and_parts_add_up(self) -> None:
        part = drawn()
        contrast = concept_contrast(part, RULER, minimum_cell=10, minimum_samples=30)
        assert contrast.rows is not None
        a, b = np.random.default_rng(1).normal(size=(2, 240))
        np.testing.assert_allclose(contrast.rows @ (a + b), contrast.rows @ a + contrast.rows @ b)

    def test_what_goes_with_the_label_alone_is_no_effect(self) -> None:
        part = drawn(tied=0.9)
        contrast = concept_contrast(part, RULER, minimum_cell=10, minimum_samples=30)
        assert contrast.rows is not None
        np.testing.assert_allclose(contrast.rows @ (3.0 * part.labels), 0.0, atol=1e-6)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda p: np.where(np.arange(240) < 220, -1, p.present), "known for 20 of the samples, 30 needed"),
            (lambda p: np.arange(240) % 2, "within no class"),
            (lambda p: np.zeros(240), "largest smaller group: 0"),
        ],
    )
    def test_what_cannot_be_told_has_a_reason(self, change: Any, said: str) -> None:
        part = drawn()
        presences = list(part.presences)
        presences[RULER] = presence_from_attribute(change(presences[RULER]).astype(np.int8))
        contrast = concept_contrast(
            Drawn(part.samples, part.labels, part.weights, tuple(presences)), RULER, minimum_cell=10, minimum_samples=30
        )
        assert contrast.rows is None
        assert said in str(contrast.reason)

    def test_a_concept_that_another_determines_has_none(self) -> None:
        part = drawn()
        twin = (part.presences[0], part.presences[RULER], part.presences[RULER])
        contrast = concept_contrast(
            Drawn(part.samples, part.labels, part.weights, twin), RULER, minimum_cell=10, minimum_samples=30
        )
        assert "other concepts determine" in str(contrast.reason)

    def test_presence_that_the_foundation_model_cannot_tell_has_none(self) -> None:
        part = drawn()
        own = part.presences[RULER]
        vague = Presence(own.score, own.present, own.known, own.probability, 0.5, "foundation model")
        presences = (part.presences[0], vague, part.presences[2])
        contrast = concept_contrast(
            Drawn(part.samples, part.labels, part.weights, presences), RULER, minimum_cell=10, minimum_samples=30
        )
        assert contrast.rows is None

    def test_a_concept_seen_only_vaguely_is_no_covariate(self) -> None:
        part = drawn()
        rng, ruler = np.random.default_rng(3), part.presences[RULER].present
        score = ruler + rng.normal(0, 0.3, 240)
        vague = Presence(score, score > 0.5, np.ones(240, dtype=bool), score, 0.5, "foundation model")

        def contrast(*presences: Presence) -> np.ndarray:
            found = concept_contrast(
                Drawn(part.samples, part.labels, part.weights, presences), 0, minimum_cell=10, minimum_samples=30
            )
            assert found.rows is not None
            return found.rows

        np.testing.assert_array_equal(contrast(part.presences[RULER], vague), contrast(part.presences[RULER]))


class TestAblation:
    def test_the_mediated_effect_is_what_the_components_carry(self) -> None:
        record = measured(part := drawn(), outputs(part, [2.0, 0.3, -0.1]))
        assert record.mediated.value == pytest.approx(2.0, abs=0.05)
        assert record.control_mediated == pytest.approx((0.3, -0.1), abs=0.05)
        assert record.contrast.value == pytest.approx(2.0 - 0.2, abs=0.06)
        ruler = part.presences[RULER].present
        assert record.margin.value == pytest.approx(-2.0 * ruler.mean(), abs=0.03)
        assert record.mediated.n == 240

    def test_a_negative_effect_is_compared_by_its_size(self) -> None:
        record = measured(part := drawn(), outputs(part, [-2.0, 0.3, -0.1], rest=3.0))
        assert record.mediated.value == pytest.approx(-2.0, abs=0.05)
        assert record.contrast.value == pytest.approx(1.8, abs=0.06)

    def test_control_effects_are_scaled_to_equal_relevance(self) -> None:
        record = measured(part := drawn(), outputs(part, [2.0, 0.5]), scale=3.0)
        assert record.control_mediated == pytest.approx((1.5,), abs=0.1)
        assert record.contrast.value == pytest.approx(0.5, abs=0.12)

    def test_accuracy_and_predictions_against_counting(self) -> None:
        part = drawn()
        values = outputs(part, [3.0, 0.0], noise=0.0)
        record = measured(part, values)
        right = values.argmax(axis=2) == part.labels
        turned = values[1].argmax(axis=1) != values[0].argmax(axis=1)
        assert record.accuracy.value == pytest.approx(right[1].mean() - right[0].mean())
        assert record.flips.value == pytest.approx(turned[part.presences[RULER].present].mean())
        assert record.flips.n == int(part.presences[RULER].present.sum())
        assert record.control_accuracy == (0.0,)

    def test_no_change_at_all_still_has_an_interval(self) -> None:
        part = drawn()
        values = outputs(part, [0.0, 0.0], noise=0.0)
        record = measured(part, values)
        for one in (record.accuracy, record.flips):
            assert one.value == 0.0
            assert one.interval is not None
            assert 0.0 < one.interval.high < 0.1

    def test_unequal_probabilities_are_made_up_for(self) -> None:
        part = drawn()
        ruler = part.presences[RULER].present
        probability = np.where(ruler, 1.0, 0.25)
        weights = draw_weights(probability, np.arange(240), 100, np.random.default_rng(0))
        record = measured(Drawn(part.samples, part.labels, weights, part.presences), outputs(part, [2.0, 0.0]), bootstrap=100)
        share = ruler.sum() / (ruler.sum() + 4 * (~ruler).sum())
        assert record.margin.value == pytest.approx(-2.0 * share, abs=0.03)
        assert record.mediated.value == pytest.approx(2.0, abs=0.06)

    def test_without_controls_there_is_no_contrast(self) -> None:
        record = measured(part := drawn(), outputs(part, [2.0]))
        assert record.contrast.value is None
        assert "no control set" in str(record.contrast.not_measured)
        assert record.control_mediated == ()

    def test_without_a_contrast_the_rest_is_measured(self) -> None:
        part = drawn()
        record = measure_ablation(
            synthetic.plan(), part, Contrast(None, 5, "no reason at all"), RULER, outputs(part, [2.0, 0.1]),
            method="resampling", index=1, scale=1.0, names=("a", "b", "c"),
        )  # fmt: skip
        assert record.mediated.not_measured == record.contrast.not_measured == "no reason at all"
        assert record.margin.value is not None
        assert record.control_mediated == ()
        assert len(record.control_margin) == 1

    def test_the_interval_covers_the_truth_as_often_as_it_says(self) -> None:
        hits, runs = 0, 60
        for seed in range(runs):
            part = drawn(120, seed=seed, bootstrap=200)
            interval = measured(part, outputs(part, [1.0, 0.0], noise=0.6, seed=seed), bootstrap=200).mediated.interval
            assert interval is not None
            hits += interval.low <= 1.0 <= interval.high
        assert hits / runs >= 0.88

    def test_duplicated_samples_do_not_narrow_it(self) -> None:
        once = drawn(120, bootstrap=400)
        values = outputs(once, [1.0, 0.0], noise=0.6)
        twice = np.tile(np.arange(120), 2)
        weights = draw_weights(np.ones(240), twice, 400, np.random.default_rng(1))
        double = Drawn(np.arange(240), once.labels[twice], weights, tuple(p.rows(twice) for p in once.presences))
        narrow, wide = measured(double, values[:, twice]).mediated.interval, measured(once, values).mediated.interval
        assert narrow is not None
        assert wide is not None
        assert narrow.high - narrow.low > 0.85 * (wide.high - wide.low)
