"""What a comparison of two layers found, in full, as values that are written down and shown."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from semlens_audit.component_changes import (
    MOST_LAYERS,
    MOST_SHOWN,
    ComparedLayer,
    ConceptShare,
    Name,
    Pair,
    Portrait,
    Sentence,
    SetSimilarity,
    Sha256,
    Side,
    Single,
    State,
    StateShare,
)
from semlens_audit.frozen import Frozen

__all__ = [
    "SCHEMA_VERSION", "ComparedLayer", "Comparison", "ConceptShare", "LayerComparison", "Pair", "Portrait", "SetSimilarity", "Side",
    "Single", "State", "StateShare",
]  # fmt: skip

SCHEMA_VERSION: Literal[2] = 2


class LayerComparison(Frozen):
    """Two layers held against each other."""

    first: ComparedLayer
    second: ComparedLayer
    class_name: Name | None
    paired_samples: bool
    """Whether both sides saw the same samples, so that changes are measured sample by sample."""
    concepts: Annotated[tuple[Name, ...], Field(max_length=1000)]
    """Concepts that both specs define alike; what components are counted for is compared over these."""
    similarities: Annotated[tuple[SetSimilarity, ...], Field(max_length=16)]
    pairs: tuple[Pair, ...]
    """By the first layer's components."""
    singles: tuple[Single, ...]
    """The first layer's, then the second's; by component."""
    shares: Annotated[tuple[StateShare, ...], Field(max_length=12)]
    concept_shares: Annotated[tuple[ConceptShare, ...], Field(max_length=1001)] = ()
    """In the order of the first spec, what is unexplained last; empty without a class."""


class Comparison(Frozen):
    """Layers of two audits held against each other."""

    schema_version: Literal[2] = SCHEMA_VERSION
    layers: Annotated[tuple[LayerComparison, ...], Field(min_length=1, max_length=MOST_LAYERS)]
    class_name: Name | None
    remarks: Annotated[tuple[Sentence, ...], Field(max_length=64)]
    """What a reader has to know, in sentences."""
    portraits: Annotated[tuple[Portrait, ...], Field(max_length=MOST_LAYERS * 6 * MOST_SHOWN)] = ()
    """Pictures of the components that tell most (`semlens_audit.atlas.telling`), where they were asked for."""
    images: Annotated[dict[Sha256, str], Field(max_length=20_000)] = Field(default_factory=dict)
    """SHA-256 of the file -> JPEG, base64."""
    files: Annotated[tuple[Name, ...], Field(max_length=8)] = ()
    """Files written along with it."""
