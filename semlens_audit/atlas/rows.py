"""Components as listings and searches give them: which, with their share of relevance and their first reference samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit.atlas.opening import Atlas
from semlens_audit.foreign_layers import ForeignLayer
from semlens_audit.look_alikes import LookAlike

__all__ = ["ComponentRow", "Reference", "foreign_row", "own_row", "references"]

_SHOWN = 5


@dataclass(frozen=True)
class Reference:
    """One reference sample.

    Parameters
    ----------
    sample
        Path relative to the data's root; ``sample N`` where the data is another audit's.
    activation
        Pooled activation.
    box
        Crop x0, y0, x1, y1 in pixels of the network's input.
    contrastive
        What its concept embedding takes away from this crop; ``None`` where it is a mean of crops alone, in another index, and where
        no random crop is contrastive.
    """

    sample: str
    activation: float
    box: tuple[int, int, int, int]
    contrastive: LookAlike | None = None


@dataclass(frozen=True)
class ComponentRow:
    """One component of a layer, as a listing shows it.

    Parameters
    ----------
    layer, component
        Which.
    dead
        Never above zero on the data.
    share
        Class of the spec -> mean share of the class's absolute relevance in the layer, 0 to 1; empty for another index.
    references
        Its first reference samples, highest activation first.
    similarity
        Cosine between its concept embedding and the query, -1 to 1; ``None`` in a listing without a query.
    index
        ``None`` for the audit's own index; of another index in the store, the first 12 digits of the stage that holds the concept
        embeddings.
    model
        Whose component it is: name and version of the audit's model; architecture and first digits of the weights of another's.
    expected
        Mean similarity of random reference sets; ``None`` without a query or without random crops.
    z
        Deviations of the similarity above that of random reference sets; ``None`` likewise.
    p, adjusted_p
        Probability that a random set comes as near; the same, adjusted for every component searched.
    words
        Share of everyday words that stand out as much for any component searched, 0 to 1, see
        `semlens_audit.atlas.common_words`; ``None`` unless a text alone is looked for.
    significant
        Whether it is significantly near.
    """

    layer: str
    component: int
    dead: bool
    share: dict[str, float]
    references: tuple[Reference, ...]
    similarity: float | None = None
    index: str | None = None
    model: str | None = None
    expected: float | None = None
    z: float | None = None
    p: float | None = None
    adjusted_p: float | None = None
    words: float | None = None
    significant: bool | None = None


def own_row(atlas: Atlas, layer: str, component: int) -> ComponentRow:
    """A component of the audit's own index."""
    source, share = atlas.layers[layer], atlas.shares(layer)
    shares = {name: float(share[i, component]) for i, name in enumerate(atlas.plan.spec.classes)}
    return ComponentRow(layer, component, bool(source.dead[component]), shares, references(atlas, layer, component), model=_subject(atlas))


def references(atlas: Atlas, layer: str, component: int) -> tuple[Reference, ...]:
    """The first reference samples of a component of the audit's own index, highest activation first."""
    source, paths = atlas.layers[layer], atlas.evidence.paths
    ids = source.reference_ids[component]
    alike = {} if atlas.look_alikes is None else atlas.look_alikes.of(layer, component)
    return tuple(
        Reference(
            sample=paths[int(ids[rank])],
            activation=float(source.activations[component, rank]),
            box=tuple(int(value) for value in source.boxes[component, rank]),  # type: ignore[arg-type]
            contrastive=alike.get(rank),
        )
        for rank in np.flatnonzero(ids >= 0)[:_SHOWN].tolist()
    )


def foreign_row(atlas: Atlas, source: ForeignLayer, component: int) -> ComponentRow:
    """A component of another index in the same store."""
    known = [sample.path for sample in atlas.data.samples] if source.data == atlas.data.sha256 else None
    rows = atlas.store.rows(
        "SELECT sample, activation, x0, y0, x1, y1 FROM reference JOIN crop USING (component, rank, sample) "
        "WHERE reference.stage = ? AND crop.stage = ? AND component = ? ORDER BY rank LIMIT ?",
        (source.references, source.crops, component, min(_SHOWN, source.declared)),
    )
    shown = tuple(
        Reference(f"sample {sample}" if known is None else known[sample], float(activation), tuple(box))  # type: ignore[arg-type]
        for sample, activation, *box in rows
    )
    model, weights = source.model, str(atlas.evidence.subject.get("weights_sha256", ""))[:12]
    if weights and weights in model:
        model = f"{_subject(atlas)}, with other settings or data"
    return ComponentRow(source.layer, component, False, {}, shown, index=source.key[:12], model=model)


def _subject(atlas: Atlas) -> str:
    subject = atlas.plan.audit.subject
    return f"{subject.name} {subject.version or ''}".strip()
