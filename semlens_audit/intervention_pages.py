"""What happens when the components are switched off, as a page of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semlens_audit.confirmation import METHODS, WORDS
from semlens_audit.evidence_pages import role_of
from semlens_audit.figures import Domain, Figure, Palette, axis, drawing, rule
from semlens_audit.pages import Table
from semlens_audit.records import AblationRecord, AuditRecord, InterventionRecord
from semlens_audit.wording import DASH, ROLE_WORDS, capital, count, format_measured, format_number, format_value, join

__all__ = ["Interventions", "Switched", "interventions"]

_WIDTH = 300
_LANE = 22
_KINDS = {
    "matched": "random, equally relevant",
    "complement": "all others, scaled to equal relevance",
    "none": "none: no other component carries relevance",
}


@dataclass(frozen=True)
class Switched:
    """One concept's components, switched off."""

    concept: str
    where: str
    """Class and layer."""
    role: str
    role_words: str
    conclusion: str
    effects: tuple[tuple[str, str], ...]
    """Method, and the effect through the components by it."""
    figure: Figure


@dataclass(frozen=True)
class Interventions:
    """The section."""

    samples: str
    smallest: str
    methods: str
    axis: Figure
    rows: tuple[Switched, ...]
    sentences: tuple[str, ...]
    """Why, of each row but those that all changes lie within the smallest effect of."""
    changes: Table
    controls: Table
    untested: tuple[tuple[str, str], ...]
    """Concept, class and layer; and why it was not tested."""


def interventions(record: AuditRecord, palette: Palette) -> Interventions | None:
    """The section of `record`, or none where nothing was switched off."""
    if not record.interventions:
        return None
    tested = [one for one in record.interventions if one.ablations]
    ends = [end for one in tested for ablation in one.ablations for end in _ends(ablation)]
    domain = Domain.over("logits", [*ends, record.settings.smallest_effect, -record.settings.smallest_effect])
    found = list(dict.fromkeys(ablation.method for one in tested for ablation in one.ablations))
    return Interventions(
        samples=count(record.interventions[0].samples, "test image"),
        smallest=format_value("logits", record.settings.smallest_effect, 2),
        methods=join([METHODS[method] for method in found]),
        axis=axis(domain, palette, _WIDTH),
        rows=tuple(_row(record, one, domain, palette) for one in tested),
        sentences=tuple(f"{_label(record, one)}: {one.sentence}" for one in tested if one.state != "not_used"),
        changes=_changes(record, tested),
        controls=_controls(record, tested),
        untested=tuple((_label(record, one), one.sentence) for one in record.interventions if not one.ablations),
    )


def _ends(ablation: AblationRecord) -> list[float]:
    interval = ablation.mediated.interval
    return [*ablation.control_mediated, *((interval.low, interval.high) if interval else ())]


def _label(record: AuditRecord, one: InterventionRecord) -> str:
    return f"{capital(record.concept(one.concept).label)} ({one.class_name}, {one.layer})"


def _row(record: AuditRecord, one: InterventionRecord, domain: Domain, palette: Palette) -> Switched:
    role = role_of(record, one.concept, one.class_name)
    effects = tuple((a.method, format_measured(a.mediated)) for a in one.ablations)
    alt = f"{_label(record, one)}: {join([f'{text} by {method} ablation' for method, text in effects])}; {_spread(one)}."
    return Switched(
        concept=capital(record.concept(one.concept).label),
        where=f"{one.class_name}, {one.layer}",
        role=role,
        role_words=ROLE_WORDS[role],
        conclusion=capital(WORDS[one.state]),
        effects=effects,
        figure=_lanes(one, domain, palette, palette.role(role), record.settings.smallest_effect, alt),
    )


def _spread(one: InterventionRecord) -> str:
    values = [value for ablation in one.ablations for value in ablation.control_mediated]
    if not values:
        return "no control"
    low, high = format_number(min(values), 2), format_number(max(values), 2)
    return f"control sets from {low} to {high} logits" if len(values) > 2 else f"control {low} logits"


def _lanes(one: InterventionRecord, domain: Domain, palette: Palette, colour: str, smallest: float, alt: str) -> Figure:
    """A lane for each method: control sets as rings, the concept's effect as a disc with its interval."""
    left, span, height = 14.0, _WIDTH - 28.0, _LANE * len(one.ablations) + 4
    low, high = (domain.place(value, left, span) for value in (-smallest, smallest))
    zero = domain.place(0.0, left, span)
    body = (
        f'<rect x="{low:.1f}" y="0" width="{high - low:.1f}" height="{height}" style="fill:{palette.line};fill-opacity:.55"/>'
    )
    body += rule(zero, 0, zero, height, palette.soft)
    for lane, ablation in enumerate(one.ablations):
        middle = 2 + _LANE * (lane + 0.5)
        body += rule(left, middle, left + span, middle, palette.line)
        for control in ablation.control_mediated:
            x = domain.place(control, left, span)
            body += (
                f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="4" '
                f'style="fill:none;stroke:{palette.soft};stroke-width:1.2;stroke-opacity:.75"/>'
            )
        interval, value = ablation.mediated.interval, ablation.mediated.value
        if interval is None or value is None:
            continue
        start, end = domain.place(interval.low, left, span), domain.place(interval.high, left, span)
        body += rule(start, middle, end, middle, colour, 3)
        body += "".join(rule(x, middle - 5, x, middle + 5, colour, 2) for x in (start, end))
        body += f'<circle cx="{domain.place(value, left, span):.1f}" cy="{middle:.1f}" r="3.8" style="fill:{colour}"/>'
    return drawing(_WIDTH, height, body, alt, palette)


def _changes(record: AuditRecord, tested: Sequence[InterventionRecord]) -> Table:
    rows = []
    for one in tested:
        for ablation in one.ablations:
            controls = (
                (_mean(ablation.control_margin, 1, " logits"), _mean(ablation.control_accuracy, 100, " pp"))
                if ablation.control_margin
                else (DASH, DASH)
            )
            rows.append(
                (
                    _label(record, one),
                    ablation.method,
                    format_measured(ablation.contrast),
                    f"{format_measured(ablation.margin)}; controls {controls[0]}",
                    f"{format_measured(ablation.accuracy)}; controls {controls[1]}",
                    f"{format_measured(ablation.flips)}; controls {_mean(ablation.control_flips, 100, ' %')}",
                )
            )
    return Table(
        "What changes when the components are switched off, with interval; and the same for the control sets: mean (least to most)",
        (
            "Concept",
            "Method",
            "Effect: size beyond the controls'",
            "Margin, all classes",
            "Accuracy",
            "Predictions that change, among images with the concept",
        ),
        tuple(rows),
    )


def _mean(values: Sequence[float], scale: float, unit: str) -> str:
    """``0.12 logits (−0.03 to 0.40)``: mean, least and most of the control sets."""
    if not values:
        return DASH
    digits = 2 if scale == 1 else 1
    mean = format_number(scale * sum(values) / len(values), digits)
    if len(values) == 1:
        return f"{mean}{unit}"
    return f"{mean}{unit} ({format_number(scale * min(values), digits)} to {format_number(scale * max(values), digits)})"


def _controls(record: AuditRecord, tested: Sequence[InterventionRecord]) -> Table:
    rows = []
    for one in tested:
        controls = one.controls
        rows.append(
            (
                _label(record, one),
                f"{len(one.components):,}",
                format_value("share", one.share, 1),
                f"{one.holding:,}",
                _KINDS[controls.kind],
                f"{controls.sets:,}",
                DASH if controls.size is None else format_number(controls.size, 1),
                DASH if controls.share is None else format_value("share", controls.share, 1),
                DASH if controls.error is None else format_value("share", controls.error, 1),
            )
        )
    return Table(
        "The concept's components and the control sets. Mismatch: mean difference of relevance, as a part of the concept's",
        (
            "Concept",
            "Components",
            "Relevance",
            "Images with the concept",
            "Controls",
            "Sets",
            "Components each",
            "Relevance each",
            "Mismatch",
        ),
        tuple(rows),
        numeric=(1, 2, 3, 5, 6, 7, 8),
    )
