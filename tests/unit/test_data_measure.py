"""Presence by class, subgroup gaps and pair effects against counts made by hand, on made-up evidence."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import checks, proportions, verdict
from semlens_audit.checks import Quantity
from semlens_audit.data_measure import DataMeasured, measure_data
from semlens_audit.evidence import Evidence, PairEvidence
from semlens_audit.limitations import limitations
from semlens_audit.measure import Measurements, measure
from semlens_audit.plan import AuditPlan
from semlens_audit.records import DataPresence, Finding, SubgroupRecord
from tests.unit import synthetic

SHARES: dict[str | None, float] = {"border": 0.1, "ruler": 0.3, "hair": 0.0, None: 0.6}
CHECKS = [
    synthetic.check("gaps", "subgroup_gap", {"at_most": 0.1}),
    synthetic.check("presence", "concept_presence", {"at_most": 0.2}, concepts=["ruler"]),
    synthetic.check("pairs", "pair_effect", {"at_most": 1.0}, concepts=["ruler"]),
]


def cells(counts: dict[tuple[int, int, int], int], **more: Any) -> Evidence:
    """Evidence with that many samples of each (label, ruler, predicted); ruler -1 is unknown."""
    rows = np.array([key for key, count in counts.items() for _ in range(count)])
    base = synthetic.evidence(SHARES, samples=len(rows))
    margin = np.where(rows[:, 2] == 1, 2.0, -2.0)
    values: dict[str, Any] = {
        "labels": rows[:, 0].astype(np.int64),
        "logits": np.stack([np.zeros(len(rows)), margin], axis=1).astype(np.float32),
        "attributes": {"ruler": rows[:, 1].astype(np.int8)},
    }
    return dataclasses.replace(base, **(values | more))


def measured(evidence: Evidence, plan: AuditPlan | None = None, unrecognised: dict[str, str] | None = None) -> DataMeasured:
    plan = plan or synthetic.plan(CHECKS)
    return measure_data(plan, evidence, checks.quantities(plan), unrecognised or {})


def of(found: DataMeasured, concept: str = "ruler") -> tuple[DataPresence, SubgroupRecord]:
    record = next(entry for entry in found.presence if entry.concept == concept)
    return record, record.subgroups[0]


def value_of(found: DataMeasured, kind: Any, concept: str = "ruler") -> Any:
    return found.values[Quantity(kind, "melanoma", None, (concept,), absolute=True).key]


# 60 melanomas with ruler (57 found), 40 without (20 found), 15 naevi with (6 taken for melanoma), 85 without (5).
COUNTS = {
    (1, 1, 1): 57, (1, 1, 0): 3, (1, 0, 1): 20, (1, 0, 0): 20,
    (0, 1, 1): 6, (0, 1, 0): 9, (0, 0, 1): 5, (0, 0, 0): 80,
}  # fmt: skip


class TestCounts:
    def test_presence_by_class(self) -> None:
        record, part = of(measured(cells(COUNTS)))
        assert (part.inside.hits, part.inside.n, part.outside.hits, part.outside.n) == (60, 100, 15, 100)
        assert {name: (p.hits, p.n) for name, p in record.by_class.items()} == {"mel": (60, 100), "nevus": (15, 100)}
        assert record.source == "attributes"
        low, high = proportions.difference(0.6, 100, 0.15, 100, 0.95)
        assert part.difference.value == pytest.approx(0.45)
        assert part.difference.interval is not None
        assert (part.difference.interval.low, part.difference.interval.high) == pytest.approx((low, high))

    def test_recall_with_and_without(self) -> None:
        _, part = of(measured(cells(COUNTS)))
        assert (part.recall_with.hits, part.recall_with.n) == (57, 60)
        assert (part.recall_without.hits, part.recall_without.n) == (20, 40)
        assert (part.false_with.hits, part.false_with.n) == (6, 15)
        assert (part.false_without.hits, part.false_without.n) == (5, 85)
        assert part.gap.value == pytest.approx(57 / 60 - 20 / 40)
        assert part.gap.n == 100

    def test_a_criterion_is_held_against_the_size(self) -> None:
        turned = {(label, 1 - ruler, predicted): n for (label, ruler, predicted), n in COUNTS.items()}
        found = measured(cells(turned))
        assert of(found)[1].gap.value == pytest.approx(20 / 40 - 57 / 60)
        assert value_of(found, "subgroup_gap").value == pytest.approx(57 / 60 - 20 / 40)
        assert value_of(found, "subgroup_gap").interval.low == pytest.approx(proportions.difference(0.95, 60, 0.5, 40, 0.95)[0])

    def test_unknown_attributes_count_nowhere(self) -> None:
        record, part = of(measured(cells(COUNTS | {(1, -1, 1): 30, (0, -1, 0): 7})))
        assert record.unknown == 37
        assert (part.inside.n, part.outside.n, part.recall_with.n + part.recall_without.n) == (100, 100, 100)

    @given(st.lists(st.integers(0, 12), min_size=8, max_size=8))
    @settings(max_examples=25)
    def test_slow_loop(self, numbers: list[int]) -> None:
        keys = [(label, ruler, predicted) for label in (0, 1) for ruler in (0, 1) for predicted in (0, 1)]
        evidence = cells(dict(zip(keys, [n + 1 for n in numbers], strict=True)))
        _, part = of(measured(evidence))
        tally: dict[tuple[int, int, int], int] = {}
        for label, ruler, logits in zip(evidence.labels, evidence.attributes["ruler"], evidence.logits, strict=True):
            key = (int(label), int(ruler), int(logits[1] > logits[0]))
            tally[key] = tally.get(key, 0) + 1
        assert part.recall_with.hits == tally[1, 1, 1]
        assert part.recall_with.n == tally[1, 1, 1] + tally[1, 1, 0]
        assert part.false_without.hits == tally[0, 0, 1]
        assert part.outside.hits == tally[0, 1, 0] + tally[0, 1, 1]
        few = min(part.recall_with.n, part.recall_without.n) < 10
        assert (part.gap.value is None) == few
        assert (part.difference.value is None) == (min(part.inside.n, part.outside.n) < 30)

    def test_the_order_of_samples_does_not_matter(self) -> None:
        evidence, order = cells(COUNTS), np.random.default_rng(1).permutation(200)
        shuffled = dataclasses.replace(
            evidence,
            labels=evidence.labels[order],
            logits=evidence.logits[order],
            attributes={"ruler": evidence.attributes["ruler"][order]},
            image_embeddings=evidence.image_embeddings[order],
        )
        assert of(measured(shuffled))[1] == of(measured(evidence))[1]


class TestNotMeasured:
    def test_few_samples_in_a_cell(self) -> None:
        _, part = of(measured(cells({(1, 1, 1): 9, (1, 0, 1): 50, (0, 0, 0): 60})))
        assert part.gap.value is None
        assert part.gap.not_measured == "9 samples of class melanoma with ruler, 10 needed"
        assert part.difference.value is not None

    def test_few_samples_of_a_class(self) -> None:
        _, part = of(measured(cells({(1, 1, 1): 12, (0, 0, 0): 60})))
        assert part.difference.not_measured == "12 samples of class melanoma, 30 needed"

    def test_copies_are_no_samples(self) -> None:
        counts = {(1, 1, 1): 18, (1, 0, 1): 60, (0, 0, 0): 60}
        evidence = cells(counts, groups=np.concatenate([np.repeat(np.arange(9), 2), np.arange(100, 220)]))
        _, part = of(measured(evidence))
        assert part.gap.not_measured == "18 samples of class melanoma with ruler in 9 independent units, 10 needed"

    def test_a_concept_that_is_not_recognised(self) -> None:
        plan = synthetic.plan([synthetic.check("gaps", "subgroup_gap", {"at_most": 0.1})])
        found = measured(cells(COUNTS), plan, {"hair": "the foundation model does not recognise hair"})
        assert value_of(found, "subgroup_gap", "hair").not_measured == "the foundation model does not recognise hair"
        assert of(found, "hair")[0].pictures == ()
        # Attributes tell where the ruler is, whatever the foundation model makes of it.
        same = measured(cells(COUNTS), plan, {"ruler": "the foundation model does not recognise ruler"})
        assert value_of(same, "subgroup_gap", "ruler").value == pytest.approx(0.45)

    def test_presence_that_cannot_be_told(self) -> None:
        noise = synthetic.unit(np.random.default_rng(0).normal(size=(200, synthetic.DIMENSION))).astype(np.float32)
        found = measured(cells(COUNTS, attributes={}, image_embeddings=noise))
        record, part = of(found)
        reason = "the foundation model's scores do not tell which samples hold ruler"
        assert (record.source, record.not_measured, record.pictures) == ("foundation model", reason, ())
        assert part.gap.not_measured == part.difference.not_measured == reason
        assert value_of(found, "concept_presence").not_measured == reason

    def test_an_error_is_never_a_pass(self) -> None:
        plan = synthetic.plan(CHECKS)
        few = cells({(1, 1, 1): 3, (1, 0, 1): 4, (0, 0, 0): 5})
        found = measured(few, plan)
        states = {finding.state for finding in findings(plan, found)}
        assert states == {"not_measured"}


def findings(plan: AuditPlan, found: DataMeasured) -> list[Finding]:
    return checks.findings(plan, found.values, (), remarks=found.remarks)


class TestIntervals:
    def test_copying_every_sample_narrows_nothing(self) -> None:
        evidence = cells(COUNTS)
        twice = dataclasses.replace(
            evidence,
            labels=np.tile(evidence.labels, 2),
            logits=np.tile(evidence.logits, (2, 1)),
            image_embeddings=np.tile(evidence.image_embeddings, (2, 1)),
            attributes={"ruler": np.tile(evidence.attributes["ruler"], 2)},
            paths=tuple(f"{n}/{path}" for n in (1, 2) for path in evidence.paths),
            groups=np.tile(np.arange(200), 2),
        )
        once, again = of(measured(evidence))[1], of(measured(twice))[1]
        assert again.gap.n == 2 * once.gap.n
        for name in ("gap", "difference"):
            a, b = getattr(once, name).interval, getattr(again, name).interval
            assert (b.low, b.high) == pytest.approx((a.low, a.high))

    def test_asked_values_carry_nested_intervals_and_records_do_not(self) -> None:
        found = measured(cells(COUNTS))
        assert of(found)[1].gap.interval is not None
        assert of(found)[1].gap.interval.nested == ()
        plain = Quantity("concept_presence", "melanoma", None, ("ruler",), absolute=False)
        asked = measure_data(synthetic.plan(CHECKS), cells(COUNTS), [plain], {}).values[plain.key]
        assert asked.interval is not None
        widths = [high - low for _, low, high in asked.interval.nested]
        assert len(widths) > 5
        assert widths == sorted(widths, reverse=True)


def pairs(changes: np.ndarray, units: np.ndarray | None = None, concept: str = "ruler") -> PairEvidence:
    """Pairs whose margin of class 1 is -0.5 without the concept and changes by `changes`."""
    zero = np.zeros(len(changes))
    return PairEvidence(
        concepts=(concept,) * len(changes),
        without=np.stack([zero, zero - 0.5], axis=1),
        present=np.stack([zero, changes - 0.5], axis=1),
        units=np.arange(len(changes)) if units is None else units,
    )


class TestPairs:
    def test_mean_change_of_the_margin(self) -> None:
        changes = np.random.default_rng(0).normal(1.5, 0.8, 50)
        found = measured(cells(COUNTS, pairs=pairs(changes)))
        (record,) = found.pairs
        assert record.effect.value == pytest.approx(changes.mean())
        assert record.effect.interval is not None
        assert (record.effect.interval.low, record.effect.interval.high) == pytest.approx(proportions.mean(changes, 0.95))
        assert (record.towards, record.away, record.pairs) == (int((changes > 0.5).sum()), 0, 50)
        assert value_of(found, "pair_effect").value == pytest.approx(changes.mean())
        assert "Of 50" in found.remarks[Quantity("pair_effect", "melanoma", None, ("ruler",), True).key]

    def test_pairs_that_share_an_image_count_once(self) -> None:
        changes = np.random.default_rng(1).normal(-2, 1, 40)
        once = measured(cells(COUNTS, pairs=pairs(changes))).pairs[0].effect
        twice = measured(cells(COUNTS, pairs=pairs(np.tile(changes, 2), np.tile(np.arange(40), 2)))).pairs[0].effect
        assert twice.n == once.n == 40
        assert twice.interval is not None
        assert once.interval is not None
        assert (twice.interval.low, twice.interval.high) == pytest.approx((once.interval.low, once.interval.high))

    def test_few_pairs(self) -> None:
        found = measured(cells(COUNTS, pairs=pairs(np.ones(12))))
        assert value_of(found, "pair_effect").not_measured == "12 counterfactual pairs of ruler, 30 needed"

    def test_no_pairs_at_all_and_none_of_the_concept(self) -> None:
        assert value_of(measured(cells(COUNTS)), "pair_effect").not_measured == "the audit's data has no counterfactual pairs"
        other = measured(cells(COUNTS, pairs=pairs(np.ones(40), concept="hair")))
        reason = "none of the counterfactual pairs is of this concept"
        assert value_of(other, "pair_effect").not_measured == reason
        assert [record.concept for record in other.pairs] == ["hair"]

    def test_a_negative_effect_fails_a_criterion_on_the_size(self) -> None:
        plan = synthetic.plan(CHECKS[2:])
        found = measured(cells(COUNTS, pairs=pairs(np.random.default_rng(2).normal(-3, 0.5, 40))), plan)
        (finding,) = findings(plan, found)
        assert finding.state == "not_satisfied"
        assert finding.line == "counterfactual"


class TestPictures:
    def test_every_picture_shows_what_it_is_listed_for(self) -> None:
        evidence = synthetic.evidence(SHARES, samples=300, correlation=0.7)
        found = measured(evidence)
        at = {path: index for index, path in enumerate(evidence.paths)}
        record, _ = of(found)
        assert 0 < len(record.pictures) <= 12
        for shown in record.pictures:
            index = at[shown.sample]
            assert evidence.attributes["ruler"][index] == 1
            assert shown.label == evidence.classes[evidence.labels[index]]
            assert shown.predicted == evidence.classes[evidence.logits[index].argmax()]
            assert shown.group == ("melanoma" if shown.label == "mel" else "other classes")
        taken = [shown.sample for entry in found.presence for shown in entry.pictures]
        assert len(taken) == len(set(taken))

    def test_the_most_strongly_tied_concept_comes_first(self) -> None:
        found = measured(synthetic.evidence(SHARES, samples=300, correlation=0.95))
        assert [entry.concept for entry in found.presence] == ["ruler", "hair"]
        assert found.presence[0].entangled == ("melanoma",)
        assert found.presence[1].entangled == ()


def whole(evidence: Evidence, plan: AuditPlan) -> tuple[Measurements, list[Finding]]:
    quantities = checks.quantities(plan)
    values = measure(plan, evidence, quantities)
    return values, checks.findings(plan, values.quantities, values.class_layers, values.unrecognised, remarks=values.remarks)


class TestWords:
    def test_a_finding_says_what_it_rests_on(self) -> None:
        plan = synthetic.plan(CHECKS)
        _, found = whole(cells(COUNTS), plan)
        gap = next(finding for finding in found if finding.kind == "subgroup_gap" and finding.concepts == ("ruler",))
        assert gap.line == "data"
        assert gap.state == "not_satisfied"
        assert "differs by 45\u00a0pp" in gap.explanation
        assert "95\u00a0% (86–98\u00a0%) of 60\u00a0images with it" in gap.explanation
        assert "told by the data's own attributes." in gap.explanation
        seen = next(finding for finding in found if finding.kind == "subgroup_gap" and finding.concepts == ("hair",))
        assert "is what the foundation model sees." in seen.explanation

    def test_what_the_data_show_is_no_statement_on_decisions(self) -> None:
        plan = synthetic.plan(CHECKS[:2])
        values, found = whole(cells(COUNTS), plan)
        headline = verdict.decide(found, (), values.class_layers, "Model A").headline
        assert "rest on" not in headline
        assert "not satisfied" in headline

    def test_pairs_take_part_in_the_agreement_of_lines(self) -> None:
        plan = synthetic.plan(
            [
                synthetic.check("no-ruler", "concept_not_used", {"at_most": 0.2}, concepts=["ruler"]),
                synthetic.check("effect", "behavioural_effect", {"at_most": 1.0}, concepts=["ruler"]),
                *CHECKS[2:],
            ]
        )
        evidence = synthetic.evidence(SHARES, effect=3.0)
        alone, both = (
            verdict._agreement(whole(one, plan)[1], {"ruler": "ruler"})
            for one in (evidence, dataclasses.replace(evidence, pairs=pairs(np.random.default_rng(3).normal(3, 0.5, 40))))
        )
        assert "Counterfactual pairs: not measured" in alone[0]
        assert "In counterfactual pairs, the margin moves by 2.98" in both[0]
        assert both[0].endswith("beyond its criterion.")

    def test_entangled_data_is_a_limitation(self) -> None:
        plan = synthetic.plan(CHECKS)
        tied, _ = whole(synthetic.evidence(SHARES, samples=300, correlation=0.97), plan)
        assert any(line.startswith("The test data tie ruler to melanoma") for line in limitations(plan, tied, text=True))
        free, _ = whole(synthetic.evidence(SHARES, samples=300, correlation=0.5), plan)
        assert not any("The test data tie" in line for line in limitations(plan, free, text=True))
