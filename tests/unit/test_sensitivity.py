"""Whether a verdict hangs on a setting: scenarios against direct measurement, on evidence whose truth is known."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from semlens_audit import checks, screen, verdict
from semlens_audit.evidence import ConceptProbes, Evidence, LayerEvidence
from semlens_audit.headroom import FirstReferences
from semlens_audit.measure import Measurements, measure
from semlens_audit.plan import AuditPlan, Sensitivity
from semlens_audit.records import ConceptRecord, Finding, Measurement, SensitivityRecord, State
from semlens_audit.scenarios import Scenario, at_layer, measure_scenarios, planned
from semlens_audit.scores import unit
from semlens_audit.sensitivity import Decide, compare, hanging, moved, sentence
from semlens_audit.sensitivity_pages import sensitivity
from tests.golden.sample_record import sample
from tests.unit import synthetic

CLEAN: dict[str | None, float] = {"border": 0.85, "ruler": 0.005, "hair": 0.005, None: 0.14}
SHORTCUT: dict[str | None, float] = {"border": 0.2, "ruler": 0.5, "hair": 0.0, None: 0.3}
CHECKS = [
    synthetic.check("no-ruler", "concept_not_used", {"at_most": 0.2}, concepts=["ruler"]),
    synthetic.check("valid", "valid_reliance", {"at_least": 0.1}),
]


def decide_by(plan: AuditPlan) -> Decide:
    concepts = [ConceptRecord(id=c.id, label=c.label, role=c.role) for c in plan.spec.concepts]

    def decide(
        asked: AuditPlan, values: Mapping[str, Measurement], missed: Mapping[str, str]
    ) -> tuple[Sequence[Finding], State]:
        found = checks.findings(asked, values, (), missed)
        return found, verdict.decide(found, concepts, (), "Model A").state

    return decide


def tried(plan: AuditPlan, evidence: Evidence) -> tuple[Measurements, tuple[Scenario, ...], tuple[SensitivityRecord, ...]]:
    quantities = checks.quantities(plan)
    measured = measure(plan, evidence, quantities)
    scenarios = measure_scenarios(plan, evidence, quantities, measured)
    return measured, scenarios, compare(plan, measured, scenarios, decide_by(plan))


def state_of(plan: AuditPlan, measured: Measurements) -> State:
    return decide_by(plan)(plan, measured.quantities, measured.unrecognised)[1]


def of(records: Sequence[SensitivityRecord], knob: str) -> list[SensitivityRecord]:
    return [record for record in records if record.knob == knob]


def sharp(evidence: Evidence) -> Evidence:
    """The components that mean a concept mean it without a doubt."""
    layer, count = evidence.layers[0], len(synthetic.CONCEPTS)
    embeddings = layer.embeddings.copy()
    for index in range(count):
        embeddings[3 * index : 3 * index + 3] = unit(
            embeddings[3 * index : 3 * index + 3] + 3.0 * np.eye(synthetic.DIMENSION, dtype=np.float32)[index]
        )
    return replace(evidence, layers=(replace(layer, embeddings=embeddings),))


def bent(evidence: Evidence, first: int, concept: str = "ruler") -> Evidence:
    """The components of `concept` mean it by their first reference samples only; the others point away from it."""
    layer, direction = evidence.layers[0], synthetic.CONCEPTS.index(concept)
    rows = slice(3 * direction, 3 * direction + 3)
    embeddings = layer.embeddings.copy()
    turned = embeddings[rows, first:].copy()
    turned[..., direction] = -3.0
    embeddings[rows, first:] = unit(turned)
    return replace(evidence, layers=(replace(layer, embeddings=embeddings),))


def widened(evidence: Evidence, declared: int) -> Evidence:
    """The evidence as an index with headroom gives it: `declared` reference samples in the layer, all in the headroom."""
    return replace(
        evidence, layers=tuple(FirstReferences(layer, declared) for layer in evidence.layers), headroom=evidence.layers
    )


def turned_probes(evidence: Evidence, concept: str) -> dict[str, ConceptProbes]:
    """Probes of which one looks for something that nothing shows."""
    nowhere = np.zeros_like(evidence.probes[concept].text)
    nowhere[..., -1] = 1.0
    return {name: ConceptProbes(nowhere, own.examples) if name == concept else own for name, own in evidence.probes.items()}


class TestVerdict:
    @pytest.mark.parametrize(("shares", "state"), [(CLEAN, "satisfied"), (SHORTCUT, "not_satisfied")])
    def test_a_clear_case_hangs_on_nothing(self, shares: dict[str | None, float], state: State) -> None:
        plan = synthetic.plan(CHECKS, reference_samples=9)
        measured, _, records = tried(plan, widened(sharp(synthetic.evidence(shares)), 9))
        assert state_of(plan, measured) == state
        assert {record.verdict for record in records if record.not_tried is None} == {state}
        assert len([record for record in records if record.not_tried is None]) == 6
        assert not any(record.changes for record in records)

    def test_a_verdict_that_hangs_on_the_number_of_reference_samples_says_so(self) -> None:
        plan = synthetic.plan(CHECKS)
        measured, _, records = tried(plan, bent(synthetic.evidence(SHORTCUT), first=8))
        before = state_of(plan, measured)
        assert before != "not_satisfied"
        fewer = of(records, "reference samples")[0]
        assert fewer.setting == "8 reference samples instead of 12"
        assert fewer.verdict == "not_satisfied"
        assert [(c.check, c.layer, c.concepts, c.before, c.after) for c in fewer.changes] == [
            ("no-ruler", "layer1", ("ruler",), before, "not_satisfied")
        ]

    def test_and_so_does_one_that_more_of_them_would_turn(self) -> None:
        plan = synthetic.plan(CHECKS, reference_samples=9)
        measured, _, records = tried(plan, widened(bent(synthetic.evidence(SHORTCUT), first=9), 9))
        assert state_of(plan, measured) == "not_satisfied"
        more = of(records, "reference samples")[1]
        assert more.setting == "12 reference samples instead of 9"
        assert more.verdict not in (None, "not_satisfied")

    def test_a_verdict_that_hangs_on_the_wording_of_the_prompts_says_so(self) -> None:
        plan, evidence = synthetic.plan(CHECKS), synthetic.evidence(SHORTCUT)
        other = replace(evidence, other_probes=turned_probes(evidence, "ruler"), other_prompts=np.zeros((2, 24), np.float32))
        (record,) = of(tried(plan, other)[2], "prompt templates")
        assert record.setting == "2 other prompt templates"
        assert record.verdict != "not_satisfied"
        same = replace(evidence, other_probes=evidence.probes, other_prompts=evidence.empty_prompts)
        (record,) = of(tried(plan, same)[2], "prompt templates")
        assert (record.verdict, record.changes) == ("not_satisfied", ())

    def test_a_verdict_that_hangs_on_which_examples_define_a_concept_says_so(self) -> None:
        plan, evidence = synthetic.plan(CHECKS), synthetic.evidence(SHORTCUT)
        rng = np.random.default_rng(3)
        probes = {}
        for name, own in evidence.probes.items():
            examples = unit(own.text[0, 0] + rng.normal(scale=0.02, size=(12, synthetic.DIMENSION))).astype(np.float32)
            if name == "ruler":
                examples[1::2] = unit(-examples[1::2] + np.eye(synthetic.DIMENSION)[-1] * 0.2)
            probes[name] = ConceptProbes(own.text[:0], examples)
        first, second = of(tried(plan, replace(evidence, probes=probes))[2], "examples")
        assert (first.verdict, first.setting) == (
            "not_satisfied",
            "half of each concept's example images (first, third, fifth …)",
        )
        assert second.verdict != "not_satisfied"

    def test_another_layer_is_compared_with_the_gravest_of_the_audits_own(self) -> None:
        clean, shortcut = synthetic.evidence(CLEAN), synthetic.evidence(SHORTCUT)
        named = [{**CHECKS[0], "layers": ["layer1"]}, CHECKS[1]]
        plan = synthetic.plan(named)
        audit = plan.audit.model_copy(update={"sensitivity": Sensitivity(layers=("layer2",))})
        plan = plan.model_copy(update={"audit": audit})
        other = replace(shortcut.layers[0], layer="layer2")
        measured, scenarios, records = tried(plan, replace(clean, other_layers=(other,)))
        assert state_of(plan, measured) == "satisfied"
        (record,) = of(records, "layer")
        assert record.setting == "layer layer2 instead of layer1"
        assert record.verdict == "not_satisfied"
        assert [(c.check, c.layer, c.before, c.after) for c in record.changes] == [
            ("no-ruler", "layer2", "satisfied", "not_satisfied")
        ]
        scenario = next(one for one in scenarios if one.layer == "layer2")
        direct = measure(at_layer(plan, "layer2"), replace(clean, layers=(other,)), checks.quantities(at_layer(plan, "layer2")))
        assert scenario.quantities == {key: value for key, value in direct.quantities.items() if "layer2" in key}

    def test_a_verdict_near_a_criterion_hangs_on_the_criterion(self) -> None:
        plan = synthetic.plan([synthetic.check("no-ruler", "concept_not_used", {"at_most": 0.61}, concepts=["ruler"])])
        measured, _, records = tried(plan, synthetic.evidence(SHORTCUT, samples=2000))
        assert state_of(plan, measured) == "satisfied"
        stricter, lenient = of(records, "criteria")
        assert (stricter.verdict, lenient.verdict) == ("not_satisfied", "satisfied")


class TestScenarios:
    def test_each_is_what_measuring_under_that_setting_gives(self) -> None:
        plan = synthetic.plan(reference_samples=9)
        evidence = widened(synthetic.evidence(SHORTCUT), 9)
        quantities = checks.quantities(plan)
        measured, scenarios, _ = tried(plan, evidence)
        assert len(scenarios) == planned(plan, evidence)
        changed: dict[str, tuple[dict[str, Any], tuple[LayerEvidence, ...]]] = {
            "6 reference samples instead of 9": ({"reference_samples": 6}, (FirstReferences(evidence.layers[0], 6),)),
            "12 reference samples instead of 9": ({"reference_samples": 12}, evidence.headroom),
            "least z 2.5 instead of 3": ({"significance": 2.5}, evidence.layers),
            "least z 3.5 instead of 3": ({"significance": 3.5}, evidence.layers),
        }
        for setting, (values, layers) in changed.items():
            scenario = next(one for one in scenarios if one.setting == setting)
            direct = measure(
                synthetic.plan(**({"reference_samples": 9} | values)), replace(evidence, layers=layers), quantities
            )
            assert measured.quantities | scenario.quantities == direct.quantities

    def test_what_cannot_be_tried_says_why(self) -> None:
        plan = synthetic.plan(CHECKS)
        records = tried(plan, synthetic.evidence(CLEAN))[2]
        reasons = {record.knob: record.not_tried for record in records if record.not_tried is not None}
        assert reasons == {
            "reference samples": "no component has more than 12 reference samples in the index",
            "prompt templates": "the declared prompt templates hold all those that could be tried",
            "examples": "no concept is defined by two or more example images",
            "layer": "the audit names no other layer to compare with",
        }
        blind = replace(synthetic.evidence(CLEAN), foundation={"text": False})
        assert of(tried(plan, blind)[2], "prompt templates")[0].not_tried == "the foundation model embeds no text"
        least = synthetic.plan(CHECKS, reference_samples=2)
        cut = replace(blind, layers=(FirstReferences(blind.layers[0], 2),))
        assert of(tried(least, cut)[2], "reference samples")[0].not_tried == "2 are the fewest that can be measured with"

    def test_a_setting_that_cannot_be_measured_with_is_no_verdict(self) -> None:
        """Fewer random crops than reference samples of the larger set: an error of that scenario, not of the audit."""
        plan, whole = synthetic.plan(CHECKS, reference_samples=9), synthetic.evidence(CLEAN)
        layer = replace(whole.layers[0], null_embeddings=whole.layers[0].null_embeddings[:10])
        records = tried(plan, widened(replace(whole, layers=(layer,)), 9))[2]
        fewer, more = of(records, "reference samples")
        assert fewer.verdict is not None
        assert more.verdict is None
        assert "10 random crops" in (more.not_tried or "")


class TestMoved:
    @given(st.sampled_from(["at_most", "at_least"]), st.floats(0, 1), st.floats(0.01, 0.9))
    @settings(max_examples=50, deadline=None)
    def test_stricter_is_never_passed_more_easily(self, operator: str, threshold: float, margin: float) -> None:
        kind = "concept_not_used" if operator == "at_most" else "concept_used"
        plan = synthetic.plan([synthetic.check("c", kind, {operator: threshold}, concepts=["ruler"])])
        (strict,), (loose,) = moved(plan, margin).spec.checks, moved(plan, -margin).spec.checks
        low, high = (strict, loose) if operator == "at_most" else (loose, strict)
        assert 0 <= low.criterion.threshold <= threshold <= high.criterion.threshold <= 1
        assert high.criterion.threshold - low.criterion.threshold <= 2 * margin * threshold + 1e-12
        assert strict.criterion.operator == loose.criterion.operator == operator


class TestSentence:
    def test_names_every_setting_that_turns_the_verdict(self) -> None:
        record = sample("clean")
        assert [one.setting for one in hanging(record)] == ["5 other prompt templates", "every criterion 20 % stricter"]
        assert sentence(record) == (
            "The verdict hangs on settings: it would be inconclusive with 5 other prompt templates or every criterion 20 %"
            " stricter. It is the same under the other 3\u00a0changes of settings tried."
        )

    def test_says_that_it_hangs_on_none(self) -> None:
        record = sample("shortcut")
        assert hanging(record) == ()
        assert sentence(record).startswith("The verdict is the same under all 5 changes of settings tried. ")
        calm = tuple(one.model_copy(update={"changes": ()}) for one in record.sensitivity)
        assert sentence(record.model_copy(update={"sensitivity": calm})).endswith(" No result of any check changes.")
        assert sentence(record.model_copy(update={"sensitivity": calm[:1]})) == (
            "The verdict is the same under the one change of settings tried. No result of any check changes."
        )

    def test_is_silent_where_nothing_was_tried(self) -> None:
        record = sample("not_measured")
        assert sentence(record) == ""
        assert sensitivity(record) is None

    def test_stands_in_the_terminal_and_in_the_values_for_scripts(self) -> None:
        record, stream = sample("clean"), io.StringIO()
        screen.print_findings(record, (), Console(width=300, file=stream))
        assert sentence(record) in stream.getvalue()
        assert len(screen.summary(record, (), 0)["sensitivity"]) == 6

    def test_a_page_shows_every_setting_tried_or_why_not(self) -> None:
        page = sensitivity(sample("clean"))
        assert page is not None
        assert [(row.knob, row.other, row.verdict is None) for row in page.rows] == [
            ("Reference samples", False, False),
            ("Reference samples", False, False),
            ("Prompt templates", True, False),
            ("Examples", False, True),
            ("Significance", False, False),
            ("Criteria", True, False),
        ]
        assert page.rows[3].reason == "Not tried: no concept is defined by two or more example images."
        assert page.rows[2].changes[0].where == "melanoma, layer3"

    def test_a_record_has_either_a_verdict_or_a_reason(self) -> None:
        for values in ({}, {"verdict": "satisfied", "not_tried": "no reason"}):
            with pytest.raises(ValueError, match="either tried or has a reason"):
                SensitivityRecord(knob="layer", setting="x", **values)  # type: ignore[arg-type]
