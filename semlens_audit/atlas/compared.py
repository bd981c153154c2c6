"""What a comparison of two layers found, as values that are written down and shown."""

from __future__ import annotations

from typing import Literal

from semlens_audit.frozen import Frozen
from semlens_audit.measured import Interval, Measurement

__all__ = [
    "ComparedLayer", "Comparison", "ConceptShare", "LayerComparison", "Pair", "SetSimilarity", "Side", "Single", "State", "StateShare"
]  # fmt: skip

Side = Literal["first", "second"]
State = Literal["matched", "shifted", "shared", "lost", "learned", "open"]
"""matched: one of a pair. shifted: one of a pair, but counted for another concept than its partner. shared: its meaning is in the
other layer, in a component that is paired with another. lost, learned: only the first, only the second layer has it. open: which of
these it is cannot be said."""


class ComparedLayer(Frozen):
    """One side of a comparison."""

    audit: str
    model: str
    weights_sha256: str | None
    layer: str
    components: int
    dead: int
    """Never above zero on the data; they take part in nothing."""
    known: int
    """Components that have reference samples and are not dead."""
    reference_samples: int
    samples: int
    data_sha256: str


class SetSimilarity(Frozen):
    """Mean over the components of one layer of the cosine with the most similar component of the other (SemanticLens)."""

    of: Side
    """Whose components the mean is over."""
    origin: Literal["none", "centre"]
    """none: as published, cosines of the embeddings themselves. centre: seen from the centre of random crops."""
    weighting: str | None
    """Class whose relevance weighs the components; None: each counts the same."""
    measurement: Measurement
    """Its interval is that of other reference samples, the same components."""
    population: Interval | None
    """The wider interval: other components as well."""
    chance: float | None
    """Mean over random reference sets instead of components."""


class Pair(Frozen):
    """A component of each layer, similar beyond chance."""

    first: int
    second: int
    similarity: float
    """Cosine from the centres of random crops."""
    interval: Interval
    mutual: bool
    """Whether each is the other's most similar."""
    first_share: float | None
    second_share: float | None
    """Mean share of the class's relevance in its layer, 0 to 1."""
    change: Measurement | None
    """`second_share` minus `first_share`."""
    adjusted_p: float | None
    """P-value of no change, adjusted over all pairs (Benjamini and Hochberg 1995)."""
    changed: bool
    """Whether that is beyond noise at the audit's false-discovery rate."""
    first_concept: str | None = None
    second_concept: str | None = None
    """Concept of both specs that most of the component is counted for; None: none of them."""
    shifted: bool = False
    """Whether these differ beyond noise."""


class Single(Frozen):
    """A component without a partner."""

    side: Side
    component: int
    state: State
    reason: str
    """In one sentence."""
    nearest: int | None
    """The other layer's most similar component."""
    similarity: float | None
    interval: Interval | None
    level: float | None
    """What random reference sets reach: the similarity that has to be exceeded."""
    share: float | None
    concept: str | None = None
    """Concept of both specs that most of it is counted for."""


class StateShare(Frozen):
    """How many components of a side are in a state, and how much of the class's relevance flows through them."""

    side: Side
    state: State
    components: int
    share: Measurement | None


class ConceptShare(Frozen):
    """Share of a class's relevance in either layer that flows through components counted for a concept."""

    concept: str | None
    """Id; None: what is unexplained by the concepts of both specs."""
    first: Measurement
    second: Measurement
    change: Measurement
    """`second` minus `first`."""
    adjusted_p: float
    """P-value of no change, adjusted over the concepts (Benjamini and Hochberg 1995)."""
    changed: bool


class LayerComparison(Frozen):
    """Two layers held against each other."""

    first: ComparedLayer
    second: ComparedLayer
    class_name: str | None
    paired_samples: bool
    """Whether both sides saw the same samples, so that changes are measured sample by sample."""
    concepts: tuple[str, ...]
    """Concepts that both specs define alike; what components are counted for is compared over these."""
    similarities: tuple[SetSimilarity, ...]
    pairs: tuple[Pair, ...]
    """By the first layer's components."""
    singles: tuple[Single, ...]
    """The first layer's, then the second's; by component."""
    shares: tuple[StateShare, ...]
    concept_shares: tuple[ConceptShare, ...] = ()
    """In the order of the first spec, what is unexplained last; empty without a class."""


class Comparison(Frozen):
    """Layers of two audits held against each other."""

    schema_version: Literal[1] = 1
    layers: tuple[LayerComparison, ...]
    class_name: str | None
    remarks: tuple[str, ...]
    """What a reader has to know, in sentences."""
