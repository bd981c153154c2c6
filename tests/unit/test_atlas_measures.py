"""Interpretability measures: against slow loops, in their documented ranges, and told where they are not defined."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from semlens_audit import cli
from semlens_audit.atlas import measures as atlas_measures
from semlens_audit.atlas.meanings import Meanings, draw_weights, recentred
from semlens_audit.atlas.measure_figures import Dot, DotRow, PairPoint, Span, dots, pair_plot
from semlens_audit.atlas.measures import QUANTITIES, layer_measures, measure_table, summarise
from semlens_audit.atlas.opening import Atlas
from semlens_audit.errors import UsageError
from semlens_audit.figures import PAPER
from semlens_audit.measured import Interval, Measurement
from semlens_audit.neighbours import best_match, drawn_redundancy, redundancy
from semlens_audit.plan import AuditPlan
from semlens_audit.polysemanticity import halves, polysemanticity, resampled_polysemanticity
from semlens_audit.scores import clarity, unit
from tests.unit import index_world as world

RNG = np.random.default_rng


def crops(components: int, m: int, d: int = 6, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    rng = RNG(seed)
    return unit(rng.normal(size=(components, 1, d)) + spread * rng.normal(size=(components, m, d)))


def two_groups(first: int, second: int, angle: float, d: int = 8) -> np.ndarray:
    """(1, first + second, d): two tight groups whose centres are `angle` apart."""
    rng, axes = RNG(1), np.eye(d)
    centres = [axes[0], np.cos(angle) * axes[0] + np.sin(angle) * axes[1]]
    rows = [centres[0]] * first + [centres[1]] * second
    return unit(np.array(rows) + 1e-3 * rng.normal(size=(first + second, d)))[None]


def slow_polysemanticity(embeddings: np.ndarray) -> tuple[float, float]:
    """Score and mean squared distance of the best of all divisions into two groups."""
    m = len(embeddings)
    best: tuple[float, float] = (np.inf, np.nan)
    for code in product((False, True), repeat=m - 1):
        first = np.array([*code, True])
        if first.all():
            continue
        groups = [embeddings[first], embeddings[~first]]
        spread = sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups) / m
        if spread >= best[0] - 1e-12:
            continue
        if min(len(group) for group in groups) < 2:
            mean = embeddings.mean(axis=0)
            score = 1 - np.mean([mean @ v / np.linalg.norm(mean) / np.linalg.norm(v) for v in embeddings])
        else:
            one, other = (group.mean(axis=0) for group in groups)
            score = 1 - max(one @ other / np.linalg.norm(one) / np.linalg.norm(other), 0.0)
        best = (spread, float(score))
    return best[1], best[0]


class TestPolysemanticity:
    @pytest.mark.parametrize("m", [4, 7, 9])
    def test_is_that_of_the_best_of_all_divisions(self, m: int) -> None:
        embeddings = crops(30, m, seed=m)
        present = np.ones((30, m), dtype=bool)
        wanted = [slow_polysemanticity(one) for one in embeddings]
        assert halves(embeddings, present).spread == pytest.approx([spread for _, spread in wanted], abs=1e-9)
        assert polysemanticity(embeddings, present) == pytest.approx([score for score, _ in wanted], abs=1e-9)

    @pytest.mark.parametrize("angle", [0.3, 1.0, 1.5])
    def test_of_two_groups_is_one_minus_the_cosine_of_their_angle(self, angle: float) -> None:
        found = polysemanticity(two_groups(4, 6, angle), np.ones((1, 10), dtype=bool))
        assert found[0] == pytest.approx(1 - np.cos(angle), abs=0.01)

    def test_stays_in_its_range_where_the_published_code_exceeds_one(self) -> None:
        """SemanticLens 0.2.1 gives 1 - cos = 1.8 for groups that point away from each other."""
        found = polysemanticity(two_groups(5, 5, 2.5), np.ones((1, 10), dtype=bool))
        assert 1 - np.cos(2.5) > 1.7
        assert found[0] == 1.0

    def test_one_outlier_makes_no_second_meaning(self) -> None:
        embeddings = two_groups(9, 1, 1.2)
        mean = embeddings[0].mean(axis=0)
        wanted = 1 - np.mean(embeddings[0] @ mean / np.linalg.norm(mean))
        assert polysemanticity(embeddings, np.ones((1, 10), dtype=bool))[0] == pytest.approx(wanted, abs=1e-9)
        assert wanted < 0.1 < 1 - np.cos(1.2)

    def test_pictures_of_one_unit_make_no_second_meaning(self) -> None:
        embeddings, present = two_groups(8, 2, 1.2), np.ones((1, 10), dtype=bool)
        units = np.array([[*range(8), 99, 99]])
        assert polysemanticity(embeddings, present)[0] > 0.6
        assert polysemanticity(embeddings, present, units)[0] < 0.2
        assert polysemanticity(embeddings, present, np.arange(10)[None]) == polysemanticity(embeddings, present)

    def test_places_without_a_sample_do_not_count(self) -> None:
        embeddings = crops(5, 6, seed=3)
        padded = np.concatenate([embeddings, np.zeros((5, 3, 6))], axis=1)
        present = np.arange(9) < 6
        found = polysemanticity(padded, np.tile(present, (5, 1)))
        assert found == pytest.approx(polysemanticity(embeddings, np.ones((5, 6), dtype=bool)), abs=1e-12)

    def test_is_not_defined_for_fewer_than_two_samples(self) -> None:
        present = np.array([[False, False, False], [True, False, False], [True, True, False]])
        found = polysemanticity(crops(3, 3), present)
        assert np.isnan(found[:2]).all()
        assert 0 <= found[2] <= 1

    def test_identical_and_opposite_samples(self) -> None:
        same = np.tile(np.eye(4)[0], (1, 5, 1))
        assert polysemanticity(same, np.ones((1, 5), dtype=bool))[0] == pytest.approx(0.0, abs=1e-9)
        opposite = np.stack([np.eye(4)[:1], -np.eye(4)[:1]], axis=1)
        assert polysemanticity(opposite, np.ones((1, 2), dtype=bool))[0] == 1.0

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 2**31), m=st.integers(2, 7), spread=st.floats(0.01, 50))
    def test_range_and_order(self, seed: int, m: int, spread: float) -> None:
        embeddings, present = crops(3, m, d=4, seed=seed, spread=spread), np.ones((3, m), dtype=bool)
        present[1, m // 2 :] = False
        found = polysemanticity(embeddings, present)
        known = found[~np.isnan(found)]
        assert ((known >= 0) & (known <= 1)).all()
        order = RNG(seed).permutation(m)
        moved = polysemanticity(embeddings[:, order], present[:, order])
        assert moved == pytest.approx(found, abs=1e-6, nan_ok=True)

    def test_does_not_depend_on_the_company(self) -> None:
        embeddings, present = crops(70, 8, seed=5), np.ones((70, 8), dtype=bool)
        alone = [polysemanticity(embeddings[k : k + 1], present[k : k + 1])[0] for k in range(70)]
        assert polysemanticity(embeddings, present).tolist() == pytest.approx(alone, abs=1e-12)

    def test_draws_with_even_weights_are_the_value(self) -> None:
        embeddings, present = crops(6, 9, seed=2), np.ones((6, 9), dtype=bool)
        weights = np.full((6, 2, 9), 1 / 9)
        drawn = resampled_polysemanticity(embeddings, present, weights)
        assert drawn == pytest.approx(np.repeat(polysemanticity(embeddings, present)[:, None], 2, axis=1), abs=1e-9)

    def test_draws_follow_the_weights(self) -> None:
        embeddings = two_groups(6, 4, 1.0)
        weights = np.array([[[1.0] * 10, [5.0] * 6 + [1.0] * 4]])
        weights /= weights.sum(axis=-1, keepdims=True)
        drawn = resampled_polysemanticity(embeddings, np.ones((1, 10), dtype=bool), weights)[0]
        # centres of tight groups do not move, whatever their weight
        assert drawn == pytest.approx(1 - np.cos(1.0), abs=0.02)


class TestRedundancy:
    def test_against_a_slow_loop(self) -> None:
        directions, known = unit(RNG(0).normal(size=(20, 5))), np.ones(20, dtype=bool)
        known[3] = False
        directions[3] = 0.0
        wanted = [
            np.nan if k == 3 else max(float(directions[k] @ directions[j]) for j in range(20) if j not in (k, 3)) for k in range(20)
        ]
        assert redundancy(directions, known) == pytest.approx(wanted, nan_ok=True)
        assert drawn_redundancy(iter([directions, directions]), known) == pytest.approx(np.array([wanted, wanted]), nan_ok=True)

    def test_a_single_component_has_none(self) -> None:
        assert np.isnan(redundancy(np.eye(3)[:1], np.ones(1, dtype=bool))).all()
        assert np.isnan(redundancy(np.zeros((4, 3)), np.zeros(4, dtype=bool))).all()
        assert np.isnan(redundancy(np.zeros((0, 3)), np.zeros(0, dtype=bool))).all()
        both = redundancy(np.array([[1.0, 0], [0.6, 0.8]]), np.ones(2, dtype=bool))
        assert both == pytest.approx([0.6, 0.6])

    def test_as_many_components_as_dimensions_are_not_transposed(self) -> None:
        """SemanticLens 0.2.1 multiplies untransposed where both numbers are the same, as 512 channels in a 512-d CLIP."""
        one, other = unit(RNG(1).normal(size=(7, 7))), unit(RNG(2).normal(size=(7, 7)))
        known = np.ones(7, dtype=bool)
        wanted = [max(float(one[k] @ other[j]) for j in range(7)) for k in range(7)]
        assert best_match(one, other, known, known)[1] == pytest.approx(wanted)
        assert best_match(one, other, known, known)[1] != pytest.approx((one @ other).max(axis=1))

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**31), components=st.integers(2, 9))
    def test_range_and_permutation(self, seed: int, components: int) -> None:
        rng = RNG(seed)
        directions, known = unit(rng.normal(size=(components, 3))), np.ones(components, dtype=bool)
        found, order = redundancy(directions, known), rng.permutation(components)
        assert ((found >= -1) & (found <= 1)).all()
        assert redundancy(directions[order], known) == pytest.approx(found[order])


def test_draws_are_moved_to_the_estimate() -> None:
    moved = recentred(np.array([0.5, 0.1]), np.array([[0.2, 0.4], [0.4, 0.4]]), np.array([2.0, 1.0]))
    assert moved == pytest.approx(np.array([[0.3, 0.1], [0.7, 0.1]]))


# -- of an index --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditPlan]:
    with world.indexed(tmp_path_factory.mktemp("measures")) as made:
        yield made


@pytest.fixture
def atlas(plan: AuditPlan) -> Iterator[Atlas]:
    with Atlas(plan) as opened:
        yield opened


class TestLayer:
    def test_values_are_those_of_the_stored_embeddings(self, atlas: Atlas) -> None:
        source, found = atlas.layers["layer3"], layer_measures(atlas, "layer3").components
        present = source.reference_ids >= 0
        means = unit(np.array([one[here].astype(np.float64).mean(axis=0) for one, here in zip(source.embeddings, present, strict=True)]))
        assert found.values["clarity"] == pytest.approx(clarity(source.embeddings, present), abs=1e-6)
        assert found.values["polysemanticity"] == pytest.approx(
            [slow_polysemanticity(one.astype(np.float64))[0] for one in source.embeddings], abs=1e-6
        )
        assert found.values["redundancy"] == pytest.approx((means @ means.T - 9 * np.eye(len(means))).max(axis=1), abs=1e-6)
        for name, draws in found.draws.items():
            assert draws.mean(axis=0) == pytest.approx(found.values[name], abs=1e-5)
            assert draws.shape == (100, 6)

    def test_a_dead_component_has_no_measure(self, atlas: Atlas) -> None:
        """SemanticLens 0.2.1 gives a dead unit clarity 1: all its examples are the last image."""
        found = layer_measures(atlas, "layer1").components
        assert atlas.layers["layer1"].dead.tolist() == [False, True, False, False]
        for values in found.values.values():
            assert np.isnan(values[1])
            assert np.isfinite(values[[0, 2, 3]]).all()

    def test_means_and_intervals(self, atlas: Atlas) -> None:
        found = layer_measures(atlas, "layer1")
        share = atlas.shares("layer1").mean(axis=0)
        known = [0, 2, 3]
        for quantity, (low, high) in QUANTITIES.items():
            values = found.components.values[quantity][known]
            plain, wide = summarise(atlas, "layer1", quantity, found.components)
            assert plain.value == pytest.approx(values.mean())
            assert plain.n == 3
            assert plain.interval is not None
            assert wide is not None
            assert low <= plain.interval.low <= plain.value <= plain.interval.high <= high
            assert wide.high - wide.low > 0
            rows = [row for row in measure_table([atlas], layer="layer1").rows if row.quantity == quantity]
            assert [row.weighting for row in rows] == [None, "all audited classes"]
            assert rows[1].measurement.value == pytest.approx((values * share[known]).sum() / share[known].sum(), abs=1e-6)
            assert [row.dead for row in rows] == [1, 1]

    def test_what_is_not_defined_is_said(self, atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
        nowhere = np.full(4, np.nan)
        for quantity in QUANTITIES:
            measures = atlas_measures.ComponentMeasures({quantity: nowhere}, {quantity: np.full((9, 4), np.nan)})
            found, wide = summarise(atlas, "layer1", quantity, measures)
            assert found.value is None
            assert found.not_measured is not None
            assert wide is None
        values = np.array([0.5, np.nan, 0.5, 0.5])
        measures = atlas_measures.ComponentMeasures({"clarity": values}, {"clarity": np.tile(values, (9, 1))})
        found, _ = summarise(atlas, "layer1", "clarity", measures, (np.eye(4)[1], np.tile(np.eye(4)[1], (9, 1))))
        assert found.not_measured == "the components that it is defined for carry no relevance"

    @pytest.mark.parametrize(("alive", "references"), [((), 5), ((0,), 5), ((0, 2), 5), ((0, 2), 1)])
    def test_layers_of_few_components(self, atlas: Atlas, alive: tuple[int, ...], references: int) -> None:
        meanings = Meanings(atlas, "layer1", draw_weights(atlas.plan))
        keep = np.isin(np.arange(4), alive)
        meanings.present = meanings.present & keep[:, None] & (np.arange(meanings.present.shape[1]) < references)
        meanings.counts = meanings.present.sum(axis=1).astype(np.float64)
        meanings.known, meanings.dead = keep, ~keep
        found = atlas_measures.measure_components(meanings)
        assert np.isfinite(found.values["redundancy"]).tolist() == (keep & (len(alive) > 1)).tolist()
        for quantity in ("clarity", "polysemanticity"):
            assert np.isfinite(found.values[quantity]).tolist() == (keep & (references > 1)).tolist()

    def test_unknown_names(self, atlas: Atlas) -> None:
        for settings_, slug in (({"layer": "layer9"}, "unknown-layer"), ({"class_name": "wart"}, "unknown-class")):
            with pytest.raises(UsageError) as caught:
                measure_table([atlas], **settings_)
            assert caught.value.slug == slug

    def test_rows_do_not_depend_on_their_company(self, atlas: Atlas) -> None:
        both = measure_table([atlas]).rows
        assert measure_table([atlas], layer="layer3").rows == tuple(row for row in both if row.layer == "layer3")
        assert measure_table([atlas, atlas]).remarks == ()


class TestVerb:
    def test_table_json_and_page(self, plan: AuditPlan, tmp_path: Path) -> None:
        page = tmp_path / "measures.html"
        runner = CliRunner(env={"COLUMNS": "200"})
        shown = runner.invoke(cli.app, ["measures", plan.audit_file, "--class", "nevus", "--html", str(page)])
        assert shown.exit_code == 0, shown.output
        assert "polysemanticity" in shown.output
        assert "1 dead" in shown.output
        text = page.read_text()
        assert text.count("<svg") == 3
        assert 'role="img" aria-label="Clarity with intervals: layer1 ' in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        told = runner.invoke(cli.app, ["measures", plan.audit_file, "--json"])
        values = json.loads(told.stdout)
        assert values["schema_version"] == 1
        assert len(values["rows"]) == 12
        assert {row["quantity"] for row in values["rows"]} == set(QUANTITIES)

    def test_a_missing_folder_for_the_page_is_said(self, plan: AuditPlan, tmp_path: Path) -> None:
        shown = CliRunner().invoke(cli.app, ["measures", plan.audit_file, "--html", str(tmp_path / "no" / "page.html")])
        assert shown.exit_code == 2
        assert "page-not-written" in shown.output


class TestFigures:
    def test_dots_say_what_is_not_measured(self) -> None:
        known = Measurement(quantity="clarity", unit="cosine", value=0.5, n=3, interval=Interval(low=0.4, high=0.6, level=0.95, method="x"))
        none = Measurement(quantity="clarity", unit="cosine", n=0, not_measured="all <dead>")
        made = dots([DotRow("a", (Dot(known), Dot(none)), 0.3)], Span.holding("cosine", [0.3, 0.6]), PAPER, "Two values.")
        assert "not measured: all &lt;dead&gt;" in made.svg
        assert made.svg.count("<circle") == 1

    @pytest.mark.parametrize(
        ("values", "ends"), [([0.31, 0.58], (0.3, 0.6)), ([0.98, 1.0], (0.98, 1.0)), ([], (0.0, 1.0)), ([0.5], (0.5, 0.51))]
    )
    def test_axes_hold_their_values(self, values: list[float], ends: tuple[float, float]) -> None:
        span = Span.holding("cosine", values)
        assert (span.low, span.high) == pytest.approx(ends)
        assert 2 <= len(span.ticks()) <= 8

    def test_pairs(self) -> None:
        made = pair_plot([PairPoint(0.1, 0.2, "valid", False), PairPoint(0.0, 0.0, "unexplained", True)], ("a", "b"), PAPER, "Pairs.")
        assert made.svg.count("<circle") == 2
        assert pair_plot([], ("a", "b"), PAPER, "None.").svg.count("<circle") == 0
