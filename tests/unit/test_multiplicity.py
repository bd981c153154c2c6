"""P-values invert the intervals, and many checks at once do not make a false failure more likely."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import checks
from semlens_audit.draws import LOGITS, interval
from semlens_audit.errors import SpecError
from semlens_audit.measure import measure
from semlens_audit.multiplicity import control, p_value
from semlens_audit.plan import Criterion, Multiplicity
from semlens_audit.records import Finding, Interval, Measurement
from semlens_audit.spec import read_spec
from semlens_audit.statistics import holm, nested_levels, student_factor
from tests.unit import synthetic

SHORTCUT: dict[str | None, float] = {"border": 0.1, "ruler": 0.6, "hair": 0.0, None: 0.3}
NORMAL = NormalDist()


def _drawn(value: float, deviation: float = 1.0, draws: int = 1000, *, nested: bool = True) -> Measurement:
    """A measurement whose draws are the quantiles of a normal distribution about it."""
    steps = (np.arange(draws) + 0.5) / draws
    spread = value + deviation * np.array([NORMAL.inv_cdf(float(step)) for step in steps])
    found = interval(synthetic.plan(), value, spread, "test", LOGITS, nested=nested)
    return Measurement(quantity="behavioural effect", unit="logits", value=value, interval=found, n=100)


def _finding(measurement: Measurement, criterion: Criterion) -> Finding:
    check = synthetic.plan().spec.checks[4].model_copy(update={"criterion": criterion})
    return Finding(
        check="c", kind="behavioural_effect", class_name="melanoma", layer=None, concepts=("ruler",), line="behavioural",
        statement="S.", criterion=criterion, rationale="R.", severity="major", measurement=measurement,
        state=checks.decide(check, measurement), explanation="E.",
    )  # fmt: skip


@pytest.mark.parametrize("z", [0.1, 0.5, 1.0, 1.9, 2.0, 2.5, 3.0, 3.5, 4.2])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("nested", [True, False])
def test_p_value_of_normal_draws_is_the_normal_one(z: float, side: int, nested: bool) -> None:
    found = p_value(_drawn(2.0, 0.5, nested=nested), 2.0 + side * z * 0.5)
    expected = 2.0 * NORMAL.cdf(-z)
    assert found == pytest.approx(expected, rel=0.3 if z > 2 else 0.1)


def test_far_tail_of_heavy_draws_is_not_taken_for_normal() -> None:
    """One draw in a hundred lies far out: the threshold between is left out by 98 % of the draws' interval and no more."""
    draws = np.concatenate([np.full(980, 0.4) + np.linspace(-0.02, 0.02, 980), np.full(20, 0.05)])
    found = interval(synthetic.plan(), 0.4, draws, "test", (0.0, 1.0), nested=True)
    measured = Measurement(quantity="reliance", unit="share", value=0.4, interval=found, n=50)
    assert found.low > 0.3
    assert p_value(measured, 0.2) == pytest.approx(0.04, abs=0.01)
    assert p_value(measured, 0.6) < 0.003


@given(st.floats(-3, 3), st.floats(0.05, 2), st.floats(-6, 6), st.booleans(), st.sampled_from(["at_most", "at_least"]))
@settings(max_examples=150, deadline=None)
def test_p_value_agrees_with_the_decision(value: float, deviation: float, threshold: float, nested: bool, bound: str) -> None:
    measured = _drawn(value, deviation, 200, nested=nested)
    assert measured.interval is not None
    criterion = Criterion(at_most=threshold) if bound == "at_most" else Criterion(at_least=threshold)
    state = _finding(measured, criterion).state
    p = p_value(measured, threshold)
    assert 0.0 < p <= 1.0
    if min(abs(threshold - measured.interval.low), abs(threshold - measured.interval.high)) > 1e-9:
        assert (p <= 0.05) == (state in ("satisfied", "not_satisfied"))


@given(st.lists(st.floats(0.0, 6.0), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_p_value_falls_with_the_distance(distances: list[float]) -> None:
    measured = _drawn(0.0, 1.0, 400)
    values = [p_value(measured, distance) for distance in sorted(distances)]
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_holm_equals_the_step_down_procedure(p: list[float]) -> None:
    adjusted = holm(np.array(p))
    for alpha in (0.01, 0.05, 0.2, 0.7):
        rejected: set[int] = set()
        for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[index] > alpha / (len(p) - step):
                break
            rejected.add(index)
        near = {i for i in range(len(p)) if abs(adjusted[i] - alpha) < 1e-9}
        assert {int(i) for i in np.flatnonzero(adjusted <= alpha)} - near == rejected - near


def test_nested_levels_are_what_the_draws_resolve() -> None:
    levels = nested_levels(0.9, 100)
    assert levels[0] == pytest.approx(0.98)
    assert 0.9 in levels
    assert list(levels) == sorted(levels, reverse=True)


def test_student_factor() -> None:
    assert student_factor(10, 0.95) == pytest.approx(2.228139 / 1.959964, rel=1e-5)
    assert student_factor(1e9, 0.95) == pytest.approx(1.0, abs=1e-6)
    assert student_factor(0.3, 0.95) == student_factor(2, 0.95)


_UNIT = _drawn(0.0, 1.0, 200)


def _moved(value: float) -> Measurement:
    """The measurement of a normal distribution about another value, without quantiles taken anew."""
    interval_ = _UNIT.interval
    assert interval_ is not None
    nested = tuple((level, low + value, high + value) for level, low, high in interval_.nested)
    shifted = interval_.model_copy(update={"low": interval_.low + value, "high": interval_.high + value, "nested": nested})
    return _UNIT.model_copy(update={"value": value, "interval": shifted})


def _family(values: np.ndarray, method: Multiplicity) -> list[Finding]:
    return control([_finding(_moved(float(v)), Criterion(at_most=0.0)) for v in values], method)


@pytest.mark.parametrize(("method", "low", "high"), [("none", 0.25, 0.55), ("holm", 0.0, 0.06), ("bh", 0.0, 0.06)])
def test_false_failures_of_a_family_stay_at_the_level(method: Multiplicity, low: float, high: float) -> None:
    """Twenty true values exactly on their criteria: one false violation in one family of forty, not in every second."""
    rng = np.random.default_rng(11)
    failed = [any(f.state == "not_satisfied" for f in _family(rng.normal(size=20), method)) for _ in range(120)]
    assert low <= np.mean(failed) <= high


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=8), st.sampled_from(["holm", "bh", "none"]))
@settings(max_examples=60, deadline=None)
def test_control_takes_claims_of_violation_back_and_does_nothing_else(values: list[float], method: Multiplicity) -> None:
    plain, found = _family(np.array(values), "none"), _family(np.array(values), method)
    for before, after in zip(plain, found, strict=True):
        assert after.p_value == before.p_value
        if after.state != before.state:
            assert (before.state, after.state) == ("not_satisfied", "inconclusive")
            assert "neither can be concluded" in after.explanation
            assert after.adjusted_p is not None
            assert after.adjusted_p > 0.05 >= (after.p_value or 1.0)
        if method == "none" or (after.measurement.value or 0.0) <= 0.0:
            assert after.adjusted_p is None
        elif len(values) > 1:
            assert (after.adjusted_p or 0.0) >= (after.p_value or 0.0) * (1 - 1e-2)


def test_what_was_not_measured_counts_for_nothing() -> None:
    missing = _finding(Measurement(quantity="q", unit="logits", n=0, not_measured="a reason"), Criterion(at_most=0.0))
    alone, beside = control([_finding(_drawn(2.05), Criterion(at_most=0.0)), *[missing] * 20], "holm")[:2]
    assert alone.state == "not_satisfied"
    assert beside.p_value is None
    assert beside.state == "not_measured"


def test_findings_of_an_audit_carry_their_p_values() -> None:
    plan, evidence = synthetic.plan(), synthetic.evidence(SHORTCUT, effect=4.0)
    measured = measure(plan, evidence, checks.quantities(plan))
    found = {f.check: f for f in checks.findings(plan, measured.quantities, measured.class_layers)}
    assert plan.spec.multiplicity == "holm"
    assert found["no-ruler"].state == "not_satisfied"
    assert (found["no-ruler"].adjusted_p or 1.0) < 0.01
    assert "Adjusted for all 6 measured findings (Holm)" in found["no-ruler"].explanation
    assert found["clear"].adjusted_p is None
    assert all(f.p_value is not None for f in found.values())
    kept, plain = measured.quantities[checks.quantities(plan)[0].key].interval, measured.class_layers[0].valid.interval
    assert kept is not None
    assert plain is not None
    assert len(Interval.model_validate_json(kept.model_dump_json()).nested) > 5
    assert "nested" not in plain.model_dump_json()


def test_an_unknown_method_is_named_with_its_place(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "specs" / "melanoma-abcde.yaml"
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if not line.startswith("multiplicity")]
    path = tmp_path / "spec.yaml"
    path.write_text("\n".join(["multiplicity: bonferroni", *lines]), encoding="utf-8")
    with pytest.raises(SpecError, match="bonferroni") as caught:
        read_spec(path)
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (1, 15)
    assert "`holm`" in str(caught.value.problems[0].hint)
