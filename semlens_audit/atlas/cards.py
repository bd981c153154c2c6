"""Components as every page of the atlas shows them: what drives them, how clear they are, which classes they serve."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from semlens_audit import scores
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.origins import origin
from semlens_audit.errors import UsageError
from semlens_audit.foreign_layers import ForeignLayer
from semlens_audit.stages import THUMBNAILS
from semlens_audit.vectors import crop_vectors

__all__ = ["PICTURES", "CardContrast", "CardReference", "ComponentCard", "card", "clarity", "component_named", "foreign_card"]

PICTURES = 6
"""Reference samples that a card shows unless asked for fewer or, up to as many as have pictures, for more."""


@dataclass(frozen=True)
class CardContrast:
    """The contrastive crop of a reference sample, with its picture.

    Parameters
    ----------
    sample
        Path of the sample that it was taken from, relative to the data's root.
    crop
        JPEG bytes.
    """

    sample: str
    crop: bytes


@dataclass(frozen=True)
class CardReference:
    """One reference sample of a component, with its pictures.

    Parameters
    ----------
    sample
        Path relative to the data's root; ``sample N`` where the data is another audit's.
    activation
        Pooled activation, or relevance where that is what reference samples were chosen by.
    crop, overlay
        JPEG bytes: the part that drives the component, and the whole input with the component's heatmap and the box.
    contrastive
        What its concept embedding takes away from the crop; see `semlens_audit.atlas.rows.Reference`.
    """

    sample: str
    activation: float
    crop: bytes
    overlay: bytes
    contrastive: CardContrast | None = None


@dataclass(frozen=True)
class ComponentCard:
    """One component, ready to be shown.

    Parameters
    ----------
    layer, component
        Which.
    index
        ``None`` for the audit's own index; of another index in the store, the first 12 digits of the stage that holds the concept
        embeddings.
    label
        What it means in words; ``None`` where nothing says so.
    label_note
        How the label was found and how sure it is; empty without one.
    share
        Class of the spec -> mean share of the class's absolute relevance in the layer, 0 to 1; empty for another index.
    clarity
        Mean pairwise cosine of its reference crops, -1 to 1; ``None`` with fewer than two.
    references
        Its first reference samples, highest activation first.
    facts
        (name, value) of whatever else a page says of it.
    origin
        What it is a part of, see `semlens_audit.atlas.origins`; ``None`` for a component that is whole.
    """

    layer: str
    component: int
    index: str | None = None
    label: str | None = None
    label_note: str = ""
    share: dict[str, float] | None = None
    clarity: float | None = None
    references: tuple[CardReference, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    origin: str | None = None

    @property
    def anchor(self) -> str:
        """Id of the card on a page: letters, digits, dots and dashes."""
        place = re.sub(r"[^A-Za-z0-9.]+", "-", self.layer)
        return "-".join(["component", *([self.index] if self.index else []), place, str(self.component)])

    @property
    def title(self) -> str:
        """``Component 12 of layer3``."""
        return f"Component {self.component} of {self.layer}"

    def labelled(self, label: str | None, note: str = "") -> ComponentCard:
        """The same card with a label."""
        return replace(self, label=label, label_note=note)

    def stating(self, *facts: tuple[str, str]) -> ComponentCard:
        """The same card with more facts."""
        return replace(self, facts=(*self.facts, *facts))


def card(
    atlas: Atlas,
    layer: str,
    component: int,
    *,
    label: str | None = None,
    label_note: str = "",
    facts: Sequence[tuple[str, str]] = (),
    references: int = PICTURES,
) -> ComponentCard:
    """A component of the audit's own index as a card.

    Parameters
    ----------
    atlas
        The opened index.
    layer, component
        Which; see `component_named` for names that a person wrote.
    label, label_note, facts
        See `ComponentCard`.
    references
        Most reference samples to show; the first `semlens_audit.stages.THUMBNAILS` have pictures.
    """
    source = atlas.layers[layer]
    shown = min(references, THUMBNAILS)
    chosen = np.flatnonzero(source.reference_ids[component] >= 0)[:shown].tolist()
    contrasts = _contrasts(atlas, layer, component, chosen)
    pictures = tuple(
        CardReference(
            atlas.evidence.paths[int(source.reference_ids[component, rank])],
            float(source.activations[component, rank]),
            *atlas.thumbnail(layer, component, rank),
            contrasts.get(rank),
        )
        for rank in chosen
    )
    share = atlas.shares(layer)
    return ComponentCard(
        layer=layer,
        component=component,
        label=label,
        label_note=label_note,
        share={name: float(share[i, component]) for i, name in enumerate(atlas.plan.spec.classes)},
        clarity=clarity(
            atlas, atlas.keys[f"crops:{layer}"], atlas.keys["foundation"], component, source.reference_ids.shape[1]
        ),
        references=pictures,
        facts=tuple(facts),
        origin=origin(atlas.plan, layer, component),
    )


def _contrasts(atlas: Atlas, layer: str, component: int, ranks: Sequence[int]) -> dict[int, CardContrast]:
    known = atlas.look_alikes
    found = {} if known is None else known.of(layer, component)
    return {rank: CardContrast(found[rank].sample, known.picture(found[rank])) for rank in ranks if known and rank in found}


def foreign_card(
    atlas: Atlas, source: ForeignLayer, component: int, *, facts: Sequence[tuple[str, str]] = (), references: int = PICTURES
) -> ComponentCard:
    """A component of another index in the same store as a card; it has no shares, since its classes are not this audit's."""
    paths = [sample.path for sample in atlas.data.samples] if source.data == atlas.data.sha256 else None
    rows = atlas.store.rows(
        "SELECT rank, sample, activation, crop, overlay FROM reference JOIN thumbnail USING (component, rank)"
        " WHERE reference.stage = ? AND thumbnail.stage = ? AND component = ? AND rank < ? ORDER BY rank LIMIT ?",
        (source.references, source.crops, component, source.declared, references),
    )
    return ComponentCard(
        layer=source.layer,
        component=component,
        index=source.key[:12],
        clarity=clarity(atlas, source.crops, source.pool, component, source.declared),
        references=tuple(
            CardReference(f"sample {sample}" if paths is None else paths[sample], float(activation), bytes(crop), bytes(overlay))
            for _, sample, activation, crop, overlay in rows
        ),
        facts=tuple(facts),
    )


def clarity(atlas: Atlas, crops: str, pool: str, component: int, declared: int) -> float | None:
    """Mean pairwise cosine of a component's reference crops (SemanticLens, arXiv 2501.05398), -1 to 1.

    Parameters
    ----------
    crops, pool
        Keys of the stage of its crops and of the pool of their embeddings.
    declared
        Reference samples that count; the store may hold more.

    Returns
    -------
    float or None
        ``None`` with fewer than two reference samples.
    """
    _, rank, vectors = crop_vectors(atlas.store, crops, pool, range(component, component + 1))
    kept = vectors[rank < declared]
    if len(kept) < 2:
        return None
    return float(scores.clarity(kept[None], np.ones((1, len(kept)), dtype=bool))[0])


def component_named(atlas: Atlas, text: str) -> tuple[str, int]:
    """Layer and component that ``LAYER:COMPONENT`` names, as in ``layer3:12``.

    Raises
    ------
    UsageError
        ``component-name``: not of that form; ``unknown-layer``; ``unknown-component``: the layer has fewer;
        ``dead-component``: it was never active on the data, so that nothing says what it means.
    """
    layer, colon, number = text.rpartition(":")
    if not colon or not layer or not number.isascii() or not number.isdigit():
        raise UsageError(
            "component-name", f"{text!r} names no component.", f"Write LAYER:COMPONENT, e.g. {atlas.plan.audit.layers[0]}:0."
        )
    if layer not in atlas.layers:
        raise UsageError("unknown-layer", f"The audit has no layer {layer!r}.", f"Its layers: {', '.join(atlas.layers)}.")
    source = atlas.layers[layer]
    if len(number) > 9 or int(number) >= source.components:
        raise UsageError(
            "unknown-component",
            f"Layer {layer} has no component {number}.",
            f"Its {source.components:,} components are 0 to {source.components - 1}.",
        )
    component = int(number)
    if source.dead[component] or not (source.reference_ids[component] >= 0).any():
        raise UsageError(
            "dead-component",
            f"Component {component} of {layer} is never active on this data, so that nothing says what it means.",
            "Choose one that `semlens-audit components` lists with reference samples.",
        )
    return layer, component
