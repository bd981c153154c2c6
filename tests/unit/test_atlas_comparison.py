"""Layers held against each other: pairs, what was learned and lost, changes; against slow loops and constructed truths."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from semlens_audit import cli, index
from semlens_audit.atlas import held, judged, matching
from semlens_audit.atlas.compared import Comparison, LayerComparison
from semlens_audit.atlas.comparison import compare, compare_layers, require_comparable
from semlens_audit.atlas.comparison_words import sentences, side_name
from semlens_audit.atlas.matching import Chance, beyond_chance, chance_clarity, chance_matches, one_to_one
from semlens_audit.atlas.meanings import Meanings, draw_weights
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.shifts import Counted, common_concepts, firm, kin, meant, shifts
from semlens_audit.errors import UsageError
from semlens_audit.neighbours import best_match, drawn_matches
from semlens_audit.plan import AuditPlan
from semlens_audit.scores import clarity, unit
from tests.unit import index_world as world

RNG = np.random.default_rng


def free(count: int, level: float = -1.0) -> Chance:
    """Components of which every one may be paired."""
    return Chance(np.zeros(count), np.full(count, level), np.ones(count, dtype=bool))


def no_kinds(first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(first, dtype=np.int64), np.zeros(second, dtype=np.int64)


class TestChance:
    def test_matches_of_random_sets_against_a_slow_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(matching, "SETS", 30)
        pool, other = unit(RNG(0).normal(size=(12, 4))), unit(RNG(1).normal(size=(3, 4)))
        centre = pool.mean(axis=0)
        found = chance_matches(pool, centre, other, np.array([5, 2, 5]), RNG(7))
        rng, wanted = RNG(7), {}
        for size in (2, 5):
            sets = rng.integers(12, size=(30, size))
            wanted[size] = sorted(max(float(unit(pool[one].mean(axis=0) - centre) @ row) for row in other) for one in sets)
        assert set(found) == {2, 5}
        assert found[2] == pytest.approx(wanted[2])
        assert found[5] == pytest.approx(wanted[5])

    def test_clarity_of_random_sets_counts_a_crop_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(matching, "SETS", 20)
        pool = unit(RNG(0).normal(size=(50, 4)))
        found = chance_clarity(pool, np.array([3, 1]), RNG(3))
        assert set(found) == {3}
        sets = RNG(3).integers(50, size=(20, 3))
        wanted = [clarity(pool[one][None], np.ones((1, 3), dtype=bool))[0] for one in sets if len(set(one.tolist())) == 3]
        assert all(np.isclose(found[3], value).any() for value in wanted)

    def test_significance_is_by_benjamini_and_hochberg(self) -> None:
        null = {4: np.linspace(0.0, 0.98, 99)}
        values, sizes = np.array([0.99, 0.97, 0.5, np.nan]), np.array([4, 4, 4, 4])
        found = beyond_chance(values, sizes, null, 0.05)
        assert found.p == pytest.approx([0.01, 0.03, (1 + 49) / 100, 1.0], abs=0.011)
        assert found.significant.tolist() == [True, True, False, False]
        assert np.isnan(found.level[3])
        assert 0.9 < found.level[0] <= 0.97
        assert not beyond_chance(np.full(2, np.nan), sizes[:2], null, 0.05).significant.any()

    def test_the_level_is_what_has_to_be_exceeded(self) -> None:
        ordered = np.sort(RNG(0).normal(size=999))
        for tail in (0.5, 0.05, 0.01, 0.001):
            level = matching._level(ordered, tail)
            above = np.nextafter(level, np.inf)
            assert (1 + (ordered >= above).sum()) / 1000 <= tail + 1e-12
            assert (1 + (ordered >= level).sum()) / 1000 > tail
        assert matching._level(ordered, 1e-9) == ordered[-1]


class TestOneToOne:
    def test_is_the_best_of_all_assignments(self) -> None:
        for seed in range(6):
            one, other = unit(RNG(seed).normal(size=(5, 4))), unit(RNG(seed + 50).normal(size=(5, 4)))
            level, cosine = 0.2, one @ other.T
            best = max(
                sum(max(float(cosine[i, j]) - level, 0.0) for i, j in enumerate(order)) for order in permutations(range(5))
            )
            left, right = one_to_one(one, other, free(5, level), free(5, level), no_kinds(5, 5))
            assert (cosine[left, right] > level - 1e-5).all()
            assert (cosine[left, right] - level).sum() == pytest.approx(best, abs=1e-4)
            assert len(set(right.tolist())) == len(right)

    def test_permuted_components_find_themselves(self) -> None:
        directions, order = unit(RNG(0).normal(size=(40, 8))), RNG(1).permutation(40)
        left, right = one_to_one(directions, directions[order], free(40, 0.5), free(40, 0.5), no_kinds(40, 40))
        assert left.tolist() == list(range(40))
        assert order[right].tolist() == list(range(40))

    def test_sizes_may_differ_and_nothing_may_be_left(self) -> None:
        one, other = np.eye(4)[:1], np.eye(4)
        assert [side.tolist() for side in one_to_one(one, other, free(1, 0.5), free(4, 0.5), no_kinds(1, 4))] == [[0], [0]]
        assert [side.tolist() for side in one_to_one(other, one, free(4, 0.5), free(1, 0.5), no_kinds(4, 1))] == [[0], [0]]
        nobody = Chance(np.ones(4), np.full(4, np.nan), np.zeros(4, dtype=bool))
        assert [side.tolist() for side in one_to_one(one, other, free(1), nobody, no_kinds(1, 4))] == [[], []]
        assert [len(side) for side in one_to_one(np.zeros((0, 4)), other, free(0), free(4), no_kinds(0, 4))] == [0, 0]

    def test_the_same_kind_comes_first(self) -> None:
        angle = np.array([0.0, 0.1])
        one = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        kinds = (np.array([0, 1]), np.array([1, 0]))
        left, right = one_to_one(one, one, free(2, 0.5), free(2, 0.5), kinds)
        assert right[np.argsort(left)].tolist() == [1, 0]

    def test_of_equally_similar_ones_the_equally_relevant_are_paired(self) -> None:
        same = np.tile(np.eye(3)[0], (3, 1))
        shares = np.array([0.1, 0.5, 0.3])
        left, right = one_to_one(same, same, free(3, 0.5), free(3, 0.5), no_kinds(3, 3), (shares, shares[[2, 0, 1]]))
        assert dict(zip(left.tolist(), right.tolist(), strict=True)) == {0: 1, 1: 2, 2: 0}


def test_drawn_matches_against_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from semlens_audit import neighbours

    monkeypatch.setattr(neighbours, "_ROWS", 2)
    rng = RNG(0)
    draws = [(rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=(4, 6)).astype(np.float32)) for _ in range(3)]
    centres, pairs = (rng.normal(size=6), rng.normal(size=6)), (np.array([0, 2, 4]), np.array([3, 0, 1]))
    found = drawn_matches(iter(draws), centres, pairs)
    for at, (one, other) in enumerate(draws):
        plain = np.array([[float(unit(a) @ unit(b)) for b in other] for a in one])
        centred = np.array([[float(unit(a - centres[0]) @ unit(b - centres[1])) for b in other] for a in one])
        assert found.forth[at] == pytest.approx(plain.max(axis=1), abs=1e-5)
        assert found.back[at] == pytest.approx(plain.max(axis=0), abs=1e-5)
        assert found.forth_centred[at] == pytest.approx(centred.max(axis=1), abs=1e-5)
        assert found.back_centred[at] == pytest.approx(centred.max(axis=0), abs=1e-5)
        assert found.pairs[at] == pytest.approx(centred[pairs], abs=1e-5)


class TestShifts:
    def side(self, *rows: tuple[float, float], spread: float = 0.0, seed: int = 0) -> Counted:
        weights = np.array(rows)
        noise = np.clip(weights + spread * RNG(seed).normal(size=(99, *weights.shape)), 0, 0.5)
        return Counted(weights, noise if spread else np.tile(weights, (99, 1, 1)))

    def test_another_concept_beyond_noise(self) -> None:
        first, second = self.side((0.9, 0.0), (0.9, 0.0), (0.1, 0.1)), self.side((0.0, 0.9), (0.8, 0.1), (0.1, 0.1))
        pairs = (np.arange(3), np.arange(3))
        found = shifts(first, second, pairs, ["ruler", "border"], 0.1)
        assert [(one.first, one.second, one.shifted) for one in found] == [
            ("ruler", "border", True), ("ruler", "ruler", False), (None, None, False)
        ]  # fmt: skip
        assert shifts(first, second, (np.empty(0, int), np.empty(0, int)), ["ruler", "border"], 0.1) == []

    def test_another_concept_within_noise_is_no_shift(self) -> None:
        first, second = self.side((0.5, 0.4), spread=0.4), self.side((0.4, 0.5), spread=0.4, seed=1)
        (found,) = shifts(first, second, (np.array([0]), np.array([0])), ["ruler", "border"], 0.05)
        assert (found.first, found.second, found.shifted) == ("ruler", "border", False)
        assert not firm(first, 0.95)[0]
        assert firm(self.side((0.9, 0.0)), 0.95)[0]

    def test_kin_are_similar_and_of_the_same_kind(self) -> None:
        one, other = np.eye(3), np.eye(3)
        kinds = (np.array([0, 1, 2]), np.array([0, 0, 0]))
        half, high = np.full(3, 0.5), np.full(3, 1.5)
        assert [found.tolist() for found in kin(one, other, (half, half), kinds, 2)] == [[True] * 3, [True, False, True]]
        for levels in ((high, half), (half, high)):
            assert not np.any(kin(one, other, levels, kinds, 2))
        assert meant(self.side((0.2, 0.7), (0.1, 0.1))).tolist() == [1, 2]


# -- of indexes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, AuditPlan]]:
    """One world; the same network, another, the same with permuted channels, and the same on other data, in one store."""
    from safetensors.torch import load_file, save_file

    with world.quick(400):
        folder = world.write_world(tmp_path_factory.mktemp("comparison"), dead=1)
        world.write_subject(folder / "other.safetensors", seed=5)
        world.write_images(folder / "images2", samples=12, seed=8)
        state = load_file(folder / "small.safetensors")
        save_file(permuted(state, [2, 0, 3, 1]), folder / "permuted.safetensors")

        def audit(name: str, **more: object) -> AuditPlan:
            values = world.audit(audit=name, layers=["layer1"]) | more
            (folder / f"{name}.yaml").write_text(json.dumps(values))
            return world.plan(folder, values).model_copy(update={"audit_file": str(folder / f"{name}.yaml")})

        def subject(weights: str) -> dict[str, object]:
            own = world.audit()["subject"]
            return {**own, "model": {**own["model"], "weights": weights}}

        made = {
            "one": audit("one", layers=["layer1", "layer3"]),
            "other": audit("other", subject=subject("other.safetensors")),
            "permuted": audit("permuted", subject=subject("permuted.safetensors")),
            "elsewhere": audit(
                "elsewhere",
                data={"source": "folder", "path": "images2"},
                measurement=world.audit()["measurement"] | {"reference_samples": 3},
            ),
        }
        for plan in made.values():
            index.build(plan)
        yield made


def permuted(state: dict, order: list[int]) -> dict:
    """The same network with the output channels of its first stage in another order."""
    out = dict(state)
    for name, value in state.items():
        if name.startswith("layer1") and value.ndim:
            moved = value[order]
            out[name] = moved[:, order] if moved.ndim == 4 and moved.shape[1] == len(order) else moved
        elif name in ("layer2.0.conv1.weight", "layer2.0.downsample.0.weight"):
            out[name] = value[:, order]
    return {name: value.contiguous() for name, value in out.items()}


@pytest.fixture
def opened(plans: dict[str, AuditPlan]) -> Iterator[dict[str, Atlas]]:
    atlases = {name: Atlas(plan) for name, plan in plans.items()}
    yield atlases
    for atlas in atlases.values():
        atlas.close()


def state_counts(found: LayerComparison, side: str) -> dict[str, int]:
    return {row.state: row.components for row in found.shares if row.side == side and row.components}


class TestSelf:
    def test_an_audit_against_itself_is_all_matched_and_unchanged(self, opened: dict[str, Atlas], plans: dict[str, AuditPlan]) -> None:
        with Atlas(plans["one"]) as again:
            found = compare(opened["one"], again)
        for layer in found.layers:
            alive = layer.first.known
            assert [(pair.first, pair.second) for pair in layer.pairs] == [
                (k, k) for k in range(layer.first.components) if not (layer.first.layer == "layer1" and k == 1)
            ]
            assert not layer.singles
            assert [row.measurement.value for row in layer.similarities] == pytest.approx([1.0] * 8)
            assert all(row.measurement.interval and row.measurement.interval.low > 1 - 1e-5 for row in layer.similarities)
            assert not any(pair.changed or pair.shifted for pair in layer.pairs)
            assert all(pair.change and pair.change.value == 0 and pair.mutual for pair in layer.pairs)
            assert state_counts(layer, "first") == state_counts(layer, "second") == {"matched": alive}
            assert not any(row.changed for row in layer.concept_shares)
        assert found.remarks == ("Both audits are of the same weights.",)
        assert found.class_name == "melanoma"

    def test_permuted_channels_find_their_own(self, opened: dict[str, Atlas]) -> None:
        found = compare_layers(opened["one"], "layer1", opened["permuted"], "layer1", "melanoma")
        assert {pair.second: pair.first for pair in found.pairs} == {0: 2, 1: 0, 2: 3}
        assert [pair.similarity for pair in found.pairs] == pytest.approx([1.0] * 3, abs=0.05)
        assert not any(pair.changed for pair in found.pairs)
        assert (found.first.dead, found.second.dead) == (1, 1)
        assert not found.singles


class TestTwoNetworks:
    @pytest.fixture
    def found(self, opened: dict[str, Atlas]) -> LayerComparison:
        return compare_layers(opened["one"], "layer1", opened["other"], "layer1", "nevus")

    def test_set_similarity_against_a_slow_loop(self, opened: dict[str, Atlas], found: LayerComparison) -> None:
        thetas = {}
        for name in ("one", "other"):
            layer = opened[name].layers["layer1"]
            alive = np.flatnonzero(~layer.dead)
            thetas[name] = (alive, layer.embeddings[alive].astype(np.float64).mean(axis=1), layer.null_embeddings.mean(axis=0))
        for row in found.similarities:
            own, against = ("one", "other") if row.of == "first" else ("other", "one")
            shift = 1.0 if row.origin == "centre" else 0.0
            alive, mine, centre = thetas[own]
            _, theirs, far = thetas[against]
            best = [max(float(unit(a - shift * centre) @ unit(b - shift * far)) for b in theirs) for a in mine]
            share = opened[own].shares("layer1")[1][alive] if row.weighting == "nevus" else np.ones(len(alive))
            assert row.measurement.value == pytest.approx(float(np.average(best, weights=share)), abs=1e-5)
            interval = row.measurement.interval
            assert interval is not None
            assert -1 <= interval.low <= row.measurement.value <= interval.high <= 1

    def test_every_live_component_has_exactly_one_state(self, found: LayerComparison) -> None:
        for side, own in (("first", found.first), ("second", found.second)):
            assert sum(state_counts(found, side).values()) == own.known
            paired = {pair.first if side == "first" else pair.second for pair in found.pairs}
            alone = {single.component for single in found.singles if single.side == side}
            assert not paired & alone
            assert len(paired | alone) == own.known
            shares = [row.share.value for row in found.shares if row.side == side and row.share is not None]
            assert sum(value or 0.0 for value in shares) == pytest.approx(1.0, abs=1e-5)

    def test_changes_are_paired_on_the_same_samples(self, opened: dict[str, Atlas], found: LayerComparison) -> None:
        assert found.paired_samples
        one, other = opened["one"].shares("layer1")[1], opened["other"].shares("layer1")[1]
        for pair in found.pairs:
            assert pair.change is not None
            assert pair.change.value == pytest.approx(other[pair.second] - one[pair.first], abs=1e-6)
            assert pair.change.interval is not None
            assert "both sides together" in pair.change.interval.method

    def test_concepts_add_up(self, found: LayerComparison) -> None:
        assert [row.concept for row in found.concept_shares] == ["ruler", "border", None]
        for side in ("first", "second"):
            assert sum(getattr(row, side).value for row in found.concept_shares) == pytest.approx(1.0, abs=1e-5)

    def test_is_the_same_when_asked_again_and_mirrored(self, opened: dict[str, Atlas], found: LayerComparison) -> None:
        assert compare_layers(opened["one"], "layer1", opened["other"], "layer1", "nevus") == found
        back = compare_layers(opened["other"], "layer1", opened["one"], "layer1", "nevus")
        assert [row.measurement.value for row in back.similarities if row.of == "first"] == pytest.approx(
            [row.measurement.value for row in found.similarities if row.of == "second"]
        )


class TestOtherData:
    def test_is_compared_independently_and_said(self, opened: dict[str, Atlas]) -> None:
        found = compare(opened["one"], opened["elsewhere"])
        (layer,) = found.layers
        assert not layer.paired_samples
        assert [(layer.first.reference_samples, layer.second.reference_samples)] == [(5, 3)]
        said = " ".join(found.remarks)
        assert "different data" in said
        assert "reference_samples`: 5 and 3" in said
        for pair in layer.pairs:
            assert pair.change is not None
            assert pair.change.interval is not None
            assert "each side on its own" in pair.change.interval.method


class TestStates:
    """A component is judged by what stands beside it."""

    @pytest.mark.parametrize(
        ("similarity", "spread", "clear", "near", "same", "sure", "state"),
        [
            (0.9, 0.01, True, True, True, True, "shared"),
            (0.9, 0.01, True, False, False, True, "open"),
            (0.9, 0.01, True, True, False, True, "learned"),
            (0.9, 0.01, True, True, False, False, "open"),
            (0.2, 0.01, True, False, False, True, "learned"),
            (0.2, 0.01, False, False, False, True, "open"),
            (0.49, 0.2, True, False, False, True, "open"),
            (np.nan, 0.0, True, False, False, True, "learned"),
        ],
    )
    def test_of_a_single_component(
        self, opened: dict[str, Atlas], similarity: float, spread: float, *, clear: bool, near: bool, same: bool, sure: bool,
        state: str
    ) -> None:
        plan = opened["one"].plan
        meanings = Meanings(opened["one"], "layer1", draw_weights(plan))
        count = meanings.components
        side = held.Held(
            meanings, np.zeros((count, 2)), np.full(count, 5), np.full(count, 3), np.full(count, similarity), np.zeros(count),
            Chance(np.ones(count), np.full(count, 0.5), np.zeros(count, dtype=bool)),
            Chance(np.ones(count), np.zeros(count), np.full(count, clear)), (None, None), None,
        )  # fmt: skip
        told = judged.Told([None] * count, *(np.full(count, one) for one in (near, same, sure)))
        drawn = similarity + spread * RNG(0).normal(size=(100, count))
        found = judged.judge(plan, "second", side, drawn, np.array([0]), told)
        assert [single.component for single in found] == [2, 3]
        assert {single.state for single in found} == {state}
        assert all(single.reason for single in found)

    def test_layers_without_a_live_component(self, opened: dict[str, Atlas], monkeypatch: pytest.MonkeyPatch) -> None:
        atlas = opened["other"]
        layer = atlas.layers["layer1"]
        monkeypatch.setattr(type(layer), "__setattr__", object.__setattr__)
        layer.dead = np.ones(4, dtype=bool)
        layer.reference_ids = np.full_like(layer.reference_ids, -1)
        found = compare_layers(opened["one"], "layer1", atlas, "layer1", "melanoma")
        assert not found.pairs
        assert found.second.known == 0
        assert {single.state for single in found.singles} <= {"lost", "open"}
        assert all(row.measurement.not_measured for row in found.similarities)
        assert any("nothing in it can be compared" in sentence for sentence in sentences(found))


class TestRefusals:
    def test_other_foundation_models_are_refused_with_the_way_out(self, plans: dict[str, AuditPlan], tmp_path: Path) -> None:
        folder = Path(plans["one"].audit_file).parent
        world.write_clip(folder / "clip2", seed=4)
        values = world.audit(audit="apart", foundation_model={"source": "open_clip", "name": "clip2"})
        (folder / "apart.yaml").write_text(json.dumps(values))
        other = world.plan(folder, values).model_copy(update={"audit_file": str(folder / "apart.yaml")})
        with pytest.raises(UsageError) as caught:
            require_comparable(plans["one"], other)
        (problem,) = caught.value.problems
        assert problem.slug == "other-foundation-model"
        assert "`foundation_model` (source, name, weights, arguments, preprocessing)" in problem.hint
        assert "semlens-audit index" in problem.hint
        shown = CliRunner().invoke(cli.app, ["compare", plans["one"].audit_file, other.audit_file])
        assert shown.exit_code == 2

    def test_names(self, opened: dict[str, Atlas]) -> None:
        one, other = opened["one"], opened["other"]
        for more, slug in (
            ({"layer": "layer9"}, "unknown-layer"),
            ({"layer": "layer3"}, "unknown-layer"),
            ({"class_name": "wart"}, "unknown-class"),
        ):
            with pytest.raises(UsageError) as caught:
                compare(one, other, **more)
            assert caught.value.slug == slug

    def test_common_concepts_are_those_defined_alike(self, plans: dict[str, AuditPlan]) -> None:
        one = plans["one"]
        assert common_concepts(one, one) == ["ruler", "border"]
        spec = world.spec()
        spec["concepts"][0]["descriptions"] = ["a ruler"]
        assert common_concepts(one, world.plan(Path(one.audit_file).parent, spec_values=spec)) == ["border"]
        assert common_concepts(one, world.plan(Path(one.audit_file).parent, spec_values=world.spec(templates=["{}"]))) == []


class TestVerb:
    def test_table_json_and_page(self, plans: dict[str, AuditPlan], tmp_path: Path) -> None:
        page = tmp_path / "compare.html"
        runner = CliRunner(env={"COLUMNS": "180"})
        files = [plans["one"].audit_file, plans["other"].audit_file]
        shown = runner.invoke(cli.app, ["compare", *files, "--html", str(page), "--top", "2"])
        assert shown.exit_code == 0, shown.output
        assert "layer1 of one against layer1 of other" in shown.output
        assert "set similarity" in shown.output
        text = page.read_text()
        assert "<h1>one and other</h1>" in text
        ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
        assert len(ids) == len(set(ids))
        told = runner.invoke(cli.app, ["compare", *files, "--json"])
        found = Comparison.model_validate_json(told.stdout)
        assert (found.schema_version, found.files, found.portraits) == (2, (), ())
        assert found.layers[0].first.stages.keys() >= {"foundation", "probes", "crops:layer1", "relevance:layer1"}

    def test_two_layers_of_one_audit(self, plans: dict[str, AuditPlan], tmp_path: Path) -> None:
        runner, page = CliRunner(), tmp_path / "layers.html"
        alone = runner.invoke(cli.app, ["compare", plans["one"].audit_file])
        assert alone.exit_code == 2
        assert "one-audit" in alone.output
        told = runner.invoke(
            cli.app,
            ["compare", plans["one"].audit_file, "--layer", "layer1", "--other-layer", "layer3", "--json", "--html", str(page)],
        )
        assert told.exit_code == 0, told.output
        (layer,) = json.loads(told.stdout)["layers"]
        assert (layer["first"]["layer"], layer["second"]["layer"]) == ("layer1", "layer3")
        found = LayerComparison.model_validate(layer)
        assert side_name(found, "first") == "layer1"
        ids = [part.split('"')[0] for part in page.read_text().split(' id="')[1:]]
        assert len(ids) == len(set(ids))

    def test_without_an_index(self, plans: dict[str, AuditPlan], tmp_path: Path) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(Path(plans["one"].audit_file).parent, folder, ignore=shutil.ignore_patterns("store*"))
        shown = CliRunner().invoke(cli.app, ["compare", str(folder / "one.yaml"), str(folder / "other.yaml")])
        assert shown.exit_code == 4
        assert "store-missing" in shown.output


def test_best_match_without_others() -> None:
    place, cosine = best_match(np.eye(2), np.zeros((0, 2)), np.ones(2, dtype=bool), np.ones(0, dtype=bool))
    assert place.tolist() == [-1, -1]
    assert np.isnan(cosine).all()
