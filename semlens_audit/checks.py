"""The families of checks: what each kind measures, and how a measurement becomes a finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from semlens_audit.multiplicity import control
from semlens_audit.plan import AuditPlan, Check, CheckKind, Role
from semlens_audit.records import ClassLayer, Finding, Measurement, State
from semlens_audit.wording import format_criterion, format_measured

__all__ = ["CROPS", "KINDS", "LINES", "Kind", "Quantity", "decide", "findings", "hold", "quantities"]

_EVIDENCE = 6


@dataclass(frozen=True)
class Kind:
    """One family of checks.

    Parameters
    ----------
    quantity
        Name of the measured quantity.
    unit
        See `semlens_audit.records.Measurement`.
    bounds
        The bounds that make sense for it.
    role
        Role of the concepts it speaks of where the check names none; None: it speaks of no concept or needs them named.
    range
        Least and largest sensible threshold.
    needs_concepts
        Whether the check has to name concepts.
    """

    quantity: str
    unit: Literal["share", "logits", "cosine", "difference"]
    bounds: tuple[Literal["at_most", "at_least"], ...]
    role: Role | None
    range: tuple[float, float]
    needs_concepts: bool = False


KINDS: dict[CheckKind, Kind] = {
    "spurious_reliance": Kind("reliance", "share", ("at_most",), "spurious", (0.0, 1.0)),
    "valid_reliance": Kind("reliance", "share", ("at_least",), "valid", (0.0, 1.0)),
    "unexplained_relevance": Kind("unexplained relevance", "share", ("at_most",), None, (0.0, 1.0)),
    "concept_used": Kind("reliance", "share", ("at_least",), None, (0.0, 1.0), needs_concepts=True),
    "concept_not_used": Kind("reliance", "share", ("at_most",), None, (0.0, 1.0), needs_concepts=True),
    "behavioural_effect": Kind("behavioural effect", "logits", ("at_most", "at_least"), None, (0.0, 1e6), needs_concepts=True),
    "clarity": Kind("clarity", "cosine", ("at_least",), None, (-1.0, 1.0)),
    "polysemanticity": Kind("polysemanticity", "cosine", ("at_most",), None, (0.0, 1.0)),
    "redundancy": Kind("redundancy", "cosine", ("at_most",), None, (-1.0, 1.0)),
    "subgroup_gap": Kind("subgroup gap", "difference", ("at_most",), "spurious", (0.0, 1.0)),
    "concept_presence": Kind("difference in presence", "difference", ("at_most",), "spurious", (0.0, 1.0)),
    "pair_effect": Kind("pair effect", "logits", ("at_most",), None, (0.0, 1e6), needs_concepts=True),
}
LINES: dict[CheckKind, Literal["behavioural", "counterfactual", "data"]] = {
    "behavioural_effect": "behavioural",
    "pair_effect": "counterfactual",
    "subgroup_gap": "data",
    "concept_presence": "data",
}
"""Line of evidence of the kinds that look at no layer and at one concept at a time; all others are mechanistic."""

CROPS: dict[CheckKind, str] = {
    "clarity": "clarity",
    "polysemanticity": "polysemanticity",
    "redundancy": "redundancy (likeness to the most similar other component)",
}
"""Kinds that look at the reference crops of components, whatever the concepts are -> what is said to be measured."""


@dataclass(frozen=True)
class Quantity:
    """Something to be measured for a check.

    Parameters
    ----------
    kind
        Family of the check.
    class_name
        Class of the spec.
    layer
        None for kinds that look at no layer.
    concepts
        Ids; empty where `kind` speaks of no concept.
    absolute
        Whether the size of the value counts, whatever its sign (a criterion "at most" on an effect).
    """

    kind: CheckKind
    class_name: str
    layer: str | None
    concepts: tuple[str, ...]
    absolute: bool = False

    @property
    def key(self) -> str:
        """Unique name."""
        return "|".join(
            [self.kind, self.class_name, self.layer or "-", ",".join(self.concepts), "abs" if self.absolute else ""]
        )

    def missing(self, reason: str, n: int) -> Measurement:
        """The measurement that says why there is none."""
        kind = KINDS[self.kind]
        return Measurement(quantity=kind.quantity, unit=kind.unit, n=n, not_measured=reason)

    def transform(self, measurement: Measurement) -> Measurement:
        """Size of the effect where only its size counts.

        The interval of the size reaches down to 0 where the interval of the effect holds 0.
        """
        if not self.absolute or measurement.value is None or measurement.interval is None:
            return measurement
        low, high = measurement.interval.low, measurement.interval.high
        least = 0.0 if low <= 0.0 <= high else min(abs(low), abs(high))
        nested = tuple(
            (level, 0.0 if a <= 0.0 <= b else min(abs(a), abs(b)), max(abs(a), abs(b)))
            for level, a, b in measurement.interval.nested
        )
        interval = measurement.interval.model_copy(
            update={"low": least, "high": max(abs(low), abs(high)), "nested": nested}
        )
        return measurement.model_copy(update={"value": abs(measurement.value), "interval": interval})


def _concepts(plan: AuditPlan, check: Check) -> tuple[str, ...]:
    if check.concepts:
        return check.concepts
    role = KINDS[check.kind].role
    if role is None:
        return ()
    return tuple(concept.id for concept in plan.spec.concepts if concept.role_for(check.for_class) == role)


def _of_check(plan: AuditPlan, check: Check) -> list[Quantity]:
    concepts = _concepts(plan, check)
    if check.kind in LINES:
        absolute = check.criterion.operator == "at_most"
        return [Quantity(check.kind, check.for_class, None, (concept,), absolute) for concept in concepts]
    layers = check.layers or plan.audit.layers
    return [Quantity(check.kind, check.for_class, layer, concepts) for layer in layers]


def quantities(plan: AuditPlan) -> list[Quantity]:
    """Everything that the plan's checks ask to be measured, without repetition, in the order of the spec."""
    asked = [quantity for check in plan.spec.checks for quantity in _of_check(plan, check)]
    return list({quantity.key: quantity for quantity in asked}.values())


def decide(check: Check, measurement: Measurement) -> State:
    """Hold an interval against a criterion.

    Satisfied only if the whole interval is on the right side, not satisfied only if it is wholly on the wrong side, otherwise
    inconclusive; never satisfied without a measurement.
    """
    if measurement.value is None or measurement.interval is None:
        return "not_measured"
    interval, threshold = measurement.interval, check.criterion.threshold
    if check.criterion.operator == "at_most":
        if interval.high <= threshold:
            return "satisfied"
        return "not_satisfied" if interval.low > threshold else "inconclusive"
    if interval.low >= threshold:
        return "satisfied"
    return "not_satisfied" if interval.high < threshold else "inconclusive"


def hold(
    check: Check, quantity: Quantity, measurement: Measurement, unrecognised: Mapping[str, str]
) -> tuple[Measurement, State]:
    """Decide a check whose concepts the foundation model may not recognise.

    What it does not recognise, it cannot find: reliance on such a concept is a lower bound. A criterion "at most" can then be
    violated but not met, a criterion "at least" met but not violated; what is left open is not measured, with the reason.
    """
    state = decide(check, measurement)
    reasons = [unrecognised[concept] for concept in quantity.concepts if concept in unrecognised]
    if not reasons or KINDS[check.kind].quantity != "reliance" or state == "not_measured":
        return measurement, state
    if state == ("not_satisfied" if check.criterion.operator == "at_most" else "satisfied"):
        return measurement, state
    return quantity.missing("; ".join(reasons), measurement.n), "not_measured"


def findings(
    plan: AuditPlan,
    measured: Mapping[str, Measurement],
    class_layers: Sequence[ClassLayer],
    unrecognised: Mapping[str, str] | None = None,
    remarks: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Hold every check against its measurements: one finding per check and layer, or per check and concept.

    Parameters
    ----------
    measured
        Key of each of `quantities` -> measurement.
    class_layers
        Where relevance goes; gives the components that carry a finding.
    unrecognised
        Concept -> why the foundation model is held not to recognise it.
    remarks
        Key of a quantity -> sentence on what its measurement rests on, for the explanation.

    Raises
    ------
    KeyError
        If a quantity of `quantities` was not measured at all; a quantity that could not be measured says why instead.

    Notes
    -----
    The states are those after control for multiplicity as the spec asks, see `semlens_audit.multiplicity.control`.
    """
    labels = {concept.id: concept.label for concept in plan.spec.concepts}
    by_place = {(item.class_name, item.layer): item for item in class_layers}
    out: list[Finding] = []
    for check in plan.spec.checks:
        for quantity in _of_check(plan, check):
            measurement, state = hold(check, quantity, measured[quantity.key], unrecognised or {})
            place = by_place.get((quantity.class_name, quantity.layer)) if quantity.layer else None
            out.append(
                Finding(
                    check=check.id,
                    kind=check.kind,
                    class_name=check.for_class,
                    layer=quantity.layer,
                    concepts=quantity.concepts,
                    line=LINES.get(check.kind, "mechanistic"),
                    statement=check.statement,
                    criterion=check.criterion,
                    rationale=check.rationale,
                    severity=check.severity,
                    supports=check.supports,
                    measurement=measurement,
                    state=state,
                    explanation=" ".join(
                        filter(None, [_explain(check, quantity, measurement, state, labels), (remarks or {}).get(quantity.key)])
                    ),
                    components=_carriers(check.kind, quantity, place),
                    spec_line=plan.check_lines.get(check.id),
                )
            )
    return control(out, plan.spec.multiplicity)


def _carriers(kind: CheckKind, quantity: Quantity, place: ClassLayer | None) -> tuple[int, ...]:
    """Components that carry a finding, most relevant first."""
    if place is None:
        return ()
    if kind == "unexplained_relevance":
        chosen = [c for c in place.components if c.assigned is None]
    elif kind in CROPS:
        chosen = list(place.components)
    else:
        chosen = [c for c in place.components if c.assigned in quantity.concepts]
    return tuple(component.component for component in chosen[:_EVIDENCE] if component.share > 0)


def _explain(check: Check, quantity: Quantity, measurement: Measurement, state: State, labels: Mapping[str, str]) -> str:
    """One sentence: what the interval says about the criterion."""
    if measurement.value is None or measurement.interval is None:
        return f"Not measured: {measurement.not_measured}."
    interval = measurement.interval
    bound = format_criterion(check.criterion, measurement.unit)
    parts = [labels[concept] for concept in quantity.concepts]
    names = " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    if check.kind == "behavioural_effect":
        subject = f"With {names} present, the margin of {check.for_class} changes by"
    elif check.kind == "subgroup_gap":
        subject = f"With and without {names}, the share of {check.for_class} that is recognised differs by"
    elif check.kind == "concept_presence":
        subject = (
            f"Between {check.for_class} and all other classes of the test data, the share of images with {names} differs by"
        )
    elif check.kind == "pair_effect":
        subject = f"From the image without {names} to the same image with it, the margin of {check.for_class} changes by"
    elif check.kind in CROPS:
        subject = f"Weighted by relevance for {check.for_class}, the components' {CROPS[check.kind]} is"
    elif check.kind == "unexplained_relevance":
        subject = f"Of the relevance for {check.for_class}, components that match no declared concept hold"
    else:
        subject = f"Of the relevance for {check.for_class}, components that mean {names} hold"
    measured = f"{subject} {format_measured(measurement, check.criterion)}, {100 * interval.level:g} % interval"
    ending = {
        "satisfied": f"the whole interval meets the criterion {bound}",
        "not_satisfied": f"the whole interval violates the criterion {bound}",
        "inconclusive": f"the interval reaches over the criterion {bound}, so neither can be concluded",
        "not_measured": "",
    }[state]
    return f"{measured}: {ending}."
