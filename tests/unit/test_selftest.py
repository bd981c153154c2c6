"""Repeating an audit: halves of the data, evidence restricted to them, what turns, and the command."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from semlens_audit import engine, selftest
from semlens_audit.checks import quantities
from semlens_audit.cli import app
from semlens_audit.data import open_data
from semlens_audit.errors import ExitCode
from semlens_audit.evidence import LayerEvidence
from semlens_audit.halves import halves, part, restricted
from semlens_audit.measure import measure
from semlens_audit.plan import Criterion
from semlens_audit.progress import SilentProgress
from semlens_audit.records import SensitivityChange, State
from semlens_audit.selftest import Kind, Rate, Repeat, SelfTest
from semlens_audit.selftest_screen import print_selftest
from semlens_audit.store import Store
from tests.unit import index_world as world
from tests.unit import synthetic


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    with world.quick():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = world.write_world(tmp_path_factory.mktemp("selftest"))
    values = world.audit(layers=["layer3"])
    values["measurement"] |= {"intervention": "none", "minimum_samples": 4, "minimum_counterexamples": 2}
    (place / "audit.yaml").write_text(json.dumps(values))
    spec = world.spec()
    more = {"id": "unexplained", "kind": "unexplained_relevance", "concepts": [], "criterion": {"at_most": 0.5}}
    (place / "spec.yaml").write_text(json.dumps(spec | {"checks": [*spec["checks"], spec["checks"][0] | more]}))
    return place


class TestHalves:
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=2, max_size=60), st.integers(0, 5))
    @settings(max_examples=60, deadline=None)
    def test_every_sample_once_and_no_unit_divided(self, rows: list[tuple[int, int]], seed: int) -> None:
        labels, units = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        first, second = halves(labels, units, np.random.default_rng(seed))
        assert sorted([*first, *second]) == list(range(len(rows)))
        assert not set(units[first]) & set(units[second])

    @given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
    @settings(max_examples=40, deadline=None)
    def test_each_class_is_halved(self, a: int, b: int, seed: int) -> None:
        labels = np.repeat([0, 1], [a, b])
        first, second = halves(labels, np.arange(a + b), np.random.default_rng(seed))
        for label in (0, 1):
            assert abs(int((labels[first] == label).sum()) - int((labels[second] == label).sum())) <= 1

    def test_another_seed_divides_otherwise(self) -> None:
        labels, units = np.tile([0, 1], 50), np.arange(100)
        drawn = [halves(labels, units, np.random.default_rng(seed))[0].tolist() for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_a_part_is_a_data_set_of_its_own(self, folder: Path) -> None:
        plan = world.plan(folder)
        data = replace(open_data(plan), groups=np.arange(world.SAMPLES) // 2)
        rows = np.array([1, 4, 5, 11])
        some = part(data, rows)
        assert [sample.id for sample in some.samples] == [0, 1, 2, 3]
        assert [sample.path for sample in some.samples] == [data.samples[row].path for row in rows]
        assert some.groups is not None
        assert some.groups.tolist() == [0, 1, 1, 2]
        assert some.attributes is not None
        assert data.attributes is not None
        assert some.attributes["ruler"].tolist() == data.attributes["ruler"][rows].tolist()
        assert some.sha256 not in (data.sha256, part(data, rows[:3]).sha256)
        assert part(data, np.arange(world.SAMPLES)).sha256 == data.sha256


class TestRestricted:
    def test_references_are_the_first_stored_ones_among_the_rows(self) -> None:
        evidence = synthetic.evidence({"ruler": 0.5, None: 0.5}, samples=20)
        rng = np.random.default_rng(0)
        layer = evidence.layers[0]
        ids = np.stack([rng.permutation(20)[:12] for _ in range(12)])
        ids[3, 7:] = -1
        samples = rng.integers(0, 20, 600)
        layer = replace(layer, reference_ids=ids, null_samples=samples)
        rows = np.array([0, 2, 3, 7, 8, 11, 13, 17, 19])
        some = restricted(replace(evidence, layers=(layer,)), rows, 4)
        (got,) = some.layers
        assert some.labels.tolist() == evidence.labels[rows].tolist()
        for component in range(12):
            wanted = [rank for rank in range(12) if ids[component, rank] in rows][:4]
            count = len(wanted)
            assert got.reference_ids[component].tolist() == [
                *(rows.tolist().index(ids[component, rank]) for rank in wanted),
                *[-1] * (4 - count),
            ]
            np.testing.assert_array_equal(got.embeddings[component, :count], layer.embeddings[component, wanted])
            assert not got.embeddings[component, count:].any()
            assert not got.activations[component, count:].any()
        inside = np.isin(samples, rows)
        np.testing.assert_array_equal(got.null_embeddings, layer.null_embeddings[inside])
        assert got.null_samples is not None
        np.testing.assert_array_equal(rows[got.null_samples], samples[inside])
        np.testing.assert_array_equal(got.relevance, layer.relevance[rows])
        assert {field.name for field in fields(LayerEvidence)} <= {*vars(got), "relevance"}
        for half, whole in zip(got.relevance_blocks(np.zeros(len(rows), dtype=np.int64)), [(np.arange(len(rows)), rows)], strict=True):
            np.testing.assert_array_equal(half[0], whole[0])
            np.testing.assert_array_equal(half[1], layer.relevance[whole[1], 0])

    def test_all_rows_restrict_nothing(self) -> None:
        plan, evidence = synthetic.plan(), synthetic.evidence({"ruler": 0.3, "border": 0.2, None: 0.5})
        whole = measure(plan, evidence, quantities(plan))
        assert measure(plan, restricted(evidence, np.arange(200), 12), quantities(plan)) == whole


@pytest.fixture(scope="module")
def result(folder: Path) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["selftest", str(folder / "audit.yaml"), "--repeats", "2", "--json", "--quiet"])
    return done.exit_code, json.loads(done.stdout)


class TestWhole:
    def test_identical_input_gives_the_same_to_the_bit(self, result: tuple[int, dict[str, Any]]) -> None:
        _, values = result
        assert values["identical"] is True
        same = [repeat for repeat in values["repeats"] if repeat["differs"] is not None]
        assert [repeat["kind"] for repeat in same] == ["measured again", "index rebuilt"]
        assert same[0]["digest"] == same[1]["digest"]
        assert not any(repeat["differs"] or repeat["changes"] for repeat in same)

    def test_halves_have_an_index_and_seeds_of_their_own(self, result: tuple[int, dict[str, Any]]) -> None:
        code, values = result
        resampled = [repeat for repeat in values["repeats"] if repeat["differs"] is None]
        assert [(repeat["kind"], repeat["seed"]) for repeat in resampled] == [
            ("other draws", 4),
            ("half of the data", 4),
            ("other draws", 5),
            ("half of the data", 5),
        ]
        assert [repeat["samples"] for repeat in resampled][::2] == [world.SAMPLES] * 2
        assert sum(repeat["samples"] for repeat in resampled if repeat["kind"] == "half of the data") == world.SAMPLES
        assert values["hard"]["n"] == sum(repeat["findings"] for repeat in resampled)
        assert code == values["exit_code"] == (1 if values["hard"]["hits"] or values["verdict_hard"]["hits"] else 0)

    def test_it_leaves_the_audits_own_store_and_record_as_they_were(self, folder: Path, result: object) -> None:
        from semlens_audit.spec import read_plan

        plan = read_plan(folder / "audit.yaml")
        with Store.open(folder / "store.duckdb", read_only=True) as store:
            assert store.rows("SELECT count(DISTINCT stage) FROM component") == [(1,)]
        record = engine.run(plan, command="run")
        assert record.data.samples == world.SAMPLES
        assert not list(folder.glob("*selftest*"))

    def test_an_audit_says_what_it_hangs_on_and_decides_that_anew_from_what_was_measured(
        self, folder: Path, result: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from semlens_audit.spec import read_plan

        def never(*_: object, **__: object) -> None:
            raise AssertionError("measured again")

        monkeypatch.setattr(engine, "measure", never)
        monkeypatch.setattr(engine, "measure_scenarios", never)
        plan = read_plan(folder / "audit.yaml")
        record = engine.run(plan, command="run")
        tried = {(one.knob, one.setting): one.not_tried for one in record.sensitivity}
        assert [setting for (knob, setting), reason in tried.items() if knob == "reference samples" and reason is None] == [
            "3 reference samples instead of 5",
            "7 reference samples instead of 5",
        ]
        assert tried["prompt templates", "5 other prompt templates"] is None
        assert {knob for (knob, _), reason in tried.items() if reason is None} == {
            "reference samples",
            "prompt templates",
            "examples",
            "significance",
            "criteria",
        }
        assert tried["layer", "another layer"] == "the audit names no other layer to compare with"
        checks = tuple(check.model_copy(update={"criterion": Criterion(at_most=1.0)}) for check in plan.spec.checks)
        lenient = engine.run(plan.model_copy(update={"spec": plan.spec.model_copy(update={"checks": checks})}), command="run")
        assert [finding.state for finding in lenient.findings if finding.check == "unexplained"] == ["satisfied"]
        moved = [one.knob for one in lenient.sensitivity for change in one.changes if change.check == "unexplained"]
        assert set(moved) <= {"criteria"}  # what is within all of it at 100 % may not be within 80 %

    def test_a_model_that_is_not_the_same_twice_is_found_out(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from semlens_audit.spec import read_plan

        real, calls = engine.measure, iter(range(100))

        def drifting(*arguments: Any, **more: Any) -> Any:
            measured = real(*arguments, **more)
            return measured.model_copy(update={"accuracy": next(calls) / 1000})

        monkeypatch.setattr(engine, "measure", drifting)
        monkeypatch.setattr(selftest, "_divisions", lambda *_: [np.arange(world.SAMPLES)])
        test = selftest.selftest(read_plan(folder / "audit.yaml"), repeats=1, progress=SilentProgress())
        assert not test.identical
        assert test.exit_code == ExitCode.INTEGRITY
        assert test.repeats[0].differs == ("subject",)

    def test_quick_builds_no_other_index(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: object, **__: object) -> None:
            raise AssertionError("carried out again")

        monkeypatch.setattr(engine, "run", never)
        done = CliRunner().invoke(app, ["selftest", str(folder / "audit.yaml"), "--repeats", "3", "--quick", "--quiet"])
        assert done.exit_code in (0, 1), done.output
        assert "Quick: nothing was indexed again." in " ".join(done.output.split())
        assert done.output.count("half of the data") >= 3
        assert "the same to the bit in 1" in done.output

    def test_no_repeat_is_no_test(self, folder: Path) -> None:
        done = CliRunner().invoke(app, ["selftest", str(folder / "audit.yaml"), "--repeats", "0"])
        assert done.exit_code == 2


def repeat(kind: Kind, verdict: State, *changes: tuple[State, State], differs: tuple[str, ...] | None = None) -> Repeat:
    made = tuple(
        SensitivityChange(check="c", class_name="melanoma", layer="layer3", concepts=(), before=before, after=after)
        for before, after in changes
    )
    return Repeat(kind=kind, seed=1, samples=10, findings=5, verdict=verdict, changes=made, differs=differs, seconds=0.5)


class TestConclusion:
    def made(self, *repeats: Repeat) -> SelfTest:
        first = selftest._Result("satisfied", (), 20, {})
        return selftest._concluded("a", False, first, repeats)

    def test_hard_and_soft_changes_are_told_apart(self) -> None:
        test = self.made(
            repeat("measured again", "satisfied", differs=()),
            repeat("other draws", "inconclusive", ("satisfied", "inconclusive")),
            repeat("half of the data", "not_satisfied", ("satisfied", "not_satisfied"), ("not_satisfied", "not_measured")),
        )
        assert (test.hard.hits, test.hard.n) == (1, 10)
        assert (test.soft.hits, test.soft.n) == (3, 10)
        assert (test.verdict_hard.hits, test.verdict_soft.hits, test.verdict_hard.n) == (1, 2, 2)
        assert test.exit_code == ExitCode.NOT_SATISFIED
        stream = io.StringIO()
        print_selftest(test, Console(file=stream, width=200, highlight=False))
        text = stream.getvalue()
        assert (
            "Findings that turned from satisfied to not satisfied or back: 1 of 10, 10.0 % (95 % interval 0.3–44.5 %)." in text
        )
        assert "half of the data, seed 1: c (melanoma, layer3) satisfied → not satisfied" in text

    def test_only_changes_without_contradiction_pass(self) -> None:
        test = self.made(
            repeat("measured again", "satisfied", differs=()), repeat("other draws", "satisfied", ("inconclusive", "satisfied"))
        )
        assert test.identical
        assert test.exit_code == ExitCode.SATISFIED

    def test_what_differs_on_identical_input_weighs_most(self) -> None:
        test = self.made(
            repeat("index rebuilt", "satisfied", differs=("findings",)),
            repeat("other draws", "not_satisfied", ("satisfied", "not_satisfied")),
        )
        assert test.exit_code == ExitCode.INTEGRITY
        stream = io.StringIO()
        print_selftest(test, Console(file=stream, width=200, highlight=False))
        assert "index rebuilt: not the same to the bit: findings" in stream.getvalue()

    def test_rates_have_exact_intervals(self) -> None:
        """Clopper and Pearson: 0 of n has the upper end 1 - 0.025^(1/n)."""
        rate = Rate.of(0, 60)
        assert rate.low == 0.0
        assert rate.high == pytest.approx(1 - 0.025 ** (1 / 60))
