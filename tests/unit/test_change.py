"""What became of each finding since a baseline: labels, what is not compared, error rates over simulated releases."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from semlens_audit import change
from semlens_audit.digest import digest
from semlens_audit.errors import ExitCode, IntegrityError
from semlens_audit.measured import Interval, Measurement, State
from semlens_audit.plan import Criterion
from semlens_audit.proportions import clopper_pearson
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import ChangeEntry, ChangeRecord, InfluenceRecord
from tests.benchmarks.change_world import Model, World, plan, without_pairing
from tests.benchmarks.coverage_world import Population
from tests.golden.sample_record import sample, small


def share(value: float, half: float = 0.05) -> Measurement:
    interval = Interval(low=max(value - half, 0.0), high=min(value + half, 1.0), level=0.95, method="made up")
    return Measurement(quantity="reliance", unit="share", value=value, interval=interval, n=200)


def missing() -> Measurement:
    return Measurement(quantity="reliance", unit="share", n=3, not_measured="3 samples, 30 needed")


def defined(record: AuditRecord) -> AuditRecord:
    concepts = tuple(concept.model_copy(update={"definition_sha256": digest(concept.id)}) for concept in record.concepts)
    return record.model_copy(update={"concepts": concepts, "stages": {}})


@cache
def base() -> AuditRecord:
    """One mechanistic finding with a criterion "at most 15 %"."""
    record = defined(small())
    finding = next(f for f in record.findings if f.line == "mechanistic")
    return record.model_copy(update={"findings": (finding,)})


def held(measurement: Measurement, state: State = "satisfied", *, of: AuditRecord | None = None, **fields: Any) -> AuditRecord:
    record = of or base()
    finding = record.findings[0].model_copy(update={"measurement": measurement, "state": state, **fields})
    return record.model_copy(update={"findings": (finding,)})


def only(found: ChangeRecord) -> ChangeEntry:
    assert found.refused is None
    (entry,) = found.entries
    return entry


def test_a_record_has_not_changed_since_itself() -> None:
    record = defined(sample("shortcut"))
    found = change.compare(record, record)
    assert {entry.label for entry in found.entries} <= {"within_noise", "not_comparable"}
    for entry in found.entries:
        assert (entry.label == "not_comparable") == (entry.new is not None and entry.new.value is None)
    assert change.exit_code(found) is ExitCode.SATISFIED
    assert "Both audits are of the same weights." in found.sentence


@pytest.mark.parametrize(
    ("old", "new", "states", "label", "code"),
    [
        (0.10, 0.40, ("satisfied", "not_satisfied"), "new", 1),
        (0.20, 0.23, ("satisfied", "not_satisfied"), "new", 1),
        (0.40, 0.10, ("not_satisfied", "satisfied"), "fixed", 0),
        (0.05, 0.20, ("satisfied", "satisfied"), "worsened", 1),
        (0.20, 0.05, ("satisfied", "satisfied"), "improved", 0),
        (0.20, 0.40, ("satisfied", "inconclusive"), "worsened", 1),
        (0.50, 0.70, ("not_satisfied", "not_satisfied"), "worsened", 1),
        (0.20, 0.22, ("satisfied", "satisfied"), "within_noise", 0),
        (0.22, 0.24, ("satisfied", "inconclusive"), "within_noise", 0),
        (0.24, 0.28, ("inconclusive", "not_satisfied"), "within_noise", 0),
    ],
)
def test_labels(old: float, new: float, states: tuple[State, State], label: str, code: int) -> None:
    found = change.compare(held(share(old), states[0]), held(share(new), states[1]))
    entry = only(found)
    assert (entry.label, int(change.exit_code(found))) == (label, code)
    assert entry.difference is not None
    assert entry.difference.value == pytest.approx(new - old)
    assert ("within noise" in entry.sentence) == (abs(new - old) < 0.1)
    assert ("From " in entry.sentence) == (states[0] != states[1])
    assert "taken as independent" in entry.sentence


def test_at_least_turns_what_is_worse() -> None:
    criterion = Criterion(at_least=0.1)
    found = change.compare(held(share(0.6), criterion=criterion), held(share(0.3), criterion=criterion))
    assert only(found).label == "worsened"


def test_added_and_removed_results_are_named_and_a_lost_one_is_no_pass() -> None:
    there, gone = held(share(0.1)), base().model_copy(update={"findings": ()})
    assert [(e.label, e.new is not None) for e in change.compare(gone, there).entries] == [("added", True)]
    assert change.exit_code(change.compare(gone, there)) is ExitCode.SATISFIED
    removed = change.compare(there, gone)
    assert [(e.label, e.old is not None) for e in removed.entries] == [("removed", True)]
    assert change.exit_code(removed) is ExitCode.INCONCLUSIVE


def test_what_was_measured_then_and_not_now_is_no_pass() -> None:
    lost = change.compare(held(share(0.1)), held(missing(), "not_measured"))
    assert only(lost).label == "not_comparable"
    assert "could not be measured now" in only(lost).sentence
    assert change.exit_code(lost) is ExitCode.INCONCLUSIVE
    neither = change.compare(held(missing(), "not_measured"), held(missing(), "not_measured"))
    assert change.exit_code(neither) is ExitCode.SATISFIED
    assert "did not measure it" in only(change.compare(held(missing(), "not_measured"), held(share(0.1)))).sentence


def test_another_criterion_is_not_compared_but_its_difference_is_given() -> None:
    found = change.compare(held(share(0.1)), held(share(0.4), criterion=Criterion(at_most=0.9)))
    entry = only(found)
    assert entry.label == "not_comparable"
    assert "at most 15" in entry.sentence
    assert entry.difference is not None
    assert change.exit_code(found) is ExitCode.INCONCLUSIVE


def settings(**fields: Any) -> AuditRecord:
    record = held(share(0.4))
    return record.model_copy(update={"settings": record.settings.model_copy(update=fields)})


def redefined(name: str) -> AuditRecord:
    record = held(share(0.4))
    concepts = tuple(
        c.model_copy(update={"definition_sha256": digest("other")}) if c.id == name else c for c in record.concepts
    )
    return record.model_copy(update={"concepts": concepts})


def test_other_quantities_are_not_compared() -> None:
    old, record = held(share(0.1)), held(share(0.4))
    finding = record.findings[0]
    other = next(c.id for c in record.concepts if c.id not in finding.concepts)
    cases = {
        "measured something else": held(share(0.4), kind="concept_used"),
        "another class": held(share(0.4), class_name="naevus"),
        "other concepts": held(share(0.4), concepts=(other,)),
        "selection relevance, and activation now": settings(selection="activation"),
        f"the definition of {other} was changed": redefined(other),
        "among the concepts": record.model_copy(update={"concepts": record.concepts[:-1]}),
        "does not say how its concepts were defined": record.model_copy(
            update={"concepts": tuple(c.model_copy(update={"definition_sha256": None}) for c in record.concepts)}
        ),
        "attributed by": record.model_copy(
            update={"layers": tuple(layer.model_copy(update={"attribution": "another"}) for layer in record.layers)}
        ),
    }
    for words, new in cases.items():
        entry = only(change.compare(old, new))
        assert entry.label == "not_comparable", words
        assert words in entry.sentence
        assert entry.difference is None


def test_settings_that_change_precision_only_stay_comparable() -> None:
    assert only(change.compare(held(share(0.1)), settings(bootstrap=2000, confidence=0.9, batch_size=3))).label == "worsened"


def test_the_same_probes_are_the_same_definitions_even_in_older_records() -> None:
    old, new = (
        held(share(value), of=base().model_copy(update={
            "stages": {"probes": "a" * 64},
            "concepts": tuple(c.model_copy(update={"definition_sha256": None}) for c in base().concepts),
        }))
        for value in (0.1, 0.4)
    )  # fmt: skip
    assert only(change.compare(old, new)).label == "worsened"


def test_another_spec_or_foundation_model_is_refused() -> None:
    old = held(share(0.1))
    for fields, words in (
        ({"spec": old.spec.model_copy(update={"name": "other"})}, "another spec, "),
        ({"foundation_model": old.foundation_model.model_copy(update={"sha256": "f" * 64})}, "another foundation model"),
    ):
        found = change.compare(old, old.model_copy(update=fields))
        assert found.refused is not None
        assert words in found.refused
        assert found.entries == ()
        assert change.exit_code(found) is ExitCode.USAGE


def test_a_changed_spec_of_the_same_name_and_other_data_are_said() -> None:
    old = held(share(0.1))
    new = held(share(0.4)).model_copy(
        update={
            "spec": old.spec.model_copy(update={"sha256": "f" * 64}),
            "data": old.data.model_copy(update={"sha256": "f" * 64}),
            "subject": old.subject.model_copy(update={"weights_sha256": "f" * 64}),
        }
    )
    found = change.compare(old, new)
    assert only(found).label == "worsened"
    assert "The spec was changed" in found.sentence
    assert "The test data differ" in found.sentence


def test_many_comparisons_are_adjusted_together() -> None:
    record = defined(sample("shortcut"))
    mechanistic = [f for f in record.findings if f.line == "mechanistic" and f.criterion.operator == "at_most"]
    template = mechanistic[0]
    findings = tuple(template.model_copy(update={"check": f"c{i}", "state": "satisfied"}) for i in range(20))

    def of(values: list[float]) -> AuditRecord:
        moved = tuple(f.model_copy(update={"measurement": share(v)}) for f, v in zip(findings, values, strict=True))
        return record.model_copy(update={"findings": moved})

    # 1.96 standard deviations of the difference are 7.1 points
    alone = change.compare(of([0.3] * 20), of([0.3] * 19 + [0.38]))
    assert alone.entries[-1].label == "within_noise"
    assert alone.entries[-1].p_value is not None
    assert alone.entries[-1].p_value < 0.05 < (alone.entries[-1].adjusted_p or 0)
    assert "alone it would not be" in alone.entries[-1].sentence
    assert change.compare(of([0.3] * 20), of([0.3] * 19 + [0.5])).entries[-1].label == "worsened"
    single = (of([0.3] * 20), of([0.38] * 20))
    first = [r.model_copy(update={"findings": r.findings[:1]}) for r in single]
    assert change.compare(*first).entries[0].label == "worsened"


def test_sizes_of_effects_are_compared_not_their_signs() -> None:
    record = defined(sample("shortcut"))
    finding = next(f for f in record.findings if f.kind == "behavioural_effect" and f.measurement.value is not None)
    effect = next(e for e in record.effects if e.concept == finding.concepts[0])

    def of(value: float) -> AuditRecord:
        interval = Interval(low=value - 0.2, high=value + 0.2, level=0.95, method="made up")
        size = Interval(low=max(abs(value) - 0.2, 0.0), high=abs(value) + 0.2, level=0.95, method="made up")
        found = effect.effect.model_copy(update={"value": value, "interval": interval})
        own = finding.measurement.model_copy(update={"value": abs(value), "interval": size})
        return record.model_copy(
            update={
                "effects": (effect.model_copy(update={"effect": found}),),
                "findings": (
                    finding.model_copy(update={"measurement": own, "criterion": Criterion(at_most=9.0), "state": "satisfied"}),
                ),
            }
        )

    turned = only(change.compare(of(-2.0), of(2.0)))
    assert turned.label == "within_noise"
    assert turned.difference is not None
    assert turned.difference.value == 0.0
    assert only(change.compare(of(-2.0), of(3.0))).label == "worsened"
    assert only(change.compare(of(3.0), of(-2.0))).label == "improved"


def test_records_that_hold_numbers_that_cannot_be_are_refused() -> None:
    record = held(share(0.1))
    finding = record.findings[0]
    key = "|".join([finding.kind, finding.class_name, finding.layer or "-", ",".join(finding.concepts), ""])

    def influence(values: str, length: int) -> AuditRecord:
        one = InfluenceRecord(quantity=key, basis="draws", basis_sha256="0" * 64, length=length, values=values)
        return record.model_copy(update={"influences": (one,)})

    assert only(change.compare(influence("AACAPwAAgD8=", 2), influence("AACAPwAAgD8=", 2))).paired
    for old, new in (
        (influence("AACAPw==", 1), influence("AACAPwAAgD8=", 2)),
        (influence("AACAPw==", 2), influence("AACAPwAAgD8=", 2)),
        (influence("!", 1), influence("!", 1)),
        (influence("AADAfw==", 1), influence("AADAfw==", 1)),
    ):
        with pytest.raises(IntegrityError) as caught:
            change.compare(old, new)
        assert caught.value.slug == "invalid-influences"
    huge = Interval(low=-1.7e308, high=1.7e308, level=0.95, method="made up")
    broken = share(0.1).model_copy(update={"interval": huge})
    with pytest.raises(IntegrityError) as caught:
        change.compare(held(broken), held(broken))
    assert caught.value.slug == "invalid-measurement"


def test_a_comparison_is_a_pure_function() -> None:
    old, new = held(share(0.1)), held(share(0.4), "not_satisfied")
    assert change.compare(old, new).model_dump_json() == change.compare(old, new).model_dump_json()


ASKED = plan(bootstrap=100, null_sets=100, reference_samples=10)
PAIRS = 100


def releases(seed: int, factor: float, effect: float) -> tuple[AuditRecord, AuditRecord]:
    """Records of two releases on the same samples."""
    old = Model(Population.draw(100 + seed, near=0.1, components=8, samples=100, dimension=12))
    world = World(seed, samples=100, pairs=30, crops=150, dimension=12)
    return world.record(ASKED, old, 0), world.record(ASKED, old.worse(factor, effect), 1)


@pytest.mark.slow
def test_releases_that_did_not_change_are_seldom_called_worse_or_better() -> None:
    wrong, covered, shown = 0, 0, 0
    for seed in range(PAIRS):
        found = change.compare(*releases(seed, 1.0, 0.3))
        labels = {entry.label for entry in found.entries}
        wrong += bool(labels & {"worsened", "improved"})
        for entry in found.entries:
            if entry.difference is not None and entry.difference.interval is not None:
                shown += 1
                assert entry.paired
                covered += entry.difference.interval.low <= 0.0 <= entry.difference.interval.high
    # whatever is called changed is a false claim: at most 5 % of comparisons may hold one
    assert clopper_pearson(wrong, PAIRS, 0.99)[0] <= 0.05
    assert wrong < 0.13 * PAIRS
    # 95 % intervals of the difference; the results of a pair are not independent, which the margin allows for
    assert covered / shown > 0.92


@pytest.mark.slow
def test_releases_that_got_worse_are_called_worsened() -> None:
    found_paired, found_apart = 0, 0
    for seed in range(PAIRS):
        records = releases(seed, 2.0, 1.2)
        labels = {e.finding: e.label for e in change.compare(*records).entries}
        apart = {e.finding: e.label for e in change.compare(*without_pairing(records)).entries}
        found_paired += labels["ruler-pairs/ruler"] == "worsened"
        found_apart += apart["ruler-pairs/ruler"] == "worsened"
        assert labels["ruler-pairs/ruler"] != "improved"
    assert found_paired >= 0.9 * PAIRS
    assert found_paired >= found_apart
