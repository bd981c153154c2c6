"""What switching components off says: of a concept, and of the findings that name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from semlens_audit.records import (
    AblationRecord,
    ConfirmationRecord,
    ConfirmationState,
    EffectRecord,
    Finding,
    InterventionRecord,
    Measurement,
)
from semlens_audit.wording import capital, count, format_measured, format_number, join

__all__ = ["METHODS", "WORDS", "conclude", "confirm", "reliance"]

WORDS: dict[ConfirmationState, str] = {
    "confirmed": "relies on, confirmed by intervention",
    "not_confirmed": "reliance not confirmed by intervention",
    "not_used": "aligned but not used",
    "not_tested": "not tested by intervention",
}
METHODS = {"mean": "mean ablation", "resampling": "resampling ablation"}
_ORDER: tuple[ConfirmationState, ...] = ("confirmed", "not_confirmed", "not_used", "not_tested")


def conclude(
    record: InterventionRecord, effects: Sequence[EffectRecord], labels: Mapping[str, str], smallest: float
) -> InterventionRecord:
    """State and sentence of an intervention.

    With the *mediated effect* as `AblationRecord.mediated` defines it and the smallest effect of interest d, for each method:

    - *confirmed*: the interval of the mediated effect lies wholly beyond d, above or below; the interval of its contrast with the
      control sets lies above 0; and the interval of the behavioural effect, where that is measured, lies wholly on the same side
      of 0: what one part of the network adds and another takes away again decides nothing.
    - *not used*: the intervals of the mediated effect and of the change of the margin over all samples lie wholly within -d to d:
      the components hold relevance and a meaning, and switching them off changes nothing.
    - *not tested*: one of them was not measured.
    - *not confirmed*: anything else.

    Over both methods: confirmed or not used only if both say so, not tested if either could not be, otherwise not confirmed.

    Parameters
    ----------
    record
        Measured, not yet concluded.
    effects
        The behavioural line of evidence.
    labels
        Concept -> its label.
    smallest
        d, in logits.
    """
    if not record.ablations:
        sentence = f"Not tested by intervention: {record.sentence}." if record.sentence else "Not tested by intervention."
        return record.model_copy(update={"state": "not_tested", "sentence": sentence})
    outside = next(
        (
            effect.effect
            for effect in sorted(effects, key=lambda effect: effect.presence.source != "attributes")
            if effect.class_name == record.class_name and effect.concept == record.concept
        ),
        None,
    )
    states = [_state(ablation, outside, smallest) for ablation in record.ablations]
    state: ConfirmationState = states[0]
    if "not_tested" in states:
        state = "not_tested"
    elif len(set(states)) > 1:
        state = "not_confirmed"
    return record.model_copy(update={"state": state, "sentence": _sentence(record, state, states, labels, smallest)})


def _state(ablation: AblationRecord, outside: Measurement | None, smallest: float) -> ConfirmationState:
    mediated, margin, contrast = ablation.mediated, ablation.margin, ablation.contrast
    if mediated.interval is None or margin.interval is None or mediated.value is None:
        return "not_tested"
    if all(-smallest <= one.low and one.high <= smallest for one in (mediated.interval, margin.interval)):
        return "not_used"
    if contrast.interval is None:
        return "not_tested"
    sign = np.sign(mediated.value)
    least = min(sign * mediated.interval.low, sign * mediated.interval.high)
    whole = outside.interval if outside is not None else None
    agreed = whole is None or min(sign * whole.low, sign * whole.high) > 0
    return "confirmed" if least > smallest and contrast.interval.low > 0 and agreed else "not_confirmed"


def _sentence(
    record: InterventionRecord,
    state: ConfirmationState,
    states: Sequence[ConfirmationState],
    labels: Mapping[str, str],
    smallest: float,
) -> str:
    name, parts = labels[record.concept], count(len(record.components), "component")
    if state == "not_tested":
        reasons = dict.fromkeys(
            one.not_measured for a in record.ablations for one in (a.mediated, a.margin, a.contrast) if one.not_measured
        )
        return f"Not tested by intervention: {'; '.join(reasons)}."
    found = join([f"{format_measured(a.mediated)} by {METHODS[a.method]}" for a in record.ablations])
    means = "means" if len(record.components) == 1 else "mean"
    what = f"the effect of {name} on the margin of {record.class_name} through the {parts} of {record.layer} that {means} it is {found}"
    if state == "not_used":
        return (
            f"Aligned but not used: {what}, and switching them off changes the margin on average by "
            f"{join([format_measured(a.margin) for a in record.ablations])}: all within ±{_bound(smallest)}."
        )
    controls = " and ".join(_controls(a) for a in record.ablations if a.control_mediated)
    against = f"; {_control_words(record)} {controls}" if controls else ""
    opening = "Confirmed by intervention" if state == "confirmed" else "Not confirmed by intervention"
    ending = f" {_why_not(record, states, smallest, name)}" if state == "not_confirmed" else ""
    return f"{opening}: {what}{against}.{ending}"


def _bound(smallest: float) -> str:
    return f"{smallest:g} logits"


def _control_words(record: InterventionRecord) -> str:
    if record.controls.kind == "complement":
        return "through all other components together, scaled to equal relevance, it is"
    return "through random components of equal relevance its size is on average"


def _controls(ablation: AblationRecord) -> str:
    values = np.abs(ablation.control_mediated)
    return f"{format_number(float(values.mean()), 2)} logits"


def _why_not(record: InterventionRecord, states: Sequence[ConfirmationState], smallest: float, name: str) -> str:
    """Which part of the definition was not met, for the first method by which one was not."""
    ablation = next((a for a, state in zip(record.ablations, states, strict=True) if state == "not_confirmed"), None)
    if ablation is None:
        return "The two ways of switching off disagree."
    where = f" by {METHODS[ablation.method]}" if len(record.ablations) > 1 else ""
    interval, contrast = ablation.mediated.interval, ablation.contrast.interval
    if interval is not None and ablation.mediated.value is not None:
        sign = np.sign(ablation.mediated.value)
        if min(sign * interval.low, sign * interval.high) <= smallest:
            return f"The interval{where} does not lie beyond the smallest effect of interest, {_bound(smallest)}."
    if contrast is not None and contrast.low <= 0:
        return f"This is not shown to be more than random components of equal relevance mediate{where}."
    return f"From outside, no effect of {name} in this direction is shown."


def reliance(
    class_name: str, concepts: Mapping[str, bool], interventions: Sequence[InterventionRecord], labels: Mapping[str, str]
) -> list[str]:
    """What decisions for a class rest on, in words for a headline, with what interventions say of it.

    Parameters
    ----------
    concepts
        Concept that a failed finding speaks against -> whether an effect seen from outside the model does.
    """
    groups: dict[str, list[str]] = {}
    unused = []
    for name, outside in concepts.items():
        states = {one.state for one in interventions if one.class_name == class_name and one.concept == name}
        state = next((state for state in _ORDER if state in states), "not_tested")
        if state == "not_used" and not outside:
            unused.append(labels[name])
            continue
        word = {"confirmed": "confirmed by intervention", "not_tested": ""}.get(state, "not confirmed by intervention")
        groups.setdefault(word, []).append(labels[name])
    parts = []
    if groups:
        named = [f"{join(names)} ({word})" if word else join(names) for word, names in groups.items()]
        parts.append(f"decisions for {class_name} rest on {'; on '.join(named)}")
    if unused:
        parts.append(f"components aligned with {join(unused)} hold relevance for {class_name}, but are not used")
    return parts


def confirm(
    findings: Sequence[Finding], interventions: Sequence[InterventionRecord], labels: Mapping[str, str]
) -> list[Finding]:
    """Give every finding that names concepts what switching off their components says; its explanation says so too.

    A finding on several concepts, or on none in particular layer, takes the strongest state: confirmed if any of its concepts is, in
    any layer it speaks of.
    """
    return [_confirmed(finding, interventions, labels) for finding in findings]


def _confirmed(finding: Finding, interventions: Sequence[InterventionRecord], labels: Mapping[str, str]) -> Finding:
    if finding.line == "data":
        return finding
    chosen = [
        one
        for one in interventions
        if one.class_name == finding.class_name
        and one.concept in finding.concepts
        and (finding.layer is None or one.layer == finding.layer)
    ]
    if not chosen:
        return finding
    state = next(state for state in _ORDER if any(one.state == state for one in chosen))
    if len(chosen) == 1:
        sentence = chosen[0].sentence
    else:
        several = len({one.layer for one in chosen}) > 1
        groups = []
        for one_state in _ORDER:
            names = [
                f"{labels[one.concept]} ({one.layer})" if several else labels[one.concept]
                for one in chosen
                if one.state == one_state
            ]
            if names:
                groups.append(f"{WORDS[one_state]}: {join(names)}")
        sentence = capital("; ".join(groups)) + "."
    confirmation = ConfirmationRecord(state=state, sentence=sentence)
    update: dict[str, object] = {"confirmation": confirmation}
    if finding.state == "not_satisfied" and finding.criterion.operator == "at_most":
        update["explanation"] = f"{finding.explanation} {sentence}"
    return finding.model_copy(update=update)
