"""Names within a record that have to mean something in it: concepts, images, classes and layers that its parts speak of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from semlens_audit.component_changes import LayerChanges
from semlens_audit.records import AuditRecord, ClassLayer

__all__ = ["dangling", "images_shown"]


def dangling(record: AuditRecord) -> str | None:
    """The first reference of a record that leads nowhere, or the first name that two things bear; ``None`` where there is none.

    Parameters
    ----------
    record
        Valid in form. Records that `run` wrote have no such reference; one that was edited may, and could not be shown.
    """
    return next(_wrong(record), None)


def _wrong(record: AuditRecord) -> Iterator[str]:
    for what, names in (
        ("concept", [concept.id for concept in record.concepts]),
        ("layer", [layer.layer for layer in record.layers]),
        ("class and layer", [f"{place.class_name}, {place.layer}" for place in record.class_layers]),
        ("catalogue", [catalogue.id for catalogue in record.catalogues]),
    ):
        yield from (f"the {what} {name} is there twice" for name, number in Counter(names).items() if number > 1)
    concepts, layers = {concept.id for concept in record.concepts}, {layer.layer for layer in record.layers}
    yield from (f"there is no concept {name}, which {who} names" for name, who in _concepts(record) if name not in concepts)
    yield from (f"there is no image {key[:20]}, which {who} shows" for key, who in _images(record) if key not in record.images)
    yield from (f"there is no layer {name}, which {who} names" for name, who in _layers(record) if name not in layers)
    for place in record.class_layers:
        yield from _within(place)
    for finding in record.findings:
        if (finding.criterion.at_most is None) == (finding.criterion.at_least is None):
            yield f"the criterion of {finding.id} has not exactly one bound"


def _concepts(record: AuditRecord) -> Iterator[tuple[str, str]]:
    """(concept, who names it)."""
    for finding in record.findings:
        yield from ((name, f"the finding {finding.id}") for name in finding.concepts)
    for place in record.class_layers:
        where = f"{place.class_name} in {place.layer}"
        yield from ((name, where) for name in place.concepts)
        for component in place.components:
            named = (component.assigned, component.best, *component.meaning, *component.alignment)
            yield from ((name, f"component {component.component} for {where}") for name in named if name is not None)
    for layer in record.layers:
        yield from ((one.concept, f"the calibration of {layer.layer}") for one in layer.calibration)
    yield from ((one.concept, "an effect") for one in record.effects)
    yield from ((one.concept, "a pair effect") for one in record.pair_effects)
    yield from ((one.concept, "an intervention") for one in record.interventions)
    for entry in record.presence_in_data:
        yield from ((name, "a presence in the data") for name in (entry.concept, *entry.entangled))
    for tried in record.sensitivity:
        yield from ((name, f"the setting {tried.setting}") for change in tried.changes for name in change.concepts)
    if record.change is not None and record.change.components is not None:
        for changes in record.change.components.layers:
            yield from ((name, "a comparison of components") for name in _compared(changes))


def _compared(layer: LayerChanges) -> Iterator[str]:
    """Concepts that a comparison of components names."""
    named = [*layer.concepts, *(one.concept for one in layer.concept_shares)]
    named += [one.concept for one in (*layer.learned, *layer.lost)]
    named += [name for pair in (*layer.became, *layer.moved) for name in (pair.first_concept, pair.second_concept)]
    yield from (name for name in named if name is not None)


def images_shown(record: AuditRecord) -> set[str]:
    """Keys of all images that parts of a record show."""
    return {key for key, _ in _images(record)}


def _images(record: AuditRecord) -> Iterator[tuple[str, str]]:
    """(key, who shows it)."""
    for place in record.class_layers:
        for component in place.components:
            for reference in component.references:
                yield from ((key, f"component {component.component}") for key in reference.keys)
    for entry in record.presence_in_data:
        yield from ((shown.image, f"the concept {entry.concept}") for shown in entry.pictures if shown.image is not None)
    if record.change is not None and record.change.components is not None:
        for one in record.change.components.portraits:
            yield from ((reference.image, f"component {one.component} of {one.layer}") for reference in one.references)


def _layers(record: AuditRecord) -> Iterator[tuple[str, str]]:
    """(layer, who names it)."""
    yield from ((finding.layer, f"the finding {finding.id}") for finding in record.findings if finding.layer is not None)
    yield from ((place.layer, f"the class {place.class_name}") for place in record.class_layers)
    yield from ((one.layer, "an intervention") for one in record.interventions)


def _within(place: ClassLayer) -> Iterator[str]:
    where = f"{place.class_name} in {place.layer}"
    for component in place.components:
        apart = set(component.alignment) ^ set(component.z)
        yield from (
            f"component {component.component} for {where} has no z or no alignment for {name}" for name in sorted(apart)
        )
