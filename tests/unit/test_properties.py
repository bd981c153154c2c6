"""What must hold of every verdict, whatever the evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import checks, verdict
from semlens_audit.errors import AuditError, ExitCode
from semlens_audit.evidence import Evidence
from semlens_audit.measure import Measurements, measure
from semlens_audit.plan import AuditPlan, Criterion
from semlens_audit.records import ConceptRecord, Finding, Measurement, Verdict
from tests.unit import synthetic

CLEAN: dict[str | None, float] = {"border": 0.7, "ruler": 0.02, "hair": 0.02, None: 0.26}
RANK = {"not_satisfied": 0, "inconclusive": 1, "satisfied": 2}
QUICK: dict[str, Any] = {"bootstrap": 150, "null_sets": 150}


def _measured(plan: AuditPlan, evidence: Evidence) -> Measurements:
    return measure(plan, evidence, checks.quantities(plan))


def _decided(plan: AuditPlan, measured: Measurements) -> tuple[Verdict, list[Finding]]:
    found = checks.findings(plan, measured.quantities, measured.class_layers, measured.unrecognised)
    concepts = [ConceptRecord(id=c.id, label=c.label, role=c.role) for c in plan.spec.concepts]
    return verdict.decide(found, concepts, measured.class_layers, "Model A"), found


def _mixture(seed: int) -> dict[str | None, float]:
    parts = np.random.default_rng(seed).dirichlet(np.ones(4))
    return dict(zip(("border", "ruler", "hair", None), (float(part) for part in parts), strict=True))


def _layer(evidence: Evidence, **changes: object) -> Evidence:
    return dataclasses.replace(evidence, layers=(dataclasses.replace(evidence.layers[0], **changes),))  # type: ignore[arg-type]


def _numbers(measured: Measurements) -> dict[str, tuple[float, float, float] | None]:
    return {
        key: (m.value, m.interval.low, m.interval.high) if m.value is not None and m.interval is not None else None
        for key, m in measured.quantities.items()
    }


def _same(one: Measurements, other: Measurements, tolerance: float = 1e-5) -> None:
    first, second = _numbers(one), _numbers(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == (None if second[key] is None else pytest.approx(second[key], abs=tolerance)), key


@given(st.integers(0, 10**6), st.integers(0, 5), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["holm", "bh", "none"]))
@settings(max_examples=12, deadline=None)
def test_a_looser_criterion_never_makes_a_finding_worse(seed: int, which: int, a: float, b: float, method: str) -> None:
    plan = synthetic.plan(**QUICK)
    plan = plan.model_copy(update={"spec": plan.spec.model_copy(update={"multiplicity": method})})
    measured = _measured(plan, synthetic.evidence(_mixture(seed), effect=1.5 * a, samples=80, seed=seed))
    at_most = plan.spec.checks[which].criterion.operator == "at_most"
    strict, loose = sorted((a, b), reverse=not at_most)
    states = []
    for bound in (strict, loose):
        one = plan.spec.checks[which].model_copy(
            update={"criterion": Criterion(at_most=bound) if at_most else Criterion(at_least=bound)}
        )
        edited = tuple(one if index == which else check for index, check in enumerate(plan.spec.checks))
        other = plan.model_copy(update={"spec": plan.spec.model_copy(update={"checks": edited})})
        states.append(RANK[_decided(other, measured)[1][which].state])
    assert states[0] <= states[1]


@given(st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_order_of_components_changes_nothing(seed: int) -> None:
    plan, evidence = synthetic.plan(**QUICK), synthetic.evidence(_mixture(seed), samples=80, seed=seed)
    layer, order = evidence.layers[0], np.random.default_rng(seed).permutation(12)
    mixed = _layer(
        evidence,
        reference_ids=layer.reference_ids[order],
        activations=layer.activations[order],
        embeddings=layer.embeddings[order],
        boxes=layer.boxes[order],
        relevance=layer.relevance[:, :, order],
    )
    _same(_measured(plan, evidence), _measured(plan, mixed))


@given(st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_order_of_samples_changes_nothing(seed: int) -> None:
    """Units keep their numbers, so that not even the draws change."""
    plan = synthetic.plan(**QUICK)
    evidence = dataclasses.replace(synthetic.evidence(_mixture(seed), samples=80, seed=seed), groups=np.arange(80))
    order = np.random.default_rng(seed).permutation(80)
    layer, place = evidence.layers[0], np.argsort(order)
    mixed = _layer(
        _reordered(evidence, order),
        reference_ids=place[layer.reference_ids],
        relevance=layer.relevance[order],
        conservation=layer.conservation[order],
    )
    _same(_measured(plan, evidence), _measured(plan, mixed))


def _reordered(evidence: Evidence, order: np.ndarray) -> Evidence:
    return dataclasses.replace(
        evidence,
        paths=tuple(evidence.paths[i] for i in order),
        labels=evidence.labels[order],
        logits=evidence.logits[order],
        image_embeddings=evidence.image_embeddings[order],
        attributes={name: column[order] for name, column in evidence.attributes.items()},
        groups=evidence.units[order],
    )


@given(st.integers(0, 10**6), st.permutations(range(3)))
@settings(max_examples=6, deadline=None)
def test_order_of_concepts_changes_nothing(seed: int, order: list[int]) -> None:
    plan, evidence = synthetic.plan(**QUICK), synthetic.evidence(_mixture(seed), samples=80, seed=seed)
    concepts = tuple(plan.spec.concepts[index] for index in order)
    other = plan.model_copy(update={"spec": plan.spec.model_copy(update={"concepts": concepts})})
    one, two = _measured(plan, evidence).class_layers[0], _measured(other, evidence).class_layers[0]
    for name in synthetic.CONCEPTS:
        first, second = one.concepts[name], two.concepts[name]
        assert first.interval is not None
        assert second.interval is not None
        # The columns of a matrix product round differently; nothing else differs.
        assert (first.value, first.interval.low, first.interval.high) == pytest.approx(
            (second.value, second.interval.low, second.interval.high), abs=0.02
        )


def _width(measurement: Measurement) -> float:
    return measurement.interval.high - measurement.interval.low if measurement.interval is not None else np.inf


@given(st.integers(0, 10**6), st.integers(2, 4))
@settings(max_examples=6, deadline=None)
def test_copies_of_samples_narrow_no_interval(seed: int, copies: int) -> None:
    plan, evidence = synthetic.plan(**QUICK), synthetic.evidence(_mixture(seed), samples=80, seed=seed)
    evidence = dataclasses.replace(evidence, groups=np.arange(80))
    order = np.tile(np.arange(80), copies)
    layer = evidence.layers[0]
    copied = _layer(_reordered(evidence, order), relevance=layer.relevance[order], conservation=layer.conservation[order])
    _same(_measured(plan, evidence), _measured(plan, copied), tolerance=1e-4)
    # Copies among the reference samples, too: half as many different ones.
    halved = np.repeat(layer.reference_ids[:, :6], 2, axis=1)
    embeddings = np.repeat(layer.embeddings[:, :6], 2, axis=1)
    once = _layer(evidence, reference_ids=layer.reference_ids[:, :6], embeddings=layer.embeddings[:, :6])
    twice = _layer(evidence, reference_ids=halved, embeddings=embeddings)
    one, two = _measured(plan, once), _measured(plan, twice)
    for key, measurement in one.quantities.items():
        assert two.quantities[key].value == pytest.approx(measurement.value, abs=1e-4)
        assert _width(two.quantities[key]) >= _width(measurement) - 1e-4


def test_without_groups_copies_would_narrow_intervals() -> None:
    """The property above is no accident of a bootstrap that ignores the number of samples."""
    plan, evidence = synthetic.plan(**QUICK), synthetic.evidence(_mixture(3), samples=80)
    order = np.tile(np.arange(80), 4)
    layer = evidence.layers[0]
    naive = dataclasses.replace(_reordered(evidence, order), groups=None)
    copied = _layer(naive, relevance=layer.relevance[order], conservation=layer.conservation[order])
    key = next(q.key for q in checks.quantities(plan) if q.kind == "behavioural_effect")
    assert _width(_measured(plan, copied).quantities[key]) < 0.7 * _width(_measured(plan, evidence).quantities[key])


def test_minimum_samples_counts_units() -> None:
    plan, evidence = synthetic.plan(**QUICK), synthetic.evidence(CLEAN, samples=80)
    paired = dataclasses.replace(evidence, groups=np.arange(80) // 4 * 2 + np.arange(80) % 2)
    result, found = _decided(plan, _measured(plan, paired))
    assert result.exit_code is ExitCode.INCOMPLETE
    assert "40 samples of class melanoma, 20 of them independent, 30 needed" in found[0].explanation
    effect = next(f for f in found if f.kind == "behavioural_effect")
    assert effect.state == "satisfied", "40 units over both classes are enough"


_NAN = np.float32(np.nan)
FAILURES: dict[str, Callable[[Evidence], Evidence]] = {
    "no relevance": lambda e: _layer(e, relevance=0 * e.layers[0].relevance),
    "relevance is NaN": lambda e: _layer(e, relevance=e.layers[0].relevance * _NAN),
    "relevance is infinite": lambda e: _layer(e, relevance=e.layers[0].relevance * np.float32(np.inf)),
    "one relevance is NaN": lambda e: _layer(
        e, relevance=np.where(np.arange(len(e.labels))[:, None, None] == 1, _NAN, e.layers[0].relevance)
    ),
    "logits are NaN": lambda e: dataclasses.replace(e, logits=e.logits * _NAN),
    "one logit is NaN": lambda e: dataclasses.replace(
        e, logits=np.where(np.arange(len(e.labels))[:, None] == 3, _NAN, e.logits)
    ),
    "crops are NaN": lambda e: _layer(e, embeddings=e.layers[0].embeddings * _NAN),
    "crops are nothing": lambda e: _layer(e, embeddings=0 * e.layers[0].embeddings),
    "random crops are NaN": lambda e: _layer(e, null_embeddings=e.layers[0].null_embeddings * _NAN),
    "random crops are all alike": lambda e: _layer(e, null_embeddings=np.repeat(e.layers[0].null_embeddings[:1], 600, axis=0)),
    "no random crops": lambda e: _layer(e, null_embeddings=e.layers[0].null_embeddings[:0]),
    "all dead": lambda e: _layer(e, dead=np.ones(12, dtype=bool)),
    "no reference samples": lambda e: _layer(e, reference_ids=np.full((12, 12), -1)),
    "images are NaN": lambda e: dataclasses.replace(
        e, image_embeddings=e.image_embeddings * _NAN, attributes={}
    ),
    "one class only": lambda e: dataclasses.replace(e, labels=np.zeros_like(e.labels)),
    "all one unit": lambda e: dataclasses.replace(e, groups=np.zeros_like(e.labels)),
    "attribute unknown": lambda e: dataclasses.replace(
        e, attributes={"ruler": np.full(len(e.labels), -1, dtype=np.int8)}
    ),
    "probes are NaN": lambda e: dataclasses.replace(
        e, probes={name: dataclasses.replace(probe, text=probe.text * _NAN) for name, probe in e.probes.items()}
    ),
}  # fmt: skip


def _outcome(plan: AuditPlan, evidence: Evidence) -> ExitCode | str:
    try:
        return _decided(plan, _measured(plan, evidence))[0].exit_code
    except AuditError as error:
        return str(error)


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_never_becomes_a_pass(name: str) -> None:
    plan = synthetic.plan(**QUICK)
    sound = synthetic.evidence(CLEAN, samples=80)
    outcome = _outcome(plan, FAILURES[name](sound))
    assert outcome is not ExitCode.SATISFIED
    assert ("not finite" in str(outcome)) == ("NaN" in name or "infinite" in name)


def test_the_sound_evidence_that_the_failures_are_made_of_passes() -> None:
    assert _outcome(synthetic.plan(**QUICK), synthetic.evidence(CLEAN, samples=80)) is ExitCode.SATISFIED
