"""Where the relevance of a class goes, and how it compares with what the model does: pages on coverage and on both lines."""

from __future__ import annotations

from collections.abc import Sequence

from semlens_audit.evidence_pages import Gallery, role_of
from semlens_audit.figures import Domain, Palette, Point, Segment, axis, interval_line, scatter, stacked
from semlens_audit.pages import ClassCoverage, ConceptRow, EffectRow, LegendEntry, Lines, Table
from semlens_audit.records import AuditRecord, ClassLayer, ComponentRecord, EffectRecord, Measurement, State
from semlens_audit.wording import DASH, ROLE_WORDS, capital, count, format_measured, format_value

__all__ = ["coverage", "lines"]

_PLOTTED = 600
_WIDTH = 220
_EFFECT_WIDTH = 180
_PLOT_SCREEN, _PLOT_PAPER = 620, 430
_PARTS = {
    "valid": "Valid concepts",
    "spurious": "Spurious concepts",
    "neutral": "Neutral concepts",
    "unexplained": "Unexplained",
}


def lines(record: AuditRecord, palette: Palette) -> Lines:
    """Reliance and behavioural effect of every concept, side by side."""
    layers = tuple(layer.layer for layer in record.layers)
    ends = [end for e in record.effects if e.effect.interval for end in (e.effect.interval.low, e.effect.interval.high)]
    domain = Domain.over("logits", ends)
    rows = tuple(_effect(record, palette, effect, layers, domain) for effect in record.effects)
    return Lines(
        tuple(map(capital, record.verdict.agreement)), layers, axis(domain, palette, _EFFECT_WIDTH), rows, _presence(record)
    )


def _effect(record: AuditRecord, palette: Palette, effect: EffectRecord, layers: Sequence[str], domain: Domain) -> EffectRow:
    label = capital(record.concept(effect.concept).label)
    places = {place.layer: place for place in record.class_layers if place.class_name == effect.class_name}
    reliances = tuple(
        format_measured(places[layer].concepts[effect.concept])
        if layer in places and effect.concept in places[layer].concepts
        else DASH
        for layer in layers
    )
    state: State | None = next(
        (
            f.state
            for f in record.findings
            if f.line == "behavioural" and f.concepts == (effect.concept,) and f.class_name == effect.class_name
        ),
        None,
    )
    role = role_of(record, effect.concept, effect.class_name)
    measured = format_measured(effect.effect)
    return EffectRow(
        class_name=effect.class_name,
        concept=label,
        role=role,
        role_words=ROLE_WORDS[role],
        reliances=reliances,
        source=effect.presence.source,
        effect=measured,
        reason=effect.effect.not_measured or "",
        figure=interval_line(effect.effect, state, None, domain, palette, f"{label}: {measured}.", _EFFECT_WIDTH),
    )


def _presence(record: AuditRecord) -> Table:
    """Counts that the behavioural effects rest on."""
    names = list(dict.fromkeys(name for effect in record.effects for name in effect.presence.present))
    seen: dict[tuple[str, str], EffectRecord] = {}
    for effect in record.effects:
        seen.setdefault((effect.concept, effect.presence.source), effect)
    rows = []
    for effect in seen.values():
        presence = effect.presence
        cells = [f"{presence.present.get(name, 0):,} / {presence.absent.get(name, 0):,}" for name in names]
        source = (
            presence.source if presence.separation is None else f"{presence.source}, groups {presence.separation:.1f} SD apart"
        )
        rows.append((capital(record.concept(effect.concept).label), source, *cells))
    return Table(
        "Images with / without each concept, by class",
        ("Concept", "Presence according to", *names),
        tuple(rows),
        numeric=tuple(range(2, 2 + len(names))),
    )


def coverage(record: AuditRecord, palette: Palette, gallery: Gallery) -> tuple[ClassCoverage, ...]:
    """How the relevance of each class in each layer divides."""
    return tuple(_coverage(record, palette, gallery, place) for place in record.class_layers)


def _coverage(record: AuditRecord, palette: Palette, gallery: Gallery, place: ClassLayer) -> ClassCoverage:
    title = f"{place.class_name}, {place.layer}"
    parts: dict[str, Measurement] = {role: getattr(place, role) for role in _PARTS}
    legend = tuple(LegendEntry(role, _PARTS[role], format_measured(part)) for role, part in parts.items())
    segments = [
        Segment(role, part.value, format_value("share", part.value)) for role, part in parts.items() if part.value is not None
    ]
    sentence = "; ".join(f"{entry.label}: {entry.measured}" for entry in legend)
    domain = Domain(0.0, 1.0, "share")
    carried = {name: sum(component.assigned == name for component in place.components) for name in place.concepts}
    rows = []
    for name, part in sorted(place.concepts.items(), key=lambda item: -(item[1].value or 0.0)):
        role, label, text = role_of(record, name, place.class_name), capital(record.concept(name).label), format_measured(part)
        figure = interval_line(part, None, None, domain, palette, f"{label}: {text}.", _WIDTH, bar=role)
        rows.append(ConceptRow(label, role, ROLE_WORDS[role], text, figure, f"{carried[name]:,}"))
    plotted = place.components[:_PLOTTED]
    plot = scatter(
        _points(record, place, plotted),
        record.settings.significance,
        palette,
        f"Valid against spurious alignment of {count(len(plotted), 'component')} of {place.layer} for "
        f"{place.class_name}; "
        f"{sentence}.",
        size=_PLOT_SCREEN if palette.inline else _PLOT_PAPER,
    )
    caption = (
        f"Each disc is a component of {place.layer}. Its area is its share of the relevance for {place.class_name}, "
        "its colour the role of the "
        f"concept it means most. Dashed: least significant z, {record.settings.significance:g}."
    )
    if len(plotted) < len(place.components):
        caption += f" The {len(plotted):,} most relevant of {len(place.components):,} components are drawn."
    return ClassCoverage(
        title=title,
        bar=stacked(segments, palette, f"{title}: {sentence}."),
        legend=legend,
        axis=axis(domain, palette, _WIDTH),
        rows=tuple(rows),
        plot=plot,
        plot_caption=caption,
        unexplained=gallery.unexplained(place),
    )


def _points(record: AuditRecord, place: ClassLayer, components: Sequence[ComponentRecord]) -> list[Point]:
    """Components by their best z among valid and among spurious concepts."""
    roles = {concept.id: role_of(record, concept.id, place.class_name) for concept in record.concepts}
    labels = {concept.id: concept.label.lower() for concept in record.concepts}

    def best(component: ComponentRecord, role: str) -> float:
        return max((z for name, z in component.z.items() if roles.get(name) == role), default=0.0)

    return [
        Point(
            best(component, "valid"),
            best(component, "spurious"),
            component.share,
            role_of(record, component.assigned, place.class_name),
            f"{component.component} {labels[component.assigned]}" if component.assigned else str(component.component),
        )
        for component in components
    ]
