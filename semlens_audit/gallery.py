"""Evidence images: which components a report shows, with their reference samples."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

from semlens_audit.digest import digest_bytes
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.records import ClassLayer, ComponentRecord, ContrastiveImage, Finding, ReferenceImage

__all__ = ["candidates", "illustrate", "prune"]

_PER_CONCEPT = 6
_UNEXPLAINED = 6
_REFERENCES = 6


def candidates(place: ClassLayer) -> list[int]:
    """Components that any check may call as evidence: the most relevant of each concept, of the unexplained, and overall."""
    chosen: dict[int, None] = {}
    taken: dict[str | None, int] = {}
    for rank, component in enumerate(place.components):
        count = taken.get(component.assigned, 0)
        if component.share > 0 and (count < _PER_CONCEPT or rank < _UNEXPLAINED):
            chosen[component.component] = None
        taken[component.assigned] = count + 1
    return list(chosen)


def illustrate(evidence: Evidence, places: Sequence[ClassLayer]) -> tuple[tuple[ClassLayer, ...], dict[str, str]]:
    """Attach reference images to every candidate.

    Returns
    -------
    places
        The same class layers, candidates carrying their first reference samples.
    images
        SHA-256 of each JPEG -> base64.
    """
    if evidence.thumbnails is None:
        return tuple(places), {}
    layers = {layer.layer: layer for layer in evidence.layers}
    images: dict[str, str] = {}
    made: dict[tuple[str, int], tuple[ReferenceImage, ...]] = {}
    out: list[ClassLayer] = []
    for place in places:
        wanted = set(candidates(place))
        for component in wanted:
            if (place.layer, component) not in made:
                made[place.layer, component] = _references(
                    evidence, layers[place.layer], component, evidence.thumbnails, images
                )
        components = tuple(
            item.model_copy(update={"references": made[place.layer, item.component]}) if item.component in wanted else item
            for item in place.components
        )
        out.append(place.model_copy(update={"components": components}))
    return tuple(out), images


def _references(
    evidence: Evidence,
    layer: LayerEvidence,
    component: int,
    thumbnails: Callable[[str, int, int], tuple[bytes, bytes]],
    images: dict[str, str],
) -> tuple[ReferenceImage, ...]:
    references = []
    for rank in range(min(_REFERENCES, layer.reference_ids.shape[1])):
        sample = int(layer.reference_ids[component, rank])
        if sample < 0:
            break
        crop, overlay = (_keep(jpeg, images) for jpeg in thumbnails(layer.layer, component, rank))
        alike = evidence.look_alikes(layer.layer, component, rank) if evidence.look_alikes is not None else None
        x0, y0, x1, y1 = (int(edge) for edge in layer.boxes[component, rank])
        references.append(
            ReferenceImage(
                sample=evidence.paths[sample],
                activation=float(layer.activations[component, rank]),
                box=(x0, y0, x1, y1),
                crop=crop,
                overlay=overlay,
                contrastive=None
                if alike is None
                else ContrastiveImage(sample=alike[0], box=alike[1], crop=_keep(alike[2], images)),
            )
        )
    return tuple(references)


def _keep(jpeg: bytes, images: dict[str, str]) -> str:
    """Key of a picture, which is among `images` from now on."""
    key = digest_bytes(jpeg)
    images[key] = base64.b64encode(jpeg).decode("ascii")
    return key


def prune(
    places: Sequence[ClassLayer], findings: Sequence[Finding], images: dict[str, str]
) -> tuple[tuple[ClassLayer, ...], dict[str, str]]:
    """Keep the images of components that findings name and of the most relevant unexplained ones."""
    used: dict[str, str] = {}

    def lighten(component: ComponentRecord, keep: bool) -> ComponentRecord:
        if not keep:
            return component.model_copy(update={"references": ()}) if component.references else component
        for reference in component.references:
            used.update((key, images[key]) for key in reference.keys)
        return component

    out = []
    for place in places:
        named = {
            number
            for finding in findings
            if finding.layer == place.layer and finding.class_name == place.class_name
            for number in finding.components
        }
        unexplained = [item.component for item in place.components if item.assigned is None][:_UNEXPLAINED]
        keep = named | set(unexplained)
        components = tuple(lighten(item, item.component in keep) for item in place.components)
        out.append(place.model_copy(update={"components": components}))
    return tuple(out), dict(sorted(used.items()))
