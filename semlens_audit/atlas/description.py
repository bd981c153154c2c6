"""What a class rests on: its components by relevance, grouped by what they mean, and how much of it nothing explains.

A component belongs to the first that holds: the concept that the last run of the audit assigned it to; a significant label; a group of
components that look alike, for those whose own reference crops have something in common; nothing. Components look alike whose concept
embeddings, seen from the centre of the layer's random crops, have a mean cosine of at least `LIKENESS` within the group
(agglomerative clustering with average linkage; Sokal and Michener, Univ. Kansas Sci. Bull. 38:1409, 1958).

Shapes use C audited classes, K components, m reference samples, d dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from semlens_audit import scores
from semlens_audit.atlas.labels import Label, best_label, label_components
from semlens_audit.atlas.likeness import alike, clear_components, likeness
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.rows import Reference, references
from semlens_audit.component_search import cache_folder, when_finished
from semlens_audit.digest import digest, digest_array
from semlens_audit.errors import UsageError
from semlens_audit.kept_array import kept_array
from semlens_audit.progress import Progress
from semlens_audit.records import AuditRecord, Measurement

__all__ = ["CARRIED", "LIKENESS", "Described", "Description", "Group", "LayerDescription", "describe", "description_values"]

VERSION = 1
"""Of the shape of `description_values`."""

LIKENESS = 0.6
"""Least mean cosine between the concept embeddings of components that count as alike."""

CARRIED = 0.95
"""Share of a class's relevance whose components are grouped; the others carry next to nothing each."""

MOST = 4096
"""Most components of a layer that are grouped."""

_MILESTONES = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Described:
    """One component, seen from the class.

    Parameters
    ----------
    component
        Which.
    share, cumulative
        Mean share of the class's absolute relevance in the layer; the same of it and all that carry more. 0 to 1.
    signed
        Mean relevance over mean absolute relevance: -1 (against the class on every sample) to 1 (for it).
    clarity
        Mean pairwise cosine of its reference crops, -1 to 1; ``None`` with fewer than two independent ones.
    clear
        Whether its clarity exceeds that of 95 in 100 random reference sets: whether its crops have anything in common.
    concept
        Concept of the spec that the last run assigned it to; ``None``: none, or there was no run.
    label
        Its best significant label; ``None``: no label fits, or no vocabulary was given.
    references
        Its first reference samples.
    """

    component: int
    share: float
    cumulative: float
    signed: float
    clarity: float | None
    clear: bool
    concept: str | None
    label: Label | None
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Group:
    """Components that mean the same, as far as anything tells.

    Parameters
    ----------
    kind
        ``concept``: assigned to a concept of the spec; ``label``: of one significant label; ``alike``: nameless, but alike;
        ``unclear``: nameless, and each with crops that have no more in common than random ones.
    name
        Title of the concept, the label, or what the most relevant component is called.
    concept, role
        Id of the concept and its role for the class; ``None`` for other kinds.
    share, signed
        Of all its components together, as in `Described`.
    likeness
        Mean cosine between the concept embeddings of its components, weighted by their shares; ``None`` for a single one, and for
        ``unclear``.
    components
        Most relevant first.
    """

    kind: Literal["concept", "label", "alike", "unclear"]
    name: str
    concept: str | None
    role: str | None
    share: float
    signed: float
    likeness: float | None
    components: tuple[int, ...]


@dataclass(frozen=True)
class LayerDescription:
    """How a class's relevance divides in one layer.

    Parameters
    ----------
    layer
        Name of the layer.
    samples
        Samples of the class.
    components, dead
        K, and how many of them are never active.
    carriers
        (share of relevance, fewest components that carry it together), e.g. ``(0.8, 12)``.
    grouped, grouped_share
        Components that `groups` hold, the most relevant ones, and what they carry together.
    roles
        Role for the class -> share of relevance of all components of the layer, grouped or not, that are assigned to concepts of it;
        ``unexplained``: of those that are assigned to none. Empty without a run.
    unexplained
        As the last run measured it; ``None`` without one.
    groups
        Largest share first, those that nothing is said of last.
    described
        The grouped components, most relevant first.
    """

    layer: str
    samples: int
    components: int
    dead: int
    carriers: tuple[tuple[float, int], ...]
    grouped: int
    grouped_share: float
    roles: dict[str, float]
    unexplained: Measurement | None
    groups: tuple[Group, ...]
    described: tuple[Described, ...]

    def component(self, number: int) -> Described:
        """The described component of that number."""
        return next(one for one in self.described if one.component == number)


@dataclass(frozen=True)
class Description:
    """What a class rests on, layer by layer.

    Parameters
    ----------
    audit, class_name
        Of what.
    vocabulary, level
        What labels were chosen from, and their false-discovery rate; ``None`` where no vocabulary was given.
    run
        Id of the run whose concepts are shown; ``None``: there is none of this very spec and audit.
    likeness
        See `LIKENESS`.
    layers
        In the order of the audit.
    """

    audit: str
    class_name: str
    vocabulary: str | None
    level: float | None
    run: str | None
    likeness: float
    layers: tuple[LayerDescription, ...]


def describe(
    atlas: Atlas,
    class_name: str,
    *,
    layers: Sequence[str] | None = None,
    record: AuditRecord | None = None,
    words: Any = None,
    vocabulary: str | None = None,
    level: float = 0.05,
    likeness: float = LIKENESS,
    progress: Progress | None = None,
) -> Description:
    """What a class rests on.

    Parameters
    ----------
    atlas
        Opened index.
    class_name
        Class of the spec.
    layers
        Layers of the audit; ``None``: all.
    record
        Last run of this very spec and audit: its concepts.
    words
        Vocabulary to label components with, see `semlens_audit.atlas.labels.label_components`; ``None``: no labels.
    vocabulary
        What to call it.
    level
        False-discovery rate of labels.
    likeness
        Least mean cosine of components that count as alike, above 0, at most 1.

    Raises
    ------
    UsageError
        ``bad-likeness``; ``no-samples``: the data has no sample of the class.
    """
    if not 0 < likeness <= 1:
        raise UsageError("bad-likeness", f"{likeness:g} is no cosine above 0 and at most 1.", f"Write e.g. {LIKENESS}.")
    chosen = list(atlas.plan.audit.layers if layers is None else layers)
    return Description(
        audit=atlas.plan.audit.audit,
        class_name=class_name,
        vocabulary=None if words is None else vocabulary,
        level=None if words is None else level,
        run=None if record is None else record.created,
        likeness=likeness,
        layers=tuple(_layer(atlas, layer, class_name, record, words, level, likeness, progress) for layer in chosen),
    )


def description_values(found: Description) -> dict[str, Any]:
    """A description as JSON-ready values.

    ``{"document": "class-description", "version": 1, ...}`` with the fields of `Description`, whose ``layers`` have those of
    `LayerDescription`, its ``groups`` those of `Group` and its ``described`` those of `Described`. Fields may be added within a version.
    """
    values = asdict(found)
    for layer, one in zip(values["layers"], found.layers, strict=True):
        layer["unexplained"] = None if one.unexplained is None else one.unexplained.model_dump(mode="json")
    return {"document": "class-description", "version": VERSION, **values}


def _layer(
    atlas: Atlas,
    layer: str,
    class_name: str,
    record: AuditRecord | None,
    words: Any,
    level: float,
    likeness: float,
    progress: Progress | None,
) -> LayerDescription:
    position = list(atlas.plan.spec.classes).index(class_name)
    samples = int((atlas.evidence.labels == atlas.evidence.audited[position]).sum())
    if not samples:
        raise UsageError("no-samples", f"The test data has no sample of class {class_name}.", "Choose another class.")
    share, source = atlas.shares(layer)[position], atlas.layers[layer]
    order = np.argsort(-share, kind="stable")
    running = np.cumsum(share[order])
    whole = float(running[-1]) if len(running) else 0.0
    carriers = tuple((part, int(np.searchsorted(running, part * whole) + 1)) for part in _MILESTONES) if whole > 0 else ()
    enough = min(int(np.searchsorted(running, CARRIED * whole) + 1), MOST, len(order)) if whole > 0 else 0
    grouped = order[:enough][share[order[:enough]] > 0]
    clarity, clear = clear_components(atlas, layer, grouped)
    signs = _signs(atlas, layer, position)
    concepts = _concepts(record, layer, class_name)
    labels: Mapping[int, Label | None] = {}
    if words is not None:
        found = label_components(atlas, layer, words, top=1, level=level, components=grouped.tolist(), progress=progress)
        labels = {int(k): best_label(one) for k, one in zip(grouped, found, strict=True)}
    described = tuple(
        Described(
            int(k),
            float(share[k]),
            float(running[place]),
            float(signs[1, k] / signs[0, k]) if signs[0, k] > 0 else 0.0,
            clarity[place],
            bool(clear[place]),
            concepts.get(int(k)),
            labels.get(int(k)),
            references(atlas, layer, int(k)),
        )
        for place, k in enumerate(grouped)
    )
    return LayerDescription(
        layer=layer,
        samples=samples,
        components=source.components,
        dead=int(source.dead.sum()),
        carriers=carriers,
        grouped=len(grouped),
        grouped_share=float(share[grouped].sum()),
        roles=_roles(atlas, class_name, concepts, share),
        unexplained=_unexplained(record, layer, class_name),
        groups=_groups(atlas, layer, class_name, described, signs, likeness),
        described=described,
    )


def _concepts(record: AuditRecord | None, layer: str, class_name: str) -> dict[int, str | None]:
    return {
        one.component: one.assigned
        for place in (record.class_layers if record is not None else ())
        if (place.layer, place.class_name) == (layer, class_name)
        for one in place.components
    }


def _unexplained(record: AuditRecord | None, layer: str, class_name: str) -> Measurement | None:
    places = record.class_layers if record is not None else ()
    return next((place.unexplained for place in places if (place.layer, place.class_name) == (layer, class_name)), None)


def _roles(atlas: Atlas, class_name: str, concepts: Mapping[int, str | None], share: np.ndarray) -> dict[str, float]:
    found = dict.fromkeys(("valid", "neutral", "spurious", "unexplained"), 0.0) if concepts else {}
    for component, concept in concepts.items():
        role = "unexplained" if concept is None else atlas.plan.spec.concept(concept).role_for(class_name)
        found[role] += float(share[component])
    return found


def _signs(atlas: Atlas, layer: str, position: int) -> np.ndarray:
    """(2, K) mean absolute and mean signed relevance for a class; read once, and kept beside the store where possible."""
    evidence, source = atlas.evidence, atlas.layers[layer]
    wanted = np.where(evidence.labels == evidence.audited[position], position, -1)
    stage = atlas.keys[f"relevance:{layer}"]

    def count() -> np.ndarray:
        total = np.zeros((2, source.components))
        for _, relevance in source.relevance_blocks(wanted):
            total += np.abs(relevance).sum(axis=0, dtype=np.float64), relevance.sum(axis=0, dtype=np.float64)
        return total / max(int((wanted >= 0).sum()), 1)

    name = digest([digest_array(wanted), position, stage, when_finished(atlas.store, stage)])[:16]
    return kept_array(cache_folder(atlas.store.path) / f"{stage}.{name}.signs", (2, source.components), count)


def _groups(
    atlas: Atlas, layer: str, class_name: str, described: Sequence[Described], signs: np.ndarray, least: float
) -> tuple[Group, ...]:
    by_concept: dict[str, list[Described]] = {}
    by_label: dict[str, list[Described]] = {}
    nameless: list[Described] = []
    unclear: list[Described] = []
    for one in described:
        if one.concept is not None:
            by_concept.setdefault(one.concept, []).append(one)
        elif one.label is not None:
            by_label.setdefault(one.label.word, []).append(one)
        else:
            (nameless if one.clear else unclear).append(one)
    vectors = scores.unit(atlas.concept_embeddings(layer, "centred").astype(np.float64))

    def group(kind: Literal["concept", "label", "alike", "unclear"], name: str, members: Sequence[Described], concept: str | None) -> Group:
        numbers = np.array([one.component for one in members])
        role = None if concept is None else atlas.plan.spec.concept(concept).role_for(class_name)
        size, total = (float(signs[row, numbers].sum()) for row in (0, 1))
        near = None if kind == "unclear" else likeness(vectors[numbers], np.array([one.share for one in members]))
        share = float(sum(one.share for one in members))
        return Group(kind, name, concept, role, share, total / size if size > 0 else 0.0, near, tuple(numbers.tolist()))

    found = [group("concept", atlas.plan.spec.concept(key).label, members, key) for key, members in by_concept.items()]
    found += [group("label", word, members, None) for word, members in by_label.items()]
    # In the order of their numbers, so that the groups do not depend on the class.
    nameless.sort(key=lambda one: one.component)
    for places in alike(vectors[[one.component for one in nameless]], least):
        members = sorted((nameless[place] for place in places), key=lambda one: (-one.share, one.component))
        found.append(group("alike", f"like component {members[0].component}", members, None))
    found.sort(key=lambda one: (-one.share, one.components[0]))
    return (*found, *([group("unclear", "nothing in common", unclear, None)] if unclear else []))
