"""What became of components between two indexes: pairs, what was learned and lost, shares of relevance, similarity of layers.

Values that a comparison finds (`semlens_audit.atlas.comparison`), that are written down, and that a record keeps the most telling
of. They come from files of strangers as well, so that every one of them has bounds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from semlens_audit.frozen import Frozen
from semlens_audit.measured import Interval, Measurement

__all__ = [
    "MOST_LAYERS",
    "MOST_SHOWN",
    "ComparedLayer",
    "ComponentChanges",
    "ConceptShare",
    "LayerChanges",
    "Pair",
    "Portrait",
    "PortraitReference",
    "SetSimilarity",
    "Side",
    "Single",
    "State",
    "StateShare",
]

MOST_LAYERS = 64
"""Layers, each for one class, that are compared in one go."""
MOST_SHOWN = 4
"""Components, or pairs, of each kind that a record keeps of a layer."""

Side = Literal["first", "second"]
State = Literal["matched", "shifted", "shared", "lost", "learned", "open"]
"""matched: one of a pair. shifted: one of a pair, but counted for another concept than its partner. shared: its meaning is in the
other layer, in a component that is paired with another. lost, learned: only the first, only the second layer has it. open: which of
these it is cannot be said."""

Name = Annotated[str, Field(max_length=500)]
Sentence = Annotated[str, Field(max_length=2000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=0, le=2**31)]
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
"""With room for what single precision rounds."""
Part = Annotated[float, Field(ge=-1e-6, le=1.0 + 1e-6)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class ComparedLayer(Frozen):
    """One side of a comparison."""

    audit: Name
    model: Name
    weights_sha256: Sha256 | None
    layer: Name
    components: Number
    dead: Number
    """Never above zero on the data; they take part in nothing."""
    known: Number
    """Components that have reference samples and are not dead."""
    reference_samples: Number
    samples: Number
    data_sha256: Sha256
    foundation_sha256: Sha256
    stages: Annotated[dict[Name, Sha256], Field(max_length=40)]
    """Stage -> key (content digest) of what was read from the store, as a record states them."""


class SetSimilarity(Frozen):
    """Mean over the components of one layer of the cosine with the most similar component of the other (SemanticLens)."""

    of: Side
    """Whose components the mean is over."""
    origin: Literal["none", "centre"]
    """none: as published, cosines of the embeddings themselves. centre: seen from the centre of random crops."""
    weighting: Name | None
    """Class whose relevance weighs the components; None: each counts the same."""
    measurement: Measurement
    """Its interval is that of other reference samples, the same components."""
    population: Interval | None
    """The wider interval: other components as well."""
    chance: Cosine | None
    """Mean over random reference sets instead of components."""


class Pair(Frozen):
    """A component of each layer, similar beyond chance."""

    first: Number
    second: Number
    similarity: Cosine
    """Cosine from the centres of random crops."""
    interval: Interval
    mutual: bool
    """Whether each is the other's most similar."""
    first_share: Part | None
    second_share: Part | None
    """Mean share of the class's relevance in its layer, 0 to 1."""
    change: Measurement | None
    """`second_share` minus `first_share`."""
    adjusted_p: Probability | None
    """P-value of no change, adjusted over all pairs (Benjamini and Hochberg 1995)."""
    changed: bool
    """Whether that is beyond noise at the audit's false-discovery rate."""
    first_concept: Name | None = None
    second_concept: Name | None = None
    """Concept of both specs that most of the component is counted for; None: none of them."""
    shifted: bool = False
    """Whether these differ beyond noise."""


class Single(Frozen):
    """A component without a partner."""

    side: Side
    component: Number
    state: State
    reason: Sentence
    """In one sentence."""
    nearest: Number | None
    """The other layer's most similar component."""
    similarity: Cosine | None
    interval: Interval | None
    level: Cosine | None
    """What random reference sets reach: the similarity that has to be exceeded."""
    share: Part | None
    concept: Name | None = None
    """Concept of both specs that most of it is counted for."""


class StateShare(Frozen):
    """How many components of a side are in a state, and how much of the class's relevance flows through them."""

    side: Side
    state: State
    components: Number
    share: Measurement | None


class ConceptShare(Frozen):
    """Share of a class's relevance in either layer that flows through components counted for a concept."""

    concept: Name | None
    """Id; None: what is unexplained by the concepts of both specs."""
    first: Measurement
    second: Measurement
    change: Measurement
    """`second` minus `first`."""
    adjusted_p: Probability
    """P-value of no change, adjusted over the concepts (Benjamini and Hochberg 1995)."""
    changed: bool


class PortraitReference(Frozen):
    """One reference sample of a component: the part that drives it."""

    sample: Name
    """Path relative to the data's root."""
    activation: Annotated[float, Field(ge=-1e9, le=1e9)]
    """What ranks it among the component's reference samples."""
    image: Sha256
    """Of the crop (JPEG)."""


class Portrait(Frozen):
    """What drives a component, in pictures."""

    side: Side
    layer: Name
    component: Number
    references: Annotated[tuple[PortraitReference, ...], Field(max_length=12)]


class LayerChanges(Frozen):
    """Two layers held against each other: counts of all components, and those that tell most."""

    first: ComparedLayer
    second: ComparedLayer
    class_name: Name | None
    paired_samples: bool
    """Whether both sides saw the same samples, so that changes are measured sample by sample."""
    concepts: Annotated[tuple[Name, ...], Field(max_length=1000)]
    """Concepts that both specs define alike."""
    similarities: Annotated[tuple[SetSimilarity, ...], Field(max_length=16)]
    shares: Annotated[tuple[StateShare, ...], Field(max_length=12)]
    concept_shares: Annotated[tuple[ConceptShare, ...], Field(max_length=1001)] = ()
    pairs: Number
    """How many there are."""
    shifted: Number
    """How many of them are counted for another concept on either side."""
    changed: Number
    """How many of them changed in relevance beyond noise."""
    reweighted: Number
    """How many of these kept their concept."""
    learned: Annotated[tuple[Single, ...], Field(max_length=MOST_SHOWN)] = ()
    lost: Annotated[tuple[Single, ...], Field(max_length=MOST_SHOWN)] = ()
    became: Annotated[tuple[Pair, ...], Field(max_length=MOST_SHOWN)] = ()
    """Of those counted for another concept."""
    moved: Annotated[tuple[Pair, ...], Field(max_length=MOST_SHOWN)] = ()
    """Of those that kept their concept and changed in relevance."""
    sentences: Annotated[tuple[Sentence, ...], Field(max_length=16)]
    """What a reader has to know first."""


class ComponentChanges(Frozen):
    """What became of the components since a baseline; decides no check."""

    source: Literal["files", "store"]
    """files: comparisons handed over with the records. store: made from both indexes, which the store held."""
    files: Annotated[tuple[Sha256, ...], Field(max_length=MOST_LAYERS)] = ()
    """SHA-256 of the files that were handed over."""
    layers: Annotated[tuple[LayerChanges, ...], Field(min_length=1, max_length=MOST_LAYERS)]
    portraits: Annotated[tuple[Portrait, ...], Field(max_length=MOST_LAYERS * 6 * MOST_SHOWN)] = ()
    """Of components that the layers show, each once; their pictures are among the record's images."""
    remarks: Annotated[tuple[Sentence, ...], Field(max_length=64)] = ()
    """What keeps the two sides from being alike but for the models, in sentences."""
