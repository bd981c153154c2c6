"""What a verdict hangs on: the findings and the verdict decided again under other settings, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from semlens_audit.checks import KINDS
from semlens_audit.measure import Measurements
from semlens_audit.plan import AuditPlan, Check, Criterion
from semlens_audit.records import AuditRecord, Finding, Measurement, SensitivityChange, SensitivityRecord, State
from semlens_audit.scenarios import Scenario, at_layer
from semlens_audit.wording import NARROW, STATES, count, join

__all__ = ["MARGIN", "Decide", "changed", "compare", "hanging", "moved", "sentence"]

MARGIN = 0.2
"""Relative change of every criterion's threshold that is tried, either way."""

Decide = Callable[[AuditPlan, Mapping[str, Measurement], Mapping[str, str]], tuple[Sequence[Finding], State]]
"""(plan, quantities, unrecognised concepts) -> findings and state of the verdict."""

_GRAVEST: tuple[State, ...] = ("not_satisfied", "not_measured", "inconclusive", "satisfied")
_Place = tuple[str, str | None, tuple[str, ...]]


def moved(plan: AuditPlan, margin: float) -> AuditPlan:
    """The plan with the threshold of every criterion moved by `margin` of its size, kept within the range of its quantity.

    Parameters
    ----------
    margin
        Positive: stricter, a smaller "at most" and a larger "at least"; negative: more lenient.
    """

    def move(check: Check) -> Check:
        threshold, operator = check.criterion.threshold, check.criterion.operator
        low, high = KINDS[check.kind].range
        change = margin * abs(threshold) * (-1.0 if operator == "at_most" else 1.0)
        return check.model_copy(update={"criterion": Criterion(**{operator: min(max(threshold + change, low), high)})})

    spec = plan.spec.model_copy(update={"checks": tuple(move(check) for check in plan.spec.checks)})
    return plan.model_copy(update={"spec": spec})


def compare(
    plan: AuditPlan, measured: Measurements, scenarios: Sequence[Scenario], decide: Decide
) -> tuple[SensitivityRecord, ...]:
    """Decide anew under every scenario, and with every criterion 20 % stricter and more lenient.

    Parameters
    ----------
    measured
        Under the declared settings.
    scenarios
        Under other settings.
    decide
        How findings and verdict follow from measurements: the very function that decided the audit.

    Returns
    -------
    tuple of SensitivityRecord
        What would be found under each setting, against what was found.
    """
    before, _ = decide(plan, measured.quantities, measured.unrecognised)
    out: list[SensitivityRecord] = []
    for scenario in scenarios:
        if scenario.not_tried is not None:
            out.append(SensitivityRecord(knob=scenario.knob, setting=scenario.setting, not_tried=scenario.not_tried))
            continue
        asked = at_layer(plan, scenario.layer) if scenario.layer else plan
        missed = measured.unrecognised if scenario.unrecognised is None else scenario.unrecognised
        after, state = decide(asked, measured.quantities | scenario.quantities, missed)
        changes = tuple(changed(before, after, anywhere=scenario.layer is not None))
        out.append(SensitivityRecord(knob=scenario.knob, setting=scenario.setting, verdict=state, changes=changes))
    for margin, words in ((MARGIN, "stricter"), (-MARGIN, "more lenient")):
        after, state = decide(moved(plan, margin), measured.quantities, measured.unrecognised)
        setting = f"every criterion {100 * MARGIN:g}{NARROW}% {words}"
        changes = tuple(changed(before, after))
        out.append(SensitivityRecord(knob="criteria", setting=setting, verdict=state, changes=changes))
    return tuple(out)


def changed(before: Sequence[Finding], after: Sequence[Finding], *, anywhere: bool = False) -> Iterator[SensitivityChange]:
    """Findings whose state is another one.

    Parameters
    ----------
    before, after
        Findings of the same checks.
    anywhere
        Compare with the gravest of the former findings of whatever layer, instead of the one of the same layer.
    """
    states: dict[_Place, State] = {}
    for finding in before:
        place = (finding.check, None if anywhere else finding.layer, finding.concepts)
        states[place] = min(states.get(place, finding.state), finding.state, key=_GRAVEST.index)
    for finding in after:
        former = states[finding.check, None if anywhere else finding.layer, finding.concepts]
        if former != finding.state:
            yield SensitivityChange(
                check=finding.check,
                class_name=finding.class_name,
                layer=finding.layer,
                concepts=finding.concepts,
                before=former,
                after=finding.state,
            )


def hanging(record: AuditRecord) -> tuple[SensitivityRecord, ...]:
    """The settings under which the verdict would be another one."""
    return tuple(tried for tried in record.sensitivity if tried.verdict not in (None, record.verdict.state))


def sentence(record: AuditRecord) -> str:
    """What the verdict hangs on, for page one and the terminal; empty for a record that tried nothing."""
    tried = [one for one in record.sensitivity if one.verdict is not None]
    if not tried:
        return ""
    other = hanging(record)
    if other:
        by_state: dict[State, list[str]] = {}
        for one in other:
            by_state.setdefault(one.verdict or "not_measured", []).append(one.setting)
        parts = [f"{STATES[state].lower()} with {join(settings, 'or')}" for state, settings in by_state.items()]
        same = len(tried) - len(other)
        rest = f" It is the same under the other {count(same, 'change')} of settings tried." if same else ""
        return f"The verdict hangs on settings: it would be {', and '.join(parts)}.{rest}"
    words = "the one change" if len(tried) == 1 else f"all {len(tried)} changes"
    found = {(change.check, change.layer, change.concepts) for one in tried for change in one.changes}
    rest = f" {count(len(found), 'result')} of single checks would change." if found else " No result of any check changes."
    return f"The verdict is the same under {words} of settings tried.{rest}"
