"""Measurements and verdicts on evidence whose truth was put in by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import checks, scores, verdict
from semlens_audit.assignment import assign_layer
from semlens_audit.errors import DataError, ExitCode
from semlens_audit.evidence import Evidence
from semlens_audit.measure import Measurements, measure, measurement_key
from semlens_audit.plan import AuditPlan, Check, Criterion
from semlens_audit.records import ConceptRecord, Finding, Interval, Measurement, Verdict
from tests.unit import synthetic

SHORTCUT: dict[str | None, float] = {"border": 0.1, "ruler": 0.6, "hair": 0.0, None: 0.3}
CLEAN: dict[str | None, float] = {"border": 0.7, "ruler": 0.02, "hair": 0.02, None: 0.26}


def _measured(plan: AuditPlan, evidence: Evidence) -> Measurements:
    return measure(plan, evidence, checks.quantities(plan))


def _verdict(plan: AuditPlan, evidence: Evidence) -> tuple[Verdict, list[Finding]]:
    measured = _measured(plan, evidence)
    found = checks.findings(plan, measured.quantities, measured.class_layers)
    concepts = [ConceptRecord(id=c.id, label=c.label, role=c.role) for c in plan.spec.concepts]
    return verdict.decide(found, concepts, measured.class_layers, plan.audit.subject.name), found


def test_reliance_recovers_the_shares_that_were_put_in() -> None:
    plan = synthetic.plan()
    place = _measured(plan, synthetic.evidence(SHORTCUT)).class_layers[0]
    assert place.concepts["ruler"].value == pytest.approx(0.6, abs=0.03)
    assert place.valid.value == pytest.approx(0.1, abs=0.03)
    assert place.concepts["hair"].value == pytest.approx(0.0, abs=0.01)
    parts = [place.valid, place.spurious, place.neutral, place.unexplained]
    assert sum(part.value or 0.0 for part in parts) == pytest.approx(1.0)
    assert [item.assigned for item in place.components[:3]] == ["ruler"] * 3


def test_the_shortcut_fails_and_is_named_and_the_clean_twin_passes() -> None:
    plan = synthetic.plan()
    caught, _ = _verdict(plan, synthetic.evidence(SHORTCUT, effect=4.0))
    assert caught.exit_code is ExitCode.NOT_SATISFIED
    assert "decisions for melanoma rest on ruler" in caught.headline
    assert any("both lines of evidence speak against it" in line for line in caught.agreement)
    passed, _ = _verdict(plan, synthetic.evidence(CLEAN))
    assert passed.exit_code is ExitCode.SATISFIED
    assert passed.satisfied == 6


def test_lines_of_evidence_that_disagree_are_said_to() -> None:
    plan = synthetic.plan()
    inside, _ = _verdict(plan, synthetic.evidence(SHORTCUT, effect=0.0))
    assert any("lines disagree: components that mean it hold relevance" in line for line in inside.agreement)
    outside, _ = _verdict(plan, synthetic.evidence(CLEAN, effect=4.0))
    assert any("lines disagree: its presence moves the margin" in line for line in outside.agreement)


def test_without_counterexamples_the_verdict_is_incomplete_not_a_pass() -> None:
    result, found = _verdict(synthetic.plan(), synthetic.evidence(CLEAN, correlation=1.0))
    assert result.exit_code is ExitCode.INCOMPLETE
    missing = [finding for finding in found if finding.state == "not_measured"]
    assert [finding.check for finding in missing] == ["ruler-effect"]
    assert "no counterexamples" in missing[0].explanation


def test_too_few_samples_are_not_measured() -> None:
    result, found = _verdict(synthetic.plan(), synthetic.evidence(CLEAN, samples=40))
    assert result.exit_code is ExitCode.INCOMPLETE
    assert "20 samples of class melanoma, 30 needed" in found[0].explanation


def test_no_relevance_at_all_is_not_measured_and_never_a_pass() -> None:
    result, found = _verdict(synthetic.plan(), synthetic.evidence({}))
    assert result.exit_code is ExitCode.INCOMPLETE
    assert "relevance reaches layer layer1 in only 0 samples" in found[0].explanation


def test_a_criterion_inside_the_interval_is_inconclusive() -> None:
    plan = synthetic.plan([synthetic.check("no-ruler", "concept_not_used", {"at_most": 0.6}, concepts=["ruler"])])
    evidence = synthetic.evidence(SHORTCUT)
    value = _measured(plan, evidence).class_layers[0].concepts["ruler"].value
    exact = synthetic.plan([synthetic.check("no-ruler", "concept_not_used", {"at_most": value or 0.6}, concepts=["ruler"])])
    assert _verdict(exact, evidence)[0].exit_code is ExitCode.INCONCLUSIVE


def test_dead_components_carry_no_meaning() -> None:
    evidence = synthetic.evidence(SHORTCUT)
    layer = evidence.layers[0]
    dead = np.zeros(12, dtype=bool)
    dead[3:6] = True
    references = layer.reference_ids.copy()
    references[3:6] = -1
    changed = dataclasses.replace(
        layer, dead=dead, reference_ids=references, embeddings=np.where(dead[:, None, None], 0, layer.embeddings)
    )
    measured = _measured(synthetic.plan(), dataclasses.replace(evidence, layers=(changed,)))
    place = measured.class_layers[0]
    assert place.concepts["ruler"].value == pytest.approx(0.0)
    assert place.unexplained.value == pytest.approx(0.9, abs=0.03)
    assert measured.layers[0].dead == 3
    assert all(item.clarity is None and not item.z for item in place.components if item.dead)


def test_component_order_changes_nothing() -> None:
    plan, evidence = synthetic.plan(), synthetic.evidence(SHORTCUT)
    layer = evidence.layers[0]
    order = np.random.default_rng(5).permutation(12)
    mixed = dataclasses.replace(
        layer,
        reference_ids=layer.reference_ids[order],
        activations=layer.activations[order],
        embeddings=layer.embeddings[order],
        boxes=layer.boxes[order],
        relevance=layer.relevance[:, :, order],
    )
    one = _measured(plan, evidence).class_layers[0]
    two = _measured(plan, dataclasses.replace(evidence, layers=(mixed,))).class_layers[0]
    assert two.concepts["ruler"].value == pytest.approx(one.concepts["ruler"].value)
    assert [int(order[item.component]) for item in two.components] == [item.component for item in one.components]


def test_the_same_evidence_gives_the_same_numbers() -> None:
    plan = synthetic.plan()
    first, second = (_measured(plan, synthetic.evidence(SHORTCUT)) for _ in range(2))
    assert first.model_dump_json() == second.model_dump_json()
    assert Measurements.model_validate_json(first.model_dump_json()) == first


def test_presence_by_foundation_model_is_checked_against_the_attribute() -> None:
    measured = _measured(synthetic.plan(), synthetic.evidence(SHORTCUT, effect=2.0))
    assert measured.presence_auroc["ruler"] > 0.95
    by_source = {effect.presence.source: effect.effect.value for effect in measured.effects if effect.concept == "ruler"}
    assert by_source["attributes"] == pytest.approx(2.0, abs=0.25)
    assert by_source["foundation model"] == pytest.approx(2.0, abs=0.4)


def test_too_few_random_crops_are_an_error() -> None:
    evidence = synthetic.evidence(SHORTCUT)
    layer = dataclasses.replace(evidence.layers[0], null_embeddings=evidence.layers[0].null_embeddings[:5])
    with pytest.raises(DataError, match="5 random crops for reference sets of 12"):
        _measured(synthetic.plan(), dataclasses.replace(evidence, layers=(layer,)))


def test_key_ignores_criteria_and_titles_but_no_definition() -> None:
    plan = synthetic.plan()
    key = measurement_key(plan, {"a": "1"}, checks.quantities(plan))
    loosened = [
        c.model_copy(update={"criterion": Criterion(at_most=0.5)}) if c.id == "no-ruler" else c for c in plan.spec.checks
    ]
    other = plan.model_copy(update={"spec": plan.spec.model_copy(update={"checks": tuple(loosened)})})
    assert measurement_key(other, {"a": "1"}, checks.quantities(other)) == key
    assert measurement_key(plan, {"a": "2"}, checks.quantities(plan)) != key
    renamed = plan.spec.concepts[1].model_copy(update={"descriptions": ("a ruler",)})
    changed = plan.spec.model_copy(update={"concepts": (plan.spec.concepts[0], renamed, plan.spec.concepts[2])})
    redefined = plan.model_copy(update={"spec": changed})
    assert measurement_key(redefined, {"a": "1"}, checks.quantities(redefined)) != key


def test_a_concept_the_foundation_model_does_not_recognise_is_never_passed() -> None:
    plan, evidence = synthetic.plan(), synthetic.evidence(CLEAN)
    rng = np.random.default_rng(3)
    noise = evidence.layers[0].null_embeddings[rng.choice(600, 20, replace=False)]
    probes = dict(evidence.probes) | {"ruler": dataclasses.replace(evidence.probes["ruler"], examples=noise)}
    measured = _measured(plan, dataclasses.replace(evidence, probes=probes))
    assert measured.probe_auroc["ruler"] < 0.8
    found = checks.findings(plan, measured.quantities, measured.class_layers, measured.unrecognised)
    states = {finding.check: finding.state for finding in found}
    assert states["no-ruler"] == states["spurious"] == "not_measured"
    assert states["valid"] == states["unexplained"] == states["ruler-effect"] == "satisfied"
    blind = dataclasses.replace(evidence, probes=probes, attributes={})
    without = _measured(plan, blind).quantities
    assert "does not recognise ruler" in str(next(m for key, m in without.items() if key.startswith("behav")).not_measured)


def test_a_violation_stands_even_where_recognition_is_poor() -> None:
    plan = synthetic.plan()
    measured = _measured(plan, synthetic.evidence(SHORTCUT))
    found = checks.findings(plan, measured.quantities, measured.class_layers, {"ruler": "a reason", "border": "another"})
    states = {finding.check: finding.state for finding in found}
    assert states["no-ruler"] == "not_satisfied"
    assert states["valid"] == "not_measured"


_NUMBERS = st.floats(-2, 2, allow_nan=False)


def _decide(bound: str, threshold: float, low: float, high: float) -> str:
    criterion = Criterion(at_most=threshold) if bound == "at_most" else Criterion(at_least=threshold)
    check = Check.model_validate(synthetic.check("c", "clarity", {bound: threshold})).model_copy(
        update={"criterion": criterion}
    )
    interval = Interval(low=low, high=high, level=0.95, method="test")
    return checks.decide(check, Measurement(quantity="clarity", unit="cosine", value=(low + high) / 2, interval=interval, n=5))


@given(st.sampled_from(["at_most", "at_least"]), _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS)
@settings(max_examples=200, deadline=None)
def test_decision_is_monotone_in_the_criterion(bound: str, a: float, b: float, s: float, t: float) -> None:
    low, high = sorted((a, b))
    strict, loose = sorted((s, t)) if bound == "at_most" else sorted((s, t), reverse=True)
    rank = {"not_satisfied": 0, "inconclusive": 1, "satisfied": 2}
    assert rank[_decide(bound, strict, low, high)] <= rank[_decide(bound, loose, low, high)]


@given(_NUMBERS, _NUMBERS)
@settings(max_examples=100, deadline=None)
def test_size_of_an_effect(a: float, b: float) -> None:
    low, high = sorted((a, b))
    measurement = Measurement(
        quantity="behavioural effect", unit="logits", value=(low + high) / 2, n=9,
        interval=Interval(low=low, high=high, level=0.95, method="test"),
    )  # fmt: skip
    size = checks.Quantity("behavioural_effect", "melanoma", None, ("ruler",), absolute=True).transform(measurement)
    assert size.interval is not None
    assert size.interval.low == (0 if low <= 0 <= high else min(abs(low), abs(high)))
    assert size.interval.low <= (size.value or 0.0) <= size.interval.high


def test_not_measured_is_never_decided() -> None:
    check = Check.model_validate(synthetic.check("c", "clarity", {"at_least": -1.0}))
    missing = Measurement(quantity="clarity", unit="cosine", n=0, not_measured="a reason")
    assert checks.decide(check, missing) == "not_measured"


def test_no_finding_is_incomplete() -> None:
    result = verdict.decide([], [], [], "Model A")
    assert (result.state, result.exit_code) == ("not_measured", ExitCode.INCOMPLETE)


def _layer(evidence: Evidence, **changes: object) -> Evidence:
    return dataclasses.replace(evidence, layers=(dataclasses.replace(evidence.layers[0], **changes),))  # type: ignore[arg-type]


def test_key_changes_with_everything_that_a_number_depends_on() -> None:
    plan = synthetic.plan()
    asked = checks.quantities(plan)
    columns = {"ruler": np.array([0, 1, -1], dtype=np.int8)}
    spec, audit = plan.spec, plan.audit

    def with_audit(**changes: object) -> AuditPlan:
        return plan.model_copy(update={"audit": audit.model_copy(update=changes)})

    retitled = spec.concepts[1].model_copy(update={"title": "scale bar"})
    moved = spec.concepts[1].model_copy(update={"attribute": "scale"})
    roles = spec.concepts[1].model_copy(update={"role": "neutral"})
    settings = audit.measurement.model_copy(update={"minimum_recognition": 0.9})
    subject = audit.subject.model_copy(update={"class_map": {"melanoma": "nevus"}})
    others = [
        measurement_key(plan, {"a": "1"}, asked, columns | {"ruler": np.array([0, 1, 1], dtype=np.int8)}),
        measurement_key(plan, {"a": "1"}, asked, columns | {"hair": columns["ruler"]}),
        measurement_key(plan, {"a": "1"}, asked, {}),
        measurement_key(plan, {"a": "1"}, asked[1:], columns),
        *(
            measurement_key(changed, {"a": "1"}, asked, columns)
            for changed in (
                with_audit(seed=1),
                with_audit(layers=("layer2", "layer1")),
                with_audit(measurement=settings),
                with_audit(subject=subject),
                *(
                    plan.model_copy(
                        update={"spec": spec.model_copy(update={"concepts": (spec.concepts[0], one, spec.concepts[2])})}
                    )
                    for one in (retitled, moved, roles)
                ),
            )
        ),
    ]
    keys = {measurement_key(plan, {"a": "1"}, asked, columns), *others}
    assert len(keys) == 1 + len(others)
    batch = with_audit(measurement=audit.measurement.model_copy(update={"batch_size": 3}))
    assert measurement_key(batch, {"a": "1"}, asked, columns) not in others


def test_a_bad_probe_takes_no_component_from_a_good_one() -> None:
    """A valid concept whose probe is a ruler's would turn spurious reliance into valid reliance."""
    plan, evidence = synthetic.plan(), synthetic.evidence(SHORTCUT)
    ruler = evidence.probes["ruler"]
    tilted = ruler.text + 0.05 * np.random.default_rng(2).normal(size=ruler.text.shape[-1])
    probes = dict(evidence.probes) | {"border": dataclasses.replace(ruler, text=tilted.astype(np.float32))}
    confused = dataclasses.replace(evidence, probes=probes)
    layer = confused.layers[0]
    doubted = assign_layer(plan, confused, layer, {"border"})
    assert (doubted.weights[3:6, 1] == 1).all()
    assert (doubted.weight_draws[:, 3:6, 0] == 0).mean() > 0.95
    alone = assign_layer(plan, evidence, layer, {"ruler"})
    assert (alone.weights[3:6].argmax(axis=1) == 1).all(), "what means nothing else is still assigned to it: a violation stands"


def test_few_reference_samples_are_held_against_sets_as_small() -> None:
    rng = np.random.default_rng(8)
    evidence, pool = synthetic.evidence(SHORTCUT), synthetic.evidence(SHORTCUT).layers[0].null_embeddings
    k, m = 400, 12
    embeddings, ids = pool[rng.integers(len(pool), size=(k, m))].copy(), np.tile(np.arange(m), (k, 1))
    ids[200:, 2:] = -1
    embeddings[200:, 2:] = 0
    layer = dataclasses.replace(evidence.layers[0], embeddings=embeddings, reference_ids=ids, dead=np.zeros(k, dtype=bool))
    z = assign_layer(synthetic.plan(), evidence, layer).z
    assert z[200:].std() == pytest.approx(z[:200].std(), rel=0.25)
    assert abs(z[200:].mean()) < 0.3


@pytest.mark.parametrize("dead", [True, False])
def test_a_layer_without_meaning_is_not_measured_and_never_a_pass(dead: bool) -> None:
    evidence = synthetic.evidence(CLEAN)
    ids = np.full((12, 12), -1)
    if not dead:
        ids[:, 0] = 0
    embeddings = evidence.layers[0].embeddings * (ids >= 0)[..., None]
    none = np.zeros((0, synthetic.DIMENSION), dtype=np.float32)
    silent = _layer(evidence, reference_ids=ids, embeddings=embeddings, dead=np.full(12, dead), null_embeddings=none)
    result, found = _verdict(synthetic.plan(), silent)
    assert result.exit_code is ExitCode.INCOMPLETE
    assert {finding.state for finding in found if finding.layer} == {"not_measured"}
    assert ("dead" if dead else "two reference samples") in found[0].explanation
    assert _measured(synthetic.plan(), silent).layers[0].calibration == ()


def test_identical_crops_have_clarity_one_and_mean_nothing_by_rounding() -> None:
    vector = scores.unit(np.ones(synthetic.DIMENSION)).astype(np.float32)
    evidence = synthetic.evidence(CLEAN)
    same = _layer(evidence, embeddings=np.tile(vector, (12, 12, 1)))
    assert _measured(synthetic.plan(), same).layers[0].clarity.value == pytest.approx(1.0)
    flat = _layer(evidence, null_embeddings=np.tile(vector, (600, 1)))
    assert _measured(synthetic.plan(), flat).class_layers[0].unexplained.value == pytest.approx(1.0)


def test_two_classes_are_told_apart() -> None:
    evidence = synthetic.evidence(SHORTCUT, effect=2.0)
    layer = evidence.layers[0]
    swapped = layer.relevance[:, 0, [3, 4, 5, 0, 1, 2, 6, 7, 8, 9, 10, 11]]
    both = dataclasses.replace(
        _layer(evidence, relevance=np.stack([swapped, layer.relevance[:, 0]], axis=1)),
        audited=(0, 1),
        class_names=("naevus", "melanoma"),
    )
    base = synthetic.plan(
        [
            synthetic.check("one", "concept_not_used", {"at_most": 0.2}, concepts=["ruler"]),
            synthetic.check("two", "concept_not_used", {"at_most": 0.2}, concepts=["border"]) | {"class": "naevus"},
            synthetic.check("effect", "behavioural_effect", {"at_most": 1.0}, concepts=["ruler"]) | {"class": "naevus"},
        ]
    )
    classes = dict.fromkeys(("naevus", "melanoma"), base.spec.classes["melanoma"])
    plan = base.model_copy(update={"spec": base.spec.model_copy(update={"classes": classes})})
    result, found = _verdict(plan, both)
    assert "decisions for melanoma rest on ruler" in result.headline
    assert "decisions for naevus rest on border and ruler" in result.headline
    naevus, melanoma = _measured(plan, both).class_layers
    assert (naevus.class_name, melanoma.class_name) == ("naevus", "melanoma")
    assert naevus.concepts["border"].value == pytest.approx(melanoma.concepts["ruler"].value, abs=0.03)
    assert found[2].measurement.value == pytest.approx(2.0, abs=0.3), "the size of an effect that lowers the margin"


def test_sentences_for_one_and_for_many() -> None:
    one = synthetic.plan([synthetic.check("only", "clarity", {"at_least": 0.01})])
    assert _verdict(one, synthetic.evidence(CLEAN))[0].headline == "Model A: the only check is satisfied."
    _, found = _verdict(synthetic.plan(), synthetic.evidence(SHORTCUT))
    assert "components that mean ruler or hair hold" in next(f.explanation for f in found if f.check == "spurious")


def test_a_check_that_speaks_of_no_concept_is_not_measured() -> None:
    plan = synthetic.plan([synthetic.check("none", "spurious_reliance", {"at_most": 0.3})])
    harmless = tuple(c.model_copy(update={"role": "valid"}) for c in plan.spec.concepts)
    empty = plan.model_copy(update={"spec": plan.spec.model_copy(update={"concepts": harmless})})
    result, found = _verdict(empty, synthetic.evidence(SHORTCUT))
    assert result.exit_code is ExitCode.INCOMPLETE
    assert "speaks of no concept" in found[0].explanation
