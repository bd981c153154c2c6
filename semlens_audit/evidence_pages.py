"""Components with their reference samples as a report shows them, each with its pictures only once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from semlens_audit.pages import ComponentView, EvidenceGroup, Pointer, ReferenceView
from semlens_audit.records import AuditRecord, ClassLayer, ComponentRecord, Finding, ReferenceImage
from semlens_audit.wording import capital, format_estimate, format_number, format_value

__all__ = ["Gallery", "role_of"]

_REFERENCES = 6
_UNEXPLAINED = 3
_MEANING = 6
_PART = 0.05
"""Least part of a component's meaning that is worth naming."""
_SLIGHT = 0.002
"""Components of a smaller share are not worth a picture where no result rests on them."""
_LEANING = 0.2
NO_CONCEPT = "no declared concept"


def role_of(record: AuditRecord, concept: str | None, class_name: str) -> str:
    """Role of a concept for a class; ``unexplained`` for none."""
    if concept is None:
        return "unexplained"
    declared = record.concept(concept)
    return declared.roles.get(class_name, declared.role)


class Gallery:
    """Remembers which components already stand in the report with their pictures; others point there."""

    def __init__(self, record: AuditRecord) -> None:
        self.record = record
        self.labels = {concept.id: concept.label for concept in record.concepts}
        self.places = {(place.class_name, place.layer): place for place in record.class_layers}
        self.shown: dict[tuple[str, str, int], str] = {}

    def of(self, findings: Sequence[Finding], limit: int) -> tuple[EvidenceGroup, ...]:
        """Components that carry `findings`, a group per layer, at most `limit` with pictures in each."""
        groups: list[EvidenceGroup] = []
        done: set[tuple[str, str]] = set()
        for finding in findings:
            place = self.places.get((finding.class_name, finding.layer or ""))
            if place is None or not finding.components or (place.class_name, place.layer) in done:
                continue
            done.add((place.class_name, place.layer))
            table = {component.component: component for component in place.components}
            chosen = [table[number] for number in finding.components if number in table]
            groups.append(self.group(place, chosen, limit, f"Components of {place.layer} that carry this result"))
        return tuple(groups)

    def meaning(self, findings: Sequence[Finding], limit: int) -> tuple[EvidenceGroup, ...]:
        """Components assigned to the concepts of `findings` that look at no layer: what the model may see of them inside."""
        groups: list[EvidenceGroup] = []
        for name in dict.fromkeys(name for finding in findings if finding.layer is None for name in finding.concepts):
            for place in self.record.class_layers:
                chosen = [
                    component for component in place.components if component.assigned == name and component.share > _SLIGHT
                ]
                if chosen and any(finding.class_name == place.class_name for finding in findings):
                    title = f"{capital(self.labels[name])}: components of {place.layer} that mean it"
                    groups.append(self.group(place, chosen[:_MEANING], limit, title))
        return tuple(groups)

    def unexplained(self, place: ClassLayer) -> EvidenceGroup:
        """The most relevant components that no concept explains."""
        free = [component for component in place.components if component.assigned is None and component.references]
        return self.group(
            place,
            free[:_UNEXPLAINED],
            _UNEXPLAINED,
            f"Most relevant components of {place.layer} that no declared concept explains",
        )

    def group(self, place: ClassLayer, chosen: Iterable[ComponentRecord], limit: int, title: str) -> EvidenceGroup:
        """Views of the first components with pictures not yet shown; pointers to the others."""
        views: list[ComponentView] = []
        pointers: list[Pointer] = []
        for position, component in enumerate(chosen):
            anchor = self.shown.get((place.class_name, place.layer, component.component))
            if anchor is None and component.references and position < limit:
                views.append(self._view(place, component))
                continue
            name = f"component {component.component}"
            pointers.append(Pointer(anchor, name, f"{self._concept(component)}, {self._share(component)}"))
        return EvidenceGroup(place.layer, title, tuple(views), tuple(pointers))

    def _concept(self, component: ComponentRecord) -> str:
        """What a component means, with its parts where it is divided among several concepts."""
        if component.assigned is None:
            return NO_CONCEPT
        parts = sorted(component.meaning.items(), key=lambda part: -part[1])
        if len(parts) < 2 or parts[1][1] < _PART:
            return self.labels[component.assigned]
        return ", ".join(f"{self.labels[name]} {100 * part:.0f}\u00a0%" for name, part in parts if part >= _PART)

    @staticmethod
    def _share(component: ComponentRecord) -> str:
        if component.interval is None:
            return format_value("share", component.share, 1)
        return format_estimate("share", component.share, component.interval)

    def _view(self, place: ClassLayer, component: ComponentRecord) -> ComponentView:
        anchor = f"component-{len(self.shown) + 1}"
        self.shown[(place.class_name, place.layer, component.component)] = anchor
        references = tuple(
            ReferenceView(
                crop=self._image(reference.crop),
                overlay=self._image(reference.overlay),
                crop_alt=f"Crop of {reference.sample} that drives component {component.component}.",
                overlay_alt=f"{reference.sample} with the heatmap of component {component.component} and the frame "
                "of the crop.",
                activation=format_number(reference.activation, 2),
                sample=reference.sample,
                **self._contrastive(reference, component.component),
            )
            for reference in component.references[:_REFERENCES]
        )
        return ComponentView(
            anchor=anchor,
            title=f"Component {component.component} of {place.layer}",
            share=self._share(component),
            concept=capital(self._concept(component)),
            role=role_of(self.record, component.assigned, place.class_name),
            facts=self._facts(component, place.class_name),
            references=references,
        )

    def _contrastive(self, reference: ReferenceImage, component: int) -> dict[str, str]:
        found = reference.contrastive
        if found is None:
            return {}
        return {
            "contrastive": self._image(found.crop),
            "contrastive_alt": f"Crop of {found.sample} that looks like the one of {reference.sample} and does not drive component "
            f"{component}.",
            "contrastive_sample": found.sample,
        }

    def _facts(self, component: ComponentRecord, class_name: str) -> str:
        """Alignment, z, clarity and direction in one line."""
        facts = []
        name = component.assigned or component.best
        if name is not None and name in component.alignment:
            nearest = "" if component.assigned else f" with the nearest concept, {self.labels[name]}"
            facts.append(
                f"alignment{nearest} {format_number(component.alignment[name], 2)} (z {format_number(component.z[name], 1)})"
            )
        facts.append("clarity not measured" if component.clarity is None else f"clarity {format_number(component.clarity, 2)}")
        leaning = (
            "for" if component.signed > _LEANING else "against" if component.signed < -_LEANING else "both for and against"
        )
        facts.append(f"speaks {leaning} {class_name} ({format_number(component.signed, 2, sign=True)})")
        return ", ".join(facts)

    def _image(self, key: str) -> str:
        return f"data:image/jpeg;base64,{self.record.images[key]}"
