"""The gate: every combination of finding, waiver and policy against a slower, simpler oracle; what can never happen; sentences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semlens_audit import gate, release
from semlens_audit.errors import ExitCode, IntegrityError
from semlens_audit.gate import Policy
from semlens_audit.measured import Interval, Measurement, State
from semlens_audit.plan import Criterion, Severity
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_records import OnInconclusive, WaiverState
from semlens_audit.waivers import Scope, Waiver, parse
from tests.golden.sample_record import sample, small

TODAY = date(2025, 12, 1)
STATES: tuple[State, ...] = get_args(State)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
ANSWERS: tuple[OnInconclusive, ...] = get_args(OnInconclusive)
Kind = Literal["none", "holds", "expired", "exceeded", "other place", "other model", "self-approved", "future"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BASE = small()
RANK = {0: 0, 3: 1, 4: 2, 1: 3, 5: 4}
"""From the best exit code to the worst, as the gate's rules order them."""


def finding(index: int, state: State, severity: Severity, value: float = 0.5, layer: str = "layer3") -> Finding:
    """A result against "at most 20 %"."""
    interval = Interval(low=max(value - 0.1, 0), high=min(value + 0.1, 1), level=0.95, method="made up")
    measured = Measurement(quantity="reliance", unit="share", value=value, interval=interval, n=100)
    if state == "not_measured":
        measured = Measurement(quantity="reliance", unit="share", n=3, not_measured="3 samples")
    return BASE.findings[0].model_copy(
        update={
            "check": f"check-{index}", "state": state, "severity": severity, "measurement": measured, "layer": layer,
            "criterion": Criterion(at_most=0.2),
        }
    )  # fmt: skip


def waiver(index: int, kind: Kind) -> Waiver:
    return Waiver(
        check=f"check-{index}",
        where="layer9" if kind == "other place" else None,
        scope=Scope(model_sha256="0" * 64 if kind == "other model" else BASE.subject.weights_sha256),
        justification="Made up for this test, and for nothing else.",
        owner="Max",
        approver="max" if kind == "self-approved" else "Ada",
        created=TODAY + timedelta(days=1) if kind == "future" else TODAY - timedelta(days=30),
        expires=TODAY - timedelta(days=1) if kind == "expired" else TODAY + timedelta(days=60),
        ticket="T-1",
        revalidate_on="new weights",
        ceiling=0.4 if kind == "exceeded" else 0.6,
    )


def record(*findings: Finding) -> AuditRecord:
    return BASE.model_copy(update={"findings": tuple(findings)})


def code(findings: Sequence[Finding], waivers: Sequence[Waiver] = (), policy: Policy | None = None) -> int:
    return int(gate.apply(record(*findings), waivers, policy or Policy(), TODAY).exit_code)


# -- the oracle ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A finding with its waiver."""

    state: State
    severity: Severity
    kind: Kind


def expected(cases: Sequence[Case], fail_on: Severity, answer: OnInconclusive) -> int:
    """Exit code, written down rule by rule without anything of the gate."""
    order = ["minor", "major", "critical"]
    if any(case.kind in ("expired", "other place", "other model", "self-approved") for case in cases):
        return 5
    if any(case.kind == "exceeded" and case.state in ("not_satisfied", "inconclusive") for case in cases):
        return 5
    failed = open_ = False
    for case in cases:
        if case.state in ("satisfied", "not_measured") or order.index(case.severity) < order.index(fail_on):
            continue
        if case.kind == "holds":
            continue
        if case.state == "not_satisfied" or answer == "fail":
            failed = True
        elif answer == "inconclusive":
            open_ = True
    if failed:
        return 1
    if not cases or any(case.state == "not_measured" for case in cases):
        return 4
    return 3 if open_ else 0


def decided(cases: Sequence[Case], fail_on: Severity, answer: OnInconclusive) -> AuditRecord:
    findings = [finding(i, case.state, case.severity) for i, case in enumerate(cases)]
    waivers = [waiver(i, case.kind) for i, case in enumerate(cases) if case.kind != "none"]
    return gate.apply(record(*findings), waivers, Policy(fail_on, answer), TODAY)


CASES = [Case(*one) for one in itertools.product(STATES, SEVERITIES, KINDS)]


@pytest.mark.parametrize("fail_on", SEVERITIES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_truth_table_of_one_finding(fail_on: Severity, answer: OnInconclusive) -> None:
    for case in CASES:
        assert int(decided([case], fail_on, answer).exit_code) == expected([case], fail_on, answer), case
    assert int(decided([], fail_on, answer).exit_code) == 4


@given(st.lists(st.sampled_from(CASES), max_size=6), st.sampled_from(SEVERITIES), st.sampled_from(ANSWERS))
def test_the_truth_table_of_many(cases: list[Case], fail_on: Severity, answer: OnInconclusive) -> None:
    after = decided(cases, fail_on, answer)
    assert int(after.exit_code) == expected(cases, fail_on, answer)
    assert after.gate is not None
    names = [*after.gate.stopped_by, *after.gate.tolerated, *after.gate.waived]
    unsatisfied = [one.id for one in after.findings if one.state != "satisfied"]
    assert sorted(names) == sorted(unsatisfied), "each result that is not satisfied stops the release, is tolerated, or is waived"
    applied = {name for one in after.waivers if one.state == "applied" for name in one.findings}
    assert applied == set(after.gate.waived)
    missing = {one.id for one in after.findings if one.state == "not_measured"}
    assert missing <= set(after.gate.stopped_by), "what was not measured always stops the release"
    outcome = after.gate.outcome
    assert (outcome == "conditional") == (after.exit_code == 0 and bool(after.gate.waived))
    assert (outcome in ("passed", "conditional")) == (after.exit_code == 0)


# -- what can never happen ----------------------------------------------------------------------------------------------------

WORSE: tuple[State, ...] = ("satisfied", "inconclusive", "not_satisfied")


@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=5), st.data(), st.sampled_from(SEVERITIES), st.sampled_from(ANSWERS))
def test_a_worse_finding_never_gives_a_better_exit_code(
    cases: list[Case], data: st.DataObject, fail_on: Severity, answer: OnInconclusive
) -> None:
    at = data.draw(st.integers(0, len(cases) - 1))
    before, after = sorted(data.draw(st.tuples(st.sampled_from(range(3)), st.sampled_from(range(3)))))
    codes = []
    for state in (WORSE[before], WORSE[after]):
        changed = [*cases[:at], Case(state, cases[at].severity, cases[at].kind), *cases[at + 1 :]]
        codes.append(int(decided(changed, fail_on, answer).exit_code))
    assert RANK[codes[0]] <= RANK[codes[1]]
    unmeasured = [*cases[:at], Case("not_measured", cases[at].severity, cases[at].kind), *cases[at + 1 :]]
    assert int(decided(unmeasured, fail_on, answer).exit_code) != 0


@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=5), st.sampled_from(STATES), st.sampled_from(SEVERITIES))
def test_a_further_finding_never_gives_a_better_exit_code(cases: list[Case], state: State, severity: Severity) -> None:
    more = [*cases, Case(state, severity, "none")]
    for fail_on, answer in itertools.product(SEVERITIES, ANSWERS):
        one, other = decided(cases, fail_on, answer), decided(more, fail_on, answer)
        assert RANK[int(one.exit_code)] <= RANK[int(other.exit_code)]


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["not_satisfied", "inconclusive"]))
def test_a_worse_value_never_gives_a_better_exit_code(one: float, other: float, state: State) -> None:
    values = sorted((one, other))
    codes = [code([finding(0, state, "major", value)], [waiver(0, "exceeded")]) for value in values]
    assert codes[0] <= codes[1]
    assert codes == [0 if value <= 0.4 else 5 for value in values]


@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=5), st.sampled_from(KINDS[1:]))
def test_a_waiver_touches_its_own_check_alone(cases: list[Case], kind: Kind) -> None:
    findings = [finding(i, case.state, case.severity) for i, case in enumerate(cases)]
    plain = gate.apply(record(*findings), (), Policy(), TODAY)
    waived = gate.apply(record(*findings), (waiver(0, kind),), Policy(), TODAY)
    assert plain.gate is not None
    assert waived.gate is not None
    for kept in ("stopped_by", "tolerated", "waived"):
        before = {name for name in getattr(plain.gate, kept) if not name.startswith("check-0/")}
        assert before == {name for name in getattr(waived.gate, kept) if not name.startswith("check-0/")}


@given(st.lists(st.sampled_from(CASES), max_size=5), st.sampled_from(SEVERITIES), st.sampled_from(ANSWERS))
def test_nothing_that_was_found_is_touched(cases: list[Case], fail_on: Severity, answer: OnInconclusive) -> None:
    after = decided(cases, fail_on, answer)
    untouched = after.model_copy(update={"waivers": (), "gate": None})
    assert untouched == record(*after.findings)
    assert [one.state for one in after.findings] == [case.state for case in cases]
    assert after == decided(cases, fail_on, answer)


def test_a_milder_policy_never_stops_more() -> None:
    for state, severity in itertools.product(STATES, SEVERITIES):
        one = [finding(0, state, severity)]
        codes = [code(one, policy=Policy(fail_on)) for fail_on in ("minor", "major", "critical")]
        assert codes == sorted(codes, key=lambda found: -RANK[found])


# -- waivers one by one -------------------------------------------------------------------------------------------------------


def became(kind: Kind, state: State = "not_satisfied", policy: Policy | None = None, **more: object) -> tuple[WaiverState, str]:
    one = waiver(0, kind).model_copy(update=more)
    (judged,) = gate.apply(record(finding(0, state, "major")), (one,), policy or Policy(), TODAY).waivers
    return judged.state, judged.sentence


@pytest.mark.parametrize(
    ("kind", "state", "becomes", "says"),
    [
        ("holds", "not_satisfied", "applied", "30 January 2026"),
        ("holds", "inconclusive", "applied", "layer3 measures 50 %"),
        ("holds", "satisfied", "not_needed", "satisfied"),
        ("holds", "not_measured", "not_in_force", "cannot be waived"),
        ("expired", "not_satisfied", "expired", "30 November 2025"),
        ("expired", "satisfied", "expired", "30 November 2025"),
        ("exceeded", "not_satisfied", "exceeded", "granted for at most 40 %"),
        ("exceeded", "satisfied", "not_needed", "satisfied"),
        ("other place", "not_satisfied", "unmatched", "layer9, but at layer3"),
        ("other model", "not_satisfied", "unmatched", "another model"),
        ("self-approved", "not_satisfied", "invalid", "approved by its owner"),
        ("future", "not_satisfied", "not_in_force", "2 December 2025"),
    ],
)
def test_what_becomes_of_a_waiver(kind: Kind, state: State, becomes: WaiverState, says: str) -> None:
    found, sentence = became(kind, state)
    assert found == becomes
    assert says in sentence.replace("\u00a0", " ")


def test_the_last_day_counts_and_the_next_does_not() -> None:
    assert became("holds", expires=TODAY)[0] == "applied"
    assert became("holds", expires=TODAY - timedelta(days=1))[0] == "expired"
    assert became("holds", created=TODAY)[0] == "applied"
    assert became("holds", created=TODAY - timedelta(days=120))[0] == "applied"
    assert became("holds", created=TODAY - timedelta(days=121)) == ("invalid", "Invalid: it holds for 181 days; at most 180 are allowed.")


@pytest.mark.parametrize(
    ("ceiling", "state"),
    [(0.1, "invalid"), (0.2, "exceeded"), (0.499, "exceeded"), (0.5, "applied"), (1.0, "applied"), (1.01, "invalid"), (50, "invalid")],
)
def test_a_ceiling_lies_between_criterion_and_what_can_be(ceiling: float, state: WaiverState) -> None:
    assert became("holds", ceiling=ceiling)[0] == state


def test_ceilings_of_criteria_from_below() -> None:
    low = finding(0, "not_satisfied", "major", 0.3).model_copy(update={"criterion": Criterion(at_least=0.4)})
    states = {}
    for ceiling in (0.5, 0.4, 0.31, 0.3, 0.1):
        one = waiver(0, "holds").model_copy(update={"ceiling": ceiling})
        (judged,) = gate.apply(record(low), (one,), Policy(), TODAY).waivers
        states[ceiling] = judged.state
    assert states == {0.5: "invalid", 0.4: "exceeded", 0.31: "exceeded", 0.3: "applied", 0.1: "applied"}


def test_one_result_beyond_the_ceiling_voids_the_waiver_for_all() -> None:
    findings = (finding(0, "not_satisfied", "major", 0.5), finding(0, "not_satisfied", "major", 0.7, "layer4"))
    after = gate.apply(record(*findings), (waiver(0, "holds"),), Policy(), TODAY)
    assert [one.state for one in after.waivers] == ["exceeded"]
    assert "layer4" in after.waivers[0].sentence
    assert "layer3" not in after.waivers[0].sentence
    assert after.gate is not None
    assert after.gate.waived == ()
    assert after.exit_code == 5
    narrow = waiver(0, "holds").model_copy(update={"where": "layer3"})
    after = gate.apply(record(*findings), (narrow,), Policy(), TODAY)
    assert after.gate is not None
    assert (after.exit_code, after.gate.waived, after.gate.stopped_by) == (1, ("check-0/layer3",), ("check-0/layer4",))


def test_a_waiver_that_policy_makes_superfluous_does_no_harm() -> None:
    assert became("holds", policy=Policy("critical"))[0] == "not_needed"
    assert became("holds", "inconclusive", Policy(on_inconclusive="pass"))[0] == "not_needed"
    assert became("exceeded", policy=Policy("critical"))[0] == "exceeded", "it is void whatever the policy"


def test_the_same_waiver_twice_is_invalid_once() -> None:
    after = gate.apply(record(finding(0, "not_satisfied", "major")), (waiver(0, "holds"), waiver(0, "holds")), Policy(), TODAY)
    assert [one.state for one in after.waivers] == ["applied", "invalid"]
    assert after.exit_code == 5


def test_numbers_in_a_sentence_never_contradict_it() -> None:
    for value, ceiling in ((0.64121, 0.6412), (0.6412, 0.64), (0.5004, 0.5)):
        one = waiver(0, "holds").model_copy(update={"ceiling": ceiling})
        (judged,) = gate.apply(record(finding(0, "not_satisfied", "major", value)), (one,), Policy(), TODAY).waivers
        assert judged.state == "exceeded"
        numbers = [float(word) for word in judged.sentence.replace("\u00a0", " ").split() if word.replace(".", "", 1).isdigit()]
        assert numbers[0] > numbers[1], judged.sentence


# -- sentences ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cases", "policy", "outcome", "says"),
    [
        ([Case("satisfied", "major", "none")], Policy(), "passed", ["every result is satisfied"]),
        ([Case("not_satisfied", "minor", "none")], Policy("major"), "passed", ["Tolerated by policy: check-0 (not satisfied, minor)"]),
        ([Case("inconclusive", "major", "none")], Policy(on_inconclusive="pass"), "passed", ["check-0 (inconclusive, major)"]),
        ([Case("not_satisfied", "major", "holds")], Policy(), "conditional", ["on conditions", "Waived until 30 January 2026: check-0"]),
        ([Case("not_satisfied", "major", "none")], Policy(), "failed", ["stopped: check-0 not satisfied"]),
        ([Case("inconclusive", "major", "none")], Policy(on_inconclusive="fail"), "failed", ["by policy counts as not satisfied"]),
        ([Case("inconclusive", "major", "none")], Policy(), "inconclusive", ["not decided: check-0 inconclusive"]),
        ([Case("not_measured", "minor", "none")], Policy("critical"), "incomplete", ["check-0 not measured", "does not pass"]),
        ([], Policy(), "incomplete", ["no check was evaluated"]),
        (
            [Case("satisfied", "major", "expired"), Case("not_satisfied", "major", "none")],
            Policy(),
            "invalid_waiver",
            ["the waiver of check-0 has expired", "Check-1 not satisfied"],
        ),
        ([Case("satisfied", "major", "holds")], Policy(), "passed", ["waiver is not needed: check-0"]),
        ([Case("satisfied", "major", "future")], Policy(), "passed", ["waiver is not in force: check-0"]),
    ],
)  # fmt: skip
def test_the_sentence_names_what_decided(cases: list[Case], policy: Policy, outcome: str, says: list[str]) -> None:
    after = decided(cases, policy.fail_on, policy.on_inconclusive)
    assert after.gate is not None
    assert after.gate.outcome == outcome
    for words in says:
        assert words in after.gate.sentence.replace("\u00a0", " ")


def test_a_sentence_stays_readable_however_many_there_are() -> None:
    many = [finding(i, "not_satisfied", "major") for i in range(60)]
    after = gate.apply(record(*many), [waiver(i, "expired") for i in range(60)], Policy(), TODAY)
    assert after.gate is not None
    assert len(after.gate.sentence) < 400
    assert "57 more" in after.gate.sentence
    assert len(after.gate.stopped_by) == 60


# -- completing and deciding again --------------------------------------------------------------------------------------------

TEXT = f"""\
waivers:
  - check: no-ruler
    scope: {{model_sha256: {sample("shortcut").subject.weights_sha256}}}
    justification: The archive shows rulers beside suspicious lesions.
    owner: Max
    approver: Ada
    created: 2025-11-01
    expires: 2026-02-01
    ticket: QA-1
    revalidate_on: new weights
    ceiling: 0.7
"""


def test_a_completed_record_decides_itself_again_to_the_same() -> None:
    declared = parse(TEXT.encode(), "a.waivers.yaml")
    whole = release.complete(sample("shortcut"), policy=Policy("major", "pass"), declared=declared, today=TODAY)
    assert [one.state for one in whole.waivers] == ["applied"]
    assert whole.waivers[0].line == 2
    assert [one.kind for one in whole.documents] == ["spec", "audit", "waivers"]
    assert gate.again(whole) == whole
    assert gate.again(AuditRecord.model_validate_json(whole.model_dump_json())) == whole
    assert whole.gate is not None
    for lie in (
        {"waivers": ()},
        {"gate": whole.gate.model_copy(update={"exit_code": ExitCode.SATISFIED, "outcome": "passed"})},
        {"gate": whole.gate.model_copy(update={"fail_on": "critical"})},
        {"documents": whole.documents[:2]},
        {"gate": None},
    ):
        forged = whole.model_copy(update=lie)
        assert gate.again(forged) != forged
    with pytest.raises(IntegrityError, match="invalid-gate"):
        gate.again(whole.model_copy(update={"gate": whole.gate.model_copy(update={"today": "some day"})}))


def test_waivers_are_judged_on_the_day_of_the_audit_unless_told_otherwise() -> None:
    declared = parse(TEXT.encode(), "a.waivers.yaml")
    base = sample("shortcut")
    assert release.day_of(base) == date(2025, 11, 20)
    assert release.day_of(base.model_copy(update={"created": "2025-11-20T23:30:00-05:00"})) == date(2025, 11, 21)
    then = release.complete(base, policy=Policy(), declared=declared)
    assert then.gate is not None
    assert (then.gate.today, then.waivers[0].state) == ("2025-11-20", "applied")
    later = release.complete(then, policy=Policy(), declared=declared, today=date(2026, 2, 2))
    assert (later.waivers[0].state, int(later.exit_code)) == ("expired", 5)
    assert [one.kind for one in later.documents].count("waivers") == 1
    without = release.complete(later, policy=Policy())
    assert without.waivers == ()
    assert [one.kind for one in without.documents] == ["spec", "audit"]
    with pytest.raises(IntegrityError, match="invalid-time"):
        release.complete(base.model_copy(update={"created": "yesterday"}), policy=Policy())
