"""Checks of polysemanticity and redundancy: against slow loops, against `measures`, through the command line and back."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from semlens_audit import checks, cli, index, interpretability_measure, measure, scenarios, spec, verify_record
from semlens_audit.atlas.measures import MeasureTable, measure_table
from semlens_audit.atlas.opening import Atlas
from semlens_audit.change import compare
from semlens_audit.change_pages import change
from semlens_audit.checks import Quantity
from semlens_audit.data import open_data
from semlens_audit.difference import influence_values
from semlens_audit.draws import draw_units
from semlens_audit.errors import SpecError
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.figures import SCREEN
from semlens_audit.flow import ClassFlow, Flows
from semlens_audit.influence import influences
from semlens_audit.interpretability import QUANTITIES, ComponentMeasures
from semlens_audit.interpretability_measure import class_measure, drawn_measure, measures_of_layer
from semlens_audit.measure import measure_layers
from semlens_audit.plan import AuditPlan
from semlens_audit.reading import load_evidence
from semlens_audit.records import AuditRecord
from semlens_audit.resampling import reference_factor
from semlens_audit.store import Store
from semlens_audit.units import UnitWeights
from tests.unit import index_world as world

KINDS = ("polysemanticity", "redundancy")
MEASUREMENT = {"reference_samples": 16, "minimum_samples": 5, "intervention": "none", "attribution": "activation_x_gradient"}


def check(name: str, kind: str, bound: float, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "kind": kind,
        "class": "melanoma",
        "statement": f"{name} holds.",
        "criterion": {"at_least" if kind == "clarity" else "at_most": bound},
        "rationale": "Chosen so that the test has a threshold.",
    } | more


def write(folder: Path, asked: Sequence[dict[str, Any]]) -> AuditPlan:
    changed = world.spec(checks=list(asked), multiplicity="none")
    (folder / "spec.yaml").write_text(json.dumps(changed))
    return world.plan(folder, json.loads((folder / "audit.yaml").read_text()), changed)


def spread(file: Path) -> None:
    """Make a random tower see pictures as different: what it takes from the patches counts for more."""
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    for name in state:
        if name.startswith("visual.") and name.endswith("attn.out_proj.weight"):
            state[name] *= 40.0
    save_file(state, file)


@dataclass(frozen=True)
class Audited:
    folder: Path
    plan: AuditPlan
    table: MeasureTable
    run: Result
    record: dict[str, Any]
    evidence: Evidence

    def finding(self, name: str) -> dict[str, Any]:
        (found,) = (one for one in self.record["findings"] if one["check"] == name)
        return dict(found)

    def row(self, quantity: str, layer: str) -> Any:
        (found,) = (r.measurement for r in self.table.rows if (r.quantity, r.layer, r.weighting) == (quantity, layer, "melanoma"))
        return found


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    import torch

    from semlens_audit import stages

    threads, crops = torch.get_num_threads(), stages.NULL_CROPS
    torch.set_num_threads(1)
    stages.NULL_CROPS = 40
    folder = world.write_world(tmp_path_factory.mktemp("interpretability"), dead=1)
    spread(folder / "clip" / "open_clip_model.safetensors")
    base = world.audit()
    (folder / "audit.yaml").write_text(json.dumps(base | {"measurement": base["measurement"] | MEASUREMENT}))
    plan = write(folder, [check("any", "clarity", -0.9)])
    index.build(plan)
    with Atlas(plan) as atlas:
        table = measure_table([atlas], class_name="melanoma")
    at = {(r.quantity, r.layer): r.measurement.value for r in table.rows if r.weighting == "melanoma"}
    asked = [check(f"{kind}-held", kind, 0.9999, layers=["layer1"]) for kind in KINDS]
    asked += [check(f"{kind}-broken", kind, 0.0001, layers=["layer1"]) for kind in KINDS]
    asked += [check(f"{kind}-open", kind, at[kind, "layer3"], layers=["layer3"]) for kind in KINDS]
    asked += [check("clear", "clarity", -0.9, layers=["layer1"])]
    plan = write(folder, asked)
    run = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["run", plan.audit_file])
    (file,) = (folder / "reports").rglob("results.json")
    with Store.open(folder / "store.duckdb", read_only=True) as store:
        evidence = load_evidence(plan, open_data(plan), store)
        assert evidence is not None
        yield Audited(folder, plan, table, run, json.loads(file.read_text()), evidence)
    stages.NULL_CROPS = crops
    torch.set_num_threads(threads)


# -- through the command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
class TestRun:
    def test_states(self, audited: Audited, kind: str) -> None:
        assert audited.run.exit_code == 1, audited.run.output
        states = {name: audited.finding(f"{kind}-{name}")["state"] for name in ("held", "broken", "open")}
        assert states == {"held": "satisfied", "broken": "not_satisfied", "open": "inconclusive"}

    def test_value_is_that_of_measures(self, audited: Audited, kind: str) -> None:
        for name, layer in (("held", "layer1"), ("open", "layer3")):
            assert audited.finding(f"{kind}-{name}")["measurement"]["value"] == audited.row(kind, layer).value
        assert audited.finding("clear")["measurement"]["value"] == audited.row("clarity", "layer1").value

    def test_finding_says_what_it_rests_on(self, audited: Audited, kind: str) -> None:
        found = audited.finding(f"{kind}-held")
        low, high = QUANTITIES[kind]
        interval = found["measurement"]["interval"]
        assert low <= interval["low"] <= found["measurement"]["value"] <= interval["high"] <= high
        assert interval["nested"]
        assert interval["method"] == "Bayesian bootstrap over test samples and reference samples, 100 draws"
        assert found["line"] == "mechanistic"
        assert found["components"]
        assert 1 not in found["components"], "a dead component carries nothing"
        (chance,) = {r.chance for r in audited.table.rows if (r.quantity, r.layer) == (kind, "layer1")}
        assert f"As many sets of random crops reach {chance:.2f}." in found["explanation"]
        assert f"Weighted by relevance for melanoma, the components' {kind}" in found["explanation"]

    def test_report_names_the_measure(self, audited: Audited, kind: str) -> None:
        (file,) = (audited.folder / "reports").rglob("report.html")
        text = html.unescape(file.read_text())
        assert f"{kind.capitalize()} of the layer's components, for melanoma" in text
        assert f"<dt>{kind.capitalize()}</dt>" in text.replace("\n", "")
        assert text.count(f"{kind.capitalize()}: ") >= 1

    def test_influences_are_the_draws(self, audited: Audited, kind: str) -> None:
        plan, evidence = audited.plan, audited.evidence
        asked = [one for one in checks.quantities(plan) if one.kind == kind]
        measured = measure.measure(plan, evidence, asked)
        found = {one.quantity: one for one in influences(plan, open_data(plan), evidence, measured, asked).records}
        assert set(found) == {one.key for one in asked}
        for one in asked:
            interval = measured.quantities[one.key].interval
            assert interval is not None
            (source,) = (layer for layer in evidence.layers if layer.layer == one.layer)
            flows = Flows(plan, evidence)
            measures = measures_of_layer(plan, evidence, source, [kind])
            draws = drawn_measure(measures, kind, flows.of(source, 0))
            assert found[one.key].length == len(draws) == 100
            assert influence_values(found[one.key]) == pytest.approx((draws - draws.mean()) / 10.0, abs=1e-6)
            assert interval.low - 1e-9 <= np.quantile(draws, 0.025)


def test_verify_and_diff_know_the_kinds(audited: Audited) -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    (file,) = (audited.folder / "reports").rglob("results.json")
    shown = runner.invoke(cli.app, ["verify", "--allow-unsigned", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "7 findings decided again" in shown.output
    shown = runner.invoke(cli.app, ["diff", str(file), str(file), "--json"])
    assert shown.exit_code == 0, shown.output
    assert {entry["label"] for entry in json.loads(shown.stdout)["entries"]} == {"within_noise"}
    record = AuditRecord.model_validate_json(file.read_text())
    for finding in record.findings:
        interval = finding.measurement.interval
        assert interval is not None
        assert verify_record._formed(finding, audited.plan)
        least = checks.KINDS[finding.kind].range[0]
        beyond = finding.measurement.model_copy(update={"interval": interval.model_copy(update={"low": least - 0.01})})
        assert not verify_record._formed(finding.model_copy(update={"measurement": beyond}), audited.plan)
    page = change(record.model_copy(update={"change": compare(record, record)}), SCREEN)
    assert page is not None
    assert [table.caption for table in page.tables] == ["Clarity, polysemanticity and redundancy: difference of cosines"]


# -- against slow loops ---------------------------------------------------------------------------------------------------------


def slow_settled(points: np.ndarray, weights: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Lloyd's iteration over embeddings themselves."""
    for _ in range(100):
        if not (weights[first].sum() > 0 and weights[~first].sum() > 0):
            return first
        centres = [np.average(points[group], axis=0, weights=weights[group]) for group in (first, ~first)]
        apart = [((points - centre) ** 2).sum(axis=1) for centre in centres]
        moved = np.where(np.abs(apart[0] - apart[1]) > 1e-9, apart[0] < apart[1], first)
        if (moved == first).all():
            return first
        first = moved
    return first


def slow_score(points: np.ndarray, weights: np.ndarray, first: np.ndarray) -> float:
    if min(first.sum(), (~first).sum()) < 2:
        mean = np.average(points, axis=0, weights=weights)
        return float(1 - np.clip(np.average(points @ mean / np.linalg.norm(mean), weights=weights), 0, 1))
    one, other = (np.average(points[group], axis=0, weights=weights[group]) for group in (first, ~first))
    return float(1 - np.clip(one @ other / np.linalg.norm(one) / np.linalg.norm(other), 0, 1))


def slow_groups(points: np.ndarray) -> np.ndarray:
    """The best of all divisions, by the definition of the squared distances to the centres."""
    m = len(points)
    codes = (np.arange(1, 2 ** (m - 1))[:, None] >> np.arange(m) & 1).astype(bool)
    spread = np.zeros(len(codes))
    for group in (codes, ~codes):
        centres = (group @ points) / group.sum(axis=1, keepdims=True)
        spread += sum(group[:, i] * ((points[i] - centres) ** 2).sum(axis=1) for i in range(m))
    return np.asarray(codes[spread.argmin()])


def slow_measure(plan: AuditPlan, evidence: Evidence, source: LayerEvidence, kind: str) -> tuple[float, np.ndarray]:
    """Value and draws of a measure for the first class, from the stored embeddings, one component and one draw at a time."""
    weights, draws = draw_units(plan), plan.audit.measurement.bootstrap
    alive = np.flatnonzero(~source.dead)
    points = {k: source.embeddings[k][source.reference_ids[k] >= 0].astype(np.float64) for k in alive}
    drawn = {k: weights.of(source.reference_ids[k][source.reference_ids[k] >= 0]).astype(np.float64) for k in alive}

    def of(b: int | None) -> np.ndarray:
        chosen = {k: np.ones(len(points[k])) if b is None else drawn[k][:, b] for k in alive}
        if kind == "polysemanticity":
            own = {k: slow_groups(points[k]) for k in alive} if b is None else groups
            if b is None:
                groups.update(own)
            return np.array([slow_score(points[k], chosen[k], slow_settled(points[k], chosen[k], groups[k])) for k in alive])
        means = {k: np.average(points[k], axis=0, weights=chosen[k]) for k in alive}
        cosines = {
            (k, j): means[k] @ means[j] / np.linalg.norm(means[k]) / np.linalg.norm(means[j]) for k in alive for j in alive if j != k
        }
        return np.array([max(cosines[k, j] for j in alive if j != k) for k in alive])

    groups: dict[int, np.ndarray] = {}
    value, moved = of(None), np.array([of(b) for b in range(draws)])
    factor = reference_factor(np.array([len(points[k]) for k in alive], dtype=float), plan.audit.measurement.confidence)
    moved = value + (moved - moved.mean(axis=0)) * factor
    flow = Flows(plan, evidence).of(source, 0)
    share, shares = flow.mean[alive], flow.drawn[:, alive].astype(np.float64)
    return float((share * value).sum() / share.sum()), (shares * moved).sum(axis=1) / shares.sum(axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_against_a_slow_loop(audited: Audited, kind: str) -> None:
    plan, evidence = audited.plan, audited.evidence
    flows = Flows(plan, evidence)
    for source in evidence.layers:
        value, draws = slow_measure(plan, evidence, source, kind)
        measures = measures_of_layer(plan, evidence, source, [kind])
        found = class_measure(plan, measures, kind, flows.of(source, 0))
        assert found.value == pytest.approx(value, abs=1e-6)
        assert drawn_measure(measures, kind, flows.of(source, 0)) == pytest.approx(draws, abs=2e-5)
        assert found.interval is not None
        low, high = np.quantile(draws, [0.025, 0.975])
        off = value - np.median(draws)
        bounds = QUANTITIES[kind]
        assert found.interval.low == pytest.approx(np.clip(min(low, low + off), *bounds), abs=5e-5)
        assert found.interval.high == pytest.approx(np.clip(max(high, high + off), *bounds), abs=5e-5)


def flow_of(mean: np.ndarray, drawn: np.ndarray) -> ClassFlow:
    return ClassFlow(9, 9, 9, 9, mean, drawn.astype(np.float32), mean, mean)


@pytest.fixture(scope="module")
def plain_plan() -> AuditPlan:
    return world.plan(Path())


class TestRange:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**31), components=st.integers(1, 6), scale=st.floats(0, 3), kind=st.sampled_from(KINDS))
    def test_value_and_interval_stay_in_the_range(
        self, plain_plan: AuditPlan, seed: int, components: int, scale: float, kind: str
    ) -> None:
        rng = np.random.default_rng(seed)
        low, high = QUANTITIES[kind]
        values = rng.uniform(low, high, components)
        draws = (values + scale * rng.normal(size=(50, components))).astype(np.float32)
        share, shares = rng.dirichlet(np.ones(components)), rng.dirichlet(np.ones(components), size=50)
        found = class_measure(plain_plan, ComponentMeasures({kind: values}, {kind: draws}), kind, flow_of(share, shares))
        assert found.interval is not None
        assert found.value is not None
        assert low <= found.interval.low <= found.value <= found.interval.high <= high
        assert values.min() - 1e-9 <= found.value <= values.max() + 1e-9
        for _, one, other in found.interval.nested:
            assert low <= one <= other <= high

    @pytest.mark.parametrize("kind", KINDS)
    def test_only_what_is_defined_and_relevant_counts(self, plain_plan: AuditPlan, kind: str) -> None:
        values, share = np.array([0.25, np.nan, 0.75, 1.0]), np.array([0.3, 0.4, 0.3, 0.0])
        drawn, shares = np.tile(values, (50, 1)).astype(np.float32), np.tile(share, (50, 1))
        measures = ComponentMeasures({kind: values}, {kind: drawn})
        assert class_measure(plain_plan, measures, kind, flow_of(share, shares)).value == pytest.approx(0.5)
        nowhere = np.array([0.0, 1.0, 0.0, 0.0])
        found = class_measure(plain_plan, measures, kind, flow_of(nowhere, np.tile(nowhere, (50, 1))))
        assert found.value is None
        assert found.not_measured == "the components that it is defined for carry no relevance"


# -- where it cannot be measured, and what it costs where nobody asks -----------------------------------------------------------


def at_layer(evidence: Evidence, **changes: Any) -> Evidence:
    source = next(one for one in evidence.layers if one.layer == "layer1")
    own = {field.name: getattr(source, field.name) for field in fields(LayerEvidence)}
    return replace(evidence, layers=(LayerEvidence(**own | changes),))


def asked(kind: str) -> Quantity:
    return Quantity(kind, "melanoma", "layer1", ())


def only(evidence: Evidence, alive: Sequence[int], references: int) -> Evidence:
    source = next(one for one in evidence.layers if one.layer == "layer1")
    ids = source.reference_ids.copy()
    keep = np.isin(np.arange(len(ids)), alive)
    ids[~keep] = -1
    ids[:, references:] = -1
    return at_layer(evidence, dead=~keep, reference_ids=ids)


class TestNotMeasured:
    @pytest.mark.parametrize(
        ("alive", "references", "kind", "reason"),
        [
            ((0,), 5, "redundancy", "no two live components have reference samples"),
            ((), 5, "redundancy", "every component of layer layer1 is dead"),
            ((), 5, "polysemanticity", "every component of layer layer1 is dead"),
            ((0, 2), 1, "polysemanticity", "no live component of layer layer1 has two reference samples"),
            ((0, 2), 1, "redundancy", "no live component of layer layer1 has two reference samples"),
        ],
    )
    def test_is_said(self, audited: Audited, alive: tuple[int, ...], references: int, kind: str, reason: str) -> None:
        evidence = only(audited.evidence, alive, references)
        found = measure_layers(audited.plan, evidence, [asked(kind)], {})[2][asked(kind).key]
        assert found.value is None
        assert found.not_measured is not None
        assert reason in found.not_measured
        judged = next(one for one in audited.plan.spec.checks if one.kind == kind)
        assert checks.decide(judged, found) == "not_measured"

    def test_one_live_component_has_a_polysemanticity(self, audited: Audited) -> None:
        evidence = only(audited.evidence, (0,), 5)
        found = measure_layers(audited.plan, evidence, [asked("polysemanticity")], {})[2][asked("polysemanticity").key]
        assert found.value is not None

    def test_what_the_value_leaves_out_is_said(self, audited: Audited) -> None:
        source = next(one for one in audited.evidence.layers if one.layer == "layer1")
        ids = source.reference_ids.copy()
        ids[0, 1:] = -1
        evidence, quantity = at_layer(audited.evidence, reference_ids=ids), asked("polysemanticity")
        flows = Flows(audited.plan, evidence)
        remarks = dict(interpretability_measure.interpretability_remarks(audited.plan, evidence, [quantity], [quantity.key], flows))
        held = 100 * (1 - flows.of(evidence.layers[0], 0).mean[0])
        assert f"The components that it is defined for hold {held:.1f}\u00a0% of the relevance." in remarks[quantity.key]


def test_nothing_is_computed_where_no_check_asks(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("measured although no check asks")

    monkeypatch.setattr(measure, "measures_of_layer", refused)
    monkeypatch.setattr(interpretability_measure, "chance", refused)
    quantities = [one for one in checks.quantities(audited.plan) if one.kind == "clarity"]
    assert measure.measure(audited.plan, audited.evidence, quantities).quantities
    with pytest.raises(AssertionError, match="no check asks"):
        measure.measure(audited.plan, audited.evidence, checks.quantities(audited.plan))


def test_settings_that_change_no_crop_leave_the_value(audited: Audited) -> None:
    plan, evidence, quantities = audited.plan, audited.evidence, checks.quantities(audited.plan)
    measured = measure.measure(plan, evidence, quantities)
    found = scenarios.measure_scenarios(plan, evidence, quantities, measured)
    tried = {one.setting: {key.split("|")[0] for key in one.quantities} for one in found if one.not_tried is None}
    assert {kind for setting, kinds in tried.items() if "reference samples" in setting for kind in kinds} == {*KINDS, "clarity"}
    assert all(not kinds & {*KINDS, "clarity"} for setting, kinds in tried.items() if "least z" in setting)
    fewer = next(one for one in found if "reference samples" in one.setting and one.not_tried is None)
    key = asked("polysemanticity").key
    assert fewer.quantities[key].value != measured.quantities[key].value


def test_draws_do_not_depend_on_how_many_layers_there_are(audited: Audited) -> None:
    plan, evidence = audited.plan, audited.evidence
    alone = replace(evidence, layers=evidence.layers[1:])
    quantity = Quantity("redundancy", "melanoma", "layer3", ())
    assert measure_layers(plan, alone, [quantity], {})[2][quantity.key] == measure_layers(plan, evidence, [quantity], {})[2][quantity.key]


# -- specs ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "slug"),
    [
        ({"criterion": {"at_least": 0.3}}, "wrong-bound"),
        ({"criterion": {"at_most": 1.2}}, "threshold-range"),
        ({"criterion": {"at_most": 1.0}}, "threshold-cannot-fail"),
        ({"concepts": ["ruler"]}, "concepts-not-used"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_spec_may_not_ask(tmp_path: Path, kind: str, changes: dict[str, Any], slug: str) -> None:
    (tmp_path / "spec.yaml").write_text(json.dumps(world.spec(checks=[check("one", kind, 0.3) | changes])))
    with pytest.raises(SpecError) as caught:
        spec.read_spec(tmp_path / "spec.yaml")
    assert slug in {problem.slug for problem in caught.value.problems}


def test_polysemanticity_below_zero_is_none(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(json.dumps(world.spec(checks=[check("one", "polysemanticity", -0.1)])))
    with pytest.raises(SpecError, match="between 0 and 1"):
        spec.read_spec(tmp_path / "spec.yaml")


def test_weights_are_those_of_the_bootstrap() -> None:
    """Draws made some at a time are those made at once."""
    from semlens_audit.units import normalised, reference_weights

    units, present = np.array([[0, 1, 2], [2, 5, 0]]), np.array([[True, True, True], [True, True, False]])
    weights = UnitWeights(20, [1])
    together = reference_weights(weights, units, present)
    for start in range(0, 20, 8):
        some = weights.of(np.where(present, units, 0))[..., start : start + 8]
        assert (normalised(some.copy(), present) == together[:, start : start + 8]).all()
