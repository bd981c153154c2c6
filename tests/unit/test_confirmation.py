"""What switching off says of a concept and of findings, exactly as defined."""

from __future__ import annotations

from typing import Any

import pytest

from semlens_audit import checks, verdict
from semlens_audit.confirmation import conclude, confirm, reliance
from semlens_audit.figures import PAPER, SCREEN
from semlens_audit.intervention_pages import interventions
from semlens_audit.limitations import limitations
from semlens_audit.measure import measure
from semlens_audit.records import (
    AblationRecord,
    ConceptRecord,
    ControlRecord,
    EffectRecord,
    Interval,
    InterventionRecord,
    Measurement,
    PresenceRecord,
)
from semlens_audit.report import render_html
from tests.golden.sample_record import sample, small
from tests.unit import synthetic

LABELS = {"ruler": "ruler", "hair": "hair", "border": "irregular border"}


def value(middle: float, half: float = 0.05, unit: str = "logits") -> Measurement:
    interval = Interval(low=middle - half, high=middle + half, level=0.95, method="made up")
    return Measurement.model_validate({"quantity": "q", "unit": unit, "value": middle, "interval": interval, "n": 100})


def none(unit: str = "logits") -> Measurement:
    return Measurement.model_validate({"quantity": "q", "unit": unit, "n": 3, "not_measured": "too few"})


def ablation(
    mediated: Measurement, contrast: Measurement, margin: Measurement | None = None, method: str = "mean"
) -> AblationRecord:
    return AblationRecord.model_validate(
        {
            "method": method,
            "mediated": mediated,
            "margin": margin or value(-0.5),
            "accuracy": value(0.0, 0.01, "difference"),
            "flips": value(0.1, 0.05, "share"),
            "contrast": contrast,
            "control_mediated": (0.1, -0.2),
            "control_margin": (0.0, 0.1),
            "control_accuracy": (0.0, 0.0),
            "control_flips": (0.0, 0.0),
        }
    )


def record(*ablations: AblationRecord, concept: str = "ruler", layer: str = "layer3", **more: Any) -> InterventionRecord:
    return InterventionRecord(
        class_name="melanoma", layer=layer, concept=concept, components=(1, 2), share=0.4, samples=300, holding=80,
        controls=ControlRecord(kind="matched", sets=2, share=0.4, error=0.01, size=2.0), ablations=ablations, **more,
    )  # fmt: skip


def effect(measurement: Measurement) -> EffectRecord:
    return EffectRecord(
        class_name="melanoma",
        concept="ruler",
        effect=measurement,
        presence=PresenceRecord(source="attributes", present={}, absent={}),
    )


def state(*ablations: AblationRecord, outside: Measurement | None = None) -> str:
    return conclude(record(*ablations), [effect(outside)] if outside else [], LABELS, 0.1).state


class TestConclusion:
    def test_confirmed(self) -> None:
        assert state(ablation(value(2.0), value(1.5)), outside=value(3.0)) == "confirmed"
        assert state(ablation(value(-2.0), value(1.5)), outside=value(-3.0)) == "confirmed"
        assert state(ablation(value(2.0), value(1.5))) == "confirmed"
        assert state(ablation(value(2.0), value(1.5)), outside=none()) == "confirmed"

    @pytest.mark.parametrize(
        ("mediated", "contrast", "outside", "why"),
        [
            (value(0.14), value(0.1), value(3.0), "smallest effect of interest, 0.1 logits"),
            (value(2.0, 3.0), value(1.0), value(3.0), "smallest effect of interest"),
            (value(2.0), value(0.04), value(3.0), "random components of equal relevance"),
            (value(2.0), value(-1.0), value(3.0), "random components of equal relevance"),
            (value(2.0), value(1.5), value(-3.0), "From outside"),
            (value(2.0), value(1.5), value(0.1, 0.5), "From outside"),
        ],
    )
    def test_not_confirmed_says_why(self, mediated: Measurement, contrast: Measurement, outside: Measurement, why: str) -> None:
        concluded = conclude(record(ablation(mediated, contrast)), [effect(outside)], LABELS, 0.1)
        assert concluded.state == "not_confirmed"
        assert concluded.sentence.startswith("Not confirmed by intervention")
        assert why in concluded.sentence

    def test_not_used_needs_both_intervals_within(self) -> None:
        assert state(ablation(value(0.02), value(0.0), value(0.01))) == "not_used"
        assert state(ablation(value(0.02), none(), value(0.01))) == "not_used"
        assert state(ablation(value(0.02), value(0.0), value(0.2))) == "not_confirmed"
        assert state(ablation(value(0.06), value(0.0), value(0.0))) == "not_confirmed"

    def test_not_tested_says_why(self) -> None:
        concluded = conclude(record(ablation(none(), none())), [], LABELS, 0.1)
        assert (concluded.state, concluded.sentence) == ("not_tested", "Not tested by intervention: too few.")
        nothing = conclude(record(sentence="no component of layer3 is assigned to ruler"), [], LABELS, 0.1)
        assert nothing.sentence == "Not tested by intervention: no component of layer3 is assigned to ruler."
        assert state(ablation(value(2.0), none())) == "not_tested"

    def test_both_methods_must_say_so(self) -> None:
        good = ablation(value(2.0), value(1.5))
        weak, off = ablation(value(2.0), value(-1.0), method="resampling"), ablation(value(0.0), value(0.0), value(0.0))
        assert state(good, good) == "confirmed"
        assert state(good, weak) == "not_confirmed"
        assert "by resampling ablation" in conclude(record(good, weak), [], LABELS, 0.1).sentence
        assert state(good, off) == "not_confirmed"
        assert "disagree" in conclude(record(good, off), [], LABELS, 0.1).sentence
        assert state(good, ablation(none(), none())) == "not_tested"

    def test_a_smaller_effect_of_interest_changes_the_conclusion(self) -> None:
        measured = record(ablation(value(0.14), value(0.1)))
        assert conclude(measured, [], LABELS, 0.1).state == "not_confirmed"
        assert conclude(measured, [], LABELS, 0.05).state == "confirmed"
        assert conclude(measured, [], LABELS, 0.6).state == "not_used"


def concluded() -> list[InterventionRecord]:
    found = [
        record(ablation(value(2.0), value(1.5))),
        record(ablation(value(0.02), value(0.0), value(0.01)), concept="hair"),
        record(sentence="no component of layer3 is assigned to irregular border", concept="border"),
    ]
    return [conclude(one, [], LABELS, 0.1).model_copy(update={"layer": "layer1"}) for one in found]


class TestFindings:
    def test_each_finding_gets_its_state_and_failed_ones_say_it(self) -> None:
        plan = synthetic.plan()
        evidence = synthetic.evidence({"ruler": 0.5, None: 0.5}, effect=3.0)
        measured = measure(plan, evidence, checks.quantities(plan))
        plain = checks.findings(plan, measured.quantities, measured.class_layers, measured.unrecognised)
        found = {finding.check: finding for finding in confirm(plain, concluded(), LABELS)}
        states = {name: one.confirmation.state if one.confirmation else None for name, one in found.items()}
        assert states == {
            "no-ruler": "confirmed", "spurious": "confirmed", "valid": "not_tested",
            "unexplained": None, "ruler-effect": "confirmed", "clear": None,
        }  # fmt: skip
        assert found["no-ruler"].state == "not_satisfied"
        assert "Confirmed by intervention: the effect of ruler" in found["no-ruler"].explanation
        spurious = found["spurious"].confirmation
        assert spurious is not None
        assert spurious.sentence == "Relies on, confirmed by intervention: ruler; aligned but not used: hair."
        assert [f.state for f in plain] == [f.state for f in found.values()]
        concepts = [ConceptRecord(id=c.id, label=c.label, role=c.role) for c in plan.spec.concepts]
        decided = verdict.decide(list(found.values()), concepts, measured.class_layers, "Model A", interventions=concluded())
        assert "rest on ruler (confirmed by intervention)" in decided.headline
        bare = verdict.decide(plain, concepts, measured.class_layers, "Model A")
        assert decided.model_copy(update={"headline": ""}) == bare.model_copy(update={"headline": ""})
        assert "intervention" not in bare.headline

    def test_headlines(self) -> None:
        ruler, hair, _ = concluded()
        assert reliance("melanoma", {"ruler": False, "hair": False}, [ruler, hair], LABELS) == [
            "decisions for melanoma rest on ruler (confirmed by intervention)",
            "components aligned with hair hold relevance for melanoma, but are not used",
        ]
        assert reliance("melanoma", {"hair": True}, [hair], LABELS) == [
            "decisions for melanoma rest on hair (not confirmed by intervention)"
        ]
        assert reliance("melanoma", {"ruler": True, "hair": False}, [], LABELS) == [
            "decisions for melanoma rest on ruler and hair"
        ]
        weaker = ruler.model_copy(update={"state": "not_confirmed"})
        assert reliance("melanoma", {"ruler": False}, [weaker, ruler], LABELS) == [
            "decisions for melanoma rest on ruler (confirmed by intervention)"
        ]


class TestTexts:
    def test_limitations_say_what_was_tested(self) -> None:
        plan, evidence = synthetic.plan(), synthetic.evidence({"ruler": 0.5, None: 0.5})
        measured = measure(plan, evidence, checks.quantities(plan))
        tested = " ".join(limitations(plan, measured, text=True, interventions=concluded()))
        assert "switching them off on 300 of the test samples" in tested
        assert "Not tested by intervention: border (melanoma, layer1)" in tested
        assert "not the result of an intervention" not in tested
        assert "not the result of an intervention" in " ".join(limitations(plan, measured, text=True))

    @pytest.mark.parametrize("palette", [SCREEN, PAPER])
    def test_the_page_shows_every_concept_and_reason(self, palette: Any) -> None:
        shown = interventions(sample("shortcut").model_copy(update={"interventions": tuple(_renamed())}), palette)
        assert shown is not None
        assert [row.concept for row in shown.rows] == ["Ruler", "Hair"]
        assert [row.conclusion for row in shown.rows] == ["Relies on, confirmed by intervention", "Aligned but not used"]
        assert shown.rows[0].figure.svg.count("<circle") == 3
        assert "control sets" in shown.rows[0].figure.alt or "control" in shown.rows[0].figure.alt
        assert len(shown.sentences) == 1
        assert [name for name, _ in shown.untested] == ["Irregular border (melanoma, layer1)"]
        assert len(shown.changes.rows) == len(shown.controls.rows) == 2

    def test_the_report_carries_it(self) -> None:
        text = render_html(sample("shortcut").model_copy(update={"interventions": tuple(_renamed())}))
        assert "What happens when the components are switched off" in text
        assert "no component of layer3 is assigned to irregular border" in text
        assert "What happens when the components are switched off" not in render_html(small())


def _renamed() -> list[InterventionRecord]:
    return [
        one.model_copy(update={"concept": {"border": "irregular_border"}.get(one.concept, one.concept)}) for one in concluded()
    ]
